"""Predict what a run will reach, from the evidence of its pilot and a table of full runs.

All is linear in log-odds of being right, so that a gain near 100 % is small by itself. A prediction starts
from what the pilot measured, and a few numbers move it: ridge regression over the table gives their weights.
There is no constant: where the pilot shows no difference and nothing grows, none is predicted. Predictions
for a data set never use its own rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genfl.advisor.evidence import PilotEvidence
from genfl.results.names import ALONE, ARMS, BOTH, GPTFL, TARGETS, WITHOUT

USES = tuple(arm for arm in ARMS if arm != WITHOUT)
"""The uses of the generator."""

GAIN = "gain"
"""The name of the regression of gains, which is the same for all uses."""

LEAST_ACCURACY, MOST_ACCURACY = 0.01, 0.99
"""Accuracies beyond these count as these: their log-odds would be noise."""

RIDGE = 0.1
"""The penalty on each weight, in units of a number of mean square 1, and of a row of the table."""

LATEST = 3
"""The number of last evaluations whose mean is the accuracy at the end of a pilot."""

COVERAGE = 0.9
"""The share of runs that should lie in an interval."""

FADING = 0.8
"""What a doubling of the generated samples adds to log-odds, as a share of what the doubling before added."""

STEEPEST = 1.5
"""Slopes of log-odds above this count as this: a lead cannot fade any faster."""


class FullRun(NamedTuple):
    """A full run, and the evidence of its pilot.

    Attributes:
        setting: The name of the setting.
        data: The name of its data set.
        evidence: The evidence of its pilot.
        accuracy: What the run reached, by target: the mean over its seeds.
    """

    setting: str
    data: str
    evidence: PilotEvidence
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Forecast:
    """A prediction with its interval, and what moved it.

    Attributes:
        value: The most likely value: an accuracy in [0, 1], or a difference of two.
        low: The lower end of the interval.
        high: The upper end.
        moved: For each number of the evidence, by how much it moved the value.
    """

    value: float
    low: float
    high: float
    moved: dict[str, float]


class Numbers(NamedTuple):
    """What a prediction starts from, and what moves it.

    Attributes:
        start: Log-odds, or a difference of two.
        values: The numbers that move it, by name.
    """

    start: float
    values: dict[str, float]


def log_odds(accuracy: float) -> float:
    """Return the log-odds of an accuracy, which is moved into [`LEAST_ACCURACY`, `MOST_ACCURACY`] before."""
    kept = min(max(accuracy, LEAST_ACCURACY), MOST_ACCURACY)
    return math.log(kept / (1 - kept))


def accuracy_of(odds: float) -> float:
    """Return the accuracy of log-odds."""
    return 1 / (1 + math.exp(-min(max(odds, -50.0), 50.0)))


@cache
def training_table() -> tuple[FullRun, ...]:
    """Return the table of full runs that comes with genfl."""
    text = resources.files("genfl.advisor").joinpath("table.jsonl").read_text(encoding="utf-8")
    return tuple(read_row(json.loads(line)) for line in text.splitlines())


def read_row(content: Mapping[str, Any]) -> FullRun:
    """Return a row of the table from its plain values."""
    evidence = PilotEvidence.from_dict(content["evidence"])
    return FullRun(content["setting"], content["data"], evidence, dict(content["accuracy"]))


def at_end(evidence: PilotEvidence, arm: str) -> float:
    """Return the log-odds of a method at the end of the pilot."""
    return log_odds(float(np.mean([accuracy for _, accuracy in evidence.curves[arm][-LATEST:]])))


def slope(evidence: PilotEvidence, arm: str) -> float:
    """Return how the log-odds of a method grow with the logarithm of the round; late rounds count most."""
    points = [(rounds, accuracy) for rounds, accuracy in evidence.curves[arm] if rounds]
    if len(points) < 2:
        return 0.0
    x = np.log([rounds for rounds, _ in points])
    y = np.array([log_odds(accuracy) for _, accuracy in points])
    weights = np.arange(1, len(points) + 1)
    x_mean, y_mean = np.average(x, weights=weights), np.average(y, weights=weights)
    spread = float(np.average((x - x_mean) ** 2, weights=weights))
    return float(np.average((x - x_mean) * (y - y_mean), weights=weights)) / max(spread, 1e-9)


def more_samples(evidence: PilotEvidence) -> float:
    """Return what more generated samples would add to the last probe's log-odds, by the probes' own growth.

    Each doubling adds `FADING` of what the one before added, and never less than nothing.
    """
    alone = [log_odds(probe.accuracy) for probe in evidence.probes]
    sizes = [probe.per_label for probe in evidence.probes]
    before = math.log2(sizes[-1] / sizes[0])
    if before == 0:
        return 0.0
    doubling = max((alone[-1] - alone[0]) / before, 0.0)
    volume = math.log2(evidence.plan.planned_per_label / evidence.plan.per_label)
    share: float = FADING * (1 - FADING**volume) / (1 - FADING)
    return doubling * share


def numbers_of(evidence: PilotEvidence, target: str) -> Numbers:
    """Return what a prediction rests on: the accuracy of a target, or for a use of the generator its gain.

    Args:
        evidence: The evidence.
        target: One of `TARGETS`.
    """
    plan = evidence.plan
    alone = [log_odds(probe.accuracy) for probe in evidence.probes]
    more = more_samples(evidence)
    if target == ALONE:
        return Numbers(alone[-1], {"more samples": more})
    if not evidence.curves:
        above = alone[-1] - log_odds(evidence.chance)
        if target == WITHOUT:
            return Numbers(log_odds(evidence.chance), {"unknown": 1.0, "held": evidence.held})
        return Numbers(0.0, {"above chance": above, "unequal": above * (1 - evidence.held)})
    horizon = math.log(plan.planned_rounds / plan.rounds)
    pace = {arm: slope(evidence, arm) for arm in ARMS}
    own = at_end(evidence, WITHOUT)
    if target == WITHOUT:
        best = max(0.0, *pace.values())
        room = max(at_end(evidence, arm) for arm in ARMS) - own
        numbers = {"horizon": horizon, "best pace": horizon * best, "catching up": horizon * best * room}
        return Numbers(own, numbers)
    lead = at_end(evidence, target) - own
    fading = horizon * lead * min(max(pace[WITHOUT], 0.0), STEEPEST)
    return Numbers(
        0.0,
        {
            "lead": lead,
            "fading lead": fading,
            "faster pace": horizon * (pace[target] - pace[WITHOUT]),
            "more samples": more if target in (GPTFL, BOTH) else 0.0,
        },
    )


class Fit(NamedTuple):
    """Weights of numbers: ``value = start + Σ weight · number``."""

    weights: dict[str, float]

    def value(self, numbers: Numbers) -> float:
        """Return the prediction."""
        return numbers.start + sum(self.weights[name] * value for name, value in numbers.values.items())


def fit(examples: Iterable[tuple[Numbers, float]]) -> Fit:
    """Return the weights of ridge regression without a constant.

    Args:
        examples: Numbers and the true values, at least one.
    """
    pairs = list(examples)
    names = list(pairs[0][0].values)
    x = np.array([[numbers.values[name] for name in names] for numbers, _ in pairs])
    y = np.array([true - numbers.start for numbers, true in pairs])
    scales: NDArray[np.float64] = np.sqrt((x**2).mean(0)) + 1e-9
    z = x / scales
    weights = np.linalg.solve(z.T @ z + RIDGE * np.eye(len(names)), z.T @ y) / scales
    return Fit(dict(zip(names, map(float, weights), strict=True)))


def fit_all(rows: Sequence[FullRun]) -> dict[str, Fit]:
    """Return the weights for `ALONE`, `WITHOUT` and `GAIN`.

    Args:
        rows: The rows to learn from, at least one.
    """
    fits = {
        target: fit((numbers_of(row.evidence, target), log_odds(row.accuracy[target])) for row in rows)
        for target in (ALONE, WITHOUT)
    }
    fits[GAIN] = fit((numbers_of(row.evidence, use), _gain(row, use)) for row in rows for use in USES)
    return fits


def _gain(row: FullRun, use: str) -> float:
    return log_odds(row.accuracy[use]) - log_odds(row.accuracy[WITHOUT])


def _odds(fits: Mapping[str, Fit], evidence: PilotEvidence) -> dict[str, float]:
    """Return the predicted log-odds of each target, within the bounds of `log_odds`."""
    without = _bounded(fits[WITHOUT].value(numbers_of(evidence, WITHOUT)))
    uses = {use: _bounded(without + fits[GAIN].value(numbers_of(evidence, use))) for use in USES}
    return {ALONE: _bounded(fits[ALONE].value(numbers_of(evidence, ALONE))), WITHOUT: without, **uses}


def _bounded(odds: float) -> float:
    """Return log-odds that are not beyond those of the table."""
    return log_odds(accuracy_of(odds))


@dataclass(frozen=True)
class Predictor:
    """Weights, and how far predictions for other data sets were off.

    Attributes:
        fits: The weights by regression.
        errors: For each row of the table, the true minus the predicted log-odds of each target, where the
            weights come from the rows of other data sets.
        rows: How many full runs it rests on.
        data: How many data sets these have.
    """

    fits: dict[str, Fit]
    errors: list[dict[str, float]]
    rows: int
    data: int

    def predict(self, evidence: PilotEvidence) -> dict[str, Forecast]:
        """Return the accuracy of each target after the full run, in [0, 1]."""
        odds = _odds(self.fits, evidence)
        return {
            target: _with_interval(
                accuracy_of(odds[target]),
                [accuracy_of(odds[target] + error[target]) for error in self.errors],
                self._moved(evidence, target, accuracy_of(odds[target])),
            )
            for target in TARGETS
        }

    def gains(self, evidence: PilotEvidence) -> dict[str, Forecast]:
        """Return the gain of each use of the generator, a difference of accuracies.

        The errors of the two methods go together, so a gain is surer than its two accuracies.
        """
        odds = _odds(self.fits, evidence)
        base = accuracy_of(odds[WITHOUT])
        return {
            use: _with_interval(
                accuracy_of(odds[use]) - base,
                [
                    accuracy_of(odds[use] + error[use]) - accuracy_of(odds[WITHOUT] + error[WITHOUT])
                    for error in self.errors
                ],
                self._moved(evidence, use, accuracy_of(odds[use])),
            )
            for use in USES
        }

    def _moved(self, evidence: PilotEvidence, target: str, value: float) -> dict[str, float]:
        """Return by how much each number moves an accuracy, by the slope of the odds where it is."""
        weights = self.fits[target if target in self.fits else GAIN].weights
        numbers = numbers_of(evidence, target).values
        return {name: weights[name] * number * value * (1 - value) for name, number in numbers.items()}


def _with_interval(value: float, possible: Sequence[float], moved: dict[str, float]) -> Forecast:
    """Return a value with the interval that holds `COVERAGE` of what is possible."""
    spare = (1 - COVERAGE) / 2
    low = float(np.quantile(possible, spare, method="lower"))
    high = float(np.quantile(possible, 1 - spare, method="higher"))
    return Forecast(value, min(low, value), max(high, value), moved)


def predictor_for(
    table: Sequence[FullRun], without: str | None = None, *, federation: bool = True
) -> Predictor:
    """Return the predictor of a table.

    Args:
        table: Full runs.
        without: A data set whose rows are left out.
        federation: Whether evidence of a federation will be there; if not, the predictor does without it.

    Raises:
        ValueError: Fewer than two data sets are left.
    """
    rows = [row for row in table if row.data != without]
    if not federation:
        rows = [row._replace(evidence=replace(row.evidence, curves={}, diversity={})) for row in rows]
    data = sorted({row.data for row in rows})
    if len(data) < 2:
        raise ValueError(f"the table has runs of {len(data)} other data sets, and 2 are needed")
    errors = []
    for name in data:
        fits = fit_all([row for row in rows if row.data != name])
        for row in rows:
            if row.data == name:
                odds = _odds(fits, row.evidence)
                errors.append({target: log_odds(row.accuracy[target]) - odds[target] for target in TARGETS})
    return Predictor(fit_all(rows), errors, len(rows), len(data))
