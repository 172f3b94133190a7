"""Random changes of inputs during training, batched on tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Augment(NamedTuple):
    """Random changes of a batch of images.

    Attributes:
        noise: Standard deviation of Gaussian noise added to each pixel.
        shift: Largest shift in pixels, each way, with zeros moving in.
    """

    noise: float = 0.0
    shift: int = 0

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Returns a changed copy of images [n, channels, height, width]."""
        if self.shift:
            n, _, height, width = x.shape
            padded = F.pad(x, [self.shift] * 4)
            span = 2 * self.shift + 1
            down, right = torch.randint(span, (2, n, 1), generator=generator)
            rows = down + torch.arange(height)
            columns = right + torch.arange(width)
            x = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(
                -1, 1
            )
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return x
