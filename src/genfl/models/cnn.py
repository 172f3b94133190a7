"""Small models for small images."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from genfl.models.base import Classifier

Norm = Literal["group", "batch", "none"]


class CNN(Classifier):
    """Two blocks of convolution, norm, ReLU and 2×2 pooling, then a linear head.

    Args:
        shape: An input's (channels, height, width); height and width divisible by 4.
        classes: Number of classes.
        width: Channels after the first block; the second has twice as many.
        norm: Kind of normalisation; group norm (4 groups) suits non-IID clients, whose batch statistics
            differ.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: int = 32, norm: Norm = "group"
    ) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.body = nn.Sequential(
            *_block(channels, width, norm), *_block(width, 2 * width, norm), nn.Flatten()
        )
        self.classifier = nn.Linear(2 * width * (height // 4) * (breadth // 4), classes)

    def features(self, x: Tensor) -> Tensor:
        """Returns the flattened last feature map, [n, 2·width·(height/4)·(width/4)]."""
        z: Tensor = self.body(x)
        return z

    def head(self, z: Tensor) -> Tensor:
        """Returns the logits, [n, classes]."""
        logits: Tensor = self.classifier(z)
        return logits


class MLP(Classifier):
    """One hidden layer.

    Args:
        shape: An input's shape.
        classes: Number of classes.
        width: Hidden units.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU())
        self.classifier = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Returns the hidden layer, [n, width]."""
        z: Tensor = self.body(x)
        return z

    def head(self, z: Tensor) -> Tensor:
        """Returns the logits, [n, classes]."""
        logits: Tensor = self.classifier(z)
        return logits


def _block(channels: int, width: int, norm: Norm) -> list[nn.Module]:
    layer: dict[Norm, list[nn.Module]] = {
        "group": [nn.GroupNorm(4, width)],
        "batch": [nn.BatchNorm2d(width)],
        "none": [],
    }
    return [nn.Conv2d(channels, width, 3, padding=1), *layer[norm], nn.ReLU(), nn.MaxPool2d(2)]
