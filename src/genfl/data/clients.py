"""What clients hold: rows of arrays that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from genfl.errors import InputError
from genfl.rng import Key
from genfl.trees import Tree

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Random changes of prepared inputs; see `genfl.learning.augment`."""


@dataclass(frozen=True)
class Ranges:
    """Parts of consecutive rows: a million of them are one array.

    Attributes:
        ends: Where each client's rows end, and the next one's begin; ascending, [clients] int64.
    """

    ends: np.ndarray


class Joined:
    """Inputs in several tensors, as if these were one after the other: none is copied.

    Args:
        parts: Inputs, [n, ...] each, of the same shape and type.
    """

    def __init__(self, *parts: Tensor | Joined) -> None:
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def take(self, index: Tensor) -> Tensor:
        """Returns some of the inputs, [len(index), ...]."""
        found, places = [], []
        for part, end in zip(self.parts, self.ends, strict=True):
            own = index - (end - len(part))
            here = (own >= 0) & (own < len(part))
            if here.all():
                return _take(part, own)
            places.append(here.nonzero().squeeze(1))
            found.append(_take(part, own[places[-1]]))
        order = torch.cat(places)
        if len(order) < len(index):
            raise IndexError(f"a row beyond the last of {len(self)}")
        return torch.cat(found).index_select(0, order.argsort())


class ClientData:
    """All clients' examples, held once and addressed by client.

    It keeps a number for each client besides, and one for each row where they are not `Ranges`.

    Args:
        x: Inputs of all clients, [N, ...], which may be memory-mapped: they are not copied.
        y: Class indices, [N] int64, which may be memory-mapped.
        parts: For each client, the rows of `x` and `y` that are its own; disjoint. Or `Ranges`.
        classes: The number of classes.
        prepare: Turns some of `x` into what models are given; see `genfl.data.sources.DataSet`.
        augment: Random changes of what is prepared, in batches.
        generated: Whether the examples are generated ones, and not the clients' own.

    Raises:
        InputError: A client has no data, or a row belongs to two clients.
    """

    def __init__(
        self,
        x: Tensor | Joined,
        y: Tensor,
        parts: Sequence[np.ndarray] | Ranges,
        classes: int,
        prepare: Callable[[Tensor], Tensor] = lambda x: x,
        augment: Augment | None = None,
        *,
        generated: bool = False,
    ) -> None:
        self.ends = parts.ends if isinstance(parts, Ranges) else np.cumsum([len(part) for part in parts])
        empty = np.flatnonzero(np.diff(self.ends, prepend=0) <= 0)
        if len(empty):
            raise InputError(f"data.partition: client {empty[0]} has no samples; raise min_size or use fewer")
        self.rows: Tensor | None = None  # of consecutive ones the ends say enough
        if not isinstance(parts, Ranges):
            self.rows = torch.from_numpy(np.concatenate(list(parts)).astype(np.int64, copy=False))
            taken = torch.zeros(len(x), dtype=torch.bool)
            taken[self.rows] = True
            if int(taken.sum()) != len(self.rows):
                raise InputError("data.partition: a sample belongs to two clients")
        elif self.ends[-1] > len(x):
            raise InputError(f"data.partition: the last client ends at row {self.ends[-1]} of {len(x)}")
        self.x, self.y, self.classes, self.prepare = x, y, classes, prepare
        self.augments = [(range(len(x)), augment)]  # by the rows of x they are for
        self.first_generated = 0 if generated else len(x)  # the row of x: private ones come first
        self.weighs_generated = True

    def __len__(self) -> int:
        return len(self.ends)

    def samples(self, client: int) -> int:
        """Returns how many samples a client has."""
        return int(self.ends[client]) - self._start(client)

    def sizes(self, client: int) -> tuple[int, int]:
        """Returns how many private and generated samples a client has; it numbers them in this order."""
        samples = self.samples(client)
        if self.first_generated == len(self.x):
            return samples, 0
        private = int((self._rows(client) < self.first_generated).sum())
        return private, samples - private

    def generated(self) -> int:
        """Returns how many generated samples all clients hold together."""
        if self.first_generated == len(self.x):
            return 0
        rows = self._between(0, int(self.ends[-1]))
        return int((rows >= self.first_generated).sum())

    def labels(self, client: int) -> Tensor:
        """Returns a client's class indices."""
        return self.y[self._rows(client)]

    def facts(self, client: int) -> Tree:
        """Returns what a client knows of its data: ``samples`` (scalar) and ``label_counts`` [classes].

        Its samples are its weight in averages. The labels are those of all that it trains on.
        """
        labels, kind = self.labels(client), torch.get_default_dtype()
        counts = labels.bincount(minlength=self.classes)
        self._refuse(len(counts) - 1)
        samples = len(labels) if self.weighs_generated else self.sizes(client)[0]
        return {"samples": torch.tensor(samples, dtype=kind), "label_counts": counts.to(kind)}

    @property
    def facts_table(self) -> Tree:
        """What all clients know: ``samples`` [clients], ``label_counts`` [clients, classes]."""
        return self.table(0, len(self))

    def table(self, first: int, last: int) -> Tree:
        """Returns what the clients from `first` up to `last` know, in rows; beyond the end there are none."""
        ends = self.ends[first:last]
        start = self._start(first)
        sizes = torch.from_numpy(np.diff(ends, prepend=start))
        rows = self._between(start, int(ends[-1]))
        labels = self.y[rows]
        self._refuse(int(labels.max()))
        owners = torch.arange(len(ends)).repeat_interleave(sizes)
        counts = (owners * self.classes + labels).bincount(minlength=len(ends) * self.classes)
        if not self.weighs_generated:
            sizes = owners[rows < self.first_generated].bincount(minlength=len(ends))
        kind = torch.get_default_dtype()
        return {"samples": sizes.to(kind), "label_counts": counts.view(-1, self.classes).to(kind)}

    def _refuse(self, label: int) -> None:
        if label >= self.classes:
            raise ValueError(f"class {label} of {self.classes} classes")

    def batch(self, client: int, rows: Tensor, key: Key | None = None) -> dict[str, Tensor]:
        """Returns some of a client's examples: ``x`` and ``y``.

        Args:
            client: Its number.
            rows: Which of the client's own samples, int64.
            key: The random stream of the inputs' changes; None leaves them as they are.
        """
        index = self._rows(client)[rows]
        x = self.prepare(_take(self.x, index))
        for number, (part, augment) in enumerate(self.augments):
            if key is not None and augment is not None:
                chosen = (part.start <= index) & (index < part.stop)
                x[chosen] = augment(x[chosen], key.fold(number).torch())
        return {"x": x, "y": self.y[index]}

    def batches(
        self, clients: Sequence[int], rows: Sequence[Tensor], keys: Callable[[], Sequence[Key]]
    ) -> dict[str, Tensor]:
        """Returns what `batch` gives for each of several clients, stacked; they take equally many rows."""
        if any(augment is not None for _, augment in self.augments):
            each = [self.batch(*asked) for asked in zip(clients, rows, keys(), strict=True)]
            return {name: torch.stack([batch[name] for batch in each]) for name in each[0]}
        together, who = torch.stack(list(rows)), np.asarray(clients)
        first = np.where(who > 0, self.ends[who - 1], 0)
        starts, sizes = (torch.from_numpy(values)[:, None] for values in (first, self.ends[who] - first))
        if not bool(((together >= 0) & (together < sizes)).all()):
            raise IndexError("a row that is not the client's own")
        index = (together + starts).flatten()
        if self.rows is not None:
            index = self.rows[index]
        found = {"x": self.prepare(_take(self.x, index)), "y": self.y[index]}
        return {name: value.unflatten(0, (len(clients), -1)) for name, value in found.items()}

    def as_one(self, clients: Iterable[int]) -> ClientData:
        """Returns the data of one client that holds what these clients hold, and nothing else."""
        rows = np.concatenate([self._rows(client).numpy() for client in clients])
        rows = rows[np.argsort(rows >= self.first_generated, kind="stable")]
        one = ClientData(self.x, self.y, [rows], self.classes, self.prepare)
        one.augments, one.first_generated = self.augments, self.first_generated
        one.weighs_generated = self.weighs_generated
        return one

    def enriched(
        self,
        x: Tensor,
        y: Tensor,
        parts: Sequence[np.ndarray],
        augment: Augment | None = None,
        *,
        weigh: bool = True,
    ) -> ClientData:
        """Returns clients each of which holds generated examples besides its own.

        Args:
            x: Generated inputs, [M, ...], prepared like those here.
            y: Their class indices, [M] int64.
            parts: For each client, the rows of `x` and `y` that it gets, if any; disjoint.
            augment: Random changes of generated inputs, in batches.
            weigh: Whether they add to a client's weight in averages (FedGC's p_k), or not.
        """
        rows = [np.append(self._rows(k), len(self.x) + part) for k, part in enumerate(parts)]
        both = ClientData(Joined(self.x, x), torch.cat([self.y, y]), rows, self.classes, self.prepare)
        both.augments = [*self.augments, (range(len(self.x), len(both.x)), augment)]
        both.first_generated, both.weighs_generated = len(self.x), weigh
        return both

    def _rows(self, client: int) -> Tensor:
        return self._between(self._start(client), int(self.ends[client]))

    def _between(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end) if self.rows is None else self.rows[start:end]

    def _start(self, client: int) -> int:
        return int(self.ends[client - 1]) if client else 0


def _take(x: Tensor | Joined, index: Tensor) -> Tensor:
    """Returns some of the examples, in the memory layout of all."""
    if isinstance(x, Joined):
        return x.take(index)
    if x.ndim == 1 or not x.is_contiguous():
        return x[index]
    return x.index_select(0, index)  # copies whole examples, in a fifth of the time
