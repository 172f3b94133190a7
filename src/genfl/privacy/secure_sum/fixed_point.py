"""Fixed-point numbers: reals as words that a secure sum adds up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genfl.privacy.secure_sum.primitives import SecureSumError

_CHUNK = 2**15
"""Values that are encoded at a time."""


class SumRange(NamedTuple):
    """Which numbers a secure sum carries. All of its parties know it.

    Attributes:
        limit: The largest absolute value of an entry. Larger ones are refused, never clipped.
        precision: The largest step of encoded numbers.
    """

    limit: float
    precision: float


@dataclass(frozen=True)
class FixedPoint:
    """Numbers of a known range as words of 32 or 64 bits, for a sum that cannot wrap.

    The numbers are multiples of `step`: as fine as the words allow for sums of so many clients.

    Attributes:
        limit: The largest absolute value that a client may add, positive. All clients know it. Larger values
            are refused, never clipped.
        clients: The most summands, at least 1.
        bits: Bits of a word, 32 or 64.

    Raises:
        ValueError: A number is out of range.
    """

    limit: float
    clients: int
    bits: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.limit < math.inf:
            raise ValueError(f"the limit must be positive and finite, not {self.limit}")
        if not 1 <= self.clients < 2**30:
            raise ValueError(f"clients must be 1 to 2^30 - 1, not {self.clients}")
        if self.bits not in (32, 64):
            raise ValueError(f"words have 32 or 64 bits, not {self.bits}")
        if not -900 <= self.fraction_bits <= 900:
            raise ValueError(f"the limit must be between 1e-240 and 1e240, not {self.limit}")

    @classmethod
    def fitting(cls, limit: float, clients: int, precision: float) -> FixedPoint:
        """Return the numbers with the shortest words whose step is at most `precision`.

        Raises:
            ValueError: Words of 64 bits do not do, or a number is out of range.
        """
        for bits in (32, 64):
            numbers = cls(limit, clients, bits)
            if numbers.step <= precision:
                return numbers
        raise ValueError(
            f"words of 64 bits have steps of {numbers.step:.3g} for {clients} clients and values up to"
            f" {limit:.3g}; a precision of {precision:.3g} needs a lower limit"
        )

    @cached_property
    def fraction_bits(self) -> int:
        """Bits after the binary point; negative if the step is above 1."""
        largest = int((2 ** (self.bits - 1) - 1) // self.clients)
        guess: int = largest.bit_length() - math.frexp(self.limit)[1]
        # rounding up must not leave the range either
        return guess if math.ceil(math.ldexp(self.limit, guess)) <= largest else guess - 1

    @property
    def step(self) -> float:
        """The distance of neighbouring numbers."""
        return math.ldexp(1.0, -self.fraction_bits)

    def error_bound(self, summands: int, stochastic: bool = False) -> float:
        """Return the largest difference of a decoded sum and the exact one, without float64's own rounding.

        Args:
            summands: How many clients the sum is of.
            stochastic: Whether they rounded at random. Then the sum is right on average, with a standard
                deviation of at most half a step times the square root of `summands`.
        """
        return summands * self.step * (1 if stochastic else 0.5)

    def encode(
        self,
        values: NDArray[np.floating],
        random: np.random.Generator | None = None,
        out: NDArray[np.unsignedinteger] | None = None,
    ) -> NDArray[np.unsignedinteger]:
        """Return the words of a client's values.

        Args:
            values: Floats of up to 64 bits, one-dimensional.
            random: Rounds each value up or down at random, so that it is right on average. None rounds to the
                nearest number.
            out: Where the words are put; None for a new array.

        Raises:
            SecureSumError: ``range``: a value is not finite, or beyond the limit.
        """
        if out is None:
            out = np.empty(values.size, f"uint{self.bits}")
        words = out.view(f"int{self.bits}")
        scale = math.ldexp(1.0, self.fraction_bits)
        for start in range(0, values.size, _CHUNK):  # so that all steps of a chunk are in a processor's cache
            chunk = values[start : start + _CHUNK].astype(np.float64)
            if not np.abs(chunk).max() <= self.limit:  # nor is NaN
                wrong = chunk[np.argmin(np.abs(chunk) <= self.limit)]
                raise SecureSumError(
                    "range", f"a value of {wrong:.3g} is beyond the limit of {self.limit:.3g}"
                )
            chunk *= scale  # a power of two: exact
            if random is None:
                np.rint(chunk, out=chunk)
            else:
                whole = np.floor(chunk)
                chunk = whole + (random.random(chunk.size) < chunk - whole)
            words[start : start + _CHUNK] = chunk
        return out

    def decode(self, total: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
        """Return the sum of fixed-point numbers.

        Args:
            total: The sum of words that `encode` returned, modulo their size.
        """
        return total.view(f"int{self.bits}").astype(np.float64) * self.step
