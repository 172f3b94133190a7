"""The sampler of the discrete Gaussian: its probabilities, its exact arithmetic, its speed."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from genfl.privacy.dp import discrete
from genfl.privacy.dp.discrete import discrete_gaussian


def pmf(variance):
    """The numbers of a discrete Gaussian that matter, and their probabilities."""
    reach = math.ceil(12 * math.sqrt(variance))
    numbers = np.arange(-reach, reach + 1)
    weights = np.exp(-(numbers**2) / (2 * variance))
    return numbers, weights / weights.sum()


@pytest.mark.parametrize("variance", [1, 2, 3, 9, 17, 400])
def test_numbers_have_the_probabilities_of_the_closed_form(variance):
    """Chi-square, with rare numbers joined."""
    count = 200_000
    drawn = discrete_gaussian(variance, count, np.random.default_rng(variance))
    numbers, probabilities = pmf(variance)
    observed = np.bincount(drawn - numbers[0], minlength=len(numbers))
    often = probabilities * count > 10
    rest = (observed[~often].sum(), probabilities[~often].sum() * count)
    expected = np.append(probabilities[often] * count, rest[1])
    statistic = (np.append(observed[often], rest[0]) - expected) ** 2 / expected
    assert stats.chi2(often.sum()).cdf(statistic.sum()) == pytest.approx(0.5, abs=0.4999)


@pytest.mark.parametrize("deviation", [100, 2**14, 2**24, 2**28])
def test_wide_noise_is_close_to_a_gaussian(deviation):
    drawn = discrete_gaussian(deviation**2, 50_000, np.random.default_rng(1))
    assert stats.chi2(50_000).cdf(((drawn / deviation) ** 2).sum()) == pytest.approx(0.5, abs=0.4999)
    assert stats.kstest(drawn / deviation, "norm").pvalue > 1e-4
    assert len(np.unique(drawn % 2)) == 2, "no grid but that of whole numbers"


@pytest.mark.parametrize("variance", [1, 7, 10**6, 2**48])
def test_floating_point_decides_as_rational_numbers_do(variance, monkeypatch):
    fast = discrete_gaussian(variance, 400, np.random.default_rng(5))
    monkeypatch.setattr(discrete, "SURE_MARGIN", 1e9)
    assert np.array_equal(fast, discrete_gaussian(variance, 400, np.random.default_rng(5)))


class Words:
    """A generator of chosen words."""

    def __init__(self, *words):
        self.words = list(words)

    def integers(self, low, high, dtype):
        return self.words.pop(0)


@pytest.mark.parametrize(("later", "exceeds"), [(0, True), (2**64 - 1, False)])
def test_close_comparisons_read_more_digits(later, exceeds):
    """W and exp(−1) agree in 64 binary digits. So the next 64 decide."""
    first = 6786177901268885274  # ⌊2^64 / e⌋
    variate = discrete._Variate(first, Words(later))
    assert variate.exceeds(Fraction(1)) == exceeds
    assert variate.bits == 128
    undecided = discrete._Variate(first + 1, Words())
    assert not undecided.exceeds(Fraction(1)), "one more is decided at once"


def test_no_number_is_drawn_from_no_size():
    assert discrete_gaussian(4, 0, np.random.default_rng(0)).shape == (0,)


@pytest.mark.slow
def test_a_million_numbers_take_seconds():
    """Exact comparisons of all numbers would take twenty minutes."""
    started = time.perf_counter()
    discrete_gaussian(2**40, 1_000_000, np.random.default_rng(0))
    assert time.perf_counter() - started < 10
