"""What a run tells while it works: rounds, epochs, and the start and end of stages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

from genfl.tracking.metrics_file import MetricsFile
from genfl.tracking.series import Ending, Kind, Row, Series


class Tracker(Protocol):
    """Something that shows a run's figures. `Events` calls it in the order in which things happen."""

    def keep(self, kind: Kind, current: Collection[Series]) -> None:
        """Forget the series of a kind that belong to an older config, or whose inputs changed.

        Args:
            kind: The kind of series.
            current: Those that count.
        """

    def history(self, series: Series, rows: Sequence[Row]) -> None:
        """Take all rows of a series so far. It may have some of them, or others from an earlier start.

        Args:
            series: The series.
            rows: All its rows, in order.
        """

    def row(self, series: Series, row: Row) -> None:
        """Take the next row of a series.

        Args:
            series: The series.
            row: Its next row.
        """

    def stage(self, name: str, state: Literal["started", "finished"], seconds: float | None) -> None:
        """Take the start or the end of a stage.

        Args:
            name: The stage.
            state: ``started`` or ``finished``.
            seconds: How long it took; None at its start.
        """

    def finish(self, summary: Mapping[str, Any] | None, ending: Ending) -> None:
        """Take the end of the run.

        Args:
            summary: The content of ``summary.json``; None if the run did not get so far.
            ending: How it ends. A run that ends before the report, as asked, is finished, too.
        """


class Events:
    """Hands what a run tells to ``metrics.jsonl`` and to all trackers.

    Args:
        file: The file; None to write none.
        trackers: The trackers.
    """

    def __init__(self, file: MetricsFile | None = None, trackers: Sequence[Tracker] = ()) -> None:
        self._takers: list[Tracker] = [*([file] if file else []), *trackers]

    def keep(self, kind: Kind, current: Collection[Series]) -> None:
        """Tell which series of a kind count; see `Tracker.keep`."""
        for taker in self._takers:
            taker.keep(kind, current)

    def history(self, series: Series, rows: Sequence[Row]) -> None:
        """Tell all rows of a series so far; see `Tracker.history`."""
        for taker in self._takers:
            taker.history(series, rows)

    def row(self, series: Series, row: Row) -> None:
        """Tell the next row of a series; see `Tracker.row`."""
        for taker in self._takers:
            taker.row(series, row)

    def stage(self, name: str, state: Literal["started", "finished"], seconds: float | None = None) -> None:
        """Tell the start or the end of a stage; see `Tracker.stage`."""
        for taker in self._takers:
            taker.stage(name, state, seconds)

    def finish(self, summary: Mapping[str, Any] | None, ending: Ending) -> None:
        """Tell the end of the run; see `Tracker.finish`."""
        for taker in self._takers:
            taker.finish(summary, ending)

    def settle(self, kind: Kind, series: Mapping[Series, Sequence[Row]]) -> None:
        """Tell all series of a finished stage, whether it ran, was skipped, or was taken over.

        Args:
            kind: The kind of its series.
            series: The rows of each.
        """
        self.keep(kind, series.keys())
        for name, rows in series.items():
            self.history(name, rows)


class Follower:
    """Tells the rows of one series, of which a trainer hands over all so far, again and again.

    Args:
        events: Where it tells them.
        series: The series.
    """

    def __init__(self, events: Events, series: Series) -> None:
        self._events, self._series = events, series
        self._told: int | None = None

    def __call__(self, rows: Sequence[Row]) -> None:
        """Tell what is new.

        Args:
            rows: All rows so far. The first call may have some of an earlier start.
        """
        if self._told is None:
            self._events.history(self._series, rows)
        else:
            for row in rows[self._told :]:
                self._events.row(self._series, row)
        self._told = len(rows)


def rows_of(trace: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return a row for each round of a trace: bytes, rejected uploads, measures, and scores if evaluated.

    Round 0 is the model before the first round, and has scores alone. Scores that are lists, such as the
    recall of each class, are left out.

    Args:
        trace: ``evaluations`` and ``rounds``, as in ``trace.json``.
    """
    scores = {
        row["round"]: {name: value for name, value in row.items() if not isinstance(value, list)}
        for row in trace["evaluations"]
    }
    before = [scores[0]] if 0 in scores else []
    return [*before, *({**row, **scores.get(row["round"], {})} for row in trace["rounds"])]
