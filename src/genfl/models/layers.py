"""Parts that several models share: norm layers, a check of input shapes, initial weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

Norm = Literal["group", "batch", "none"]
"""Kind of normalisation. Group norm suits non-IID clients, whose batch statistics differ."""

Units = Annotated[int, Ge(1)]
Channels = Annotated[int, Ge(4), MultipleOf(4)]
Projection = Annotated[int, Ge(0)]
"""Outputs of a projection head; 0 for none. See `projection_head`."""


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of inputs [n, channels, ...] that also trains on a single value per channel.

    A single value (one sample, maps of 1×1) has no variance, and PyTorch raises an error for it. This layer
    normalises it by the running statistics, and leaves them unchanged.

    It does not count its batches. The counter exists in the state dict, as in PyTorch, but stays zero. It is
    not part of the weights, and `torch.func.grad` does not allow the side effect of writing to it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input, [n, channels, ...]. Training also updates the running statistics."""
        mean, var = self.running_mean, self.running_var
        momentum = self.momentum or 0.0
        spread = self.training and x.numel() > x.shape[1]
        return F.batch_norm(x, mean, var, self.weight, self.bias, spread, momentum, self.eps)


def accept_single_values(model: nn.Module) -> None:
    """Make the norm layers of a model train on a single value per channel, as `BatchNorm` does.

    A client with one sample gives norm layers after a flat layer a single value, for which PyTorch raises an
    error. Batch norm then uses its running statistics, and leaves them unchanged. Without running statistics,
    and in group norm, the value is its own mean, so that its normalised value is 0.

    Args:
        model: Any module, with norm layers of PyTorch or of a library that derives from them. They stay as
            they are otherwise.
    """
    for module in model.modules():
        if isinstance(module, _SINGLE) and not isinstance(module, BatchNorm):
            kind: Any = type(module)
            module.__class__ = _accepting(kind)


_SINGLE = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


@functools.cache
def _accepting(kind: type[Any]) -> type[Any]:
    """Return the class of a norm layer that also takes a single value per channel, or per group."""

    class Accepting(kind):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            channels = self.num_groups if isinstance(self, nn.GroupNorm) else self.num_features
            if x.numel() != channels:
                normalised: Tensor = super().forward(x)
            elif getattr(self, "running_mean", None) is None:  # two equal values have the same mean
                normalised = super().forward(torch.cat([x, x]))[:1]
            else:
                training: bool = self.training  # type: ignore[has-type]
                self.training = False
                try:
                    normalised = super().forward(x)
                finally:
                    self.training = training
            return normalised

    Accepting.__name__, Accepting.__qualname__ = kind.__name__, kind.__qualname__
    return Accepting


def norm_layer(norm: Norm | Literal["instance"], channels: int, groups: int = 4) -> nn.Module:
    """Return a norm layer for inputs [n, channels, ...].

    Args:
        norm: Its kind. Instance norm is group norm with one group per channel, as in dataset condensation.
        channels: Number of channels, a multiple of `groups`.
        groups: Number of groups of group norm.
    """
    match norm:
        case "group":
            return nn.GroupNorm(groups, channels)
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "batch":
            return BatchNorm(channels)
        case "none":
            return nn.Identity()


def projection_head(features: int, outputs: Projection) -> tuple[nn.Module, int]:
    """Return a projection head, and how many numbers it gives the linear head.

    It is an MLP with one hidden layer of ReLU units, as many as there are features. Its output becomes the
    model's features, so that contrastive losses and the linear head both see it.

    Source: Li et al., CVPR 2021 (arXiv 2103.16257), Section 3.2. The number of hidden units is from the
    authors' code. Their number of outputs is 256.

    Args:
        features: The number of inputs.
        outputs: The number of outputs. With 0, there is no projection head.
    """
    if not outputs:
        return nn.Identity(), features
    hidden = nn.Linear(features, features)
    return nn.Sequential(hidden, nn.ReLU(), nn.Linear(features, outputs)), outputs


def at_least(shape: Sequence[int], **smallest: int) -> tuple[int, ...]:
    """Return the shape of one input after a check of its sizes.

    Args:
        shape: The shape.
        smallest: The name of each dimension, and its smallest size.

    Raises:
        ValueError: The number of dimensions differs, or one of them is too small.
    """
    least = tuple(smallest.values())
    if len(shape) != len(least) or any(n < m for n, m in zip(shape, least, strict=True)):
        raise ValueError(
            f"the model takes inputs of ({', '.join(smallest)}), at least {least}, not {tuple(shape)}"
        )
    return tuple(shape)


def he_normal(model: nn.Module) -> None:
    """Draw the weights of every convolution from N(0, 2 / fan-out), and set its bias to zero.

    Source: He et al., ICCV 2015 (arXiv 1502.01852), Equation 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
