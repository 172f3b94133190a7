"""sweep: one config with lists of values becomes a grid of runs, and one table."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from genfl import config as configs
from genfl import pipeline
from genfl.config import Config
from genfl.errors import InputError
from genfl.storage import write_json, write_text

log = logging.getLogger(__name__)

GRID = "grid"
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


def points(content: Mapping[str, Any]) -> list[Point]:
    """Returns the runs that a config with a grid stands for, the last field varying fastest.

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
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{field}: give a list of values, not {values!r}")
    found = []
    for combination in itertools.product(*grid.values()):
        settings = dict(zip(grid, combination, strict=True))
        plain = copy.deepcopy({name: value for name, value in content.items() if name != GRID})
        for field, value in settings.items():
            configs.put(plain, field, value)
        name = ",".join(f"{field}={_short(value)}" for field, value in settings.items())
        try:
            found.append(Point(name, settings, configs.validate(plain)))
        except InputError as error:
            lines = str(error).splitlines()
            raise InputError("\n".join(f"{line} (in the grid at {name})" for line in lines)) from error
    if len({point.name for point in found}) < len(found):
        raise InputError("grid: a value is given twice")
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("/", "_").replace("\\", "_")[:60]


def sweep(content: Mapping[str, Any], folder: Path, *, update: bool = False) -> list[dict[str, Any]]:
    """Runs a grid, or goes on with one that was interrupted.

    Every point is a run in a folder of its own. Stages that are the same at several points are done once.

    Args:
        content: See `points`.
        folder: Where the runs' folders, ``sweep.csv`` and ``sweep.json`` go.
        update: Take over runs of other configs; see `genfl.pipeline.execute`.

    Returns:
        For each point its ``settings``, ``run`` (the folder's name) and ``methods``, as in ``summary.json``.

    Raises:
        InputError: The config is not as it must be; found out before the first run.
    """
    grid = points(content)
    results: list[dict[str, Any]] = []
    done: list[Path] = []
    for number, point in enumerate(grid, start=1):
        log.info("run %d of %d: %s", number, len(grid), point.name)
        place = folder / point.name
        summary = pipeline.execute(point.config, place, update=update, others=done)
        assert summary is not None
        done.append(place)
        results.append({"settings": point.settings, "run": point.name, "methods": summary["methods"]})
        write_json(folder / SUMMARY, results)
        write_text(folder / TABLE, table(results))
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Returns a row for each run and method, with unrounded figures, as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = list(results[0]["settings"])
    figures = ("accuracy_mean", "accuracy_std", "macro_f1_mean", "macro_f1_std", "rounds_to_target")
    writer.writerow((*fields, "method", *figures))
    for result in results:
        values = [_short(result["settings"][field]) for field in fields]
        for name, method in result["methods"].items():
            scores = [method[score][part] for score in ("accuracy", "macro_f1") for part in ("mean", "std")]
            writer.writerow((*values, name, *scores, method["rounds_to_target"]))
    return file.getvalue()


def overview(results: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns header and rows of a table of accuracies: a row for each run, a column for each method."""
    from genfl.report.text import mean_std

    names = list(dict.fromkeys(name for result in results for name in result["methods"]))
    rows = []
    for result in results:
        methods = result["methods"]
        scores = (mean_std(methods[name]["accuracy"]) if name in methods else "–" for name in names)
        rows.append((*map(_short, result["settings"].values()), *scores))
    return (*results[0]["settings"], *names), rows
