"""Noise that clients add themselves: each adds a share of it, before a secure sum adds up their uploads.

So the server never sees a sum without noise. A client turns its clipped upload into whole numbers, adds
discrete Gaussian noise to them, and uploads words of 32 bits. Source: Kairouz, Liu and Steinke, ICML 2021
(arXiv 2102.06387).

Deviations from the paper, all because words have 32 bits, where the paper's have 8 to 20:

* Uploads are not rotated. A number is never larger than the norm of its upload, so the norm bounds the sum.
* An upload that rounding makes too long is rounded toward zero instead of once more at random. Its
  probability is `TOO_LONG` at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genfl import trees
from genfl.errors import InputError
from genfl.privacy.dp.discrete import discrete_gaussian
from genfl.rng import Key, default_device
from genfl.trees import Tree

WORD_BITS = 32
"""The binary digits of a word. Sums are taken modulo 2^32."""

FINEST = 24
"""The norm of an upload is 2^24 units at most: the digits of single precision."""

TOO_LONG = 2.0**-64
"""The largest probability β that rounding at random makes an upload too long."""

RARE = 20
"""Sums stay in range up to so many standard deviations of their noise: all but 10^-86 of them."""

SURPLUS = 2.0**-40
"""How much larger the variance of noise is than a Gaussian's, which pays for the sum's shape."""

COARSE = 1.02
"""How much longer rounding may make an upload at most."""


class ClientShare(NamedTuple):
    """What a client draws before it trains, in the order of the numbers of its upload.

    Attributes:
        noise: Its share of the noise, int32 [n].
        dither: Uniform numbers in [0, 1), by which it rounds, [n].
    """

    noise: Tensor
    dither: Tensor


@dataclass(frozen=True)
class Words:
    """How the clients of a round turn uploads into words, and how much noise they add.

    A client adds noise of the variance that a sum needs, divided by the quorum. So the sum of any quorum of
    uploads has the noise that the guarantee counts on, and that of more uploads has more.

    Attributes:
        noise_multiplier: Standard deviation z of the noise on a sum of a quorum's uploads, divided by the
            norm of an upload, its count included; non-negative.
        cohort: The number of clients in a round.
        quorum: The fewest uploads of which there is a sum, from 2 to the size of the cohort.
        size: The number of numbers in an upload, positive.
        count: The size of a count's contribution, divided by the norm of the other numbers. None without a
            count.

    Raises:
        InputError: The quorum is out of range, or the words are too small.
    """

    noise_multiplier: float
    cohort: int
    quorum: int
    size: int
    count: float | None = None

    def __post_init__(self) -> None:
        if self.cohort < 2:
            raise InputError("noise: distributed needs 2 clients in a round; raise clients_per_round")
        if not 2 <= self.quorum <= self.cohort:
            raise InputError(
                f"quorum: {self.quorum}, but a round has {self.cohort} clients; give a number from 2 to"
                f" {self.cohort}"
            )
        if self.length < 1 or self.longest > (COARSE * self.length) ** 2 or not self._covers_shape():
            raise InputError(
                f"noise: distributed, but words of {WORD_BITS} bits are too small for {self.cohort} clients"
                f" and a noise multiplier of {self.noise_multiplier:.4g}; lower one of them, or use central"
            )

    @cached_property
    def length(self) -> int:
        """The norm of an upload, in units: the largest power of two that keeps sums in range; 0 for none."""
        return next((1 << bits for bits in range(FINEST, -1, -1) if self._fits(1 << bits)), 0)

    @property
    def longest(self) -> int:
        """The largest squared norm of a rounded upload without its count, in squared units."""
        return square_bound(self.length, self.size)

    @property
    def centred(self) -> int:
        """What a client adds to the count, or subtracts from it, in units; 0 without a count."""
        return self._centred(self.length)

    @property
    def variance(self) -> int:
        """The variance of a client's noise, in squared units."""
        return self._variance(self.length)

    def _centred(self, length: int) -> int:
        return 0 if self.count is None else math.floor(self.count * length)

    def _variance(self, length: int) -> int:
        sensitivity = square_bound(length, self.size) + self._centred(length) ** 2
        return math.ceil(self.noise_multiplier**2 * sensitivity / self.quorum * (1 + SURPLUS))

    def _fits(self, length: int) -> bool:
        """Return whether sums stay within a word if the norm has so many units."""
        most = max(math.sqrt(square_bound(length, self.size)), self._centred(length))
        noise = math.sqrt(self.cohort * self._variance(length))
        return self.cohort * most + RARE * noise < 2.0 ** (WORD_BITS - 1)

    def _covers_shape(self) -> bool:
        """Return whether `SURPLUS` covers the shape of a sum, which is not that of a discrete Gaussian."""
        if self.noise_multiplier == 0:
            return True
        numbers = self.size + (self.count is not None)
        return excess(self.variance, self.cohort) * numbers <= SURPLUS / (4 * self.noise_multiplier**2)

    def draw(self, key: Key) -> ClientShare:
        """Draw a client's noise, and what it rounds by.

        Args:
            key: The random stream, of this client, round and trial alone.
        """
        rng, numbers = key.numpy(), self.size + (self.count is not None)
        noise = np.zeros(numbers, np.int64)
        if self.variance:
            noise = discrete_gaussian(self.variance, numbers, rng)
        dither = rng.random(self.size, np.float32)
        device = default_device()
        words = noise.astype(np.int32)  # modulo 2^32
        return ClientShare(torch.from_numpy(words).to(device), torch.from_numpy(dither).to(device))

    def encode(self, upload: Tree, within: Tensor | None, norm: float | Tensor, share: ClientShare) -> Tensor:
        """Return the words that a client uploads, int32.

        Args:
            upload: The upload, no longer than the norm.
            within: Whether the norm left it whole: a boolean scalar. None without a count.
            norm: The norm.
            share: What the client drew.
        """
        numbers = torch.cat([leaf.flatten().double() for leaf in trees.leaves(upload)]) * self.length / norm
        rounded = (numbers + share.dither).floor().long()
        # Rounding at random can make a vector longer. Rounding toward zero cannot.
        too_long = rounded.square().sum() > self.longest
        rounded = torch.where(too_long, numbers.trunc().long(), rounded)
        if within is not None:
            count = torch.where(within, self.centred, -self.centred)
            rounded = torch.cat([rounded, count[None]])
        return (rounded + share.noise).to(torch.int32)

    def decode(self, total: Tensor, norm: float, like: Tree) -> tuple[Tree, Tensor | None]:
        """Return the sum of uploads, and the centred count of those that the norm left whole, float64.

        Args:
            total: The sum of the clients' words modulo 2^32, signed or unsigned.
            norm: The norm.
            like: A tree with the structure, shapes and dtypes of an upload.
        """
        numbers = total.view(torch.int32).double()
        leaves = trees.leaves(like)
        parts = (numbers[: self.size] * (norm / self.length)).split([leaf.numel() for leaf in leaves])
        sums = [part.view_as(leaf).to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        count = numbers[-1] / (2 * self.centred) if self.count is not None else None
        return trees.unflatten(like, sums), count


def square_bound(length: int, size: int) -> int:
    """Return the largest squared norm that a rounded vector may have; see the paper's Algorithm 1.

    It is L² + n/4 + (2 ln 1/β)^½ (L + n^½/2), with β = `TOO_LONG`.

    Args:
        length: The norm L of the vector.
        size: The number n of its entries.
    """
    deviation = math.sqrt(-2 * math.log(TOO_LONG)) * (length + math.sqrt(size) / 2)
    return length**2 + math.floor(size / 4 + deviation)


def excess(variance: int, uploads: int) -> float:
    """Return τ, by which a sum of discrete Gaussians differs from one: 10 Σ_k exp(−2π² σ² k / (k + 1)).

    The Rényi divergence of order α between two such sums of n numbers is α Δ² / (2 m σ²) + τ n at most, where
    Δ is the distance of their means, and m the number of summands (the paper's Proposition 14).

    Args:
        variance: The parameter σ² of each summand.
        uploads: The largest number of summands; k runs from 1 to one less.
    """
    k = np.arange(1, uploads)
    return 10 * float(np.exp(-2 * math.pi**2 * variance * (k / (k + 1))).sum())
