"""Partitions: the split of a training set over clients."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from genfl.errors import InputError
from genfl.rng import Key

PartitionKind = Literal["dirichlet", "iid", "shards", "quantity", "natural", "domain"]
Within = Literal["iid", "dirichlet"]

OWN: tuple[PartitionKind, ...] = ("natural", "domain")
"""The splits by the client ids in the data, which decide the number of clients."""


@dataclass(frozen=True)
class Partitioner:
    """A split of samples over clients, to be applied to labels.

    `iid`, `dirichlet`, `shards`, `quantity` and `natural` make one, in Python as ``genfl.partition.iid``
    and so on.

    Attributes:
        kind: See `partition`.
        clients: Number of clients; None where `client_ids` decide it. Of the kind natural, so many are drawn.
        alpha: Dirichlet concentration, of the kinds dirichlet and quantity.
        min_size: Samples that every client has at least.
        shards_per_client: Of the kind shards.
        client_ids: The client that each sample belongs to, [n], of the kind natural.
    """

    kind: PartitionKind
    clients: int | None
    alpha: float = 1.0
    min_size: int = 1
    shards_per_client: int = 2
    client_ids: tuple[str, ...] | None = None

    def split(self, labels: Sequence[str], seed: int = 0) -> list[np.ndarray]:
        """Return the rows of each client; the same as a run's with this seed.

        Args:
            labels: The label of every sample, [n].
            seed: Decides the split.

        Raises:
            InputError: There is no such split, or there are not as many client ids as labels.
        """
        if self.client_ids is not None and len(self.client_ids) != len(labels):
            raise InputError(
                f"partition.client_ids: {len(self.client_ids)} for {len(labels)} samples; give one for each"
            )
        return partition(
            labels,
            self.kind,
            self.clients,
            alpha=self.alpha,
            min_size=self.min_size,
            seed=Key(seed).fold("partition").integer() % 2**32,
            shards_per_client=self.shards_per_client,
            client_ids=self.client_ids,
        )


def iid(clients: int) -> Partitioner:
    """Partition samples evenly and at random.

    Example:
        >>> [len(rows) for rows in iid(2).split(["a", "b"] * 3)]
        [3, 3]

    Args:
        clients: Number of clients, at least 1.
    """
    return Partitioner("iid", _count("clients", clients))


def dirichlet(clients: int, alpha: float = 0.1, min_size: int = 1) -> Partitioner:
    """Partition the samples of each label in Dirichlet(alpha) shares (Hsu et al. 2019, arXiv 1909.06335).

    Example:
        >>> sum(len(rows) for rows in dirichlet(3, alpha=0.5).split(["a", "b"] * 30))
        60

    Args:
        clients: Number of clients, at least 1.
        alpha: Dirichlet concentration, positive: the smaller, the more clients differ.
        min_size: Samples that every client has at least.
    """
    return Partitioner("dirichlet", _count("clients", clients), _alpha(alpha), _count("min_size", min_size))


def shards(clients: int, shards_per_client: int = 2) -> Partitioner:
    """Partition samples into shards of one label or few (McMahan et al. 2017, arXiv 1602.05629, Section 3).

    Args:
        clients: Number of clients, at least 1.
        shards_per_client: Shards that every client gets, at least 1.
    """
    return Partitioner(
        "shards",
        _count("clients", clients),
        shards_per_client=_count("shards_per_client", shards_per_client),
    )


def quantity(clients: int, alpha: float = 0.5, min_size: int = 1) -> Partitioner:
    """Partition samples so that sizes differ and labels do not (Li et al. 2022, arXiv 2102.02079).

    Args:
        clients: Number of clients, at least 1.
        alpha: Dirichlet concentration of the sizes, positive.
        min_size: Samples that every client has at least.
    """
    return Partitioner("quantity", _count("clients", clients), _alpha(alpha), _count("min_size", min_size))


def natural(client_ids: Iterable[object], min_size: int = 1, clients: int | None = None) -> Partitioner:
    """Partition samples by the clients that they belong to.

    Example:
        >>> [rows.tolist() for rows in natural(["ann", "bob", "ann"]).split(["x", "x", "x"])]
        [[0, 2], [1]]

    Args:
        client_ids: The client of each sample, [n]: numbers or texts. Clients are in the order of these texts.
        min_size: Clients with fewer samples are left out.
        clients: Number of clients that are drawn from the others for each seed; None for all of them.
    """
    names = client_ids.tolist() if hasattr(client_ids, "tolist") else client_ids
    return Partitioner(
        "natural",
        None if clients is None else _count("clients", clients),
        min_size=_count("min_size", min_size),
        client_ids=tuple(str(name) for name in names),
    )


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise InputError(f"partition.{name}: {value!r} is no whole number from 1; give one")
    return int(value)


def _alpha(value: float) -> float:
    if not 0 < value < float("inf"):
        raise InputError(f"partition.alpha: {value!r} is not positive; give a number above 0")
    return float(value)


def partition(
    labels: Sequence[str],
    kind: PartitionKind,
    clients: int | None,
    *,
    alpha: float,
    min_size: int,
    seed: int,
    shards_per_client: int = 2,
    clients_per_domain: int = 5,
    within: Within = "iid",
    client_ids: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Partition samples over clients: by their owners, or so that labels or sizes are skewed.

    Args:
        labels: The label of every sample.
        kind: ``iid``: evenly. ``dirichlet``: each label's samples are dealt out in Dirichlet(alpha) shares
            (Hsu et al. 2019, arXiv 1909.06335). ``shards``: the samples, sorted by label, are cut into equal
            shards of which each client gets `shards_per_client` (McMahan et al. 2017, arXiv 1602.05629,
            Section 3). ``quantity``: labels alike, sizes in Dirichlet(alpha) shares (Li et al. 2022, arXiv
            2102.02079, Section IV). ``natural``: each client id is a client, in alphabetical order.
            ``domain``: each client id is a domain, in alphabetical order, with clients of its own.
        clients: Number of clients; None if the client ids decide it. For ``natural``, so many of the clients
            with enough samples are drawn.
        alpha: Dirichlet concentration, positive: the smaller, the more clients differ.
        min_size: Samples every client has at least. For ``quantity`` it is what every client has beforehand;
            clients with fewer are left out of ``natural``.
        seed: Decides the split.
        shards_per_client: For ``shards``.
        clients_per_domain: For ``domain``.
        within: How ``domain`` splits a domain over its clients.
        client_ids: The client id of every sample, if the data has client ids.

    Returns:
        For each client the rows that are its own. Together they are all rows, except those of clients
        that ``natural`` leaves out.

    Raises:
        InputError: No such split was found.
    """
    if kind == "natural":
        found = list(_natural(labels, client_ids, min_size, clients, seed).values())
    elif kind == "domain":
        found = []
        for number, (name, rows) in enumerate(_by_client_id(client_ids).items()):
            if clients_per_domain * min_size > len(rows):
                raise InputError(
                    f"data.partition.clients_per_domain: '{name}' has {len(rows)} samples, too few for"
                    f" {clients_per_domain} clients of at least {min_size}; lower it or min_size"
                )
            own = [labels[row] for row in rows]
            parts = _dealt(own, within, clients_per_domain, alpha, min_size, (seed + number) % 2**32)
            found += [rows[part] for part in parts]
    else:
        assert clients is not None
        if clients * min_size > len(labels):
            raise InputError(
                f"data.partition: {clients} clients of at least {min_size} samples need more than the"
                f" {len(labels)} there are; lower data.partition.clients or min_size"
            )
        if kind == "shards":
            return _shards(labels, clients, shards_per_client, min_size, seed)
        if kind == "quantity":
            return _quantity(len(labels), clients, alpha, min_size, seed)
        return _dealt(labels, kind, clients, alpha, min_size, seed)
    if kind == "domain" and clients not in (None, len(found)):
        raise InputError(
            f"data.partition.clients: {clients}, but the data has {len(found)} of its own; leave it out"
        )
    return found


def hold_back(
    parts: Sequence[np.ndarray], share: float, key: Key, groups: Sequence[str] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Hold a share of each client's rows back for testing, drawn at random.

    A client holds back `share` of its rows, rounded down: one with fewer than 1 / `share` rows holds back
    none, so that nobody is left without training data.

    Args:
        parts: For each client, its rows.
        share: In [0, 1).
        key: The random stream.
        groups: The group of every sample of the data set. A client holds back all of its samples of a group
            or none, and so at most `share` of its rows; None for no groups.

    Returns:
        For each client the rows it keeps for training, and for each client those it holds back.

    Raises:
        InputError: A share is asked for, and no client has enough rows for one.
    """
    rng, kept, held = key.numpy(), [], []
    for rows in parts:
        chosen = np.zeros(len(rows), dtype=bool)
        order, count = rng.permutation(len(rows)), int(share * len(rows) + 1e-9)
        if groups is None:
            chosen[order[:count]] = True
        else:
            chosen = _whole_groups([groups[row] for row in rows], order, count)
        kept.append(rows[~chosen])
        held.append(rows[chosen])
    if share > 0 and not any(map(len, held)):
        most = max(map(len, parts))
        raise InputError(
            f"data.partition.test: {share:g} of the most that a client has, {most}, is less than a sample;"
            " raise it"
        )
    return kept, held


def _whole_groups(groups: Sequence[str], order: np.ndarray, count: int) -> np.ndarray:
    """Choose whole groups in the order of their first rows, as long as they have no more than `count` rows.

    Args:
        groups: The group of each row.
        order: The rows in random order.
        count: The largest number of rows that are chosen.

    Returns:
        Whether each row is chosen, bool [rows].
    """
    sizes, chosen, left = Counter(groups), set[str](), count
    for group in dict.fromkeys(groups[row] for row in order):
        if sizes[group] <= left:
            chosen.add(group)
            left -= sizes[group]
    return np.array([group in chosen for group in groups], dtype=bool)


def subset(labels: Sequence[str], size: int | None) -> np.ndarray:
    """Draw rows of a training set, always the same ones, with classes as frequent as in all of it.

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
        try:
            chosen, _ = train_test_split(rows, train_size=size, stratify=list(labels), random_state=0)
        except ValueError as error:  # a class of one
            raise InputError(f"data.partition.samples: {error}; leave it out") from error
    lost = set(labels) - {labels[row] for row in chosen}
    if lost:
        raise InputError(
            f"data.partition.samples: {size} are so few that none is left of '{min(lost)}'; raise it"
        )
    return np.sort(chosen)


def _dealt(
    labels: Sequence[str], kind: Within, clients: int, alpha: float, min_size: int, seed: int
) -> list[np.ndarray]:
    """Return a split by the partitioners of flwr-datasets."""
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

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
            return [np.asarray(partitioner.load_partition(k)["row"][:]) for k in range(clients)]
    except ValueError as error:
        raise InputError(
            f"data.partition: no Dirichlet({alpha}) split into {clients} clients of at least {min_size}"
            " samples was found; raise alpha, or lower the number of clients or min_size"
        ) from error


def _shards(labels: Sequence[str], clients: int, shards: int, min_size: int, seed: int) -> list[np.ndarray]:
    # flwr-datasets's ShardPartitioner makes shards of one size, and leaves out what remains: samples of the
    # last label only, of which none may be left.
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(labels))
    by_label = rows[np.argsort(np.asarray(labels)[rows], kind="stable")]
    cut = np.array_split(by_label, clients * shards)
    dealt = rng.permutation(len(cut)).reshape(clients, shards)
    parts = [np.concatenate([cut[shard] for shard in own]) for own in dealt]
    if len(cut) > len(labels) or min(map(len, parts)) < min_size:
        raise InputError(
            f"data.partition.shards_per_client: {clients} clients with {shards} shards each, and {min_size}"
            f" samples at least, need more than the {len(labels)} there are; lower it, clients or min_size"
        )
    return parts


def _quantity(samples: int, clients: int, alpha: float, min_size: int, seed: int) -> list[np.ndarray]:
    # What every client has beforehand is taken out first: drawing until nobody has less may take for ever.
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(clients, alpha)).cumsum()
    ends = min_size * np.arange(1, clients) + np.rint(shares[:-1] * (samples - clients * min_size)).astype(
        int
    )
    return np.split(rng.permutation(samples), ends)


def _natural(
    labels: Sequence[str], client_ids: Sequence[str] | None, min_size: int, clients: int | None, seed: int
) -> dict[str, np.ndarray]:
    parts = {name: rows for name, rows in _by_client_id(client_ids).items() if len(rows) >= min_size}
    problem, fix = f"min_size: nobody with {min_size} samples or more", "lower it"
    if clients is not None and clients != len(parts):
        if clients > len(parts):
            raise InputError(
                f"data.partition.clients: {clients}, but the data has {len(parts)} of its own with {min_size}"
                " samples or more; lower it, or leave it out"
            )
        drawn = np.sort(np.random.default_rng(seed).choice(len(parts), clients, replace=False))
        names = list(parts)
        parts = {names[number]: parts[names[number]] for number in drawn}
        problem, fix = f"clients: none of the {clients} clients that are drawn", "raise it"
    lost = set(labels) - {labels[row] for rows in parts.values() for row in rows}
    if lost:
        raise InputError(f"data.partition.{problem} holds '{min(lost)}'; {fix}")
    return parts


def _by_client_id(client_ids: Sequence[str] | None) -> dict[str, np.ndarray]:
    if client_ids is None:
        raise InputError(
            "data.partition.kind: the data has no clients of its own; use dirichlet or iid, or name their"
            " column as data.client_id"
        )
    names, owner, sizes = np.unique(list(client_ids), return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])
    return dict(zip(names.tolist(), rows, strict=True))
