"""Recorded tensor operations: what is left out, moved or kept gives the same bits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genfl.engines.graphs import aten, graph_of


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


def test_operations_that_do_nothing_are_left_out_but_for_those_whose_result_is_changed():
    def useless(x):
        return [x.view(x.shape).expand(x.shape) * 2 + x.permute(0, 1)]

    def changing(x):
        y = x + 1
        y.view(y.shape).unsqueeze_(0)
        y.view(y.shape).mul_(2)
        return [y]

    x = torch.randn(3, 4)
    assert Tensor.view not in targets(graph_of(useless, x))
    assert Tensor.view in targets(graph_of(changing, x))
    for function in (useless, changing):
        assert torch.equal(graph_of(function, x)(x)[0], function(x)[0])


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


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x.relu(), 2),
        lambda x: F.max_pool2d(x.relu(), 3, stride=1),
        lambda x: F.max_pool2d(x.relu(), 3, stride=2, padding=1, ceil_mode=True),
        lambda x: F.max_pool2d(x.relu().view(1, 12, 8, 8), 2).relu().view(3, -1),
        lambda x: F.max_pool2d(F.max_pool2d(x.relu(), 2).relu(), 2),
        lambda x: F.max_pool2d(x.permute(0, 1, 3, 2).relu(), 2),
        lambda x: F.max_pool2d(x.repeat(1, 4, 4, 4).relu(), 2),
        lambda x: F.max_pool2d(x.repeat(1, 6, 4, 4).relu(), 3, 2),
    ],
)
def test_the_greatest_is_taken_before_its_relu(pool):
    x = blunt(3, 4, 8, 8)
    graph = graph_of(slopes(pool), x)
    for mine, expected in zip(graph(x), slopes(pool)(x), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)
    nodes = list(graph.__self__.graph.nodes)
    sizes = {node.meta["val"].numel() for node in nodes if node.target in (torch.relu, Tensor.relu)}
    masks = {node.meta["val"].numel() for node in nodes if node.target is aten.threshold_backward.default}
    assert x.numel() not in sizes | masks


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x.relu(), 2) + x.relu()[..., ::2, ::2],
        lambda x: (lambda y: F.max_pool2d(y, 2) + y[..., ::2, ::2])(x.relu()),
        lambda x: (lambda y: F.max_pool2d(y, 2) * y.sum())(x.relu()),
        lambda x: F.max_pool2d(x.relu() + 1, 2),
        lambda x: (lambda y: y[0] + y[1])(F.max_pool2d(x.relu(), 2, return_indices=True)),
        lambda x: F.max_pool2d(x.sigmoid(), 2).relu(),
    ],
)
def test_a_relu_that_others_need_stays(pool):
    x = blunt(3, 4, 8, 8)
    graph = graph_of(slopes(pool), x)
    for mine, expected in zip(graph(x), slopes(pool)(x), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)


def test_a_forward_pass_alone_is_pooled_first_too():
    x = blunt(3, 16, 8, 8)
    graph = graph_of(lambda x: [F.max_pool2d(x.relu(), 2)], x)
    torch.testing.assert_close(graph(x)[0], F.max_pool2d(x.relu(), 2), rtol=0, atol=0, equal_nan=True)


def test_constants_are_computed_once_but_for_those_that_are_changed_or_handed_on():
    def kept(x, places):
        return [torch.zeros_like(x).scatter(1, places, 1.0) * torch.scalar_tensor(3.0) + torch.ones_like(x)]

    def changed(x, places):
        return [torch.zeros_like(x).scatter_(1, places, x)]

    def changed_behind_a_view(x, places):
        zeros = torch.zeros_like(x)
        zeros.view(-1)[:2].add_(1)
        return [zeros + x]

    def handed_on(x, places):
        return [torch.zeros_like(x), torch.ones_like(x).t()]

    x, places = torch.randn(3, 4), torch.tensor([[1], [0], [3]])
    creating = {aten.zeros_like.default, aten.ones_like.default, aten.scalar_tensor.default}
    assert not creating & set(targets(graph_of(kept, x, places)))
    for function in (changed, changed_behind_a_view, handed_on):
        assert creating & set(targets(graph_of(function, x, places)))
    for function in (kept, changed, changed_behind_a_view, handed_on):
        graph = graph_of(function, x, places)
        for _ in range(2):
            for mine, expected in zip(graph(x, places), function(x, places), strict=True):
                assert torch.equal(mine, expected)
            graph(x, places)[0].add_(1)  # what a caller does with a result is its own affair
