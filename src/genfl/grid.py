"""Sweeps: run a config at every point of a grid of values, and collect the results in one table."""

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
from genfl.storage import digest, refuse_links, write_json, write_text

log = logging.getLogger(__name__)

GRID = "grid"
SWEEP_MARKER = ".genfl-sweep"
"""The file that marks the folder of a sweep."""

TABLE, SUMMARY = "sweep.csv", "sweep.json"


class Point(NamedTuple):
    """A point of a grid: one run.

    Attributes:
        name: The name of its folder, made from the values of the grid's fields.
        settings: The values of the grid's fields.
        config: The resolved config.
    """

    name: str
    settings: dict[str, Any]
    config: Config


class PointResult(ResultModel):
    """The figures of one run of a grid."""

    settings: dict[str, Any] = Field(description="The value of each field of the grid.")
    run: str = Field(description="Name of the run's folder, below the folder of the sweep.")
    methods: dict[str, MethodResult] = Field(description="The figures of each method, as in summary.json.")


def points(content: Mapping[str, Any]) -> list[Point]:
    """Return the points of a config's grid. The last field varies fastest.

    Args:
        content: A config of plain values, with a mapping ``grid`` from fields (``data.partition.alpha``) to
            lists of values.

    Raises:
        InputError: The grid, or the config at one of its points, has a mistake.
    """
    grid = content.get(GRID)
    if not isinstance(grid, dict) or not grid:
        raise InputError("grid: map fields to lists of values, as in grid: {federate.rounds: [10, 20]}")
    for field, values in grid.items():
        if not isinstance(field, str) or not all(field.split(".")):
            raise InputError(f"grid.{field}: not a field; name one of the config, as in federate.rounds")
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{field}: {values!r} is not a list of values; use a list, as in [10, 20]")
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
        raise InputError("grid: a value appears twice; list each value once")
    return result


@contextlib.contextmanager
def _located(name: str) -> Iterator[None]:
    """Add the point of the grid to the message of a mistake."""
    try:
        yield
    except InputError as error:
        lines = str(error).splitlines()
        raise InputError("\n".join(f"{line} (in the grid at {name})" for line in lines)) from error


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    # YAML has values without a JSON form, such as dates; the schema rejects them with the field's name
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def _short(value: Any) -> str:
    """Return a value as a part of a folder's name. Different values have different names."""
    text = _text(value)
    short = re.sub(r"[/\\]", "_", text)[:60]
    return short if short == text else f"{short}-{digest(text)[:8]}"


def run_sweep(
    content: Mapping[str, Any], folder: Path, *, fresh: bool = False, update: bool = False
) -> list[PointResult]:
    """Run a grid, or resume an interrupted one.

    Every point is a run with its own folder. A stage that is the same at several points runs once.

    Args:
        content: A config with a grid; see `points`.
        folder: The folder for the runs' folders, ``sweep.csv`` and ``sweep.json``.
        fresh: Delete earlier runs at the grid's points, and nothing else, and start over.
        update: Accept runs of other configs, and keep what is still valid; see `genfl.pipeline.execute`.

    Returns:
        The result of each point, in the order of the grid.

    Raises:
        InputError: A config of the grid has a mistake (checked before the first run), the folder holds
            something else, or it is in use.
    """
    grid = points(content)
    context = RunContext()  # shared by the runs, so each data set is read once
    for point in sorted(grid, key=lambda point: repr(point.config.data.options())):
        with _located(point.name):
            pipeline.checked(point.config, context)
    with pipeline.holding(folder, "sweep", SWEEP_MARKER):
        return _sweep(grid, folder, context, fresh=fresh, update=update)


def _sweep(
    grid: list[Point], folder: Path, context: RunContext, *, fresh: bool, update: bool
) -> list[PointResult]:
    refuse_links(folder, [point.name for point in grid])
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
    """Return a CSV table with a row for each run and method. The figures are not rounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = list(results[0].settings)
    figures = ("accuracy_mean", "accuracy_std", "macro_f1_mean", "macro_f1_std", "rounds_to_target")
    writer.writerow((*fields, "method", *figures))
    for result in results:
        values = [_text(result.settings[field]) for field in fields]
        for name, method in result.methods.items():
            accuracy, f1 = method.accuracy, method.macro_f1
            scores = (accuracy.mean, accuracy.std, f1.mean, f1.std)  # None for a single seed
            writer.writerow((*values, name, *scores, method.rounds_to_target))
    return file.getvalue()


def sweep_status(folder: Path) -> list[tuple[str, ...]]:
    """Return a row for each started run of a sweep: its folder, its current stage, and the stage's progress.

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
    """Return the header and the rows of a table of accuracies: a row per run, a column per method."""
    from genfl.report.text import mean_std

    names = list(dict.fromkeys(name for result in results for name in result.methods))
    rows = []
    for result in results:
        methods = result.methods
        scores = (mean_std(methods[name].accuracy) if name in methods else "–" for name in names)
        rows.append((*map(_text, result.settings.values()), *scores))
    return (*results[0].settings, *names), rows
