"""Training by the recipe of a trial on other private data: the shadow models of an audit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genfl import trees
from genfl.algorithms import Algorithm
from genfl.config import Method
from genfl.data.clients import ClientData, Joined
from genfl.engines.auto import engine
from genfl.engines.in_process import sequential
from genfl.experiment.context import class_indices
from genfl.learning.task import Weights
from genfl.progress import Advance
from genfl.references import FederationPlan
from genfl.rng import Key
from genfl.simulation import federate
from genfl.stages.base import StageRun
from genfl.stages.federate.engine_choice import EngineChoice
from genfl.stages.federate.generated_content import training_data
from genfl.stages.federate.inputs import FederateInputs
from genfl.stages.federate.kept_models import KeptModels
from genfl.stages.federate.protection import Protection, protect
from genfl.stages.federate.setting import Setting
from genfl.stages.federate.trial import Trial, local_engine

EXAMPLES_AT_ONCE = 512
"""The number of examples of a forward pass."""


class AttackedExamples(NamedTuple):
    """The examples whose membership is asked for: the members first, then the non-members.

    Attributes:
        x: The stored inputs of training and test examples, of which these are some.
        y_all: The class indices of `x`; -1 for labels that were not discovered.
        rows: The rows of `x`, [n].
        owners: The client of each member, [m].
    """

    x: Joined
    y_all: Tensor
    rows: NDArray[np.int64]
    owners: NDArray[np.int64]

    @property
    def y(self) -> NDArray[np.int64]:
        """The class index of each example, [n]."""
        values: NDArray[np.int64] = self.y_all[torch.from_numpy(self.rows)].numpy()
        return values


class ShadowSetting(Setting):
    """The setting of a run's trials, with examples of other clients in the place of the private data.

    Args:
        inputs: The stage's inputs.
        work: The stage run.
        seed: The seed of the run's split.
    """

    def __init__(self, inputs: FederateInputs, work: StageRun, seed: int) -> None:
        super().__init__(inputs, work)
        train, test = self.data.train, self.data.test
        kept = self.context.train_test_rows(self.section, seed)[0]
        y = torch.cat([class_indices(train, self.labels), class_indices(test, self.labels)])
        parts = [rows[y.numpy()[rows] >= 0] for rows in kept]
        self.examples = AttackedExamples(
            Joined(train.x, test.x),
            y,
            np.concatenate([*parts, len(train.x) + self.test_rows.numpy()]),
            np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        )
        self._clients: ClientData | None = None
        self._protection: Protection | None = None

    def protection(self, trial: Trial) -> Protection | None:
        """Return the differential privacy of a trial on the private data of the run; None for none."""
        privacy = self.inputs.privacy
        if privacy is None or trial.method.reference is not None:
            return None
        if self._protection is None:
            given, self._clients = self._clients, None
            clients = training_data(self, trial.name, trial.method, trial.seed)
            self._protection = protect(privacy, trial.federations(self, clients)[0])[1]
            self._clients = given
        return self._protection

    def give(self, rows: Sequence[NDArray[np.int64]], y: Tensor | None = None) -> None:
        """Give clients their private data.

        Args:
            rows: For each client, its rows of `examples.x`.
            y: The class indices of `examples.x`; None for the true ones.
        """
        augment = self.inputs.federation.local.augment.of("private")
        x, classes = self.examples.x, len(self.labels)
        y = self.examples.y_all if y is None else y
        self._clients = ClientData(x, y, rows, classes, self.data.prepare, augment)

    def private(self, seed: int) -> ClientData:
        """Return what `give` gave; before, the private data of the run."""
        return super().private(seed) if self._clients is None else self._clients

    def logits(self, weights: Weights, chosen: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return the outputs of a model for each example, [n, classes].

        Args:
            weights: The model.
            chosen: The numbers of some of the examples; None for all.
        """
        model, parts = trees.to(weights, self.device), []
        numbers = self.examples.rows if chosen is None else self.examples.rows[chosen]
        for rows in torch.from_numpy(numbers).split(EXAMPLES_AT_ONCE):
            x = self.data.prepare(self.examples.x.take(rows))
            parts.append(self.task.predict(model, x).cpu())
        outputs: NDArray[np.float32] = torch.cat(parts).numpy()
        return outputs


def refuse_uploads(method: Method) -> str | None:
    """Return why there are no uploads of a method to attack. None if there are."""
    return "it is a reference, whose clients upload nothing" if method.reference is not None else None


def refuse_shadows(method: Method) -> str | None:
    """Return why shadow models of a method cannot be trained. None if they can."""
    if method.content is not None and method.content.guidance != "prompt":
        return "its clients train on samples that their own examples guided, which shadow models lack"
    return None


def train_shadow(
    setting: ShadowSetting,
    choice: EngineChoice,
    trial: Trial,
    number: int,
    checkpoint: Path,
    digest: str,
    advance: Advance,
    rounds: Sequence[int] = (),
) -> tuple[Weights, KeptModels]:
    """Train the model of a trial on the private data of a setting, or resume it.

    Method, start, schedule, engine and differential privacy are those of the trial. Cohorts, batches and
    noise are drawn anew.

    Args:
        setting: The setting, whose private data are not those of the trial.
        choice: The engine choice of the run.
        trial: The trial.
        number: The number of the shadow model, which decides its random draws.
        checkpoint: The file to resume from.
        digest: The digest of all that the model depends on.
        advance: Called with the number of rounds just finished.
        rounds: The rounds after which the global model is kept, in the folder of the checkpoint.

    Returns:
        The final weights, and the models of these rounds.
    """
    clients = training_data(setting, trial.name, trial.method, trial.seed)
    prepared = trial.prepare(setting, clients, like=setting.protection(trial))
    plan = prepared.federations[0]
    plan = plan._replace(key=plan.key.fold("shadow", number))
    kept = KeptModels(checkpoint.parent, digest, rounds)
    kept.restart_incomplete(checkpoint)
    weights = train_prepared(
        setting, choice, trial, prepared.algorithm, plan, checkpoint, digest, advance, kept
    )
    return weights, kept


def train_prepared(
    setting: ShadowSetting,
    choice: EngineChoice,
    trial: Trial,
    algorithm: Algorithm,
    federation: FederationPlan,
    checkpoint: Path,
    digest: str,
    advance: Advance,
    kept: KeptModels | None = None,
) -> Weights:
    """Run a federation from the start of a trial with its kind of engine, and return the final weights.

    Args:
        setting: The setting.
        choice: The engine choice of the run.
        trial: The trial.
        algorithm: What clients and server compute.
        federation: The clients, the schedule, and the random stream.
        checkpoint: The file to resume from.
        digest: The digest of all that the model depends on.
        advance: Called with the number of rounds just finished.
        kept: The models of rounds to keep; None for none.
    """
    data, plan, key = federation
    kind = local_engine(setting.inputs.federation, batched=choice.batched(trial.method))
    fast = setting.inputs.federation.fast
    with engine(kind, data, plan.clients_per_round, setting.device, fast=fast) as run_cohort:
        return federate(
            algorithm,
            setting.start(trial.method, trial.seed),
            data,
            run_cohort,
            plan,
            key,
            lambda weights: {},
            checkpoint=checkpoint,
            checkpoint_digest=digest,
            device=setting.device,
            on_round=advance,
            on_model=lambda number, weights: kept.save(setting.task, number, weights) if kept else None,
        ).weights


def uploaded_models(
    setting: ShadowSetting, trial: Trial, weights: Weights, number: int | str
) -> Iterator[Weights]:
    """Yield what a server can learn from the upload of each client alone, in one more round.

    It is the global model after a round with this client only. For FedAvg, that is the client's local model.
    With privacy of users, its change is clipped, and the server has not added noise yet.
    State of the server and memories of clients begin anew.

    Args:
        setting: The setting, with the private data of the clients.
        trial: The trial.
        weights: The global model before the round.
        number: The number or the name of the model, which decides the random draws.
    """
    clients = training_data(setting, trial.name, trial.method, trial.seed)
    algorithm, federations, _ = trial.prepare(setting, clients, like=setting.protection(trial), uploads=True)
    plan = replace(federations[0].schedule, rounds=1, clients_per_round=1, cohorts="fixed")
    key = Key(trial.seed).fold("upload", number)
    for client in range(len(clients)):
        one = clients.as_one([client])
        of_client = key.fold(client)
        run_client = sequential(one)
        round_of_one = federate(
            algorithm, weights, one, run_client, plan, of_client, lambda _: {}, device=setting.device
        )
        yield round_of_one.weights
