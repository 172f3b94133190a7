"""Learning rates that decay over rounds: every algorithm and engine, replays, resumes, and plain torch."""

import contextlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.methods import few_steps
from support.parameters import mostly_slow

from genfl import trees
from genfl.algorithms import ALGORITHMS, fedavg
from genfl.algorithms.base import Algorithm, head_count, send_weights, training_client, training_memory
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.fast import replays
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.pool import WorkerPool
from genfl.engines.vmapped import VmapRunner
from genfl.errors import InputError
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import MLP, Stack
from genfl.rng import Key
from genfl.simulation import federate

SHAPE, CLASSES, CLIENTS = (4,), 3, 6
ROWS = list(torch.arange(120).view(CLIENTS, 20).numpy())
LR, DECAY = 0.3, 0.5
OF_ALL_KINDS = [
    "fedavg",
    "fedadam",
    "moon",
    "scaffold",
    "fednova",
    "feddyn",
    "feddf",
    "dsfl",
    "fedet",
    "fedgen",
    "fedftg",
    "dynafed",
]


def model():
    body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.2))
    return Stack(body, torch.nn.Linear(8, CLASSES))


@pytest.fixture
def clients():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, *SHAPE, generator=rng), torch.randint(CLASSES, (120,), generator=rng)
    return ClientData(x, y, ROWS, CLASSES)


def built(name, local):
    shared = torch.linspace(-1, 1, 48).reshape(12, 4)
    tasks = {str(width): classification(partial(MLP, SHAPE, CLASSES, width), SHAPE) for width in (4, 6)}
    resources = {"cohort": 4, "shared": shared, "unlabelled": shared, "client_tasks": tasks}
    task = classification(model, SHAPE)
    options = {"trajectory": 2, "span": 1, "synthesis_steps": 3} if name == "dynafed" else few_steps(name)
    return task, ALGORITHMS[name].build(task, local, resources, **options)


def play(name, clients, engine, local=None, rounds=3, **options):
    task, algorithm = built(name, local or LocalSGD(LR, momentum=0.9, lr_decay=DECAY))
    schedule = Schedule(rounds, 4, batch_size=4, checkpoint_every=1)
    return federate(
        algorithm, task.init(Key(1)), clients, engine, schedule, Key(5), lambda weights: {}, **options
    )


def assert_same(a, b):
    assert a.rounds == b.rounds
    assert all(
        torch.equal(x, y) for x, y in zip(trees.leaves(a.weights), trees.leaves(b.weights), strict=True)
    )


@pytest.mark.parametrize("name", mostly_slow(OF_ALL_KINDS, "fedavg", "scaffold"))
def test_decay_has_the_same_bits_when_steps_are_replayed(clients, monkeypatch, name):
    """A recording that kept the first round's rate would differ in the second."""
    reference = play(name, clients, sequential(clients))
    monkeypatch.setattr(replays, "AFTER", 0)
    monkeypatch.setattr(replays, "CHECK_EVERY", 10**6)
    engine = InProcess(PerClientRunner(clients))
    assert_same(play(name, clients, engine), reference)
    stats = engine.stats().fast
    assert stats.replayed > 0 and stats.disagreements == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedet"])
def test_decay_has_the_same_bits_in_a_pool(clients, name):
    reference = play(name, clients, sequential(clients))
    with contextlib.closing(WorkerPool(PerClientRunner(clients, accelerated=False), workers=2)) as engine:
        assert_same(play(name, clients, engine), reference)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ALL_KINDS)
def test_decay_in_batches_differs_in_rounding_only(clients, float64, monkeypatch, name):
    clients = ClientData(clients.x.double(), clients.y, ROWS, CLASSES)
    reference = play(name, clients, sequential(clients))
    monkeypatch.setattr(replays, "AFTER", 0)
    monkeypatch.setattr(replays, "CHECK_EVERY", 10**6)
    engine = InProcess(VmapRunner(clients))
    batched = play(name, clients, engine)
    for x, y in zip(trees.leaves(batched.weights), trees.leaves(reference.weights), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)  # servers that distil magnify rounding
    assert engine.stats().fast.replayed > 0 and engine.stats().fast.disagreements == 0


@pytest.mark.parametrize("name", mostly_slow(OF_ALL_KINDS, "fedavg", "fedgen"))
def test_decay_changes_the_second_round_and_not_the_first(clients, name):
    constant = LocalSGD(LR, momentum=0.9)
    for rounds, equal in ((1, True), (2, False)):
        decayed = play(name, clients, sequential(clients), rounds=rounds)
        plain = play(name, clients, sequential(clients), constant, rounds=rounds)
        pairs = zip(trees.leaves(decayed.weights), trees.leaves(plain.weights), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs) == equal


@pytest.mark.parametrize("name", mostly_slow(["fedavg", "scaffold", "fedet", "dynafed"], "scaffold"))
def test_decay_goes_on_where_an_interrupted_run_stopped(clients, tmp_path, name):
    whole = play(name, clients, sequential(clients), rounds=4)
    file = tmp_path / "checkpoint.safetensors"
    play(name, clients, sequential(clients), rounds=2, checkpoint=file)
    assert_same(play(name, clients, sequential(clients), rounds=4, checkpoint=file), whole)


def test_decay_equals_fedavg_in_plain_torch(clients, float64):
    """Full batches of every client, so that nothing is random: lr · d^(t − 1) in round t."""
    x = clients.x.double()
    data = ClientData(x, clients.y, ROWS, CLASSES)
    task = classification(lambda: Stack(torch.nn.Flatten(), torch.nn.Linear(4, CLASSES)), SHAPE)
    algorithm = fedavg(task, LocalSGD(LR, momentum=0.9, weight_decay=0.01, lr_decay=DECAY))
    start = task.init(Key(1))
    schedule = Schedule(4, CLIENTS, batch_size=20, local_steps=3)
    trace = federate(algorithm, start, data, sequential(data), schedule, Key(5), lambda weights: {})

    current = torch.nn.Linear(4, CLASSES)
    current.load_state_dict({name: start["params"][f"classifier.{name}"] for name in ("weight", "bias")})
    for number in range(1, 5):
        models = []
        for rows in ROWS:
            local = torch.nn.Linear(4, CLASSES)
            local.load_state_dict(current.state_dict())
            sgd = torch.optim.SGD(local.parameters(), LR * DECAY ** (number - 1), 0.9, weight_decay=0.01)
            for _ in range(3):
                sgd.zero_grad()
                F.cross_entropy(local(x[rows]), clients.y[rows]).backward()
                sgd.step()
            models.append(local.state_dict())
        mean = {name: torch.stack([m[name] for m in models]).mean(0) for name in models[0]}
        current.load_state_dict(mean)
    for name, value in current.state_dict().items():
        torch.testing.assert_close(trace.weights["params"][f"classifier.{name}"], value, rtol=1e-7, atol=1e-9)


def test_scaffolds_control_variates_divide_by_the_rounds_rate(clients, float64):
    """With one full step a client, c is the mean gradient at the global model, for any rate."""
    x = clients.x.double()
    data = ClientData(x, clients.y, ROWS, CLASSES)
    task = classification(lambda: Stack(torch.nn.Flatten(), torch.nn.Linear(4, CLASSES)), SHAPE)
    algorithm = ALGORITHMS["scaffold"].build(task, LocalSGD(LR, lr_decay=DECAY))
    states = []

    def server(state, aggregate, key):
        states.append((state, algorithm.server(state, aggregate, key)))
        return states[-1][1]

    schedule = Schedule(3, CLIENTS, batch_size=20, local_steps=1)
    spied = algorithm._replace(server=server)
    federate(spied, task.init(Key(1)), data, sequential(data), schedule, Key(5), lambda weights: {})
    for before, after in states:
        layer = torch.nn.Linear(4, CLASSES)
        params = before["weights"]["params"]
        layer.load_state_dict({name: params[f"classifier.{name}"] for name in ("weight", "bias")})
        F.cross_entropy(layer(x), clients.y).backward()  # clients are of one size
        for name, p in layer.named_parameters():
            torch.testing.assert_close(after["control"][f"classifier.{name}"], p.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_without_decay_nothing_more_is_sent():
    for name in OF_ALL_KINDS:
        sizes = []
        for local in (LocalSGD(LR), LocalSGD(LR, lr_decay=DECAY)):
            task, algorithm = built(name, local)
            info = {"samples": torch.ones(()), "label_counts": torch.ones(CLASSES)}
            census = algorithm.census.finish(info)[0]
            message = algorithm.address(algorithm.send(algorithm.init(task.init(Key(0)), census, Key(0))), 0)
            sizes.append((trees.num_bytes(message), "lr" in message))
        (plain, absent), (decayed, present) = sizes
        assert (absent, present) == (False, True)
        assert decayed == plain + 4


def test_rounds_without_an_upload_do_not_decay(clients):
    task, algorithm = built("fedavg", LocalSGD(LR, lr_decay=DECAY))
    state = algorithm.init(task.init(Key(0)), {"clients": torch.ones(()), "samples": torch.ones(())}, Key(0))
    assert algorithm.send(state)["lr"] == torch.tensor(LR)
    aggregate = {"weight": torch.ones(()), "delta": trees.zeros_like(state["weights"])}
    for number in (1, 2, 3):
        state = algorithm.server(state, aggregate, Key(number))
        assert algorithm.send(state)["lr"] == torch.tensor(LR * DECAY**number)


def test_a_method_that_sends_no_rate_is_refused_by_name(clients):
    task, local = classification(model, SHAPE), LocalSGD(LR, lr_decay=DECAY)
    client = training_client(task, local, lambda carry: {"n": torch.ones(())}, {"n": "sum"})
    forgetful = Algorithm(
        head_count,
        lambda weights, census, key: {"weights": weights},
        send_weights,
        client,
        lambda state, aggregate, key: state,
        training_memory(local),
    )
    with pytest.raises(InputError, match=r"^LocalSGD\.lr_decay: .*decaying\(algorithm, local\)"):
        start, schedule = task.init(Key(0)), Schedule(1, 2, 4)
        federate(forgetful, start, clients, sequential(clients), schedule, Key(0), lambda weights: {})


@pytest.mark.parametrize("decay", [0.0, 1.1, float("nan")])
def test_decays_out_of_range_are_refused(decay):
    with pytest.raises(InputError, match=r"^LocalSGD\.lr_decay: "):
        LocalSGD(LR, lr_decay=decay)
