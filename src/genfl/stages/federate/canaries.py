"""One more training by the recipe of a trial, in which canaries take part by the toss of a coin.

Canaries are what the run protects: samples, or clients. A canary sample is a test example with a random wrong
label. A canary client uploads a random direction of the largest norm, whatever it trains on.

Source: Steinke et al., NeurIPS 2023 (arXiv 2305.08846). Canary clients: Andrew et al., ICLR 2024 (arXiv
2302.03098).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import Algorithm, ClientInfo
from genfl.config import Method
from genfl.config.privacy import Privacy, PrivacyUnit
from genfl.errors import InputError, on_one_line
from genfl.learning.task import Batch, Weights
from genfl.privacy.attacks.canaries import canary_update, loss_scores, toss_coins
from genfl.privacy.attacks.scores import FloatArray
from genfl.progress import Advance
from genfl.rng import Key, Stream
from genfl.stages.federate.engine_choice import EngineChoice
from genfl.stages.federate.generated_content import training_data
from genfl.stages.federate.protection import Protection
from genfl.stages.federate.shadow import EXAMPLES_AT_ONCE, ShadowSetting, train_prepared
from genfl.stages.federate.trial import Trial
from genfl.trees import Tree

DELTA = "delta"
"""The upload that canary clients replace: the change of the model."""

DIRECTION, IS_CANARY = "canary_direction", "is_canary"
"""What a canary client is sent besides, and carries."""

OF_CANARY_CLIENTS = {
    "cohorts": "poisson",
    "noise": "central",
    "mechanism": "gaussian",
    "target_quantile": None,
}
"""The settings of privacy with which the ε of a run is that of a training with canary clients, too."""

FEWEST_CANARIES = 10
"""The least number of canaries. With fewer, no guesses prove anything."""


class CanaryTraining(NamedTuple):
    """The result of a training with canaries.

    Attributes:
        scores: A number for each canary, higher for those that look like members, [canaries].
        included: Which of them took part, [canaries].
        epsilon: The ε that is accounted for this training; None without differential privacy.
    """

    scores: FloatArray
    included: NDArray[np.bool_]
    epsilon: float | None


class Canaries:
    """The canaries of a trial, with all that they need to take part.

    Args:
        setting: The setting of the run's trials.
        choice: The engine choice of the run.
        trial: The trial.
        clients: The client of each of the setting's examples, [n].
        count: The number of canaries.

    Raises:
        InputError: The trial can have no canaries, or not so many.
    """

    def __init__(
        self,
        setting: ShadowSetting,
        choice: EngineChoice,
        trial: Trial,
        clients: NDArray[np.int64],
        count: int,
    ) -> None:
        self.setting, self.choice, self.trial, self.clients = setting, choice, trial, clients
        self.protection = setting.protection(trial)
        self.unit: PrivacyUnit = self.protection.unit if self.protection else "sample"
        self.key = Key(trial.seed).fold("canaries")
        members = len(setting.examples.owners)
        others = np.arange(members, len(setting.examples.rows))
        if not FEWEST_CANARIES <= count <= len(others):
            raise InputError(
                f"canaries: {count}, but canaries stand on the {len(others)} test examples of the run; name a"
                f" number from {FEWEST_CANARIES} to {len(others)}"
            )
        if problem := refuse_canaries(trial.method, setting.inputs.privacy):
            raise InputError(f"canaries: {on_one_line(trial.name)} can have none: {problem}; leave it out")
        self.examples = self.key.fold("examples").numpy().permutation(others)[:count]
        self.included = toss_coins(count, self.key.fold("coins"))

    def train(self, checkpoint: Path, digest: str, advance: Advance) -> CanaryTraining:
        """Train with the canaries, or resume it.

        Args:
            checkpoint: The file to resume from.
            digest: The digest of all that the training depends on.
            advance: Called with the number of rounds just finished.
        """
        train = self._train_clients if self.unit == "user" else self._train_samples
        return train(checkpoint, digest, advance)

    def _train_samples(self, checkpoint: Path, digest: str, advance: Advance) -> CanaryTraining:
        setting, trial = self.setting, self.trial
        labels = len(setting.labels)
        wrong = 1 + self.key.fold("labels").numpy().integers(labels - 1, size=len(self.examples))
        y = (setting.examples.y[self.examples] + wrong) % labels
        y_all = setting.examples.y_all.clone()
        rows = setting.examples.rows[self.examples]
        y_all[torch.from_numpy(rows)] = torch.from_numpy(y)
        real, canaries = setting.examples.owners, self.clients[self.examples]
        present = [rows[self.included & (canaries == client)] for client in range(self.clients.max() + 1)]
        own = [setting.examples.rows[: len(real)][real == client] for client in range(len(present))]
        setting.give([np.concatenate(both) for both in zip(own, present, strict=True)], y_all)
        clients = training_data(setting, trial.name, trial.method, trial.seed)
        prepared = trial.prepare(setting, clients, like=self.protection)
        # The stream of the trial gives its cohorts, so that as many rounds count as are accounted.
        federation = prepared.federations[0]
        weights = train_prepared(
            setting, self.choice, trial, prepared.algorithm, federation, checkpoint, digest, advance
        )
        initial = setting.start(trial.method, trial.seed)
        scores = [
            self._loss_scores(initial, weights, torch.from_numpy(rows[part]), torch.from_numpy(y[part]))
            for part in np.array_split(np.arange(len(rows)), math.ceil(len(rows) / EXAMPLES_AT_ONCE))
        ]
        return CanaryTraining(
            np.concatenate(scores), self.included, _epsilon(self.protection, federation.schedule.rounds)
        )

    def _loss_scores(self, initial: Weights, final: Weights, rows: Tensor, y: Tensor) -> FloatArray:
        x = self.setting.data.prepare(self.setting.examples.x.take(rows))
        return loss_scores(self.setting.task, initial, final, x, y)

    def _train_clients(self, checkpoint: Path, digest: str, advance: Advance) -> CanaryTraining:
        setting, trial, protection = self.setting, self.trial, self.protection
        assert protection is not None, "canary clients have the norm of a protection"
        initial = setting.start(trial.method, trial.seed)
        real, chosen = setting.examples.owners, np.flatnonzero(self.included)
        own = [setting.examples.rows[: len(real)][real == client] for client in range(real.max() + 1)]
        placeholders = setting.examples.rows[self.examples[chosen]]  # clients without a sample are refused
        setting.give([*own, *placeholders[:, None]])

        def update(canary: int) -> Tree:
            return canary_update(initial["params"], protection.norm, self.key.fold("update", canary))

        def with_canaries(algorithm: Algorithm) -> Algorithm:
            return canary_clients(
                algorithm,
                initial["params"],
                lambda client: update(int(chosen[client - len(own)])) if client >= len(own) else None,
            )

        clients = training_data(setting, trial.name, trial.method, trial.seed)
        prepared = trial.prepare(setting, clients, like=protection, change=with_canaries)
        federation = prepared.federations[0]
        weights = train_prepared(
            setting, self.choice, trial, prepared.algorithm, federation, checkpoint, digest, advance
        )
        change = trees.sub(weights["params"], initial["params"])
        scores = [float(trees.dot(update(canary), change)) for canary in range(len(self.examples))]
        return CanaryTraining(
            np.array(scores), self.included, _epsilon(protection, federation.schedule.rounds)
        )


def _epsilon(protection: Protection | None, rounds: int) -> float | None:
    """Return the ε of so many rounds with a protection; None without one, or if ε is infinite."""
    epsilon = math.inf if protection is None else protection.epsilon(rounds)
    return epsilon if math.isfinite(epsilon) else None


def refuse_canaries(method: Method, privacy: Privacy | None) -> str | None:
    """Return why a method can have no canaries. None if it can.

    Canary clients are there or not. That is what Poisson cohorts account for, with noise and a norm that do
    not depend on the number of clients. In cohorts of one size, the neighbour of a client is one that uploads
    zeros, and more clients have other turns.

    Args:
        method: The method.
        privacy: The section of the config; None without differential privacy.
    """
    if method.reference is not None:
        return "it is a reference, which is not federated"
    if privacy and privacy.unit == "user":
        if method.content is not None:
            return "its generated samples would be divided among canary clients, too"
        settings = privacy.model_dump() | {"cohorts": privacy.cohort_kind}
        if others := [
            f"privacy.{name} {needed or 'unset'}, not {settings[name]}"
            for name, needed in OF_CANARY_CLIENTS.items()
            if settings[name] != needed
        ]:
            return f"canary clients need a run with {', and '.join(others)}"
    if method.data == "generated":
        return "its clients train on no private samples"
    if method.content is not None and method.content.guidance != "prompt":
        return "its clients train on samples that their own examples guided, which canaries lack"
    return None


def canary_clients(algorithm: Algorithm, params: Tree, update: Callable[[int], Tree | None]) -> Algorithm:
    """Return an algorithm some of whose clients upload a given change of the model, and zeros besides.

    Parts of an upload that count clients stay as they are.

    Args:
        algorithm: What clients and server compute. Clients upload their change of the model as ``delta``.
        params: The weights' params.
        update: ``(client) -> change of the params``; None for a client that trains.

    Raises:
        InputError: Clients upload no change of the model.
    """
    client = algorithm.client
    if DELTA not in client.reductions:
        raise InputError(
            f"canaries: canary clients replace the change of the model, and clients upload"
            f" {', '.join(client.reductions)}; leave it out"
        )
    nothing = trees.zeros_like(params)

    def address(message: Tree, number: int) -> Tree:
        direction = update(number)
        return {
            **algorithm.address(message, number),
            DIRECTION: nothing if direction is None else direction,
            IS_CANARY: torch.tensor(float(direction is not None)),
        }

    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        carry = client.start(_plain(message), memory, client_info, key)
        return {**carry, DIRECTION: message[DIRECTION], IS_CANARY: message[IS_CANARY]}

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        after = client.step(_plain(carry), batch, key)
        return {**after, DIRECTION: carry[DIRECTION], IS_CANARY: carry[IS_CANARY]}

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        upload, memory = client.finish(_plain(carry))
        canary = carry[IS_CANARY] > 0
        replaced = {
            part: trees.zeros_like(value) if part not in algorithm.counts else value
            for part, value in upload.items()
        }
        replaced[DELTA] = {**replaced[DELTA], "params": carry[DIRECTION]}
        return trees.map(lambda a, b: torch.where(canary, a, b), replaced, upload), memory

    return algorithm._replace(address=address, client=client._replace(start=start, step=step, finish=finish))


def _plain(tree: Tree) -> Tree:
    return {name: branch for name, branch in tree.items() if name not in (DIRECTION, IS_CANARY)}
