"""Sweeps: run a config at every point of a grid of values, and collect the results in one table."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from genfl import config as configs
from genfl import pipeline
from genfl.config import Config
from genfl.errors import InputError, on_one_line
from genfl.experiment import records
from genfl.experiment.context import RunContext
from genfl.experiment.records import RUN_CONFIG, SWEEP_MARKER
from genfl.results.comparison import ComparedRun, compare_runs
from genfl.results.schema import MethodResult, Summary
from genfl.results.sweep import SWEEP_SUMMARY, PointResult, setting_text
from genfl.storage import digest, refuse_links, write_json, write_text

log = logging.getLogger(__name__)

GRID = "grid"

MOST_POINTS = 10_000
"""The largest number of points of a grid."""

LONGEST_POINT = 255
"""The largest number of bytes in the name of a point's folder, as file systems have it."""

PAGE_SECONDS = 60.0
"""The least time between two versions of a sweep's page. Drawing its charts takes seconds."""

TABLE, SWEEP_PAGE, LATEX_TABLE = "sweep.csv", "index.html", "sweep.tex"


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
            raise InputError(
                f"grid.{on_one_line(field)}: not a field; name one of the config, as in federate.rounds"
            )
        if not isinstance(values, list) or not values:
            raise InputError(
                f"grid.{field}: {on_one_line(values)} is not a list of values; use a list, as in [10, 20]"
            )
    if (count := math.prod(map(len, grid.values()))) > MOST_POINTS:
        raise InputError(f"grid: it has {count} points; use at most {MOST_POINTS}")
    result = []
    for combination in itertools.product(*grid.values()):
        settings = dict(zip(grid, combination, strict=True))
        plain = configs.plain_copy({name: value for name, value in content.items() if name != GRID})
        for field, value in settings.items():
            configs.put(plain, field, value)
        name = _folder_name(settings)
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


def _folder_name(settings: Mapping[str, Any]) -> str:
    """Return the name of a point's folder. Different settings have different names."""
    name = ",".join(
        _shortened(field, 255) + "=" + _shortened(setting_text(value), 60)
        for field, value in settings.items()
    )
    if len(name.encode()) <= LONGEST_POINT:
        return name
    ending = f"-{digest(name)[:8]}"
    return name.encode()[: LONGEST_POINT - len(ending)].decode(errors="ignore") + ending


def _shortened(text: str, limit: int) -> str:
    """Return a text as a part of a folder's name. Different texts have different names."""
    short = re.sub(r"[/\\\x00-\x1f\x7f]", "_", text)[:limit]
    return short if short == text else f"{short}-{digest(text)[:8]}"


def sweep_folder(content: Mapping[str, Any], out: Path | None) -> Path:
    """Return the folder of a sweep.

    Args:
        content: The config of plain values.
        out: The folder that was asked for; None for ``runs/NAME``.

    Raises:
        InputError: The config has no name, or one that cannot be a folder's.
    """
    if out is not None:
        return out
    if not isinstance(content.get("name"), str):
        raise InputError("name: missing, so the sweep has no folder; set name in the config, or use --out")
    return Path("runs") / configs.folder_name(content["name"])


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
    grid = points(configs.plain_copy(content))
    context = RunContext()  # shared by the runs, so each data set is read once
    for point in sorted(grid, key=lambda point: repr(point.config.data.options())):
        with _located(point.name):
            pipeline.checked(point.config, context)
    with pipeline.explaining_full_disk(folder), pipeline.holding(folder, "sweep", SWEEP_MARKER):
        return _sweep(grid, folder, context, fresh=fresh, update=update)


def _sweep(
    grid: list[Point], folder: Path, context: RunContext, *, fresh: bool, update: bool
) -> list[PointResult]:
    refuse_links(folder, [point.name for point in grid])
    results: list[PointResult] = []
    runs: list[ComparedRun] = []
    drawn = -PAGE_SECONDS
    for number, point in enumerate(grid, start=1):
        log.info("run %d of %d: %s", number, len(grid), point.name)
        run_folder = folder / point.name
        summary = pipeline.execute(
            point.config,
            run_folder,
            fresh=fresh,
            update=update,
            others=[run.folder for run in runs],
            context=context,
        )
        assert summary is not None
        figures = Summary.parse(summary)
        runs.append(
            ComparedRun(
                point.name,
                run_folder,
                figures,
                configs.settings_of(run_folder / RUN_CONFIG),
            )
        )
        results.append(PointResult(settings=point.settings, run=point.name, methods=figures.methods))
        write_json(folder / SWEEP_SUMMARY, [result.to_dict() for result in results])
        write_text(folder / TABLE, table(results))
        if number == len(grid) or time.monotonic() - drawn > PAGE_SECONDS:
            _write_page(folder, results, runs, len(grid))
            drawn = time.monotonic()
    return results


def _write_page(folder: Path, results: list[PointResult], runs: list[ComparedRun], planned: int) -> None:
    from genfl.report.sweep_page import render_sweep, sweep_tex

    name = folder.resolve().name
    write_text(folder / SWEEP_PAGE, render_sweep(name, results, planned, compare_runs(runs)))
    write_text(folder / LATEX_TABLE, sweep_tex(name, results))


def table(results: list[PointResult]) -> str:
    """Return a CSV table with a row for each run and method. The figures are not rounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = list(results[0].settings)
    figures = (
        *("accuracy_mean", "accuracy_std", "macro_f1_mean", "macro_f1_std", "rounds_to_target"),
        *("bytes_to_target", *next(iter(results[0].methods.values())).cost_cells),
    )
    reached = {target.accuracy for result in results for m in result.methods.values() for target in m.targets}
    targets = sorted(reached) if len(reached) > 1 else []
    goals = (f"{what}_to_{target:g}" for target in targets for what in ("rounds", "bytes"))
    writer.writerow((*fields, "method", *figures, *goals))
    for result in results:
        values = [setting_text(result.settings[field]) for field in fields]
        for name, method in result.methods.items():
            accuracy, f1 = method.accuracy, method.macro_f1
            scores = (accuracy.mean, accuracy.std, f1.mean, f1.std)  # None for a single seed
            reach = (method.rounds_to_target, method.bytes_to_target)
            writer.writerow(
                (*values, name, *scores, *reach, *method.cost_cells.values(), *_reach(method, targets))
            )
    return file.getvalue()


def _reach(method: MethodResult, targets: Sequence[float]) -> list[int | None]:
    """Return rounds and bytes to each target; None where it is not reached, or none of the run's."""
    reached = {target.accuracy: (target.rounds, target.bytes) for target in method.targets}
    return [cell for target in targets for cell in reached.get(target, (None, None))]


def sweep_status(folder: Path) -> list[tuple[str, ...]]:
    """Return a row for each started run of a sweep: its folder, its current stage, and the stage's progress.

    Args:
        folder: The folder of the sweep.
    """
    return records.sweep_rows(folder, pipeline.run_status)


def overview(results: list[PointResult]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows of a table of accuracies: a row per run, a column per method."""
    from genfl.report.text import mean_std

    names = list(dict.fromkeys(name for result in results for name in result.methods))
    rows = []
    for result in results:
        methods = result.methods
        scores = (mean_std(methods[name].accuracy) if name in methods else "–" for name in names)
        rows.append((*map(setting_text, result.settings.values()), *scores))
    return (*results[0].settings, *names), rows
