"""Clients that compute on a device: nothing is left on another, and the numbers are those of the CPU.

`cpu:0` is a device to which everything is really moved, with the CPU's numbers. Fake tensors know no numbers,
but refuse to meet those of another device, as a GPU's do.
"""

import gc
import itertools
import weakref
from functools import partial

import pytest
import torch
from support.methods import few_steps
from support.parameters import mostly_slow
from torch._subclasses.fake_tensor import FakeTensorMode

from genfl import config, pipeline, trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.base import HeldSamples, run_once
from genfl.algorithms.filtering import SampleFilter, filtered
from genfl.analysis.diversity import DIVERSITY, gradient_diversity
from genfl.analysis.heterogeneity import DIVERGENCE, GENERALITY, divergence, generality
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.device import exact, on_device
from genfl.engines.evaluation import evaluate_clients, evaluation
from genfl.engines.fast import replays
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.vmapped import VmapRunner
from genfl.errors import InputError
from genfl.learning.augment import Augment
from genfl.learning.local import LocalSGD
from genfl.learning.pretrain import Recipe, train_with_holdout
from genfl.learning.task import classification
from genfl.models import MLP, Stack
from genfl.rng import Key, Keys
from genfl.simulation import federate

SHAPE, CLASSES = (1, 4, 4), 3
X = torch.linspace(-1, 1, 70 * 16).reshape(70, *SHAPE)
Y = torch.arange(70) % CLASSES
ROUNDS = 21  # what DynaFed needs
ELSEWHERE, FAKE = torch.device("cpu:0"), torch.device("lazy:0")


def copies_are_faked():
    """Whether this torch copies a real tensor to a device that is not there: 2.6 and 2.7 do not."""
    tensor = torch.ones(1)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return tensor.to(FAKE).device == FAKE
    except NotImplementedError:
        return False


fakes = pytest.mark.skipif(not copies_are_faked(), reason="this torch fakes no copies to another device")
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def model():
    """Has running statistics, and dropout."""
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Dropout(0.5)]
    return Stack(torch.nn.Sequential(*layers, torch.nn.Flatten()), torch.nn.Linear(16, CLASSES))


TASK = classification(model, SHAPE)
MEASURES = {
    DIVERSITY: gradient_diversity(),
    DIVERGENCE: divergence(),
    GENERALITY: generality(TASK, X[:5], Y[:5]),
}


@pytest.fixture
def clients():
    ends = [0, 5, 20, 24, 27, 40, 70]
    return ClientData(X, Y, [torch.arange(70)[a:b].numpy() for a, b in itertools.pairwise(ends)], CLASSES)


def method(name):
    resources = {
        "cohort": 4,
        "rounds": ROUNDS,
        "shared": X[:12],
        "unlabelled": X[:12],
        "client_tasks": {str(w): classification(partial(MLP, SHAPE, CLASSES, w), SHAPE) for w in (4, 6)},
    }
    return ALGORITHMS[name].build(TASK, LocalSGD(0.1, momentum=0.9), resources, **few_steps(name))


def play(algorithm, clients, run, device, rounds=4):
    """The final weights, and what was measured."""
    schedule = Schedule(rounds, 4, 4)
    measures = MEASURES if algorithm.same_form else {}
    start = TASK.init(Key(1))
    trace = federate(
        algorithm, start, clients, run, schedule, Key(5), lambda w: {}, measures=measures, device=device
    )
    assert not any(row["refused"] for row in trace.rounds)
    return trace


def assert_same(one, other):
    assert one.rounds == other.rounds
    for a, b in zip(trees.leaves(one.weights), trees.leaves(other.weights), strict=True):
        assert a.device == b.device
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_clients_compute_elsewhere_is_the_same(clients, name, monkeypatch):
    monkeypatch.setattr(replays, "AFTER", 5)
    algorithm = method(name)
    alone = play(algorithm, clients, sequential(clients), torch.device("cpu"))
    assert_same(play(algorithm, clients, InProcess(PerClientRunner(clients)), ELSEWHERE), alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedgen"])
def test_batches_of_clients_elsewhere(clients, name, monkeypatch):
    monkeypatch.setattr(replays, "AFTER", 5)
    algorithm = method(name)
    here = play(algorithm, clients, InProcess(VmapRunner(clients)), torch.device("cpu"))
    assert_same(play(algorithm, clients, InProcess(VmapRunner(clients)), ELSEWHERE), here)


@fakes
@pytest.mark.parametrize("name", mostly_slow(ALGORITHMS, "fedavg", "scaffold", "fedgen"))
def test_nothing_that_clients_compute_with_is_left_behind(clients, name):
    algorithm, weights = method(name), TASK.init(Key(1))
    client_info, memory = clients.client_info(0), algorithm.memory(weights)
    census = run_once(algorithm.census, {}, {}, client_info)[0]
    message = algorithm.address(algorithm.send(algorithm.init(weights, census, Key(0))), 0)
    program = algorithm.client
    for measure in MEASURES.values() if algorithm.same_form else ():
        program = measure.wrap(program)
    program, batch = on_device(program, FAKE), {"x": X[:4], "y": Y[:4]}
    with FakeTensorMode(allow_non_fake_inputs=True):
        carry = program.start(message, memory, client_info, Key(0))
        carry = program.step(carry, batch, Key(1))
        assert places(carry) == {FAKE}
        assert places(program.finish(carry)[0]) == {torch.device("cpu")}
        assert places(program.finish(carry)[1]) <= {torch.device("cpu")}
        if "weights" in message:
            judging, judged = filtered(algorithm, TASK, Judged(0.5, by_class=False), part=0), []
            held = HeldSamples(1, (4,), lambda rows: judged.append(rows) or {"x": X[rows], "y": Y[rows]})
            (chosen,) = on_device(judging.client, FAKE).select(message, held)
            assert judged
            assert chosen.device.type == "cpu"


class Judged(SampleFilter):
    """A filter that looks at no numbers, which fake tensors do not have."""

    def choose(self, losses, labels):
        assert losses.device == labels.device == torch.device("cpu")
        return torch.arange(2, device="cpu")


def test_samples_are_filtered_elsewhere_as_here(clients):
    algorithm = method("fedavg")
    program = filtered(algorithm, TASK, SampleFilter(0.5, by_class=False), part=0).client
    message = algorithm.send(algorithm.init(TASK.init(Key(1)), {"clients": 1.0, "samples": 1.0}, Key(0)))
    held = HeldSamples(1, clients.part_sizes(5), lambda rows: clients.batch(5, rows))
    (here,) = program.select(message, held)
    (elsewhere,) = on_device(program, ELSEWHERE).select(message, held)
    assert torch.equal(here, elsewhere)
    assert elsewhere.device.type == "cpu"
    assert len(here) == 15


def places(tree):
    return {leaf.device for leaf in trees.leaves(tree) if isinstance(leaf, torch.Tensor)}


@fakes
def test_a_message_is_moved_once_for_all_clients_of_a_round():
    moved = []
    client = method("fedavg").client
    noting = client._replace(start=lambda message, *_: moved.append(trees.leaves(message)))
    program, ever = on_device(noting, FAKE), torch.zeros(2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for _ in range(2):
            message = {"ever": ever, "weights": TASK.init(Key(1))}
            for _ in range(2):
                program.start(dict(message), {}, {}, Key(0))
    first, again, second, _ = moved
    assert {leaf.device for leaf in first} == {FAKE}
    assert list(map(id, first)) == list(map(id, again))
    assert second[0] is first[0]
    assert second[1] is not first[1]
    gone = weakref.ref(first[1])
    moved.clear()
    del first, again
    gc.collect()
    assert gone() is None, "an old round's model is kept"


def test_what_is_drawn_for_a_device_is_drawn_on_the_cpu():
    def sampler(rng, scale):
        return torch.rand(3, generator=rng) * scale, torch.rand(2, generator=rng)

    one, scales, index = torch.ones(()), torch.ones(2), torch.arange(2)
    keys = [Key(3), Key(4)]
    with torch.device("meta"):
        alone = Key(3).draw(sampler, one)
        together = torch.vmap(lambda i, scale: Keys(keys, i).draw(sampler, scale))(index, scales)
    for drawn, shapes in ((alone, [(3,), (2,)]), (together, [(2, 3), (2, 2)])):
        assert [value.device.type for value in drawn] == ["meta", "meta"]
        assert [value.shape for value in drawn] == shapes


def test_what_is_drawn_from_something_elsewhere_is_drawn_here():
    with FakeTensorMode(allow_non_fake_inputs=True):
        shares = torch.ones(3).to(FAKE)
        drawn = Key(3).draw(lambda rng, shares: torch.multinomial(shares, 2, True, generator=rng), shares)
    assert drawn.device.type == "cpu"


@fakes
def test_clients_test_models_elsewhere(clients):
    models, engine = [TASK.init(Key(seed)) for seed in range(len(clients))], sequential(clients)
    assert evaluate_clients(TASK, models, clients, engine, ELSEWHERE) == evaluate_clients(
        TASK, models, clients, engine
    )
    program = on_device(evaluation(TASK), FAKE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        carry = program.start({"weights": models[0]}, {}, {}, Key(0))
        carry = program.step(carry, {"x": X[:4], "y": Y[:4]}, Key(0))
        assert places(carry) == {FAKE}
        assert places(program.finish(carry)[0]) == {torch.device("cpu")}


RECIPE = Recipe(4, 8, 0.01, "cosine", 0.1, 0.2, 4, Augment(noise=0.1))


def pretrained(device, checkpoint=None, recipe=RECIPE):
    return train_with_holdout(
        TASK, TASK.init(Key(1)), X, Y, recipe, Key(7), checkpoint=checkpoint, device=device
    )


def test_pre_training_elsewhere_and_going_on_there(tmp_path):
    here = pretrained(torch.device("cpu"))
    pretrained(ELSEWHERE, tmp_path / "file", RECIPE._replace(patience=1))
    for there in (pretrained(ELSEWHERE), pretrained(ELSEWHERE, tmp_path / "file")):
        assert there.history == here.history
        assert places(there.weights) == {torch.device("cpu")}
        for a, b in zip(trees.leaves(there.weights), trees.leaves(here.weights), strict=True):
            assert torch.equal(a, b)


@ON_GPU
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("batched", [False, True])
def test_a_gpu_computes_what_the_cpu_does(clients, name, batched, monkeypatch):
    monkeypatch.setattr(replays, "AFTER", 5)
    algorithm = method(name)
    run = InProcess(VmapRunner(clients)) if batched else InProcess(PerClientRunner(clients))
    with exact(torch.device("cuda")):
        there = play(algorithm, clients, run, torch.device("cuda"), rounds=2)
    here = play(algorithm, clients, sequential(clients), torch.device("cpu"), rounds=2)
    for a, b in zip(trees.leaves(there.weights), trees.leaves(here.weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() > 8, reason="torch sees that many GPUs")
@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cuda:9", "^device: 'cuda:9', but torch sees no GPU of that number; use cpu$"),
        ("cuda:01", "^device: "),
        ("cuda:256", "^device: "),  # to torch it is the first
        ("gpu", "^device: "),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(tmp_path, device, says):
    text = f"""
        name: somewhere
        data: {{name: digits, partition: {{kind: iid, clients: 10}}}}
        generator: none
        model: {{name: mlp}}
        device: {device}
        methods: {{fedavg: {{algorithm: fedavg}}}}
    """
    with pytest.raises(InputError, match=says):
        pipeline.execute(config.parse(text), tmp_path / "run")
