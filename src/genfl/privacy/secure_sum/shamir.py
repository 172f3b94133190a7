"""Shamir's secret sharing over a prime field: any `threshold` shares give the secret, fewer say nothing.

Source: Shamir, "How to share a secret", Communications of the ACM 22(11), 1979.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

SHARE_PRIME = 2**256 + 297
"""The smallest prime above 2^256, so that each 32 bytes are a secret."""


def split(
    secret: int, points: Sequence[int], coefficients: Sequence[int], prime: int = SHARE_PRIME
) -> list[int]:
    """Return the value at each point of the polynomial ``secret + c_1 x + c_2 x² + ...`` modulo a prime.

    Args:
        secret: The secret, 0 to prime - 1.
        points: Where the shares are: distinct, 1 to prime - 1.
        coefficients: ``threshold - 1`` independent uniform numbers, 0 to prime - 1.
        prime: The size of the field.

    Raises:
        ValueError: A number is out of range, or two points are the same.
    """
    if not all(0 <= number < prime for number in (secret, *coefficients)):
        raise ValueError("a secret and its coefficients must be in the field")
    _check_points(points, prime)
    shares = []
    for point in points:
        value = 0
        for coefficient in reversed((secret, *coefficients)):
            value = (value * point + coefficient) % prime
        shares.append(value)
    return shares


def recover(shares: Mapping[int, int], prime: int = SHARE_PRIME) -> int:
    """Return the secret of at least `threshold` shares, by interpolation at 0.

    Fewer shares, or a wrong one, give another number, and no error.

    Args:
        shares: Point -> share.
        prime: The size of the field.

    Raises:
        ValueError: There are no shares, or a point is out of range.
    """
    if not shares:
        raise ValueError("a secret needs at least 1 share")
    points = tuple(shares)
    _check_points(points, prime)
    return sum(shares[x] * weight for x, weight in zip(points, _weights(points, prime), strict=True)) % prime


@lru_cache(maxsize=256)
def _weights(points: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """Return the weights of Lagrange's interpolation at 0."""
    weights = []
    for x in points:
        above, below = 1, 1
        for other in points:
            if other != x:
                above = above * other % prime
                below = below * (other - x) % prime
        weights.append(above * pow(below, -1, prime) % prime)
    return tuple(weights)


def _check_points(points: Sequence[int], prime: int) -> None:
    if len(set(points)) < len(points) or not all(0 < point < prime for point in points):
        raise ValueError(f"points of shares must be distinct, from 1 to below {prime:.6g}")
