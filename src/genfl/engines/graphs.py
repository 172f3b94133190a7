"""A function's tensor operations as a graph, without those that do nothing: the same bits in less time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

FEWEST_CHANNELS = 16
"""Channels from which on pooling is faster with channels last, the change of order included."""

_BOUND = {
    *(aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.relu, aten.where, aten.ne),
    *(aten.sum, aten.mm, aten.bmm, aten.convolution, aten.native_group_norm, aten._log_softmax),
    *(aten.clone, aten.gather, aten.scatter),
    *(aten.view, aten.expand, aten.permute, aten.transpose, aten.t, aten.squeeze, aten.unsqueeze),
}
"""Operations that torch itself has a binding of, by which a call takes 2 µs less than over their schema."""

_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.permute.default}


def graph_of(function: Callable[..., Sequence[Tensor]], *tensors: Tensor) -> Callable[..., Sequence[Tensor]]:
    """Returns the tensor operations of a function, for tensors of the form of these; without autograd.

    Raises:
        Exception: What the function does cannot be recorded.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    module = make_fx(function)(*tensors)
    for node in list(module.graph.nodes):
        if node.target is aten.detach.default or _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.max_pool2d_with_indices.default:
            _pool_with_channels_last(module.graph, node)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        node.target = _binding(node.target)
    module.recompile()
    run: Callable[..., Sequence[Tensor]] = module.forward
    return run


def _binding(target: Any) -> Any:
    """Returns torch's own binding of an operation, where there is one."""
    if not isinstance(target, torch._ops.OpOverload) or target.overloadpacket not in _BOUND:
        return target
    name = target.overloadpacket.__name__
    return getattr(torch, name, None) or getattr(Tensor, name)


def _does_nothing(node: Any) -> bool:
    """Returns whether a node's result is its input under another name, which nobody changes in place."""
    if node.target not in _RESHAPES:
        return False
    before, after = node.args[0].meta["val"], node.meta["val"]
    if (before.shape, before.stride(), before.dtype) != (after.shape, after.stride(), after.dtype):
        return False
    return not any(map(_changes_its_input, [*node.users, *node.args[0].users]))


def _changes_its_input(node: Any) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _pool_with_channels_last(graph: Any, node: Any) -> None:
    """Pools images in the order for which torch's CPU kernel uses vectors; the result is the same."""
    x = node.args[0]
    value = x.meta["val"]
    if value.device.type != "cpu" or value.ndim != 4 or value.shape[1] < FEWEST_CHANNELS:
        return
    if not value.is_contiguous() or any(user.target is not operator.getitem for user in node.users):
        return
    with graph.inserting_before(node):
        turned = graph.call_function(aten.clone.default, (x,), {"memory_format": torch.channels_last})
    node.args = (turned, *node.args[1:])
    for part in list(node.users):
        with graph.inserting_after(part):
            back = graph.call_function(
                aten.clone.default, (part,), {"memory_format": torch.contiguous_format}
            )
        back.meta = part.meta
        part.replace_all_uses_with(back, delete_user_cb=lambda user, own=back: user is not own)
