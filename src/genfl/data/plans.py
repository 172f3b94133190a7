"""The samples of a client's local steps, drawn before the first step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genfl.rng import Key

PADDING = 8
"""Batches of a Poisson sample are padded to multiples of this, so that their sizes seldom differ."""


class PoissonSampling(NamedTuple):
    """Batches to which every sample belongs independently, with the same probability.

    Such batches differ in size, and can be empty. Differential privacy counts on it (DP-SGD).

    Attributes:
        rate: The probability, in (0, 1].
        free: The numbers of the parts of the data that need no protection: public samples.
    """

    rate: float
    free: tuple[int, ...] = ()

    def steps(self, epochs: int) -> int:
        """Return how many steps are so many passes over the data, on average."""
        return math.ceil(epochs / self.rate)

    def draw(self, samples: int, steps: int, rng: np.random.Generator) -> list[Tensor]:
        """Draw the batches of a client's round.

        Args:
            samples: How many the client has.
            steps: How many batches.
            rng: The random stream.

        Returns:
            For each step the numbers of its samples, int64, padded with -1 at the end: all to the size of the
            largest batch, rounded up to a multiple of `PADDING`.
        """
        drawn = [np.flatnonzero(rng.random(samples) < self.rate) for _ in range(steps)]
        largest = max(map(len, drawn), default=0)
        width = max(1, -(-largest // PADDING)) * PADDING
        return [torch.from_numpy(np.pad(rows, (0, width - len(rows)), constant_values=-1)) for rows in drawn]

    def marks(self, rows: Tensor, part_sizes: Sequence[int]) -> dict[str, Tensor]:
        """Return what DP-SGD must know of a batch besides its examples.

        Args:
            rows: The numbers of its samples, int64 [n]; -1 for padding.
            part_sizes: How many samples the client has of each part of its data.

        Returns:
            ``protected`` [n] and ``free`` [n], which are 1 for such samples and 0 for others and for padding,
            and ``expected``, the mean size of a batch, a scalar.
        """
        ends = torch.tensor(list(itertools.accumulate(part_sizes)))
        part = torch.searchsorted(ends, rows, right=True)
        free = sum((part == number for number in self.free), torch.zeros(len(rows), dtype=torch.bool))
        dtype = torch.get_default_dtype()
        return {
            "protected": ((rows >= 0) & ~free).to(dtype),
            "free": ((rows >= 0) & free).to(dtype),
            "expected": torch.tensor(self.rate * sum(part_sizes), dtype=dtype),
        }


class Batches(NamedTuple):
    """The plan of a client's batches in a round, drawn wherever the client runs.

    Attributes:
        batch_size: Samples in a batch, at least 1.
        steps: How many batches; None to count in epochs.
        epochs: How many passes over the data, where `steps` is None.
        key: The random stream.
        order: The numbers of the parts of the data that are trained on, one after the other; None trains on
            all of them mixed. Each part gets all the epochs, or an equal share of the steps. Parts that a
            client does not have are left out.
        poisson: Draws every sample independently, in place of batches of one size; not with an order.
    """

    batch_size: int
    steps: int | None
    epochs: int
    key: Key
    order: Sequence[int] | None = None
    poisson: PoissonSampling | None = None

    def draw(self, part_sizes: Sequence[int]) -> list[Tensor]:
        """Return the samples of each step, by their numbers among all the client's samples.

        Args:
            part_sizes: How many samples the client has of each part of the data.
        """
        rng = self.key.numpy()
        if self.poisson:
            return self.poisson.draw(sum(part_sizes), self.length(part_sizes), rng)
        drawn: list[Tensor] = []
        for first, samples, steps in self._phases(part_sizes):
            batches = plan(samples, self.batch_size, steps, self.epochs, rng)
            drawn += [first + numbers for numbers in batches] if first else batches
        return drawn

    def length(self, part_sizes: Sequence[int]) -> int:
        """Return how many steps a client takes that has so many samples of each part."""
        if self.poisson:
            return self.poisson.steps(self.epochs) if self.steps is None else self.steps
        return sum(
            self.epochs * (samples // min(self.batch_size, samples)) if steps is None else steps
            for _, samples, steps in self._phases(part_sizes)
        )

    def samples(self, part_sizes: Sequence[int]) -> int:
        """Return how many samples a client trains on in all its steps, with repetitions.

        Args:
            part_sizes: How many samples the client has of each part of the data.

        Returns:
            The number, for Poisson sampling its mean.
        """
        if self.poisson:
            return round(self.length(part_sizes) * self.poisson.rate * sum(part_sizes))
        total = 0
        for _, samples, steps in self._phases(part_sizes):
            size = min(self.batch_size, samples)
            total += size * (self.epochs * (samples // size) if steps is None else steps)
        return total

    def _phases(self, part_sizes: Sequence[int]) -> list[tuple[int, int, int | None]]:
        """Return for each phase of training: its first sample, how many samples, and for how many steps."""
        starts = list(itertools.accumulate(part_sizes, initial=0))
        if self.order is None:
            return [(0, starts[-1], self.steps)] if starts[-1] else []
        parts = [number for number in self.order if number < len(part_sizes) and part_sizes[number]]
        return [
            (
                starts[number],
                part_sizes[number],
                None if self.steps is None else (self.steps + len(parts) - 1 - turn) // len(parts),
            )
            for turn, number in enumerate(parts)
        ]


CohortKind = Literal["fixed", "poisson", "cyclic"]
"""How the clients of a round are drawn."""


@dataclass(frozen=True)
class Schedule:
    """The plan of a federation: how many rounds, cohorts of which size, and how much local work.

    Attributes:
        rounds: Number of rounds.
        clients_per_round: Size of the cohort; the mean size of Poisson cohorts.
        batch_size: Samples in a step's batch; a client with fewer uses all it has.
        local_steps: Steps a client takes in a round; None to count in epochs.
        local_epochs: Passes over the client's data in a round, where `local_steps` is None.
        evaluate_every: Evaluate after every so many rounds, besides round 0 and the last.
        checkpoint_every: Keep the state on disk after every so many rounds.
        order: The parts of clients' data that are trained on one after the other; see `Batches`.
        cohorts: ``fixed`` draws cohorts of one size, uniformly without replacement. With ``poisson``, each
            client takes part with the same probability, independently of the others. A cohort may be empty.
            With ``cyclic``, clients take turns in a random order, in cohorts of one size.
        poisson: Draws every sample independently, in place of batches of one size; see `Batches`.
        sampling_rate: Poisson cohorts: the probability of each client, in (0, 1]; None for the one that gives
            the mean size.
    """

    rounds: int
    clients_per_round: int
    batch_size: int
    local_steps: int | None = None
    local_epochs: int = 1
    evaluate_every: int = 1
    checkpoint_every: int = 1
    order: Sequence[int] | None = None
    cohorts: CohortKind = "fixed"
    poisson: PoissonSampling | None = None
    sampling_rate: float | None = None

    def cohort(self, clients: int, key: Key, number: int) -> Sequence[int]:
        """Draw the clients of a round, in ascending order.

        Args:
            clients: The number of clients.
            key: The random stream of the federation.
            number: The round, from 1.
        """
        stream = key.fold("cohort", number)
        if self.cohorts == "poisson":
            return poisson_cohort(clients, self.sampling_rate or self.clients_per_round / clients, stream)
        if self.cohorts == "cyclic":
            return cyclic_cohort(clients, self.clients_per_round, key.fold("cohort"), number)
        return cohort(clients, self.clients_per_round, stream)

    def batches(self, key: Key) -> Batches:
        """Return how a client's batches are drawn in a round, given the random stream of both."""
        return Batches(self.batch_size, self.local_steps, self.local_epochs, key, self.order, self.poisson)


def cohort(clients: int, size: int, key: Key) -> Sequence[int]:
    """Draw a round's clients uniformly without replacement, in ascending order."""
    chosen = key.numpy().choice(clients, size, replace=False)
    return sorted(int(client) for client in chosen)


def poisson_cohort(clients: int, probability: float, key: Key) -> Sequence[int]:
    """Draw each client with the same probability, independently of the others; in ascending order."""
    drawn = key.numpy().random(clients) < probability
    return [int(client) for client in np.flatnonzero(drawn)]


def cyclic_cohort(clients: int, size: int, key: Key, number: int) -> Sequence[int]:
    """Return the next clients of a random order that begins anew at its end; in ascending order.

    A client waits at least ``clients // size`` rounds for its next turn.

    Args:
        clients: The number of clients.
        size: The size of the cohort, at most `clients`.
        key: The random stream of the order.
        number: The round, from 1.
    """
    order = key.numpy().permutation(clients)
    turns = np.arange((number - 1) * size, number * size) % clients
    return sorted(int(client) for client in order[turns])


def plan(
    samples: int, batch_size: int, steps: int | None, epochs: int, rng: np.random.Generator
) -> list[Tensor]:
    """Draw the batches of a client's round.

    Every pass over the data is shuffled anew. A batch is full, or the client's whole set where that is
    smaller: the rest of a pass that does not fill a batch is left out, because padded or odd-sized batches
    would disturb batch norm.

    Args:
        samples: How many the client has.
        batch_size: Samples in a batch, at least 1.
        steps: How many batches; None to count in epochs.
        epochs: How many passes over the data, where `steps` is None.
        rng: The random stream.

    Returns:
        For each step the numbers of some of the samples, int64 [min(batch_size, samples)].
    """
    size = min(batch_size, samples)
    if size == 0:
        return []
    a_pass = samples // size
    total = epochs * a_pass if steps is None else steps
    drawn: list[Tensor] = []
    while len(drawn) < total:
        order = torch.from_numpy(rng.permutation(samples))
        drawn += order[: a_pass * size].view(a_pass, size).unbind()
    return drawn[:total]
