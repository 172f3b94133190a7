"""Which engine a name, a machine and a federation give."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from genfl.algorithms.fedavg import fedavg
from genfl.data.clients import ClientData
from genfl.data.plans import Keep
from genfl.engines import choice
from genfl.engines.choice import choose, engine
from genfl.engines.parallel import Parallel
from genfl.engines.replay import Replaying
from genfl.engines.rounds import Schedule
from genfl.engines.sequential import Sequential
from genfl.engines.vectorised import Together, Vectorised
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN, LSTM, MLP, Stack
from genfl.rng import Key

SHAPE = (1, 8, 8)


@pytest.fixture
def clients():
    return ClientData(torch.zeros(6, 2), torch.zeros(6, dtype=torch.long), [np.arange(3), np.arange(3, 6)], 1)


@pytest.mark.parametrize(
    ("cores", "cohort", "kind"), [(2, 2, Parallel), (1, 2, Sequential), (2, 1, Sequential)]
)
def test_clients_run_one_by_one_with_the_bits_of_the_reference(clients, monkeypatch, cores, cohort, kind):
    monkeypatch.setattr(choice, "cores", lambda: cores)
    with engine("auto", clients, cohort) as run:
        assert isinstance(run, Replaying)
        assert isinstance(run.engine, kind)


def test_batches_of_clients_are_shared_where_there_are_cores(clients, monkeypatch):
    monkeypatch.setattr(choice, "cores", lambda: 2)
    with engine("vectorised", clients, 2) as run:
        assert isinstance(run, Parallel)
        assert isinstance(run.runner, Together)
    monkeypatch.setattr(choice, "cores", lambda: 1)
    with engine("vectorised", clients, 2) as run:
        assert isinstance(run, Vectorised)


def data(sizes, generated=0, shape=SHAPE):
    """Clients with so many samples; the first also with generated ones."""
    ends = np.cumsum(sizes)
    parts = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    own = ClientData(torch.zeros(ends[-1], *shape), torch.arange(ends[-1]) % 10, parts, 10)
    if not generated:
        return own
    given = [np.arange(generated), *(np.arange(0) for _ in sizes[1:])]
    return own.enriched(torch.zeros(generated, *shape), torch.zeros(generated, dtype=torch.long), given)


def chosen(build, clients, shape=SHAPE, cohort=10, **schedule):
    task = classification(build, shape)
    rounds = replace(Schedule(1, cohort, 32), **schedule)
    return choose(fedavg(task, LocalSGD(0.1)), task, task.init(Key(0)), clients, rounds)


def small():
    return CNN(SHAPE, 10, width=16)


ALIKE = [64] * 20


@pytest.mark.parametrize("build", [small, lambda: MLP(SHAPE, 10), lambda: CNN(SHAPE, 10, 8, norm="batch")])
def test_many_alike_clients_with_short_steps_are_batched(build):
    assert chosen(build, data(ALIKE)).batched


@pytest.mark.parametrize(
    ("sizes", "schedule", "batched"),
    [
        ([64, 33] * 10, {}, False),  # two steps and one
        ([64, 33] * 10, {"local_steps": 5}, True),  # as many for all, of whole batches
        ([64, 31] * 10, {"local_steps": 5}, False),  # batches of 31
        ([64] * 18 + [10, 500], {}, True),  # nine in ten
        ([64] * 17 + [10, 500, 500], {}, False),
    ],
)
def test_clients_whose_steps_differ_run_one_by_one(sizes, schedule, batched):
    assert chosen(small, data(sizes), **schedule).batched is batched


@pytest.mark.parametrize("schedule", [{"order": "p2g"}, {"keep": Keep(0.5, by_class=False)}])
def test_clients_that_train_on_kinds_of_data_in_turn_run_one_by_one(schedule):
    assert not chosen(small, data(ALIKE, generated=1), local_steps=2, **schedule).batched
    assert chosen(small, data(ALIKE, generated=1), local_steps=2).batched


def test_small_cohorts_and_long_steps_run_one_by_one():
    assert "fewer than 10" in chosen(small, data(ALIKE), cohort=9).why
    assert "44 million operations" in chosen(lambda: CNN(SHAPE, 10, width=48), data(ALIKE)).why
    assert not chosen(small, data([200] * 20), batch_size=64, local_steps=1).batched


class Asking(nn.Module):
    """A layer that does what no batch of clients can: it looks at its numbers."""

    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: Stack(nn.Sequential(nn.Flatten(), Asking()), nn.Linear(64, 10)), SHAPE),
        (lambda: LSTM((5,), 10, vocabulary=7), (5,)),
    ],
)
def test_a_model_that_cannot_be_batched_is_found_out(build, shape):
    assert "cannot be batched" in chosen(build, data(ALIKE, shape=shape), shape).why


def test_what_is_chosen_does_not_depend_on_cores(monkeypatch):
    before = chosen(small, data(ALIKE))
    monkeypatch.setattr(choice, "cores", lambda: 1)
    assert chosen(small, data(ALIKE)) == before
