"""Private and generated samples in a client's round: their order, the choice among them, on every engine."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.base import ClientProgram
from genfl.algorithms.filtering import SampleFilter, filtered
from genfl.data.clients import ClientData
from genfl.data.plans import Batches, Schedule, plan
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.pool import WorkerPool
from genfl.engines.protocol import ClientTask, planned_rows, run_client
from genfl.engines.vmapped import VmapRunner
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN
from genfl.rng import Key
from genfl.simulation import federate

SHAPE = (1, 8, 8)
PRIVATE = [np.arange(a, b) for a, b in itertools.pairwise([0, 9, 30, 34, 60])]
GENERATED = [np.arange(a, b) for a, b in itertools.pairwise([0, 12, 12, 32, 40])]  # one client has none
MIXED, PRIVATE_FIRST, GENERATED_FIRST = None, (0, 1), (1, 0)
ORDERS = [MIXED, PRIVATE_FIRST, GENERATED_FIRST]


def examples(count, seed):
    rng = Key(seed).torch()
    return torch.randn(count, *SHAPE, generator=rng), torch.randint(3, (count,), generator=rng)


@pytest.fixture
def clients():
    return with_generated()


def with_generated():
    return ClientData(*examples(60, 0), PRIVATE, 3).with_part("generated", *examples(40, 1), GENERATED)


def batches(order, steps=None, epochs=1, size=4):
    return Batches(size, steps, epochs, Key(3), order)


# --- the order, seen from within a client, batch by batch


def trained_on(clients, client, plan):
    """For each step of a client's round, which of its samples are in the batch: True where generated."""
    private, _ = clients.part_sizes(client)
    place = {
        tuple(x.flatten().tolist()): n
        for n, x in enumerate(clients.batch(client, torch.arange(clients.samples(client)))["x"])
    }
    seen = []
    program = ClientProgram(
        lambda message, memory, client_info, key: {},
        lambda carry, batch, key: (
            seen.append([place[tuple(x.flatten().tolist())] for x in batch["x"]]) or carry
        ),
        lambda carry: ({}, {}),
        {},
    )
    run_client(program, clients, ClientTask(client, {}, {}, plan, Key(0)))
    return [[number >= private for number in batch] for batch in seen], seen


def test_private_then_generated_epoch_by_epoch(clients):
    made, rows = trained_on(clients, 0, batches(PRIVATE_FIRST, epochs=2))
    assert made == [[False] * 4] * 4 + [[True] * 4] * 6  # 9 // 4 and 12 // 4 batches an epoch
    assert sorted(itertools.chain(*rows[4:7])) == sorted(itertools.chain(*rows[7:])) == list(range(9, 21))


def test_generated_then_private_epoch_by_epoch(clients):
    made, _ = trained_on(clients, 0, batches(GENERATED_FIRST, epochs=2))
    assert made == [[True] * 4] * 6 + [[False] * 4] * 4


def test_mixed_epochs_pass_over_both_together(clients):
    made, rows = trained_on(clients, 0, batches(MIXED))
    assert len(made) == 21 // 4
    assert len(set(itertools.chain(*rows))) == 20
    assert any(len(set(batch)) == 2 for batch in made)


@pytest.mark.parametrize(("order", "first"), [(PRIVATE_FIRST, False), (GENERATED_FIRST, True)])
def test_steps_are_halved(clients, order, first):
    made, _ = trained_on(clients, 0, batches(order, steps=5))
    assert made == [[first] * 4] * 3 + [[not first] * 4] * 2


@pytest.mark.parametrize("order", ORDERS)
def test_a_client_without_generated_samples_takes_all_its_steps_on_its_own(clients, order):
    made, _ = trained_on(clients, 1, batches(order, steps=5))
    assert made == [[False] * 4] * 5


def test_one_of_the_parts_may_be_smaller_than_a_batch(clients):
    made, _ = trained_on(clients, 2, batches(PRIVATE_FIRST, size=16))
    assert made == [[False] * 4, [True] * 16]


@given(
    st.sampled_from(ORDERS),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 16),
    st.integers(1, 3),
    st.none() | st.integers(1, 9),
)
def test_the_count_is_that_of_the_steps_drawn(order, private, generated, size, epochs, steps):
    plan = Batches(size, steps, epochs, Key(0), order)
    rows = plan.draw((private, generated))
    assert len(rows) == plan.length((private, generated))
    if steps and private + generated:
        assert len(rows) == steps


def test_without_generated_samples_every_order_is_the_plan():
    rows = plan(20, 6, None, 2, Key(3).numpy())
    for order in ORDERS:
        for sizes in ((20, 0), (20,)):
            drawn = Batches(6, None, 2, Key(3), order).draw(sizes)
            assert all(torch.equal(a, b) for a, b in zip(drawn, rows, strict=True))


def test_a_part_that_is_not_in_the_order_is_not_trained_on(clients):
    made, _ = trained_on(clients, 0, batches((1,), steps=5))
    assert made == [[True] * 4] * 5


# --- filtering: which generated samples are kept


def filtering(algorithm, task, keep, from_round=1):
    return filtered(algorithm, task, keep, part=1, from_round=from_round)


@given(st.integers(1, 60), st.floats(0.01, 1), st.booleans(), st.integers(0, 2**31))
def test_exactly_the_share_is_kept_and_it_has_the_least_losses(count, share, by_class, seed):
    rng = np.random.default_rng(seed)
    losses, labels = rng.random(count), rng.integers(4, size=count)
    kept = SampleFilter(share, by_class).choose(torch.from_numpy(losses), torch.from_numpy(labels)).numpy()
    assert kept.tolist() == sorted(set(kept.tolist()))
    for group in np.unique(labels) if by_class else [None]:
        among = np.flatnonzero(labels == group) if by_class else np.arange(count)
        chosen, left = np.intersect1d(kept, among), np.setdiff1d(among, kept)
        assert len(chosen) == max(1, int(share * len(among) + 0.5))
        assert losses[chosen].max(initial=0) <= losses[left].min(initial=1)


def test_clients_judge_by_the_global_model_and_keep_all_of_their_own(clients):
    task = classification(lambda: CNN(SHAPE, 3, width=4), SHAPE)
    algorithm = filtering(ALGORITHMS["fedavg"].build(task, LocalSGD(0.1), {}), task, SampleFilter(0.5, False))
    weights = task.init(Key(1))
    client_task = ClientTask(0, {"weights": weights}, {}, batches(MIXED, size=1), Key(0))
    used = set(torch.cat(planned_rows(algorithm.client, clients, client_task)).tolist())
    made = clients.batch(0, torch.arange(9, 21))
    losses = F.cross_entropy(task.forward(weights, made["x"])[1], made["y"], reduction="none")
    assert used == set(range(9)) | {9 + int(place) for place in losses.argsort()[:6]}


def test_a_program_that_cannot_judge_says_so(clients):
    task = classification(lambda: CNN(SHAPE, 3, width=4), SHAPE)
    algorithm = filtering(ALGORITHMS["fedavg"].build(task, LocalSGD(0.1), {}), task, SampleFilter(0.5, False))
    client_task = ClientTask(0, {}, {}, batches(MIXED), Key(0))
    with pytest.raises(ValueError, match="the server sends them no global model"):
        planned_rows(algorithm.client, clients, client_task)
    assert planned_rows(algorithm.client, clients, client_task._replace(client=1)), "it has nothing to filter"


def test_filtering_begins_with_its_round(clients):
    task = classification(lambda: CNN(SHAPE, 3, width=4), SHAPE)
    plain = ALGORITHMS["fedavg"].build(task, LocalSGD(0.1), {})
    algorithm = filtering(plain, task, SampleFilter(0.5, True), from_round=3)
    message = {"weights": task.init(Key(1))}
    counts = []
    for number in (1, 2, 3, 5):
        client_task = ClientTask(0, message, {}, batches(MIXED, size=1), Key(0), number)
        counts.append(len(planned_rows(algorithm.client, clients, client_task)))
    assert counts[0] == counts[1] == 9 + 12
    assert counts[2] == counts[3] < 9 + 12


# --- the same answer from each engine


def run(clients, engine, order, keep, method="scaffold"):
    task = classification(lambda: CNN(SHAPE, 3, width=4), SHAPE)
    algorithm = ALGORITHMS[method].build(task, LocalSGD(0.1, momentum=0.9), {})
    return federate(
        filtering(algorithm, task, keep, from_round=2) if keep else algorithm,
        task.init(Key(1)),
        clients,
        engine,
        Schedule(3, 3, batch_size=8, local_epochs=2, order=order),
        Key(5),
        lambda weights: {"norm": trees.square_norm(weights["params"]).item()},
    )


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("keep", [None, SampleFilter(0.6, False), SampleFilter(0.6, True)])
def test_engines_agree(float64, order, keep):
    clients = with_generated()
    expected = trees.leaves(run(clients, sequential(clients), order, keep).weights)
    parallel = WorkerPool(PerClientRunner(clients, accelerated=False), workers=2)
    try:
        forked = trees.leaves(run(clients, parallel, order, keep).weights)
    finally:
        parallel.close()
    batched = trees.leaves(run(clients, InProcess(VmapRunner(clients)), order, keep).weights)
    assert all(torch.equal(a, b) for a, b in zip(expected, forked, strict=True))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(expected, batched, strict=True))
    plain = trees.leaves(run(clients, sequential(clients), MIXED, None).weights)
    alike = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, plain, strict=True))
    assert alike == (order is MIXED and keep is None)
