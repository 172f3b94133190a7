"""Whether clients work in batches: what the config says, or what was found right when the run began."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from genfl.algorithms.base import Algorithm
from genfl.config import Config, Method
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.auto import Choice, choose, obstacle
from genfl.engines.pool import cores
from genfl.errors import GenflError
from genfl.experiment.context import data_digest
from genfl.experiment.folder import Run
from genfl.learning.task import Task, Weights
from genfl.storage import digest, read_json, write_json

log = logging.getLogger(__name__)

AUTO = "auto"


def batched(run: Run, method: Method) -> bool:
    """Returns whether a method's clients work in batches."""
    if run.config.federate.engine != AUTO:
        return run.config.federate.engine == "vectorized"
    found = _found(run)
    return found["batched"] and _name(method) in found["methods"] and not found["methods"][_name(method)]


def decide_engine(run: Run, task: Task, weights: Weights, data: ClientData, schedule: Schedule) -> None:
    """Decides for ``auto``, once for all seeds of a run, and keeps it in the run's folder.

    Args:
        run: The run.
        task: What is learned.
        weights: A global model.
        data: What clients hold of their own, with the first seed.
        schedule: Rounds, cohorts, local work, the same for all methods.
    """
    if run.config.federate.engine != AUTO:
        return
    found = _found(run)
    if not found["why"]:
        if run.config.device != "cpu":
            choice = Choice(False, "what pays on a GPU has not been measured")
        elif run.config.federate.heterogeneity:
            choice = Choice(False, "local models are measured as well")
        else:
            choice = choose(task, weights, data, schedule)
        found |= {**choice._asdict(), "cores": cores()}
        write_json(_file(run), found)
    log.info("clients run %s: %s", "in batches" if found["batched"] else "one by one", found["why"])


def decide_engine_for(
    run: Run, name: str, algorithm: Algorithm, weights: Weights, data: ClientData, schedule: Schedule
) -> None:
    """Sees, once, whether a method's clients can work in batches where the run's do, and keeps that.

    Args:
        run: The run.
        name: The method's.
        algorithm: What its clients and server compute.
        weights: A global model.
        data: What its clients hold.
        schedule: Rounds, cohorts, local work.
    """
    method, found = run.config.methods[name], _found(run)
    if run.config.federate.engine != AUTO or not found["batched"] or _name(method) in found["methods"]:
        return
    if method.reference is not None:
        problem: str | None = "a single client works in a round"
    elif method.data != "private":
        problem = "its clients hold generated data, too"
    else:
        problem = obstacle(algorithm, weights, data, schedule)
    if problem and method.reference is None:
        log.info("clients of %s run one by one: %s", name, problem)
    found["methods"][_name(method)] = problem
    write_json(_file(run), found)


def _found(run: Run) -> dict[str, Any]:
    """Returns what was decided for a config like this: the run's choice, and each method's obstacle."""
    nothing = {"key": _key(run.config), "batched": False, "why": "", "methods": {}}
    try:
        stored = read_json(_file(run)) if _file(run).exists() else nothing
        if stored["key"] == nothing["key"] and stored.keys() >= nothing.keys():
            return dict(stored)
    except (GenflError, KeyError, TypeError, AttributeError):
        log.warning("%s is damaged: it is decided anew how clients run", _file(run))
    return nothing


def _file(run: Run) -> Path:
    return run.folder / "federate" / "engine.json"


def _name(method: Method) -> str:
    return digest(method.model_dump())


def _key(config: Config) -> str:
    """Returns a digest of what decides it, machine and methods apart."""
    federation = config.federate.model_dump(exclude={"rounds", "evaluate_every", "checkpoint_every"})
    data = [data_digest(config.data), config.data.partition.model_dump()]
    return digest([config.precision, config.device, config.model.model_dump(), data, federation])
