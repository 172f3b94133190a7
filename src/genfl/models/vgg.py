"""VGG for small images, and for ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from annotated_types import Ge, Lt
from torch import Tensor, nn

from genfl.models.base import Classifier, Stack
from genfl.models.layers import Norm, Projection, Units, at_least, he_normal, norm_layer, projection_head

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


class VGG19ImageNet(Classifier):
    """VGG-19 as torchvision has it: sixteen convolutions, 7×7 pooling, and three dense layers with dropout.

    It has 143,667,240 parameters for ImageNet, and 139,611,210 for ten classes. GPT-FL's VGG-19 is this one
    (arXiv 2306.02210). The outputs of the second dense layer are the features.

    The names in the state dict are torchvision's, except that ``features`` is called ``body``. Files of
    torchvision's vgg19, and of its vgg19_bn with ``norm: batch``, are loaded as they are.

    Source: Simonyan and Zisserman, ICLR 2015 (arXiv 1409.1556), Table 1, column E.

    Args:
        shape: The shape of an input, (channels, height, width). Height and width are at least 32. The paper's
            are 224.
        classes: Number of classes.
        norm: Kind of normalisation. The paper has none. Group norm has 32 groups.
        hidden: Units of the two hidden dense layers. The paper's are 4096.
        dropout: Share of the hidden layers' outputs that training zeroes, in [0, 1).
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.
    """

    prefixes: ClassVar[Mapping[str, str]] = {"features.": "body."}
    classifier: nn.Sequential

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        norm: Norm = "none",
        hidden: Units = 4096,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.5,
        projection: Projection = 0,
    ) -> None:
        super().__init__()
        channels, _, _ = at_least(shape, channels=1, height=32, width=32)
        layers: list[nn.Module] = []
        for width, stages in _STAGES.items():
            for depth in stages:
                for _ in range(depth):
                    layers.append(nn.Conv2d(channels, width, 3, padding=1))
                    if norm != "none":  # torchvision's names count the layers, so none may be a stand-in
                        layers.append(norm_layer(norm, width, groups=32))
                    layers.append(nn.ReLU())
                    channels = width
                layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.projection, features = projection_head(hidden, projection)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 7 * 7, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(features, classes),
        )
        he_normal(self)
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)

    def features(self, x: Tensor) -> Tensor:
        """Return the second dense layer's outputs [n, hidden], or their projection."""
        hidden: Tensor = self.avgpool(self.body(x)).flatten(1)
        for layer in list(self.classifier)[:-1]:
            hidden = layer(hidden)
        z: Tensor = self.projection(hidden)
        return z

    def head(self, z: Tensor) -> Tensor:
        """Return the logits, [n, classes]."""
        logits: Tensor = self.classifier[-1](z)
        return logits
