"""Figures of attacks: against scikit-learn, known distributions, and their own coverage."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.metrics import roc_auc_score, roc_curve

from genfl.privacy.attacks.roc import (
    SMALL_RATES,
    attack_figures,
    best_accuracy,
    delong,
    fit_threshold,
    held_out_accuracy,
    proportion_interval,
    rate_at,
    roc,
    thinned,
)
from genfl.rng import Key

few_values = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=30).map(np.array)


@pytest.mark.slow
@given(few_values, few_values)
def test_roc_equals_that_of_scikit_learn(members, others):
    """With many ties: the values are few."""
    truth, values = np.r_[np.ones(len(members)), np.zeros(len(others))], np.r_[members, others]
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    curve = roc(members, others)
    np.testing.assert_allclose(curve[0], fpr, atol=1e-12)
    np.testing.assert_allclose(curve[1], tpr, atol=1e-12)
    assert delong(members, others)[0] == pytest.approx(roc_auc_score(truth, values))


@given(few_values, few_values)
def test_delong_equals_its_definition_in_loops(members, others):
    """Mean and variance over members and over non-members of ψ: 1 above, ½ at a tie, 0 below."""
    psi = [[1.0 if x > z else 0.5 if x == z else 0.0 for z in others] for x in members]
    by_member = [sum(row) / len(others) for row in psi]
    by_other = [sum(column) / len(members) for column in zip(*psi, strict=True)]
    auc = sum(by_member) / len(members)
    variance = sum(
        sum((value - auc) ** 2 for value in values) / (len(values) - 1) / len(values)
        for values in (by_member, by_other)
    )
    area, interval = delong(members, others)
    assert area == pytest.approx(auc)
    assert interval.low == pytest.approx(max(0, auc - 1.959964 * math.sqrt(variance)), abs=1e-6)
    assert interval.high == pytest.approx(min(1, auc + 1.959964 * math.sqrt(variance)), abs=1e-6)


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """In 400 draws, 95 % intervals hold the true value 95 % of the time, within four standard errors."""
    rng, truth = np.random.default_rng(0), NormalDist()
    auc, accuracy = truth.cdf(1 / math.sqrt(2)), truth.cdf(0.5)  # of a shift by one standard deviation
    covered = np.zeros(2)
    for number in range(400):
        members, others = rng.normal(1, 1, 300), rng.normal(0, 1, 200)
        area = delong(members, others)[1]
        held_out = held_out_accuracy(members, others, Key(number))[1]
        covered += area.low <= auc <= area.high, held_out.low <= accuracy <= held_out.high
    slack = 4 * math.sqrt(0.95 * 0.05 / 400)
    assert covered[0] / 400 == pytest.approx(0.95, abs=slack)
    # a fitted threshold is a little worse than the best one, so this is somewhat less
    assert covered[1] / 400 > 0.90 - slack


def test_held_out_accuracy_is_half_where_nothing_is_known():
    """The best threshold of the same examples seems to know something."""
    rng = np.random.default_rng(1)
    draws = [(rng.normal(size=40), rng.normal(size=40)) for _ in range(200)]
    held_out = [held_out_accuracy(*pair, Key(n))[0] for n, pair in enumerate(draws)]
    assert np.mean(held_out) == pytest.approx(0.5, abs=4 * np.std(held_out) / math.sqrt(200))
    assert np.mean([best_accuracy(*pair) for pair in draws]) > 0.55


def test_held_out_accuracy_of_separate_groups_is_one():
    accuracy, interval = held_out_accuracy(np.arange(50) + 100.0, np.arange(50) * 1.0, Key(0))
    assert accuracy == 1.0
    assert interval.high == 1.0
    assert 0.9 < interval.low < 1.0


@given(few_values, few_values)
def test_fit_threshold_reaches_the_best_accuracy(members, others):
    threshold = fit_threshold(members, others)
    accuracy = ((members >= threshold).mean() + (others < threshold).mean()) / 2
    tried = [
        ((members >= value).mean() + (others < value).mean()) / 2
        for value in [-1.0, *members, *others, np.inf]
    ]
    assert accuracy == pytest.approx(max(tried))
    assert best_accuracy(members, others) == pytest.approx(max(tried))


def test_rate_at_counts_members_above_the_allowed_non_members():
    """Of 1,000 non-members one may score higher at 0.1 %, and ten at 1 %."""
    others = np.arange(1000.0)
    members = np.array([998.5, 998.5, 989.5, 989.5, 5.0])
    assert [rate_at(members, others, fpr).tpr for fpr in SMALL_RATES] == [0.4, 0.8]
    tied = np.array([998.0, 998.0, 5.0, 5.0])  # calling 998 a member calls two non-members members
    assert rate_at(tied, others, 0.001).tpr == 0.0


def test_rate_at_says_that_too_few_non_members_resolve_nothing():
    rate = rate_at(np.arange(5000.0), np.arange(999.0), 0.001)
    assert (rate.tpr, rate.interval) == (None, None)
    assert rate.reason
    assert "takes 1,000 non-members to see a false positive rate of 0.1 %, and there are 999" in rate.reason
    assert rate_at(np.arange(5000.0), np.arange(999.0), 0.01).tpr is not None


@pytest.mark.parametrize(("hits", "trials"), [(0, 50), (7, 50), (50, 50)])
def test_proportion_interval_is_that_of_the_beta_distribution(hits, trials):
    interval = proportion_interval(hits, trials)
    low = beta.ppf(0.025, hits, trials - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, trials - hits) if hits < trials else 1.0
    assert tuple(interval) == pytest.approx((low, high))


def test_attack_figures_hold_all_figures():
    rng = np.random.default_rng(2)
    members, others = rng.normal(1, 1, 2000), rng.normal(0, 1, 1500)
    figures = attack_figures(members, others, Key(3))
    assert (figures.auc, figures.auc_interval) == delong(members, others)
    assert (figures.accuracy, figures.accuracy_interval) == held_out_accuracy(members, others, Key(3))
    assert figures.best_accuracy == best_accuracy(members, others)
    assert figures.rates == tuple(rate_at(members, others, fpr) for fpr in (0.001, 0.01))
    with pytest.raises(ValueError, match="two of each"):
        attack_figures(members[:1], others, Key(0))


def test_thinned_keeps_the_ends_and_lies_on_the_curve():
    rng = np.random.default_rng(4)
    curve = roc(rng.normal(1, 1, 5000), rng.normal(0, 1, 5000))
    points = thinned(*curve)
    assert len(points) <= 200
    highest = dict(zip(*map(np.ndarray.tolist, curve), strict=True))  # of equal rates, the last one stays
    assert all(highest[fpr] == tpr for fpr, tpr in points)
    assert points[0][0] == 0.0
    assert points[-1] == (1.0, 1.0)
    assert points[1][0] == 1 / 5000
