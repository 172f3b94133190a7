"""Scores of membership inference: against the papers' equations in loops, and on Gaussians."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from genfl.errors import InputError
from genfl.privacy.attacks import scores
from genfl.privacy.attacks.roc import delong, proportion_interval, rate_at

NORMAL = NormalDist()


def confidences(models: int, examples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences of an attacked model and of shadow models, and which were trained on which example."""
    rng = np.random.default_rng(seed)
    member = np.argsort(rng.random((models, examples)), 0) < models // 2
    shadows = rng.normal(2, 3, examples) + rng.normal(1.5 * member, rng.uniform(0.5, 2, examples))
    return rng.normal(2, 3, examples), shadows, member


def test_confidence_is_the_logit_of_the_probability():
    rng = np.random.default_rng(1)
    logits, y = rng.normal(0, 3, (50, 4)), rng.integers(4, size=50)
    for phi, z, label in zip(scores.confidence(logits, y), logits, y, strict=True):
        p = math.exp(z[label]) / sum(math.exp(value) for value in z)
        assert phi == pytest.approx(math.log(p / (1 - p)), abs=1e-10)
        assert scores.loss(np.array([phi]))[0] == pytest.approx(-math.log(p), abs=1e-10)


def test_confidence_stays_precise_where_the_probability_rounds_to_one():
    phi = scores.confidence(np.array([[90.0, 0.0], [100.0, 0.0]]), np.array([0, 0]))
    assert phi.tolist() == [90.0, 100.0]
    assert scores.loss(phi)[0] == pytest.approx(math.exp(-90), rel=1e-12)


def test_confidence_rejects_a_diverged_model():
    with pytest.raises(InputError, match=r"^method: .*not finite"):
        scores.confidence(np.array([[np.nan, 0.0]]), np.array([0]))


@pytest.mark.parametrize("fixed", [False, True])
def test_lira_equals_the_equations(fixed):
    """Algorithm 1 in plain Python: a Gaussian of the models with the example, one of the others."""
    observed, shadows, member = confidences(12, 30)
    squares, freedom = [0.0, 0.0], [0, 0]
    for x in range(30):
        for side, inside in enumerate((True, False)):
            values = [shadows[m, x] for m in range(12) if member[m, x] == inside]
            mean = sum(values) / len(values)
            squares[side] += sum((value - mean) ** 2 for value in values)
            freedom[side] += len(values) - 1
    online = scores.lira_online(observed, shadows, member, fixed)
    offline = scores.lira_offline(observed, shadows, member, fixed)
    for x in range(30):
        gaussians = []
        for side, inside in enumerate((True, False)):
            values = [shadows[m, x] for m in range(12) if member[m, x] == inside]
            fit = NormalDist.from_samples(values)
            deviation = math.sqrt(squares[side] / freedom[side]) if fixed else fit.stdev
            gaussians.append(NormalDist(fit.mean, deviation))
        ratio = gaussians[0].pdf(observed[x]) / gaussians[1].pdf(observed[x])
        assert math.exp(online[x]) == pytest.approx(ratio, rel=1e-9)
        assert NORMAL.cdf(offline[x]) == pytest.approx(gaussians[1].cdf(observed[x]), abs=1e-12)


def test_lira_shares_one_variance_below_64_models():
    for models, fixed in ((62, True), (64, False)):
        arrays = confidences(models, 20)
        assert (scores.lira_online(*arrays) == scores.lira_online(*arrays, fixed)).all()
        assert not (scores.lira_online(*arrays) == scores.lira_online(*arrays, not fixed)).any()
        assert (scores.lira_offline(*arrays) == scores.lira_offline(*arrays, fixed)).all()


def test_lira_rejects_an_example_without_enough_models():
    observed, shadows, member = confidences(8, 5)
    member[:, 3] = True
    with pytest.raises(ValueError, match="example 3 has 0 shadow models"):
        scores.lira_offline(observed, shadows, member)
    member[0, 3] = False
    assert np.isfinite(scores.lira_offline(observed, shadows, member, True)).all()
    with pytest.raises(ValueError, match="example 3 has 1 shadow models"):
        scores.lira_offline(observed, shadows, member, False)


def test_lira_stays_finite_when_all_models_agree():
    member = np.array([[True], [True], [False], [False]])
    assert np.isfinite(scores.lira_online(np.array([3.0]), np.full((4, 1), 2.0), member)).all()


@pytest.mark.parametrize(("a", "gamma"), [(0.3, 1.0), (1.0, 2.0), (0.0, 1.5)])
def test_rmia_equals_the_equations(a, gamma):
    """The pairwise likelihood ratio in plain Python, with the offline correction."""
    observed, shadows, member = confidences(10, 25, seed=2)
    population = np.arange(25) % 3 == 0

    def probability(phi):
        return 1 / (1 + math.exp(-phi))

    def prior(x):
        out = [probability(shadows[m, x]) for m in range(10) if not member[m, x]]
        return ((1 + a) * sum(out) / len(out) + (1 - a)) / 2

    results = scores.rmia(observed, shadows, member, population, a, gamma)
    for x in range(25):
        beaten = [
            (probability(observed[x]) / prior(x)) / (probability(observed[z]) / prior(z)) >= gamma
            for z in range(25)
            if population[z] and z != x
        ]
        assert results[x] == pytest.approx(sum(beaten) / population.sum(), abs=1e-12)


def test_rmia_has_the_roc_of_its_ratios():
    """Non-members as population cost no false positive."""
    observed, shadows, member = confidences(10, 400, seed=3)
    truth = np.arange(400) < 200
    out = (1 / (1 + np.exp(-shadows)) * ~member).sum(0) / (~member).sum(0)
    ratio = 1 / (1 + np.exp(-observed)) / (0.65 * out + 0.35)
    by_score = scores.rmia(observed, shadows, member, ~truth)
    for count in range(0, 200, 7):  # so many false positives
        best = [values[truth] > np.sort(values[~truth])[199 - count] for values in (ratio, by_score)]
        assert best[0].sum() == best[1].sum()


def test_rmia_rejects_what_it_cannot_compare():
    observed, shadows, member = confidences(4, 6)
    with pytest.raises(ValueError, match="population is empty"):
        scores.rmia(observed, shadows, member, np.zeros(6, bool))
    member[:, 2] = True
    with pytest.raises(ValueError, match="example 2 is in every"):
        scores.rmia(observed, shadows, member, np.ones(6, bool))


SHIFT = 2.0
"""How many standard deviations higher members score, in the tests with a known ROC."""

HALF = 20_000


def known_rates(fpr: float) -> float:
    """TPR of the likelihood ratio test of two Gaussians of equal variance: Φ(shift + Φ⁻¹(FPR))."""
    return NORMAL.cdf(SHIFT + NORMAL.inv_cdf(fpr))


def check_known_roc(values: np.ndarray, slack: float) -> None:
    """Check the scores of members, then of as many non-members, against the ROC in closed form.

    The area has a standard error of 0.0014.
    """
    members, others = values[:HALF], values[HALF:]
    assert delong(members, others)[0] == pytest.approx(NORMAL.cdf(SHIFT / math.sqrt(2)), abs=0.006 + slack)
    for fpr in (0.001, 0.01, 0.1):
        measured = rate_at(members, others, fpr).tpr
        # the threshold has an error of its own: that of an order statistic of the non-members
        error = math.sqrt(fpr / HALF) / NORMAL.pdf(NORMAL.inv_cdf(fpr))
        error *= NORMAL.pdf(NORMAL.inv_cdf(known_rates(fpr)))
        assert measured == pytest.approx(known_rates(fpr), abs=4 * error + 0.01 + slack)


@pytest.mark.parametrize("attack", ["online", "offline"])
def test_lira_finds_the_known_roc_of_gaussians(attack):
    """Examples differ by far more than membership does, and the fit for each example takes that out."""
    rng = np.random.default_rng(3)
    hardness, truth = rng.normal(0, 20, 2 * HALF), np.arange(2 * HALF) < HALF
    observed = hardness + rng.normal(SHIFT * truth)
    member = np.argsort(rng.random((128, 2 * HALF)), 0) < 64
    shadows = (hardness + rng.normal(SHIFT * member)).astype(np.float64)
    function = scores.lira_online if attack == "online" else scores.lira_offline
    check_known_roc(function(observed, shadows, member, True), 0.01)
    assert delong(observed[:HALF], observed[HALF:])[0] < 0.55  # the loss alone tells little


def test_rmia_finds_the_known_roc_of_log_normal_ratios():
    """With a = 1 and shadow models that agree, log Pr(x|θ) / Pr(x) is Gaussian."""
    rng = np.random.default_rng(4)
    truth, prior = np.arange(2 * HALF) < HALF, rng.uniform(1e-4, 1e-2, 2 * HALF)
    p = prior * np.exp(0.1 * rng.normal(SHIFT * truth))
    observed, shadows = (np.log(value / (1 - value)) for value in (p, np.tile(prior, (2, 1))))
    member = np.array([[True] * 2 * HALF, [False] * 2 * HALF])
    check_known_roc(scores.rmia(observed, shadows, member, ~truth, a=1.0), 0.0)


def test_loss_finds_the_known_roc_of_gaussians():
    rng = np.random.default_rng(5)
    check_known_roc(scores.loss_score(rng.normal(SHIFT * (np.arange(2 * HALF) < HALF))), 0.0)


def test_scores_of_an_untouched_model_say_nothing():
    observed, shadows, member = confidences(16, 4000, seed=6)
    for values in (
        scores.loss_score(observed),
        scores.lira_online(observed, shadows, member),
        scores.lira_offline(observed, shadows, member),
        scores.rmia(observed, shadows, member, np.arange(4000) >= 2000),
    ):
        interval = delong(values[:2000], values[2000:])[1]
        assert interval.low < 0.5 < interval.high
        hits = rate_at(values[:2000], values[2000:], 0.01).tpr * 2000
        assert proportion_interval(round(hits), 2000).low < 0.02
