"""Whether clients run in batches: what the config says, or what was decided when the run began."""

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
    """What decides whether clients run in batches, machine and methods apart."""

    precision: Precision
    device: str
    code: list[str]
    model: Model
    data: DataInputs
    partition: Partition
    federation: Annotated[Federation, Without({"rounds", "evaluate_every", "checkpoint_every", "fast"})]


class EngineChoice:
    """What ``auto`` decided for a run: once for all seeds, once for each method, and kept in its folder.

    A resume, another machine, and a method or seed added later use the same decision: clients in batches
    give other last bits.

    Args:
        inputs: Of the stage.
        work: What the stage works with.
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
        """Decide for the run, if that is not done.

        Args:
            setting: What all trials share.
        """
        federated = [method for method in self.inputs.methods.values() if method.reference is None]
        if not self._auto or not federated:
            return
        stored = self._read()
        if not stored["why"]:
            if self.inputs.model.device != "cpu":
                choice = EngineDecision(False, "what pays on a GPU has not been measured")
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
        """Try, once, whether a method's clients can run in batches where the run's do.

        Args:
            name: What the config calls the method.
            method: The method.
            algorithm: What its clients and server compute.
            weights: A global model.
            data: What its clients hold.
            schedule: Rounds, cohorts, local work.
        """
        stored = self._read()
        if not self._auto or not stored["batched"] or _name(method) in stored["methods"]:
            return
        if method.reference is not None:
            problem: str | None = "a single client works in a round"
        elif method.data != "private":
            problem = "its clients hold generated data, too"
        else:
            fast = self.inputs.federation.fast
            problem = obstacle(algorithm, weights, data, schedule, fast=fast)
        if problem and method.reference is None:
            log.info("clients of %s run one by one: %s", name, problem)
        stored["methods"][_name(method)] = problem
        write_json(self.file, stored)

    def _read(self) -> dict[str, Any]:
        """Return what was decided for inputs like these: the run's choice, and each method's obstacle."""
        nothing = {"digest": self._digest(), "batched": False, "why": "", "methods": {}}
        try:
            stored = read_json(self.file) if self.file.exists() else nothing
            if stored["digest"] == nothing["digest"] and stored.keys() >= nothing.keys():
                return dict(stored)
        except (GenflError, KeyError, TypeError, AttributeError):
            log.warning("%s is damaged: it is decided again how clients run", self.file)
        return nothing

    def _digest(self) -> str:
        inputs, model = self.inputs, self.inputs.model
        federation, split = inputs.federation, inputs.partition
        own = ChoiceInputs(
            model.precision, model.device, model.code, model.model, inputs.data, split, federation
        )
        return digest_of(f"{FEDERATE} engine", 1, own, {})


def _name(method: Method) -> str:
    """Return a name for all that decides whether a method's clients can run in batches."""
    return digest([method.model_dump(), method.code])
