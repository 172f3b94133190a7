"""The vectorized engine: what the sequential one gives, to rounding, whatever is batched with what."""

import contextlib
import itertools
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.methods import few_steps
from support.parameters import mostly_slow

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.base import ClientProgram
from genfl.data.clients import ClientData
from genfl.data.plans import Batches, Schedule
from genfl.engines.fast import replays
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.pool import WorkerPool
from genfl.engines.protocol import ClientTask
from genfl.engines.vmapped import VmapRunner
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN, MLP, Stack
from genfl.rng import Key, Keys
from genfl.simulation import federate

from .helpers import SpyEngine

SHAPE, CLASSES = (4,), 3
ENDS = [0, 5, 20, 24, 27, 40, 70]  # unequal clients: unequal steps, and one with less than a batch


def model():
    """Has what differs between clients in a batch: batch norm, and dropout in two places."""
    body = [torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Dropout(0.2)]
    return Stack(torch.nn.Sequential(*body), torch.nn.Linear(8, CLASSES))


@pytest.fixture
def clients(float64):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, *SHAPE, generator=rng), torch.randint(CLASSES, (70,), generator=rng)
    return ClientData(x, y, [torch.arange(70)[a:b].numpy() for a, b in itertools.pairwise(ENDS)], CLASSES)


def algorithm(name):
    shared = torch.linspace(-1, 1, 48).reshape(12, 4)
    resources = {
        "cohort": 4,
        "shared": shared,
        "unlabelled": shared,
        "client_tasks": {str(w): classification(partial(MLP, SHAPE, CLASSES, w), SHAPE) for w in (4, 6)},
    }
    task = classification(model, SHAPE)
    local = LocalSGD(0.1, momentum=0.9, weight_decay=0.01)
    return task, ALGORITHMS[name].build(task, local, resources, **few_steps(name))


def play(name, clients, engine, rounds):
    task, method = algorithm(name)
    spy = SpyEngine(engine)
    schedule = Schedule(rounds, 4, batch_size=4)
    federate(method, task.init(Key(1)), clients, spy, schedule, Key(5), lambda weights: {})
    return spy.results


def assert_close(a, b, tolerance):
    assert trees.names(a) == trees.names(b)
    for x, y in zip(trees.leaves(a), trees.leaves(b), strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, atol=tolerance, rtol=0)


def aggregated(result):
    """An aggregate as a tree: what the server sees of each client is a list."""
    return {
        name: dict(enumerate(value)) if isinstance(value, list) else value
        for name, value in result.aggregate.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [100, 2])
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_gives_what_the_sequential_engine_gives(clients, name, chunk):
    """In the first round; a second and a third go on from the same states, but for rounding."""
    reference = play(name, clients, sequential(clients), 3)
    results = play(name, clients, InProcess(VmapRunner(clients, chunk=chunk)), 3)
    for number, (mine, other) in enumerate(zip(results, reference, strict=True)):
        tolerance = 1e-9 if number == 0 else 1e-5  # servers that distil with Adam magnify rounding
        assert_close(aggregated(mine), aggregated(other), tolerance)
        assert mine.memories.keys() == other.memories.keys()
        for client, memory in other.memories.items():
            assert_close(mine.memories[client], memory, tolerance)
        assert mine.uplink_bytes == other.uplink_bytes
        assert mine.refused == other.refused == {}


@pytest.mark.parametrize("name", mostly_slow(ALGORITHMS, "fedavg", "scaffold"))
def test_recorded_steps_of_batches_are_what_the_steps_are(float64, monkeypatch, name):
    """Clients of one size, so that batches have one form, and enough steps to compare and to replay."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, *SHAPE, generator=rng), torch.randint(CLASSES, (120,), generator=rng)
    clients = ClientData(x, y, list(torch.arange(120).view(6, 20).numpy()), CLASSES)
    monkeypatch.setattr(replays, "AFTER", 0)
    engine = InProcess(VmapRunner(clients))
    mine, other = play(name, clients, engine, 1)[0], play(name, clients, sequential(clients), 1)[0]
    assert_close(aggregated(mine), aggregated(other), 1e-9)
    stats = engine.stats().fast
    assert stats.replayed > 0
    assert stats.compared > 0
    assert stats.reasons == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_what_is_replayed_has_the_bits_of_what_it_replays(monkeypatch, name):
    """Steps, and what comes after the last one, over rounds that are compared and rounds that are not."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, *SHAPE, generator=rng), torch.randint(CLASSES, (120,), generator=rng)
    clients = ClientData(x, y, list(torch.arange(120).view(6, 20).numpy()), CLASSES)
    results = []
    for after in (0, 10**9):
        monkeypatch.setattr(replays, "AFTER", after)
        engine = InProcess(VmapRunner(clients))
        results.append(play(name, clients, engine, 6))
        fast = engine.runner._fast.replays
        trusted = {signature[0] for signature in fast.signatures() if fast.of(signature).trusted}
        assert trusted == ({"step", "finish"} if after == 0 else set())
        assert (engine.stats().fast.replayed > 0) == (after == 0)
    for mine, other in zip(*results, strict=True):
        assert_close(aggregated(mine), aggregated(other), 0)
        for client, memory in other.memories.items():
            assert_close(mine.memories[client], memory, 0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedgen", "fedet"])
def test_the_number_of_workers_changes_nothing(name, workers):
    """In fp32, where another size of a batch does change the last bits of a convolution."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(240, 1, 8, 8, generator=rng), torch.randint(CLASSES, (240,), generator=rng)
    ends = [0, 15, 30, 60, 75, 90, 110, 125, 140, 155, 170, 200, 240]
    clients = ClientData(x, y, [torch.arange(240)[a:b].numpy() for a, b in itertools.pairwise(ends)], CLASSES)
    task = classification(partial(CNN, (1, 8, 8), CLASSES, 8), (1, 8, 8))
    resources = {"cohort": 12, "rounds": 2, "unlabelled": x[:12], "client_tasks": {"a": task, "b": task}}
    method = ALGORITHMS[name].build(task, LocalSGD(0.1), resources, **few_steps(name))

    def play(engine):
        schedule = Schedule(2, 12, batch_size=8)
        return federate(method, task.init(Key(1)), clients, engine, schedule, Key(5), lambda weights: {})

    alone = play(InProcess(VmapRunner(clients)))
    with contextlib.closing(WorkerPool(VmapRunner(clients), workers=workers)) as parallel:
        shared = play(parallel)
    assert alone.rounds == shared.rounds
    assert all(map(torch.equal, trees.leaves(alone.weights), trees.leaves(shared.weights)))


def test_a_cohort_is_divided_into_parts_of_about_the_same_work(clients):
    work = [ClientTask(k % 6, {}, {}, Batches(4, None, 1, Key(k)), Key(k)) for k in range(6)]
    assert len(VmapRunner(clients).shares(work)) == 1, "six are too few"
    parts = VmapRunner(clients, shares=3).shares(work * 4)
    assert sorted(client_task.client for part in parts for client_task in part) == sorted(
        client_task.client for client_task in work * 4
    )
    assert [len(part) for part in parts] == [8, 8, 8]
    steps = [
        sum(client_task.batches.length(clients.part_sizes(client_task.client)) for client_task in part)
        for part in parts
    ]
    assert max(steps) - min(steps) <= 7, "the longest of a part's clients takes so many"
    assert len(VmapRunner(clients, shares=1).shares(work * 4)) == 1


def test_a_worker_killed_in_the_middle_of_its_share_is_replaced(clients, tmp_path, caplog):
    marker = tmp_path / "killed"

    def step(carry, batch, key):
        if not marker.exists() and torch._C._functorch.is_batchedtensor(batch["x"]):
            marker.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return {"w": carry["w"] + batch["x"].sum()}

    program = ClientProgram(
        lambda *_: {"w": torch.zeros(())}, step, lambda carry: ({"w": carry["w"]}, {}), {"w": "sum"}
    )
    with contextlib.closing(WorkerPool(VmapRunner(clients), workers=2)) as parallel:
        mine = parallel.run(program, client_tasks({}))
    assert marker.exists()
    assert "the round is repeated" in caplog.text
    assert_close(mine.aggregate, sequential(clients).run(program, client_tasks({})).aggregate, 1e-9)


def test_few_recordings_are_kept(clients, monkeypatch):
    monkeypatch.setattr(replays, "RECORDINGS", 2)
    engine = InProcess(VmapRunner(clients))
    play("fedavg", clients, engine, 2)
    assert len(engine.runner._fast.replays.signatures()) == 2


def test_a_worker_refuses_the_work_of_one_client_of_its_share(clients):
    program = ClientProgram(
        lambda message, memory, client_info, key: {"w": torch.ones(2), "samples": client_info["samples"]},
        lambda carry, batch, key: {**carry, "w": carry["w"] / (carry["samples"] - 4)},  # client 2 has 4
        lambda carry: ({"w": carry["w"]}, {"w": carry["w"]}),
        {"w": "each"},
    )
    with contextlib.closing(WorkerPool(VmapRunner(clients), workers=2)) as parallel:
        mine = parallel.run(program, client_tasks({}))
    other = sequential(clients).run(program, client_tasks({}))
    assert mine.refused == other.refused == {2: "it holds NaN or infinite values"}
    assert_close(aggregated(mine), aggregated(other), 1e-12)


def client_tasks(message, steps=2):
    return [
        ClientTask(k, message, {}, Batches(4, steps, 1, Key(k)), Key(9).fold(k)) for k in range(len(ENDS) - 1)
    ]


def test_what_is_drawn_does_not_depend_on_what_it_is_batched_with(clients):
    """Dropout's masks, and tuples of draws from what is given."""

    def start(message, memory, client_info, key):
        return {"drawn": torch.zeros(3), "pair": torch.zeros(2), "share": client_info["label_counts"]}

    def step(carry, batch, key):
        drawn = key.fold("a").draw(lambda rng: torch.randn(3, generator=rng))
        y, z = key.fold("b", 1).draw(
            lambda rng, share: (torch.multinomial(share, 1, generator=rng)[0], torch.rand((), generator=rng)),
            carry["share"],
        )
        return {**carry, "drawn": carry["drawn"] + drawn, "pair": carry["pair"] + torch.stack([y.to(z), z])}

    program = ClientProgram(
        start, step, lambda carry: (dict(carry), {}), dict.fromkeys(("drawn", "pair", "share"), "each")
    )
    work = client_tasks({})
    alone, together = (
        sequential(clients).run(program, work),
        InProcess(VmapRunner(clients)).run(program, work),
    )
    for name in program.reductions:
        for mine, other in zip(together.aggregate[name], alone.aggregate[name], strict=True):
            assert torch.equal(mine, other)
    drawn = torch.stack(together.aggregate["drawn"])
    assert len(drawn.unique(dim=0)) == len(drawn), "every client has its own"


def test_keys_outside_of_a_batch_are_of_no_use_and_inside_each_clients_own():
    keys = [Key(3).fold(k) for k in range(4)]

    def draw(index):
        return Keys(keys, index).fold("x", 2).draw(lambda rng: torch.rand(2, generator=rng))

    drawn = torch.vmap(draw)(torch.arange(4))
    expected = torch.stack([torch.rand(2, generator=key.fold("x", 2).torch()) for key in keys])
    assert torch.equal(drawn, expected)


def test_a_client_whose_work_is_not_finite_is_refused_alone(clients):
    def step(carry, batch, key):
        return {"w": carry["w"] / (carry["samples"] - 4), "samples": carry["samples"]}  # client 2 has 4

    program = ClientProgram(
        lambda message, memory, client_info, key: {"w": torch.ones(2), "samples": client_info["samples"]},
        step,
        lambda carry: ({"w": carry["w"]}, {"w": carry["w"]}),
        {"w": "sum"},
    )
    work = client_tasks({})
    mine, other = InProcess(VmapRunner(clients)).run(program, work), sequential(clients).run(program, work)
    assert mine.refused == other.refused == {2: "it holds NaN or infinite values"}
    assert mine.memories.keys() == other.memories.keys() == {0, 1, 3, 4, 5}
    assert_close(mine.aggregate, other.aggregate, 1e-12)


def test_memories_do_not_keep_the_whole_batch_alive(clients):
    result = play("scaffold", clients, InProcess(VmapRunner(clients)), 1)[0]
    for memory in result.memories.values():
        for leaf in trees.leaves(memory):
            assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size()


@pytest.mark.parametrize("name", ["moon", "dsfl", "scaffold"])
def test_a_client_that_ends_alone_keeps_its_own_memory_only(float64, name):
    """Clients of different sizes, so that they leave a batch one by one."""
    ends = torch.arange(1, 9).mul(4).cumsum(0).tolist()
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(ends[-1], *SHAPE, generator=rng), torch.randint(CLASSES, (ends[-1],), generator=rng)
    rows = [torch.arange(ends[-1])[a:b].numpy() for a, b in itertools.pairwise([0, *ends])]
    clients = ClientData(x, y, rows, CLASSES)
    result = play(name, clients, InProcess(VmapRunner(clients, shares=1)), 1)[0]
    for memory in result.memories.values():
        for leaf in trees.leaves(memory):
            assert leaf.untyped_storage().nbytes() == leaf.nbytes


def test_what_all_clients_share_is_there_once(clients):
    """The message is not stacked, however many clients read it."""
    seen = []

    def step(carry, batch, key):
        seen.append([torch._C._functorch.is_batchedtensor(carry[name]) for name in ("message", "own", "w")])
        return {**carry, "w": carry["w"] + carry["message"] * carry["own"] * batch["x"].mean()}

    program = ClientProgram(
        lambda message, memory, client_info, key: {
            "message": message["m"],
            "own": client_info["samples"],
            "w": torch.ones(()),
        },
        step,
        lambda carry: ({"w": carry["w"]}, {}),
        {"w": "each"},
    )
    work = client_tasks({"m": torch.tensor(2.0)}, steps=1)
    mine, other = InProcess(VmapRunner(clients)).run(program, work), sequential(clients).run(program, work)
    assert [False, True, True] in seen
    assert_close(dict(enumerate(mine.aggregate["w"])), dict(enumerate(other.aggregate["w"])), 1e-12)


def image_steps(loss):
    """Clients with images, and a program of steps down a loss of (weights, images)."""
    x = torch.randn(60, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clients = ClientData(x, torch.zeros(60).long(), list(torch.arange(60).view(6, 10).numpy()), 1)

    def step(carry, batch, key):
        slope = torch.func.grad(lambda w: loss(w[:, None, None], batch["x"]))(carry["w"])
        return {"w": carry["w"] - 0.1 * slope}

    return clients, ClientProgram(start, step, lambda carry: ({"w": carry["w"]}, {}), {"w": "each"})


def start(message, memory, client_info, key):
    return message


def image_work(number, w):
    message = {"w": torch.full((4,), w, dtype=torch.float64)}
    key = Key(number)
    return [ClientTask(client, message, {}, Batches(5, 3, 1, key.fold(client)), key) for client in range(6)]


@pytest.mark.parametrize(
    "layer", [lambda x: F.group_norm(x, 2), lambda x: F.max_pool2d(x, 2)], ids=["norm", "pool"]
)
def test_a_program_that_wants_gradients_of_gradients_of_layers_is_not_folded(layer, caplog):
    def smooth(w, x):
        return torch.func.grad(lambda at: layer(at * w).sin().sum())(x).square().sum()

    clients, program = image_steps(smooth)
    caplog.set_level("INFO")
    mine, other = (
        engine.run(program, image_work(0, 1.0))
        for engine in (InProcess(VmapRunner(clients)), sequential(clients))
    )
    for ours, theirs in zip(mine.aggregate["w"], other.aggregate["w"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert sum("batched by torch.vmap alone" in record.message for record in caplog.records) == 1


def test_what_a_model_changes_in_place_after_pooling_is_replayed_right(monkeypatch):
    """Also when windows without a positive number come after the replays that are compared."""
    monkeypatch.setattr(replays, "AFTER", 10)

    def loss(w, x):
        pooled = F.max_pool2d((x.abs() * w).relu(), 2)
        pooled += 1.0
        return pooled.square().mean()

    clients, program = image_steps(loss)
    mine, other = InProcess(PerClientRunner(clients)), sequential(clients)
    for number, w in enumerate([1.0, 1.0, 1.0, 1.0, -1.0, -1.0]):
        results = [run.run(program, image_work(number, w)) for run in (mine, other)]
        for ours, theirs in zip(*(result.aggregate["w"] for result in results), strict=True):
            assert torch.equal(ours, theirs)
        if number == 3:
            assert mine.stats().fast.replayed > 0


@pytest.mark.slow
def test_what_is_one_tensor_while_it_is_recorded_need_not_be_later(float64, monkeypatch):
    """In its first round a client's memory of MOON is the message's weights, and later it is not."""
    monkeypatch.setattr(replays, "AFTER", 5)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2000, *SHAPE, generator=rng), torch.randint(CLASSES, (2000,), generator=rng)
    clients = ClientData(x, y, list(torch.arange(2000).view(200, 10).numpy()), CLASSES)
    task = classification(partial(MLP, SHAPE, CLASSES, 6), SHAPE)
    moon = ALGORITHMS["moon"].build(task, LocalSGD(0.5), {})
    schedule = Schedule(4, 10, 2, evaluate_every=10**9)
    run = InProcess(VmapRunner(clients))
    ends = [
        federate(moon, task.init(Key(0)), clients, engine, schedule, Key(0), lambda weights: {}).weights
        for engine in (run, sequential(clients))
    ]
    assert_close(*ends, 1e-9)
    fast = run.runner._fast.replays
    assert any(signature[0] == "step" and fast.of(signature).trusted for signature in fast.signatures())


def test_when_memory_runs_out_the_batch_is_halved_and_the_work_done_again(clients, caplog):
    batches = []

    def step(carry, batch, key):
        if torch._C._functorch.is_batchedtensor(batch["x"]):
            size = torch._C._functorch.get_unwrapped(batch["x"]).shape[0]
            batches.append(size)
            if size > 2:
                raise torch.OutOfMemoryError("out of memory")
        return {"w": carry["w"] + batch["x"].sum()}

    program = ClientProgram(
        lambda message, memory, client_info, key: {"w": torch.zeros(())},
        step,
        lambda carry: ({"w": carry["w"]}, {}),
        {"w": "sum"},
    )
    engine = InProcess(VmapRunner(clients))
    work = client_tasks({}, steps=1)
    mine, other = engine.run(program, work), sequential(clients).run(program, work)
    assert_close(mine.aggregate, other.aggregate, 1e-9)
    tried = [record.args for record in caplog.records if "out of memory with" in record.msg]
    assert tried[-1][1] == engine.runner.chunk
    assert all(trying == failed // 2 for failed, trying in tried)
    assert engine.runner.chunk <= 2
    batches.clear()
    engine.run(program, work)
    assert max(batches) <= 2, "it is not tried again in the next round"


def test_other_errors_are_not_taken_for_a_lack_of_memory(clients):
    def step(carry, batch, key):
        raise RuntimeError("shapes do not match")

    program = ClientProgram(lambda *_: {"w": torch.zeros(())}, step, lambda carry: (carry, {}), {"w": "sum"})
    with pytest.raises(RuntimeError, match="shapes do not match"):
        InProcess(VmapRunner(clients)).run(program, client_tasks({}))


def test_a_model_that_draws_from_the_global_generator_is_refused(clients):
    class Noisy(Stack):
        def features(self, x):
            return super().features(x) + (torch.rand(()) if self.training else 0)

    task = classification(lambda: Noisy(torch.nn.Linear(4, 5), torch.nn.Linear(5, CLASSES)), SHAPE)
    method = ALGORITHMS["fedavg"].build(task, LocalSGD(0.1), {})
    with pytest.raises(ValueError, match="draws from torch's global generator"):
        federate(
            method,
            task.init(Key(0)),
            clients,
            InProcess(VmapRunner(clients)),
            Schedule(1, 4, 4),
            Key(0),
            lambda weights: {},
        )


def test_a_program_that_only_sums_what_clients_know_needs_no_batch(clients):
    program = ClientProgram(
        lambda message, memory, client_info, key: {"samples": client_info["samples"]},
        lambda carry, batch, key: carry,
        lambda carry: (carry, {}),
        {"samples": "sum"},
    )
    for chosen in (client_tasks({}), client_tasks({})[:1]):
        work = [client_task._replace(batches=None) for client_task in chosen]
        assert InProcess(VmapRunner(clients)).run(program, work).aggregate["samples"] == sum(
            clients.samples(client_task.client) for client_task in work
        )


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_bfloat16_differs_from_one_by_one_as_much_as_it_rounds(norm):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 1, 8, 8, generator=rng), torch.randint(CLASSES, (40,), generator=rng)
    data = ClientData(x, y, np.arange(40).reshape(4, 10), CLASSES)
    ended = {}
    for precision in ("fp32", "bf16"):
        task = classification(partial(CNN, (1, 8, 8), CLASSES, norm=norm), (1, 8, 8), precision)
        for kind, runner in (("one by one", sequential(data)), ("batched", InProcess(VmapRunner(data)))):
            method = ALGORITHMS["fedavg"].build(task, LocalSGD(0.05), {})
            schedule = Schedule(2, 4, batch_size=5)
            trace = federate(method, task.init(Key(1)), data, runner, schedule, Key(5), lambda weights: {})
            ended[precision, kind] = torch.cat([leaf.flatten() for leaf in trees.leaves(trace.weights)])
    rounding = (ended["bf16", "one by one"] - ended["fp32", "one by one"]).abs().max()
    assert 1e-4 < rounding < 0.05
    assert (ended["bf16", "batched"] - ended["bf16", "one by one"]).abs().max() < 2 * rounding
