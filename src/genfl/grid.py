"""Run a config at every point of a grid of values, and collect the results in one table."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from genfl import config as configs
from genfl import pipeline
from genfl.config import Config
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.results.schema import MethodResult, ResultModel, Summary
from genfl.storage import digest, write_json, write_text

log = logging.getLogger(__name__)

GRID = "grid"
SWEEP_MARKER = ".genfl-sweep"
"""What a folder of a sweep is known by."""

TABLE, SUMMARY = "sweep.csv", "sweep.json"


class Point(NamedTuple):
    """A run of a grid.

    Attributes:
        name: Of its folder, made of what is special about it.
        settings: The values of the grid's fields.
        config: The resolved config.
    """

    name: str
    settings: dict[str, Any]
    config: Config


class PointResult(ResultModel):
    """The figures of a run of a grid."""

    settings: dict[str, Any] = Field(description="The value of each field of the grid.")
    run: str = Field(description="Name of the run's folder, below that of the sweep.")
    methods: dict[str, MethodResult] = Field(description="The figures of each method, as in summary.json.")


def points(content: Mapping[str, Any]) -> list[Point]:
    """Return the runs that a config with a grid stands for, the last field varying fastest.

    Args:
        content: A config as plain values, with a mapping ``grid`` of fields (``data.partition.alpha``) to
            lists of their values.

    Raises:
        InputError: The grid, or the config at one of its points, is not as it must be.
    """
    grid = content.get(GRID)
    if not isinstance(grid, dict) or not grid:
        raise InputError("grid: name fields with lists of values, as in grid: {federate.rounds: [10, 20]}")
    for field, values in grid.items():
        if not isinstance(field, str) or not all(field.split(".")):
            raise InputError(f"grid.{field}: name a field of the config, as in federate.rounds")
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{field}: give a list of values, not {values!r}")
    result = []
    for combination in itertools.product(*grid.values()):
        settings = dict(zip(grid, combination, strict=True))
        plain = copy.deepcopy({name: value for name, value in content.items() if name != GRID})
        for field, value in settings.items():
            configs.put(plain, field, value)
        name = ",".join(f"{field}={_short(value)}" for field, value in settings.items())
        with _located(name):
            result.append(Point(name, settings, configs.validate(plain)))
    if len({point.name for point in result}) < len(result):
        raise InputError("grid: a value is given twice")
    return result


@contextlib.contextmanager
def _located(name: str) -> Iterator[None]:
    """Say at which point of the grid a mistake is."""
    try:
        yield
    except InputError as error:
        lines = str(error).splitlines()
        raise InputError("\n".join(f"{line} (in the grid at {name})" for line in lines)) from error


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    # YAML has values that JSON has not (dates); the schema refuses them by name
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def _short(value: Any) -> str:
    """Return a value as a part of a folder's name: another one for each value."""
    text = _text(value)
    short = re.sub(r"[/\\]", "_", text)[:60]
    return short if short == text else f"{short}-{digest(text)[:8]}"


def run_sweep(
    content: Mapping[str, Any], folder: Path, *, fresh: bool = False, update: bool = False
) -> list[PointResult]:
    """Run a grid, or resume one that was interrupted.

    Every point is a run in a folder of its own. Stages that are the same at several points run once.

    Args:
        content: See `points`.
        folder: Where the runs' folders, ``sweep.csv`` and ``sweep.json`` go.
        fresh: Delete earlier runs at the grid's points, and nothing else, and start over.
        update: Keep what is still valid in runs of other configs; see `genfl.pipeline.execute`.

    Returns:
        The result of each point, in the order of the grid.

    Raises:
        InputError: A config of the grid is wrong, which is checked before the first run; or the folder holds
            something else, or is in use.
    """
    grid = points(content)
    context = RunContext()  # the runs share it, so that each data set is read once
    for point in sorted(grid, key=lambda point: repr(point.config.data.options())):
        with _located(point.name):
            pipeline.checked(point.config, context)
    with pipeline.holding(folder, "sweep", SWEEP_MARKER):
        return _sweep(grid, folder, context, fresh=fresh, update=update)


def _sweep(
    grid: list[Point], folder: Path, context: RunContext, *, fresh: bool, update: bool
) -> list[PointResult]:
    results: list[PointResult] = []
    done: list[Path] = []
    for number, point in enumerate(grid, start=1):
        log.info("run %d of %d: %s", number, len(grid), point.name)
        run_folder = folder / point.name
        summary = pipeline.execute(
            point.config, run_folder, fresh=fresh, update=update, others=done, context=context
        )
        assert summary is not None
        done.append(run_folder)
        methods = Summary.parse(summary).methods
        results.append(PointResult(settings=point.settings, run=point.name, methods=methods))
        write_json(folder / SUMMARY, [result.to_dict() for result in results])
        write_text(folder / TABLE, table(results))
    return results


def table(results: list[PointResult]) -> str:
    """Return a row for each run and method, with unrounded figures, as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = list(results[0].settings)
    figures = ("accuracy_mean", "accuracy_std", "macro_f1_mean", "macro_f1_std", "rounds_to_target")
    writer.writerow((*fields, "method", *figures))
    for result in results:
        values = [_text(result.settings[field]) for field in fields]
        for name, method in result.methods.items():
            accuracy, f1 = method.accuracy, method.macro_f1
            scores = (accuracy.mean, accuracy.std, f1.mean, f1.std)  # a single seed has no deviation
            writer.writerow((*values, name, *scores, method.rounds_to_target))
    return file.getvalue()


def sweep_status(folder: Path) -> list[tuple[str, ...]]:
    """Return the progress of each run of a sweep that was begun: its folder, its stage, and how far that is.

    Args:
        folder: The folder of the sweep.
    """
    rows: list[tuple[str, ...]] = []
    for run_folder in sorted(path.parent for path in folder.glob(f"*/{pipeline.CONFIG}")):
        unfinished = [stage for stage in pipeline.run_status(run_folder) if stage.state != "done"]
        name, progress = (unfinished[0].name, unfinished[0].progress) if unfinished else ("done", "")
        rows.append((run_folder.name, name, progress))
    return rows


def overview(results: list[PointResult]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of a table of accuracies: a row for each run, a column for each method."""
    from genfl.report.text import mean_std

    names = list(dict.fromkeys(name for result in results for name in result.methods))
    rows = []
    for result in results:
        methods = result.methods
        scores = (mean_std(methods[name].accuracy) if name in methods else "–" for name in names)
        rows.append((*map(_text, result.settings.values()), *scores))
    return (*results[0].settings, *names), rows
