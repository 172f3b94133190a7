"""TensorBoard: a folder of event files for each series of figures."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from genfl.storage import digest, remove, write_json
from genfl.tracking.series import Ending, Kind, Row, Series

TENSORBOARD = "tensorboard"
"""The folder in a run's folder."""

_WRITTEN = ".written.json"


class TensorBoardFiles:
    """Writes event files. A folder with other rows than its series has is written again: no row is doubled.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # needs tensorboard

        self._run, self._folder, self._new_writer = run, run / TENSORBOARD, SummaryWriter
        self._writer: tuple[Series, Any] | None = None
        self._rows: dict[str, str] = {}  # what each folder holds, as a digest
        try:
            self._stored: dict[str, str] = dict(json.loads((self._folder / _WRITTEN).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            self._stored = {}

    def keep(self, kind: Kind, current: Collection[Series]) -> None:
        """Delete the folders of all other series of a kind; see `genfl.tracking.events.Tracker.keep`."""
        names = {self._name(series) for series in current}
        pattern = "*/seed-*" if kind == "round" else "pretrain/*/seed-*"
        for folder in self._folder.glob(pattern):
            name = folder.relative_to(self._folder).as_posix()
            if name not in names:
                self._close()
                self._forget(name)
                remove(folder, self._run)

    def history(self, series: Series, rows: Sequence[Row]) -> None:
        """Bring the folder of a series into agreement; see `genfl.tracking.events.Tracker.history`."""
        name, whole = self._name(series), ""
        for row in rows:
            whole = digest([whole, dict(row)])
        known = self._rows.get(name, self._stored.get(name, ""))
        if known != whole or not (self._folder / name).is_dir():
            self._close()
            self._forget(name)
            remove(self._folder / name, self._run)
            for row in rows:
                self._add(series, row)
        self._rows[name] = whole

    def row(self, series: Series, row: Row) -> None:
        """Write a row; see `genfl.tracking.events.Tracker.row`."""
        name = self._name(series)
        before = self._rows.get(name, "")
        self._forget(name)
        self._add(series, row)
        self._rows[name] = digest([before, dict(row)])

    def stage(self, name: str, state: Literal["started", "finished"], seconds: float | None) -> None:
        """Do nothing: a stage has no curve."""

    def finish(self, summary: Mapping[str, Any] | None, ending: Ending) -> None:
        """Close the files, and say what they hold; see `genfl.tracking.events.Tracker.finish`."""
        self._close()
        write_json(self._folder / _WRITTEN, self._stored | self._rows)

    def flush(self) -> None:
        """Send what was written to the disk."""
        if self._writer:
            self._writer[1].flush()

    def close(self) -> None:
        """Do nothing: `finish` has closed the files."""

    def _add(self, series: Series, row: Row) -> None:
        if self._writer is None or self._writer[0] != series:
            self._close()
            self._writer = series, self._new_writer(str(self._folder / self._name(series)))
        for tag, value in row.items():
            if tag != series.kind and isinstance(value, int | float):
                self._writer[1].add_scalar(tag, value, row[series.kind])

    def _forget(self, name: str) -> None:
        """Take back what is said of a folder before it changes, in case the process is killed."""
        self._rows.pop(name, None)
        if self._stored.pop(name, None) is not None:
            write_json(self._folder / _WRITTEN, self._stored)

    def _close(self) -> None:
        if self._writer:
            self._writer[1].close()
            self._writer = None

    @staticmethod
    def _name(series: Series) -> str:
        return f"{'pretrain/' if series.kind == 'epoch' else ''}{series.name}/seed-{series.seed}"
