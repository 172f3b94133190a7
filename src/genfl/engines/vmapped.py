"""Clients batched: a step of many clients is one step of stacked models, by `torch.vmap`."""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import ClientProgram
from genfl.engines.fast import FastStats, recording
from genfl.engines.fast.recording import Path, Recording, Replays
from genfl.engines.fast.rewrites import graph_of
from genfl.engines.fast.vmap_layers import Folding
from genfl.engines.protocol import (
    NOT_FINITE,
    BatchedDataView,
    ClientResults,
    ClientTask,
    ExpectedResult,
    longest_first,
    planned_rows,
    signatures,
)
from genfl.learning.local import batched
from genfl.rng import Key, Keys, Sampler
from genfl.trees import Tree

log = logging.getLogger(__name__)

CHUNK = 100
"""Clients that are batched at most."""

SHARES = 4
"""Parts of a cohort at most, for as many workers."""

LEAST = 5
"""Clients of a cohort's part at least."""

RECORDINGS = 32
"""Forms of steps that are kept recorded."""

KNOWN = 10_000
"""Clients whose facts are kept from round to round."""


_T = TypeVar("_T")


class _Planned(NamedTuple):
    """A task, and the rows of each of its steps."""

    task: ClientTask
    rows: list[Tensor]


class _Finish(NamedTuple):
    """What clients do after their last step: tensor operations, and a tree of the form of what they give."""

    run: Callable[..., Sequence[Tensor]]
    like: Tree


_Finished = tuple[list[_Planned], Tree, Tree]
"""Jobs that are done, with their uploads and memories stacked."""


class VmapRunner:
    """Runs many clients as one: a step of theirs is one step of stacked models.

    Sums inside a batched operation may be added in another order than a client's alone, so results agree with
    those of clients run alone to rounding, not to the last bit. It pays where a step is short: small models,
    small batches.

    Clients whose batches, messages or memories differ in form are batched apart, and so are those with fewer
    steps from the moment the others go on without them. After many steps of one form the tensor operations
    of one are recorded and replayed; see `genfl.engines.fast.recording`. A cohort's parts depend on nothing but the
    cohort, so that results do not depend on how many processes there are.

    Args:
        data: What the clients hold.
        shares: In how many parts a cohort is divided at most.
        chunk: Clients that are batched at most; halved, and the work done again, when memory runs out.
    """

    how = "vmapped"

    def __init__(self, data: BatchedDataView, *, shares: int = SHARES, chunk: int = CHUNK) -> None:
        self.data = data
        self.most = shares
        self.chunk = chunk
        self._client_info = lru_cache(KNOWN)(data.client_info)
        self._program: ClientProgram | None = None
        self._changing: dict[str, list[bool]] = {}
        self._replays: OrderedDict[Any, Replays] = OrderedDict()
        self._folds = True

    def shares(self, tasks: Sequence[ClientTask]) -> list[list[ClientTask]]:
        """Divides a cohort into parts of about the same work; see `genfl.engines.protocol.Runner`."""
        parts = max(1, min(self.most, len(tasks) // LEAST))
        in_order = longest_first(tasks, self.data)
        return [in_order[part::parts] for part in range(parts)]

    def run_cohort(
        self, program: ClientProgram, tasks: Sequence[ClientTask], expected: ExpectedResult
    ) -> Iterator[ClientResults]:
        """Run all shares, and yield results by the least client in each; see `Runner.run_cohort`."""
        shares = [self(program, share, expected) for share in self.shares(tasks)]
        yield from sorted(itertools.chain(*shares), key=lambda results: results.place)

    def stats(self) -> FastStats:
        """Return what the fast path did for the current program."""
        return FastStats(
            sum(replays.recording is not None for replays in self._replays.values()),
            sum(replays.replayed for replays in self._replays.values()),
            sum(replays.taken - replays.replayed for replays in self._replays.values()),
        )

    def __call__(
        self, program: ClientProgram, tasks: Sequence[ClientTask], expected: ExpectedResult
    ) -> Iterator[ClientResults]:
        """Runs the program for each client; see `genfl.engines.protocol.Runner`."""
        if program is not self._program:
            self._program, self._changing, self._replays = program, {}, OrderedDict()
            self._folds = True
        for group in self._groups(program, tasks):
            for finished in self._in_chunks(program, group):
                yield _checked(finished, expected)

    def _groups(self, program: ClientProgram, tasks: Sequence[ClientTask]) -> Iterator[list[_Planned]]:
        """Yields jobs that can be batched, those with the most steps first."""
        groups: dict[tuple[str, tuple[int, ...]], list[_Planned]] = {}
        for task, name in zip(tasks, signatures(tasks), strict=True):
            rows = planned_rows(program, self.data, task)
            groups.setdefault((name, _widths(rows)), []).append(_Planned(task, rows))
        for planned in groups.values():
            yield sorted(planned, key=lambda own: (-len(own.rows), own.task.client))

    def _in_chunks(self, program: ClientProgram, planned: list[_Planned]) -> Iterator[_Finished]:
        done = 0
        while done < len(planned):
            chunk = planned[done : done + self.chunk]
            try:
                finished = list(self._run(program, chunk))
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or len(chunk) == 1:
                    raise
                self.chunk = len(chunk) // 2
                log.warning("memory does not suffice for %d clients at a time: %d", len(chunk), self.chunk)
            else:
                yield from finished
                done += len(chunk)

    def _run(self, program: ClientProgram, planned: list[_Planned]) -> Iterator[_Finished]:
        """Runs a batch of clients; yields them with their stacked uploads and memories as they finish."""
        carries = [
            program.start(task.message, task.memory, self._client_info(task.client), task.key.fold("start"))
            for task, _ in planned
        ]
        like, changing = carries[0], self._changes(program, carries[0], planned[0])
        leaves = list(map(list, zip(*map(trees.leaves, carries), strict=True)))
        same = [all(leaf is own[0] for leaf in own) for own in leaves]
        # what is the same for all, and stays so, is there once: the message above all
        dims = [None if one and not moves else 0 for one, moves in zip(same, changing, strict=True)]
        stacked = [own[0] if dim is None else torch.stack(own) for own, dim in zip(leaves, dims, strict=True)]

        def part(first: int, last: int) -> list[Any]:
            return [
                leaf if dim is None else leaf[first:last] for leaf, dim in zip(stacked, dims, strict=True)
            ]

        for number in itertools.count():
            still = sum(len(own.rows) > number for own in planned)
            if still < len(planned):
                upload, memory = self._finish(
                    program, like, part(still, len(planned)), dims, len(planned) - still
                )
                yield planned[still:], upload, memory
                planned, stacked = planned[:still], part(0, still)
            if not planned:
                return
            stacked = self._step(program, planned, number, like, stacked, dims, changing)

    def _replays_of(self, what: str, leaves: list[Any], dims: list[int | None], like: Tree) -> Replays:
        """Returns the replays of what is done with leaves of this form."""
        form = what, recording.strided_signature(dict(enumerate(leaves))), tuple(dims), trees.names(like)
        replays = self._replays.setdefault(form, Replays())
        self._replays.move_to_end(form)
        if len(self._replays) > RECORDINGS:
            self._replays.popitem(last=False)
        return replays

    def _finish(
        self, program: ClientProgram, like: Tree, leaves: list[Any], dims: list[int | None], count: int
    ) -> tuple[Tree, Tree]:
        """Returns the uploads and memories of so many clients, stacked."""

        def finish(leaves: list[Any]) -> Tree:
            upload, memory = program.finish(trees.unflatten(like, leaves))
            return {"upload": upload, "memory": memory}

        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def record() -> _Finish:
            ends: list[Tree] = []

            def run(*tensors: Tensor) -> list[Tensor]:
                given = iter(tensors)
                own = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                ends.append(torch.vmap(finish, in_dims=(dims,))(own))
                return trees.leaves(ends[-1])

            return _Finish(graph_of(run, *tensors), trees.map(lambda leaf: None, ends[-1]))

        if all(dim is None for dim in dims):
            end = trees.map(lambda leaf: leaf.expand(count, *leaf.shape), finish(leaves))
            return end["upload"], end["memory"]
        replays = self._replays_of("finish", leaves, dims, like)
        replayed = replays.replay(record, lambda recording: recording.run(*tensors), count)
        if replayed is not None and replays.believed:
            end = trees.unflatten(replays.recording.like, replayed)
        else:
            end = torch.vmap(finish, in_dims=(dims,))(leaves)
            if replayed is not None:
                replays.compare(replayed, trees.leaves(end))
        return end["upload"], end["memory"]

    def _step(
        self,
        program: ClientProgram,
        planned: list[_Planned],
        number: int,
        like: Tree,
        stacked: list[Any],
        dims: list[int | None],
        changing: list[bool],
    ) -> list[Any]:
        """Takes a step of all jobs; returns the leaves of their carries."""

        @cache  # most steps draw nothing
        def keys() -> list[Key]:
            return [task.key.fold(number) for task, _ in planned]

        batch = self.data.batches(
            [task.client for task, _ in planned],
            [rows[number] for _, rows in planned],
            lambda: [key.fold("augment") for key in keys()],
        )
        examples, index = trees.leaves(batch), torch.arange(len(planned))
        all_dims = [*dims, *(0 for _ in examples)]

        def step(leaves: list[Any], batch: Tree, index: Tensor) -> list[Tensor]:
            after = trees.leaves(program.step(trees.unflatten(like, leaves), batch, Keys(keys(), index)))
            return [leaf for leaf, moves in zip(after, changing, strict=True) if moves]

        def draw(path: Path, sampler: Sampler, given: list[Tensor], places: list[int]) -> Any:
            def each(index: Tensor, *given: Tensor) -> Any:
                return Keys(keys(), index).fold(*path).draw(sampler, *given)

            return torch.vmap(each, (0, *(all_dims[place] for place in places)))(index, *given)

        replays = self._replays_of("step", stacked + examples, dims, like)
        after = replays.replay(
            lambda: self._record(program, like, stacked, batch, dims, keys()),
            lambda recording: recording(stacked, examples, draw),
            len(planned),
        )
        if after is not None and replays.believed:
            return after
        run = torch.vmap(step, in_dims=(dims, 0, 0), randomness="error")
        moved = iter(self._folded_if_possible(lambda: run(stacked, batch, index)))
        own = [next(moved) if moves else leaf for leaf, moves in zip(stacked, changing, strict=True)]
        if after is not None:
            replays.compare(after, own)
        return own

    def _record(
        self,
        program: ClientProgram,
        like: Tree,
        stacked: list[Any],
        batch: Tree,
        dims: list[int | None],
        keys: list[Key],
    ) -> Recording:
        """Records a step of all clients, from what the first of them does."""
        first = [leaf if dim is None else leaf[0] for leaf, dim in zip(stacked, dims, strict=True)]
        example = trees.map(lambda leaf: leaf[0], batch)

        def recorded() -> Recording:
            alone, _, drawn = recording.trace(program.step, trees.unflatten(like, first), example, keys[0])
            many = [leaf.expand(len(keys), *leaf.shape).clone() for leaf in drawn]
            inputs, all_dims = stacked + trees.leaves(batch), [*dims, *(0 for _ in batch)]
            tensors = [inputs[place] for place in alone.tensors]
            in_dims = (*(all_dims[place] for place in alone.tensors), *(0 for _ in many))
            run = torch.vmap(alone.run, in_dims, randomness="error")
            return alone._replace(run=graph_of(run, *tensors, *many))

        return self._folded_if_possible(recorded)

    def _folded_if_possible(self, run: Callable[[], _T]) -> _T:
        """Runs what uses `torch.vmap`, clients folded together unless the program wants more of layers."""
        if self._folds:
            try:
                with batched(), Folding():
                    return run()
            except NotImplementedError as error:
                why = error
        with batched():
            done = run()
        if self._folds:
            log.info("what clients do is batched layer by layer as torch.vmap does it: %s", why)
            self._folds = False
        return done

    def _changes(self, program: ClientProgram, carry: Tree, planned: _Planned) -> list[bool]:
        """Returns which leaves of a carry a step changes, found out by one step of one client."""
        if not planned.rows:
            return [False] * len(trees.leaves(carry))
        (name,) = signatures([planned.task])
        if name not in self._changing:
            batch = self.data.batch(planned.task.client, planned.rows[0], Key(0))
            after = program.step(carry, batch, Key(0))
            pairs = zip(trees.leaves(carry), trees.leaves(after), strict=True)
            self._changing[name] = [before is not now for before, now in pairs]
        return self._changing[name]


def _widths(rows: list[Tensor]) -> tuple[int, ...]:
    """Returns the batch sizes of steps; one, however many steps there are, where all are of one size."""
    sizes = tuple(own.shape[0] for own in rows)
    return sizes[:1] if len(set(sizes)) == 1 else sizes


def _out_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out; on a CPU, torch says so in words only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _checked(finished: _Finished, expected: ExpectedResult) -> ClientResults:
    """Leaves out results with which something is wrong; see `genfl.engines.protocol.problem`."""
    planned, upload, memory = finished
    clients = [own.task.client for own in planned]
    for result, like in zip(
        (upload, memory), expected(planned[0].task), strict=True
    ):  # the form of all is one
        if wrong := trees.mismatch(trees.map(lambda leaf: leaf[0], result), like):
            return ClientResults([], {}, {}, dict.fromkeys(clients, wrong))
    if trees.is_finite(upload) and trees.is_finite(memory):
        return ClientResults(clients, upload, memory, {})
    finite = torch.ones(len(planned), dtype=torch.bool)
    for leaf in trees.leaves(upload) + trees.leaves(memory):
        finite &= leaf.isfinite().reshape(len(planned), -1).all(1).cpu()
    good = dict(zip(clients, finite.tolist(), strict=True))
    upload, memory = (
        trees.map(lambda leaf: leaf[finite.to(leaf.device)], result) for result in (upload, memory)
    )
    refused = {client: NOT_FINITE for client in clients if not good[client]}
    return ClientResults([client for client in clients if good[client]], upload, memory, refused)
