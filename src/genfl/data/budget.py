"""Budgets of generated content (FedGC): a number of samples for every client and class."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from genfl.errors import InputError
from genfl.rng import Key

BudgetKind = Literal["equal", "inverse", "water_filling"]
Guidance = Literal["prompt", "real", "mixed"]

ORDERS: dict[str, tuple[int, ...] | None] = {"mixed": None, "p2g": (0, 1), "g2p": (1, 0)}
"""How private (part 0) and generated samples (part 1) take turns in a client's round; see
`genfl.data.plans.Batches`."""


class Budget(NamedTuple):
    """A number of generated samples, and the rule by which clients share it.

    `equal`, `inverse` and `water_filling` make one; in Python they are ``genfl.budget.equal`` and so on.

    Attributes:
        kind: See `budget`.
        samples: The number of samples of all clients together.
    """

    kind: BudgetKind
    samples: int

    def allocate(self, label_counts: np.ndarray) -> np.ndarray:
        """Return the number of generated samples of each client and class, [clients, classes] int64.

        Args:
            label_counts: The samples that each client has of each class, [clients, classes].
        """
        return budget(self.kind, self.samples, label_counts)


def equal(samples: int) -> Budget:
    """Return the budget that is the same for every client and class.

    Example:
        >>> equal(8).allocate(np.array([[5, 1], [0, 2]])).tolist()
        [[2, 2], [2, 2]]

    Args:
        samples: Generated samples of all clients together, at least 1.
    """
    return _budget("equal", samples)


def inverse(samples: int) -> Budget:
    """Return the budget that gives the more to a client, the fewer samples it has.

    Args:
        samples: Generated samples of all clients together, at least 1.
    """
    return _budget("inverse", samples)


def water_filling(samples: int) -> Budget:
    """Return the budget that is the same for every client and levels its rarest classes.

    Example:
        >>> water_filling(8).allocate(np.array([[5, 1], [0, 2]])).tolist()
        [[0, 4], [3, 1]]

    Args:
        samples: Generated samples of all clients together, at least 1.
    """
    return _budget("water_filling", samples)


def _budget(kind: BudgetKind, samples: int) -> Budget:
    if isinstance(samples, bool) or int(samples) != samples or samples < 1:
        raise InputError(f"budget.samples: {samples!r} is no whole number from 1; give one")
    return Budget(kind, int(samples))


def deal(y: Tensor, counts: np.ndarray, seed: int) -> list[np.ndarray]:
    """Deal generated samples out to clients, each sample to one of them at most.

    Args:
        y: The samples' class indices, [m].
        counts: How many of each class each client gets, [clients, classes].
        seed: Decides which.

    Returns:
        For each client its rows of `y`.
    """
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for number, column in enumerate(counts.T):
        rows = np.flatnonzero(y.numpy() == number)
        rows = Key(seed).fold("content", number).numpy().permutation(rows)
        # samples that are left over are nobody's
        for part, client_rows in zip(parts, np.split(rows, column.cumsum()), strict=False):
            part.append(client_rows)
    return [np.concatenate(part) for part in parts]


def budget(kind: BudgetKind, samples: int, label_counts: np.ndarray) -> np.ndarray:
    """Divide a number of generated samples over clients and classes, to the last one.

    Source: Ye et al., "Federated Learning with Generative Content" (arXiv 2312.05807), Section 3.

    Args:
        kind: ``equal``: the same for every client and class, ``M / (K C)``. ``inverse``: the less a client
            has of its own the more, ``M (N_max - N_k) / (C sum_i (N_max - N_i))``; equal where all have as
            much. ``water_filling``: ``M / K`` for each client, poured over its classes so that those it has
            least of rise to one level.
        samples: The number of samples M, at least 0.
        label_counts: What each client has of its own, [clients, classes].

    Returns:
        The numbers, [clients, classes] int64; their sum is `samples`. What does not divide evenly goes to
        the first clients, and to classes in turn, from one client to the next, so that none is favoured.
    """
    own = np.asarray(label_counts, dtype=np.int64)
    clients, _ = own.shape
    sizes = own.sum(1)
    missing = sizes.max() - sizes
    by_size = kind == "inverse" and missing.any()
    totals = _apportion(samples, missing if by_size else np.ones(clients, dtype=np.int64))
    pour = _pour if kind == "water_filling" else _spread
    before = totals.cumsum() - totals
    return np.stack([pour(*client) for client in zip(totals, own, before, strict=True)])


def guided(kind: Guidance, shares: np.ndarray, label_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide clients' generated samples into those that prompts alone make and those that real ones guide.

    Source: as `budget`.

    Args:
        kind: ``prompt``: prompts alone. ``real``: each is guided by one of the client's own examples, so that
            what it would get of classes it has nothing of goes to those it has. ``mixed``: of a class that it
            has, half of them are guided (of an odd number the larger half).
        shares: What `budget` gives each client, [clients, classes].
        label_counts: What it has of its own, [clients, classes].

    Returns:
        Both numbers, [clients, classes] each; a client's sum is that of its shares.
    """
    own = label_counts > 0
    if kind == "prompt":
        return shares, np.zeros_like(shares)
    if kind == "mixed":
        by_example = np.where(own, (shares + 1) // 2, 0)
        return shares - by_example, by_example
    by_example = np.where(own, shares, 0)
    for number, (mine, spare) in enumerate(zip(by_example, (shares - by_example).sum(1), strict=True)):
        classes = np.flatnonzero(own[number])
        mine[classes] += spare // len(classes)
        _extra(mine, spare % len(classes), classes, number)
    return np.zeros_like(shares), by_example


def _apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Divide a total in proportion to integer weights, by largest remainders, the first first."""
    whole, rest = np.divmod(total * weights, weights.sum())
    whole[np.argsort(-rest, kind="stable")[: total - whole.sum()]] += 1
    return whole


def _spread(total: int, own: np.ndarray, turn: int) -> np.ndarray:
    """Divide a total evenly over classes."""
    return _extra(np.full_like(own, total // len(own)), total % len(own), np.arange(len(own)), turn)


def _pour(total: int, own: np.ndarray, turn: int) -> np.ndarray:
    """Add a total where there is least, so that what is lowest ends level."""
    below = np.sort(own)
    # to raise the n lowest to the (n+1)-th takes so much
    needed = np.append(below[1:] * np.arange(1, len(own)) - below[:-1].cumsum(), np.inf)
    wet = int(np.argmax(needed >= total)) + 1
    level, rest = divmod(total + int(below[:wet].sum()), wet)
    return _extra(np.maximum(level - own, 0), rest, np.flatnonzero(own <= level), turn)


def _extra(counts: np.ndarray, rest: int, classes: np.ndarray, turn: int) -> np.ndarray:
    """Give one more to each of `rest` of the classes, beginning with the one whose turn it is."""
    counts[np.roll(classes, -turn)[:rest]] += 1
    return counts
