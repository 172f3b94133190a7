"""How many generated samples of each class each client gets, and which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from genfl.config import Content
from genfl.data.budget import budget, guided
from genfl.errors import InputError
from genfl.rng import Key


class Allocation(NamedTuple):
    """How many generated samples of each class each client gets, [clients, classes] each.

    Attributes:
        pooled: Of those that were made from prompts alone.
        guided: Of those that real examples of its own guide.
    """

    pooled: np.ndarray
    guided: np.ndarray


def allocate(content: Content, counts: np.ndarray, pools: np.ndarray, seed: int) -> Allocation:
    """Return how much generated content each client gets.

    Args:
        content: What the config says of it.
        counts: What each client has of its own, [clients, classes].
        pools: How many samples of each class were made from prompts alone, [classes].
        seed: Decides which clients generate, where not all do.
    """
    samples = content.samples if content.samples is not None else int(pools.min()) * len(pools)
    generating = _generating(len(counts), content.clients, seed)
    allocation = np.zeros(counts.shape, dtype=np.int64)
    allocation[generating] = budget(content.budget, samples, counts[generating])
    return Allocation(*guided(content.guidance, allocation, counts))


def _generating(clients: int, share: float, seed: int) -> np.ndarray:
    """Return the clients that generate."""
    count = max(1, round(share * clients))
    return np.sort(Key(seed).fold("generating clients").numpy().choice(clients, count, replace=False))


def limit_to_pools(allocation: np.ndarray, pools: np.ndarray) -> int:
    """Lower an allocation to what there is of each class, the largest number first.

    Args:
        allocation: Samples of each class for each client, [clients, classes]; it is changed.
        pools: How many samples there are of each class, [classes].

    Returns:
        By how much it was lowered in all.
    """
    missing = np.maximum(allocation.sum(0) - pools, 0)
    for number in np.flatnonzero(missing):
        for _ in range(missing[number]):
            allocation[np.argmax(allocation[:, number]), number] -= 1
    return int(missing.sum())


def refuse_empty(name: str, samples: Sequence[int], seed: int) -> None:
    """Refuse that a client has nothing to train on.

    Args:
        name: What the config calls the method.
        samples: How many samples each client has.
        seed: The seed, for the message.

    Raises:
        InputError: One of these numbers of samples is zero.
    """
    poorest = int(np.argmin(samples))
    if samples[poorest] == 0:
        raise InputError(
            f"methods.{name}.data: with seed {seed}, client {poorest} gets no generated sample and has"
            " nothing else to train on; raise content.samples, or use budget equal and all clients"
        )
