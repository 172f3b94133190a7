"""Gradients of every sample against a loop over samples."""

import pytest
import torch
from torch import nn

from genfl import trees
from genfl.algorithms.fedprox import fedprox
from genfl.algorithms.moon import moon
from genfl.learning import per_sample
from genfl.learning.local import Context, LocalSGD, no_penalty
from genfl.learning.per_sample import by_layers, by_loop, by_vmap, by_vmap_or_loop, per_sample_gradient
from genfl.learning.task import classification
from genfl.models import MODELS
from genfl.rng import Key

OPTIONS = {
    "cnn": {},
    "mlp": {},
    "convnet": {"width": 16},
    "resnet18": {"norm": "group"},
    "resnet20": {"norm": "group"},
    "resnet50": {"norm": "group"},
    "vgg19": {"norm": "group"},
    "fedaudio": {"width": 16, "dropout": 0.0, "norm": "group"},
    "lstm": {"vocabulary": 30, "width": 8, "embedding": 6},
}
SHAPES = {"fedaudio": (12, 8), "lstm": (7,)}
LARGE = {"resnet18", "resnet50", "vgg19"}


@pytest.fixture(autouse=True)
def in_double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def task_of(build, shape):
    return classification(lambda: build().double(), shape)


def examples(task, tokens=0):
    shape, generator = task.shapes().input, torch.Generator().manual_seed(1)
    x = torch.rand(4, *shape, generator=generator)
    if tokens:
        x = (x * tokens).floor()
    return {"x": x, "y": torch.arange(4) % task.shapes().classes}


def largest_difference(one, other):
    pairs = zip(trees.leaves(one), trees.leaves(other), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def assert_equal_to_loop(way, task, batch, penalty=no_penalty, context=None):
    weights = task.init(Key(0))
    context = context or Context(task, {}, {}, {}, Key(0))
    args = (weights["params"], weights["buffers"], batch, context, penalty)
    expected = by_loop(*args)
    assert largest_difference(way(*args), expected) < 1e-9
    assert max(float(leaf.abs().max()) for leaf in trees.leaves(expected)) > 1e-3


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in OPTIONS]
)
def test_by_layers_equals_loop_for_every_model(name):
    shape = SHAPES.get(name, (3, 32, 32))
    task = task_of(lambda: MODELS[name].build(shape, 5, **OPTIONS[name]), shape)
    assert_equal_to_loop(by_layers, task, examples(task, tokens=30 if name == "lstm" else 0))


def test_every_model_is_tried():
    assert MODELS.keys() - OPTIONS.keys() == {"vgg19_imagenet"}, (
        "its layers are those of vgg19, and too large"
    )


LAYERS = {
    "strides, groups and dilation": lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), groups=2),
    "padding same": lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2),
    "padding valid": lambda: nn.Conv2d(4, 6, 3, padding="valid", bias=False),
    "instance norm as group norm": lambda: nn.GroupNorm(4, 4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "group norm without weights": lambda: nn.GroupNorm(2, 4, affine=False),
    "layer norm": lambda: nn.LayerNorm((6, 7)),
    "linear on the last dimension": lambda: nn.Linear(7, 3),
    "linear without bias": lambda: nn.Linear(7, 3, bias=False),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_by_layers_equals_loop_for_layers(layer):
    def build():
        first = layer()
        size = first(torch.zeros(1, 4, 6, 7)).numel()
        return nn.Sequential(nn.Conv2d(2, 4, 1), first, nn.Tanh(), nn.Flatten(), nn.Linear(size, 3))

    task = task_of(build, (2, 6, 7))
    assert_equal_to_loop(by_layers, task, examples(task))


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.embed = nn.Embedding(9, 4, padding_idx=2)
        self.rnn = kind(4, 5, batch_first=True, **options)
        self.out = nn.Linear(5 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x):
        return self.out(self.rnn(self.embed(x.long()))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_by_layers_equals_loop_for_recurrent_layers(kind, options):
    task = task_of(lambda: Recurrent(kind, **options), (6,))
    assert_equal_to_loop(by_layers, task, examples(task, tokens=9))


class Scaled(nn.Module):
    """A model with a weight that no layer knows."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.out = nn.Linear(3, 3)

    def forward(self, x):
        return self.out((x * self.scale).flatten(1)[:, :3])


def test_unknown_layers_are_differentiated_by_vmap():
    task = task_of(Scaled, (2, 3))
    assert per_sample_gradient(task) is by_vmap
    assert_equal_to_loop(by_vmap, task, examples(task))


class PythonLoop(nn.Module):
    """A model that `torch.vmap` cannot run: it looks at a value."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.out = nn.Linear(3, 3)

    def forward(self, x):
        return self.out(x * self.scale if float(x.detach().sum()) > -1 else x)


def test_models_that_look_at_values_are_differentiated_one_by_one():
    task = task_of(PythonLoop, (3,))
    assert per_sample_gradient(task) is by_loop
    context = Context(task, {"weights": task.init(Key(1))}, {}, {}, Key(0))
    penalty = LocalSGD(0.1).with_hook(fedprox(mu=0.5)).penalty
    assert_equal_to_loop(by_vmap_or_loop, task, examples(task), penalty, context)


def test_vmap_that_failed_is_not_tried_in_every_step(monkeypatch):
    tried = []

    def watched(*args):
        tried.append(args)
        return by_vmap(*args)

    monkeypatch.setattr(per_sample, "by_vmap", watched)
    for model, shape, calls in ((PythonLoop, (3,), 1), (Scaled, (2, 3), 3)):
        task = task_of(model, shape)
        context = Context(task, {"weights": task.init(Key(1))}, {}, {}, Key(0))
        penalty = LocalSGD(0.1).with_hook(fedprox(mu=0.5)).penalty
        tried.clear()
        for _ in range(3):
            assert_equal_to_loop(by_vmap_or_loop, task, examples(task), penalty, context)
        assert len(tried) == calls


def test_models_with_dropout_are_differentiated_by_layers():
    def build():
        return MODELS["fedaudio"].build((12, 8), 5, width=8, dropout=0.5)

    assert per_sample_gradient(task_of(build, (12, 8))) is by_layers


def test_penalties_are_part_of_each_samples_objective():
    task = task_of(lambda: MODELS["mlp"].build((1, 8, 8), 5, width=6), (1, 8, 8))
    weights = task.init(Key(1))
    for hook in (fedprox(mu=0.5), moon(mu=1.0)):
        local = LocalSGD(0.1).with_hook(hook)
        memory = local.memory.initial(task.init(Key(2)))
        context = Context(task, {"weights": weights}, memory, {}, Key(0))
        assert_equal_to_loop(by_vmap, task, examples(task), local.penalty, context)
