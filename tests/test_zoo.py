"""The config that names every method, end to end in small."""

import json
from pathlib import Path

import pytest
import yaml
from support.command import run_command
from support.methods import few_steps

from genfl import config
from genfl.algorithms import ALGORITHMS
from genfl.references import REFERENCES

ZOO = Path(__file__).parents[1] / "examples" / "zoo.yaml"
SMALL = [
    "seeds=[0]",
    "prompts.per_label=4",
    "generator.steps=2",
    "pretrain.epochs=1",
    "federate.rounds=2",
    "federate.local.steps=1",
    "federate.evaluate_every=1",
    "methods.generator.algorithm.samples=1",
]


def briefly():
    """Settings by which methods train on a server for a moment only, with the other options of the file."""
    steps = {name: few_steps(name) for name in ALGORITHMS}
    steps["dynafed"] = {"trajectory": 1, "span": 1, "synthesis_steps": 5}
    for name, method in yaml.safe_load(ZOO.read_text())["methods"].items():
        algorithm = method["algorithm"]
        options = algorithm if isinstance(algorithm, dict) else {"name": algorithm}
        if few := steps.get(options["name"]):
            yield f"methods.{name}.algorithm={json.dumps({**options, **few})}"


def test_it_names_every_algorithm_with_and_without_generated_data_and_every_reference():
    methods = config.load(ZOO).methods
    for name in ALGORITHMS:
        assert [part.name for part in methods[name].algorithm] == [name]
        assert methods[name].start == "random"
        assert methods[f"{name}+gptfl"].algorithm == methods[name].algorithm
        assert methods[f"{name}+gptfl"].start == "pretrained"
    assert {method.algorithm[0].name for method in methods.values()} == {*ALGORITHMS, *REFERENCES}


@pytest.mark.slow
def test_every_method_runs_and_is_reported(tmp_path):
    run_command("run", ZOO, *SMALL, *briefly(), "--out", tmp_path / "zoo")
    summary = json.loads((tmp_path / "zoo" / "summary.json").read_text())
    methods = summary["methods"]
    assert set(methods) == {"synthetic_only", *config.load(ZOO).methods}
    model = methods["fedavg"]["uplink_bytes_per_round"] / 4  # of four clients, which also send their weight
    for name, copies in {"scaffold": 2, "feddyn": 1, "fedgen": 1, "dynafed": 1, "moon": 1}.items():
        assert methods[name]["uplink_bytes_per_round"] / 4 == pytest.approx(copies * model, rel=1e-3)
    shared = 40 * 10 * 4  # forty samples' answers in ten classes
    assert methods["dsfl"]["uplink_bytes_per_round"] / 4 == pytest.approx(shared, rel=0.01)
    assert methods["feddf"]["uplink_bytes_per_round"] == methods["fedavg"]["uplink_bytes_per_round"]
    assert methods["feddf_logits"]["uplink_bytes_per_round"] / 4 == pytest.approx(model + shared, rel=0.01)
    assert methods["local"]["uplink_bytes_per_round"] == 0
    page = (tmp_path / "zoo" / "report" / "index.html").read_text()
    assert all(name in page for name in methods)
