"""The tensor operations of a function as a graph, rewritten to give the same bits in less time."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten

FEWEST_CHANNELS = 16
"""Channels from which pooling is faster with channels last, the conversion included."""

LARGE = 1024
"""Pixels of an image from which converting eight channels at a time is faster than converting all."""

_BOUND = {
    *(_aten.add, _aten.sub, _aten.mul, _aten.div, _aten.neg, _aten.relu, _aten.where, _aten.ne),
    *(_aten.sum, _aten.mm, _aten.bmm, _aten.convolution, _aten.native_group_norm, _aten._log_softmax),
    *(_aten.clone, _aten.gather, _aten.scatter),
    *(_aten.view, _aten.expand, _aten.permute, _aten.transpose, _aten.t, _aten.squeeze, _aten.unsqueeze),
}
"""Operations with a binding of torch, by which a call takes 2 µs less than through their schema."""

_RESHAPES = {_aten.view.default, _aten._unsafe_view.default, _aten.expand.default, _aten.permute.default}

_LIKE = {_aten.zeros_like.default, _aten.ones_like.default}
"""Operations that read no more of an input than its shape, strides and dtype."""

_READERS = {_aten.scatter.value, _aten.where.self, _aten.mul.Tensor, _aten.add.Tensor, _aten.div.Tensor}
"""Operations that neither change an input nor return a view of it; those that occur in steps."""

_POOL_BACKWARD = _aten.max_pool2d_with_indices_backward.default


def graph_of(function: Callable[..., Sequence[Tensor]], *tensors: Tensor) -> Callable[..., Sequence[Tensor]]:
    """Return the tensor operations of a function, without autograd.

    Args:
        function: Takes tensors and returns tensors.
        *tensors: Examples of them; the operations hold for tensors of these shapes, strides and dtypes.

    Raises:
        Exception: What the function does cannot be recorded.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    # Tracing notes shapes on fake tensors. Of its own, it sets up a mode for these at every operation.
    with tracing(TracingContext(FakeTensorMode())):
        # Two inputs may be one tensor now and different ones later; tracing tells tensors by their identity.
        module = make_fx(function)(*(tensor.detach() for tensor in tensors))
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is _aten.detach.default or _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()
    changes_in_place = any(map(_changes_in_place, graph.nodes))
    for node in list(graph.nodes):
        if node.target is _aten.max_pool2d_with_indices.default:
            if not changes_in_place:
                _pool_before_relu(graph, node)
            _pool_with_channels_last(graph, node)
        elif _is_constant(node):
            _freeze(module, node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        node.target = _binding(node.target)
    module.recompile()
    run: Callable[..., Sequence[Tensor]] = module.forward
    return run


def _binding(target: Any) -> Any:
    """Return torch's own binding of an operation, where there is one."""
    if not isinstance(target, torch._ops.OpOverload) or target.overloadpacket not in _BOUND:
        return target
    name = target.overloadpacket.__name__
    return getattr(torch, name, None) or getattr(Tensor, name)


def _does_nothing(node: Any) -> bool:
    """Return whether a node only renames its input, and no operation changes either in place."""
    if node.target not in _RESHAPES or not _same_layout(node.args[0], node):
        return False
    return not any(map(_changes_in_place, [*node.users, *node.args[0].users]))


def _same_layout(*nodes: Any) -> bool:
    values = [node.meta["val"] for node in nodes]
    return len({(value.shape, value.stride(), value.dtype) for value in values}) == 1


def _changes_in_place(node: Any) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_constant(node: Any) -> bool:
    """Return whether a node gives the same tensor in every run, and no user might change it."""
    if node.target not in _LIKE and (node.target is not _aten.scalar_tensor.default or node.all_input_nodes):
        return False
    return all(user.target in _READERS for user in node.users)


def _freeze(module: Any, node: Any) -> None:
    """Compute a constant node once, and store its result with the graph."""
    if node.target in _LIKE:
        value = node.meta["val"]
        template = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        constant = node.target(template, *node.args[1:], **node.kwargs)
    else:
        constant = node.target(*node.args, **node.kwargs)
    name = f"constant_{node.name}"
    module.register_buffer(name, constant)
    with module.graph.inserting_before(node):
        kept = module.graph.get_attr(name)
    kept.meta = node.meta
    node.replace_all_uses_with(kept)


def _pool_before_relu(graph: Any, pool: Any) -> None:
    """Max-pool before ReLU: the same result on a quarter of the elements, for windows of 2 by 2.

    ReLU is monotonic, so the maximum of a window after ReLU is the ReLU of its maximum (a zero may have
    another sign). The gradient goes to the same element, the first maximum of the window. If that is
    positive, ReLU does not change which element is first. If it is not, the gradient is zero, before or after
    pooling. Elements are read later than without this rewrite, so nothing may be changed in place.
    """
    relu = _behind_reshapes(pool.args[0])
    if relu.target is not _aten.relu.default or not _same_layout(relu.args[0], relu):
        return
    maxima = [result for result in pool.users if result.args[1] == 0]
    gradients = [
        user for result in pool.users if result.args[1] == 1 for user in _users_behind_reshapes(result)
    ]
    rectified = [
        user
        for user in _users_behind_reshapes(relu)
        if user.target is _aten.threshold_backward.default
        and _behind_reshapes(user.args[0]) in gradients
        and _behind_reshapes(user.args[1]) is relu
        and user.args[2] == 0
    ]
    if len(maxima) != 1 or any(gradient.target is not _POOL_BACKWARD for gradient in gradients):
        return
    if {*_users_behind_reshapes(relu)} != {pool, *gradients, *rectified}:
        return  # others need the rectified numbers
    if {user for gradient in gradients for user in _users_behind_reshapes(gradient)} != {*rectified}:
        return  # others need the gradients that are not rectified
    with graph.inserting_after(maxima[0]):
        after = graph.call_function(_aten.relu.default, (maxima[0],))
    after.meta = maxima[0].meta
    maxima[0].replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)
    for gradient in gradients:
        before = gradient.args[0]
        with graph.inserting_before(gradient):
            now_rectified = graph.call_function(_aten.threshold_backward.default, (before, after, 0))
        now_rectified.meta = before.meta
        gradient.replace_input_with(before, now_rectified)
    for node in rectified:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    relu.replace_all_uses_with(relu.args[0])


def _behind_reshapes(node: Any) -> Any:
    while node.target in _RESHAPES:
        node = node.args[0]
    return node


def _users_behind_reshapes(node: Any) -> list[Any]:
    """Return what uses a node, or a reshape of it, or a reshape of that."""
    users = []
    for user in node.users:
        users += _users_behind_reshapes(user) if user.target in _RESHAPES else [user]
    return users


def _pool_with_channels_last(graph: Any, node: Any) -> None:
    """Pool images with channels last, for which torch's CPU kernel is vectorized; the result is the same."""
    x = node.args[0]
    value = x.meta["val"]
    if value.device.type != "cpu" or value.ndim != 4 or value.shape[1] < FEWEST_CHANNELS:
        return
    if not value.is_contiguous() or any(user.target is not operator.getitem for user in node.users):
        return
    images, channels, *size = value.shape
    in_parts = math.prod(size) >= LARGE and channels % 8 == 0
    with graph.inserting_before(node):
        if in_parts:
            x = graph.call_function(_aten.view.default, (x, [images * channels // 8, 8, *size]))
        turned = graph.call_function(_aten.clone.default, (x,), {"memory_format": torch.channels_last})
    node.args = (turned, *node.args[1:])
    for result in list(node.users):
        with graph.inserting_after(result):
            order = {"memory_format": torch.contiguous_format}
            back = graph.call_function(_aten.clone.default, (result,), order)
        last = back
        if in_parts:
            with graph.inserting_after(back):
                last = graph.call_function(_aten.view.default, (back, list(result.meta["val"].shape)))
        last.meta = result.meta
        result.replace_all_uses_with(last, delete_user_cb=lambda user, kept=back: user is not kept)
