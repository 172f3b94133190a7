"""Which engine a name, a machine and a federation give."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.parameters import mostly_slow
from torch import nn

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.fedavg import fedavg
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines import auto as choice
from genfl.engines.auto import choose, engine, obstacle
from genfl.engines.in_process import InProcess
from genfl.engines.pool import WorkerPool
from genfl.engines.vmapped import VmapRunner
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN, LSTM, MLP, Stack
from genfl.rng import Key

SHAPE = (1, 8, 8)


@pytest.fixture
def clients():
    return ClientData(torch.zeros(6, 2), torch.zeros(6, dtype=torch.long), [np.arange(3), np.arange(3, 6)], 1)


@pytest.mark.parametrize(
    ("cores", "cohort", "kind"), [(2, 2, WorkerPool), (1, 2, InProcess), (2, 1, InProcess)]
)
def test_clients_run_one_by_one_with_the_bits_of_the_reference(clients, monkeypatch, cores, cohort, kind):
    monkeypatch.setattr(choice, "cores", lambda: cores)
    with engine("auto", clients, cohort) as run:
        assert isinstance(run, kind)
        assert run.stats().how == "per client"
        assert run.stats().fast.reasons == (), "and they are replayed"


def test_batches_of_clients_are_shared_where_there_are_cores(clients, monkeypatch):
    monkeypatch.setattr(choice, "cores", lambda: 2)
    with engine("vectorized", clients, 2) as run:
        assert isinstance(run, WorkerPool)
        assert isinstance(run.runner, VmapRunner)
    monkeypatch.setattr(choice, "cores", lambda: 1)
    with engine("vectorized", clients, 2) as run:
        assert isinstance(run, InProcess)
        assert isinstance(run.runner, VmapRunner)


def data(sizes, shape=SHAPE):
    """Clients with so many samples."""
    ends = np.cumsum(sizes)
    parts = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return ClientData(torch.zeros(ends[-1], *shape), torch.arange(ends[-1]) % 10, parts, 10)


def chosen(build, clients, cohort=10, **schedule):
    task = classification(build, SHAPE)
    return choose(task, task.init(Key(0)), clients, replace(Schedule(1, cohort, 32), **schedule))


def problem(build, method=fedavg, shape=SHAPE):
    task = classification(build, shape)
    algorithm = method(task, LocalSGD(0.1))
    return obstacle(algorithm, task.init(Key(0)), data(ALIKE, shape), Schedule(1, 10, 32))


def small():
    return CNN(SHAPE, 10, width=16)


ALIKE = [64] * 20


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(choice, "cores", lambda: 2)


@pytest.mark.parametrize("build", [small, lambda: MLP(SHAPE, 10), lambda: CNN(SHAPE, 10, 8, norm="batch")])
def test_many_alike_clients_with_short_steps_are_batched(build):
    assert chosen(build, data(ALIKE)).batched


@pytest.mark.parametrize(
    ("sizes", "schedule", "batched"),
    [
        ([64, 33] * 10, {}, False),  # two steps and one
        ([64, 33] * 10, {"local_steps": 5}, True),  # as many for all, of whole batches
        ([64, 31] * 10, {"local_steps": 5}, False),  # batches of 31
        ([64] * 19 + [40], {}, True),  # 38 steps of 39
        ([64] * 19 + [400], {}, False),  # 38 steps of 50
    ],
)
def test_clients_whose_steps_differ_run_one_by_one(sizes, schedule, batched):
    assert chosen(small, data(sizes), **schedule).batched is batched


@pytest.mark.parametrize(
    ("cores", "cohort", "batched"),
    [(1, 9, False), (1, 10, True), (2, 10, True), (4, 19, False), (4, 20, True), (5, 100, False)],
)
def test_every_core_has_a_batch(monkeypatch, cores, cohort, batched):
    monkeypatch.setattr(choice, "cores", lambda: cores)
    assert chosen(small, data([64] * 100), cohort=cohort).batched is batched


def test_long_steps_run_one_by_one():
    for clients in data(ALIKE), data([1] + [64] * 19):  # whoever is the first
        assert "44.5 million operations" in chosen(lambda: CNN(SHAPE, 10, width=48), clients).why
    assert not chosen(small, data([200] * 20), batch_size=64, local_steps=1).batched


class Asking(nn.Module):
    """A layer that does what no batch of clients can: it looks at its numbers."""

    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


class Silent(nn.Module):
    """A layer that fails in a batch without a word."""

    def forward(self, x):
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise NotImplementedError
        return x


def flat(layer):
    return Stack(nn.Sequential(nn.Flatten(), layer), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("build", "shape", "why"),
    [
        (lambda: flat(Asking()), SHAPE, "calling .item()"),
        (lambda: flat(Silent()), SHAPE, "NotImplementedError"),
        (lambda: LSTM((5,), 10, vocabulary=7), (5,), "performance drop"),
    ],
)
def test_a_model_that_cannot_be_batched_is_found_out(build, shape, why):
    assert why in problem(build, shape=shape)


@pytest.mark.parametrize(
    "name", mostly_slow(sorted(ALGORITHMS.keys() - {"fedet"}), "fedavg", "scaffold", "fedgen")
)
def test_methods_can_be_batched(name):
    shared = torch.zeros(4, *SHAPE)
    given = {"cohort": 10, "rounds": 100, "shared": shared, "unlabelled": shared}
    assert problem(small, lambda task, local: ALGORITHMS[name].build(task, local, given)) is None


def promoted(task, local):
    """Federated averaging whose clients send numbers of another type in a batch than alone."""
    plain = fedavg(task, local)

    def finish(carry):
        upload, memory = plain.client.finish(carry)
        first = trees.leaves(carry["local"]["params"])[0]
        batch = torch._C._functorch.is_batchedtensor(first)
        sent = torch.ones((), dtype=torch.float64 if batch else torch.float32)
        return {**upload, "sent": sent}, memory

    reductions = {**plain.client.reductions, "sent": "sum"}
    return plain._replace(client=plain.client._replace(finish=finish, reductions=reductions))


def test_a_method_that_would_be_refused_in_batches_is_found_out():
    assert "dtype" in problem(small, promoted)


def test_clients_with_models_of_their_own_run_one_by_one():
    def unlike(task, local):
        return fedavg(task, local)._replace(same_form=False)

    assert "models differ" in problem(small, unlike)
