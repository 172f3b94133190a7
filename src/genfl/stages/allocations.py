"""Allocations: how many generated samples each client gets of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from genfl.config import Content
from genfl.data.budget import budget, guided
from genfl.errors import InputError
from genfl.rng import Key


class Allocation(NamedTuple):
    """The numbers of generated samples of each client and class, [clients, classes] each.

    Attributes:
        pooled: Samples that are generated from prompts alone.
        guided: Samples that are guided by the client's own examples.
    """

    pooled: np.ndarray
    guided: np.ndarray


def allocate(content: Content, counts: np.ndarray, pools: np.ndarray, seed: int) -> Allocation:
    """Return how many generated samples each client gets.

    The budget is divided over all clients. If only some of them generate, each of these gets what it would
    get if all did (FedGC, Table 13), and the others get nothing.

    Args:
        content: The section of the config.
        counts: The numbers of each client's private samples, [clients, classes].
        pools: The numbers of samples that were generated from prompts alone, [classes].
        seed: The seed that draws the generating clients, if not all generate.
    """
    if content.per_client is not None:
        samples = content.per_client * len(counts)
    else:
        samples = content.samples if content.samples is not None else int(pools.min()) * len(pools)
    generating = _generating(len(counts), content.clients, seed)
    allocation = np.zeros(counts.shape, dtype=np.int64)
    allocation[generating] = budget(content.budget, samples, counts)[generating]
    return Allocation(*guided(content.guidance, allocation, counts))


def _generating(clients: int, share: float, seed: int) -> np.ndarray:
    """Return the clients that generate."""
    count = max(1, round(share * clients))
    return np.sort(Key(seed).fold("generating clients").numpy().choice(clients, count, replace=False))


def limit_to_pools(allocation: np.ndarray, pools: np.ndarray) -> int:
    """Lower an allocation to the available samples of each class, largest numbers first.

    Args:
        allocation: Samples of each class for each client, [clients, classes]. It is changed.
        pools: The available samples of each class, [classes].

    Returns:
        The total number of samples that were taken away.
    """
    missing = np.maximum(allocation.sum(0) - pools, 0)
    for number in np.flatnonzero(missing):
        for _ in range(missing[number]):
            allocation[np.argmax(allocation[:, number]), number] -= 1
    return int(missing.sum())


def refuse_empty(name: str, samples: Sequence[int], seed: int) -> None:
    """Check that every client has a sample to train on.

    Args:
        name: The method's name in the config.
        samples: The number of samples of each client.
        seed: The seed, for the message.

    Raises:
        InputError: A client has no sample.
    """
    poorest = int(np.argmin(samples))
    if samples[poorest] == 0:
        raise InputError(
            f"methods.{name}.data: with seed {seed}, client {poorest} gets no generated sample and has"
            " no other data to train on; raise content.samples or content.per_client, or use budget equal"
            " and all clients"
        )
