"""What clients find when they test a model, against one evaluation of all their samples together."""

import numpy as np
import pytest
import torch

from genfl.data.clients import ClientData
from genfl.engines.evaluation import QUANTILES, SUMS, evaluate_clients, evaluation
from genfl.engines.in_process import sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.pool import WorkerPool, refusal
from genfl.engines.protocol import ClientTask
from genfl.learning.evaluate import evaluate
from genfl.learning.task import classification
from genfl.models import Stack
from genfl.rng import Key

SIZES = (1, 7, 40, 3, 600)


@pytest.fixture
def task():
    return classification(lambda: Stack(torch.nn.Flatten(), torch.nn.Linear(5, 3)), (5,))


@pytest.fixture
def clients():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(sum(SIZES), 5, generator=rng), torch.randint(3, (sum(SIZES),), generator=rng)
    return ClientData(x, y, np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1]), 3)


def alone(task, model, clients, k):
    batch = clients.batch(k, torch.arange(clients.samples(k)))
    return evaluate(task, model, batch["x"], batch["y"])


def test_weighted_by_samples_it_is_the_pooled_accuracy_and_loss(task, clients):
    model = task.init(Key(0))
    found = evaluate_clients(task, [model] * len(SIZES), clients, sequential(clients))
    pooled = evaluate(task, model, clients.x, clients.y)
    assert found["accuracy"] == pooled["accuracy"]
    assert found["loss"] == pytest.approx(pooled["loss"], rel=1e-6)
    assert (found["clients"], found["samples"]) == (len(SIZES), sum(SIZES))


def test_the_spread_is_that_of_the_clients_accuracies(task, clients):
    model = task.init(Key(0))
    found = evaluate_clients(task, [model] * len(SIZES), clients, sequential(clients))["quantiles"]
    theirs = sorted(alone(task, model, clients, k)["accuracy"] for k in range(len(SIZES)))
    assert len(set(theirs)) > 2
    assert len(found) == QUANTILES
    assert found[:: (QUANTILES - 1) // 4] == pytest.approx(theirs), "of five clients, each is a quartile"
    assert found == sorted(found)


def test_everyone_may_test_a_model_of_their_own(task, clients):
    models = [task.init(Key(k)) for k in range(len(SIZES))]
    found = evaluate_clients(task, models, clients, sequential(clients))
    right = [SIZES[k] * alone(task, models[k], clients, k)["accuracy"] for k in range(len(SIZES))]
    assert found["accuracy"] == pytest.approx(sum(right) / sum(SIZES))


def test_the_server_sees_sums_and_accuracies_and_nothing_is_remembered(task, clients):
    program = evaluation(task)
    assert {name for name, how in program.reductions.items() if how == "sum"} == set(SUMS)
    client_info, message = clients.client_info(0), {"weights": task.init(Key(0))}
    upload, memory = program.finish(program.start(message, {}, client_info, Key(0)))
    assert set(upload) == set(program.reductions)
    assert memory == {}


def test_a_diverged_model_has_no_loss_but_an_accuracy(task, clients):
    model = task.init(Key(0))
    broken = {"params": {name: torch.full_like(p, torch.nan) for name, p in model["params"].items()}}
    models = [model] * (len(SIZES) - 1) + [{**model, **broken}]
    found = evaluate_clients(task, models, clients, sequential(clients))
    assert found["loss"] is None
    assert found["samples"] == sum(SIZES), "nobody's upload is refused"


def test_a_client_without_samples_is_left_out(task, clients):
    work = [
        ClientTask(k, {"weights": task.init(Key(0))}, {}, None, Key(0)) for k in range(2)
    ]  # without a batch
    result = sequential(clients).run(evaluation(task), work)
    assert set(result.refused) == {0, 1}
    assert result.aggregate is None


@pytest.mark.skipif(refusal() is not None, reason=str(refusal()))
def test_every_engine_finds_the_same(task, clients):
    models = [task.init(Key(0))] * len(SIZES)
    engine = WorkerPool(PerClientRunner(clients, accelerated=False), workers=2)
    try:
        found = evaluate_clients(task, models, clients, engine)
    finally:
        engine.close()
    assert found == evaluate_clients(task, models, clients, sequential(clients))
