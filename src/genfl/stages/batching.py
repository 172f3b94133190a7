"""Whether the clients of a run work in batches: what the config says, or was found right when it began."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from genfl.algorithms.base import Algorithm
from genfl.config import Config, Method
from genfl.data.clients import ClientData
from genfl.engines.choice import Choice, choose
from genfl.engines.parallel import cores
from genfl.engines.rounds import Schedule
from genfl.learning.task import Task, Weights
from genfl.run import Run, data_key
from genfl.storage import digest, read_json, write_json

log = logging.getLogger(__name__)

AUTO = "auto"


def batched(run: Run, method: Method) -> bool:
    """Returns whether a method's clients work in batches; those of references work alone in a round."""
    if run.config.federate.engine != AUTO:
        return run.config.federate.engine == "vectorised"
    found = _found(run)
    return found is not None and found.batched and method.reference is None


def settle(
    run: Run,
    algorithms: Iterable[Algorithm],
    task: Task,
    weights: Weights,
    data: ClientData,
    schedule: Schedule,
) -> None:
    """Decides for ``auto``, once for all methods and seeds of a run, and keeps it in the run's folder.

    Args:
        run: The run.
        algorithms: What clients and servers of its federated methods compute.
        task: What is learned.
        weights: A global model.
        data: What clients hold of their own, with the first seed.
        schedule: Rounds, cohorts, local work, the same for all.
    """
    config = run.config
    if config.federate.engine != AUTO:
        return
    choice = _found(run)
    if choice is None:
        if config.federate.heterogeneity:
            choice = Choice(False, "local models are measured as well")
        elif any(method.data != "private" for method in config.methods.values()):
            choice = Choice(False, "some hold generated data, too")
        else:
            choice = choose(algorithms, task, weights, data, schedule)
        write_json(_file(run), {**choice._asdict(), "cores": cores(), "key": _key(config)})
    log.info("clients run %s: %s", "in batches" if choice.batched else "one by one", choice.why)


def _found(run: Run) -> Choice | None:
    """Returns what was decided for a config like this; None before."""
    stored = read_json(_file(run)) if _file(run).exists() else {}
    return Choice(stored["batched"], stored["why"]) if stored.get("key") == _key(run.config) else None


def _file(run: Run) -> Path:
    return run.folder / "federate" / "engine.json"


def _key(config: Config) -> str:
    """Returns a digest of what decides it, the machine apart."""
    methods = [method.model_dump() for method in config.methods.values()]
    federation = config.federate.model_dump(exclude={"rounds", "evaluate_every", "checkpoint_every"})
    data = [data_key(config.data), config.data.partition.model_dump()]
    models = [config.precision, config.device, config.model.model_dump()]
    return digest([models, data, federation, methods])
