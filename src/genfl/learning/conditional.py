"""A class-conditional generator, for methods that learn it from models instead of data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genfl.rng import Key
from genfl.trees import Tree


@dataclass(frozen=True)
class ConditionalGenerator:
    """A network ``G(y, ε)`` with one hidden layer, as pure functions of its parameters.

    It has no batch norm, so a sample does not depend on the other samples of its batch.

    Attributes:
        shape: The shape of a sample.
        classes: The number of classes.
        noise: Length of the noise ε.
        width: Hidden units.
    """

    shape: tuple[int, ...]
    classes: int
    noise: int
    width: int = 256

    def init(self, key: Key) -> Tree:
        """Return random parameters with standard deviation ``√(2 / inputs)``, and zero biases."""
        rng = key.torch()

        def layer(inputs: int, outputs: int) -> Tree:
            weight = torch.randn(outputs, inputs, generator=rng) * math.sqrt(2 / inputs)
            return {"weight": weight, "bias": torch.zeros(outputs)}

        hidden = layer(self.classes + self.noise, self.width)
        return {"hidden": hidden, "output": layer(self.width, math.prod(self.shape))}

    def __call__(self, params: Tree, y: Tensor, eps: Tensor) -> Tensor:
        """Return samples [n, *shape] of classes y [n] from noise [n, noise]. Their range is unlimited."""
        one_hot = (y[:, None] == torch.arange(self.classes)).to(eps)  # F.one_hot has no batching rule
        condition = torch.cat([one_hot, eps], 1)
        hidden = F.relu(F.linear(condition, **params["hidden"]))
        samples: Tensor = F.linear(hidden, **params["output"]).unflatten(1, self.shape)
        return samples

    def bounded(self, samples: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return the network's samples in the range of inputs, through a sigmoid.

        Args:
            samples: What the network gave, [n, *shape].
            low: The smallest values, in a shape that broadcasts with a sample.
            high: The largest values.
        """
        return low + (high - low) * samples.sigmoid()

    def conditions(self, shares: Tensor, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the inputs of the network: classes ``y ~ shares`` [size], and ``ε ~ N(0, I)`` [size, noise].

        Args:
            shares: The frequency of each class, [classes]; non-negative, and not necessarily normalised.
            size: The number of samples.
            rng: The random stream.
        """
        y = torch.multinomial(shares, size, replacement=True, generator=rng)
        return y, torch.randn(size, self.noise, generator=rng)


CONVOLUTIONAL = 16
"""Pixels of an image from which the convolutional generator is used by default."""


@dataclass(frozen=True)
class ConvolutionalGenerator(ConditionalGenerator):
    """A network ``G(y, ε)`` of convolutions for images [channels, height, width], as in FedFTG's code.

    Two dense layers map noise and class to maps of a quarter of the height and width, `width` maps each. Two
    stages double height and width by repeating pixels. Each has a 3×3 convolution, batch norm and leaky
    ReLU (0.2). A last 3×3 convolution, tanh, and batch norm without parameters follow: each channel of a
    batch has mean 0 and standard deviation 1, as inputs that are normalised by the data's have. All batch
    norms use the statistics of the batch.

    Source: Zhang et al., CVPR 2022 (arXiv 2203.09249), the authors' code. Their width is 64.

    Attributes:
        width: Maps of each dense layer, and of the last hidden layer.
    """

    width: int = 64

    @staticmethod
    def fits(shape: tuple[int, ...]) -> bool:
        """Return whether samples of a shape are images of at least 8×8 pixels, in multiples of 4."""
        return len(shape) == 3 and min(shape[1:]) >= 8 and not any(size % 4 for size in shape[1:])

    def init(self, key: Key) -> Tree:
        """Return random parameters: PyTorch's default, uniform within ``±1 / √inputs``, biases included."""
        rng = key.torch()

        def layer(outputs: int, *inputs: int) -> Tree:
            bound = 1 / math.sqrt(math.prod(inputs))
            shapes = {"weight": (outputs, *inputs), "bias": (outputs,)}
            return {
                name: (2 * torch.rand(shape, generator=rng) - 1) * bound for name, shape in shapes.items()
            }

        def norm(maps: int) -> Tree:
            return {"weight": torch.ones(maps), "bias": torch.zeros(maps)}

        channels, height, breadth = self.shape
        w, dense = self.width, self.width * (height // 4) * (breadth // 4)
        return {
            "noise": layer(dense, self.noise),
            "label": layer(dense, self.classes),
            "norm0": norm(2 * w),
            "conv1": layer(2 * w, 2 * w, 3, 3),
            "norm1": norm(2 * w),
            "conv2": layer(w, 2 * w, 3, 3),
            "norm2": norm(w),
            "conv3": layer(channels, w, 3, 3),
        }

    def __call__(self, params: Tree, y: Tensor, eps: Tensor) -> Tensor:
        """Return samples [n, *shape] of classes y [n] from noise [n, noise], of mean 0 and deviation 1."""
        one_hot = F.one_hot(y, self.classes).to(eps)
        _, height, breadth = self.shape
        maps = torch.cat([F.linear(eps, **params["noise"]), F.linear(one_hot, **params["label"])], 1)
        maps = _batch_norm(maps.unflatten(1, (-1, height // 4, breadth // 4)), **params["norm0"])
        for stage in ("1", "2"):
            maps = F.conv2d(F.interpolate(maps, scale_factor=2), **params[f"conv{stage}"], padding=1)
            maps = F.leaky_relu(_batch_norm(maps, **params[f"norm{stage}"]), 0.2)
        return _batch_norm(F.conv2d(maps, **params["conv3"], padding=1).tanh())

    def bounded(self, samples: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return the network's samples in the range of inputs.

        Their mean becomes the middle of the range, and their standard deviation a quarter of its length. For
        CIFAR-10, whose inputs are normalised, both are nearly the network's own. What is outside is cut off.
        """
        return torch.clamp((low + high) / 2 + (high - low) / 4 * samples, low, high)


def _batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return batch norm of maps [n, channels, h, w] by the statistics of the batch."""
    return F.batch_norm(x, None, None, weight, bias, training=True)


def noise_similarity(samples: Tensor, eps: Tensor) -> Tensor:
    """Return ``exp(−mean_ij d(s_i, s_j) d(ε_i, ε_j))``: 1 if the noise changes nothing, else less.

    The distance of samples is the mean absolute difference over coordinates. The distance of noise is the
    mean squared difference. As means, they do not vanish or saturate with the number of coordinates.

    Source: Zhu et al., ICML 2021 (arXiv 2105.10056), the authors' code; Zhang et al., CVPR 2022 (arXiv
    2203.09249), L_dis.

    Args:
        samples: Generated samples, [n, ...].
        eps: The noise that they were generated from, [n, noise].
    """
    flat = samples.flatten(1)
    apart = torch.cdist(flat, flat, p=1) / flat.shape[1]
    noise = (eps[:, None] - eps).square().mean(2)
    return torch.exp(-(apart * noise).mean())
