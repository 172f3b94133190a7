"""Splits a training set over clients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from genfl.errors import InputError

Kind = Literal["dirichlet", "iid", "natural"]


def partition(
    labels: Sequence[str],
    kind: Kind,
    clients: int,
    *,
    alpha: float,
    min_size: int,
    seed: int,
    keys: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Splits samples over clients: by whose they are, or with the partitioners of flwr-datasets.

    Args:
        labels: The label of every sample.
        kind: ``dirichlet``: each label's samples are dealt out in Dirichlet(alpha) shares; ``iid``: evenly;
            ``natural``: each key is a client, in alphabetical order.
        clients: Number of clients.
        alpha: Dirichlet concentration, positive: the smaller, the fewer labels a client holds.
        min_size: Samples every client has at least.
        seed: Decides the split.
        keys: Whose each sample is, if the data says so.

    Returns:
        For each client the rows that are its own; together they are all rows.

    Raises:
        InputError: No such split was found.
    """
    if kind == "natural":
        return _natural(keys, clients, min_size)
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

    if clients * min_size > len(labels):
        raise InputError(
            f"data.partition: {clients} clients of at least {min_size} samples need more than the"
            f" {len(labels)} there are; lower data.partition.clients or min_size"
        )
    rows = Dataset.from_dict({"label": list(labels), "row": range(len(labels))})
    if kind == "iid":
        partitioner = IidPartitioner(clients)
        rows = rows.shuffle(seed=seed)
    else:
        partitioner = DirichletPartitioner(
            clients, "label", alpha=float(alpha), min_partition_size=min_size, self_balancing=False, seed=seed
        )
    partitioner.dataset = rows
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every attempt; what counts is whether one succeeds
            return [np.asarray(partitioner.load_partition(k)["row"]) for k in range(clients)]
    except ValueError as error:
        raise InputError(
            f"data.partition: no Dirichlet({alpha}) split into {clients} clients of at least {min_size}"
            " samples was found; raise alpha, or lower clients or min_size"
        ) from error


def subset(labels: Sequence[str], size: int | None) -> np.ndarray:
    """Draws rows of a training set, classes as frequent as in all of it; always the same ones.

    Args:
        labels: The label of every sample.
        size: How many; None for all.

    Returns:
        The rows, ascending.

    Raises:
        InputError: There are not so many, or so few that a class would have none.
    """
    if size is None or size == len(labels):
        return np.arange(len(labels))
    classes = len(set(labels))
    if not classes <= size < len(labels):
        raise InputError(
            f"data.partition.samples: {size}, but it must be from {classes}, the number of classes, to"
            f" {len(labels)}, the number of samples"
        )
    from sklearn.model_selection import train_test_split

    rest = len(labels) - size
    if rest < classes:  # as scikit-learn wants of both parts
        chosen = np.random.default_rng(0).choice(len(labels), size, replace=False)
    else:
        rows = np.arange(len(labels))
        chosen, _ = train_test_split(rows, train_size=size, stratify=list(labels), random_state=0)
    return np.sort(chosen)


def _natural(keys: Sequence[str] | None, clients: int, min_size: int) -> list[np.ndarray]:
    if keys is None:
        raise InputError(
            "data.partition.kind: the data has no clients of its own; use dirichlet or iid, or name their"
            " column as data.key"
        )
    names, owner, sizes = np.unique(list(keys), return_inverse=True, return_counts=True)
    if len(names) != clients:
        raise InputError(
            f"data.partition.clients: {clients}, but the data has {len(names)} clients of its own; say so"
        )
    if sizes.min() < min_size:
        raise InputError(
            f"data.partition.min_size: client '{names[sizes.argmin()]}' has {sizes.min()} samples; lower it"
        )
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])
