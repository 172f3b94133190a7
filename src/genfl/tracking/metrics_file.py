"""The file metrics.jsonl: one line of JSON for each round, epoch, and start or end of a stage.

Checkpoints hold the truth, and the file follows them. A run that resumes hands over the rows of its
checkpoint. Lines of later rounds are dropped, since these rounds are trained again. Missing lines are added.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from genfl.storage import write_bytes
from genfl.tracking.series import Ending, Kind, Row, Series

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
"""The file in a run's folder."""


class MetricsFile:
    """Writes ``metrics.jsonl``. It is flushed after each line, and every line is strict JSON.

    A file that cannot be read or written stops no run: a warning says so once.

    Args:
        path: The file. Lines of an earlier start are kept; damaged ones are dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._usable = path, True
        self._lines: dict[Series, list[int]] = {}  # the content of each line, as a hash
        with self._guarded():
            self._open()

    def keep(self, kind: Kind, current: Collection[Series]) -> None:
        """Drop the lines of all other series of a kind.

        Args:
            kind: The kind.
            current: The series to keep.
        """
        old = [series for series in self._lines if series.kind == kind and series not in current]
        if old:
            self._replace(dict.fromkeys(old, ()))

    def history(self, series: Series, rows: Sequence[Row]) -> None:
        """Bring the lines of a series into agreement with its rows. Lines that agree stay as they are.

        The time of a line is when it was written, also if that was done once more.

        Args:
            series: The series.
            rows: All its rows so far, in order.
        """
        texts = [_text(series.about | _plain(row)) for row in rows]
        wanted, existing = list(map(hash, texts)), self._lines.get(series, [])
        if existing == wanted:
            return
        if existing == wanted[: len(existing)]:
            self._append("".join(map(_line, texts[len(existing) :])))
            self._lines[series] = wanted
        else:
            self._replace({series: texts})

    def row(self, series: Series, row: Row) -> None:
        """Add the line of a row; see `genfl.tracking.events.Tracker.row`."""
        text = _text(series.about | _plain(row))
        self._append(_line(text))
        self._lines.setdefault(series, []).append(hash(text))

    def stage(self, name: str, state: Literal["started", "finished"], seconds: float | None) -> None:
        """Add a line; see `genfl.tracking.events.Tracker.stage`."""
        took = {} if seconds is None else {"seconds": round(seconds, 3)}
        self._append(_line(_text({"event": "stage", "stage": name, "state": state, **took})))

    def finish(self, summary: Mapping[str, Any] | None, ending: Ending) -> None:
        """Do nothing: every line is on its way to the disk."""

    def _open(self) -> None:
        """Read the lines of an earlier start, and repair the file."""
        content = self._path.read_bytes() if self._path.exists() else b""
        lines, damaged = list(_parsed(content)), content.count(b"\n") + (not content.endswith(b"\n"))
        damaged -= len(lines) if content else 1
        for _, series, text in lines:
            if series:
                self._lines.setdefault(series, []).append(hash(text))
        if damaged:
            log.warning("%s: %d damaged lines are dropped, and restored if known", self._path, damaged)
            write_bytes(self._path, "".join(line for line, *_ in lines).encode())

    def _replace(self, changed: Mapping[Series, Sequence[str]]) -> None:
        """Rewrite the file at once, with other lines of some series at its end."""
        kept, times = [], dict[str, str]()
        if not self._usable:
            return
        with self._guarded():
            for line, series, text in _parsed(self._path.read_bytes() if self._path.exists() else b""):
                if series in changed:
                    times[text] = line
                else:
                    kept.append(line)
            for texts in changed.values():
                kept += [times.get(text) or _line(text) for text in texts]
            write_bytes(self._path, "".join(kept).encode())
        for series, texts in changed.items():
            self._lines[series] = list(map(hash, texts))
            if not texts:
                del self._lines[series]

    def _append(self, lines: str) -> None:
        if self._usable:
            with self._guarded(), self._path.open("ab", buffering=0) as file:
                file.write(lines.encode())

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn the first failure into a warning, and leave the file alone from then on."""
        try:
            yield
        except OSError as error:
            if self._usable:
                why = error.strerror or error
                log.warning("%s cannot be written (%s); the run goes on without it", self._path, why)
            self._usable = False


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``metrics.jsonl`` as dicts. Damaged lines are left out.

    Args:
        path: The file; it may belong to a run that works.
    """
    return [json.loads(line) for line, *_ in _parsed(path.read_bytes())]


def _parsed(content: bytes) -> Iterator[tuple[str, Series | None, str]]:
    """Yield each intact line, its series, and its text without the time."""
    for line in content.decode(errors="replace").split("\n")[:-1]:
        try:
            event = json.loads(line, parse_constant=_reject)
            series = Series.of(event)
            event.pop("time", None)
            hash(series)
            text = _text(event)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
        yield line + "\n", series, text


def _reject(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _text(event: Mapping[str, Any]) -> str:
    return json.dumps(event, allow_nan=False)  # in ASCII, as some programs take U+2028 for the end of a line


def _line(text: str) -> str:
    """Return a line: the text of an event, and the time."""
    return f'{text[:-1]}, "time": "{datetime.now(UTC).isoformat(timespec="milliseconds")}"}}\n'


def _plain(row: Row) -> dict[str, Any]:
    """Return the plain values of a row; numbers that are not finite are null."""
    plain: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            plain[name] = None
        elif value is None or isinstance(value, str | int | float):
            plain[name] = value
    return plain
