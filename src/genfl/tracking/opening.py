"""Opening the trackers that a config names."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path

from genfl.config import Config
from genfl.config.tracking import Track
from genfl.errors import InputError, cause
from genfl.tracking.background import REMEDY, BackgroundTracker, Sink
from genfl.tracking.mlflow import MlflowRun
from genfl.tracking.tensorboard import TensorBoardFiles

log = logging.getLogger(__name__)


def check_trackers(track: Track) -> None:
    """Check that the libraries of the trackers are installed, and that MLflow has an address.

    Args:
        track: The section of the config.

    Raises:
        InputError: Something is missing.
    """
    for name in ("tensorboard", "mlflow"):
        if getattr(track, name) and importlib.util.find_spec(name) is None:
            raise InputError(f"track.{name}: {name} is not installed; run pip install 'genfl[track]'")
    if track.mlflow and not _uri(track):
        raise InputError(
            "track.mlflow.uri: not set; set it, as in http://127.0.0.1:5000, or set the environment variable"
            " MLFLOW_TRACKING_URI"
        )


def open_trackers(config: Config, folder: Path, identity: str) -> list[BackgroundTracker]:
    """Open the trackers of a run.

    Args:
        config: The resolved config.
        folder: The run's folder.
        identity: The digest of all that the run's figures depend on.
    """
    makers: dict[str, Callable[[], Sink]] = {}
    if config.track.tensorboard:
        makers["track.tensorboard"] = lambda: TensorBoardFiles(folder)
    if config.track.mlflow:
        uri, told = _uri(config.track), told_of(config)
        experiment = config.track.mlflow.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "genfl"
        makers["track.mlflow"] = lambda: MlflowRun(folder, uri, experiment, config.name, told, identity)
    trackers = []
    for field, make in makers.items():
        try:
            trackers.append(BackgroundTracker(field, make()))
        except Exception as error:  # a library can raise anything
            log.warning("%s: %s; %s", field, cause(error), REMEDY)
    return trackers


def told_of(config: Config) -> dict[str, str]:
    """Return what trackers are told of a config: fields that ``summary.json`` has, too. No path is one.

    Args:
        config: The resolved config.
    """
    told: dict[str, object] = {
        "name": config.name,
        "seeds": config.seeds,
        "generator": config.generator.kind,
        "target_accuracy": config.report.target_accuracy,
    }
    for name, method in config.methods.items():
        told[f"{name}.algorithm"] = " + ".join(
            " ".join([part.name, *(f"{option}={value}" for option, value in part.options().items())])
            for part in method.algorithm
        )
        told[f"{name}.data"] = method.data
    return {name: str(value) for name, value in told.items()}


def _uri(track: Track) -> str:
    return (track.mlflow.uri if track.mlflow else None) or os.environ.get("MLFLOW_TRACKING_URI", "")
