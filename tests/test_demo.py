"""The main job, end to end: what `make demo` promises."""

import itertools
import json
import shutil
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
    check_metrics(out)
    check_export(out, tmp_path)
    check_comparison(out, tmp_path)


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


def check_metrics(out):
    """Every round is in the file once."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    rounds = [(row["method"], row["seed"], row["round"]) for row in lines if row["event"] == "round"]
    trained = set(itertools.product(("fedavg", "gptfl"), (0, 1, 2), range(101)))
    alone = {("synthetic_only", seed, 0) for seed in (0, 1, 2)}
    assert len(rounds) == len(set(rounds))
    assert set(rounds) == trained | alone


def check_export(out, tmp_path):
    """The exported loader gives the logits of the run's model in a process without genfl."""
    result = genfl.load_run(out)
    exported = result.export(tmp_path / "exported", method="gptfl", seed=1, onnx=True)
    assert exported.onnx_difference < 1e-5
    x = DATASETS["digits"].load().test.x
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import sys, torch; from load import load; model, about = load();"
        " logits = model(torch.load(sys.argv[1])); torch.save(logits.detach(), sys.argv[2]);"
        " assert about['method'] == 'gptfl' and 'genfl' not in sys.modules"
    )
    files = [str(tmp_path / "x.pt"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", script, *files], check=True, cwd=exported.folder)
    with torch.no_grad():
        expected = result.model("gptfl", seed=1)(x)
    assert (torch.load(tmp_path / "logits.pt") - expected).abs().max() < 1e-6


def check_comparison(out, tmp_path):
    """The demo does not differ from itself; both are listed."""
    runs = tmp_path / "runs"
    for name in ("first", "second"):
        shutil.copytree(out, runs / name)
    comparison = genfl.compare([runs / "first", runs / "second"], out=tmp_path / "page")
    differences = [row.difference for row in comparison.rows if row.run == "second"]
    assert len(differences) == 3
    assert not any(difference.clear or difference.points for difference in differences)
    assert "gptfl" in (tmp_path / "page" / "index.html").read_text()
    listed = subprocess.run(
        [sys.executable, "-m", "genfl", "runs", str(runs), "--json"], check=True, capture_output=True
    )
    entries = json.loads(listed.stdout)
    assert [(entry["path"], entry["best"]["method"]) for entry in entries] == [
        ("first", "gptfl"),
        ("second", "gptfl"),
    ]
