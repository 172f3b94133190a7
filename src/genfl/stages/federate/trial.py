"""A trial: one method of a config with one seed."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genfl.algorithms import Algorithm
from genfl.algorithms.base import ClientProgram
from genfl.algorithms.registry import UNLABELLED
from genfl.analysis.noise import noise_measures
from genfl.config import Method
from genfl.config.training import Federation
from genfl.data.clients import GENERATED, ClientData
from genfl.deployment.description import WEIGHTS_FILE
from genfl.engines.auto import Name, engine
from genfl.engines.protocol import Engine, ReducerFactory
from genfl.engines.reducers import PlainReducer, SumEncoding, encoded_reducers, quorum_reducers
from genfl.errors import GenflError, InputError, cause
from genfl.journal import about
from genfl.learning.task import Weights
from genfl.privacy.dp.user import NOISED_WORDS, exact_census, user_level
from genfl.privacy.ledger import measures_noise, measures_rounds
from genfl.privacy.sum_settings import least_clients, upload_numbers
from genfl.references import GENERATOR, LOCAL, TRAINED, FederationPlan, mean
from genfl.rng import Key
from genfl.simulation import Trace, federate
from genfl.stages.federate.engine_choice import EngineChoice
from genfl.stages.federate.generated_content import training_data
from genfl.stages.federate.inputs import FederateInputs, over_flower, trial_digest
from genfl.stages.federate.kept_models import KeptModels, kept_rounds
from genfl.stages.federate.methods import build_algorithm, local_training, schedule
from genfl.stages.federate.model_files import describe_model
from genfl.stages.federate.protection import Protection, noise_secret, protect, protected, user_noise
from genfl.stages.federate.setting import Setting
from genfl.storage import digest as digest_text
from genfl.storage import save_tensors, write_json
from genfl.tracking.events import Follower, rows_of
from genfl.tracking.series import Row, Series
from genfl.trees import Tree

if TYPE_CHECKING:
    from genfl.engines.flower.server import FlowerEngine

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"

NODES = "nodes"
"""The folder of what a federation over Flower keeps besides its checkpoint."""


class Prepared(NamedTuple):
    """All that the federations of a trial are made of.

    Attributes:
        algorithm: What clients and server compute, with its protection.
        federations: One, or those of a reference.
        protection: Its differential privacy; None for none.
    """

    algorithm: Algorithm
    federations: list[FederationPlan]
    protection: Protection | None


@dataclass(frozen=True)
class Trial:
    """One method with one seed.

    Attributes:
        name: The method's name in the config.
        method: The method.
        seed: The seed.
    """

    name: str
    method: Method
    seed: int

    @property
    def series(self) -> Series:
        """What its rounds are called in ``metrics.jsonl``."""
        return Series("round", self.name, self.seed)

    def folders(self, folder: Path, clients: int) -> list[Path]:
        """Return the folders of the trial's federations: one, or one for each client that trains alone.

        Args:
            folder: The stage's folder.
            clients: The number of clients.
        """
        seed = folder / self.name / f"seed-{self.seed}"
        if self.method.reference != LOCAL:
            return [seed]
        return [seed.with_name(f"{seed.name}-client-{client}") for client in range(clients)]

    def kept_models(self, inputs: FederateInputs, folder: Path, digest: str) -> KeptModels:
        """Return the models of rounds that a federation of the trial keeps.

        Args:
            inputs: The stage's inputs.
            folder: The folder of the federation; see `folders`.
            digest: The digest of everything that it depends on.
        """
        return KeptModels(folder, digest, kept_rounds(inputs.federation.rounds, inputs.keep_every))

    def federations(self, setting: Setting, clients: ClientData) -> list[FederationPlan]:
        """Return the federations of the trial: one, or a reference's federations of a single client."""
        key = Key(self.seed).fold("federate")  # without the method's name: all methods see the same cohorts
        plan = schedule(setting.inputs.federation, self.method)
        if self.method.reference:
            return TRAINED[self.method.reference](clients, plan, key)
        return [FederationPlan(clients, plan, key)]

    def prepare(
        self,
        setting: Setting,
        clients: ClientData,
        *,
        like: Protection | None = None,
        uploads: bool = False,
        change: Callable[[Algorithm], Algorithm] = lambda algorithm: algorithm,
    ) -> Prepared:
        """Return all that the trial's federations are made of.

        Args:
            setting: The setting of all trials.
            clients: The training data of the clients.
            like: The protection of the trial that other data are trained like; None for the trial itself.
            uploads: Whether the federation is a look at uploads, before the server adds noise.
            change: Changes the algorithm before its sums get noise.

        Raises:
            InputError: Differential privacy cannot protect it.
        """
        wanted = self.method.asks_for & UNLABELLED
        # not read if not needed
        unlabelled = dict.fromkeys(wanted, setting.unlabelled(self.method.source)) if wanted else {}
        federations, protection = self.federations(setting, clients), None
        inputs, local, stream = setting.inputs, local_training(setting.inputs.federation), ""
        if inputs.privacy and self.method.reference is None:  # references are not federated
            federation, protection = protect(inputs.privacy, federations[0], like)
            federations = [federation]
            if like is None:  # other data are trained with other streams
                secret = "" if inputs.privacy.repeatable else noise_secret(setting.work.folder)
                # Of everything that the trial depends on: no two trials share their noise.
                trial = trial_digest(inputs, setting.work.upstream, self.method, self.seed, batched=False)
                stream = digest_text([secret, trial])
        if protection:
            measured = like is None and measures_noise(inputs.privacy)
            local = protected(local, setting.task, protection, stream, measured=measured)
        algorithm = build_algorithm(
            inputs.federation, self.method, setting.task, {**setting.resources, **unlabelled}, local
        )
        algorithm = change(algorithm)
        if protection and protection.unit == "user":
            noise = user_noise(protection, stream)
            if uploads:  # what clients send is clipped, and not noised
                noise = replace(noise, noise_multiplier=0.0, target_quantile=None, cohort=1, quorum=None)
            algorithm = user_level(algorithm, setting.task, noise, self.name)
            if not measures_rounds(inputs.privacy):
                algorithm = algorithm._replace(observe=lambda state, aggregate, key: {})
        return Prepared(algorithm, federations, protection)

    def run(self, setting: Setting, choice: EngineChoice, advance: Any) -> dict[str, Any]:
        """Train, test and save the trial's models. An interrupted trial is resumed.

        Args:
            setting: The setting of all trials.
            choice: The engine choice.
            advance: Called with the number of rounds just finished.

        Returns:
            Evaluations, rounds and measures, as plain values.
        """
        clients = training_data(setting, self.name, self.method, self.seed)
        algorithm, federations, protection = self.prepare(setting, clients)
        if setting.inputs.privacy and self.method.reference is None:
            log.info("%s, seed %d: %s", self.name, self.seed, protection or "no private samples to protect")
        exact: dict[str, Any] = {}
        if protection and protection.unit == "user":
            exact = {"exact_census": exact_census(algorithm)}
        folders = self.folders(setting.work.folder, setting.inputs.partition.clients)
        alone = self.method.reference == LOCAL
        try:
            traces = [
                self._train(
                    setting,
                    choice,
                    algorithm,
                    federation,
                    folder,
                    advance,
                    protection,
                    number if alone else None,
                )
                for number, (folder, federation) in enumerate(zip(folders, federations, strict=True))
            ]
            if self.method.reference == LOCAL:  # the means over its clients are known at the end
                setting.work.events.history(self.series, rows_of(mean(traces)))
        except (InputError, OSError, MemoryError):
            raise
        except Exception as error:  # a method of the user's own can raise anything
            raise GenflError(f"methods.{self.name}: {cause(error)}") from error
        return {
            **(mean(traces) if self.method.reference else _plain(traces[0])),
            "clients": setting.test_on_clients([trace.weights for trace in traces], self.seed),
            "content": clients.count(GENERATED),
            "similarity": setting.similarity(self.method, clients, self.seed),
            **({"privacy": protection.figures(len(traces[0].rounds)) | exact} if protection else {}),
        }

    def _reducer(
        self, federation: Federation, algorithm: Algorithm, protection: Protection | None
    ) -> ReducerFactory:
        """Return what makes the reducers of the trial's rounds, where uploads are added in one process.

        Measures of a simulation are parts of the program's uploads. No secure sum carries them.
        """
        if protection and protection.quorum:
            return quorum_reducers(NOISED_WORDS, protection.quorum)
        if federation.secure and self.method.reference is None:
            cohort = federation.clients_per_round
            least = max(least_clients(federation.secure, cohort), federation.quorum)
            encoding = SumEncoding(upload_numbers(federation.secure), cohort, least)
            return encoded_reducers(Key(secrets.randbits(128)), encoding, algorithm.client.reductions)
        return PlainReducer

    def _tell(self, setting: Setting) -> Callable[[list[dict[str, Any]], list[dict[str, Any]]], None]:
        """Return what tells the rounds of a federation while it works; see `genfl.simulation.federate`."""
        if self.method.reference == LOCAL:
            return lambda rounds, evaluations: None
        rows: list[Row] = []
        follower = Follower(setting.work.events, self.series)

        def tell(rounds: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> None:
            first = len(rows) - 1 if rows else 0  # the first row is that of round 0
            new = Trace({}, [row for row in evaluations if row["round"] > first or not rows], rounds[first:])
            rows.extend(rows_of(mean([new]) if self.method.reference else _plain(new)))
            follower(rows)

        return tell

    def _train(
        self,
        setting: Setting,
        choice: EngineChoice,
        algorithm: Algorithm,
        federation: FederationPlan,
        folder: Path,
        advance: Any,
        protection: Protection | None,
        client: int | None,
    ) -> Trace:
        inputs, (clients, plan, key) = setting.inputs, federation
        start: Weights = setting.start(self.method, self.seed)
        choice.decide_method(self.name, self.method, algorithm, start, clients, plan)
        batched = choice.batched(self.method)
        measures = setting.measures if algorithm.same_form and self.method.reference is None else {}
        if protection and protection.unit == "sample" and measures_noise(inputs.privacy):
            measures = {**measures, **noise_measures()}
        digest = trial_digest(inputs, setting.work.upstream, self.method, self.seed, batched)
        kept = self.kept_models(inputs, folder, digest)
        kept.restart_incomplete(folder / CHECKPOINT)
        setting.work.take_checkpoint(folder / CHECKPOINT, digest, kept.beside)
        reducer = self._reducer(inputs.federation, algorithm, protection)
        with contextlib.ExitStack() as opened:
            opened.enter_context(about(method=self.name, seed=self.seed))
            take_census: Callable[[ClientProgram], Tree] | None = None
            run_cohort: Engine
            flower: FlowerEngine | None = None
            if over_flower(inputs.federation, self.method):
                settings = {"method": self.name, "seed": self.seed}
                memory = algorithm.memory(start)
                flower = setting.context.flower_engine(
                    inputs.federation, clients, folder / NODES, memory, settings, reducer
                )
                run_cohort, take_census = flower, flower.census
            else:
                kind = local_engine(inputs.federation, batched=batched)
                size, fast = plan.clients_per_round, inputs.federation.fast
                run_cohort = opened.enter_context(
                    engine(kind, clients, size, setting.device, fast=fast, reducer=reducer)
                )
            trace = federate(
                algorithm,
                start,
                clients,
                run_cohort,
                plan,
                key,
                setting.score,
                checkpoint=folder / CHECKPOINT,
                checkpoint_digest=digest,
                measures=measures,
                device=setting.device,
                on_round=advance,
                on_history=self._tell(setting),
                on_model=partial(kept.save, setting.task),
                take_census=take_census,
            )
            if flower is not None:
                flower.end()
        kept.discard_others()
        save_tensors(folder / WEIGHTS_FILE, setting.task.state_dict(trace.weights))
        evaluations, rounds = trace.evaluations, len(trace.rounds)
        describe_model(setting, folder, self.name, self.seed, digest, evaluations, rounds, client)
        write_json(folder / "trace.json", _plain(trace))
        return trace


def local_engine(federation: Federation, *, batched: bool) -> Name:
    """Return the engine of clients that run here, without messages.

    Args:
        federation: The section of the config.
        batched: Whether the method's clients run in batches.
    """
    if batched:
        return "vectorized"
    if federation.engine == "flower-inprocess" or federation.engine == "flower":
        return "sequential"
    return federation.engine


def trained_trials(inputs: FederateInputs) -> list[Trial]:
    """Return the trials that train in rounds, ordered by seed."""
    return [
        Trial(name, method, seed)
        for seed in inputs.seeds
        for name, method in inputs.methods.items()
        if method.reference != GENERATOR
    ]


def _plain(trace: Trace) -> dict[str, Any]:
    return {"evaluations": trace.evaluations, "rounds": trace.rounds}
