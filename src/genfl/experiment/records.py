"""The records of a run's stages, and the status of a finished run. This module imports nothing slow."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from genfl.errors import GenflError, InputError, on_one_line
from genfl.storage import digest, is_below, read_json, write_json

log = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
"""The file in a run's folder that holds its `genfl.results.schema.Summary`. Only a finished run has it."""

RUN_MARKER = ".genfl"
"""The file that marks a run's folder."""

SWEEP_MARKER = ".genfl-sweep"
"""The file that marks the folder of a sweep."""

RUN_CONFIG = "config.yaml"
"""The file in a run's folder that holds its resolved config."""

STAGE_FOLDERS = {"generate": "synthetic"}
"""The folders of stages that are not called as the stage."""


class StageStatus(NamedTuple):
    """The status of a stage of a run.

    Attributes:
        name: The stage.
        state: ``done``, ``partial`` (interrupted or running) or ``missing``.
        seconds: Its duration in seconds; None if it is not done.
        progress: Its progress, for example ``350 of 2000 samples``; empty if unknown.
    """

    name: str
    state: str
    seconds: float | None
    progress: str


def check_finished(folder: Path, field: str) -> None:
    """Check that a folder holds a finished run.

    Args:
        folder: The folder.
        field: The argument that names it, for messages.

    Raises:
        InputError: It is the folder of a sweep, holds no run, or one that is not finished.
    """
    name = on_one_line(folder, 200)
    if (folder / SWEEP_MARKER).exists():
        raise InputError(f"{field}: {name} is the folder of a sweep; name one of the runs in it")
    if not (folder / RUN_CONFIG).is_file():
        raise InputError(f"{field}: {name} holds no run, as it has no {RUN_CONFIG}; name the folder of a run")
    if not (folder / SUMMARY_FILE).is_file():
        raise InputError(
            f"{field}: the run in {name} is not finished, as it has no {SUMMARY_FILE}; resume it with genfl"
            f" run {folder / RUN_CONFIG} --out {folder}"
        )


def record_file(folder: Path, stage: str) -> Path:
    """Return the file of a stage's record in a run's folder."""
    return folder / "stages" / f"{stage}.json"


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a stage's record with a checksum."""
    write_json(path, {**content, "sha256": digest(content)})


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a stage's record. None if there is none, or if it is damaged."""
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = read_json(path)
        intact = content.pop("sha256") == digest(content)
        if intact and all(map(is_below, content.get("files", ()))):
            return content
    except (GenflError, LookupError, TypeError, AttributeError):
        pass
    log.warning("%s is damaged; its stage will run again", path)
    return None


def finished_status(folder: Path) -> list[StageStatus] | None:
    """Return the status of each stage of a finished run, from its summary and records alone.

    Args:
        folder: The run's folder.

    Returns:
        None if the run is not finished, or a file of it is missing or damaged.
    """
    rows = []
    try:
        stages = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))["stages"]
        for name in stages:
            record = read_record(record_file(folder, name))
            if record is None or not record["done"]:
                return None
            stage_folder = folder / STAGE_FOLDERS.get(name, name)
            if not all((stage_folder / path).is_file() for path in record["files"]):
                return None
            rows.append(StageStatus(name, "done", record["seconds"], ""))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return rows


def sweep_rows(folder: Path, run_status: Callable[[Path], list[StageStatus]]) -> list[tuple[str, ...]]:
    """Return a row for each started run of a sweep: its folder, its current stage, and the stage's progress.

    Args:
        folder: The folder of the sweep.
        run_status: Returns the status of the stages of a run.
    """
    rows: list[tuple[str, ...]] = []
    for run_folder in sorted(path.parent for path in folder.glob(f"*/{RUN_CONFIG}")):
        unfinished = [stage for stage in run_status(run_folder) if stage.state != "done"]
        name, progress = (unfinished[0].name, unfinished[0].progress) if unfinished else ("done", "")
        rows.append((run_folder.name, name, progress))
    return rows
