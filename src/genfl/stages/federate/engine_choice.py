"""The choice between clients in batches and one by one: by the config, or decided once per run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Any

from genfl.algorithms.base import Algorithm
from genfl.config import Method, Model, Partition
from genfl.config.training import Federation
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.auto import EngineDecision, choose, obstacle
from genfl.engines.pool import cores
from genfl.errors import GenflError
from genfl.experiment.context import initial_key
from genfl.learning.task import Precision, Weights
from genfl.stages.base import DataInputs, StageRun, Without, digest_of
from genfl.stages.federate.inputs import FEDERATE, FederateInputs
from genfl.stages.federate.methods import schedule
from genfl.stages.federate.setting import Setting
from genfl.storage import digest, read_json, write_json

log = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True)
class ChoiceInputs:
    """The inputs of the engine choice, apart from the machine and the methods."""

    precision: Precision
    device: str
    code: dict[str, str]
    model: Model
    data: DataInputs
    partition: Partition
    federation: Annotated[
        Federation,
        Without(
            {
                *("rounds", "evaluate_every", "checkpoint_every", "fast", "keep_every", "quorum", "deadline"),
                "secure",
            }
        ),
    ]


class EngineChoice:
    """The decision of ``auto`` for a run: one for all seeds, and one for each method. It is kept in a file.

    Clients in batches give other last bits. Therefore a resume, another machine, and a method or seed added
    later all use the same decision.

    Args:
        inputs: The stage's inputs.
        work: The stage run.
    """

    def __init__(self, inputs: FederateInputs, work: StageRun) -> None:
        self.inputs = inputs
        self.file = work.folder / "engine.json"

    @property
    def _auto(self) -> bool:
        return self.inputs.federation.engine == AUTO

    def batched(self, method: Method) -> bool:
        """Return whether a method's clients run in batches."""
        if not self._auto:
            return self.inputs.federation.engine == "vectorized"
        stored = self._read()
        name = _name(method)
        return stored["batched"] and name in stored["methods"] and not stored["methods"][name]

    def decide(self, setting: Setting) -> None:
        """Decide for the run, unless that was done before.

        Args:
            setting: What all trials share.
        """
        federated = [method for method in self.inputs.methods.values() if method.reference is None]
        if not self._auto or not federated:
            return
        stored = self._read()
        if not stored["why"]:
            if self.inputs.model.device != "cpu":
                choice = EngineDecision(False, "the gain on a GPU has not been measured")
            elif self.inputs.federation.heterogeneity:
                choice = EngineDecision(False, "local models are measured as well")
            else:
                seed = self.inputs.seeds[0]
                weights = setting.task.init(initial_key(seed))
                plan = schedule(self.inputs.federation, federated[0])
                choice = choose(setting.task, weights, setting.private(seed), plan)
            stored |= {**choice._asdict(), "cores": cores()}
            write_json(self.file, stored)
        log.info("clients run %s: %s", "in batches" if stored["batched"] else "one by one", stored["why"])

    def decide_method(
        self,
        name: str,
        method: Method,
        algorithm: Algorithm,
        weights: Weights,
        data: ClientData,
        schedule: Schedule,
    ) -> None:
        """Decide whether a method's clients run in batches, if the run's clients do. This is tried once.

        Args:
            name: The method's name in the config.
            method: The method.
            algorithm: Its algorithm.
            weights: A global model.
            data: The training data of its clients.
            schedule: Rounds, cohorts, local work.
        """
        stored = self._read()
        if not self._auto or not stored["batched"] or _name(method) in stored["methods"]:
            return
        if method.reference is not None:
            problem: str | None = "a single client works in a round"
        elif method.data != "private":
            problem = "its clients also hold generated data"
        else:
            fast = self.inputs.federation.fast
            problem = obstacle(algorithm, weights, data, schedule, fast=fast)
        if problem and method.reference is None:
            log.info("clients of %s run one by one: %s", name, problem)
        stored["methods"][_name(method)] = problem
        write_json(self.file, stored)

    def _read(self) -> dict[str, Any]:
        """Return the stored decision for these inputs: the run's choice, and each method's obstacle."""
        undecided = {"digest": self._digest(), "batched": False, "why": "", "methods": {}}
        try:
            stored = read_json(self.file) if self.file.exists() else undecided
            if stored["digest"] == undecided["digest"] and stored.keys() >= undecided.keys():
                return dict(stored)
        except (GenflError, KeyError, TypeError, AttributeError):
            log.warning("%s is damaged; the engine is chosen again", self.file)
        return undecided

    def _digest(self) -> str:
        inputs, model = self.inputs, self.inputs.model
        federation, split = inputs.federation, inputs.partition
        choice = ChoiceInputs(
            model.precision, model.device, model.code, model.model, inputs.data, split, federation
        )
        return digest_of(f"{FEDERATE} engine", 1, choice, {})


def _name(method: Method) -> str:
    """Return a name for all that decides whether a method's clients can run in batches."""
    return digest([method.model_dump(), method.code])
