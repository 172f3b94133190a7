"""Parameters with ``requires_grad=False``: never changed, never sent, whatever trains the rest."""

import itertools
from functools import partial

import pytest
import torch
from support.parameters import mostly_slow
from torch import nn

import genfl
from genfl import trees
from genfl.algorithms import ALGORITHMS
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
from genfl.models.wrapped import as_classifier
from genfl.rng import Key
from genfl.simulation import federate

FROZEN = ["body.0.weight", "body.0.bias", "body.1.weight"]
"""The first layer, and the scale of batch norm; its bias is trained."""

BYTES = 4 * (8 + 8 * 3 + 3 + 8 + 8)
"""Of the bias of batch norm, of the head, and of the running statistics."""

ENGINES = {
    "sequential": sequential,
    "parallel": lambda clients: WorkerPool(PerClientRunner(clients), workers=2),
    "vectorized": lambda clients: InProcess(VmapRunner(clients)),
}


def partly_frozen(width=8):
    module = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))
    module[0].requires_grad_(False)
    module[1].weight.requires_grad_(False)
    return module


@pytest.fixture
def clients():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=rng), torch.randint(3, (24,), generator=rng)
    ends = itertools.pairwise([0, 5, 16, 24])
    return ClientData(x, y, [torch.arange(24)[a:b].numpy() for a, b in ends], classes=3)


def algorithm(name, task):
    shared = torch.linspace(-1, 1, 24).reshape(6, 4)
    tasks = {str(width): classification(partial(partly_frozen, width), (4,)) for width in (4, 6)}
    resources = {"cohort": 3, "shared": shared, "unlabelled": shared, "client_tasks": tasks}
    options = {"dynafed": {"trajectory": 1, "span": 1, "synthesis_steps": 3}}
    local = LocalSGD(0.1, momentum=0.9, weight_decay=0.1)
    return ALGORITHMS[name].build(task, local, resources, **options.get(name, {}))


def play(clients, name="fedavg", engine="sequential", rounds=2):
    task = classification(partly_frozen, (4,))
    schedule = Schedule(rounds, 3, batch_size=4)
    method, start = algorithm(name, task), task.init(Key(1))
    trace = federate(method, start, clients, ENGINES[engine](clients), schedule, Key(2), lambda weights: {})
    return task, start, trace


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("name", mostly_slow(ALGORITHMS, "fedavg", "scaffold", "moon"))
def test_no_algorithm_changes_frozen_parameters(clients, name, engine):
    task, start, trace = play(clients, name, engine)
    before, after = task.module(start).state_dict(), task.module(trace.weights).state_dict()
    assert list(task.frozen) == FROZEN
    for key, value in after.items():
        assert torch.equal(value, before[key]) == (key in FROZEN or key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("engine", list(ENGINES))
def test_frozen_parameters_are_not_sent(clients, engine):
    _, _, trace = play(clients, engine=engine)
    for row in trace.rounds:
        assert row["uplink_bytes"] == 3 * (BYTES + 4)  # and the client's weight
        assert row["downlink_bytes"] == 3 * BYTES


@pytest.mark.slow
def test_engines_agree_on_partly_frozen_models(clients):
    _, _, reference = play(clients)
    assert all(
        map(torch.equal, *(trees.leaves(t.weights) for t in (reference, play(clients, engine="parallel")[2])))
    )
    for ours, theirs in zip(
        trees.leaves(play(clients, engine="vectorized")[2].weights),
        trees.leaves(reference.weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_recorded_steps_use_frozen_parameters(clients, monkeypatch):
    monkeypatch.setattr(replays, "AFTER", 2)
    task, start, reference = play(clients, rounds=3)
    for runner in (PerClientRunner(clients), VmapRunner(clients)):
        engine = InProcess(runner)
        method, schedule = algorithm("fedavg", task), Schedule(3, 3, batch_size=4)
        trace = federate(method, start, clients, engine, schedule, Key(2), lambda weights: {})
        assert engine.stats().fast.recordings and not engine.stats().fast.disagreements
        for ours, theirs in zip(trees.leaves(trace.weights), trees.leaves(reference.weights), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_training_equals_pytorchs_with_frozen_layers(float64):
    """One client, whole batches: SGD of PyTorch on the module itself."""
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    clients = ClientData(x, y, [torch.arange(12).numpy()], classes=3)
    task = classification(partly_frozen, (4,))
    start = task.init(Key(0))
    model = task.module(start).train()
    method = ALGORITHMS["fedavg"].build(task, LocalSGD(0.1, momentum=0.9, weight_decay=0.1))
    trace = federate(method, start, clients, sequential(clients), Schedule(1, 1, 12, 3), Key(0), lambda w: {})
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        sgd.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        sgd.step()
    ours = task.module(trace.weights).state_dict()
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(ours[key], value)


class Embedded(genfl.Classifier):
    """A frozen table, and a buffer of whole numbers that points into it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 4).requires_grad_(False)
        self.register_buffer("positions", torch.tensor([5, 0, 2, 1]))
        self.classifier = nn.Linear(4, 3)

    def features(self, x):
        return x + self.table(self.positions).mean(0)


def test_what_is_no_part_of_the_weights_follows_the_inputs_to_a_device():
    x, y = torch.randn(5, 4), torch.arange(5) % 3
    task = classification(Embedded, (4,))
    weights = task.init(Key(0))
    there = trees.to(weights, torch.device("meta"))  # which refuses to meet tensors of the CPU
    loss, _ = task.loss(there["params"], {}, {"x": x.to("meta"), "y": y.to("meta")}, Key(0))
    assert loss.is_meta and task.forward(there, x.to("meta"))[1].is_meta
    assert torch.equal(task.module(weights)(x), task.forward(weights, x)[1])


def test_pretraining_leaves_frozen_parameters():
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    task = genfl.task(partly_frozen, (4,), 3)
    warm = genfl.pretrain(task, (x, y), epochs=2)
    before, after = task.state_dict(task.init(Key(0))), task.state_dict(warm.weights)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in FROZEN)
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_frozen_parameters_are_the_same_for_every_seed():
    task = genfl.task(partly_frozen, (4,), 3)
    first, second = (task.state_dict(task.init(Key(seed))) for seed in (0, 1))
    assert [name for name in first if torch.equal(first[name], second[name])] == [
        "body.1.bias",  # zero at first
        "body.1.running_mean",
        "body.1.running_var",
        *FROZEN,
    ]


def test_a_start_with_other_frozen_values_is_refused():
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    data = genfl.FederatedDataset.from_arrays(x, y, genfl.partition.iid(2))
    module = partly_frozen()
    task = genfl.task(module, data)
    method = genfl.fedavg(task, genfl.LocalSGD(0.1))
    result = genfl.simulate(method, data, rounds=1, start=module)
    assert genfl.simulate(method, data, rounds=1, start=result.model()).rounds
    with pytest.raises(InputError, match=r"start: body.0.weight is frozen in the task, and has other values"):
        genfl.simulate(method, data, rounds=1, start=partly_frozen())


def test_a_model_that_is_frozen_whole_is_refused():
    with pytest.raises(InputError, match="no parameter of the model can be trained"):
        genfl.task(lambda: partly_frozen().requires_grad_(False), (4,), 3)


@pytest.mark.parametrize("wrap", [lambda module: module, as_classifier], ids=["module", "classifier"])
def test_a_builder_may_return_the_same_module_again(wrap):
    """Nothing is changed in it, and none of its parameters is taken for frozen."""
    module = wrap(partly_frozen())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    task = genfl.task(lambda: module, (4,), 3)
    again = genfl.task(lambda: module, (4,), 3)
    assert list(task.frozen) == list(again.frozen) == FROZEN
    assert list(task.init(Key(0))["params"]) == ["body.1.bias", "classifier.weight", "classifier.bias"]
    assert [p.requires_grad for p in module.parameters()] == [False, False, False, True, True, True]
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
