"""The runs and sweeps below a folder, from a few of their files. This module imports nothing slow."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from genfl.errors import InputError
from genfl.experiment.records import RUN_CONFIG, RUN_MARKER, SUMMARY_FILE, SWEEP_MARKER, record_file
from genfl.natural_order import in_natural_order

HEAD, TAIL = 1024, 256
"""The bytes at the two ends of a record that are read. Records of large runs have megabytes."""

_DONE = re.compile(rb'^  "done": (true|false)', re.MULTILINE)
_SEALED = re.compile(rb'"sha256": "[0-9a-f]{64}"\s*}\s*\Z')


class BestMethod(NamedTuple):
    """The most accurate federated method of a run, or of the runs of a sweep.

    Attributes:
        method: Its name.
        mean: Its accuracy, in [0, 1], mean over the seeds.
        std: The standard deviation over the seeds; None for one seed.
    """

    method: str
    mean: float
    std: float | None


class RunEntry(NamedTuple):
    """A run or a sweep in a listing.

    Attributes:
        path: Its folder, relative to the one that was listed; ``.`` for that one.
        kind: ``run`` or ``sweep``.
        state: ``done``, ``unfinished`` or ``damaged``. A sweep is done when all its started runs are.
        where: The stage that an unfinished run is at, or what is damaged; of a sweep, how many runs are done.
        date: When it was written last, in local time, as in ``2026-11-30 05:57``.
        name: The name in the config; empty if it cannot be read, and for sweeps.
        best: Its best method; None until it is done.
        seeds: The number of seeds; None if unknown.
        seconds: The time of generation and training; None where it is not completely known.
        joules: Their energy; None if it was not measured.
        runs: The runs of a sweep.
    """

    path: str
    kind: str
    state: str
    where: str
    date: str
    name: str
    best: BestMethod | None
    seeds: int | None
    seconds: float | None
    joules: float | None
    runs: tuple[RunEntry, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values = self._asdict()
        values["best"] = self.best._asdict() if self.best else None
        values["runs"] = [run.to_dict() for run in self.runs]
        return values


class _Damaged(Exception):
    """A file of a run is missing or unreadable; the message names it."""


def list_runs(folder: Path) -> list[RunEntry]:
    """Return the runs and sweeps in a folder and below it, in the order of their paths.

    Links are not followed. The state of a run is that of its records' two ends, not of all their content.

    Args:
        folder: The folder.

    Raises:
        InputError: There is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; name the one that holds your runs")
    entries = [
        _sweep(path, folder) if is_sweep else _run(path, folder) for path, is_sweep in _walk(str(folder))
    ]
    order = {path: number for number, path in enumerate(in_natural_order(entry.path for entry in entries))}
    return sorted(entries, key=lambda entry: order[entry.path])


def _walk(folder: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of runs and sweeps, and whether each is a sweep. Nothing below them is looked at."""
    try:
        with os.scandir(folder) as scan:
            children = list(scan)
    except OSError:
        return  # a folder that this user may not read
    names = {child.name for child in children}
    if SWEEP_MARKER in names:
        yield Path(folder), True
    elif _is_run(names):
        yield Path(folder), False
    else:
        for child in children:
            if not child.name.startswith(".") and child.is_dir(follow_symlinks=False):
                yield from _walk(child.path)


def _is_run(names: set[str]) -> bool:
    return RUN_MARKER in names or {RUN_CONFIG, "stages"} <= names


def _sweep(folder: Path, top: Path) -> RunEntry:
    runs = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and _is_run({file.name for file in path.iterdir()}):
            runs.append(_run(path, top))
    done = [run for run in runs if run.state == "done"]
    best = max((run.best for run in done if run.best), key=lambda best: best.mean, default=None)
    damaged = any(run.state == "damaged" for run in runs)
    state = "damaged" if damaged else "done" if len(done) == len(runs) and runs else "unfinished"
    costs = [run.seconds for run in runs if run.seconds is not None]
    joules = [run.joules for run in runs if run.joules is not None]
    return RunEntry(
        _relative(folder, top),
        "sweep",
        state,
        f"{len(done)} of {len(runs)} runs",
        max((run.date for run in runs), default=_date(folder)),
        "",
        best,
        max((run.seeds for run in runs if run.seeds is not None), default=None),
        sum(costs) if costs and len(costs) == len(runs) else None,
        sum(joules) if joules and len(joules) == len(runs) else None,
        tuple(runs),
    )


def _run(folder: Path, top: Path) -> RunEntry:
    path, summary = _relative(folder, top), folder / SUMMARY_FILE
    try:
        if summary.exists():
            return _finished(folder, path)
        name, seeds = _config(folder)
        state, where, date = _unfinished(folder)
        return RunEntry(path, "run", state, where, date, name, None, seeds, None, None)
    except _Damaged as damage:
        return RunEntry(path, "run", "damaged", str(damage), _date(folder), "", None, None, None, None)


def _finished(folder: Path, path: str) -> RunEntry:
    """Return a run with a summary.

    Raises:
        _Damaged: The summary or a record is missing or damaged.
    """
    file = folder / SUMMARY_FILE
    try:
        summary = json.loads(file.read_bytes())
        stages, methods, cost = summary["stages"], summary["methods"], summary.get("cost") or {}
        federated = {name: m["accuracy"] for name, m in methods.items() if not m.get("reference")}
        best = max(
            (BestMethod(name, float(a["mean"]), a["std"]) for name, a in federated.items()),
            key=lambda best: best.mean,
            default=None,
        )
        parts = [cost.get("training"), *([cost.get("generation")] if summary.get("synthetic") else [])]
        seconds, joules = (_sum_of(parts, figure) for figure in ("seconds", "joules"))
        name, seeds = str(summary["name"]), len(summary["seeds"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise _Damaged(SUMMARY_FILE) from None
    for stage in stages:
        if record_is_done(record_file(folder, stage)) is not True:
            raise _Damaged(f"stages/{stage}.json")
    if not (folder / RUN_CONFIG).is_file():
        raise _Damaged(RUN_CONFIG)
    return RunEntry(path, "run", "done", "", _date(file), name, best, seeds, seconds, joules)


def _sum_of(parts: list[Any], figure: str) -> float | None:
    """Return the sum of a cost; None if a part of it is not known."""
    known = [float(part[figure]) for part in parts if part and part.get(figure) is not None]
    return sum(known) if len(known) == len(parts) else None


def _unfinished(folder: Path) -> tuple[str, str, str]:
    """Return the state of a run without a summary, its stage, and when it was written last.

    Raises:
        _Damaged: A record is damaged.
    """
    records = sorted((folder / "stages").glob("*.json"), key=_modified)
    for record in records:
        done = record_is_done(record)
        if done is None:
            raise _Damaged(f"stages/{record.name}")
        if not done:
            return "unfinished", f"at {record.stem}", _date(records[-1])
    if not records:
        return "unfinished", "not started", _date(folder)
    return "unfinished", f"after {records[-1].stem}", _date(records[-1])


def record_is_done(path: Path) -> bool | None:
    """Return whether a stage's record says that the stage finished, from the two ends of the file.

    Args:
        path: The record. It may be absent.

    Returns:
        None if it is absent, cut off, or no record. `genfl.experiment.records.read_record` checks all of it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            tail = file.read(TAIL)
    except OSError:
        return None
    done = _DONE.search(head)
    return done[1] == b"true" if done and _SEALED.search(tail) else None


def _config(folder: Path) -> tuple[str, int | None]:
    """Return the name and the number of seeds in a run's config, which begins with them.

    Raises:
        _Damaged: There is none, or it begins with something else.
    """
    try:
        with (folder / RUN_CONFIG).open(encoding="utf-8") as file:
            head = file.read(HEAD)
    except FileNotFoundError:
        return "", None  # the process was killed before it wrote one
    except (OSError, ValueError):
        raise _Damaged(RUN_CONFIG) from None
    name = re.match(r"name: (.+)\n", head)
    if not name:
        raise _Damaged(RUN_CONFIG)
    seeds = re.search(r"^seeds:\n((?:- \d+\n)+)", head, re.MULTILINE)
    return name[1].strip("'\""), seeds[1].count("\n") if seeds else None


def _relative(folder: Path, top: Path) -> str:
    return folder.relative_to(top).as_posix()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _date(path: Path) -> str:
    return datetime.fromtimestamp(_modified(path)).strftime("%Y-%m-%d %H:%M")
