"""sweep: one config with lists of values becomes a grid of runs, and one table."""

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

from genfl import config as configs
from genfl import pipeline
from genfl.config import Config
from genfl.errors import InputError
from genfl.experiment.context import Context
from genfl.storage import digest, write_json, write_text

log = logging.getLogger(__name__)

GRID = "grid"
MARKER = ".genfl-sweep"
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
        if not isinstance(field, str) or not all(field.split(".")):
            raise InputError(f"grid.{field}: name a field of the config, as in federate.rounds")
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{field}: give a list of values, not {values!r}")
    found = []
    for combination in itertools.product(*grid.values()):
        settings = dict(zip(grid, combination, strict=True))
        plain = copy.deepcopy({name: value for name, value in content.items() if name != GRID})
        for field, value in settings.items():
            configs.put(plain, field, value)
        name = ",".join(f"{field}={_short(value)}" for field, value in settings.items())
        with _located(name):
            found.append(Point(name, settings, configs.validate(plain)))
    if len({point.name for point in found}) < len(found):
        raise InputError("grid: a value is given twice")
    return found


@contextlib.contextmanager
def _located(name: str) -> Iterator[None]:
    """Says at which point of the grid a mistake is."""
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
    """Returns a value as a part of a folder's name: another one for each value."""
    text = _text(value)
    short = re.sub(r"[/\\]", "_", text)[:60]
    return short if short == text else f"{short}-{digest(text)[:8]}"


def sweep(
    content: Mapping[str, Any], folder: Path, *, fresh: bool = False, update: bool = False
) -> list[dict[str, Any]]:
    """Runs a grid, or goes on with one that was interrupted.

    Every point is a run in a folder of its own. Stages that are the same at several points are done once.

    Args:
        content: See `points`.
        folder: Where the runs' folders, ``sweep.csv`` and ``sweep.json`` go.
        fresh: Delete earlier runs at the grid's points, and nothing else, and start over.
        update: Take over runs of other configs; see `genfl.pipeline.execute`.

    Returns:
        For each point its ``settings``, ``run`` (the folder's name) and ``methods``, as in ``summary.json``.

    Raises:
        InputError: The config is not as it must be, found out before the first run; or the folder holds
            something else, or is in use.
    """
    grid = points(content)
    context = Context()  # the runs share it, so that each data set is read once
    for point in sorted(grid, key=lambda point: repr(point.config.data.options())):
        with _located(point.name):
            pipeline.checked(point.config, context)
    with pipeline.holding(folder, "sweep", MARKER):
        return _sweep(grid, folder, context, fresh=fresh, update=update)


def _sweep(
    grid: list[Point], folder: Path, context: Context, *, fresh: bool, update: bool
) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    done: list[Path] = []
    for number, point in enumerate(grid, start=1):
        log.info("run %d of %d: %s", number, len(grid), point.name)
        place = folder / point.name
        summary = pipeline.execute(
            point.config, place, fresh=fresh, update=update, others=done, context=context
        )
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
        values = [_text(result["settings"][field]) for field in fields]
        for name, method in result["methods"].items():
            scores = itertools.chain(*(_spread(method[score]) for score in ("accuracy", "macro_f1")))
            writer.writerow((*values, name, *scores, method["rounds_to_target"]))
    return file.getvalue()


def _spread(figure: Mapping[str, Any]) -> tuple[float, float | None]:
    """Returns mean and standard deviation, which a single seed has not."""
    return figure["mean"], figure["std"]


def status(folder: Path) -> list[tuple[str, ...]]:
    """Says how far the runs of a sweep are that were begun: folder, stage, and the stage's progress."""
    rows: list[tuple[str, ...]] = []
    for place in sorted(path.parent for path in folder.glob(f"*/{pipeline.CONFIG}")):
        left = [stage for stage in pipeline.status(place) if stage.state != "done"]
        rows.append((place.name, left[0].name if left else "done", left[0].progress if left else ""))
    return rows


def overview(results: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns header and rows of a table of accuracies: a row for each run, a column for each method."""
    from genfl.report.text import mean_std

    names = list(dict.fromkeys(name for result in results for name in result["methods"]))
    rows = []
    for result in results:
        methods = result["methods"]
        scores = (mean_std(methods[name]["accuracy"]) if name in methods else "–" for name in names)
        rows.append((*map(_text, result["settings"].values()), *scores))
    return (*results[0]["settings"], *names), rows
