"""Matrices that correlate noise over rounds: exact algebra, sensitivity, and the error that is left."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz
from scipy.optimize import minimize_scalar

from genfl.privacy.dp.toeplitz import MOST_BUFFERS, BufferedToeplitz, least_error, separation

MATRIX = BufferedToeplitz((0.95, 0.6, 0.1), (0.2, 0.15, 0.05))

JAX_PRIVACY = json.loads((Path(__file__).parent / "jax_privacy.json").read_text(encoding="utf-8"))["figures"]
"""The best matrices by jax-privacy 2.0.0, and its figures of them. ``make oracle`` computes them again."""


def every(rounds, gap):
    """One client that takes part in round 1, and in every so many rounds after it."""
    return (tuple(range(1, rounds + 1, gap)),)


def dense(coefficients):
    return np.tril(toeplitz(coefficients))


def rmse(matrix, rounds, participations):
    """Root of the mean squared error of prefix sums, for noise of the size that privacy needs."""
    return math.sqrt(matrix.error(rounds)) * matrix.sensitivities(rounds, participations)[-1]


parameters = st.integers(1, 4).flatmap(
    lambda buffers: st.tuples(
        st.lists(st.floats(0, 1), min_size=buffers, max_size=buffers),
        st.lists(st.floats(0, 0.3), min_size=buffers, max_size=buffers),
    )
)


@settings(deadline=None, max_examples=50)
@given(parameters, st.integers(1, 12))
def test_coefficients_of_the_inverse_are_those_of_the_dense_inverse(values, rounds):
    matrix = BufferedToeplitz(*map(tuple, values))
    inverse = np.linalg.inv(dense(matrix.coefficients(rounds)))
    np.testing.assert_allclose(dense(matrix.inverse_coefficients(rounds)), inverse, atol=1e-9)


def test_coefficients_known_values():
    matrix = BufferedToeplitz((0.5, 0.25), (0.1, 0.2))
    np.testing.assert_allclose(matrix.coefficients(4), [1, 0.3, 0.1, 0.0375])
    np.testing.assert_allclose(BufferedToeplitz((), ()).coefficients(3), [1, 0, 0])


@pytest.mark.parametrize("matrix", [MATRIX, BufferedToeplitz((), ())])
def test_streamed_rows_are_those_of_the_inverse(matrix):
    """Rows of the unit matrix become the rows of the inverse. So the covariance is exact, too."""
    rounds = 9
    buffers = matrix.no_noise({"a": torch.zeros(rounds, dtype=torch.float64), "b": {"c": torch.zeros(2, 3)}})
    rows = []
    for unit in torch.eye(rounds, dtype=torch.float64):
        noise = {"a": unit, "b": {"c": torch.full((2, 3), unit[0].item())}}
        correlated, buffers = matrix.correlate(noise, buffers)
        assert torch.allclose(correlated["b"]["c"], correlated["a"][0].float().expand(2, 3))
        rows.append(correlated["a"].numpy())
    inverse = np.linalg.inv(dense(matrix.coefficients(rounds)))
    np.testing.assert_allclose(rows, inverse, atol=1e-12)
    np.testing.assert_allclose(np.stack(rows) @ np.stack(rows).T, inverse @ inverse.T, atol=1e-12)


def test_sensitivity_is_the_largest_over_all_participations_and_uploads():
    """All sets of rounds, and in each of them all uploads of length 1 in one dimension: plus or minus 1."""
    rounds, columns = 6, dense(MATRIX.coefficients(6))
    for size in range(1, rounds + 1):
        for taken in itertools.combinations(range(1, rounds + 1), size):
            known = MATRIX.sensitivities(rounds, (taken,))
            for after in range(1, rounds + 1):
                seen = [number - 1 for number in taken if number <= after]
                moves = [
                    np.linalg.norm(columns[:after, seen] @ np.array(signs))
                    for signs in itertools.product((-1, 1), repeat=len(seen))
                ]
                assert known[after - 1] == pytest.approx(max(moves), abs=1e-12)


def test_no_upload_of_many_dimensions_exceeds_the_sensitivity():
    taken, rng = (1, 3, 4, 8), np.random.default_rng(0)
    columns = dense(MATRIX.coefficients(9))[:, np.array(taken) - 1]
    bound = MATRIX.sensitivities(9, (taken,))[-1]
    for _ in range(200):
        uploads = rng.normal(size=(4, 5))
        uploads /= np.linalg.norm(uploads, axis=1, keepdims=True)
        assert np.linalg.norm(columns @ uploads) <= bound


def test_sensitivity_is_that_of_the_worst_client():
    clients = tuple(itertools.combinations(range(1, 25), 2))  # 276: more than are computed at once
    single = [MATRIX.sensitivities(24, (client,)) for client in clients]
    np.testing.assert_allclose(MATRIX.sensitivities(24, clients), np.max(single, axis=0))


def test_error_is_that_of_all_prefix_sums():
    matrix = np.tril(np.ones((9, 9))) @ np.linalg.inv(dense(MATRIX.coefficients(9)))
    assert MATRIX.error(9) == pytest.approx((matrix**2).sum() / 9)
    assert BufferedToeplitz((), ()).error(9) == 5, "without correlation: (rounds + 1) / 2"


def test_separation_is_the_least_gap():
    assert separation(((1, 5, 9), (2,), (3, 6))) == 3
    assert separation(((1,), (2,))) is None


# --- the search


def test_search_finds_the_optimum_of_two_rounds():
    """One coefficient c: the error (2 + (1 − c)²) / 2 times the squared sensitivity 1 + c²."""
    best = minimize_scalar(lambda c: (1 + c**2) * (2 + (1 - c) ** 2) / 2, bounds=(0, 1), method="bounded")
    matrix = least_error(2, ((1,),))
    assert matrix.coefficients(2)[1] == pytest.approx(best.x, abs=1e-3)
    assert rmse(matrix, 2, ((1,),)) == pytest.approx(math.sqrt(best.fun), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [50, 1000])
def test_few_buffers_do_as_well_as_the_square_root(rounds):
    """The square root of A is within a constant of the best matrix. Its inverse needs all earlier noise."""
    root = np.cumprod(np.r_[1, (2 * np.arange(1, rounds) - 1) / (2 * np.arange(1, rounds))])
    error = math.sqrt((root**2 * np.arange(rounds, 0, -1)).sum() / rounds)
    matrix = least_error(rounds, ((1,),))
    assert len(matrix.decays) <= MOST_BUFFERS
    assert rmse(matrix, rounds, ((1,),)) < 1.005 * np.linalg.norm(root) * error


@pytest.mark.slow
def test_no_small_change_of_the_matrix_gains_a_thousandth():
    clients = ((1, 11, 21), (2, 9, 30), (5, 6))
    matrix = least_error(30, clients)
    least, rng = rmse(matrix, 30, clients), np.random.default_rng(0)
    for _ in range(200):
        decays = np.clip(np.array(matrix.decays) + rng.normal(0, 0.02, len(matrix.decays)), 0, 1)
        scales = np.abs(np.array(matrix.scales) + rng.normal(0, 0.02, len(matrix.scales)))
        assert rmse(BufferedToeplitz(tuple(decays), tuple(scales)), 30, clients) > least * (1 - 1e-3)


@pytest.mark.parametrize(
    ("rounds", "gap", "times"), [(50, 50, 2.4), (50, 10, 2.03), (100, 10, 2.27), (1000, 20, 3.66)]
)
def test_correlated_noise_leaves_less_error_than_independent_noise(rounds, gap, times):
    """Independent noise leaves √(participations · (rounds + 1) / 2)."""
    client = every(rounds, gap)
    independent = math.sqrt(len(client[0]) * (rounds + 1) / 2)
    assert rmse(BufferedToeplitz((), ()), rounds, client) == pytest.approx(independent)
    assert independent / rmse(least_error(rounds, client), rounds, client) == pytest.approx(times, abs=0.01)


@pytest.mark.parametrize("pinned", JAX_PRIVACY, ids=lambda one: f"{one['rounds']}-{one['separation']}")
def test_matrices_are_as_good_as_those_of_jax_privacy(pinned):
    rounds, client = pinned["rounds"], every(pinned["rounds"], pinned["separation"])
    theirs = BufferedToeplitz(tuple(pinned["decays"]), tuple(pinned["scales"]))
    squared = theirs.sensitivities(rounds, client)[-1] ** 2
    assert squared == pytest.approx(pinned["squared_sensitivity"], rel=1e-9)
    assert theirs.error(rounds) == pytest.approx(pinned["error"], rel=1e-9)
    ours = least_error(rounds, client)
    assert rmse(ours, rounds, client) < 1.00001 * rmse(theirs, rounds, client)


def test_a_client_in_every_round_needs_no_buffer():
    """Then what correlation saves in error, it costs in sensitivity."""
    assert least_error(100, every(100, 1)) == BufferedToeplitz((), ())
    assert least_error(1, ((1,),)) == BufferedToeplitz((), ())


@pytest.mark.parametrize(
    ("decays", "scales", "match"),
    [
        ((0.5,), (), "1 decays and 0 scales"),
        ((1.5,), (0.1,), "decays must be 0 to 1"),
        ((math.nan,), (0.1,), "decays must be 0 to 1"),
        ((0.5,), (-0.1,), "scales must be finite"),
        ((0.5,), (math.inf,), "scales must be finite"),
    ],
)
def test_parameters_out_of_range_are_refused(decays, scales, match):
    with pytest.raises(ValueError, match=match):
        BufferedToeplitz(decays, scales)
