"""Properties of a classifier that are found by running it: shapes, linearity, randomness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

InputRange = tuple[tuple[float, ...], tuple[float, ...]]
"""The smallest values, and the largest values, of each channel of an input."""


class MissingPart(Exception):
    """A method needs a part that the task's model does not offer. The message names the part."""


class TaskShapes(NamedTuple):
    """The shapes of a classification problem.

    Attributes:
        input: Shape of one input.
        features: How many numbers the head sees.
        classes: How many classes there are.
        differentiable: Whether gradients reach inputs, which they do not where these are token ids.
        input_range: The smallest and the largest value of inputs, for each channel; None if the data set's
            format does not say so.
    """

    input: tuple[int, ...]
    features: int
    classes: int
    differentiable: bool = True
    input_range: InputRange | None = None

    def learnable_input(self) -> tuple[int, ...]:
        """Return the shape of one input, for methods that learn inputs.

        Raises:
            MissingPart: No gradients reach inputs.
        """
        if not self.differentiable:
            raise MissingPart("inputs that gradients reach")
        return self.input


def draws_globally(training: nn.Module, shape: Sequence[int]) -> bool:
    """Return whether a forward pass draws from torch's global generator, as dropout in an LSTM does.

    Args:
        training: A copy of the model in training mode; its buffers may change.
        shape: The shape of one input.
    """
    before = torch.get_rng_state()
    with torch.no_grad():
        training(torch.zeros(2, *shape))
    return not torch.equal(before, torch.get_rng_state())


def inspect_classifier(
    evaluation: nn.Module, head: nn.Module, shape: Sequence[int]
) -> tuple[TaskShapes, bool]:
    """Return the shapes of a classifier, and whether its head is linear (or affine).

    Averaging models averages their heads' outputs only if heads are linear.

    Args:
        evaluation: Maps inputs [n, ...] to ``(features [n, d], logits [n, classes])``, in evaluation mode.
        head: Maps features to logits.
        shape: The shape of one input.
    """
    with torch.no_grad():
        features, logits = evaluation(torch.zeros(1, *shape))
        # rows so far from the origin that a curved head shows
        z = 30 * features.new_tensor(range(32 * features.shape[1])).sin().reshape(2, 16, -1)
        together, apart = head(z[0] + z[1]), head(z[0]) + head(z[1]) - head(0 * z[0])
        linear = torch.allclose(together, apart, atol=1e-4 * (1 + together.abs().max().item()))
    with torch.enable_grad():
        differentiable = evaluation(torch.zeros(1, *shape, requires_grad=True))[1].requires_grad
    return TaskShapes(tuple(shape), features.shape[1], logits.shape[1], differentiable), linear
