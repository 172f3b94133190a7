"""VGG for small images."""

from __future__ import annotations

from torch import Tensor, nn

from genfl.models.base import Stack
from genfl.models.layers import Norm, Projection, at_least, he_normal, norm_layer, projection_head

_STAGES = {64: [2], 128: [2], 256: [4], 512: [4, 4]}
"""Configuration E of the paper: for each width, the number of convolutions in each stage."""


class VGG19(Stack):
    """Sixteen 3×3 convolutions in five stages, each with 2×2 max pooling at its end, and a linear head.

    It has 20,040,522 parameters for CIFAR-10, including 11,008 of batch norm.

    Source: Simonyan and Zisserman, ICLR 2015 (arXiv 1409.1556), Table 1, column E.

    Deviations: the paper has no batch norm. The head is the usual one for CIFAR, a single linear layer on 512
    features. The paper's two hidden layers of 4096 units are for ImageNet. Larger images work as well,
    because maps larger than 1×1 are averaged.

    Args:
        shape: The shape of an input, (channels, height, width). Height and width are at least 32.
        classes: Number of classes.
        norm: Kind of normalisation. Group norm has 32 groups. The paper has none, which trains badly from
            scratch.
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, *, norm: Norm = "batch", projection: Projection = 0
    ) -> None:
        channels, _, _ = at_least(shape, channels=1, height=32, width=32)
        layers: list[nn.Module] = []
        for width, stages in _STAGES.items():
            for depth in stages:
                for _ in range(depth):
                    layers += [
                        nn.Conv2d(channels, width, 3, padding=1),
                        norm_layer(norm, width, groups=32),
                        nn.ReLU(),
                    ]
                    channels = width
                layers += [nn.MaxPool2d(2)]
        head, features = projection_head(channels, projection)
        super().__init__(nn.Sequential(*layers), nn.Linear(features, classes), head)
        he_normal(self)

    def features(self, x: Tensor) -> Tensor:
        """Return the last maps, averaged over positions, [n, 512], or their projection."""
        z: Tensor = self.projection(self.body(x).mean((2, 3)))
        return z
