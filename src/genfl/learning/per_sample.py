"""Gradients of every sample of a batch, in one backward pass.

Each sample gets its own copy of the weights: a view that takes no memory. Within `OwnWeights`, the layers of
PyTorch know such weights. They run once for the whole batch, and their backward pass leaves the gradient of
each copy. A model with other layers is differentiated by `torch.vmap`, or sample by sample.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from genfl import trees
from genfl.learning.local import Context, Penalty, differentiate, no_penalty
from genfl.learning.task import Aux, Batch, Task
from genfl.rng import Key, Sampler
from genfl.trees import Tree

_without_vmap: weakref.WeakSet[Penalty] = weakref.WeakSet()
"""The penalties of models that `torch.vmap` cannot run."""


class PerSampleGradient(Protocol):
    """The gradients of every sample of a batch."""

    def __call__(self, params: Tree, buffers: Tree, batch: Batch, context: Context, penalty: Penalty) -> Tree:
        """Return a tree like `params` with a first dimension more: the gradient of each sample's objective.

        Args:
            params: The point at which to differentiate.
            buffers: The running statistics there.
            batch: Examples ``x`` and ``y``.
            context: The values that hooks may read, the task among them.
            penalty: What hooks add to the loss. A sample's objective is that of a batch of one.
        """
        ...


def by_layers(params: Tree, buffers: Tree, batch: Batch, context: Context, penalty: Penalty) -> Tree:
    """Return the gradients of all samples in one backward pass; see `PerSampleGradient`.

    Raises:
        ValueError: There is a penalty: it may do with the weights what no layer does.
    """
    if penalty is not no_penalty:
        raise ValueError("the gradients of a penalty are not known layer by layer")
    count = len(batch["y"])
    own = trees.map(lambda p: p.detach().expand(count, *p.shape), params)

    def loss_of(own: Tree) -> Tensor:
        with OwnWeights():
            return context.task.loss(own, buffers, batch, context.key)[0] * count

    return _gradient(loss_of, own)


def by_vmap(params: Tree, buffers: Tree, batch: Batch, context: Context, penalty: Penalty) -> Tree:
    """Return the gradients of all samples by `torch.vmap`; see `PerSampleGradient`."""

    def gradient(sample: Batch) -> Tree:
        return torch.func.grad(_objective_of_one(buffers, sample, context, penalty))(params)

    # What a penalty draws is the same for all samples of a batch.
    gradients: Tree = torch.vmap(gradient, randomness="same")(batch)
    return gradients


def by_vmap_or_loop(params: Tree, buffers: Tree, batch: Batch, context: Context, penalty: Penalty) -> Tree:
    """Return the gradients of all samples by `by_vmap`, or by `by_loop` if the model does not allow that.

    A penalty for which `by_vmap` failed once, with its model, is differentiated by the loop from then on.
    """
    if penalty not in _without_vmap:
        try:
            return by_vmap(params, buffers, batch, context, penalty)
        except Exception:  # a model that looks at values can raise anything; the loop raises what is wrong
            gradients = by_loop(params, buffers, batch, context, penalty)
        if penalty is not no_penalty:
            _without_vmap.add(penalty)
        return gradients
    return by_loop(params, buffers, batch, context, penalty)


def by_loop(params: Tree, buffers: Tree, batch: Batch, context: Context, penalty: Penalty) -> Tree:
    """Return the gradients of all samples, one after the other; see `PerSampleGradient`."""
    rows = []
    for number in range(len(batch["y"])):
        sample = {name: value[number] for name, value in batch.items()}
        rows.append(trees.leaves(_gradient(_objective_of_one(buffers, sample, context, penalty), params)))
    stacked = (torch.stack(leaf) for leaf in zip(*rows, strict=True))
    return trees.map(lambda _: next(stacked), params)


def _objective_of_one(
    buffers: Tree, sample: Batch, context: Context, penalty: Penalty
) -> Callable[[Tree], Tensor]:
    batch = {name: value.unsqueeze(0) for name, value in sample.items()}

    def objective(params: Tree) -> Tensor:
        loss, aux = context.task.loss(params, buffers, batch, context.key)
        return loss + penalty(params, aux, batch, context)

    return objective


def _gradient(objective: Callable[[Tree], Tensor], params: Tree) -> Tree:
    """Return the gradient of a scalar, also where clients are batched."""
    return differentiate(lambda at: (objective(at), Aux({})), params)[0]


def per_sample_gradient(task: Task) -> PerSampleGradient:
    """Return the fastest way to the gradients of every sample that equals the loop over samples.

    It is chosen by trying: each way is compared with the loop on three samples, at weights none of which is
    zero. It holds for the loss without penalties.

    Args:
        task: The task. Its loss must be a mean over samples that do not know of each other.
    """
    form, weights = task.shapes(), task.init(Key(0))
    generator = Key(0).torch()
    weights["params"] = trees.map(
        lambda leaf: leaf + 0.01 * torch.randn(leaf.shape, generator=generator), weights["params"]
    )
    x = torch.linspace(0, 1, 3 * math.prod(form.input)).reshape(3, *form.input)
    batch = {"x": x, "y": torch.arange(3) % form.classes}
    args = (weights["params"], weights["buffers"], batch, Context(task, {}, {}, {}, _NoDropout()), no_penalty)
    expected = by_loop(*args)
    ways: tuple[PerSampleGradient, ...] = (by_layers, by_vmap)
    for way in ways:
        try:
            gradients = way(*args)
        except Exception:  # a layer that the way does not know can raise anything
            continue
        if all(map(_close, trees.leaves(gradients), trees.leaves(expected))):
            return way
    return by_loop


class _NoDropout:
    """A stream of ones: the same dropout for a batch as for its samples one by one."""

    def fold(self, *address: int | str) -> _NoDropout:
        return self

    def draw(self, sampler: Sampler, *inputs: Tensor) -> Any:
        return torch.ones_like(Key(0).draw(sampler, *inputs))


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5)


class OwnWeights(TorchFunctionMode):
    """A context in which layers take weights of every sample: [n, *shape] in place of [*shape].

    The weights of all samples must be equal. Their gradients are of each sample apart. The gradient of a
    gradient is not supported.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch, or the one that replaces it."""
        replacement: Callable[..., Any] = _REPLACEMENTS.get(func, func)
        return replacement(*args, **(kwargs or {}))


class _Linear(Function):
    """``(x [n, ..., inputs], weight [n, outputs, inputs], bias [n, outputs]) -> [n, ..., outputs]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight[0], None if bias is None else bias[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        n, outputs, inputs = weight.shape
        flat, rows = gradient.reshape(n, -1, outputs), x.reshape(n, -1, inputs)
        return gradient @ weight[0], flat.mT @ rows, flat.sum(1) if ctx.has_bias else None


class _Conv(Function):
    """A convolution of images [n, inputs, h, w] with kernels [n, outputs, inputs / groups, h, w]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        return F.conv2d(x, weight[0], None if bias is None else bias[0], stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, *ctx.options = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.ops.aten.convolution_backward(
                gradient, x, weight[0], None, stride, padding, dilation, False, [0, 0], groups,
                [True, False, False],
            )[0]  # fmt: skip
        n, outputs = weight.shape[:2]
        patches = _patches(x, weight.shape[3:], stride, padding, dilation).reshape(
            n, groups, -1, math.prod(gradient.shape[2:])
        )
        by_group = gradient.reshape(n, groups, outputs // groups, -1)
        of_weight = (by_group @ patches.mT).reshape(weight.shape)
        of_bias = gradient.sum((2, 3)) if ctx.has_bias else None
        return of_x, of_weight, of_bias, None, None, None, None


def _patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return what a kernel sees at each place, as a view: [n, inputs, kernel's h, w, output's h, w].

    Copying it is faster than `torch.nn.functional.unfold`, which moves single numbers.
    """
    h, w = (d * (size - 1) + 1 for d, size in zip(dilation, kernel, strict=True))
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    windows = padded.unfold(2, h, stride[0]).unfold(3, w, stride[1])[..., :: dilation[0], :: dilation[1]]
    return windows.permute(0, 1, 4, 5, 2, 3)


class _GroupNorm(Function):
    """``(x [n, channels, ...], weight [n, channels], bias [n, channels], groups, eps) -> normalised x``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, ...]:
        n, channels, *rest = x.shape
        normalised: tuple[Tensor, ...] = torch.native_group_norm(
            x.contiguous(), weight[0], bias[0], n, channels, math.prod(rest), groups, eps
        )
        return normalised

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.groups, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        n, channels, *rest = x.shape
        gradient, x, size = gradient.contiguous(), x.contiguous(), math.prod(rest)
        of_x = torch.ops.aten.native_group_norm_backward(
            gradient, x, mean, scale, weight[0], n, channels, size, ctx.groups, [True, False, False]
        )[0]
        rows = gradient.reshape(n * channels, size)
        of_bias = rows.sum(1).view(n, channels)
        products = torch.bmm(rows.unsqueeze(1), x.reshape(n * channels, size, 1)).view(n, channels)
        width = channels // ctx.groups  # x̂ = (x - mean) · scale
        mean, scale = (value.repeat_interleave(width, 1) for value in (mean, scale))
        return of_x, (products - mean * of_bias) * scale, of_bias, None, None


class _Scale(Function):
    """``(x [n, ..., *shape], weight [n, *shape], bias [n, *shape]) -> x · weight + bias``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        scaled = x * weight[0]
        return scaled if bias is None else scaled + bias[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors

        def folded(value: Tensor) -> Tensor:
            return value.sum_to_size(len(x), *(1 for _ in range(x.ndim - weight.ndim)), *weight.shape[1:])

        of_weight = folded(gradient * x).reshape(weight.shape)
        return (
            gradient * weight[0],
            of_weight,
            folded(gradient).reshape(weight.shape) if ctx.has_bias else None,
        )


class _Embedding(Function):
    """``(tokens [n, ...], weight [n, vocabulary, size], padding or -1) -> [n, ..., size]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, weight: Tensor, padding: int) -> Tensor:
        return F.embedding(tokens, weight[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tokens, weight, ctx.padding = inputs
        ctx.shape = weight.shape
        ctx.save_for_backward(tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        n, _, size = ctx.shape
        flat = tokens.reshape(n, -1, 1).expand(-1, -1, size)
        rows = gradient.reshape(n, -1, size)
        if ctx.padding >= 0:
            rows = rows * (flat != ctx.padding)
        return None, gradient.new_zeros(ctx.shape).scatter_add(1, flat, rows), None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    result: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


def _pair(value: int | Sequence[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if weight.ndim == 4:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    dilation = _pair(dilation)
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[3:], strict=True)]
        if padding == "same" and any(span % 2 for span in spans):
            raise NotImplementedError("padding that differs between the sides")
        padding = [span // 2 for span in spans] if padding == "same" else 0
    result: Tensor = _Conv.apply(x, weight, bias, _pair(stride), _pair(padding), dilation, groups)  # type: ignore[no-untyped-call]
    return result


def _conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if weight.ndim == 3:
        return F.conv1d(x, weight, bias, stride, padding, dilation, groups)

    def along(value: Any, across: int) -> Any:
        return value if isinstance(value, str) else [across, value if isinstance(value, int) else value[0]]

    flat = _conv2d(
        x.unsqueeze(2),
        weight.unsqueeze(3),
        bias,
        along(stride, 1),
        along(padding, 0),
        along(dilation, 1),
        groups,
    )
    return flat.squeeze(2)


def _scaled(normalised: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return normalised features [n, ..., channels], scaled and shifted."""
    if weight is None:
        return normalised
    result: Tensor = _Scale.apply(normalised, weight, bias)  # type: ignore[no-untyped-call]
    return result


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    if weight is None or weight.ndim == 1:
        return F.group_norm(x, groups, weight, bias, eps)
    result: tuple[Tensor, ...] = _GroupNorm.apply(x, weight, bias, groups, eps)  # type: ignore[no-untyped-call]
    return result[0]


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if weight is None or weight.ndim == len(shape):
        return F.layer_norm(x, shape, weight, bias, eps)
    return _scaled(F.layer_norm(x, shape, eps=eps), weight, bias)


def _embedding(
    tokens: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if weight.ndim == 2:
        return F.embedding(tokens, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if max_norm is not None or scale_grad_by_freq:
        raise NotImplementedError("embeddings that depend on other samples")
    padding = -1 if padding_idx is None else padding_idx % weight.shape[1]
    result: Tensor = _Embedding.apply(tokens, weight, padding)  # type: ignore[no-untyped-call]
    return result


def _recurrent(cell: Callable[..., tuple[Tensor, ...]], states: int) -> Callable[..., tuple[Tensor, ...]]:
    """Return a recurrent layer of PyTorch, unrolled over time, from its cell.

    Args:
        cell: ``(inputs' part of the gates, hidden part, states) -> states``, the output first.
        states: How many states the cell has.
    """

    def run(
        x: Tensor,
        initial: Any,
        weights: Sequence[Tensor],
        has_biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        if not batch_first or (dropout and train) or not has_biases:
            raise NotImplementedError("recurrent layers with dropout, without biases or with time first")
        starts = [initial] if isinstance(initial, Tensor) else list(initial)
        directions, last = 2 if bidirectional else 1, []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                number = layer * directions + direction
                of_input, of_hidden, bias_input, bias_hidden = weights[4 * number : 4 * number + 4]
                from_input = _linear(x, of_input, bias_input)
                state = tuple(start[number] for start in starts)
                steps = range(x.shape[1])
                hidden = []
                for step in reversed(steps) if direction else steps:
                    from_hidden = _linear(state[0], of_hidden, bias_hidden)
                    state = cell(from_input[:, step], from_hidden, *state)
                    hidden.append(state[0])
                outputs.append(torch.stack(hidden[::-1] if direction else hidden, 1))
                last.append(state)
            x = torch.cat(outputs, -1)
        return x, *(torch.stack([state[part] for state in last]) for part in range(states))

    return run


def _lstm_cell(from_input: Tensor, from_hidden: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru_cell(from_input: Tensor, from_hidden: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    (r, z, n), (r_hidden, z_hidden, n_hidden) = from_input.chunk(3, -1), from_hidden.chunk(3, -1)
    update = (z + z_hidden).sigmoid()
    new = (n + (r + r_hidden).sigmoid() * n_hidden).tanh()
    return ((1 - update) * new + update * hidden,)


_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.conv1d: _conv1d,
    F.conv2d: _conv2d,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.embedding: _embedding,
    torch._VF.lstm: _recurrent(_lstm_cell, 2),
    torch._VF.gru: _recurrent(_gru_cell, 1),
}
