"""Clients folded together: what every client would compute alone."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from genfl.engines.fast.vmap_layers import Folding

CLIENTS, CHANNELS = 3, 6


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def loss(layer):
    """A loss whose gradient differs from place to place."""

    def of(*args):
        out = layer(*args)
        return (out.sin() * torch.linspace(1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)).sum()

    return of


def same_as_alone(layer, args, dims):
    """Compares gradients of all arguments, batched, with those of each client's own."""
    wanted = tuple(range(len(args)))
    with Folding():
        together = vmap(grad(loss(layer), wanted), dims)(*args)
        values = vmap(layer, dims)(*args)
    for client in range(CLIENTS):
        own = [arg if dim is None else arg.select(dim, client) for arg, dim in zip(args, dims, strict=True)]
        own = [arg.detach().requires_grad_() for arg in own]
        torch.testing.assert_close(values[client], layer(*own), rtol=1e-12, atol=1e-12)
        alone = torch.autograd.grad(loss(layer)(*own), own)
        for batched, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[client], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, CHANNELS), (5, CHANNELS, 7), (5, CHANNELS, 4, 3)])
@pytest.mark.parametrize("dims", [(0, 0, 0), (1, 0, 0), (0, None, None), (None, 0, 0), (2, 1, None)])
def test_group_norm(shape, dims):
    def with_clients(shape, dim):
        return shape if dim is None else (*shape[:dim], CLIENTS, *shape[dim:])

    args = [
        drawn(*with_clients(own, d)) for own, d in zip((shape, (CHANNELS,), (CHANNELS,)), dims, strict=True)
    ]
    same_as_alone(lambda x, weight, bias: F.group_norm(x, 3, weight, bias), args, dims)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_inputs_less_precise_than_its_statistics(kind, training):
    precise = torch.float64 if kind == torch.float64 else torch.float32
    x, weight = drawn(CLIENTS, 5, CHANNELS, 4, 3).to(kind), drawn(CLIENTS, CHANNELS).to(precise)
    mean, var = weight + 1, weight.square()

    def layer(x, weight, mean, var):
        mean, var = mean.clone(), var.clone()
        return F.batch_norm(x, mean, var, weight, None, training), mean, var

    with Folding():
        together = vmap(layer)(x, weight, mean, var)
    for client in range(CLIENTS):
        alone = layer(x[client], weight[client], mean[client], var[client])
        for batched, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[client], expected)


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.GroupNorm(2, CHANNELS, affine=False),
        lambda x: F.group_norm(x, num_groups=CHANNELS, eps=0.1),
        lambda x: F.group_norm(x, 1, weight=torch.arange(6, dtype=x.dtype)),
        torch.nn.MaxPool2d(2),
        torch.nn.MaxPool2d(3, 1, padding=1),
        torch.nn.MaxPool2d((2, 3), (1, 2), ceil_mode=True),
        torch.nn.MaxPool2d(2, dilation=2),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: F.max_pool2d(x, np.int64(2)),
        lambda x: F.max_pool2d(x, (2,), []),
        lambda x: torch.stack([F.max_pool2d(image, 2) for image in x.unbind()]),
    ],
)
@pytest.mark.parametrize("dim", [0, 1, 4])
def test_layers_of_images(layer, dim):
    x = drawn(CLIENTS, 4, CHANNELS, 7, 5)
    same_as_alone(layer, [x.movedim(0, dim)], (dim,))


def test_examples_batched_within_clients():
    x, weight = drawn(CLIENTS, 5, 2, CHANNELS, 4, 4), drawn(CLIENTS, CHANNELS)

    def layer(x, weight):
        return F.max_pool2d(F.group_norm(x, 2, weight), 2)

    def each(x, weight):
        return vmap(grad(loss(layer), 1), (0, None))(x, weight)

    with Folding():
        together = vmap(each)(x, weight)
    for client in range(CLIENTS):
        for example in range(5):
            expected = grad(loss(layer), 1)(x[client, example], weight[client])
            torch.testing.assert_close(together[client, example], expected, rtol=1e-12, atol=1e-12)


def test_a_layer_is_one_operation_for_all():
    def layers(x, kernel, weight, bias):
        maps = F.conv2d(x, kernel, padding=1)
        return F.max_pool2d(F.group_norm(maps, 2, weight, bias).relu(), 2)

    args = drawn(CLIENTS, 2, 1, 8, 8), drawn(CLIENTS, 6, 1, 3, 3), drawn(CLIENTS, 6), drawn(CLIENTS, 6)
    with Folding():
        graph = make_fx(vmap(grad(loss(layers), (1, 2, 3))))(*args).graph
    graph.eliminate_dead_code()
    names = [node.target._opname for node in graph.nodes if hasattr(node.target, "_opname")]
    for name in ("native_group_norm", "max_pool2d_with_indices"):
        assert names.count(name) == names.count(f"{name}_backward") == 1
    norm = next(node for node in graph.nodes if node.name == "native_group_norm")
    assert norm.meta["val"][0].shape == (2, CLIENTS * 6, 8, 8)
    before_pooling = names[: names.index("max_pool2d_with_indices")]
    assert "clone" not in before_pooling


@pytest.mark.parametrize("layer", [torch.nn.GroupNorm(2, CHANNELS).double(), torch.nn.MaxPool2d(2)])
def test_no_gradient_of_a_gradient(layer):
    def slope(x):
        return grad(loss(layer))(x).square().sum()

    with Folding(), pytest.raises(NotImplementedError):
        vmap(grad(slope))(drawn(CLIENTS, 4, CHANNELS, 4, 4))


def test_groups_that_do_not_divide_the_channels_are_refused_as_ever():
    with Folding(), pytest.raises(RuntimeError, match="divisible"):
        vmap(lambda x: F.group_norm(x, 4))(drawn(CLIENTS, 4, CHANNELS, 4, 4))


@pytest.mark.parametrize(
    ("layer", "shape", "error"),
    [
        (lambda x: F.group_norm(x, 4), (1, 4), ValueError),  # one value a group
        (lambda x: F.group_norm(x, -2), (2, 4), RuntimeError),
        (lambda x: F.max_pool2d(x, 2.0), (2, 4, 4, 4), TypeError),
        (lambda x: F.max_pool2d(x, 0), (2, 4, 4, 4), RuntimeError),
    ],
)
def test_what_pytorch_refuses_is_refused(layer, shape, error):
    for context in (contextlib.nullcontext(), Folding()):
        with context, pytest.raises(error):
            vmap(layer)(drawn(CLIENTS, *shape))


def test_precision_is_autocasts():
    x, norm = drawn(CLIENTS, 4, CHANNELS, 4, 4).bfloat16(), torch.nn.GroupNorm(2, CHANNELS)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.stack([norm(own) for own in x])
        with Folding():
            together = vmap(norm)(x)
    assert together.dtype == expected.dtype
    torch.testing.assert_close(together, expected)
