"""Layers on the images of many clients at once, whose channels are folded together.

`torch.vmap` has rules of its own for group norm and max pooling, which are right and slow: they move clients
to the front, which copies what convolutions leave beside each other, and take group norm's scale, shift
and gradient apart into some thirty operations each. Here a client's channels are a group among all channels,
as convolutions leave them, and each of these layers is one operation for all clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class Folding(TorchFunctionMode):
    """Within this context `torch.vmap` folds clients into the channels of group norm and max pooling.

    Only what training needs can be had of them, values and gradients: the gradient of a gradient and
    forward-mode derivatives raise `NotImplementedError`.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls a function of PyTorch, or what stands for it."""
        instead: Callable[..., Any] = _INSTEAD.get(func, func)
        return instead(*args, **(kwargs or {}))


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    kind, odd = input.device.type, input.ndim < 2 or num_groups < 1 or input.shape[1] % num_groups
    casts = kind != "cpu" and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if casts or odd or input.numel() <= num_groups:  # PyTorch itself casts, or refuses
        return F.group_norm(input, num_groups, weight, bias, eps)
    normalised: Tensor = _apply(_GroupNorm, input, weight, bias, input.shape[1] // num_groups, eps)[0]
    return normalised


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **others: Any,
) -> Tensor:
    sizes = (kernel_size, kernel_size if stride is None else stride, padding, dilation)
    if input.ndim != 4 or not all(isinstance(size, int | list | tuple) for size in sizes):
        whole: Tensor = F.max_pool2d(input, *sizes, ceil_mode, **others)
        return whole
    pairs = [[size, size] if isinstance(size, int) else list(size) for size in sizes]
    pooled: Tensor = _apply(_MaxPool, input, *pairs, ceil_mode)[0]
    return pooled


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    *others: Any,
    **named: Any,
) -> Tensor:
    """Batch norm, whose rule under vmap wants inputs as precise as statistics (PyTorch itself does not)."""
    known = next((tensor for tensor in (running_mean, weight) if tensor is not None), input)
    precise = input.to(known.dtype)
    normalised: Tensor = F.batch_norm(precise, running_mean, running_var, weight, *others, **named)
    return normalised.to(input.dtype)


_INSTEAD: dict[Any, Callable[..., Tensor]] = {
    F.group_norm: _group_norm,
    F.max_pool2d: _max_pool2d,
    F.batch_norm: _batch_norm,
}


class _GroupNorm(Function):
    """``(x, weight, bias, channels in a group, eps) -> normalised, means, 1 / deviations``."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, width: int, eps: float
    ) -> tuple[Tensor, ...]:
        n, channels, *rest = x.shape
        x, size = x.contiguous(), math.prod(rest)
        return torch.native_group_norm(x, weight, bias, n, channels, size, channels // width, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.width, _ = inputs
        ctx.wanted = [True, weight is not None, bias is not None]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *output[1:], weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        return *_apply(_GroupNormBackward, slope, *ctx.saved_tensors, ctx.width, ctx.wanted), None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *args: Any) -> Any:
        return _folded(_GroupNorm, info, dims, args, (1, 0, 0), (1, 1, 1))


class _GroupNormBackward(Function):
    """``(slope, x, means, 1 / deviations, weight, channels in a group, wanted) -> slopes``."""

    @staticmethod
    def forward(
        slope: Tensor,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        weight: Tensor | None,
        width: int,
        wanted: list[bool],
    ) -> tuple[Tensor | None, ...]:
        n, channels, *rest = x.shape
        slope, x, size = slope.contiguous(), x.contiguous(), math.prod(rest)
        slopes = aten.native_group_norm_backward(
            slope, x, mean, scale, weight, n, channels, size, channels // width, wanted
        )
        return tuple(slopes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *args: Any) -> Any:
        return _folded(_GroupNormBackward, info, dims, args, (1, 1, 1, 1, 0), (1, 0, 0))


class _MaxPool(Function):
    """``(x [n, channels, h, w], kernel, stride, padding, dilation, ceil) -> greatest, their places``."""

    @staticmethod
    def forward(x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        pooled: tuple[Tensor, Tensor] = aten.max_pool2d_with_indices(x, *options)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, *ctx.options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, places = ctx.saved_tensors
        return *_apply(_MaxPoolBackward, slope, x, places, *ctx.options), *(None for _ in ctx.options)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *args: Any) -> Any:
        return _folded(_MaxPool, info, dims, args, (1,), (1, 1))


class _MaxPoolBackward(Function):
    """``(slope, x, places, kernel, stride, padding, dilation, ceil) -> slope of x``."""

    @staticmethod
    def forward(slope: Tensor, x: Tensor, places: Tensor, *options: Any) -> tuple[Tensor]:
        return (aten.max_pool2d_with_indices_backward(slope, x, *options, places),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *args: Any) -> Any:
        return _folded(_MaxPoolBackward, info, dims, args, (1, 1, 1), (1,))


def _apply(function: type[Function], *args: Any) -> tuple[Any, ...]:
    results: tuple[Any, ...] = function.apply(*args)
    return results


def _folded(
    function: type[Function],
    info: Any,
    dims: tuple[int | None, ...],
    args: Sequence[Any],
    ins: Sequence[int],
    outs: Sequence[int],
) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """Calls a function once for all clients, folded.

    Args:
        function: The function.
        info: What `torch.vmap` says.
        dims: In which dimension of each argument the clients are; None for an argument all share.
        args: The arguments; the first ones are tensors, or None.
        ins: The dimension of each of those, in one client, that clients are folded into.
        outs: The dimension of each result that they are in.
    """
    clients = info.batch_size

    def beside(own: Tensor | None, dim: int | None, at: int) -> Tensor | None:
        if own is None:
            return None
        if dim is None:
            shared = own.unsqueeze(at)
            own = shared.expand(*shared.shape[:at], clients, *own.shape[at:])
        else:
            own = own.movedim(dim, at)
        return own.flatten(at, at + 1)

    tensors = map(beside, args, dims, ins)
    results = _apply(function, *tensors, *args[len(ins) :])
    apart = [
        None if own is None else own.unflatten(at, (clients, -1))
        for own, at in zip(results, outs, strict=True)
    ]
    return tuple(apart), tuple(None if own is None else at for own, at in zip(apart, outs, strict=True))
