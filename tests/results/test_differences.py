"""Whether methods differ over the seeds: against SciPy's tests, and calibrated by simulation."""

import numpy as np
import pytest
from scipy import stats

from genfl.results.differences import difference, holm, student_margin

PLENTY = 10**9
"""So many test examples that one of them decides nothing."""


def over(seeds, values):
    return dict(zip(seeds, map(float, values), strict=True))


def test_paired_seeds_are_judged_by_the_paired_t_test():
    a, b = [0.91, 0.93, 0.90, 0.95], [0.90, 0.91, 0.90, 0.92]
    seeds = (0, 1, 2, 7)
    gain = difference(over(seeds, a), over(reversed(seeds), reversed(b)), PLENTY, paired=True)
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert (gain.test, gain.pairs) == ("paired", 4)
    assert gain.p_value == pytest.approx(expected.pvalue)
    assert (gain.low, gain.high) == pytest.approx((100 * interval.low, 100 * interval.high))
    assert gain.points == pytest.approx(100 * (np.mean(a) - np.mean(b)))


def test_other_seeds_are_judged_by_the_t_test_of_welch():
    a, b = [0.91, 0.93, 0.90, 0.95], [0.70, 0.95, 0.80]
    for seeds, paired in (((4, 5, 6), True), ((0, 1, 2), False)):
        gain = difference(over(range(4), a), over(seeds, b), PLENTY, paired=paired)
        expected = stats.ttest_ind(a, b, equal_var=False)
        interval = expected.confidence_interval(0.95)
        assert (gain.test, gain.pairs) == ("welch", None)
        assert gain.p_value == pytest.approx(expected.pvalue)
        assert (gain.low, gain.high) == pytest.approx((100 * interval.low, 100 * interval.high))


def test_seeds_are_paired_if_one_method_has_all_of_the_others():
    a, b = over((1, 2), [0.6, 0.7]), over((1, 2, 3, 4), [0.5, 0.65, 0.1, 0.1])
    gain = difference(a, b, PLENTY, paired=True)
    assert gain.pairs == 2
    assert gain.points == pytest.approx(100 * ((0.6 - 0.5) + (0.7 - 0.65)) / 2)
    other = difference({**a, 0: 0.5}, b, PLENTY, paired=True)
    assert (other.test, other.pairs) == ("welch", None), "each has seeds that the other lacks"
    assert other.points == pytest.approx(100 * (0.6 - 0.3375))


@pytest.mark.parametrize("others", [[0.5], [0.5, 0.6]])
def test_one_seed_gives_no_statement(others):
    gain = difference({0: 0.9}, over(range(len(others)), others), 1000, paired=True)
    assert gain.finding == "one seed: no statement"
    assert (gain.low, gain.high, gain.p_value, gain.test) == (None,) * 4
    assert gain.points == pytest.approx(100 * (0.9 - np.mean(others)))


def test_accuracies_that_overlap_do_not_differ_and_a_planted_difference_does():
    base = over(range(3), [0.90, 0.92, 0.91])
    overlapping = over(range(3), [0.91, 0.91, 0.92])
    for paired in (True, False):
        assert difference(overlapping, base, 1000, paired=paired).finding == "no clear difference"
        for shift, finding in ((0.05, "higher"), (-0.05, "lower")):
            planted = {seed: value + shift for seed, value in overlapping.items()}
            gain = difference(planted, base, 1000, paired=paired)
            assert gain.finding == finding
            assert gain.clear


def test_equal_gains_of_one_test_example_are_no_difference():
    """Accuracies that agree to the last example have no deviation, and a test alone would be certain."""
    base = over(range(2), [0.90, 0.91])
    for examples, gain, finding in ((1, 100, "no clear difference"), (3, 100, "higher")):
        other = {seed: value + examples / gain for seed, value in base.items()}
        found = difference(other, base, 100, paired=True)
        assert found.finding == finding
        assert (found.low, found.high) == pytest.approx((examples - 1, examples + 1))
    same = difference(base, base, 100, paired=True)
    assert (same.points, same.p_value, same.finding) == (0.0, 1.0, "no clear difference")
    assert difference(over(range(2), [0.9, 0.9]), over(range(2), [0.8, 0.8]), 100, paired=False).clear


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_difference_is_claimed_by_chance_in_one_case_of_twenty(seeds, paired):
    """Both directions together come in 5 % of the cases. Welch's t is rarer: 2 % with two seeds each."""
    rng, cases = np.random.default_rng([seeds, paired]), 2000
    shared = rng.normal(0, 0.02, (cases, 1, seeds)) if paired else 0.0  # what a seed's split does to both
    drawn = 0.8 + shared + rng.normal(0, 0.01, (cases, 2, seeds))
    claims = sum(
        difference(over(range(seeds), a), over(range(seeds), b), PLENTY, paired=paired).clear
        for a, b in drawn
    )
    bound = 4 * (0.05 * 0.95 / cases) ** 0.5
    least = 0.05 - bound if paired else 0.01
    assert least < claims / cases < 0.05 + bound


@pytest.mark.parametrize(("examples", "spread"), [(100, 0.01), (360, 0.005), (1797, 0.002)])
def test_rounding_to_test_examples_makes_no_claims(examples, spread):
    rng, cases = np.random.default_rng(examples), 2000
    drawn = np.round(examples * (0.9 + rng.normal(0, spread, (cases, 2, 2)))) / examples
    claims = sum(difference(over((0, 1), a), over((0, 1), b), examples, paired=True).clear for a, b in drawn)
    assert claims / cases < 0.05 + 4 * (0.05 * 0.95 / cases) ** 0.5


def test_a_real_difference_is_found_more_often_when_seeds_are_paired():
    rng = np.random.default_rng(0)
    found = {True: 0, False: 0}
    for _ in range(200):
        split = rng.normal(0.8, 0.03, 5)  # a seed's split makes its task easy or hard for both
        a, b = (split + gain + rng.normal(0, 0.005, 5) for gain in (0.02, 0.0))
        for paired in found:
            found[paired] += difference(over(range(5), a), over(range(5), b), 1000, paired=paired).clear
    assert found[True] > 190
    assert found[False] < 60


def test_holm_rejects_what_step_by_step_bounds_allow():
    assert holm([]) == []
    assert holm([0.04]) == [True]
    assert holm([0.03, 0.03]) == [False, False]  # neither is below 0.05 / 2
    # 0.01 < 0.05 / 4, 0.015 < 0.05 / 3, 0.03 > 0.05 / 2: the last two stay, although 0.04 < 0.05
    assert holm([0.04, 0.01, 0.03, 0.015]) == [False, True, False, True]


def test_margin_of_student_is_that_of_scipy():
    values = [0.3, -1.2, 2.0, 0.4]
    expected = stats.t.interval(0.9, 3, loc=0, scale=stats.sem(values))[1]
    assert student_margin(values, 0.95) == pytest.approx(expected)
