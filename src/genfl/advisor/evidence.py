"""The evidence of an advice: figures of a pilot, and of probes that clients test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from genfl import pipeline, progress
from genfl.advisor.pilot import Plan
from genfl.advisor.statistics import ClassSums, distances, sums_of_clients
from genfl.config import Config
from genfl.data.clients import ClientData
from genfl.engines.device import exact
from genfl.engines.in_process import sequential
from genfl.engines.protocol import ReducerFactory
from genfl.engines.reducers import PlainReducer, SumEncoding, encoded_reducers
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run
from genfl.learning.pretrain import Recipe, train_with_holdout
from genfl.learning.task import Weights
from genfl.privacy.sum_settings import least_clients, upload_numbers
from genfl.results.names import ARMS
from genfl.rng import Key
from genfl.stages.federate.inputs import FEDERATE
from genfl.stages.federate.setting import Setting
from genfl.stages.pretrain import seed_digest
from genfl.storage import digest

PARTS = (4, 2)
"""A probe is trained on 1 / n of the pilot's samples of each label for each of these, and one on all."""

MOST_PROBED = 2000
"""About the number of examples that all clients together test a probe on, the same number for each client."""

PROBES_VERSION = 1
"""The version of probes. If it is raised, they are trained again."""


@dataclass(frozen=True)
class Probe:
    """A model that was trained on generated samples alone, tested on the clients' own data.

    Attributes:
        per_label: The samples of each label that it was trained on.
        accuracy: Its accuracy over the examples of all clients, in [0, 1].
        recall: The same for each class; None for a class that no client has.
    """

    per_label: int
    accuracy: float
    recall: list[float | None]


@dataclass(frozen=True)
class PilotEvidence:
    """All that an advice rests on.

    Attributes:
        labels: The label names.
        samples: The number of private examples of each label that probes are tested on.
        clients: The number of clients.
        cohort: The number of clients of a round.
        held: The mean share of the labels that a client holds, in (0, 1].
        plan: How much the pilot did, and the run would do.
        probes: From few samples to all of the pilot's.
        distances: The distance of generated from private samples of each label, in the features of the last
            probe; None where there are too few.
        curves: For each method of the pilot, its accuracy on the test set after rounds: pairs of round and
            accuracy. Empty without a federation.
        diversity: For each method of the pilot, the mean gradient diversity of its rounds.
    """

    labels: list[str]
    samples: list[int]
    clients: int
    cohort: int
    held: float
    plan: Plan
    probes: list[Probe]
    distances: list[float | None]
    curves: dict[str, list[tuple[int, float]]]
    diversity: dict[str, float]

    @property
    def chance(self) -> float:
        """The accuracy of always naming the most frequent class."""
        return max(self.samples) / max(sum(self.samples), 1)

    def with_volume(self, per_label: int) -> PilotEvidence:
        """Return the same evidence for a run with another number of generated samples of each label."""
        return replace(self, plan=self.plan._replace(planned_per_label=per_label))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "plan": self.plan._asdict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PilotEvidence:
        """Return the evidence of plain values."""
        curves = {name: [(int(x), float(y)) for x, y in curve] for name, curve in content["curves"].items()}
        probes = [Probe(**probe) for probe in content["probes"]]
        return cls(**{**content, "plan": Plan(**content["plan"]), "probes": probes, "curves": curves})


def gather_evidence(
    config: Config, plan: Plan, folder: Path, probes: Path, context: RunContext
) -> PilotEvidence:
    """Train and test the probes of a finished pilot, and return the evidence.

    Args:
        config: The pilot's resolved config.
        plan: How much it did.
        folder: Its folder.
        probes: The folder of the probes' checkpoints.
        context: The context of the pilot.
    """
    run = Run(config, folder)
    steps = {step.stage.name: step for step in pipeline.steps(run, context)}
    step = steps[FEDERATE]
    setting = Setting(step.inputs, step.work)
    seed = config.seeds[0]
    clients = _tested_data(setting, seed)
    found, generated = _probe(setting, clients, plan, seed, probes, config)
    curves, diversity = _federation(run.result(FEDERATE), seed) if plan.rounds else ({}, {})
    holders = run.result("labels")["holders"]
    return PilotEvidence(
        labels=list(setting.labels),
        samples=[int(count) for count in found[-1][1].samples],
        clients=len(clients),
        cohort=config.federate.clients_per_round,
        held=sum(holders[name] for name in setting.labels) / (len(setting.labels) * len(clients)),
        plan=plan,
        probes=[Probe(count, sums.accuracy, sums.recall) for count, sums in found],
        distances=distances(found[-1][1], generated),
        curves=curves,
        diversity=diversity,
    )


def _tested_data(setting: Setting, seed: int) -> ClientData:
    """Return the examples that clients test probes on: some of their own, drawn at random, never changed."""
    most = math.ceil(MOST_PROBED / setting.inputs.partition.clients)
    return setting.context.private_data(setting.section, setting.labels, seed, most=most)


def _probe(
    setting: Setting, clients: ClientData, plan: Plan, seed: int, folder: Path, config: Config
) -> tuple[list[tuple[int, ClassSums]], ClassSums]:
    """Return the sums of each probe over the clients' data, and of the last one over its own samples."""
    x, y = setting.synthetic
    inputs = setting.inputs
    assert inputs.pretrained is not None
    options = inputs.pretrained.recipe.model_dump(exclude={"init"})
    recipe = Recipe(**{**options, "augment": inputs.pretrained.recipe.augment.augment()})
    start, _ = inputs.model.weights(setting.task, seed)
    of_all = seed_digest(inputs.pretrained, setting.work.upstream, seed)
    found = []
    sizes = sorted({max(plan.per_label // part, 1) for part in PARTS} | {plan.per_label})
    reducer = _reducer(config, len(clients), seed)
    with progress.bar("probes", len(sizes), "probes") as advance, exact(setting.device):
        for size in sizes:
            rows = first_rows(y, size)
            if len(rows) < 2:
                continue
            if size == plan.per_label:
                weights = setting.pretrained(seed)  # the pilot's own warm start
            else:
                weights = train_with_holdout(
                    setting.task,
                    start,
                    x[rows],
                    y[rows],
                    recipe,
                    Key(seed).fold("probe", size),
                    checkpoint=folder / f"probe-{size}.safetensors",
                    checkpoint_digest=digest([PROBES_VERSION, of_all, size]),
                    prepare=setting.data.prepare,
                    device=setting.device,
                ).weights
            found.append((size, _tested(setting, weights, clients, reducer)))
            advance(1)
        own = ClientData(x, y, [np.arange(len(x))], len(setting.labels), setting.data.prepare)
        generated = _tested(setting, weights, own, PlainReducer)
    return found, generated


def first_rows(y: torch.Tensor, size: int) -> torch.Tensor:
    """Return the rows of the first so many samples of each class, ascending.

    Args:
        y: The class of each sample, [n].
        size: The number of samples of each class.
    """
    chosen = [torch.nonzero(y == label)[:size, 0] for label in y.unique()]
    return torch.cat(chosen).sort().values


def _tested(setting: Setting, weights: Weights, clients: ClientData, reducer: ReducerFactory) -> ClassSums:
    return sums_of_clients(setting.task, weights, clients, sequential(clients, reducer), setting.device)


def _reducer(config: Config, clients: int, seed: int) -> ReducerFactory:
    """Return what adds up the clients' sums: a secure sum if that of the run is one."""
    secure = config.federate.secure
    if not secure:
        return PlainReducer
    encoding = SumEncoding(upload_numbers(secure), clients, least_clients(secure, clients))
    return encoded_reducers(Key(seed).fold("advice"), encoding)


def _federation(
    result: Mapping[str, Any], seed: int
) -> tuple[dict[str, list[tuple[int, float]]], dict[str, float]]:
    """Return the curves of accuracy and the gradient diversity of a pilot's methods."""
    trials = {arm: result["methods"][arm][str(seed)] for arm in ARMS}
    curves = {
        arm: [(int(row["round"]), float(row["accuracy"])) for row in trial["evaluations"]]
        for arm, trial in trials.items()
    }
    measured = {
        arm: [row["diversity"] for row in trial["rounds"] if row.get("diversity") is not None]
        for arm, trial in trials.items()
    }
    return curves, {arm: fmean(values) for arm, values in measured.items() if values}
