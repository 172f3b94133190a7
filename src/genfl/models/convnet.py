"""The ConvNet of dataset condensation."""

from __future__ import annotations

from typing import Literal

from torch import nn

from genfl.models.base import Stack
from genfl.models.layers import Channels, Norm, Projection, Units, at_least, norm_layer, projection_head


class ConvNet(Stack):
    """Blocks of 3×3 convolution, norm, ReLU and 2×2 average pooling, then a linear head.

    It has 320,010 parameters for CIFAR-10.

    Source: Zhao et al., ICLR 2021 (arXiv 2006.05929); also the model of DynaFed (Pi et al.,
    CVPR 2023, arXiv 2211.10878) and one of GPT-FL (Zhang et al., 2023, arXiv 2306.02210).

    Deviation: the original code pads images of 28×28 to 32×32. This model does not pad.

    Args:
        shape: The shape of an input, (channels, height, width). Height and width are at least ``2 ** depth``.
        classes: Number of classes.
        width: Channels of every block, a multiple of 4.
        depth: Number of blocks.
        norm: Kind of normalisation. The papers use instance norm. Group norm has 4 groups.
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        width: Channels = 128,
        depth: Units = 3,
        norm: Literal[Norm, "instance"] = "instance",
        projection: Projection = 0,
    ) -> None:
        channels, height, breadth = at_least(shape, channels=1, height=2**depth, width=2**depth)
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [
                nn.Conv2d(width if block else channels, width, 3, padding=1),
                norm_layer(norm, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        body = nn.Sequential(*layers, nn.Flatten())
        head, features = projection_head(width * (height >> depth) * (breadth >> depth), projection)
        super().__init__(body, nn.Linear(features, classes), head)
