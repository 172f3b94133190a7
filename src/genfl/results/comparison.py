"""Several runs side by side: every method of every run, and how it differs from a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from genfl.config import ABSENT, differing_fields
from genfl.errors import InputError, shorten, suggest
from genfl.results.differences import Difference, difference, holm
from genfl.results.schema import Figure, MethodResult, ResultModel, Summary
from genfl.results.summarise import LAST_EVALUATIONS
from genfl.results.sweep import setting_text

if TYPE_CHECKING:
    import pandas

BETWEEN = ":"
"""Separates the run from the method in the name of a row, as in ``demo:gptfl``."""


LONGEST_SETTING = 60
"""Characters of a config's value in a comparison's page, at most."""


class ComparedRun(NamedTuple):
    """A run of a comparison.

    Attributes:
        run: Its name in the comparison: that of its folder, with as much of the path as tells it apart.
        folder: Its folder.
        summary: Its figures.
        config: Its resolved config as plain values.
    """

    run: str
    folder: Path
    summary: Summary
    config: Mapping[str, Any]

    @property
    def seconds(self) -> tuple[float | None, float | None]:
        """The time of generation and of training, in seconds; None where it is not completely known."""
        generation, training = self.summary.cost.generation, self.summary.cost.training
        return generation.seconds if generation else None, training.seconds if training else None

    @property
    def joules(self) -> float | None:
        """The energy of generation and training; None if it was not measured."""
        cost = self.summary.cost
        parts = [cost.training, *([cost.generation] if self.summary.synthetic else [])]
        known = [part.joules for part in parts if part is not None and part.joules is not None]
        return sum(known) if len(known) == len(parts) else None


class ComparedMethod(ResultModel):
    """A method of a run in a comparison: a row of its table."""

    run: str = Field(description="The run, by the name of its folder.")
    method: str = Field(description="The method.")
    reference: bool = Field(description="Whether it is a reference, which is not federated.")
    seeds: list[int] = Field(description="The seeds of the run.")
    accuracy: Figure = Field(description="Test accuracy, as in summary.json.")
    macro_f1: Figure = Field(description="Macro-F1, as in summary.json.")
    against: str | None = Field(description="The baseline as RUN:METHOD; null if there is none.")
    difference: Difference | None = Field(
        description="Difference from the baseline in accuracy; null without one, for the baseline itself, and"
        " if the two were not tested on the same labels and as many examples."
    )
    holds: bool = Field(
        description="Whether the difference is clear for all rows together, too (Holm's correction)."
    )
    finding: str = Field(description="The statement on the difference, in words.")
    target_accuracy: float = Field(description="The accuracy to reach, in [0, 1].")
    rounds_to_target: int | None = Field(description="Rounds to it, as in summary.json; null if never.")
    bytes_to_target: int | None = Field(description="Bytes to it, as in summary.json; null if never.")
    total_bytes: int = Field(description="Bytes of setup and all rounds.")
    generation_seconds: float | None = Field(description="Time of the run's generation, in seconds.")
    training_seconds: float | None = Field(description="Time of the run's training, in seconds.")
    joules: float | None = Field(description="Energy of the run, in joules; null if it was not measured.")

    @property
    def name(self) -> str:
        """The row as RUN:METHOD."""
        return row_name(self.run, self.method)

    @property
    def seconds(self) -> float | None:
        """The time of the run's generation and training, in seconds; None if neither is known."""
        known = [part for part in (self.generation_seconds, self.training_seconds) if part is not None]
        return sum(known) if known else None


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        runs: The runs.
        rows: Every method of every run.
        warnings: What makes the runs hard to compare, a sentence each.
        settings: The fields in which the configs differ, with the value of each run.
        baseline: What methods are compared with, as it was asked for; None for the first run's method of the
            same name.
    """

    runs: Sequence[ComparedRun]
    rows: Sequence[ComparedMethod]
    warnings: Sequence[str]
    settings: Mapping[str, Sequence[Any]]
    baseline: str | None = None

    def table(self) -> pandas.DataFrame:
        """Return a row for each method of each run.

        Accuracies are in [0, 1], and differences in points of accuracy with their 95 % interval.
        """
        import pandas

        rows = [
            {
                "run": row.run,
                "method": row.method,
                "mean": row.accuracy.mean,
                "std": row.accuracy.std,
                "seeds": len(row.seeds),
                "against": row.against,
                "difference": row.difference.points if row.difference else None,
                "low": row.difference.low if row.difference else None,
                "high": row.difference.high if row.difference else None,
                "finding": row.finding,
                "rounds": row.rounds_to_target,
                "MB": None if row.bytes_to_target is None else row.bytes_to_target / 1e6,
                "seconds": row.seconds,
            }
            for row in self.rows
        ]
        numbers = ["std", "difference", "low", "high", "rounds", "MB", "seconds"]
        return pandas.DataFrame(rows).set_index(["run", "method"]).astype(dict.fromkeys(numbers, float))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as ``genfl compare --json`` prints them."""
        return {
            "runs": [{"run": run.run, "folder": str(run.folder)} for run in self.runs],
            "methods": [row.to_dict() for row in self.rows],
            "warnings": list(self.warnings),
            "settings": {
                field: {
                    run.run: value
                    for run, value in zip(self.runs, values, strict=True)
                    if value is not ABSENT
                }
                for field, values in self.settings.items()
            },
        }

    @cached_property
    def target(self) -> float | None:
        """The accuracy to reach; None if it is not the same in all runs."""
        targets = {run.summary.target_accuracy for run in self.runs}
        return targets.pop() if len(targets) == 1 else None

    @property
    def against(self) -> str:
        """What methods are compared with, in words."""
        if self.baseline is None:
            return f"the method of the same name in {self.runs[0].run}"
        having = [run.run for run in self.runs if self.baseline in run.summary.methods]
        if not having:
            return self.baseline
        missing = "" if len(having) == len(self.runs) else f" or, if the run lacks it, that of {having[0]}"
        return f"{self.baseline} of the same run{missing}"

    @property
    def compared(self) -> list[ComparedMethod]:
        """The rows with a difference over several seeds."""
        return [row for row in self.rows if row.difference and row.difference.p_value is not None]

    def __repr__(self) -> str:
        return f"Comparison({len(self.runs)} runs, {len(self.rows)} methods)"


def compare_runs(runs: Sequence[ComparedRun], baseline: str | None = None) -> Comparison:
    """Compare every method of every run with a baseline.

    Args:
        runs: The runs. The first one is what the others are compared with.
        baseline: ``METHOD``: that method of the same run or, where the run lacks it, of the first run that
            has it. ``RUN:METHOD``: that one. None: the method of the same name in the first run.

    Raises:
        InputError: There is no such baseline.
    """
    pinned = _pinned(runs, baseline)
    rows: list[ComparedMethod] = []
    for run in runs:
        for name, method in run.summary.methods.items():
            other = pinned or _default(runs, run, name, baseline)
            rows.append(_row(run, name, method, other))
    tested = [
        (number, gain.p_value, gain.clear)
        for number, row in enumerate(rows)
        if (gain := row.difference) and gain.p_value is not None
    ]
    rejected = holm([p_value for _, p_value, _ in tested])
    for (number, _, clear), holds in zip(tested, rejected, strict=True):
        rows[number] = rows[number].model_copy(update={"holds": holds and clear})
    settings = differing_fields([run.config for run in runs])
    return Comparison(tuple(runs), tuple(rows), tuple(_warnings(runs)), settings, baseline)


def row_name(run: str, method: str) -> str:
    """Return the name of a row: ``demo:gptfl``."""
    return f"{run}{BETWEEN}{method}"


def short_setting(value: Any) -> str:
    """Return the value of a config's field as text, shortened; empty if the config lacks the field."""
    return "" if value is ABSENT else shorten(setting_text(value), LONGEST_SETTING)


def _pinned(runs: Sequence[ComparedRun], baseline: str | None) -> tuple[ComparedRun, str] | None:
    """Return the baseline that ``RUN:METHOD`` names; None for other forms.

    Raises:
        InputError: There is no such method.
    """
    if baseline is None or any(baseline in run.summary.methods for run in runs):
        return None
    rows = {row_name(run.run, name): (run, name) for run in runs for name in run.summary.methods}
    if baseline not in rows:
        names = list(dict.fromkeys(name for run in runs for name in run.summary.methods))
        known = list(rows) if BETWEEN in baseline else names
        raise InputError(f"--baseline: there is no {baseline!r}; {suggest(baseline, known)}")
    return rows[baseline]


def _default(
    runs: Sequence[ComparedRun], run: ComparedRun, name: str, baseline: str | None
) -> tuple[ComparedRun, str] | None:
    """Return what a method is compared with, if not with one and the same for all; None if there is none."""
    if baseline is None:
        return (runs[0], name) if name in runs[0].summary.methods else None
    return next((other, baseline) for other in (run, *runs) if baseline in other.summary.methods)


def _row(
    run: ComparedRun, name: str, method: MethodResult, other: tuple[ComparedRun, str] | None
) -> ComparedMethod:
    gain, finding = None, "no method of this name"
    if other is not None:
        baseline, compared_with = other
        if (baseline.run, compared_with) == (run.run, name):
            finding = "baseline"
        elif _differ_in_test(run.summary, baseline.summary):
            finding = "other test data: no statement"
        else:
            rival = baseline.summary.methods[compared_with]
            gain = difference(
                _per_seed(run.summary, method),
                _per_seed(baseline.summary, rival),
                run.summary.test_samples,
                paired=same_splits(run, baseline),
            )
            finding = gain.finding
    generation, training = run.seconds
    return ComparedMethod(
        run=run.run,
        method=name,
        reference=method.reference,
        seeds=run.summary.seeds,
        accuracy=method.accuracy,
        macro_f1=method.macro_f1,
        against=row_name(other[0].run, other[1]) if other else None,
        difference=gain,
        holds=False,
        finding=finding,
        target_accuracy=run.summary.target_accuracy,
        rounds_to_target=method.rounds_to_target,
        bytes_to_target=method.bytes_to_target,
        total_bytes=method.total_bytes,
        generation_seconds=generation,
        training_seconds=training,
        joules=run.joules,
    )


def _per_seed(summary: Summary, method: MethodResult) -> dict[int, float]:
    return dict(zip(summary.seeds, method.accuracy.per_seed, strict=True))


def _differ_in_test(summary: Summary, other: Summary) -> bool:
    """Return whether two runs are tested on other labels, or on another number of examples."""
    return (set(summary.labels.found), summary.test_samples) != (set(other.labels.found), other.test_samples)


def same_splits(run: ComparedRun, other: ComparedRun) -> bool:
    """Return whether a seed splits the same data over the clients in the same way in two runs."""
    return run.summary.test_digest == other.summary.test_digest and not differing_fields(
        [run.config.get("data"), other.config.get("data")]
    )


def _warnings(runs: Sequence[ComparedRun]) -> list[str]:
    """Say which runs differ from the first one in a way that makes their figures hard to compare."""
    first, warnings = runs[0], []
    for run in runs[1:]:
        one, other = first.summary, run.summary
        if missing := set(one.labels.found) ^ set(other.labels.found):
            warnings.append(
                f"{run.run} has other labels than {first.run} ({_some(sorted(missing))}), so their figures do"
                " not compare."
            )
        elif one.test_samples != other.test_samples:
            warnings.append(
                f"{run.run} is tested on {other.test_samples:,} examples and {first.run} on"
                f" {one.test_samples:,}, so their figures do not compare."
            )
        elif one.test_digest != other.test_digest:
            warnings.append(
                f"{run.run} has other test inputs than {first.run}: other examples, or the same ones read in"
                " another way. Differences may come from them."
            )
        if one.target_accuracy != other.target_accuracy:
            warnings.append(
                f"The target of {run.run} is {100 * other.target_accuracy:g} %, and that of {first.run}"
                f" {100 * one.target_accuracy:g} %, so rounds and bytes to the target do not compare."
            )
        counted, expected = (_evaluations(summary) for summary in (other, one))
        if counted != expected:
            warnings.append(
                f"An accuracy of {run.run} is the mean of its last {counted}, and of {first.run} of its last"
                f" {expected} evaluations."
            )
        devices, usual = (_devices(summary) for summary in (other, one))
        if devices and usual and devices != usual:
            warnings.append(f"{run.run} and {first.run} ran on other devices, so their times do not compare.")
    return warnings


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _evaluations(summary: Summary) -> int:
    """Return how many evaluations an accuracy is the mean of; all federated methods have as many."""
    curve = next(iter(summary.federated.values())).curve
    return min(LAST_EVALUATIONS, max(1, len(curve) - 1))


def _devices(summary: Summary) -> list[str]:
    return sorted(summary.cost.training.devices) if summary.cost.training else []
