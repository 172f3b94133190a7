"""Small models for small images."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge
from torch import nn

from genfl.models.base import Stack
from genfl.models.layers import Channels, Norm, Projection, Units, at_least, norm_layer, projection_head


class CNN(Stack):
    """Two blocks of convolution, norm, 2×2 pooling and ReLU, then a hidden layer if asked, and a linear head.

    Args:
        shape: The shape of an input, (channels, height, width). Height and width are at least 4.
        classes: Number of classes.
        width: Channels after the first block, a multiple of 4. The second block has twice as many.
        norm: Kind of normalisation. Group norm has 4 groups.
        hidden: Units of a hidden layer with ReLU before the head. With 0, there is none.
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        width: Channels = 32,
        norm: Norm = "group",
        hidden: Annotated[int, Ge(0)] = 0,
        projection: Projection = 0,
    ) -> None:
        channels, height, breadth = at_least(shape, channels=1, height=4, width=4)
        features = 2 * width * (height // 4) * (breadth // 4)
        body = nn.Sequential(*_block(channels, width, norm), *_block(width, 2 * width, norm), nn.Flatten())
        if hidden:
            body.extend([nn.Linear(features, hidden), nn.ReLU()])
        head, features = projection_head(hidden or features, projection)
        super().__init__(body, nn.Linear(features, classes), head)


class MLP(Stack):
    """A perceptron with one hidden layer.

    Args:
        shape: The shape of an input.
        classes: Number of classes.
        width: Hidden units.
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, width: Units = 128, projection: Projection = 0
    ) -> None:
        body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU())
        head, features = projection_head(width, projection)
        super().__init__(body, nn.Linear(features, classes), head)


def _block(channels: int, width: int, norm: Norm) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 3, padding=1),
        norm_layer(norm, width),
        nn.MaxPool2d(2),
        nn.ReLU(),  # after max-pooling: same result as before it, on a quarter of the elements
    ]
