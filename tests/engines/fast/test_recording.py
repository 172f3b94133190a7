"""Steps that are recorded and replayed: the bits of those that are not, or not replayed at all."""

import itertools
from functools import partial

import pytest
import torch
from support.methods import few_steps

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.base import ClientProgram
from genfl.data.clients import ClientData
from genfl.data.plans import Batches, Schedule
from genfl.engines.auto import engine
from genfl.engines.fast import accelerate, replays
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.pool import WorkerPool
from genfl.engines.protocol import ClientTask
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN, MLP, Stack
from genfl.rng import Key
from genfl.simulation import federate

SHAPE, CLASSES = (1, 4, 4), 3
ENDS = [0, 5, 20, 24, 27, 40, 70]  # one has less than a batch


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Recordings after a few steps, so that short federations have both kinds of steps and the trials."""
    monkeypatch.setattr(replays, "AFTER", 5)


@pytest.fixture
def clients():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, *SHAPE, generator=rng), torch.randint(CLASSES, (70,), generator=rng)
    return ClientData(x, y, [torch.arange(70)[a:b].numpy() for a, b in itertools.pairwise(ENDS)], CLASSES)


def model():
    """Has running statistics, and dropout in two places."""
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5), torch.nn.ReLU()]
    return Stack(
        torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Dropout(0.2)), torch.nn.Linear(16, 3)
    )


def method(name, precision="fp32", build=model):
    shared = torch.linspace(-1, 1, 192).reshape(12, *SHAPE)
    resources = {
        "cohort": 4,
        "shared": shared,
        "unlabelled": shared,
        "client_tasks": {str(w): classification(partial(MLP, SHAPE, CLASSES, w), SHAPE) for w in (4, 6)},
    }
    task = classification(build, SHAPE, precision)
    local = LocalSGD(0.1, momentum=0.9, weight_decay=0.01)
    return task, ALGORITHMS[name].build(task, local, resources, **few_steps(name))


def play(task, algorithm, clients, run, rounds=4):
    return federate(
        algorithm, task.init(Key(1)), clients, run, Schedule(rounds, 4, 4), Key(5), lambda weights: {}
    )


def assert_same(a, b):
    assert trees.names(a) == trees.names(b)
    for x, y in zip(trees.leaves(a), trees.leaves(b), strict=True):
        assert torch.equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "fp32") for name in ALGORITHMS), ("fedgen", "bf16")]
)
def test_every_algorithm_is_replayed_and_gives_the_same_bits(clients, name, precision):
    task, algorithm = method(name, precision)
    run = InProcess(PerClientRunner(clients))
    mine, other = play(task, algorithm, clients, run), play(task, algorithm, clients, sequential(clients))
    assert_same(mine.weights, other.weights)
    assert mine.rounds == other.rounds
    assert run.stats().fast.replayed > 0
    assert run.stats().fast.reasons == ()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 2])
def test_where_training_starts_and_what_the_server_sent_are_told_apart(clients, monkeypatch, after):
    """They are one tensor in a client's first step, and two in its second; FedProx reads both in each."""
    monkeypatch.setattr(replays, "AFTER", after)
    task, algorithm = method("fedprox")
    run = InProcess(PerClientRunner(clients))
    assert_same(
        play(task, algorithm, clients, run).weights,
        play(task, algorithm, clients, sequential(clients)).weights,
    )
    assert run.stats().fast.reasons == ()


@pytest.mark.slow
def test_workers_replay_as_well(clients):
    task, algorithm = method("scaffold")
    expected = play(task, algorithm, clients, sequential(clients))
    with engine("parallel", clients, 4) as run:
        assert isinstance(run, WorkerPool)
        assert_same(play(task, algorithm, clients, run).weights, expected.weights)
        assert run.stats().fast.replayed > 0


def test_the_reference_is_not_replayed(clients):
    with engine("sequential", clients, 4) as run:
        play(*method("fedavg"), clients, run)
        (reason,) = run.stats().fast.reasons
        assert "every step as it is" in reason
        assert run.stats().fast.recordings == 0


def program(step):
    """A program that adds up what its step makes of a batch."""

    def start(message, memory, client_info, key):
        return {"w": torch.zeros(3), "m": message["m"]}

    return ClientProgram(start, step, lambda carry: ({"w": carry["w"]}, {}), {"w": "each"})


def by_value(carry, batch, key):
    return {**carry, "w": carry["w"] + (1 if batch["x"].sum() > 0 else 2)}


def as_number(carry, batch, key):
    return {**carry, "w": carry["w"] + batch["x"].sum().item()}


def from_what_it_computes(carry, batch, key):
    drawn = key.draw(lambda rng, mean: mean + torch.rand(3, generator=rng), batch["x"].mean())
    return {**carry, "w": carry["w"] + drawn}


def from_what_it_hides(carry, batch, key):
    mean = batch["x"].mean()
    return {**carry, "w": carry["w"] + key.draw(lambda rng: mean + torch.rand(3, generator=rng))}


def another_structure(carry, batch, key):
    return {"m": carry["m"], "w": carry["w"] + batch["x"].mean()}


HOPELESS = [by_value, as_number, from_what_it_computes, from_what_it_hides, another_structure]


def run_both(step, clients):
    work = [
        ClientTask(k, {"m": torch.ones(2)}, {}, Batches(4, 3, 1, Key(k)), Key(9).fold(k)) for k in range(6)
    ]
    run = InProcess(PerClientRunner(clients))
    chosen = program(step)
    for _ in range(2):
        mine, expected = run.run(chosen, work), sequential(clients).run(chosen, work)
        for x, y in zip(mine.aggregate["w"], expected.aggregate["w"], strict=True):
            assert torch.equal(x, y)
    return run


@pytest.mark.parametrize("step", HOPELESS, ids=lambda step: step.__name__)
def test_what_cannot_be_replayed_runs_as_it_is_and_says_so(clients, step, caplog):
    with caplog.at_level("INFO"):
        run = run_both(step, clients)
    stats = run.stats().fast
    assert stats.disagreements == 0
    changes_once = step is another_structure  # from its second step on, a client's carry keeps its structure
    assert (stats.replayed > 0) == changes_once
    assert all("runs as it is, not recorded" in reason for reason in stats.reasons)
    assert stats.reasons
    assert [record.message for record in caplog.records] == list(stats.reasons)


def test_what_is_drawn_from_what_the_step_is_given_is_drawn_anew(clients):
    def step(carry, batch, key):
        a, b = key.fold("a", 1).draw(
            lambda rng, x: (x[0].flatten()[:3] + torch.rand(3, generator=rng), torch.rand((), generator=rng)),
            batch["x"],
        )
        return {
            **carry,
            "w": carry["w"] + a * b + key.fold("b").draw(lambda rng: torch.rand(3, generator=rng)),
        }

    stats = run_both(step, clients).stats().fast
    assert stats.replayed > 0
    assert stats.reasons == ()


def test_a_model_that_draws_from_the_global_generator_runs_as_it_is(clients):
    class Noisy(Stack):
        def features(self, x):
            return super().features(x) + (torch.rand(()) if self.training else 0)

    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5))
    task, algorithm = method("fedavg", build=lambda: Noisy(body, torch.nn.Linear(5, CLASSES)))
    run = InProcess(PerClientRunner(clients))
    mine, other = play(task, algorithm, clients, run), play(task, algorithm, clients, sequential(clients))
    assert_same(mine.weights, other.weights)
    assert run.stats().fast.reasons


def test_a_client_that_diverges_is_refused_as_ever(clients):
    task = classification(partial(CNN, SHAPE, CLASSES, 4), SHAPE)
    algorithm = ALGORITHMS["fedavg"].build(task, LocalSGD(1e30), {})
    run = InProcess(PerClientRunner(clients))
    mine, other = play(task, algorithm, clients, run), play(task, algorithm, clients, sequential(clients))
    assert [row["refused"] for row in mine.rounds] == [row["refused"] for row in other.rounds] != [0] * 4
    assert run.stats().fast.replayed > 0
    assert run.stats().fast.reasons == (), "NaN is NaN"


def test_an_error_in_a_step_is_the_steps_own(clients):
    step = accelerate(program(lambda carry, batch, key: 1 / 0)).step
    for _ in range(8):
        with pytest.raises(ZeroDivisionError):
            step({"w": torch.zeros(3)}, {"x": torch.ones(1)}, Key(0))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pooling_in_another_order_of_memory_gives_the_same_bits(precision):
    """Also where the greatest number stands in several places of a window: gradients go to the first."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(80, 1, 8, 8, generator=rng).clamp(min=0.5)  # much of an image is one number
    clients = ClientData(x, torch.arange(80) % 3, list(torch.arange(80).view(4, 20).numpy()), CLASSES)
    task = classification(partial(CNN, (1, 8, 8), CLASSES, 16), (1, 8, 8), precision)
    algorithm = ALGORITHMS["fedavg"].build(task, LocalSGD(0.1), {})
    run = InProcess(PerClientRunner(clients))
    mine, other = play(task, algorithm, clients, run), play(task, algorithm, clients, sequential(clients))
    assert_same(mine.weights, other.weights)
    fast = run.runner._faster.step.replays
    (signature,) = fast.signatures()
    operations = [node.target for node in fast.of(signature).recording.run.__self__.graph.nodes]
    pools = [
        place
        for place, name in enumerate(operations)
        if name == torch.ops.aten.max_pool2d_with_indices.default
    ]
    assert len(pools) == 2
    assert all(operations[place - 1] is torch.clone for place in pools)
