"""Differential privacy of a trial: what protects it, and what it costs."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from genfl import trees
from genfl.algorithms.base import Algorithm, run_once
from genfl.config.privacy import AccountantName, Privacy, PrivacyUnit
from genfl.data.clients import GENERATED, PRIVATE
from genfl.data.plans import PoissonSampling, Schedule
from genfl.errors import InputError
from genfl.learning.local import Context, LocalSGD, Penalty, no_penalty
from genfl.learning.per_sample import per_sample_gradient
from genfl.learning.task import Aux, Batch, Task
from genfl.privacy.dp.accounting import NoisedSums, default_delta, epsilon_of, noise_for
from genfl.privacy.dp.sample import ClippedGradient
from genfl.privacy.dp.toeplitz import BufferedToeplitz, Participations, least_error, separation
from genfl.privacy.dp.user import UserNoise
from genfl.references import FederationPlan
from genfl.rng import Key
from genfl.storage import replacing
from genfl.trees import Tree

NOISE_SECRET = "noise.key"
"""The file of a run's secret, from which its noise is drawn. Whoever has it can subtract the noise."""

Neighbours = Literal["add or remove", "zero out"]
"""Which data sets are neighbours; see `Protection`."""


@dataclass(frozen=True)
class Correlation:
    """How the noise of the rounds depends on each other, and what that costs.

    Attributes:
        matrix: The matrix C; the noise of the rounds is C⁻¹Z, Z being independent noise.
        sensitivities: For each round, how far one client moves CX in the rounds so far, divided by the norm,
            X being the sums of uploads, [rounds]. That is for the rounds in which clients do take part.
        separation: The least number of rounds from one participation of a client to its next; None if none
            takes part twice.
    """

    matrix: BufferedToeplitz
    sensitivities: tuple[float, ...]
    separation: int | None

    @classmethod
    def of(cls, rounds: int, participations: Participations) -> Correlation:
        """Return the one that leaves the least error for the same privacy; see `least_error`.

        Args:
            rounds: The number of rounds.
            participations: The rounds of each client; see `_rounds_of_clients`.
        """
        matrix = least_error(rounds, participations)
        sensitivities = matrix.sensitivities(rounds, participations)
        return cls(matrix, tuple(sensitivities.tolist()), separation(participations))

    def __str__(self) -> str:
        apart = f", turns {self.separation} rounds apart" if self.separation else ""
        return f"buffers {len(self.matrix.decays)}, sensitivity {self.sensitivities[-1]:.4g}{apart}"

    def figures(self, rounds: int) -> dict[str, Any]:
        """Return what a record says of it, after so many rounds."""
        return {
            "mechanism": "blt",
            "decays": list(self.matrix.decays),
            "scales": list(self.matrix.scales),
            "sensitivity": self.sensitivities[rounds - 1] if rounds else 0.0,
            "min_separation": self.separation,
        }


@dataclass(frozen=True)
class Protection:
    """The differential privacy of a trial.

    Attributes:
        unit: What is protected.
        noise_multiplier: Standard deviation of the noise, divided by the norm.
        norm: The clipping norm.
        sampling_rate: The probability with which a unit takes part in a noised sum.
        steps_per_round: How many noised sums a client's data enter in a round in which it takes part.
        participations: For each round, in how many rounds so far the most exposed client took part, [rounds].
        delta: The probability with which the bound may fail.
        accountant: How privacy losses are added up.
        free: The numbers of the parts of the clients' data that are not protected: public samples.
        cohort: Unit user: the expected number of clients in a round.
        target_quantile: Unit user: the share of uploads that an adaptive norm leaves whole; None if the norm
            is fixed.
        neighbours: Which data sets are neighbours. ``add or remove``: one has one unit more. ``zero out``:
            the unit is there in both, and contributes zeros in one of them: the gradients of one sample, or
            the uploads of one client. So the numbers of samples are the same.
        quorum: Unit user: the fewest clients of a round that must finish, if clients add the noise; None if
            the server does.
        correlation: Unit user: how the noise of the rounds depends on each other; None if it does not.
    """

    unit: PrivacyUnit
    noise_multiplier: float
    norm: float
    sampling_rate: float
    steps_per_round: int
    participations: tuple[int, ...]
    delta: float
    accountant: AccountantName
    free: tuple[int, ...] = ()
    cohort: int = 0
    target_quantile: float | None = None
    neighbours: Neighbours = "add or remove"
    quorum: int | None = None
    correlation: Correlation | None = None

    def __str__(self) -> str:
        epsilon = self.epsilon(len(self.participations))
        how = f"sampling rate {self.sampling_rate:.4g}"
        if self.correlation:
            how = f"correlated over rounds ({self.correlation})"
        return (
            f"noise {self.noise_multiplier:.4g} × norm {self.norm:g}, {how}:"
            f" ε {epsilon:.4g} at δ {self.delta:.3g} for each {self.unit}"
            f"{self._shares()}"
        )

    def _shares(self) -> str:
        if self.quorum is None:
            return ""
        if self.quorum == self.cohort:
            return f"; clients add it, enough if all {self.cohort} finish"
        more = math.sqrt(self.cohort / self.quorum)
        return (
            f"; clients add it, enough if {self.quorum} of {self.cohort} finish, and {more:.3g} times as much"
            " if all do"
        )

    def steps(self, rounds: int) -> int:
        """Return how many noised sums of so many rounds the most exposed unit took part in."""
        return self.steps_per_round * (self.participations[rounds - 1] if rounds else 0)

    def releases(self, rounds: int) -> tuple[NoisedSums, ...]:
        """Return what so many rounds release of the most exposed unit."""
        if self.correlation and rounds:  # all of them together are one release
            return (NoisedSums(self.noise_multiplier / self.correlation.sensitivities[rounds - 1], 1.0, 1),)
        return (NoisedSums(self.noise_multiplier, self.sampling_rate, self.steps(rounds)),)

    def epsilon(self, rounds: int) -> float:
        """Return ε after so many rounds."""
        return epsilon_of(self.releases(rounds), self.delta, self.accountant)

    def figures(self, rounds: int) -> dict[str, Any]:
        """Return what a record says of it, after so many rounds; infinite ε is None."""
        epsilon = self.epsilon(rounds)
        return {
            "unit": self.unit,
            "noise_multiplier": self.noise_multiplier,
            "norm": self.norm,
            "sampling_rate": self.sampling_rate,
            "steps": self.steps(rounds),
            "delta": self.delta,
            "epsilon": None if epsilon == float("inf") else epsilon,
            "accountant": self.accountant,
            "neighbours": self.neighbours,
            **({"target_quantile": self.target_quantile} if self.target_quantile is not None else {}),
            **({"quorum": self.quorum, "cohort": self.cohort} if self.quorum is not None else {}),
            **(self.correlation.figures(rounds) if self.correlation else {}),
        }


def noise_secret(folder: Path) -> str:
    """Return the secret from which a run draws its noise: 256 bits as 64 digits. It is created once.

    It is no part of any digest, figure or exported model. Without it, seed and config do not give the noise.

    Args:
        folder: The folder of the stage federate. The file can be read by its owner only.
    """
    path = folder / NOISE_SECRET
    if not path.exists():
        with replacing(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_hex(32), encoding="ascii")
    return path.read_text(encoding="ascii")


def protect(
    privacy: Privacy, federation: FederationPlan, like: Protection | None = None
) -> tuple[FederationPlan, Protection | None]:
    """Return a federation with the sampling that its protection counts on, and the protection.

    Args:
        privacy: The section of the config.
        federation: The clients, the schedule, and the stream of the cohorts.
        like: A protection to take as it is, noise and sampling rate included; None calibrates a new one.

    Returns:
        The same federation and None if the clients train on public samples alone.

    Raises:
        InputError: No noise reaches the ε asked for.
    """
    clients, plan, key = federation
    if like is not None:
        if like.unit == "user":
            plan = dataclasses.replace(plan, cohorts=privacy.cohort_kind, sampling_rate=like.sampling_rate)
        else:
            plan = dataclasses.replace(plan, poisson=PoissonSampling(like.sampling_rate, like.free))
        return federation._replace(schedule=plan), like
    if privacy.unit == "user":
        plan, protection = protect_users(privacy, len(clients), plan, key)
        return federation._replace(schedule=plan), protection
    public = [part.name == GENERATED and privacy.generated == "free" for part in clients.parts]
    if all(public):
        return federation, None
    rate = min(1.0, plan.batch_size * len(clients) / int(clients.ends[-1]))
    free = tuple(int(number) for number in np.flatnonzero(public))
    poisson = PoissonSampling(rate, free)
    steps = plan.local_steps or poisson.steps(plan.local_epochs)
    participations = _participations(len(clients), plan, key)
    delta = privacy.delta or default_delta(clients.count(PRIVATE) or int(clients.ends[-1]))
    noise = _noise(privacy, delta, rate, steps * participations[-1])
    protection = Protection(
        "sample",
        noise,
        privacy.norm,
        rate,
        steps,
        participations,
        delta,
        privacy.accountant,
        free,
        neighbours="zero out",
    )
    return federation._replace(schedule=dataclasses.replace(plan, poisson=poisson)), protection


def protect_users(privacy: Privacy, clients: int, plan: Schedule, key: Key) -> tuple[Schedule, Protection]:
    """Return a schedule with the cohorts that the protection of users counts on, and the protection.

    Poisson cohorts hide who takes part. So every round counts, with the probability of taking part. Cohorts
    of one size hide nothing. Then those rounds count in which a client takes part, for the client with the
    most of them. Its neighbour uploads zeros, and no other client takes part in its stead. If noise is
    correlated, the spacing of these rounds counts, too.

    Args:
        privacy: The section of the config.
        clients: The number of clients.
        plan: The schedule.
        key: The stream of the cohorts.

    Raises:
        InputError: No noise reaches the ε asked for, or cohorts are too small for an adaptive norm.
    """
    plan = dataclasses.replace(plan, cohorts=privacy.cohort_kind)
    poisson = plan.cohorts == "poisson"
    rate = plan.clients_per_round / clients if poisson else 1.0
    participations = tuple(range(1, plan.rounds + 1)) if poisson else _participations(clients, plan, key)
    delta = privacy.delta or default_delta(clients)
    correlation, scale, steps = None, 1.0, participations[-1]
    if privacy.mechanism == "blt":
        correlation = Correlation.of(plan.rounds, _rounds_of_clients(clients, plan, key))
        scale, steps = correlation.sensitivities[-1], 1
    protection = Protection(
        "user",
        _noise(privacy, delta, rate, steps, scale),
        privacy.norm,
        rate,
        1,
        participations,
        delta,
        privacy.accountant,
        cohort=plan.clients_per_round,
        target_quantile=privacy.target_quantile,
        neighbours="add or remove" if poisson else "zero out",
        quorum=(privacy.quorum or plan.clients_per_round) if privacy.noise == "distributed" else None,
        correlation=correlation,
    )
    try:
        user_noise(protection)
    except InputError as error:
        raise InputError(f"privacy.{error}") from error
    return plan, protection


def _noise(privacy: Privacy, delta: float, rate: float, steps: int, sensitivity: float = 1.0) -> float:
    """Return the noise multiplier of a config."""
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    assert privacy.epsilon is not None
    return sensitivity * noise_for(privacy.epsilon, delta, rate, steps, privacy.accountant)


def user_noise(protection: Protection, stream: str = "") -> UserNoise:
    """Return the noise of a protection of users.

    Args:
        protection: The protection.
        stream: What distinguishes this trial's noise from that of others with the same seed.

    Raises:
        InputError: Cohorts are too small for an adaptive norm.
    """
    return UserNoise(
        protection.noise_multiplier,
        protection.norm,
        protection.cohort,
        protection.target_quantile,
        stream,
        protection.quorum,
        protection.correlation.matrix if protection.correlation else None,
    )


def _participations(clients: int, plan: Schedule, key: Key) -> tuple[int, ...]:
    """Return for each round in how many rounds so far the client took part that took part most often."""
    counts, most = np.zeros(clients, dtype=np.int64), []
    for number in range(1, plan.rounds + 1):
        counts[list(plan.cohort(clients, key, number))] += 1
        most.append(int(counts.max()))
    return tuple(most)


def _rounds_of_clients(clients: int, plan: Schedule, key: Key) -> Participations:
    """Return the rounds of every client that takes part, without repetitions."""
    rounds: dict[int, list[int]] = {}
    for number in range(1, plan.rounds + 1):
        for client in plan.cohort(clients, key, number):
            rounds.setdefault(client, []).append(number)
    return tuple(sorted({tuple(taken) for taken in rounds.values()}))


def protected(
    local: LocalSGD, task: Task, protection: Protection, stream: str = "", *, measured: bool = False
) -> LocalSGD:
    """Return local training with a protection: DP-SGD where single samples are protected.

    Args:
        local: Local training, before the methods' hooks.
        task: What is learned.
        protection: The protection.
        stream: What distinguishes this trial's noise from that of others with the same seed.
        measured: Whether to measure what the noise leaves.
    """
    if protection.unit != "sample":
        return local
    noise, norm = protection.noise_multiplier, protection.norm
    gradient = ClippedGradient(noise, norm, per_sample_gradient(task), stream, measured)
    return dataclasses.replace(local, batch_gradient=gradient)


def sample_problem(build: Callable[[LocalSGD], Algorithm], local: LocalSGD, task: Task) -> str | None:
    """Return why DP-SGD does not protect the clients of a method; None if it does.

    A client takes a step with a gradient that reads no data. If what it uploads still depends on its
    examples, or if it asks for a second gradient, DP-SGD is not all that reads them.

    The client takes part twice, with what it keeps between rounds. A client program does not know the round,
    and the sampling rate is the same in all. So later rounds differ by the server's message alone, which is
    made of what DP-SGD protects.

    Args:
        build: Returns the method's algorithm with some local training.
        local: Local training, before the methods' hooks.
        task: The learning task.
    """
    asked: list[str] = []

    def blind(
        params: Tree, buffers: Tree, batch: Batch, context: Context, penalty: Penalty
    ) -> tuple[Tree, Aux]:
        asked.append(_penalty_reads(penalty, params, buffers, batch, context))
        return trees.zeros_like(params), Aux(buffers)

    algorithm = build(dataclasses.replace(local, batch_gradient=blind))
    if not algorithm.same_form or set(algorithm.client.reductions.values()) != {"sum"}:
        return "the server sees the uploads of single clients; use a method of which it sees sums"
    form, weights = task.shapes(), task.init(Key(0))
    client_info = {"samples": torch.tensor(2.0), "label_counts": torch.ones(form.classes)}
    state = algorithm.init(weights, run_once(algorithm.census, {}, {}, client_info)[0], Key(0))
    message = algorithm.address(algorithm.send(state), 0)
    uploads: list[list[torch.Tensor]] = []
    for value in (0.0, 1.0):
        x = torch.full((2, *form.input), value)
        y = torch.full((2,), int(value)) % form.classes
        memory, sent = algorithm.memory(weights), []
        for _ in range(2):
            carry = algorithm.client.start(message, memory, client_info, Key(0))
            asked.clear()
            carry = algorithm.client.step(carry, {"x": x, "y": y}, Key(0))
            upload, memory = algorithm.client.finish(carry)
            sent += trees.leaves(upload)
        uploads.append(sent)
    if algorithm.client.select is not None:
        return "its clients select their samples by looking at them, and no noise hides the choice"
    if "several" in asked:
        return "its penalty compares the samples of a batch, which DP-SGD must treat one by one"
    if "counts" in asked:
        return "its penalty reads the numbers of samples or labels, so one sample changes all gradients"
    if len(asked) != 1:
        return f"it takes {len(asked)} gradients of a step's examples, and DP-SGD accounts for one"
    if not all(map(torch.equal, *uploads)):
        return "its clients read their examples outside of SGD, where no noise is added"
    return None


def _penalty_reads(penalty: Penalty, params: Tree, buffers: Tree, batch: Batch, context: Context) -> str:
    """Return what a penalty of a batch depends on besides single samples.

    Returns:
        ``several`` if it differs from the mean of the penalties of its samples, ``counts`` if it differs for
        a client with other numbers of samples and labels, else an empty text.
    """
    if penalty is no_penalty:
        return ""
    generator = Key(0).torch()
    x = batch["x"] + torch.rand(batch["x"].shape, generator=generator).round()
    batch = {"x": x, "y": batch["y"]}

    def value(part: Batch, context: Context = context) -> float:
        _, aux = context.task.loss(params, buffers, part, context.key)
        return float(penalty(params, aux, part, context))

    singles = [value({name: rows[number : number + 1] for name, rows in batch.items()}) for number in (0, 1)]
    whole = value(batch)
    if not math.isclose(whole, sum(singles) / 2, rel_tol=1e-3, abs_tol=1e-6):
        return "several"
    counts = context.client_info["label_counts"]
    more = {"samples": context.client_info["samples"] + 1, "label_counts": counts + torch.eye(len(counts))[0]}
    return "" if math.isclose(whole, value(batch, context._replace(client_info=more))) else "counts"
