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

    def conditions(self, shares: Tensor, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the inputs of the network: classes ``y ~ shares`` [size], and ``ε ~ N(0, I)`` [size, noise].

        Args:
            shares: The frequency of each class, [classes]; non-negative, and not necessarily normalised.
            size: The number of samples.
            rng: The random stream.
        """
        y = torch.multinomial(shares, size, replacement=True, generator=rng)
        return y, torch.randn(size, self.noise, generator=rng)


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
