"""Exact samples of the discrete Gaussian distribution, many at a time."""

from __future__ import annotations

import math
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

SURE_MARGIN = 2.0**-44
"""Floating point decides a comparison of numbers up to `EXACT_ABOVE` that differ by more than this."""

EXACT_ABOVE = 11.0
"""Exponential variates above this one are compared exactly: 64 digits of W give −ln W less precisely. One in
60,000 is above it."""

CANDIDATES = 2**16
"""Candidates that are drawn at a time."""


def discrete_gaussian(variance: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw whole numbers x with probabilities proportional to exp(−x² / (2σ²)).

    Source: Canonne, Kamath and Steinke, NeurIPS 2020 (arXiv 2004.00010), Algorithm 3: a candidate has the
    discrete Laplace distribution of scale t = ⌊σ⌋ + 1, and is accepted with probability
    exp(−(|x| − σ²/t)² / (2σ²)). Here, both come from exponential variates E = −ln W: ⌊t E⌋ is geometric, and
    E exceeds r with probability exp(−r).

    The distribution is exact if the generator's words are uniform. Floating point decides whether a variate
    exceeds a number only where they are further apart than its error. Else, rational arithmetic decides,
    with as many random digits of W as that takes. This counts on NumPy's logarithm, whose error is a
    sixteenth of `SURE_MARGIN` or less.

    Args:
        variance: The parameter σ², at least 1 and at most 2^56. From 1 on, it is the variance to six digits.
        size: How many numbers, non-negative.
        rng: The source of random words.

    Returns:
        The numbers, [size].
    """
    drawn = np.empty(size, np.int64)
    filled = 0
    while filled < size:
        accepted = _accepted(variance, min(CANDIDATES, (size - filled) * 4 // 3 + 16), rng)[: size - filled]
        drawn[filled : filled + len(accepted)] = accepted
        filled += len(accepted)
    return drawn


def _accepted(variance: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw so many candidates, and return those that are accepted."""
    scale = math.isqrt(variance) + 1
    sizes = _geometric(scale, count, rng)
    negative = np.unpackbits(np.frombuffer(rng.bytes(-(-count // 8)), np.uint8), count=count).astype(bool)

    words, variates = _exponential(count, rng)
    bounds = (sizes - variance / scale) ** 2 / (2 * variance)
    accepted = variates > bounds
    for number in np.flatnonzero((np.abs(variates - bounds) < SURE_MARGIN) | (variates > EXACT_ABOVE)):
        bound = (int(sizes[number]) - Fraction(variance, scale)) ** 2 / (2 * variance)
        accepted[number] = _Variate(int(words[number]), rng).exceeds(bound)

    accepted &= ~(negative & (sizes == 0))  # zero has one sign only
    return np.where(negative, -sizes, sizes)[accepted]


def _geometric(scale: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return ⌊scale · E⌋ of so many exponential variates E."""
    words, variates = _exponential(count, rng)
    scaled = scale * variates
    floors = np.floor(scaled)
    fractions, margin = scaled - floors, scale * SURE_MARGIN
    unsure = (fractions < margin) | (fractions > 1 - margin) | (variates > EXACT_ABOVE)
    sizes = floors.astype(np.int64)
    for number in np.flatnonzero(unsure):
        variate, size = _Variate(int(words[number]), rng), int(sizes[number])
        while size and not variate.exceeds(Fraction(size, scale)):
            size -= 1
        while variate.exceeds(Fraction(size + 1, scale)):
            size += 1
        sizes[number] = size
    return sizes


def _exponential(count: int, rng: np.random.Generator) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Return the first 64 binary digits of uniform numbers W, and −ln W in floating point."""
    words = rng.integers(0, 2**64, count, np.uint64)
    return words, -np.log((words + 0.5) * 2.0**-64)


class _Variate:
    """An exponential variate −ln W, known as precisely as comparisons need it.

    Args:
        word: The first 64 binary digits of W.
        rng: The source of the others.
    """

    def __init__(self, word: int, rng: np.random.Generator) -> None:
        self.word, self.bits = word, 64
        self.rng = rng

    def exceeds(self, bound: Fraction) -> bool:
        """Return whether the variate exceeds a rational number below 10^9: whether W < exp(−bound)."""
        while True:
            context = Context(prec=self.bits // 3 + 30)  # ten digits more than those of W, and the bound's
            exponent = context.divide(Decimal(-bound.numerator), Decimal(bound.denominator))
            probability = Fraction(context.exp(exponent))
            error = Fraction(1, 10 ** (self.bits // 3 + 20))
            digits = 2**self.bits
            if self.word + 1 <= (probability - error) * digits:
                return True
            if self.word >= (probability + error) * digits:
                return False
            self.word = self.word << 64 | int(self.rng.integers(0, 2**64, dtype=np.uint64))
            self.bits += 64
