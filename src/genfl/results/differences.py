"""Whether two methods differ, judged by their accuracies over the seeds. The verdict uses the same bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev, variance
from typing import Literal

from pydantic import Field
from scipy.special import stdtr, stdtrit

from genfl.results.schema import ResultModel

CONFIDENCE = 0.95
"""The share of intervals that hold the true difference."""

SMALLEST_DIFFERENCE = 0.05
"""Smaller differences in accuracy, in points, count as none: tables round them away."""

Finding = Literal["higher", "lower", "no clear difference", "one seed: no statement"]
"""What the seeds say of a difference."""


class Difference(ResultModel):
    """The difference of a method's accuracy from that of another method, over the seeds, in points."""

    points: float = Field(description="Mean accuracy minus that of the other method, in points.")
    low: float | None = Field(description="Lower end of the interval, in points; null for one seed.")
    high: float | None = Field(description="Upper end of the interval, in points; null for one seed.")
    test: Literal["paired", "welch"] | None = Field(
        description="How the interval is computed: `paired`, Student's t on the difference of each seed, or"
        " `welch`, Welch's t on two independent samples; null for one seed."
    )
    pairs: int | None = Field(description="How many seeds are paired; null unless `test` is `paired`.")
    p_value: float | None = Field(description="Two-sided p-value of the test; null for one seed.")
    finding: Finding = Field(description="Whether the interval is above 0, below 0, or holds it.")

    @property
    def clear(self) -> bool:
        """Whether the seeds tell the methods apart."""
        return self.finding in ("higher", "lower")


def student_margin(values: Sequence[float], level: float) -> float:
    """Return the distance from the mean that chance alone exceeds, on one side, with 1 − `level`.

    Args:
        values: At least two independent values of normal distribution.
        level: A share in (0, 1).
    """
    return float(stdtrit(len(values) - 1, level) * stdev(values) / len(values) ** 0.5)


def least_difference(examples: int) -> float:
    """Return the points of accuracy that differ at least: one test example, or what tables show.

    Args:
        examples: The number of test examples, at least 1.
    """
    return max(SMALLEST_DIFFERENCE, 100 / examples)


def difference(
    values: Mapping[int, float], others: Mapping[int, float], examples: int, *, paired: bool
) -> Difference:
    """Compare the accuracies of two methods over the seeds.

    The interval is at 95 %, by itself. It is never narrower than one test example either way. With few seeds,
    accuracies can agree by their rounding to whole test examples, and a test alone would claim too much.

    Args:
        values: The accuracy of each seed, in [0, 1].
        others: The same for the other method. At least one each.
        examples: The number of test examples.
        paired: Whether a seed has the same split and initial model in both. If one method has all seeds of
            the other, and these are two or more, they are compared seed by seed. Else the samples count as
            independent: a few shared seeds would waste the rest.
    """
    shared = [seed for seed in values if seed in others]
    if paired and len(shared) > 1 and len(shared) == min(len(values), len(others)):
        gains = [100 * (values[seed] - others[seed]) for seed in shared]
        error, freedom = stdev(gains) / len(gains) ** 0.5, len(gains) - 1.0
        return _judged(fmean(gains), error, freedom, examples, len(shared))
    points = 100 * (fmean(values.values()) - fmean(others.values()))
    if min(len(values), len(others)) < 2:
        return Difference(
            points=points,
            low=None,
            high=None,
            test=None,
            pairs=None,
            p_value=None,
            finding="one seed: no statement",
        )
    parts = [variance([100 * v for v in side.values()]) / len(side) for side in (values, others)]
    spread = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (values, others), strict=True))
    return _judged(points, sum(parts) ** 0.5, sum(parts) ** 2 / spread if spread else 1.0, examples, None)


def _judged(points: float, error: float, freedom: float, examples: int, pairs: int | None) -> Difference:
    """Return a difference with its interval.

    Args:
        points: The difference.
        error: Its standard error, in points.
        freedom: The degrees of freedom.
        examples: The number of test examples.
        pairs: The number of paired seeds; None if seeds are not paired.
    """
    margin = max(least_difference(examples), float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error)
    clear = exceeds(abs(points), margin)
    chance = float(2 * stdtr(freedom, -abs(points) / error)) if error else float(points == 0)
    return Difference(
        points=points,
        low=points - margin,
        high=points + margin,
        test="welch" if pairs is None else "paired",
        pairs=pairs,
        p_value=chance,
        finding=("higher" if points > 0 else "lower") if clear else "no clear difference",
    )


def exceeds(points: float, least: float) -> bool:
    """Return whether a difference is larger than another one, beyond floating-point rounding."""
    return points > least + 1e-9


def holm(p_values: Sequence[float]) -> list[bool]:
    """Return which of several tests still reject after Holm's correction, at 5 % for all of them together.

    Args:
        p_values: The p-value of each test.

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    rejected = [False] * len(p_values)
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        if p_values[number] > (1 - CONFIDENCE) / (len(p_values) - rank):
            break
        rejected[number] = True
    return rejected
