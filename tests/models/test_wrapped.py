"""Other people's modules as features and a head."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from genfl.algorithms import ALGORITHMS
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.vmapped import VmapRunner
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import Wrapped
from genfl.rng import Key
from genfl.simulation import federate


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=12,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=10,
            num_labels=3,
        )
    ).eval()


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=8,
            patch_size=4,
            num_labels=3,
        )
    ).eval()


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 1]])
IMAGES = torch.linspace(-1, 1, 2 * 192).sin().reshape(2, 3, 8, 8)
CASES = {"bert": (bert, TOKENS, {"padding": 0}), "vit": (vit, IMAGES, {}), "plain": (plain, IMAGES, {})}


@pytest.mark.parametrize("name", list(CASES))
def test_wrapping_changes_no_output(name):
    build, x, chosen = CASES[name]
    torch.manual_seed(0)
    module = build()
    with torch.no_grad():
        output = module(x)
        expected = getattr(output, "logits", output)
        wrapped = Wrapped(copy.deepcopy(module), **chosen)
        assert torch.equal(wrapped(x), expected)
        z = wrapped.features(x)
        assert z.shape == (2, 16)
        assert torch.equal(wrapped.head(z), expected)
    assert isinstance(wrapped.classifier, nn.Linear)
    count = sum(p.numel() for p in module.parameters())
    assert sum(p.numel() for p in wrapped.parameters()) == count


@pytest.mark.parametrize("name", list(CASES))
def test_a_wrapped_module_is_a_task(name):
    """With a linear head, gradients for every parameter, and weights that decide the output alone."""
    build, x, chosen = CASES[name]
    task = classification(lambda: Wrapped(build(), **chosen), x.shape[1:])
    assert task.form.features == 16 and task.form.classes == 3
    a, b = task.init(Key(0)), task.init(Key(1))
    z, logits = task.forward(a, x)
    torch.testing.assert_close(task.head(a["params"], z), logits)
    assert not torch.allclose(task.predict(b, x), logits)
    params = {key: value.requires_grad_() for key, value in a["params"].items()}
    loss, _ = task.loss(params, a["buffers"], {"x": x, "y": torch.tensor([0, 2])}, Key(0))
    slopes = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    assert [key for key, slope in zip(params, slopes, strict=True) if slope is None] == []


def test_padding_is_masked_and_tokens_may_be_floats():
    torch.manual_seed(0)
    wrapped = Wrapped(bert(), padding=0)
    padded = torch.cat([TOKENS, torch.zeros(2, 3, dtype=torch.long)], 1)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(padded), wrapped(TOKENS))
        assert torch.equal(wrapped(padded.float()), wrapped(padded))


def test_the_last_layer_may_be_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({"label": nn.Linear(4, 3)})
            self.first = nn.Linear(4, 4)

        def forward(self, x):
            return self.heads["label"](self.first(x).tanh())

    x = torch.randn(2, 4)
    torch.manual_seed(0)
    module = Odd()
    expected = module(x)
    assert torch.equal(Wrapped(copy.deepcopy(module), "heads.label")(x), expected)
    with pytest.raises(ValueError, match="not the last"):
        Wrapped(copy.deepcopy(module))(x)


def test_features_of_every_place_are_refused():
    pixels = nn.Sequential(nn.Conv1d(3, 3, 1), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="not the last"):
        Wrapped(pixels)(torch.zeros(2, 3, 8))
    places = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="not the last"):
        Wrapped(places)(torch.zeros(2, 3, 8))


def test_a_module_may_be_its_linear_layer_alone():
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    wrapped = Wrapped(copy.deepcopy(layer))
    assert torch.equal(wrapped(x), layer(x))
    assert torch.equal(wrapped.features(x), x)


def test_a_last_layer_that_is_not_linear_is_refused():
    with pytest.raises(ValueError, match=r"'1', is a LayerNorm"):
        Wrapped(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
    with pytest.raises(ValueError, match="no parameters"):
        Wrapped(nn.Sequential(nn.Flatten()))


def test_a_wrapped_module_is_a_function_of_its_weights():
    wrapped = Wrapped(plain())
    zeros = {key: torch.zeros_like(p) for key, p in wrapped.named_parameters()}
    assert functional_call(wrapped, zeros, (IMAGES,)).abs().max() == 0
    assert wrapped(IMAGES).abs().max() > 0


class Net(nn.Module):
    """PyTorch's example for MNIST in small: a network that ends with a log-softmax, or not."""

    def __init__(self, softmax):
        super().__init__()
        self.fc1, self.fc2, self.softmax = nn.Linear(192, 16), nn.Linear(16, 3), softmax

    def forward(self, x):
        z = self.fc2(self.fc1(x.flatten(1)).relu())
        return z.log_softmax(1) if self.softmax else z


def test_what_follows_the_last_layer_is_refused():
    torch.manual_seed(0)
    Wrapped(Net(False)).check(IMAGES)
    with pytest.raises(ValueError, match="'fc2' is not the last operation"):
        classification(lambda: Wrapped(Net(True)), IMAGES.shape[1:])
    with pytest.raises(ValueError, match="'1' is not the last operation"):
        places = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Linear(16, 3))
        Wrapped(places, "1").check(IMAGES)


@pytest.mark.parametrize("name", list(CASES))
def test_a_check_changes_nothing(name):
    build, x, chosen = CASES[name]
    wrapped = Wrapped(build(), **chosen)
    names = [name for name, _ in wrapped.named_parameters(remove_duplicate=False)]
    state = torch.get_rng_state()
    with torch.no_grad():
        before = wrapped(x)
        wrapped.check(x)
        assert torch.equal(wrapped(x), before)
    assert [name for name, _ in wrapped.named_parameters(remove_duplicate=False)] == names
    assert torch.equal(torch.get_rng_state(), state)


class Masked(nn.Module):
    """Knows no zeros, and draws random numbers whatever the mode."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.fc(F.dropout(x / x.norm(dim=1, keepdim=True), 0.5, training=True))


def test_a_module_may_be_random_and_know_no_zeros():
    assert classification(lambda: Wrapped(Masked()), IMAGES.shape[1:]).form.classes == 3


def test_what_is_nothing_for_zeros_is_seen():
    torch.manual_seed(0)
    head = nn.Linear(192, 8)
    nn.init.zeros_(head.bias)
    with pytest.raises(ValueError, match="is not the last operation"):
        classification(lambda: Wrapped(nn.Sequential(nn.Flatten(), head, nn.Tanh())), IMAGES.shape[1:])


def test_a_plain_module_is_wrapped_by_itself():
    bare, wrapped = (classification(build, IMAGES.shape[1:]) for build in (plain, lambda: Wrapped(plain())))
    a, b = bare.init(Key(0)), wrapped.init(Key(0))
    assert list(a["params"]) == list(b["params"])
    assert torch.equal(bare.predict(a, IMAGES), wrapped.predict(b, IMAGES))


def test_a_plain_module_whose_last_layer_is_not_linear_is_refused():
    with pytest.raises(ValueError, match="'1', is a Conv2d; name the linear one"):
        classification(lambda: nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 8)), IMAGES.shape[1:])


class LibraryNorm(nn.BatchNorm2d):
    """A layer as other libraries derive them: it calls batch norm itself."""

    def forward(self, x):
        statistics = self.running_mean, self.running_var
        return F.relu(F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum))


SINGLE_VALUES = {
    "BatchNorm1d": [nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)],
    "BatchNorm1d of sequences": [nn.Flatten(2), nn.Linear(64, 1), nn.BatchNorm1d(1), nn.Flatten()],
    "BatchNorm2d": [nn.Conv2d(1, 8, 8), nn.BatchNorm2d(8), nn.Flatten()],
    "BatchNorm3d": [nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 8, (1, 8, 8)), nn.BatchNorm3d(8), nn.Flatten()],
    "of a library": [nn.Conv2d(1, 8, 8), LibraryNorm(8), nn.Flatten()],
    "no scale": [nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8, affine=False)],
    "no running statistics": [nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8, track_running_stats=False)],
    "GroupNorm": [nn.Flatten(), nn.Linear(64, 8), nn.GroupNorm(8, 8)],
}
"""Bodies that give a norm layer one value per channel for each sample of 1×8×8."""


def single_value_task(name):
    def build():
        body = nn.Sequential(*copy.deepcopy(SINGLE_VALUES[name]))
        return nn.Sequential(body, nn.Linear(1 if "sequences" in name else 8, 3))

    return classification(build, (1, 8, 8))


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("name", list(SINGLE_VALUES))
def test_batch_norm_takes_a_client_with_one_sample(name, engine):
    x, y = torch.randn(21, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(21) % 3
    clients = ClientData(x, y, [np.arange(20), np.arange(20, 21)], classes=3)
    task = single_value_task(name)
    runner = sequential(clients) if engine == "sequential" else InProcess(VmapRunner(clients))
    algorithm = ALGORITHMS["fedavg"].build(task, LocalSGD(lr=0.05))
    trace = federate(
        algorithm, task.init(Key(0)), clients, runner, Schedule(2, 2, 10), Key(0), lambda weights: {}
    )
    assert [row["refused"] for row in trace.rounds] == [0, 0]
    assert task.predict(trace.weights, x[:1]).isfinite().all()


def test_a_single_value_is_normalised_by_the_running_statistics():
    task = single_value_task("BatchNorm2d")
    weights = task.init(Key(0))
    weights["buffers"] = {name: torch.rand_like(b) + 0.5 for name, b in weights["buffers"].items()}
    batch = {"x": torch.rand(1, 1, 8, 8), "y": torch.tensor([1])}
    _, aux = task.loss(weights["params"], weights["buffers"], batch, Key(0))
    torch.testing.assert_close(aux.logits, task.predict(weights, batch["x"]))
    assert all(torch.equal(value, weights["buffers"][name]) for name, value in aux.buffers.items())
    two = {"x": torch.rand(2, 1, 8, 8), "y": torch.tensor([1, 2])}
    _, aux = task.loss(weights["params"], weights["buffers"], two, Key(0))
    assert not any(torch.equal(value, weights["buffers"][name]) for name, value in aux.buffers.items())


@pytest.mark.parametrize("name", ["no running statistics", "GroupNorm"])
def test_a_single_value_is_its_own_mean(name):
    """Its normalised value is 0, so that the layer gives its bias."""
    task = single_value_task(name)
    weights = task.init(Key(0))
    bias = next(n for n in weights["params"] if n.endswith("0.2.bias"))
    weights["params"][bias] = torch.arange(8.0)
    batch = {"x": torch.rand(1, 1, 8, 8), "y": torch.tensor([1])}
    _, aux = task.loss(weights["params"], weights["buffers"], batch, Key(0))
    torch.testing.assert_close(aux.features[0], torch.arange(8.0), atol=1e-3, rtol=0)
