import copy
from functools import partial

import numpy as np
import pytest
import torch
from support.methods import few_steps
from support.parameters import mostly_slow

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.base import ClientProgram, statistics
from genfl.algorithms.fedavg import fedavg
from genfl.analysis.diversity import DIVERSITY, gradient_diversity
from genfl.data.clients import ClientData, Ranges
from genfl.data.plans import Batches, Schedule
from genfl.engines.in_process import sequential
from genfl.engines.protocol import ClientTask, planned_rows
from genfl.errors import InputError
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN, MLP, Stack
from genfl.rng import Key
from genfl.simulation import census, cohort, federate

from .engines.helpers import SpyEngine

SCHEDULE = Schedule(
    rounds=7, clients_per_round=3, batch_size=4, local_steps=3, evaluate_every=2, checkpoint_every=2
)


def model():
    """Has everything that is hard to resume: batch norm and dropout."""
    body = [torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5)]
    return Stack(torch.nn.Sequential(*body), torch.nn.Linear(16, 3))


@pytest.fixture(scope="module")
def clients():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 1, 8, 8, generator=rng)
    y = torch.randint(3, (60,), generator=rng)
    return ClientData(x, y, [torch.arange(60)[k::6].numpy() for k in range(6)], 3)


def run(clients, tmp_path=None, *, name="fedadam", schedule=SCHEDULE, engine=None, task=None, **options):
    task = task or classification(model, (1, 8, 8))
    resources = {
        "cohort": 3,
        "shared": torch.linspace(-1, 1, 20 * 64).reshape(20, 1, 8, 8),
        "unlabelled": torch.linspace(-1, 1, 20 * 64).reshape(20, 1, 8, 8),
        "client_tasks": {
            str(width): classification(partial(MLP, (1, 8, 8), 3, width), (1, 8, 8)) for width in (4, 6)
        },
    }
    algorithm = ALGORITHMS[name].build(task, LocalSGD(0.1, momentum=0.9), resources, **few_steps(name))
    return federate(
        algorithm,
        task.init(Key(1)),
        clients,
        engine or sequential(clients),
        schedule,
        Key(5),
        lambda weights: {"norm": trees.square_norm(weights["params"]).item()},
        checkpoint=tmp_path / "checkpoint.safetensors" if tmp_path else None,
        measures={DIVERSITY: gradient_diversity()} if algorithm.same_form else {},
        **options,
    )


def assert_same(a, b):
    assert a.evaluations == b.evaluations
    assert a.rounds == b.rounds
    for x, y in zip(trees.leaves(a.weights), trees.leaves(b.weights), strict=True):
        assert torch.equal(x, y)


class Interrupted(BaseException):
    pass


@pytest.fixture(scope="module")
def whole_runs():
    """Runs that nothing interrupted, by method."""
    return {}


@pytest.mark.parametrize("after", [1, *(pytest.param(after, marks=pytest.mark.slow) for after in (2, 3, 6))])
@pytest.mark.parametrize("name", mostly_slow(ALGORITHMS, "fedavg", "scaffold"))
def test_an_interrupted_run_ends_bit_identical(clients, whole_runs, tmp_path, name, after):
    if name not in whole_runs:
        whole_runs[name] = run(clients, name=name)
    whole = whole_runs[name]
    count = 0

    def interrupt(rounds):
        nonlocal count
        count += rounds
        if count == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(clients, tmp_path, name=name, on_round=interrupt)
    finished = []
    resumed = run(clients, tmp_path, name=name, on_round=finished.append)
    assert sum(finished) == SCHEDULE.rounds
    assert finished[0] == (after // 2 * 2 or 1), "it did not start from the last checkpoint"
    assert_same(whole, resumed)
    assert_same(whole, run(clients, tmp_path, name=name))  # a finished run is only read back


def test_the_number_of_threads_changes_nothing(clients):
    task = classification(lambda: CNN((1, 8, 8), 3), (1, 8, 8))
    traces = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        traces.append(run(clients, task=task, schedule=Schedule(2, 3, 8, local_steps=5)))
        torch.set_num_threads(before)
    assert_same(*traces)


def test_global_random_state_neither_matters_nor_changes(clients):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = run(clients)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert_same(first, run(clients))


def test_evaluations_and_bytes_are_those_of_the_schedule(clients):
    trace = run(clients)
    assert [e["round"] for e in trace.evaluations] == [0, 2, 4, 6, 7]
    weights = trees.num_bytes(trace.weights)
    assert [r["round"] for r in trace.rounds] == list(range(1, 8))
    for r in trace.rounds:
        assert r["downlink_bytes"] == 3 * weights
        assert r["uplink_bytes"] == 3 * (weights + 4)  # the change and its weight, a float32
        assert r["refused"] == 0


def poisoned(program: ClientProgram, poison) -> ClientProgram:
    """Spoils the uploads of clients whose number of samples says so."""

    def finish(carry):
        upload, memory = program.finish(carry)
        return poison(carry, copy.copy(upload)), memory

    return program._replace(finish=finish)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda leaf: leaf * float("nan"), "NaN or infinite"),
        (lambda leaf: leaf + float("inf"), "NaN or infinite"),
        (lambda leaf: leaf[None], "shape"),
        (lambda leaf: leaf.double(), "dtype"),
    ],
)
def test_a_bad_upload_is_refused_and_counted_and_the_rest_goes_on(float64, spoil, why):
    data = ClientData(torch.ones(6, 2), torch.zeros(6, dtype=torch.long), [[0], [1, 2], [3, 4, 5]], 1)
    data = ClientData(data.x.float(), data.y, [torch.tensor(p).numpy() for p in ([0], [1, 2], [3, 4, 5])], 1)

    def finish(carry):
        upload = {"value": {"a": carry["samples"].float()}}
        if carry["trained"] and carry["samples"] == 2:
            upload["value"]["a"] = spoil(upload["value"]["a"])
        return upload, {"seen": carry["trained"]}

    program = ClientProgram(
        start=lambda message, memory, client_info, key: {**client_info, "trained": torch.tensor(0)},
        step=lambda carry, batch, key: {**carry, "trained": carry["trained"] + 1},
        finish=finish,
        reductions={"value": "sum"},
    )
    work = [ClientTask(k, {}, {}, Batches(1, 1, 1, Key(0)), Key(0)) for k in (2, 0, 1)]
    result = sequential(data).run(program, work)
    assert result.aggregate["value"]["a"].item() == 1 + 3
    assert list(result.refused) == [1]
    assert why in result.refused[1]
    assert set(result.memories) == {0, 2}, "a client whose upload was refused keeps its old memory"


def test_a_round_in_which_every_upload_is_refused_leaves_the_model_alone(clients, caplog):
    task = classification(lambda: CNN((1, 8, 8), 3), (1, 8, 8))
    algorithm = fedavg(task, LocalSGD(lr=1e300))
    trace = federate(
        algorithm, task.init(Key(1)), clients, sequential(clients), Schedule(2, 3, 4, 1), Key(0), lambda w: {}
    )
    assert [r["refused"] for r in trace.rounds] == [3, 3]
    assert all(
        torch.equal(a, b)
        for a, b in zip(trees.leaves(trace.weights), trees.leaves(task.init(Key(1))), strict=True)
    )
    assert "refused" in caplog.text


def test_cohorts_are_distinct_sorted_and_cover_everyone():
    seen = set()
    for number in range(200):
        chosen = cohort(20, 4, Key(0).fold("cohort", number))
        assert len(set(chosen)) == 4
        assert chosen == sorted(chosen)
        seen |= set(chosen)
    assert seen == set(range(20))


def test_the_census_equals_a_loop_over_clients(clients):
    program = fedavg(classification(model, (1, 8, 8)), LocalSGD(0.1)).census
    assert {k: v.item() for k, v in census(program, clients).items()} == {"clients": 6, "samples": 60}


@pytest.mark.parametrize("chunk", [1, 4, 6, 7])
def test_the_census_in_parts_is_that_of_the_whole(clients, monkeypatch, chunk):
    program = statistics(
        {"labels": lambda client_info: client_info["label_counts"], "samples": lambda f: f["samples"]}
    )
    monkeypatch.setattr("genfl.simulation.CENSUS_CHUNK", chunk)
    sums = census(program, clients)
    assert sums["labels"].tolist() == clients.y.bincount(minlength=3).tolist()
    assert sums["samples"].item() == 60


def test_a_million_clients_are_ranges_of_rows(clients):
    """Clients of one and of two samples in turn."""
    many = 10**6
    ends = np.arange(many) + 1 + (np.arange(many) + 1) // 2
    x = torch.zeros(1, 1, 8, 8).expand(int(ends[-1]), 1, 8, 8)
    y = torch.arange(int(ends[-1])) % 3
    data = ClientData(x, y, Ranges(ends), 3)
    assert data.rows is None, "it keeps nothing for each row"
    assert [data.samples(k) for k in (0, 1, many - 2, many - 1)] == [1, 2, 1, 2]
    assert data.labels(many - 1).tolist() == y[-2:].tolist()
    assert data.client_info(1)["label_counts"].tolist() == [0, 1, 1]
    assert data.as_one([0, 1]).labels(0).tolist() == [0, 1, 2]
    program = fedavg(classification(model, (1, 8, 8)), LocalSGD(0.1)).census
    assert {k: v.item() for k, v in census(program, data).items()} == {"clients": many, "samples": 1.5 * many}
    seen = []

    def watch(program, tasks):
        seen.extend(client_task.client for client_task in tasks)

    engine = SpyEngine(sequential(data), on_round=watch)

    task = classification(lambda: MLP((1, 8, 8), 3), (1, 8, 8))
    run(data, engine=engine, task=task, schedule=Schedule(2, 50, 2, local_steps=1))
    assert len(set(seen)) > 90
    assert min(seen) < many / 10 < many * 9 / 10 < max(seen)


def test_ranges_are_the_same_clients_as_lists_of_their_rows(clients):
    ends = np.array([3, 10, 13, 30, 44, 60])
    lists = ClientData(clients.x, clients.y, np.split(np.arange(60), ends[:-1]), 3)
    ranges = ClientData(clients.x, clients.y, Ranges(ends), 3)
    assert_same(run(lists), run(ranges))
    for name, column in lists.client_info_table.items():
        assert torch.equal(column, ranges.client_info_table[name])


@pytest.mark.parametrize(
    ("ends", "why"),
    [([3, 3, 60], "client 1 has no samples"), ([0, 60], "client 0 has no"), ([3, 61], "row 61 of 60")],
)
def test_ranges_that_are_none_are_refused(clients, ends, why):
    with pytest.raises(InputError, match=why):
        ClientData(clients.x, clients.y, Ranges(np.array(ends)), 3)


def test_a_label_that_is_no_class_is_noticed(clients):
    with pytest.raises(ValueError, match="class 2 of 2"):
        ClientData(clients.x, clients.y, Ranges(np.array([30, 60])), 2).client_info(0)


def test_batches_and_random_streams_differ_over_rounds_clients_and_steps(clients):
    seen = []

    def watch(program, tasks):
        for client_task in tasks:
            rows = planned_rows(program, clients, client_task)
            seen.append((client_task.client, str([row.tolist() for row in rows]), client_task.key))

    engine = SpyEngine(sequential(clients), on_round=watch)

    run(clients, engine=engine, schedule=Schedule(4, 6, 4, local_steps=3))
    assert len(seen) == 24
    assert len({plan for _, plan, _ in seen}) == 24
    assert len({key for _, _, key in seen}) == 24


def test_each_step_has_its_own_random_stream(clients):
    keys = []
    program = ClientProgram(
        start=lambda message, memory, client_info, key: {},
        step=lambda carry, batch, key: keys.append(key) or carry,
        finish=lambda carry: ({"one": torch.ones(())}, {}),
        reductions={"one": "sum"},
    )
    work = [ClientTask(k, {}, {}, Batches(1, 3, 1, Key(0)), Key(0).fold(k)) for k in range(2)]
    sequential(clients).run(program, work)
    assert len(set(keys)) == 6
