"""The parallel engine: the same bits as the sequential one, whatever happens to its workers."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from support.methods import few_steps
from support.parameters import mostly_slow

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.base import ClientProgram
from genfl.analysis.diversity import DIVERSITY, gradient_diversity
from genfl.data.clients import ClientData
from genfl.data.plans import Batches, Schedule
from genfl.engines.in_process import sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.pool import WorkerPool
from genfl.engines.protocol import ClientTask
from genfl.errors import GenflError
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import MLP, Stack
from genfl.rng import Key
from genfl.simulation import federate
from genfl.storage import locked

SHAPE, CLASSES = (4,), 3


def model():
    """Has what differs between clients in a batch: batch norm and dropout."""
    body = [torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)]
    return Stack(torch.nn.Sequential(*body), torch.nn.Linear(8, CLASSES))


@pytest.fixture(scope="module")
def clients():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, *SHAPE, generator=rng), torch.randint(CLASSES, (70,), generator=rng)
    ends = [0, 5, 20, 24, 40, 70]  # unequal clients: unequal steps
    return ClientData(x, y, [torch.arange(70)[a:b].numpy() for a, b in itertools.pairwise(ends)], CLASSES)


def run(clients, engine, name="fedadam", rounds=3, **options):
    resources = {
        "cohort": 3,
        "shared": torch.linspace(-1, 1, 48).reshape(12, 4),
        "unlabelled": torch.linspace(-1, 1, 48).reshape(12, 4),
        "client_tasks": {str(w): classification(partial(MLP, SHAPE, CLASSES, w), SHAPE) for w in (4, 6)},
    }
    task = classification(model, SHAPE)
    algorithm = ALGORITHMS[name].build(task, LocalSGD(0.1, momentum=0.9), resources, **few_steps(name))
    return federate(
        algorithm,
        task.init(Key(1)),
        clients,
        engine,
        Schedule(rounds, 3, batch_size=4),
        Key(5),
        lambda weights: {"norm": trees.square_norm(weights["params"]).item()},
        measures={DIVERSITY: gradient_diversity()} if algorithm.same_form else {},
        **options,
    )


def assert_same(a, b):
    assert a.evaluations == b.evaluations
    assert a.rounds == b.rounds
    assert all(
        torch.equal(x, y) for x, y in zip(trees.leaves(a.weights), trees.leaves(b.weights), strict=True)
    )


@pytest.mark.slow
def test_tensors_of_odd_sizes_have_the_bits_of_sequential(tmp_path):
    """Batches of one, and models of odd widths: kernels that look at where a tensor begins in memory."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 9, generator=rng), torch.randint(CLASSES, (60,), generator=rng)
    clients = ClientData(x, y, list(torch.arange(60).view(12, 5).numpy()), CLASSES)
    task = classification(partial(MLP, (9,), CLASSES, width=13), (9,))

    def play(engine, rounds=4, checkpoint=None):
        method = ALGORITHMS["moon"].build(task, LocalSGD(0.1), {})
        schedule = Schedule(rounds, 8, batch_size=1)
        start = task.init(Key(1))
        return federate(
            method, start, clients, engine, schedule, Key(5), lambda weights: {}, checkpoint=checkpoint
        )

    alone = play(sequential(clients))
    with contextlib.closing(WorkerPool(PerClientRunner(clients, accelerated=False), workers=2)) as engine:
        assert_same(play(engine), alone)
    stopped = tmp_path / "checkpoint.safetensors"
    play(sequential(clients), rounds=2, checkpoint=stopped)
    assert_same(play(sequential(clients), checkpoint=stopped), alone)


@pytest.fixture
def parallel(clients):
    engine = WorkerPool(PerClientRunner(clients, accelerated=False), workers=2)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", mostly_slow(ALGORITHMS, "fedavg", "scaffold", "fedgen", "dsfl"))
def test_every_algorithm_gives_the_same_bits(clients, parallel, name):
    assert_same(run(clients, parallel, name), run(clients, sequential(clients), name))


@pytest.mark.parametrize("workers", mostly_slow([1, 3, 7], 1))
def test_the_number_of_workers_changes_nothing(clients, workers):
    engine = WorkerPool(PerClientRunner(clients, accelerated=False), workers=workers)
    assert_same(run(clients, engine, "scaffold"), run(clients, sequential(clients), "scaffold"))
    engine.close()


def test_workers_stay_over_rounds_and_end_with_the_engine(clients, parallel):
    seen = []
    run(clients, parallel, on_round=lambda _: parallel._pool and seen.append(pids(parallel)))
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    parallel.close()
    assert not any(alive(pid) for pid in seen[-1])


def pids(engine):
    return [process.pid for process in engine._pool.processes]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def program(act):
    """Uploads the client's number of samples, after `act` was run in the worker."""

    def step(carry, batch, key):
        act()
        return carry

    return ClientProgram(
        start=lambda message, memory, client_info, key: {"n": client_info["samples"]},
        step=step,
        finish=lambda carry: ({"n": carry["n"]}, {}),
        reductions={"n": "sum"},
    )


def work(clients):
    return [ClientTask(k, {}, {}, Batches(4, 1, 1, Key(k)), Key(k)) for k in range(len(clients))]


def test_a_worker_killed_in_the_middle_of_a_round_is_replaced_and_the_round_done_again(
    clients, parallel, tmp_path, caplog
):
    marker = tmp_path / "killed"

    def die_once():
        if not marker.exists():
            marker.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)

    result = parallel.run(program(die_once), work(clients))
    assert marker.exists()
    assert result.aggregate["n"].item() == 70
    assert "the round is repeated" in caplog.text


def test_workers_that_always_die_are_given_up_on(clients, parallel):
    with pytest.raises(GenflError, match="enough memory"):
        parallel.run(program(lambda: os.kill(os.getpid(), signal.SIGKILL)), work(clients))


def test_a_failure_in_a_worker_is_told_with_its_traceback(clients, parallel):
    def fail():
        raise ZeroDivisionError("in the client")

    with pytest.raises(GenflError, match=r"client \d failed in a worker(.|\n)*ZeroDivisionError: in the"):
        parallel.run(program(fail), work(clients))
    assert parallel._pool is None


@pytest.mark.parametrize("bad", [torch.tensor(float("nan")), torch.zeros(2), torch.tensor(1)])
def test_a_bad_upload_is_refused_as_by_the_sequential_engine(clients, parallel, bad):
    spoiled = program(lambda: None)._replace(
        step=lambda carry, batch, key: (
            {"n": torch.where(carry["n"] == 15, bad, carry["n"])}
            if bad.shape == () and bad.is_floating_point()
            else {"n": bad if carry["n"] == 15 else carry["n"]}
        )
    )
    mine, reference = parallel.run(spoiled, work(clients)), sequential(clients).run(spoiled, work(clients))
    assert mine.refused == reference.refused
    assert list(mine.refused) == [1]
    assert mine.aggregate["n"].item() == reference.aggregate["n"].item() == 55
    assert set(mine.memories) == {0, 2, 3, 4}


def test_what_a_round_gave_is_not_overwritten_by_the_next(clients, parallel):
    one = [work(clients)[1]]
    first = parallel.run(program(lambda: None), one).aggregate["n"]
    same = program(lambda: None)
    kept = parallel.run(same, one).aggregate["n"]
    parallel.run(same, [work(clients)[4]])
    assert first.item() == kept.item() == 15


SCRIPT = """
import sys, time
sys.path[:0] = {folders!r}
from test_pool import *
y = torch.zeros(8, dtype=torch.long)
data = ClientData(torch.zeros(8, 4), y, torch.arange(8).reshape(4, 2).numpy(), 1)
engine = WorkerPool(PerClientRunner(data, accelerated=False), workers=2)
engine.run(program(lambda: None), work(data))
print(*pids(engine), flush=True)
with locked(Path(".lock")):
    engine.run(program(lambda: (print("working", flush=True), time.sleep(60))), work(data))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_run_is_interrupted_or_killed(tmp_path, how):
    segments = shared_memory()
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(folders=[str(folder) for folder in Path(__file__).parents[:2]]))
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path
    ) as process:
        process.stdout.readline()
        assert process.stdout.readline().startswith("working")
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does: to all processes of the run
        else:
            process.kill()
        process.wait(30)
        if how == signal.SIGKILL:  # an interrupt releases the lock when it is handled
            with locked(tmp_path / ".lock"):
                pass
        deadline = time.time() + 5  # in the middle of a step of a minute
        while time.time() < deadline and group(process.pid):
            time.sleep(0.01)
    assert not group(process.pid)
    assert shared_memory() - segments == set()


def shared_memory():
    """The segments of the machine, without the semaphores that every process with joblib makes."""
    return {path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.loky-")}


def group(pgid):
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    return True


def counting(value):
    """Uploads what the message makes of the client's samples, and remembers what it uploaded."""
    return ClientProgram(
        start=lambda message, memory, client_info, key: {**message, **memory},
        step=lambda carry, batch, key: carry,
        finish=lambda carry: (value(carry), {"seen": carry["seen"] * 1.5}),
        reductions={"a": "sum"},
    )


def test_messages_and_memories_may_change_their_form_between_rounds(clients, parallel):
    """The same names with other shapes or dtypes are another form: nothing is stretched or cast."""
    same = counting(lambda carry: {"a": carry["m"] + carry["seen"]})
    reference = sequential(clients)
    forms = [
        (torch.ones(3), torch.tensor(1)),
        (torch.tensor(5.0), torch.tensor(1)),
        (torch.tensor(0.2, dtype=torch.double), torch.tensor(0.5, dtype=torch.double)),
    ]
    for message, memory in forms:
        client_tasks = [ClientTask(k, {"m": message}, {"seen": memory}, None, Key(k)) for k in range(5)]
        mine, expected = parallel.run(same, client_tasks), reference.run(same, client_tasks)
        assert torch.equal(mine.aggregate["a"], expected.aggregate["a"])
        assert mine.aggregate["a"].dtype == expected.aggregate["a"].dtype
        assert torch.equal(mine.memories[3]["seen"], expected.memories[3]["seen"])


def test_clients_that_are_sent_other_messages_get_their_own(clients):
    """While some of them are read, the next ones are written."""

    def slowly(message, memory, client_info, key):
        time.sleep(0.005)  # long enough for the next share to be made ready
        return {**message, **memory}

    own = counting(lambda carry: {"a": carry["m"] * carry["seen"]})._replace(start=slowly)
    with contextlib.closing(WorkerPool(PerClientRunner(clients, accelerated=False), workers=2)) as engine:
        for number in range(3):
            client_tasks = [
                ClientTask(
                    k,
                    {"m": torch.full((3,), 10.0**k)},
                    {"seen": torch.tensor(k + number + 1.0)},
                    None,
                    Key(k),
                )
                for k in range(5)
            ]
            result = engine.run(own, client_tasks)
            assert result.aggregate["a"].tolist() == [sum(10**k * (k + number + 1) for k in range(5))] * 3
            assert [memory["seen"].item() for _, memory in sorted(result.memories.items())] == [
                1.5 * (k + number + 1) for k in range(5)
            ]


def test_a_memory_that_is_not_finite_is_refused(clients, parallel):
    spoil = counting(lambda carry: {"a": torch.ones(())})
    client_tasks = [
        ClientTask(k, {}, {"seen": torch.tensor(3e38 if k == 2 else 1.0)}, None, Key(k)) for k in range(5)
    ]
    for engine in (parallel, sequential(clients)):
        assert list(engine.run(spoil, client_tasks).refused) == [2]


def test_rounds_of_different_cohorts_and_kinds_keep_the_workers_they_have(clients, parallel):
    same = program(lambda: None)
    parallel.run(same, work(clients))
    before = pids(parallel)
    parallel.run(same, work(clients)[:2])
    parallel.run(same, work(clients))
    assert pids(parallel) == before


def test_clients_of_one_message_may_remember_different_forms(clients, parallel):
    """As in a round of clients that took part before and of others that never did."""
    same = counting(lambda carry: {"a": carry["m"] + carry["seen"]})
    memories = [torch.tensor(1), torch.tensor(0.5), torch.tensor(0.1, dtype=torch.double)]
    message = torch.tensor(2.0, dtype=torch.double)
    client_tasks = [ClientTask(k, {"m": message}, {"seen": memories[k]}, None, Key(k)) for k in range(3)]
    for engine in (parallel, sequential(clients)):
        result = engine.run(same, client_tasks)
        assert result.refused == {}
        assert result.aggregate["a"].item() == pytest.approx(7.6)
        assert [memory["seen"].dtype for memory in result.memories.values()] == [
            torch.float32,
            torch.float32,
            torch.float64,
        ]
