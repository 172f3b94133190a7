"""What a stage of the pipeline is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from genfl.config import Config
from genfl.experiment.folder import Run


class Stage(NamedTuple):
    """A step of the pipeline.

    Attributes:
        name: What ``--until`` and the records call it.
        folder: Where its files go, below the run's folder.
        version: Raised whenever the same inputs would give other files.
        inputs: The parts of the config it reads, as plain values; they decide whether it is up to date.
        needs: The stages whose outputs it reads.
        run: Does the work, going on with what an interrupted run left; returns plain values for the record,
            or None where it did its share of the work and others have yet to do theirs.
        progress: ``(run) -> (done, total, unit)`` of an unfinished stage, from its files; None if it is
            too short to tell.
        keeps: Whether its own files carry what they depend on, so that they are kept when the config changes
            and the stage sorts out which are still good.
        check: Raises InputError for what the schema cannot see (files, models, splits), before any stage
            works.
        wanted: Whether a config has any use for it; where not, it is left out.
        gives: What stages after it read of its output, where the config alone says that; None for all of it.
    """

    name: str
    folder: str
    version: int
    inputs: Callable[[Config], Any]
    needs: tuple[str, ...]
    run: Callable[[Run], dict[str, Any] | None]
    progress: Callable[[Run], tuple[int, int, str]] | None = None
    check: Callable[[Config], object] = lambda config: None
    keeps: bool = False
    wanted: Callable[[Config], bool] = lambda config: True
    gives: Callable[[Config], Any] | None = None
