"""Server arithmetic against Flower's own strategies, over twenty rounds of the same clients' models."""

import os

import numpy as np
import pytest
import torch

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task
from genfl.rng import Key

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
strategy = pytest.importorskip("flwr.serverapp.strategy", reason="Flower is not installed")
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

ROUNDS, SAMPLES = 20, (10, 3, 7)
ADAPTIVE = {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
FROM_ZERO = {"lr": 0.05, "initial": 0.0}  # Flower starts the second moment at zero
CASES = {
    "fedavg": (strategy.FedAvg(), {}),
    "fedavgm": (
        strategy.FedAvgM(server_learning_rate=0.7, server_momentum=0.8),
        {"lr": 0.7, "beta": 0.8},
    ),
    "fedadam": (strategy.FedAdam(**ADAPTIVE), {**FROM_ZERO, "bias_correction": True}),
    "fedyogi": (strategy.FedYogi(**ADAPTIVE), FROM_ZERO),
    "fedadagrad": (strategy.FedAdagrad(eta=0.05, tau=1e-3), FROM_ZERO),
}


def models_near(number, x):
    """Returns the clients' models of a round, at distances of several magnitudes from the global one."""
    rng = np.random.default_rng(number)
    near = 10.0 ** rng.integers(-3, 1)
    return [{k: v + near * rng.standard_normal(v.shape) for k, v in x.items()} for _ in SAMPLES]


def record(x):
    return ArrayRecord({k: Array(v) for k, v in x.items()})


def flowers_path(flower, x):
    path = [x]
    for number in range(1, ROUNDS + 1):
        # What configure_train does: FedAvgM keeps the first record, the others every round's arrays.
        if isinstance(flower, strategy.FedAvgM):
            flower.current_arrays = flower.current_arrays or record(x)
        else:
            flower.current_arrays = path[-1]
        replies = []
        for model, samples in zip(models_near(number, path[-1]), SAMPLES, strict=True):
            metrics = MetricRecord({"num-examples": samples})
            content = RecordDict({"arrays": record(model), "metrics": metrics})
            asked = Message(RecordDict(), dst_node_id=1, message_type="train")
            replies.append(Message(content, reply_to=asked))
        arrays, _ = flower.aggregate_train(number, replies)
        path.append({k: array.numpy() for k, array in arrays.items()})
    return path


def our_path(name, options, x):
    task = Task(init=lambda key: {}, loss=lambda *_: None)
    algorithm = ALGORITHMS[name].build(task, LocalSGD(0.1), **options)
    weights = {"params": {k: torch.from_numpy(v) for k, v in x.items()}, "buffers": {}}
    state = algorithm.init(weights, {}, Key(0))
    path = [x]
    for number in range(1, ROUNDS + 1):
        changes = []
        for model, samples in zip(models_near(number, path[-1]), SAMPLES, strict=True):
            model = {k: torch.from_numpy(v) for k, v in model.items()}
            changes.append(trees.scale(samples, trees.sub(model, state["weights"]["params"])))
        delta = {"params": trees.add(*changes), "buffers": {}}
        aggregate = {"weight": torch.tensor(float(sum(SAMPLES))), "delta": delta}
        state = algorithm.server(state, aggregate, Key(0))
        path.append({k: v.numpy() for k, v in state["weights"]["params"].items()})
    return path


@pytest.mark.parametrize("name", list(CASES))
def test_twenty_rounds_equal_flowers(float64, monkeypatch, name):
    for identity in ("_run_id", "_node_id", "_task_id"):  # a message wants to know who makes it
        monkeypatch.setattr(TaskIdentity, identity, 1)
    flower, ours = CASES[name]
    rng = np.random.default_rng(9)
    x = {"a": rng.standard_normal((3, 2)), "b": rng.standard_normal(4)}
    expected, got = flowers_path(flower, x), our_path(name, ours, x)
    for theirs, mine in zip(expected, got, strict=True):
        for k in x:
            np.testing.assert_allclose(mine[k], theirs[k], rtol=1e-9, atol=1e-9)
    assert np.abs(expected[-1]["a"] - x["a"]).max() > 0.1, "nothing moved"
