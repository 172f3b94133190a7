"""What holds for every model of the registry."""

import inspect
import itertools

import pytest
import torch
from support.parameters import mostly_slow
from torch import nn
from torch.func import grad, vmap

from genfl import trees
from genfl.learning.task import classification
from genfl.models import MODELS
from genfl.models.layers import norm_layer
from genfl.models.resnet import Bottleneck, ResNet
from genfl.options import options
from genfl.rng import Key

SMALL = {  # inputs and options at which a model is quick
    "cnn": ((1, 8, 8), {}),
    "mlp": ((1, 8, 8), {}),
    "convnet": ((3, 8, 12), {"width": 8}),
    "resnet18": ((3, 16, 24), {"stem": "cifar"}),
    "resnet20": ((3, 8, 12), {}),
    "resnet50": ((3, 16, 24), {"stem": "cifar"}),
    "vgg19": ((3, 32, 32), {}),
    "vgg19_imagenet": ((3, 32, 32), {"hidden": 16, "dropout": 0.0}),
    "fedaudio": ((9, 16), {"width": 8, "dropout": 0.0}),
    "lstm": ((6,), {"vocabulary": 12, "embedding": 5, "width": 7}),
}
FEATURES = {  # at those
    "cnn": 64 * 2 * 2,
    "mlp": 128,
    "convnet": 8 * 1 * 1,
    "resnet18": 512,
    "resnet20": 64,
    "resnet50": 2048,
    "vgg19": 512,
    "vgg19_imagenet": 16,
    "fedaudio": 8,
    "lstm": 7,
}
LARGE = {"resnet18", "vgg19", "vgg19_imagenet"}
QUICK = [name for name in MODELS if name not in {*LARGE, "resnet50"}]
NORMS = [name for name in MODELS if "norm" in options(MODELS[name].build)]
CLASSES = 3
PROJECTED = 5  # outputs of a projection head


def small(name, **more):
    shape, chosen = SMALL[name]
    return MODELS[name].build(shape, CLASSES, **chosen | more)


def inputs(name, n=4):
    """Inputs of a model, as floats: token ids too."""
    shape, _ = SMALL[name]
    generator = torch.Generator().manual_seed(1)
    if MODELS[name].modality == "text":
        return torch.randint(1, 12, (n, *shape), generator=generator).to(torch.get_default_dtype())
    return torch.randn(n, *shape, generator=generator)


# Each is written out from the shapes of the layers.
CONV, NORM = (lambda i, o, k: i * o * k * k), (lambda c: 2 * c)
VGG = [3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512]
RESNET20 = (
    CONV(3, 16, 3)
    + 6 * CONV(16, 16, 3)
    + CONV(16, 32, 3)
    + 5 * CONV(32, 32, 3)
    + CONV(32, 64, 3)
    + 5 * CONV(64, 64, 3)
    + 7 * NORM(16)
    + 6 * NORM(32)
    + 6 * NORM(64)
    + 64 * 10
    + 10
)
COUNTS = {
    "cnn": (CONV(1, 32, 3) + 32 + NORM(32)) + (CONV(32, 64, 3) + 64 + NORM(64)) + 64 * 2 * 2 * 10 + 10,
    "mlp": 64 * 128 + 128 + 128 * 10 + 10,
    "convnet": CONV(3, 128, 3) + 2 * CONV(128, 128, 3) + 3 * (128 + NORM(128)) + 128 * 4 * 4 * 10 + 10,
    "resnet18": 11_689_512,  # as torchvision publishes them
    "resnet50": 25_557_032,
    "resnet20": RESNET20,
    "vgg19": sum(CONV(i, o, 3) + o + NORM(o) for i, o in itertools.pairwise(VGG)) + 512 * 10 + 10,
    "vgg19_imagenet": 143_667_240,  # as torchvision publishes them
    "fedaudio": (128 * 64 * 3 + 64)
    + (64 * 128 * 3 + 128)
    + 2 * 3 * (128 * 128 + 128 * 128 + 128 + 128)  # two directions, three gates
    + (256 * 128 + 128)
    + (128 * 36 + 36),
    "lstm": 10_000 * 100 + 2 * 4 * (100 * 100 + 100 * 100 + 100 + 100) + 100 * 2 + 2,
}
PUBLISHED = {"convnet": 320_010, "resnet20": 269_722, "vgg19": 20_040_522, "fedaudio": 285_028}


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", list(MODELS))
def test_parameter_counts(name):
    entry = MODELS[name]
    with torch.device("meta"):
        parameters = count(entry.build(entry.shape, entry.classes))
    assert parameters == COUNTS[name] == PUBLISHED.get(name, parameters)


def test_parameter_counts_of_other_choices():
    def of(name, **chosen):
        with torch.device("meta"):
            return count(MODELS[name].build((3, 32, 32), 10, **chosen))

    shortcuts = CONV(16, 32, 1) + NORM(32) + CONV(32, 64, 1) + NORM(64)
    assert of("resnet20", shortcut="B") == RESNET20 + shortcuts == 272_474
    dense = CONV(512 * 49, 4096, 1) + 4096 + CONV(4096, 4096, 1) + 4096 + CONV(4096, 10, 1) + 10
    convolutions = sum(CONV(i, o, 3) + o for i, o in itertools.pairwise(VGG))
    assert of("vgg19_imagenet") == convolutions + dense == 139_611_210  # GPT-FL's 139.6 million
    assert of("vgg19_imagenet", norm="batch") == 139_611_210 + sum(map(NORM, VGG[1:]))
    assert of("vgg19", norm="none") == COUNTS["vgg19"] - sum(map(NORM, VGG[1:]))
    # CIFAR's stem has a 3×3 kernel
    stem = CONV(3, 64, 7) - CONV(3, 64, 3)
    assert of("resnet18", stem="imagenet") - of("resnet18", stem="cifar") == stem


@pytest.mark.parametrize("name", mostly_slow(MODELS, *QUICK))
def test_every_model_is_features_and_a_linear_head(name):
    model = small(name).eval()
    x = inputs(name)
    with torch.no_grad():
        z = model.features(x)
        assert z.shape == (len(x), FEATURES[name])
        assert model(x).shape == (len(x), CLASSES)
        assert torch.equal(model(x), model.head(z))
        a, b = torch.randn(2, FEATURES[name])
        bias = model.head(0 * a)
        torch.testing.assert_close(
            model.head(2 * a - b), 2 * model.head(a) - model.head(b), atol=1e-4, rtol=1e-4
        )
        assert bias.shape == (CLASSES,)


@pytest.mark.parametrize("name", mostly_slow(MODELS, *QUICK))
def test_projection_is_an_mlp_before_the_linear_head(name, float64):
    """As in the paper's Section 3.2: encoder, two layers with ReLU between, linear head."""
    plain, projected = small(name).eval(), small(name, projection=PROJECTED).eval()
    weights = projected.state_dict()
    shared = {key: value for key, value in weights.items() if plain.state_dict().get(key) is not None}
    head = [key.removesuffix(".weight") for key in shared if weights[key].shape[1:] == (PROJECTED,)][-1]
    encoder = {key: value for key, value in shared.items() if not key.startswith(head)}
    plain.load_state_dict(encoder, strict=False)
    x, d = inputs(name), FEATURES[name]
    with torch.no_grad():
        h = plain.features(x)
        hidden = torch.relu(h @ weights["projection.0.weight"].T + weights["projection.0.bias"])
        z = hidden @ weights["projection.2.weight"].T + weights["projection.2.bias"]
        torch.testing.assert_close(projected.features(x), z)
        logits = z @ weights[f"{head}.weight"].T + weights[f"{head}.bias"]
        torch.testing.assert_close(projected(x), logits)
    assert weights["projection.0.weight"].shape == (d, d)
    assert weights["projection.2.weight"].shape == (PROJECTED, d)


@pytest.mark.parametrize("name", mostly_slow(SMALL, *QUICK))
def test_projection_of_zero_changes_no_bit(name):
    torch.manual_seed(3)
    first = small(name).state_dict()
    torch.manual_seed(3)
    second = small(name, projection=0).state_dict()
    assert list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)
    assert not any("projection" in key for key in first)


@pytest.mark.parametrize("name", mostly_slow(MODELS, *QUICK))
def test_an_example_does_not_see_the_others_in_evaluation(name, float64):
    model = small(name).eval()
    x = inputs(name, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
        assert not torch.allclose(model(x)[0], model(x)[1], atol=1e-9)


@pytest.mark.parametrize("name", mostly_slow(MODELS, *QUICK))
def test_the_global_seed_decides_the_initial_weights(name):
    def built(seed):
        torch.manual_seed(seed)
        return small(name).state_dict()

    a, b, c = built(0), built(0), built(1)
    assert all(torch.equal(a[key], b[key]) for key in a)
    matrices = [key for key in a if a[key].ndim > 1]
    assert not any(torch.equal(a[key], c[key]) for key in matrices)


@pytest.mark.parametrize("name", mostly_slow(MODELS, *QUICK))
def test_every_parameter_learns(name, float64):
    """Without norm layers, which take the gradient of the biases before them."""
    model = small(name, **({"norm": "none"} if name in NORMS else {}))
    nn.functional.cross_entropy(model(inputs(name)), torch.tensor([0, 1, 2, 0])).backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9]
    assert dead == []


@pytest.mark.parametrize("name", mostly_slow(NORMS, *{*NORMS} & {*QUICK}))
def test_the_norm_layer_is_a_choice(name):
    shape, chosen = SMALL[name]

    def kinds(norm):
        with torch.device("meta"):
            model = MODELS[name].build(shape, CLASSES, **chosen | {"norm": norm})
        batch = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        group = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
        return len(batch), len(group), len(list(model.buffers()))

    layers, others, _ = kinds("batch")
    assert layers > 0 and others == 0
    assert kinds("batch")[2] == 3 * layers
    assert kinds("group") == (0, layers, 0)
    assert kinds("none") == (0, 0, 0)


GROUPS = {
    "cnn": {4},
    "convnet": {4},
    "resnet18": {32},
    "resnet20": {4},
    "resnet50": {32},
    "vgg19": {32},
    "vgg19_imagenet": {32},
    "fedaudio": {2, 4},
}


@pytest.mark.parametrize("name", NORMS)
def test_the_groups_are_those_documented(name):
    with torch.device("meta"):
        model = small(name, norm="group")
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == GROUPS[name]


def test_norm_layers():
    x = torch.randn(5, 8, 6, 7) * 3 + 1

    def moments(y, *dims):
        return y.mean(dims), y.var(dims, correction=0)

    cases = {
        "batch": (x.shape, (0, 2, 3)),
        "group": ((5, 4, 2, 6, 7), (2, 3, 4)),
        "instance": (x.shape, (2, 3)),
    }
    for norm, (view, dims) in cases.items():
        mean, var = moments(norm_layer(norm, 8)(x).reshape(view), *dims)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(var, torch.ones_like(var), atol=1e-4, rtol=0)
    assert torch.equal(norm_layer("none", 8)(x), x)
    ours, torchs = norm_layer("batch", 8), nn.BatchNorm2d(8)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    for _ in range(2):
        torch.testing.assert_close(ours(x), torchs(x))
    torch.testing.assert_close(ours.running_var, torchs.running_var)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


def test_a_single_value_of_each_channel_is_normalised_by_the_running_statistics(float64):
    norm, x = norm_layer("batch", 8).train(), torch.randn(5, 8, 3)
    norm(x)
    known = {name: value.clone() for name, value in norm.state_dict().items()}
    for single in (x[:1, :, :1], x[:1, :, 0]):
        spread = (known["running_var"] + norm.eps).sqrt()
        expected = (single.squeeze() - known["running_mean"]) / spread
        torch.testing.assert_close(norm(single).squeeze(), expected)
    assert all(torch.equal(value, known[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("name", mostly_slow(NORMS, *{*NORMS} & {*QUICK}))
def test_a_single_sample_trains_with_group_norm(name, float64):
    model = small(name, norm="group").train()
    x = inputs(name, 2)
    torch.testing.assert_close(model(x[:1]), model(x)[:1])


RECURRENT = {"fedaudio", "lstm"}  # torch's kernels of them have no batching rule

SMALLEST = {
    "cnn": ((1, 4, 4), {}),
    "convnet": ((1, 8, 8), {}),
    "resnet18": ((1, 32, 32), {}),
    "resnet20": ((1, 4, 4), {}),
    "resnet50": ((1, 32, 32), {}),
    "vgg19": ((1, 32, 32), {}),
    "vgg19_imagenet": ((1, 32, 32), {}),
    "fedaudio": ((4, 1), {}),
    "lstm": ((1,), {}),
}


@pytest.mark.parametrize(
    ("name", "smallest", "chosen"),
    [
        *((name, *case) for name, case in SMALLEST.items()),
        ("convnet", (1, 4, 4), {"depth": 2}),
        ("resnet18", (1, 8, 8), {"stem": "cifar"}),
    ],
)
def test_inputs_that_are_too_small_are_refused_by_name(name, smallest, chosen):
    build = MODELS[name].build
    with torch.device("meta"):
        build(smallest, 2, **chosen)(torch.zeros(2, *smallest))
        for place in range(len(smallest)):
            shape = tuple(n - (index == place) for index, n in enumerate(smallest))
            with pytest.raises(ValueError, match="at least") as error:
                build(shape, 2, **chosen)
            assert str(smallest) in str(error.value) and str(shape) in str(error.value)
        with pytest.raises(ValueError, match="takes inputs of"):
            build((*smallest, 9), 2, **chosen)


@pytest.mark.parametrize(
    ("shape", "pooled"), [((3, 32, 32), 128 * 16), ((1, 28, 28), 128 * 9), ((3, 64, 40), 128 * 40)]
)
def test_the_convnet_takes_images_of_any_size(shape, pooled):
    model = MODELS["convnet"].build(shape, 10)
    assert model.features(torch.zeros(1, *shape)).shape == (1, pooled)


@pytest.mark.parametrize(
    "name", mostly_slow(["resnet18", "resnet20", "resnet50", "vgg19", "vgg19_imagenet"], "resnet20", "vgg19")
)
def test_networks_with_global_pooling_take_any_size(name):
    with torch.device("meta"):
        model = MODELS[name].build((3, 32, 32), 10).eval()
        for size in (32, 65, 224):
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name in sorted(MODELS.keys() - RECURRENT)
    ],
)
def test_stacked_clients_get_the_gradients_of_a_loop(name, float64):
    def build():
        if name == "resnet50":  # its blocks in small: 25 million weights a client take long
            return ResNet(shape, CLASSES, Bottleneck, (2, 1), 8, stem="imagenet", norm="batch")
        return small(name)

    shape, _ = SMALL[name]
    task = classification(build, shape)
    clients, n = (2, 2) if name in LARGE else (3, 4)
    weights = [task.init(Key(0).fold(client)) for client in range(clients)]
    x = inputs(name, n * clients).unflatten(0, (clients, n))
    y = torch.arange(n * clients).reshape(clients, n) % CLASSES

    def gradient(params, buffers, x, y):
        return grad(lambda p: task.loss(p, buffers, {"x": x, "y": y}, Key(0))[0])(params)

    stacked = trees.map(lambda *leaves: torch.stack(leaves), *weights)
    together = vmap(gradient)(stacked["params"], stacked["buffers"], x, y)
    for client, own in enumerate(weights):
        alone = gradient(own["params"], own["buffers"], x[client], y[client])
        for key, value in alone.items():
            torch.testing.assert_close(together[key][client], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_recurrent_models_are_functions_of_the_weights_given(name, float64):
    """torch's recurrent layers keep a list of their weights besides the parameters."""
    shape, _ = SMALL[name]
    task = classification(lambda: small(name), shape)
    a, b = task.init(Key(0)), task.init(Key(1))
    x, y = inputs(name), torch.arange(4) % CLASSES

    def loss(params):
        return task.loss(params, {}, {"x": x, "y": y}, Key(0))[0]

    before = loss(a["params"])
    loss(b["params"])
    assert torch.equal(loss(a["params"]), before)
    step = 1e-6
    slope = grad(loss)(a["params"])
    for key, value in slope.items():
        moved = a["params"] | {key: a["params"][key] + step * torch.sign(value)}
        expected = step * value.abs().sum()
        torch.testing.assert_close(loss(moved) - before, expected, rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_option_is_one_of_a_config(name):
    """A parameter with a default that `options` cannot read would silently not exist for users."""
    parameters = inspect.signature(MODELS[name].build).parameters.values()
    assert set(options(MODELS[name].build)) == {p.name for p in parameters if p.default is not p.empty}
