"""Shares of secrets, against an independent way to compute them: systems of linear equations."""

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genfl.privacy.secure_sum.shamir import SHARE_PRIME, recover, split


def solve(points, values, prime):
    """The coefficients of the polynomial through points, by Gauss-Jordan elimination modulo a prime."""
    n = len(points)
    rows = [[pow(x, k, prime) for k in range(n)] + [y % prime] for x, y in zip(points, values, strict=True)]
    for column in range(n):
        pivot = next(row for row in range(column, n) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], prime - 2, prime)
        rows[column] = [value * inverse % prime for value in rows[column]]
        for row in range(n):
            if row != column:
                factor = rows[row][column]
                rows[row] = [(a - factor * b) % prime for a, b in zip(rows[row], rows[column], strict=True)]
    return [row[-1] for row in rows]


def test_the_modulus_is_the_smallest_prime_above_2_to_the_256():
    from sympy import nextprime

    assert nextprime(2**256) == SHARE_PRIME


@pytest.mark.slow
@given(st.data(), st.integers(1, 12))
def test_any_threshold_of_shares_gives_the_secret(data, threshold):
    n = data.draw(st.integers(threshold, 16))
    field = st.integers(0, SHARE_PRIME - 1)
    secret = data.draw(field)
    coefficients = data.draw(st.lists(field, min_size=threshold - 1, max_size=threshold - 1))
    points = data.draw(st.lists(st.integers(1, 2**64), min_size=n, max_size=n, unique=True))
    shares = dict(zip(points, split(secret, points, coefficients), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert recover({x: shares[x] for x in chosen}) == secret
    assert recover(shares) == secret  # more than needed


@pytest.mark.parametrize("threshold", [1, 2, 5, 9])
def test_shares_decode_by_linear_equations_and_the_other_way_round(threshold):
    rng = random.Random(threshold)
    secret, *coefficients = (rng.randrange(SHARE_PRIME) for _ in range(threshold))
    points = [rng.randrange(1, 2**64) for _ in range(threshold + 3)]
    shares = dict(zip(points, split(secret, points, coefficients), strict=True))
    some = rng.sample(points, threshold)
    assert solve(some, [shares[x] for x in some], SHARE_PRIME) == [secret, *coefficients]
    theirs = {
        x: sum(c * pow(x, k) for k, c in enumerate([secret, *coefficients])) % SHARE_PRIME for x in some
    }
    assert recover(theirs) == secret


def test_recovery_is_interpolation_over_the_rationals():
    """Small integers: Lagrange's formula with exact fractions."""
    points, coefficients = (1, 2, 4, 7), (1234, 5, 6, 7)
    values = [sum(c * x**k for k, c in enumerate(coefficients)) for x in points]
    at_zero = Fraction(0)
    for x, y in zip(points, values, strict=True):
        weight = Fraction(1)
        for other in points:
            if other != x:
                weight *= Fraction(-other, x - other)
        at_zero += weight * y
    assert recover(dict(zip(points, values, strict=True))) == at_zero == 1234


@pytest.mark.parametrize(("prime", "threshold"), [(5, 2), (5, 3), (7, 3), (11, 2)])
def test_fewer_shares_say_nothing(prime, threshold):
    """Each secret gives each combination of threshold - 1 shares exactly once, over all coefficients."""
    points = range(1, threshold)
    for secret in range(prime):
        seen = [
            tuple(split(secret, points, coefficients, prime))
            for coefficients in itertools.product(range(prime), repeat=threshold - 1)
        ]
        assert sorted(seen) == sorted(itertools.product(range(prime), repeat=threshold - 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SHARE_PRIME, [1], []), "in the field"),
        ((-1, [1], []), "in the field"),
        ((1, [1], [SHARE_PRIME]), "in the field"),
        ((1, [0, 1], [2]), "distinct"),
        ((1, [1, 1], [2]), "distinct"),
        ((1, [SHARE_PRIME + 1], [2]), "distinct"),
    ],
)
def test_split_refuses_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        split(*arguments)


def test_recover_refuses_what_is_out_of_range():
    with pytest.raises(ValueError, match="at least 1"):
        recover({})
    with pytest.raises(ValueError, match="distinct"):
        recover({0: 1})
