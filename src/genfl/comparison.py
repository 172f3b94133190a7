"""Runs side by side: read them from their folders, compare them, and write the page and the tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from genfl import config as configs
from genfl.errors import GenflError, InputError, cause
from genfl.experiment.records import RUN_CONFIG, SUMMARY_FILE, SWEEP_MARKER, check_finished
from genfl.natural_order import in_natural_order
from genfl.output import writing_output
from genfl.results.comparison import ComparedRun, Comparison, compare_runs
from genfl.results.schema import Summary
from genfl.results.sweep import SWEEP_SUMMARY
from genfl.storage import write_text

COMPARISON_MARKER = ".genfl-comparison"
"""The file that marks the folder of a comparison."""

COMPARISON_PAGE, COMPARISON_CSV, COMPARISON_TEX = "index.html", "comparison.csv", "comparison.tex"


def compare_folders(folders: Sequence[Path], baseline: str | None = None) -> Comparison:
    """Compare the runs in some folders.

    Args:
        folders: Folders of finished runs. A folder of a sweep stands for all its finished runs.
        baseline: What to compare with; see `genfl.results.comparison.compare_runs`.

    Raises:
        InputError: A folder holds no finished run, there is one run only, or no such baseline.
    """
    runs: list[Path] = []
    notes: list[str] = []
    for folder in folders:
        if (folder / SWEEP_MARKER).exists():
            finished, unfinished = sweep_runs(folder)
            runs += finished
            if unfinished:
                left = "{} run of {} is not finished, so it is", "{} runs of {} are not finished, so they are"
                note = left[len(unfinished) > 1].format(len(unfinished), folder)
                notes.append(f"{note} left out.")
        else:
            runs.append(folder)
    resolved = [run.resolve() for run in runs]
    twice = next((run for n, run in enumerate(runs) if resolved[n] in resolved[:n]), None)
    if twice is not None:
        raise InputError(f"{twice}: it is named twice; name each run once")
    read = [read_run(run, name) for run, name in zip(runs, _short_names(resolved), strict=True)]
    if len(read) < 2:
        named = ", ".join(map(str, folders)) or "no folder"
        raise InputError(
            f"{named}: {'one run' if read else 'no finished run'}, and there is nothing to compare it with;"
            " name two runs or more, or a sweep"
        )
    comparison = compare_runs(read, baseline)
    return replace(comparison, warnings=(*notes, *comparison.warnings))


def read_run(folder: Path, name: str) -> ComparedRun:
    """Return a finished run.

    Args:
        folder: Its folder.
        name: What the comparison calls it.

    Raises:
        InputError: The folder holds no finished run.
    """
    check_finished(folder, "runs")
    try:
        summary = Summary.read(folder / SUMMARY_FILE)
    except InputError:
        raise
    except GenflError as error:
        raise InputError(f"{folder}: {cause(error)}") from error
    return ComparedRun(name, folder, summary, configs.with_defaults(configs.settings_of(folder / RUN_CONFIG)))


def sweep_runs(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders of a sweep's finished runs, in the order of its grid, and of the others.

    Args:
        folder: The folder of the sweep.
    """
    started = {path.parent.name for path in folder.glob(f"*/{RUN_CONFIG}")}
    try:
        points = json.loads((folder / SWEEP_SUMMARY).read_text(encoding="utf-8"))
        order = [name for name in (point["run"] for point in points) if name in started]
    except (OSError, ValueError, LookupError, TypeError):
        order = []  # it is written again with the sweep's next run
    names = [*order, *in_natural_order(started - set(order))]
    done = [folder / name for name in names if (folder / name / SUMMARY_FILE).is_file()]
    return done, [folder / name for name in names if folder / name not in done]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Return the end of each path, with as many of its parts as tell the folders apart."""
    names = []
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        for length in range(1, len(folder.parts) + 1):
            end = folder.parts[-length:]
            if all(other[-length:] != end for other in others):
                break
        names.append("/".join(end))
    return names


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write the page of a comparison and its tables.

    Args:
        comparison: The comparison.
        out: The folder: a new or empty one, or that of an earlier comparison.

    Returns:
        The page.

    Raises:
        InputError: The folder holds something else, is in use, or belongs to a run.
    """
    from genfl.report.comparison_page import comparison_csv, comparison_tex, render_comparison

    names = [COMPARISON_PAGE, COMPARISON_CSV, COMPARISON_TEX]
    with writing_output(out, "comparison", COMPARISON_MARKER, names):
        write_text(out / COMPARISON_CSV, comparison_csv(comparison))
        write_text(out / COMPARISON_TEX, comparison_tex(comparison))
        write_text(out / COMPARISON_PAGE, render_comparison(comparison, out))
    return out / COMPARISON_PAGE
