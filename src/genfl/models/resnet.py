"""Residual networks with torchvision's state-dict names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from genfl.models.base import Classifier
from genfl.models.layers import Norm, Projection, at_least, he_normal, norm_layer, projection_head

Stem = Literal["imagenet", "cifar"]
Shortcut = Literal["A", "B"]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, [n, inputs, h, w] to [n, width, h / stride, w / stride]."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, norm: partial[nn.Module], shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = norm(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = norm(width)
        self.downsample = _shortcut(inputs, width, stride, norm, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(shortcut(x) + convolutions(x))``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut. The last one outputs four times the width.

    The 3×3 convolution has the stride, as in torchvision. In the paper, the first one has it.
    """

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, norm: partial[nn.Module], shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = norm(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = norm(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = norm(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride, norm, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(shortcut(x) + convolutions(x))``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x))


class ResNet(Classifier):
    """A stem, stages of residual blocks, the average over positions, and a linear head.

    Every stage has twice the width of the stage before. All stages but the first halve height and width.

    Args:
        shape: The shape of an input, (channels, height, width).
        classes: Number of classes.
        block: Kind of block.
        depths: Number of blocks in each stage.
        width: Channels of the stem and of the first stage's convolutions.
        stem: ``imagenet`` is a 7×7 convolution and a 3×3 max pooling, each of stride 2. ``cifar`` is a 3×3
            convolution of stride 1.
        norm: Kind of normalisation.
        groups: Number of groups of group norm.
        shortcut: The shortcut of a block that changes the shape. A takes every second pixel and pads with
            channels of zeros. B is a 1×1 convolution.
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.

    Raises:
        ValueError: Height or width is less than the product of all strides.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        block: type[BasicBlock | Bottleneck],
        depths: Sequence[int],
        width: int = 64,
        *,
        stem: Stem,
        norm: Norm,
        groups: int = 32,
        shortcut: Shortcut = "B",
        projection: Projection = 0,
    ) -> None:
        super().__init__()
        large = stem == "imagenet"
        stride = (4 if large else 1) * 2 ** (len(depths) - 1)
        channels, _, _ = at_least(shape, channels=1, height=stride, width=stride)
        layer = partial(norm_layer, norm, groups=groups)
        self.conv1 = _conv(channels, width, 7, 2) if large else _conv(channels, width, 3)
        self.bn1 = layer(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        self.stages = [f"layer{stage + 1}" for stage in range(len(depths))]
        inputs = width
        for stage, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            blocks = []
            for number in range(depth):
                step = 2 if stage and not number else 1
                blocks.append(block(inputs, width << stage, step, layer, shortcut))
                inputs = (width << stage) * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.projection, features = projection_head(inputs, projection)
        self.fc = nn.Linear(features, classes)
        he_normal(self)

    def features(self, x: Tensor) -> Tensor:
        """Return the last maps, averaged over positions, [n, d], or their projection."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        z: Tensor = self.projection(x.mean((2, 3)))
        return z

    def head(self, z: Tensor) -> Tensor:
        """Return the logits, [n, classes]."""
        logits: Tensor = self.fc(z)
        return logits


def resnet18(
    shape: tuple[int, ...],
    classes: int,
    *,
    stem: Stem = "imagenet",
    norm: Norm = "batch",
    projection: Projection = 0,
) -> ResNet:
    """Return ResNet-18: 11,689,512 parameters for ImageNet, with torchvision's names.

    Source: He et al., CVPR 2016 (arXiv 1512.03385), Table 1.

    Args:
        shape: The shape of an input, (channels, height, width). Height and width are at least 32, or 8 with
            the CIFAR stem.
        classes: Number of classes.
        stem: ``imagenet`` is the stem of the paper. It divides height and width by 4; ``cifar`` keeps them.
        norm: Kind of normalisation. Group norm has 32 groups.
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.
    """
    return ResNet(shape, classes, BasicBlock, (2, 2, 2, 2), stem=stem, norm=norm, projection=projection)


def resnet50(
    shape: tuple[int, ...],
    classes: int,
    *,
    stem: Stem = "imagenet",
    norm: Norm = "batch",
    projection: Projection = 0,
) -> ResNet:
    """Return ResNet-50: 25,557,032 parameters for ImageNet.

    Source: see `resnet18`.

    Args:
        shape: The shape of an input; see `resnet18`.
        classes: Number of classes.
        stem: ``imagenet`` is the stem of the paper. It divides height and width by 4; ``cifar`` keeps them.
        norm: Kind of normalisation. Group norm has 32 groups.
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.
    """
    return ResNet(shape, classes, Bottleneck, (3, 4, 6, 3), stem=stem, norm=norm, projection=projection)


def resnet20(
    shape: tuple[int, ...],
    classes: int,
    *,
    norm: Norm = "batch",
    shortcut: Shortcut = "A",
    projection: Projection = 0,
) -> ResNet:
    """Return ResNet-20 for small images: 269,722 parameters for CIFAR-10.

    Source: He et al., CVPR 2016 (arXiv 1512.03385), Section 4.2 with n = 3.

    Args:
        shape: The shape of an input, (channels, height, width). Height and width are at least 4.
        classes: Number of classes.
        norm: Kind of normalisation. Group norm has 4 groups.
        shortcut: A is the paper's choice and has no parameters. B has 1×1 convolutions, 272,474 parameters in
            all.
        projection: Outputs of a projection head before the linear head, as MOON has; 0 for none.
    """
    return ResNet(
        shape,
        classes,
        BasicBlock,
        (3, 3, 3),
        16,
        stem="cifar",
        norm=norm,
        groups=4,
        shortcut=shortcut,
        projection=projection,
    )


class _Pad(nn.Module):
    """A layer that takes every second pixel and adds channels of zeros."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _shortcut(
    inputs: int, outputs: int, stride: int, norm: partial[nn.Module], shortcut: Shortcut
) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if shortcut == "A":
        return _Pad(stride, outputs - inputs)
    return nn.Sequential(_conv(inputs, outputs, 1, stride), norm(outputs))
