"""Noise on counts of clients: the two-sided geometric mechanism, whose results are whole numbers.

One client changes each count by at most 1, and so all counts together by at most their number. Noise with
P(x) ∝ exp(−|x| ε / number) on each of them bounds the privacy loss by ε, with δ = 0. Source: Ghosh,
Roughgarden and Sundararajan, STOC 2009 (arXiv 0811.2841).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from genfl.rng import Key


def decay(epsilon: float, number: int) -> float:
    """Return a of the noise P(x) ∝ exp(−a|x|) on so many counts.

    Args:
        epsilon: The bound ε on what all counts together tell of one client, positive.
        number: How many counts there are, at least 1.
    """
    return epsilon / number


def noised_counts(counts: Mapping[str, int], epsilon: float, key: Key) -> dict[str, int]:
    """Return counts of clients with discrete Laplace noise. They can be negative, or too large.

    Args:
        counts: How many clients are counted by each name. The names are public.
        epsilon: The bound ε on what all counts together tell of one client, positive.
        key: The random stream.
    """
    if not counts:
        return {}
    success = -math.expm1(-decay(epsilon, len(counts)))
    first, second = key.numpy().geometric(success, (2, len(counts)))
    noise = (first - second).tolist()
    return {name: count + extra for (name, count), extra in zip(sorted(counts.items()), noise, strict=True)}
