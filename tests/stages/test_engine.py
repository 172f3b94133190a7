"""What the engine `auto` is in a whole run, and that the run tells."""

import json
import logging

import pytest

from genfl import config, pipeline
from genfl.storage import load_tensors

CONFIG = """
name: engines
seeds: [0]
data: {{name: digits, partition: {partition}}}
generator: none
model: {{name: cnn, width: 8}}
federate: {{rounds: 2, clients_per_round: 10, local: {{steps: 3}}, evaluate_every: 2, engine: {engine}}}
methods:
  fedprox: {{algorithm: fedprox}}
"""
ALIKE = "{kind: iid, clients: 20}"
UNLIKE = "{kind: dirichlet, alpha: 0.05, clients: 20, min_size: 3}"


@pytest.fixture
def run(tmp_path, caplog):
    """``(partition, engine) -> the final model, whether clients were batched, what was logged``."""

    def run(partition, engine):
        folder = tmp_path / engine
        caplog.clear()
        with caplog.at_level(logging.INFO, "genfl"):
            summary = pipeline.execute(
                config.parse(CONFIG.format(partition=partition, engine=engine)), folder
            )
        arm = folder / "federate" / "fedprox" / "seed-0"
        told = json.loads((arm / "trace.json").read_text())["batched"]
        assert summary["methods"]["fedprox"]["batched"] is told
        tensors, _ = load_tensors(arm / "model.safetensors")
        return {name: tensor.tolist() for name, tensor in tensors.items()}, told, caplog.text

    return run


@pytest.mark.parametrize(
    ("partition", "same_as", "says"),
    [
        (ALIKE, "vectorised", "clients run in batches: a batch's forward pass takes no more than"),
        (UNLIKE, "sequential", "clients run one by one: clients differ in the number of their steps"),
    ],
)
def test_auto_is_what_it_says(run, partition, same_as, says):
    weights, batched, log = run(partition, "auto")
    assert batched == (same_as == "vectorised")
    assert log.count(says) == 1
    assert run(partition, same_as)[:2] == (weights, batched)
