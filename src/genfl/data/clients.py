"""Clients' data: rows of arrays that all clients share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genfl.errors import InputError
from genfl.rng import Key
from genfl.trees import Tree

AugmentFn = Callable[[Tensor, torch.Generator], Tensor]
"""Random changes of prepared inputs; see `genfl.learning.augment`."""


PRIVATE, GENERATED = "private", "generated"
"""Names of the parts of clients' data."""


@dataclass(frozen=True)
class Ranges:
    """Consecutive rows for each client: a million clients take one array.

    Attributes:
        ends: The row after each client's last one, where the next client's begin; ascending, [clients] int64.
    """

    ends: np.ndarray


class Joined:
    """The inputs of several tensors, one after the other, without copying them.

    Args:
        parts: Inputs, [n, ...] each, of the same shape and type.
    """

    def __init__(self, *parts: Tensor | Joined) -> None:
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def take(self, index: Tensor) -> Tensor:
        """Return some of the inputs, [len(index), ...]."""
        taken, positions = [], []
        for part, end in zip(self.parts, self.ends, strict=True):
            rows = index - (end - len(part))
            inside = (rows >= 0) & (rows < len(part))
            if inside.all():
                return _take(part, rows)
            positions.append(inside.nonzero().squeeze(1))
            taken.append(_take(part, rows[positions[-1]]))
        order = torch.cat(positions)
        if len(order) < len(index):
            raise IndexError(f"a row beyond the last of {len(self)}")
        return torch.cat(taken).index_select(0, order.argsort())


class DataPart(NamedTuple):
    """A part of the data that clients hold, such as their private or their generated samples.

    Attributes:
        name: What the part is called: ``private`` or ``generated``.
        rows: The rows of the inputs that belong to it.
        augment: Random changes of its inputs, in batches; None for none.
        weighs: Whether its samples add to a client's weight in averages.
    """

    name: str
    rows: range
    augment: AugmentFn | None = None
    weighs: bool = True


class ClientData:
    """All clients' examples, stored once and addressed by client.

    Besides the examples it stores a number for each client, and one for each row unless rows are `Ranges`.

    Args:
        x: Inputs of all clients, [N, ...], which may be memory-mapped: they are not copied.
        y: Class indices, [N] int64, which may be memory-mapped.
        rows: For each client, its rows of `x` and `y`; disjoint. Or `Ranges`.
        classes: The number of classes.
        prepare: Turns some of `x` into inputs of models; see `genfl.data.sources.DataSet`.
        augment: Random changes of prepared inputs, in batches.
        name: What the samples are: ``private`` or ``generated``.

    Raises:
        InputError: A client has no data, or a row belongs to two clients.
    """

    def __init__(
        self,
        x: Tensor | Joined,
        y: Tensor,
        rows: Sequence[np.ndarray] | Ranges,
        classes: int,
        prepare: Callable[[Tensor], Tensor] = lambda x: x,
        augment: AugmentFn | None = None,
        *,
        name: str = PRIVATE,
    ) -> None:
        self.ends = rows.ends if isinstance(rows, Ranges) else np.cumsum([len(part) for part in rows])
        empty = np.flatnonzero(np.diff(self.ends, prepend=0) <= 0)
        if len(empty):
            raise InputError(f"data.partition: client {empty[0]} has no samples; raise min_size or use fewer")
        self.rows: Tensor | None = None  # of consecutive rows, the ends are enough
        if not isinstance(rows, Ranges):
            self.rows = torch.from_numpy(np.concatenate(list(rows)).astype(np.int64, copy=False))
            taken = torch.zeros(len(x), dtype=torch.bool)
            taken[self.rows] = True
            if int(taken.sum()) != len(self.rows):
                raise InputError("data.partition: a sample belongs to two clients")
        elif self.ends[-1] > len(x):
            raise InputError(f"data.partition: the last client ends at row {self.ends[-1]} of {len(x)}")
        self.x, self.y, self.classes, self.prepare = x, y, classes, prepare
        self.parts = [DataPart(name, range(len(x)), augment)]  # in the order of the rows of x

    def __len__(self) -> int:
        return len(self.ends)

    def samples(self, client: int) -> int:
        """Return how many samples a client has."""
        return int(self.ends[client]) - self._start(client)

    def part_sizes(self, client: int) -> tuple[int, ...]:
        """Return how many samples a client has of each part; it numbers them in this order."""
        if len(self.parts) == 1:
            return (self.samples(client),)
        return self._part_sizes(self._rows(client))

    def count(self, name: str) -> int:
        """Return how many samples all clients hold together of the parts of this name."""
        sizes = self._part_sizes(self._between(0, int(self.ends[-1])))
        return sum(size for part, size in zip(self.parts, sizes, strict=True) if part.name == name)

    def _part_sizes(self, rows: Tensor) -> tuple[int, ...]:
        return tuple(int(((part.rows.start <= rows) & (rows < part.rows.stop)).sum()) for part in self.parts)

    def labels(self, client: int) -> Tensor:
        """Return a client's class indices."""
        return self.y[self._rows(client)]

    def client_info(self, client: int) -> Tree:
        """Return what a client knows of its data: ``samples`` (scalar) and ``label_counts`` [classes].

        ``samples`` is the client's weight in averages. ``label_counts`` counts all samples it trains on.
        """
        labels, dtype = self.labels(client), torch.get_default_dtype()
        counts = labels.bincount(minlength=self.classes)
        self._refuse(len(counts) - 1)
        samples = sum(
            size for part, size in zip(self.parts, self.part_sizes(client), strict=True) if part.weighs
        )
        return {"samples": torch.tensor(samples, dtype=dtype), "label_counts": counts.to(dtype)}

    @property
    def client_info_table(self) -> Tree:
        """The client info of all clients: ``samples`` [clients], ``label_counts`` [clients, classes]."""
        return self.table(0, len(self))

    def table(self, first: int, last: int) -> Tree:
        """Return the client info of clients `first` to `last - 1`, in rows; `last` may be beyond the end."""
        ends = self.ends[first:last]
        start = self._start(first)
        sizes = torch.from_numpy(np.diff(ends, prepend=start))
        rows = self._between(start, int(ends[-1]))
        labels = self.y[rows]
        self._refuse(int(labels.max()))
        owners = torch.arange(len(ends)).repeat_interleave(sizes)
        counts = (owners * self.classes + labels).bincount(minlength=len(ends) * self.classes)
        if not all(part.weighs for part in self.parts):
            counted = sum(
                ((part.rows.start <= rows) & (rows < part.rows.stop) for part in self.parts if part.weighs),
                torch.zeros(len(rows), dtype=torch.bool),
            )
            sizes = owners[counted].bincount(minlength=len(ends))
        dtype = torch.get_default_dtype()
        return {"samples": sizes.to(dtype), "label_counts": counts.view(-1, self.classes).to(dtype)}

    def _refuse(self, label: int) -> None:
        if label >= self.classes:
            raise ValueError(f"class {label} of {self.classes} classes")

    def batch(self, client: int, rows: Tensor, key: Key | None = None) -> dict[str, Tensor]:
        """Return some of a client's examples: ``x`` and ``y``.

        Args:
            client: Its number.
            rows: The numbers of some of the client's samples, int64.
            key: The random stream of the inputs' changes; None leaves them as they are.
        """
        index = self._rows(client)[rows]
        x = self.prepare(_take(self.x, index))
        for number, part in enumerate(self.parts):
            if key is not None and part.augment is not None:
                chosen = (part.rows.start <= index) & (index < part.rows.stop)
                x[chosen] = part.augment(x[chosen], key.fold(number).torch())
        return {"x": x, "y": self.y[index]}

    def batches(
        self, clients: Sequence[int], rows: Sequence[Tensor], keys: Callable[[], Sequence[Key]]
    ) -> dict[str, Tensor]:
        """Return what `batch` gives for each of several clients, stacked.

        Args:
            clients: Their numbers.
            rows: For each client, the numbers of some of its samples, int64; equally many for all.
            keys: Returns the clients' random streams; called only if inputs are changed at random.
        """
        if any(part.augment is not None for part in self.parts):
            each = [self.batch(*args) for args in zip(clients, rows, keys(), strict=True)]
            return {name: torch.stack([batch[name] for batch in each]) for name in each[0]}
        stacked, numbers = torch.stack(list(rows)), np.asarray(clients)
        first = np.where(numbers > 0, self.ends[numbers - 1], 0)
        starts, sizes = (torch.from_numpy(values)[:, None] for values in (first, self.ends[numbers] - first))
        if not bool(((stacked >= 0) & (stacked < sizes)).all()):
            raise IndexError("a row that is not the client's own")
        index = (stacked + starts).flatten()
        if self.rows is not None:
            index = self.rows[index]
        batch = {"x": self.prepare(_take(self.x, index)), "y": self.y[index]}
        return {name: value.unflatten(0, (len(clients), -1)) for name, value in batch.items()}

    def as_one(self, clients: Iterable[int]) -> ClientData:
        """Return the data of one client that holds the samples of these clients, and nothing else."""
        rows = np.concatenate([self._rows(client).numpy() for client in clients])
        starts = [part.rows.start for part in self.parts]
        by_part = np.argsort(np.searchsorted(starts, rows, side="right"), kind="stable")
        one = ClientData(self.x, self.y, [rows[by_part]], self.classes, self.prepare)
        one.parts = self.parts
        return one

    def with_part(
        self,
        name: str,
        x: Tensor,
        y: Tensor,
        rows: Sequence[np.ndarray],
        augment: AugmentFn | None = None,
        *,
        weighs: bool = True,
    ) -> ClientData:
        """Return clients each of which holds one more part besides what it has, such as generated samples.

        Args:
            name: What the part is called.
            x: Its inputs, [M, ...], prepared like those here.
            y: Their class indices, [M] int64.
            rows: For each client, its rows of `x` and `y`, if any; disjoint.
            augment: Random changes of these inputs, in batches.
            weighs: Whether they add to a client's weight in averages (FedGC's p_k), or not.
        """
        all_rows = [np.append(self._rows(k), len(self.x) + more) for k, more in enumerate(rows)]
        both = ClientData(Joined(self.x, x), torch.cat([self.y, y]), all_rows, self.classes, self.prepare)
        both.parts = [*self.parts, DataPart(name, range(len(self.x), len(both.x)), augment, weighs)]
        return both

    def _rows(self, client: int) -> Tensor:
        return self._between(self._start(client), int(self.ends[client]))

    def _between(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end) if self.rows is None else self.rows[start:end]

    def _start(self, client: int) -> int:
        return int(self.ends[client - 1]) if client else 0


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Signed types of the same size: torch 2.6 selects no rows of the unsigned ones."""


def _take(x: Tensor | Joined, index: Tensor) -> Tensor:
    """Return some of the examples, in the memory layout of all."""
    if isinstance(x, Joined):
        return x.take(index)
    if x.dtype in _SIGNED:
        return _take(x.view(_SIGNED[x.dtype]), index).view(x.dtype)
    if x.ndim == 1 or not x.is_contiguous():
        return x[index]
    return x.index_select(0, index)  # a fifth of the time: it copies whole examples
