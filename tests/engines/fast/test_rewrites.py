"""Recorded tensor operations: what is left out, moved or kept gives the same bits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genfl.engines.fast.rewrites import graph_of

aten = torch.ops.aten


def targets(graph):
    return [node.target for node in graph.__self__.graph.nodes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_operations_called_by_torchs_own_bindings_give_the_same_bits(dtype):
    def many(x, y, places):
        z = x.view(6, 4).t().transpose(0, 1).unsqueeze(1).expand(6, 2, 4).permute(1, 0, 2)
        z = torch.bmm(z, torch.stack([y, y])) - torch.mm(x, y).neg()
        chosen = torch.where(places.ne(1), places, 0).unsqueeze(0).expand(2, 6, 1)
        picked = z.log_softmax(-1).gather(2, chosen).squeeze(2)
        return [
            picked.sum(1) / 3,
            torch.zeros_like(z).scatter(2, chosen, -1.0),
            torch.add(x, x, alpha=2).relu(),
        ]

    x, y = torch.randn(6, 4, dtype=dtype), torch.randn(4, 5, dtype=dtype)
    places = torch.randint(5, (6, 1))
    graph = graph_of(many, x, y, places)
    left = {str(target) for target in targets(graph) if isinstance(target, torch._ops.OpOverload)}
    assert left <= {"aten.stack.default"}
    assert all(map(torch.equal, graph(x, y, places), many(x, y, places)))


def test_operations_that_do_nothing_are_left_out():
    def useless(x):
        return [x.view(x.shape).expand(x.shape) * 2 + x.permute(0, 1)]

    x = torch.randn(3, 4)
    graph = graph_of(useless, x)
    assert Tensor.view not in targets(graph)
    assert torch.equal(graph(x)[0], useless(x)[0])


def test_what_is_changed_in_place_is_seen_wherever_it_was():
    def changing(x):
        y = x + 1
        part = y.view(-1)[:4]
        before = y.view(y.shape) * 1
        y.view(y.shape).unsqueeze_(0)
        y.view(y.shape).mul_(2)
        return [y, part.relu_(), before]

    x = torch.randn(3, 4)
    graph = graph_of(changing, x)
    assert Tensor.view in targets(graph)
    assert all(map(torch.equal, graph(x), changing(x)))


def test_inputs_that_are_one_tensor_need_not_be_later():
    x, y = torch.randn(3), torch.randn(3)
    graph = graph_of(lambda a, b: [a - b], x, x)
    assert torch.equal(graph(x, y)[0], x - y)


def slopes(function):
    """A function's values and the gradient of a sum of them, for inputs of its own."""

    def of(x):
        x = x.detach().requires_grad_()
        values = function(x)
        weights = torch.linspace(-1, 1, values.numel()).reshape(values.shape)
        return [values.detach(), *torch.autograd.grad((values * weights).sum(), [x])]

    return of


def blunt(*shape):
    """Images in which the greatest of many windows stands in several places, and may be zero or negative."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).mul(2).round()
    x[0, 0] = -1
    x[-1, -1, 0, 0] = torch.nan
    return x


def assert_the_same(graph, function, x):
    for mine, expected in zip(graph(x), function(x), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)


def sizes_before_pools(graph):
    """The shapes of what is pooled, and how many numbers each ReLU and each rectified slope has."""
    nodes = list(graph.__self__.graph.nodes)
    pools = [node for node in nodes if node.target is aten.max_pool2d_with_indices.default]
    pooled = [(relus_before(node.args[0]), form(node.args[0])) for node in pools]
    slopes = [node for node in nodes if node.target is aten.threshold_backward.default]
    return pooled, [node.meta["val"].numel() for node in slopes]


def relus_before(node):
    """Whether what is pooled is rectified."""
    while node.target in (
        aten.clone.default,
        torch.clone,
        aten.view.default,
        torch.Tensor.view,
        Tensor.permute,
    ):
        node = node.args[0]
    return node.target in (torch.relu, Tensor.relu)


def form(node):
    """The shape of what a node that has no shape noted turns."""
    while "val" not in node.meta:
        if node.target in (aten.view.default, Tensor.view):
            return tuple(node.args[1])
        node = node.args[0]
    return tuple(node.meta["val"].shape)


POOLED = {
    "2×2": lambda x: F.max_pool2d(x.relu(), 2),
    "overlapping": lambda x: F.max_pool2d(x.relu(), 3, stride=1),
    "padded": lambda x: F.max_pool2d(x.relu(), 3, stride=2, padding=1, ceil_mode=True),
    "reshaped": lambda x: F.max_pool2d(x.relu().view(1, 12, 8, 8), 2).view(3, -1),
    "turned": lambda x: F.max_pool2d(x.permute(0, 1, 3, 2).relu(), 2),
    "large": lambda x: F.max_pool2d(x.repeat(1, 4, 4, 4).relu(), 2),
    "large, overlapping": lambda x: F.max_pool2d(x.repeat(1, 6, 4, 4).relu(), 3, 2),
}


@pytest.mark.parametrize("name", POOLED)
def test_the_greatest_is_taken_before_its_relu(name):
    x = blunt(3, 4, 8, 8)
    graph = graph_of(slopes(POOLED[name]), x)
    assert_the_same(graph, slopes(POOLED[name]), x)
    ((rectified, _),), masks = sizes_before_pools(graph)
    assert not rectified
    assert masks == [POOLED[name](x).numel()]


def test_of_two_poolings_each_is_taken_before_its_relu():
    def twice(x):
        return F.max_pool2d((F.max_pool2d(x.relu(), 2) - 1).relu(), 2)

    x = blunt(3, 4, 8, 8)
    graph = graph_of(slopes(twice), x)
    assert_the_same(graph, slopes(twice), x)
    assert not any(rectified for rectified, _ in sizes_before_pools(graph)[0])


RECTIFIED_FIRST = {
    "another part": lambda x: (lambda y: F.max_pool2d(y, 2) + y[..., ::2, ::2])(x.relu()),
    "its sum": lambda x: (lambda y: F.max_pool2d(y, 2) * y.sum())(x.relu()),
    "twice": lambda x: (lambda y: F.max_pool2d(y, 2) + F.max_pool2d(y, 3, 2, 1))(x.relu()),
    "changed after": lambda x: F.max_pool2d(x.relu(), 2).add_(1),
    "turned round after": lambda x: F.max_pool2d(x.relu(), 2).neg_(),
    "input changed after": lambda x: (lambda y: F.max_pool2d(y.relu(), 2) + y.neg_()[..., ::2, ::2])(x * 1),
    "places": lambda x: (lambda y: y[0] + y[1])(F.max_pool2d(x.relu(), 2, return_indices=True)),
}


@pytest.mark.parametrize("name", RECTIFIED_FIRST)
def test_a_relu_that_others_need_or_what_is_changed_in_place_stays(name):
    x = blunt(3, 4, 8, 8)
    graph = graph_of(slopes(RECTIFIED_FIRST[name]), x)
    assert_the_same(graph, slopes(RECTIFIED_FIRST[name]), x)
    assert all(rectified for rectified, _ in sizes_before_pools(graph)[0])


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x.relu() + 1, 2),
        lambda x: F.max_pool2d(x.sigmoid(), 2).relu(),
        lambda x: F.max_pool2d((x * 1).relu_(), 2),
    ],
)
def test_what_is_no_relu_before_a_pooling_is_left_as_it_is(pool):
    x = blunt(3, 4, 8, 8)
    assert_the_same(graph_of(slopes(pool), x), slopes(pool), x)


def test_a_forward_pass_alone_is_pooled_first_too():
    x = blunt(3, 16, 8, 8)
    graph = graph_of(lambda x: [F.max_pool2d(x.relu(), 2)], x)
    assert_the_same(graph, lambda x: [F.max_pool2d(x.relu(), 2)], x)
    (((rectified, _),), _) = sizes_before_pools(graph)
    assert not rectified


@pytest.mark.parametrize(("side", "channels"), [(8, 16), (32, 8)])
def test_large_images_are_pooled_a_few_channels_at_a_time(side, channels):
    x = blunt(2, 16, side, side)
    graph = graph_of(slopes(lambda x: F.max_pool2d(x, 2)), x)
    assert_the_same(graph, slopes(lambda x: F.max_pool2d(x, 2)), x)
    (((_, shape),), _) = sizes_before_pools(graph)
    assert shape[1] == channels


def test_constants_are_computed_once_but_for_those_that_are_changed_or_handed_on():
    def kept(x, places):
        return [torch.zeros_like(x).scatter(1, places, 1.0) * torch.scalar_tensor(3.0) + torch.ones_like(x)]

    def changed(x, places):
        mean, var = torch.zeros_like(x[0]), torch.ones_like(x[0])
        return [F.batch_norm(x, mean, var, training=True), mean, var]

    def handed_on(x, places):
        return [torch.zeros_like(x), torch.ones_like(x).t()]

    x, places = torch.randn(3, 4), torch.tensor([[1], [0], [3]])
    creating = {aten.zeros_like.default, aten.ones_like.default, aten.scalar_tensor.default}
    assert not creating & set(targets(graph_of(kept, x, places)))
    for function in (changed, handed_on):
        assert creating & set(targets(graph_of(function, x, places)))
    for function in (kept, changed, handed_on):
        graph = graph_of(function, x, places)
        for _ in range(2):
            for mine, expected in zip(graph(x, places), function(x, places), strict=True):
                assert torch.equal(mine, expected)
            graph(x, places)[0].add_(1)  # what a caller does with a result is its own affair
