"""Figures of an attack: ROC, accuracy, and true positive rates at small false positive rates.

The positive class is "member". All intervals have a confidence of 95 %. They cover the draw of the examples,
not other models: the attacked model and its shadow models are as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm, rankdata

from genfl.privacy.attacks.scores import FloatArray
from genfl.rng import Key

LEVEL = 0.95
"""The confidence of all intervals."""

SMALL_RATES = (0.001, 0.01)
"""The false positive rates at which true positive rates are reported."""


class Interval(NamedTuple):
    """A confidence interval of a share."""

    low: float
    high: float


class RateAt(NamedTuple):
    """The true positive rate at a false positive rate.

    Attributes:
        fpr: The largest false positive rate that is allowed.
        tpr: The largest true positive rate of the thresholds that allow it; None if it cannot be measured.
        interval: The interval of the true positive rate at this threshold (Clopper-Pearson). It covers the
            draw of the members. It does not cover that the threshold was chosen on the same non-members. None
            with the rate.
        reason: Why it cannot be measured; None if it is.
    """

    fpr: float
    tpr: float | None
    interval: Interval | None
    reason: str | None


class AttackFigures(NamedTuple):
    """The figures of an attack.

    Attributes:
        auc: The area under the ROC curve: the chance that a member scores higher than a non-member.
        auc_interval: Its interval, by DeLong.
        best_accuracy: See `best_accuracy`.
        accuracy: See `held_out_accuracy`.
        accuracy_interval: Its interval, by the normal approximation.
        rates: True positive rates at `SMALL_RATES`.
    """

    auc: float
    auc_interval: Interval
    best_accuracy: float
    accuracy: float
    accuracy_interval: Interval
    rates: tuple[RateAt, ...]


def attack_figures(members: FloatArray, others: FloatArray, key: Key) -> AttackFigures:
    """Return the figures of an attack.

    Args:
        members: Scores of members, [m], finite; higher means likelier a member.
        others: Scores of non-members, [n], finite.
        key: The random stream of the halves of `held_out_accuracy`.

    Raises:
        ValueError: There are fewer than two members or non-members.
    """
    if min(len(members), len(others)) < 2:
        raise ValueError(f"{len(members)} members and {len(others)} non-members; two of each are needed")
    return AttackFigures(
        *delong(members, others),
        best_accuracy(members, others),
        *held_out_accuracy(members, others, key),
        tuple(rate_at(members, others, fpr) for fpr in SMALL_RATES),
    )


def roc(members: FloatArray, others: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the ROC curve: ascending false positive rates, and true positive rates, both from 0 to 1.

    Args:
        members: Scores of members, [m].
        others: Scores of non-members, [n].
    """
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    rates = [
        np.append(0.0, (len(scores) - np.searchsorted(np.sort(scores), thresholds)) / len(scores))
        for scores in (others, members)
    ]
    return rates[0], rates[1]


def delong(members: FloatArray, others: FloatArray) -> tuple[float, Interval]:
    """Return the area under the ROC curve and its interval, cut to [0, 1]. Ties count one half.

    The interval has no width if the scores separate the two groups completely.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988, with midranks (Sun and Xu, IEEE SPL 2014).

    Args:
        members: Scores of members, [m].
        others: Scores of non-members, [n].
    """
    m, n = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    beaten = (ranks[:m] - rankdata(members)) / n  # of each member: the share of non-members below it
    beating = 1 - (ranks[m:] - rankdata(others)) / m  # of each non-member: the share of members above it
    auc = float(beaten.mean())
    margin = norm.ppf((1 + LEVEL) / 2) * math.sqrt(beaten.var(ddof=1) / m + beating.var(ddof=1) / n)
    return auc, Interval(float(max(0.0, auc - margin)), float(min(1.0, auc + margin)))


def best_accuracy(members: FloatArray, others: FloatArray) -> float:
    """Return the largest balanced accuracy, ``max (TPR + 1 − FPR) / 2``, over all thresholds.

    An attacker who does not know who is a member cannot choose this threshold, so it is an upper bound, and
    somewhat more than one half even for scores that say nothing.

    Args:
        members: Scores of members, [m].
        others: Scores of non-members, [n].
    """
    fpr, tpr = roc(members, others)
    return float((tpr + 1 - fpr).max() / 2)


def fit_threshold(members: FloatArray, others: FloatArray) -> float:
    """Return the threshold of the largest balanced accuracy: scores from there on are called members.

    It lies in the middle between two scores.

    Args:
        members: Scores of known members.
        others: Scores of known non-members.
    """
    fpr, tpr = roc(members, others)
    steps = np.unique(np.concatenate([members, others]))[::-1]
    called = int((tpr - fpr).argmax())  # how many of the steps are called members
    if called == 0:
        return math.inf
    return float(steps[called - 1 : called + 1].mean())


def held_out_accuracy(members: FloatArray, others: FloatArray, key: Key) -> tuple[float, Interval]:
    """Return the balanced accuracy of a threshold on examples that did not fit it, and its interval.

    The attacker knows the membership of one random half of the examples, fits a threshold, and classifies
    the other half; then the other way round. So the accuracy of an attack that knows nothing is one half on
    average. Members and non-members count equally, as on a balanced set.

    Args:
        members: Scores of members, [m].
        others: Scores of non-members, [n].
        key: The random stream of the halves.
    """
    rng = key.numpy()
    halves = [np.array_split(rng.permutation(scores), 2) for scores in (members, others)]
    hits = np.zeros(2)
    for known, unknown in ((0, 1), (1, 0)):
        threshold = fit_threshold(halves[0][known], halves[1][known])
        hits += (halves[0][unknown] >= threshold).sum(), (halves[1][unknown] < threshold).sum()
    sizes = np.array([len(members), len(others)])
    shares = (hits + 1) / (sizes + 2)  # so that an accuracy of 1 has an interval, too
    margin = norm.ppf((1 + LEVEL) / 2) * math.sqrt((shares * (1 - shares) / sizes).sum()) / 2
    accuracy = float((hits / sizes).mean())
    return accuracy, Interval(max(0.0, accuracy - margin), min(1.0, accuracy + margin))


def rate_at(members: FloatArray, others: FloatArray, fpr: float) -> RateAt:
    """Return the true positive rate at a false positive rate.

    Args:
        members: Scores of members, [m].
        others: Scores of non-members, [n].
        fpr: The largest false positive rate that is allowed, in (0, 1).

    Returns:
        The rate; without a value if there are fewer than 1 / fpr non-members.
    """
    needed = math.ceil(1 / fpr - 1e-9)
    if len(others) < needed:
        reason = f"it takes {needed:,} non-members to see a false positive rate of {100 * fpr:g} %"
        return RateAt(fpr, None, None, f"{reason}, and there are {len(others):,}")
    false, true = roc(members, others)
    hits = round(true[false <= fpr + 1e-12].max() * len(members))
    return RateAt(fpr, hits / len(members), proportion_interval(hits, len(members)), None)


def proportion_interval(hits: int, trials: int) -> Interval:
    """Return the Clopper-Pearson interval of a share."""
    low, high = binomtest(hits, trials).proportion_ci(LEVEL, method="exact")
    return Interval(float(low), float(high))


def thinned(fpr: FloatArray, tpr: FloatArray, points: int = 200) -> list[tuple[float, float]]:
    """Return some points of a ROC curve for a chart with logarithmic axes: the highest at each rate.

    Args:
        fpr: False positive rates, ascending.
        tpr: True positive rates.
        points: The largest number of points.
    """
    last = np.append(np.flatnonzero(np.diff(fpr)), len(fpr) - 1)
    fpr, tpr = fpr[last], tpr[last]
    if len(fpr) > points:
        positive = fpr[fpr > 0]
        wanted = np.geomspace(positive[0], 1.0, points - 1)
        chosen = np.unique([0, *np.searchsorted(fpr, wanted - 1e-12).clip(max=len(fpr) - 1)])
        fpr, tpr = fpr[chosen], tpr[chosen]
    pairs: Sequence[tuple[float, float]] = list(zip(fpr.tolist(), tpr.tolist(), strict=True))
    return list(pairs)
