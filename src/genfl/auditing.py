"""Audits: what an attacker can tell about the private examples from a model of a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from genfl import config as configs
from genfl import pipeline, progress
from genfl.deployment.description import WEIGHTS_FILE
from genfl.deployment.runs import trained_folder
from genfl.deployment.trained import RunModel
from genfl.engines.device import exact
from genfl.errors import InputError, cause, on_one_line, suggest
from genfl.experiment.context import RunContext, initial_key
from genfl.experiment.folder import Run
from genfl.experiment.records import RUN_CONFIG, SUMMARY_FILE, check_finished
from genfl.hub import check_device
from genfl.learning.task import Weights, from_state_dict
from genfl.output import check_output, writing_output
from genfl.privacy.attacks.canaries import audit_canaries
from genfl.privacy.attacks.roc import Interval, attack_figures, roc, thinned
from genfl.privacy.attacks.scores import (
    FloatArray,
    Membership,
    confidence,
    lira_offline,
    lira_online,
    loss_score,
    rmia,
)
from genfl.privacy.attacks.shadow import deal_to_clients, shadow_members, train_shadows
from genfl.privacy.dp.accounting import default_delta
from genfl.progress import Advance
from genfl.report.audit_page import render_audit
from genfl.results.membership import (
    AUDIT_FILE,
    AUDIT_INFIX,
    AttackMeasures,
    AttackResult,
    CanaryBound,
    MeasuredShare,
    MembershipAudit,
    RoundAudit,
    TruePositiveRate,
)
from genfl.results.names import SYNTHETIC_ONLY
from genfl.results.schema import Summary
from genfl.rng import Key
from genfl.stages.federate.canaries import Canaries
from genfl.stages.federate.engine_choice import EngineChoice
from genfl.stages.federate.inputs import FEDERATE, trial_digest
from genfl.stages.federate.kept_models import KeptModels
from genfl.stages.federate.shadow import (
    ShadowSetting,
    refuse_shadows,
    refuse_uploads,
    train_shadow,
    uploaded_models,
)
from genfl.stages.federate.trial import Trial
from genfl.storage import digest as digest_of
from genfl.storage import load_checkpoint, remove, save_tensors, sha256, write_json, write_text

AUDIT_MARKER = ".genfl-audit"
"""The file that marks the folder of an audit."""

AUDIT_PAGE, SHADOWS, CANARIES = "index.html", "shadows", "canaries"

LEAST_SHADOWS = {"loss": 0, "lira": 4, "rmia": 2}
"""The attacks, and the least number of shadow models of each: LiRA fits variances."""

TARGET = "target"
"""What stands for the attacked model where shadow models have numbers."""

SHADOW_VERSION, CANARIES_VERSION = 1, 2
"""The versions of what shadow models and canaries compute. If one is raised, they are trained again."""


def audit_folder(run: Path, method: str, seed: int) -> Path:
    """Return the folder of an audit unless another one is named. It lies beside the run's folder."""
    run = run.resolve()
    return run.with_name(f"{run.name}{AUDIT_INFIX}{method}-seed-{seed}")


def audit_run(
    folder: Path,
    *,
    method: str | None = None,
    seed: int | None = None,
    attacks: Sequence[str] = ("loss",),
    shadows: int = 16,
    uploads: bool = False,
    canaries: int = 0,
    out: Path | None = None,
) -> tuple[MembershipAudit, Path]:
    """Attack the global model of a method by membership inference, and write the figures and a page.

    It is the final model. If the run keeps models of earlier rounds (``federate.keep_every``), each of them
    is attacked as well.

    Members are the examples that clients trained on, and non-members are the test examples. Nothing in the
    run's folder changes, and none of its models is trained again. Shadow models lie in the audit's folder. An
    interrupted audit is resumed, and a later one with more of them trains only the new ones.

    Args:
        folder: The run's folder.
        method: The method; by default the federated one with the best mean accuracy.
        seed: One of the run's seeds; by default the first.
        attacks: Some of ``loss``, ``lira`` and ``rmia``.
        shadows: The number of shadow models. ``loss`` needs none.
        uploads: Whether to attack single uploads, too: what a server sees of each client without a secure
            sum. One more round from the final model makes them.
        canaries: The number of canaries in one more training, which gives a lower bound on epsilon; 0 for no
            such training.
        out: The audit's folder; by default that of `audit_folder`.

    Returns:
        The figures, and the page.

    Raises:
        InputError: There is no such run, method, seed or attack, the private data is not that of the run, or
            the folder holds something else.
    """
    least = check_attacks(attacks, shadows)
    check_finished(folder, "folder")
    summary = Summary.read(folder / SUMMARY_FILE)
    model = RunModel.load(trained_folder(folder, summary, method, seed))
    name, of_seed = model.description.method, model.description.seed
    out = audit_folder(folder, name, of_seed) if out is None else out
    names = [AUDIT_FILE, AUDIT_PAGE, SHADOWS, CANARIES]
    check_output(out, "audit", AUDIT_MARKER, names)
    attacked = AttackedModel(folder, model)
    attacked.check(shadows=least > 0, uploads=uploads)
    planted = attacked.canaries(canaries) if canaries else None
    with exact(attacked.setting.device), writing_output(out, "audit", AUDIT_MARKER, names):
        members = attacked.members
        observed = attacked.confidences(uploads)
        trained = attacked.shadows(shadows, out / SHADOWS, uploads) if least else None
        results = [
            [
                attack_result(attack, scores[:members], scores[members:], Key(of_seed).fold("audit"))
                for attack, scores in attack_scores(
                    attacks, phi, members, None if trained is None else (trained[0][:, number], trained[1])
                ).items()
            ]
            for number, phi in enumerate(observed)
        ]
        member_accuracy, nonmember_accuracy = attacked.accuracies(attacked.logits)
        audit = MembershipAudit(
            run=summary.name,
            folder=str(folder),
            method=name,
            chosen=method is None,
            seed=of_seed,
            model_sha256=attacked.model_sha256,
            members=members,
            nonmembers=len(attacked.y) - members,
            member_accuracy=member_accuracy,
            nonmember_accuracy=nonmember_accuracy,
            shadows=shadows if least else None,
            attacks=results[0],
            uploads=results[1] if uploads else None,
            rounds=attacked.round_audits([*results[1 + uploads :], results[0]]),
            canaries=attacked.canary_bound(planted, out / CANARIES) if planted else None,
        )
        write_json(out / AUDIT_FILE, audit.to_dict())
        write_text(out / AUDIT_PAGE, render_audit(audit, out))
    return audit, out / AUDIT_PAGE


def check_attacks(attacks: Sequence[str], shadows: int) -> int:
    """Check the names of attacks, and return the number of shadow models that they need at least.

    Args:
        attacks: The names.
        shadows: The number of shadow models.

    Raises:
        InputError: There is no such attack, or none is named, or there are too few shadow models.
    """
    if not attacks:
        raise InputError(f"attacks: none is named; name some of {', '.join(LEAST_SHADOWS)}")
    for attack in attacks:
        if attack not in LEAST_SHADOWS:
            raise InputError(
                f"attacks: there is no {on_one_line(attack)!r}; {suggest(attack, list(LEAST_SHADOWS))}"
            )
    needed = max(attacks, key=LEAST_SHADOWS.__getitem__)
    if shadows < LEAST_SHADOWS[needed]:
        raise InputError(
            f"shadows: {shadows}, but {needed} needs {LEAST_SHADOWS[needed]} shadow models at least; raise it"
        )
    return LEAST_SHADOWS[needed]


class AttackedModel:
    """A model of a run, with the examples whose membership is asked for.

    Attributes:
        setting: The setting of the run's trials.
        members: The number of members. They come first among the examples.
        y: The class index of each example, [n].
        clients: The client of each example, [n]. Non-members are dealt out by their classes.
        weights: The model's weights.
        model_sha256: The SHA-256 of their file.
        logits: The model's outputs, [n, classes].
        rounds: The rounds whose models the run keeps, besides the final one.
        round_logits: The outputs of these models, [n, classes] each.

    Args:
        folder: The run's folder.
        model: The model.

    Raises:
        InputError: The private data cannot be read, or is not that of the run.
    """

    def __init__(self, folder: Path, model: RunModel) -> None:
        described = model.description
        try:
            run = Run(configs.load(folder / RUN_CONFIG), folder)
            steps = pipeline.steps(run, RunContext())
            step = next(step for step in steps if step.stage.name == FEDERATE)
            check_device(step.inputs.model.device, "device")
        except InputError as error:
            raise InputError(
                "folder: an audit needs the private data, the code and the device of the run, but"
                f" {cause(error)}"
            ) from error
        self.choice = EngineChoice(step.inputs, step.work)
        self.digest = described.config_digest
        self.trial: Trial | None = None
        if described.method != SYNTHETIC_ONLY:
            self.trial = Trial(described.method, run.config.methods[described.method], described.seed)
            batched = self.choice.batched(self.trial.method)
            now = trial_digest(step.inputs, step.work.upstream, self.trial.method, described.seed, batched)
            if now != self.digest:
                raise InputError(
                    f"folder: the private data, or the code, is not that of the run in"
                    f" {on_one_line(folder, 200)}; restore it, or run the config again with --update"
                )
        self.setting = ShadowSetting(step.inputs, step.work, described.seed)
        self._seed = described.seed
        self.members = len(self.setting.examples.owners)
        self.y = self.setting.examples.y
        if len(self.y) - self.members < 2 or self.members < 2:
            raise InputError(
                f"folder: {self.members} training and {len(self.y) - self.members} test examples, but an"
                " audit needs two of each; name a run with more"
            )
        self.clients = deal_to_clients(
            self.setting.examples.owners, self.y, Key(described.seed).fold("shadow models", "clients")
        )
        like = self.setting.task.init(initial_key(described.seed))
        self.weights: Weights = from_state_dict(model.state_dict(), like)
        self.model_sha256 = sha256(model.folder / WEIGHTS_FILE)
        self.logits = self.setting.logits(self.weights)
        self.rounds: tuple[int, ...] = ()
        self.round_logits = []
        if self.trial is not None:
            kept = self.trial.kept_models(step.inputs, model.folder, self.digest)
            self.rounds = tuple(kept.rounds)
            self.round_logits = [self.setting.logits(weights) for weights in _weights_of(kept, like)]

    def accuracies(self, logits: NDArray[np.float32]) -> tuple[float, float]:
        """Return the accuracy of a model on the members, and on the non-members.

        Args:
            logits: Its outputs, [n, classes].
        """
        hits = logits.argmax(1) == self.y
        return float(hits[: self.members].mean()), float(hits[self.members :].mean())

    def round_audits(self, results: Sequence[Sequence[AttackResult]]) -> list[RoundAudit] | None:
        """Return the figures of the attacks over the rounds; None without kept models.

        Args:
            results: The attacks on the models of `rounds`, and on the final one as the last.
        """
        if not self.rounds:
            return None
        numbers = (*self.rounds, self.setting.inputs.federation.rounds)
        audits = []
        for number, logits, attacks in zip(numbers, [*self.round_logits, self.logits], results, strict=True):
            members, nonmembers = self.accuracies(logits)
            audits.append(
                RoundAudit(
                    round=number,
                    member_accuracy=members,
                    nonmember_accuracy=nonmembers,
                    attacks=[AttackMeasures(**attack.model_dump(exclude={"roc"})) for attack in attacks],
                )
            )
        return audits

    def check(self, *, shadows: bool, uploads: bool) -> None:
        """Check that the model can have what attacks need.

        Args:
            shadows: Whether shadow models are needed.
            uploads: Whether single uploads are attacked.

        Raises:
            InputError: It cannot.
        """
        name = on_one_line(SYNTHETIC_ONLY if self.trial is None else self.trial.name)
        nothing = "it trains on no private data" if self.trial is None else None
        problem = nothing if self.trial is None else refuse_shadows(self.trial.method)
        if shadows and problem:
            raise InputError(f"attacks: {name} can have no shadow models: {problem}; use loss")
        problem = nothing if self.trial is None else refuse_uploads(self.trial.method)
        if uploads and problem:
            raise InputError(f"uploads: {name} has none: {problem}; leave it out")

    def confidences(self, uploads: bool) -> FloatArray:
        """Return the confidence of the model in each example, [1, n], and those of `rounds`, [1 + rounds, n].

        Args:
            uploads: Whether to add a row behind the first: the confidence in each example of the model that
                its client's upload alone gives the server.
        """
        rows = self._confidences(self.weights, uploads, TARGET)
        return np.stack([*rows, *(confidence(logits, self.y) for logits in self.round_logits)])

    def _confidences(self, weights: Weights, uploads: bool, number: int | str) -> list[FloatArray]:
        """Return the confidences of a model, and of its clients' uploads; see `confidences`."""
        setting, examples = self.setting, self.setting.examples
        rows = [confidence(setting.logits(weights), examples.y)]
        if uploads:
            assert self.trial is not None, "checked before"
            of_uploads = np.empty(len(examples.y))
            for client, model in enumerate(uploaded_models(setting, self.trial, weights, number)):
                own = np.flatnonzero(self.clients == client)
                of_uploads[own] = confidence(setting.logits(model, own), examples.y[own])
            rows.append(of_uploads)
        return rows

    def shadows(self, models: int, folder: Path, uploads: bool = False) -> tuple[FloatArray, Membership]:
        """Train shadow models by the recipe of the model, or resume them.

        Args:
            models: Their number.
            folder: The folder of their files.
            uploads: Whether to add the confidences of their clients' uploads.

        Returns:
            Their confidences in each example, [models, k, n], where k is as in `confidences`. And whether
            each was trained on it, [models, n].

        Raises:
            InputError: A client has too few examples.
        """
        setting, trial, clients = self.setting, self.trial, self.clients
        assert trial is not None, "checked before"
        members = shadow_members(clients, models, Key(self._seed).fold("shadow models"))

        def train(
            number: int, member: NDArray[np.bool_], checkpoint: Path, digest: str, advance: Advance
        ) -> FloatArray:
            rows = [
                setting.examples.rows[member & (clients == client)] for client in range(clients.max() + 1)
            ]
            setting.give(rows)
            weights, kept = train_shadow(
                setting, self.choice, trial, number, checkpoint, digest, advance, self.rounds
            )
            of_rounds = [confidence(setting.logits(each), self.y) for each in _weights_of(kept, weights)]
            return np.stack([*self._confidences(weights, uploads, number), *of_rounds])

        own = digest_of([SHADOW_VERSION, self.digest, uploads, *([self.rounds] if self.rounds else [])])
        return train_shadows(members, train, folder, own, setting.inputs.federation.rounds), members

    def canaries(self, count: int) -> Canaries:
        """Return canaries for one more training by the recipe of the model.

        Args:
            count: Their number.

        Raises:
            InputError: The model can have no canaries, or not so many.
        """
        if self.trial is None:
            raise InputError(f"canaries: {SYNTHETIC_ONLY} can have none: it is not federated; leave it out")
        return Canaries(self.setting, self.choice, self.trial, self.clients, count)

    def canary_bound(self, canaries: Canaries, folder: Path) -> CanaryBound:
        """Train with canaries, or resume it, and return the lower bound on epsilon that guesses prove.

        Args:
            canaries: The canaries.
            folder: The folder of the training's files. A training that is finished there is not repeated.
        """
        digest = digest_of([CANARIES_VERSION, self.digest, len(canaries.included)])
        file, work = folder / "canaries.safetensors", folder / "training"
        rounds = self.setting.inputs.federation.rounds
        with progress.bar("canaries", rounds, "rounds") as advance:
            stored = load_checkpoint(file, digest)
            if stored is None:
                trained = canaries.train(work / "checkpoint.safetensors", digest, advance)
                scores, epsilon = trained.scores, trained.epsilon
                tensors = {"scores": torch.from_numpy(scores)}
                save_tensors(file, tensors, {"digest": digest, "epsilon": epsilon})
            else:
                scores, epsilon = stored[0]["scores"].numpy(), stored[1]["epsilon"]
                advance(rounds)
        remove(work, folder)
        guesses, protection = len(scores) // 6, canaries.protection
        delta = protection.delta if protection else default_delta(self.members)
        bound = audit_canaries(scores, canaries.included, positive=guesses, negative=guesses, delta=delta)
        return CanaryBound(
            unit=canaries.unit,
            canaries=bound.canaries,
            included=int(canaries.included.sum()),
            guesses=bound.guesses,
            correct=bound.correct,
            epsilon=bound.epsilon,
            delta=delta,
            confidence=bound.confidence,
            accounted=epsilon,
        )


def _weights_of(kept: KeptModels, like: Weights) -> Iterator[Weights]:
    """Yield the models of the rounds of a federation.

    Raises:
        InputError: One is missing.
    """
    for number in kept.rounds:
        tensors = kept.state_dict(number)
        if tensors is None:
            raise InputError(
                f"folder: {on_one_line(kept.file(number), 200)} is missing, or of another run; run the config"
                " again with --update"
            )
        yield from_state_dict(tensors, like)


def attack_scores(
    attacks: Sequence[str], phi: FloatArray, members: int, shadows: tuple[FloatArray, Membership] | None
) -> dict[str, FloatArray]:
    """Return the scores of each example, [n], by the name of the attack. LiRA gives two.

    Args:
        attacks: The attacks.
        phi: Confidences of the attacked model, [n], of the members first.
        members: The number of members.
        shadows: Confidences and membership of shadow models, for the attacks that need them.
    """
    scores: dict[str, FloatArray] = {}
    for attack in attacks:
        if attack == "loss":
            scores["loss"] = loss_score(phi)
            continue
        assert shadows is not None
        if attack == "lira":
            scores |= {"lira": lira_online(phi, *shadows), "lira-offline": lira_offline(phi, *shadows)}
        else:
            scores["rmia"] = rmia(phi, *shadows, population=np.arange(len(phi)) >= members)
    return scores


def attack_result(attack: str, members: FloatArray, others: FloatArray, key: Key) -> AttackResult:
    """Return the figures of an attack on one model for ``audit.json``.

    Args:
        attack: Its name.
        members: Its scores of members, [m].
        others: Its scores of non-members, [n].
        key: The random stream; see `attack_figures`.
    """
    figures = attack_figures(members, others, key)
    return AttackResult(
        attack=attack,
        accuracy=_share(figures.accuracy, figures.accuracy_interval),
        best_accuracy=figures.best_accuracy,
        auc=_share(figures.auc, figures.auc_interval),
        rates=[
            TruePositiveRate(
                fpr=rate.fpr,
                tpr=None if rate.tpr is None or rate.interval is None else _share(rate.tpr, rate.interval),
                reason=rate.reason,
            )
            for rate in figures.rates
        ],
        roc=thinned(*roc(members, others)),
    )


def _share(value: float, interval: Interval) -> MeasuredShare:
    return MeasuredShare(value=value, low=interval.low, high=interval.high)
