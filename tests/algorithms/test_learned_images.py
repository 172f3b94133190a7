"""FedFTG's convolutional generator against torch's own layers, and the range of the inputs it makes."""

import pytest
import torch
from torch import nn

from genfl import config, trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.fedftg import fedftg
from genfl.data.recipes import RECIPES
from genfl.data.sources import digits
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.learning.conditional import ConditionalGenerator, ConvolutionalGenerator
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN
from genfl.rng import Key

SHAPE, CLASSES, NOISE, WIDTH = (3, 16, 24), 4, 7, 6
CIFAR = ((-1.9895, -1.9803, -1.7068), (2.0591, 2.1265, 2.1158))
"""(0 − mean) / std and (1 − mean) / std of CIFAR-10's channels."""


class Transcribed(nn.Module):
    """The layers of the authors' generator, in torch's own modules."""

    def __init__(self, params):
        super().__init__()
        w, (channels, height, breadth) = WIDTH, SHAPE
        self.size = height // 4, breadth // 4
        dense = w * self.size[0] * self.size[1]
        self.noise, self.label = nn.Linear(NOISE, dense), nn.Linear(CLASSES, dense)
        self.norm0, self.norm1, self.norm2 = nn.BatchNorm2d(2 * w), nn.BatchNorm2d(2 * w), nn.BatchNorm2d(w)
        self.conv1 = nn.Conv2d(2 * w, 2 * w, 3, padding=1)
        self.conv2 = nn.Conv2d(2 * w, w, 3, padding=1)
        self.conv3 = nn.Conv2d(w, channels, 3, padding=1)
        self.upsample, self.act = nn.Upsample(scale_factor=2), nn.LeakyReLU(0.2)
        self.out = nn.BatchNorm2d(channels, affine=False)
        tensors = {f"{layer}.{part}": value for layer, pair in params.items() for part, value in pair.items()}
        missing, unexpected = self.load_state_dict(tensors, strict=False)
        assert not unexpected and all(name.split(".")[1].startswith(("running", "num")) for name in missing)

    def forward(self, y, eps):
        maps = torch.cat([self.noise(eps), self.label(nn.functional.one_hot(y, CLASSES).to(eps))], 1)
        maps = self.norm0(maps.view(len(y), -1, *self.size))
        maps = self.act(self.norm1(self.conv1(self.upsample(maps))))
        maps = self.act(self.norm2(self.conv2(self.upsample(maps))))
        return self.out(torch.tanh(self.conv3(maps)))


def test_convolutional_generator_equals_the_authors_layers(float64):
    generator = ConvolutionalGenerator(SHAPE, CLASSES, NOISE, WIDTH)
    params = generator.init(Key(0))
    for layer in ("norm0", "norm1", "norm2"):
        params[layer] = trees.map(lambda p: p + torch.randn(len(p), generator=Key(1).torch()), params[layer])
    y, eps = generator.conditions(torch.ones(CLASSES), 5, Key(2).torch())
    samples = generator(params, y, eps)
    torch.testing.assert_close(samples, Transcribed(params)(y, eps), rtol=1e-10, atol=1e-10)
    assert samples.shape == (5, *SHAPE)
    torch.testing.assert_close(samples.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-9)
    torch.testing.assert_close(samples.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-3)


def test_convolutional_generator_starts_as_torch_starts_layers():
    generator = ConvolutionalGenerator((3, 32, 32), 10, 100, 32)
    params = generator.init(Key(0))
    for name, inputs in (("noise", 100), ("label", 10), ("conv1", 64 * 9), ("conv3", 32 * 9)):
        bound = inputs**-0.5
        assert params[name]["weight"].abs().max().item() == pytest.approx(bound, rel=0.05)
        assert params[name]["weight"].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert sum(p.numel() for p in trees.leaves(params)) == (
        (100 + 1) * 2048 + (10 + 1) * 2048 + 2 * (64 + 64 + 32) + (64 * 9 + 1) * (64 + 32) + (32 * 9 + 1) * 3
    )


def test_samples_are_put_in_the_range_of_inputs(float64):
    low, high = (torch.tensor(end).view(3, 1, 1) for end in CIFAR)
    convolutional = ConvolutionalGenerator(SHAPE, CLASSES, NOISE, WIDTH)
    samples = torch.randn(4, *SHAPE, generator=Key(0).torch()) * 2
    bounded = convolutional.bounded(samples, low, high)
    assert (bounded >= low).all() and (bounded <= high).all()
    assert (bounded == low).any() and (bounded == high).any()
    inner = bounded[(bounded > low) & (bounded < high)]
    expected = (low + high) / 2 + (high - low) / 4 * samples
    torch.testing.assert_close(inner, expected[(expected > low) & (expected < high)])
    plain = ConditionalGenerator(SHAPE, CLASSES, NOISE).bounded(samples, low, high)
    torch.testing.assert_close(plain, low + (high - low) / (1 + torch.exp(-samples)))


@pytest.mark.parametrize(("name", "expected"), [("cifar10", CIFAR)])
def test_formats_know_the_range_of_their_inputs(name, expected):
    low, high = RECIPES[name].format.input_range()
    assert low == pytest.approx(expected[0], abs=1e-3)
    assert high == pytest.approx(expected[1], abs=1e-3)


def test_ranges_of_other_formats():
    for name, recipe in RECIPES.items():
        known = recipe.format.input_range()
        assert (known is not None) == (recipe.format.modality == "image"), name
        if known:
            assert all(low < high for low, high in zip(*known, strict=True))
            assert len(known[0]) == len(known[1]) == recipe.format.channels
    data = digits()
    assert data.input_range == ((0.0,), (1.0,))
    assert (data.train.x.min(), data.train.x.max()) == (0, 1)


def test_a_task_of_a_config_has_the_range_of_its_data():
    text = """
name: range
data: {name: digits, partition: {kind: iid, clients: 3}}
generator: none
model: cnn
federate: {clients_per_round: 2}
methods: {fedftg: {algorithm: fedftg}}
"""
    settings = config.parse(text)
    task = RunContext().classify(settings.data, settings.model, 10, "fp32")
    assert task.shapes().input_range == ((0.0,), (1.0,))


def task_of(shape=SHAPE, input_range=None):
    return classification(lambda: CNN(shape, CLASSES, width=4), shape, input_range=input_range)


def inputs_seen(task, **options):
    """The inputs that FedFTG's server shows the models."""
    seen = []

    def forward(weights, x):
        seen.append(x.detach())
        return task.forward(weights, x)

    algorithm = fedftg(task._replace(forward=forward), LocalSGD(0.1), steps=2, width=4, **options)
    weights = task.init(Key(0))
    state = algorithm.init(weights, {}, Key(0))
    aggregate = {
        "weight": [torch.tensor(3.0)],
        "delta": [trees.map(lambda w: 0.1 * torch.ones_like(w), weights)],
        "label_counts": [torch.ones(CLASSES)],
    }
    after = algorithm.server(state, aggregate, Key(1))
    return torch.cat(seen), state, after


def test_fedftgs_inputs_are_in_the_range_of_the_data():
    x, before, after = inputs_seen(task_of(input_range=CIFAR))
    low, high = (torch.tensor(end).view(3, 1, 1) for end in CIFAR)
    assert (x >= low).all() and (x <= high).all()
    assert (x.amin((0, 2, 3)) < -1.2).all() and (x.amax((0, 2, 3)) > 1.2).all(), "the whole range is used"
    for layer in ("noise", "label", "conv1", "conv2", "conv3", "norm1"):
        assert not torch.equal(before["generator"][layer]["weight"], after["generator"][layer]["weight"])


def test_fedftgs_range_is_an_option():
    x, _, _ = inputs_seen(task_of(input_range=CIFAR), low=0.25, high=0.75)
    assert x.min() >= 0.25 and x.max() <= 0.75
    x, _, _ = inputs_seen(task_of(input_range=CIFAR), high=0.5)
    assert x.max() <= 0.5 and (x.amin((0, 2, 3)) < -0.8).all()
    x, _, _ = inputs_seen(task_of())
    assert x.min() >= 0 and x.max() <= 1, "an unknown range is 0 to 1"
    with pytest.raises(InputError, match=r"^fedftg\.low: the range of inputs, \[1\.0\] to .* is empty"):
        fedftg(task_of(), LocalSGD(0.1), low=1.0)


@pytest.mark.parametrize(
    ("shape", "kind", "layers"),
    [
        ((3, 16, 24), "auto", "conv"),
        ((1, 8, 8), "auto", "mlp"),
        ((3, 18, 16), "auto", "mlp"),
        ((1, 8, 8), "conv", "conv"),
        ((3, 16, 24), "mlp", "mlp"),
    ],
)
def test_fedftgs_generator_suits_the_inputs(shape, kind, layers):
    task = task_of(shape)
    algorithm = fedftg(task, LocalSGD(0.1), generator=kind)
    state = algorithm.init(task.init(Key(0)), {}, Key(0))
    assert ("conv1" in state["generator"]) == (layers == "conv")
    assert ("hidden" in state["generator"]) == (layers == "mlp")


def test_a_convolutional_generator_of_other_inputs_is_refused():
    with pytest.raises(InputError, match=r"^fedftg\.generator: conv makes images .* \(3, 18, 16\); use mlp"):
        fedftg(task_of((3, 18, 16)), LocalSGD(0.1), generator="conv")


def test_low_and_high_are_options_of_a_config_and_may_be_left_out():
    known = ALGORITHMS["fedftg"].options()
    assert known["low"][1] is None and known["high"][1] is None
    assert "rounds" not in ALGORITHMS["dynafed"].options(), "genfl provides it"
    method = {"algorithm": {"name": "fedftg", "low": -1.5, "high": None}}
    assert config.Method.model_validate(method).algorithm[0].options()["low"] == -1.5
    with pytest.raises(InputError, match=r"fedftg\.low: 'dark' is out of range"):
        fedftg(task_of(), LocalSGD(0.1), low="dark")
