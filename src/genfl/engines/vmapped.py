"""Run clients in batches: a step of many clients is one step of stacked models, by `torch.vmap`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import ClientProgram
from genfl.engines import fast
from genfl.engines.protocol import (
    NOT_FINITE,
    BatchedDataView,
    ClientResults,
    ClientTask,
    ExpectedResult,
    examples_of,
    longest_first,
    marks,
    planned_rows,
    signatures,
    step_batch,
)
from genfl.learning.local import batched
from genfl.rng import Key, Keys, Sampler
from genfl.trees import Tree

log = logging.getLogger(__name__)

MOST_BATCHED = 100
"""Clients that are batched at most."""

SHARES = 4
"""Shares of a cohort at most, for as many workers."""

LEAST = 5
"""Clients of a share at least."""

KNOWN = 10_000
"""Clients whose client info is kept from round to round."""

_T = TypeVar("_T")


class _Planned(NamedTuple):
    """A task, and the rows of each of its steps."""

    task: ClientTask
    rows: list[Tensor]


_Finished = tuple[list[_Planned], Tree, Tree]
"""Tasks that are finished, with their uploads and memories stacked."""


class VmapRunner:
    """A runner of many clients as one: a step of theirs is one step of stacked models.

    Sums inside a batched operation may be added in another order than a client's alone. So results agree
    with those of clients run one by one to rounding, not to the last bit. Batching pays where a step is
    short: small models, small batches.

    Clients whose batches, messages or memories differ in structure or shape are batched apart. Clients with
    fewer steps leave the batch early. The fast path replays steps; see `genfl.engines.fast`. A cohort's
    shares depend on nothing but the cohort, so that results do not depend on the number of processes.

    Args:
        data: What the clients hold.
        shares: In how many shares a cohort is divided at most.
        chunk: Clients that are batched at most; halved, and the work repeated, when memory runs out.
        accelerated: Whether steps may be recorded and replayed, and layers run once for all clients of a
            batch. Without it, results may differ in the last bits.
    """

    how = "vmapped"

    def __init__(
        self,
        data: BatchedDataView,
        *,
        shares: int = SHARES,
        chunk: int = MOST_BATCHED,
        accelerated: bool = True,
    ) -> None:
        self.data = data
        self.most = shares
        self.chunk = chunk
        self._why_off = fast.why_off(accelerated)
        self._client_info = lru_cache(KNOWN)(data.client_info)
        self._program: ClientProgram | None = None
        self._changing: dict[str, list[bool]] = {}
        self._fast: fast.BatchedSteps | None = None

    def shares(self, tasks: Sequence[ClientTask]) -> list[list[ClientTask]]:
        """Divide a cohort into shares of about the same work; see `genfl.engines.protocol.Runner`."""
        count = max(1, min(self.most, len(tasks) // LEAST))
        in_order = longest_first(tasks, self.data)
        return [in_order[share::count] for share in range(count)]

    def run_cohort(
        self, program: ClientProgram, tasks: Sequence[ClientTask], expected: ExpectedResult
    ) -> Iterator[ClientResults]:
        """Run all shares, and yield results by the least client in each; see `Runner.run_cohort`."""
        shares = [self(program, share, expected) for share in self.shares(tasks)]
        yield from sorted(itertools.chain(*shares), key=lambda results: results.position)

    def stats(self) -> fast.FastStats:
        """Return what the fast path did for the current program."""
        if self._why_off:
            return fast.FastStats(reasons=(self._why_off,))
        return self._fast.stats() if self._fast else fast.FastStats()

    def __call__(
        self, program: ClientProgram, tasks: Sequence[ClientTask], expected: ExpectedResult
    ) -> Iterator[ClientResults]:
        """Run the program for each client; see `genfl.engines.protocol.Runner`."""
        if program is not self._program:
            self._program, self._changing = program, {}
            self._fast = None if self._why_off else fast.accelerate_batches(program)
        for group in self._groups(program, tasks):
            for finished in self._in_chunks(program, group):
                yield _checked(finished, expected)

    def _groups(self, program: ClientProgram, tasks: Sequence[ClientTask]) -> Iterator[list[_Planned]]:
        """Yield tasks that can be batched, those with the most steps first."""
        groups: dict[tuple[str, tuple[int, ...]], list[_Planned]] = {}
        for task, signature in zip(tasks, signatures(tasks), strict=True):
            rows = planned_rows(program, self.data, task)
            groups.setdefault((signature, _batch_sizes(rows)), []).append(_Planned(task, rows))
        for group in groups.values():
            yield sorted(group, key=lambda planned: (-len(planned.rows), planned.task.client))

    def _in_chunks(self, program: ClientProgram, group: list[_Planned]) -> Iterator[_Finished]:
        count = 0
        while count < len(group):
            chunk = group[count : count + self.chunk]
            try:
                finished = list(self._run(program, chunk))
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or len(chunk) == 1:
                    raise
                self.chunk = len(chunk) // 2
                log.warning("out of memory with %d clients at a time; trying %d", len(chunk), self.chunk)
            else:
                yield from finished
                count += len(chunk)

    def _run(self, program: ClientProgram, batch: list[_Planned]) -> Iterator[_Finished]:
        """Run a batch of clients; yield them with their stacked uploads and memories as they finish."""
        carries = [
            program.start(task.message, task.memory, self._client_info(task.client), task.key.fold("start"))
            for task, _ in batch
        ]
        like, changing = carries[0], self._changes(program, carries[0], batch[0])
        leaves = list(map(list, zip(*map(trees.leaves, carries), strict=True)))
        shared = [all(leaf is each[0] for leaf in each) for each in leaves]
        # A leaf that all share and no step changes, such as the message's, is stored once.
        dims = [None if one and not changes else 0 for one, changes in zip(shared, changing, strict=True)]
        stacked = [
            each[0] if dim is None else torch.stack(each) for each, dim in zip(leaves, dims, strict=True)
        ]

        def part(first: int, last: int) -> list[Any]:
            return [
                leaf if dim is None else leaf[first:last] for leaf, dim in zip(stacked, dims, strict=True)
            ]

        for number in itertools.count():
            active = sum(len(planned.rows) > number for planned in batch)
            if active < len(batch):
                ended = len(batch) - active
                upload, memory = self._finish(program, like, part(active, len(batch)), dims, ended)
                yield batch[active:], upload, memory
                batch, stacked = batch[:active], part(0, active)
            if not batch:
                return
            stacked = self._step(program, batch, number, like, stacked, dims, changing)

    def _finish(
        self, program: ClientProgram, like: Tree, leaves: list[Any], dims: list[int | None], clients: int
    ) -> tuple[Tree, Tree]:
        """Return the uploads and memories of so many clients, stacked."""

        def finish_one(leaves: list[Any]) -> Tree:
            upload, memory = program.finish(trees.unflatten(like, leaves))
            return {"upload": upload, "memory": memory}

        def finish(leaves: list[Any]) -> Tree:
            return torch.vmap(finish_one, in_dims=(dims,))(leaves)

        if all(dim is None for dim in dims):
            results = trees.map(lambda leaf: leaf.expand(clients, *leaf.shape), finish_one(leaves))
        elif self._fast:
            results = self._fast.finish(like, leaves, dims, finish, clients)
        else:
            results = finish(leaves)
        return results["upload"], results["memory"]

    def _step(
        self,
        program: ClientProgram,
        batch: list[_Planned],
        number: int,
        like: Tree,
        stacked: list[Any],
        dims: list[int | None],
        changing: list[bool],
    ) -> list[Any]:
        """Take a step of all clients; return the leaves of their carries."""

        @cache  # most steps draw nothing
        def keys() -> list[Key]:
            return [task.key.fold(number) for task, _ in batch]

        examples = self.data.batches(
            [task.client for task, _ in batch],
            [examples_of(task, rows[number]) for task, rows in batch],
            lambda: [key.fold("augment") for key in keys()],
        )
        marked = [marks(self.data, task, rows[number]) for task, rows in batch]
        examples |= {name: torch.stack([each[name] for each in marked]) for name in marked[0]}
        index = torch.arange(len(batch))
        all_dims = [*dims, *(0 for _ in trees.leaves(examples))]

        def step_one(leaves: list[Any], examples: Tree, index: Tensor) -> list[Tensor]:
            after = trees.leaves(program.step(trees.unflatten(like, leaves), examples, Keys(keys(), index)))
            return [leaf for leaf, changes in zip(after, changing, strict=True) if changes]

        def step() -> list[Any]:
            run = torch.vmap(step_one, in_dims=(dims, 0, 0), randomness="error")
            changed = iter(self._vmapped(lambda: run(stacked, examples, index)))
            return [
                next(changed) if changes else leaf for leaf, changes in zip(stacked, changing, strict=True)
            ]

        def draw(
            path: tuple[int | str, ...], sampler: Sampler, inputs: list[Tensor], positions: list[int]
        ) -> Any:
            def draw_one(index: Tensor, *inputs: Tensor) -> Any:
                return Keys(keys(), index).fold(*path).draw(sampler, *inputs)

            return torch.vmap(draw_one, (0, *(all_dims[p] for p in positions)))(index, *inputs)

        if self._fast is None:
            return step()
        return self._fast.step(like, stacked, dims, examples, keys, draw, step, len(batch))

    def _vmapped(self, run: Callable[[], _T]) -> _T:
        """Return what a function gives that uses `torch.vmap`."""
        if self._fast:
            return self._fast.folded(run)
        with batched():
            return run()

    def _changes(self, program: ClientProgram, carry: Tree, planned: _Planned) -> list[bool]:
        """Return which leaves of a carry a step changes, as seen in one step of one client."""
        if not planned.rows:
            return [False] * len(trees.leaves(carry))
        (signature,) = signatures([planned.task])
        if signature not in self._changing:
            examples = step_batch(self.data, planned.task, planned.rows[0], Key(0))
            after = program.step(carry, examples, Key(0))
            pairs = zip(trees.leaves(carry), trees.leaves(after), strict=True)
            self._changing[signature] = [before is not now for before, now in pairs]
        return self._changing[signature]


def _batch_sizes(rows: list[Tensor]) -> tuple[int, ...]:
    """Return the batch sizes of steps; one, however many steps there are, where all are of one size."""
    sizes = tuple(chosen.shape[0] for chosen in rows)
    return sizes[:1] if len(set(sizes)) == 1 else sizes


def _out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; on a CPU, torch says so in the message only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _checked(finished: _Finished, expected: ExpectedResult) -> ClientResults:
    """Leave out results that must not count; see `genfl.engines.protocol.problem`."""
    batch, upload, memory = finished
    clients = [planned.task.client for planned in batch]
    templates = expected(batch[0].task)  # one template fits all: clients are batched by signature
    for result, like in zip((upload, memory), templates, strict=True):
        if wrong := trees.mismatch(trees.map(lambda leaf: leaf[0], result), like):
            return ClientResults([], {}, {}, dict.fromkeys(clients, wrong))
    if trees.is_finite(upload) and trees.is_finite(memory):
        return ClientResults(clients, upload, memory, {})
    finite = torch.ones(len(batch), dtype=torch.bool)
    for leaf in trees.leaves(upload) + trees.leaves(memory):
        finite &= leaf.isfinite().reshape(len(batch), -1).all(1).cpu()
    good = dict(zip(clients, finite.tolist(), strict=True))
    upload, memory = (
        trees.map(lambda leaf: leaf[finite.to(leaf.device)], result) for result in (upload, memory)
    )
    refused = {client: NOT_FINITE for client in clients if not good[client]}
    return ClientResults([client for client in clients if good[client]], upload, memory, refused)
