"""Layers that run once for the images of many clients, whose channels are folded together.

The rules of `torch.vmap` for group norm and max pooling are right and slow. They move clients to the front,
which copies what convolutions leave side by side. They also split group norm's scale, shift and gradient
into some thirty operations each. Here a client's channels are a group among all channels, as convolutions
leave them, and each of these layers is one operation for all clients.
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

_aten = torch.ops.aten


class Folding(TorchFunctionMode):
    """A context in which `torch.vmap` folds clients into the channels of group norm and max pooling.

    These layers offer what training needs: values and gradients. The gradient of a gradient and forward-mode
    derivatives raise `NotImplementedError`.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch, or the one that replaces it."""
        replacement: Callable[..., Any] = _REPLACEMENTS.get(func, func)
        return replacement(*args, **(kwargs or {}))


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    device = input.device.type
    invalid = input.ndim < 2 or num_groups < 1 or input.shape[1] % num_groups
    casts = device != "cpu" and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if casts or invalid or input.numel() <= num_groups:  # PyTorch itself casts, or raises
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
    """Return batch norm, whose rule under vmap needs inputs as precise as its statistics."""
    known = next((tensor for tensor in (running_mean, weight) if tensor is not None), input)
    precise = input.to(known.dtype)
    normalised: Tensor = F.batch_norm(precise, running_mean, running_var, weight, *others, **named)
    return normalised.to(input.dtype)


_REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
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
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        return *_apply(_GroupNormBackward, gradient, *ctx.saved_tensors, ctx.width, ctx.wanted), None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *args: Any) -> Any:
        return _folded(_GroupNorm, info, dims, args, (1, 0, 0), (1, 1, 1))


class _GroupNormBackward(Function):
    """``(gradient, x, means, 1 / deviations, weight, channels in a group, wanted) -> gradients``."""

    @staticmethod
    def forward(
        gradient: Tensor,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        weight: Tensor | None,
        width: int,
        wanted: list[bool],
    ) -> tuple[Tensor | None, ...]:
        n, channels, *rest = x.shape
        gradient, x, size = gradient.contiguous(), x.contiguous(), math.prod(rest)
        gradients = _aten.native_group_norm_backward(
            gradient, x, mean, scale, weight, n, channels, size, channels // width, wanted
        )
        return tuple(gradients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *args: Any) -> Any:
        return _folded(_GroupNormBackward, info, dims, args, (1, 1, 1, 1, 0), (1, 0, 0))


class _MaxPool(Function):
    """``(x [n, channels, h, w], kernel, stride, padding, dilation, ceil) -> maxima, their indices``."""

    @staticmethod
    def forward(x: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        pooled: tuple[Tensor, Tensor] = _aten.max_pool2d_with_indices(x, *options)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, *ctx.options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, indices = ctx.saved_tensors
        return *_apply(_MaxPoolBackward, gradient, x, indices, *ctx.options), *(None for _ in ctx.options)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *args: Any) -> Any:
        return _folded(_MaxPool, info, dims, args, (1,), (1, 1))


class _MaxPoolBackward(Function):
    """``(gradient, x, indices, kernel, stride, padding, dilation, ceil) -> gradient of x``."""

    @staticmethod
    def forward(gradient: Tensor, x: Tensor, indices: Tensor, *options: Any) -> tuple[Tensor]:
        return (_aten.max_pool2d_with_indices_backward(gradient, x, *options, indices),)

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
    """Call a function once for all clients, folded.

    Args:
        function: The function.
        info: What `torch.vmap` says.
        dims: The clients' dimension in each argument; None for an argument that all share.
        args: The arguments; the first ones are tensors, or None.
        ins: For each of those, the dimension of one client's tensor into which clients are folded.
        outs: For each result, the dimension into which they are folded.
    """
    clients = info.batch_size

    def fold(tensor: Tensor | None, dim: int | None, at: int) -> Tensor | None:
        if tensor is None:
            return None
        if dim is None:
            shared = tensor.unsqueeze(at)
            tensor = shared.expand(*shared.shape[:at], clients, *tensor.shape[at:])
        else:
            tensor = tensor.movedim(dim, at)
        return tensor.flatten(at, at + 1)

    tensors = map(fold, args, dims, ins)
    results = _apply(function, *tensors, *args[len(ins) :])
    apart = [
        None if result is None else result.unflatten(at, (clients, -1))
        for result, at in zip(results, outs, strict=True)
    ]
    return tuple(apart), tuple(None if part is None else at for part, at in zip(apart, outs, strict=True))
