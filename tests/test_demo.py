"""The main job, end to end: what `make demo` promises."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import genfl
from genfl.data.sources import DATASETS, to_image
from genfl.models import MODELS


@pytest.mark.slow
def test_the_demo_keeps_its_promises(tmp_path):
    out = tmp_path / "demo"
    subprocess.run([sys.executable, "-m", "genfl", "demo", "--out", str(out)], check=True)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["seeds"] == [0, 1, 2]
    assert summary["labels"]["found"] == sorted(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
    assert summary["labels"]["attempts"] == 1
    assert summary["synthetic"]["samples"] == 2000

    methods = summary["methods"]
    assert methods["synthetic_only"]["accuracy"]["mean"] >= 0.82
    assert methods["gptfl"]["accuracy"]["mean"] >= 0.97
    for (number, scratch, _), (_, warm, _) in zip(
        methods["fedavg"]["curve"], methods["gptfl"]["curve"], strict=True
    ):
        assert number > 20 or warm > scratch, f"round {number}"
    assert summary["target_accuracy"] == 0.9
    assert methods["gptfl"]["rounds_to_target"] <= methods["fedavg"]["rounds_to_target"] / 2
    assert methods["gptfl"]["bytes_to_target"] <= methods["fedavg"]["bytes_to_target"] / 2
    for name in ("fedavg", "gptfl"):
        curve = [mean for _, mean, _ in methods[name]["curve"]]
        assert len(curve) == 21
        assert methods[name]["accuracy"]["mean"] == pytest.approx(sum(curve[-5:]) / 5)
    check_models(out, tmp_path / "held-out")


def check_models(out, folder):
    """The models of the demo, on the test set as files: the figures are those of a plain loop."""
    test = DATASETS["digits"].load().test
    for number, (x, label) in enumerate(zip(test.x, test.labels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        to_image(x).save(folder / label / f"{number}.png")
    result = genfl.load_run(out)
    files = sorted(folder.glob("*/*.png"))
    y = np.array([result.label_names.index(path.parent.name) for path in files])
    pixels = np.stack([np.asarray(Image.open(path)) for path in files])[:, None] / 255
    evaluation = result.evaluate(folder)
    assert evaluation.method == "gptfl" and evaluation.examples == 360
    for seed in evaluation.seeds:
        plain = MODELS[result.config.model.name].build((1, 8, 8), 10, **result.config.model.options())
        plain.load_state_dict(
            load_file(out / "federate" / "gptfl" / f"seed-{seed.seed}" / "model.safetensors")
        )
        with torch.no_grad():
            predicted = plain.eval()(torch.tensor(pixels, dtype=torch.float32)).argmax(1).numpy()
        assert seed.accuracy == pytest.approx((predicted == y).mean(), abs=1e-4)
    assert evaluation.accuracy.mean >= 0.96
    alone = result.summary.methods["synthetic_only"].accuracy.mean
    assert result.evaluate(folder, method="synthetic_only").accuracy.mean == pytest.approx(alone, abs=0.01)
    predictions = result.model("gptfl", seed=0).predict(files[:20], top=2)
    hits = np.mean([p.label == path.parent.name for p, path in zip(predictions, files[:20], strict=True)])
    assert hits >= 0.8
