"""The main job, end to end: what `make demo` promises."""

import json
import subprocess
import sys

import pytest


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
