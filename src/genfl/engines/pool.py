"""Worker processes on one machine, one thread each, on all cores."""

from __future__ import annotations

import itertools
import logging
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import ClientProgram
from genfl.engines.fast import FastStats
from genfl.engines.protocol import (
    Aggregator,
    ClientResults,
    ClientTask,
    EngineStats,
    ReducerFactory,
    ResultTemplates,
    RoundResult,
    Runner,
    signatures,
)
from genfl.engines.reducers import PlainReducer
from genfl.errors import GenflError
from genfl.storage import ALIGNMENT
from genfl.trees import Tree

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a round is tried whose workers die."""


class WorkerDied(Exception):
    """A worker process ended in the middle of a round."""


class WorkerPool:
    """Deal a cohort out to worker processes, the longest work first.

    Workers are forked when a program is first run, and stay for the following rounds. The fork gives them
    programs and data. Messages, memories and uploads lie in anonymous shared memory, so no tensor is pickled,
    and nothing has a name on the system that could be left behind. Uploads are added in an order that does
    not depend on who was first, so the number of workers changes no bit. A round in which a worker dies is
    repeated by new workers: programs are pure, so nothing else happens.

    The pool needs room for the uploads of a whole cohort.

    Args:
        runner: How a worker runs its share of the cohort.
        reducer: Makes what adds up the uploads of a round.
        workers: How many processes; None for as many as this process may use cores.
    """

    where = "pool"

    def __init__(
        self, runner: Runner, reducer: ReducerFactory = PlainReducer, workers: int | None = None
    ) -> None:
        why_not = refusal()
        if why_not:
            raise GenflError(f"engine parallel: {why_not}; use sequential")
        self.runner = runner
        self.reducer = reducer
        self.workers = workers or cores()
        self._layouts: dict[str, _Layout] = {}
        self._program: ClientProgram | None = None
        self._pool: _Workers | None = None
        self._earlier = FastStats()  # of workers of this program that are gone

    def run(self, program: ClientProgram, tasks: Sequence[ClientTask]) -> RoundResult:
        """Run the program for each client of the cohort; see `genfl.engines.protocol.Engine`."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._round(program, tasks)
            except WorkerDied:
                self.close()
                log.warning("a worker process died; the round is repeated (attempt %d)", attempt)
            except BaseException:
                self.close()  # workers in the middle of something must not be met again
                raise
        raise GenflError(
            f"worker processes died in {ATTEMPTS} attempts at one round; is there enough memory?"
        )

    def stats(self) -> EngineStats:
        """Return what the engine is, and what its fast path did; see `genfl.engines.protocol.Engine`."""
        fast = self._earlier + self._pool.stats() if self._pool else self._earlier
        return EngineStats(self.where, self.runner.how, self.workers, fast)

    def _learn_layouts(
        self, program: ClientProgram, tasks: Sequence[ClientTask], names: Sequence[str]
    ) -> bool:
        """Notes which forms of messages and memories there are; returns whether all was known before."""
        known = True
        templates = ResultTemplates(program, self.runner.data)
        by_signature: dict[str, list[ClientTask]] = {}
        for task, name in zip(tasks, names, strict=True):
            by_signature.setdefault(name, []).append(task)
        for name, same in by_signature.items():
            messages = len(set(_identities(same)))
            room = self._layouts.get(name)
            if room is None:
                room = _Layout(same[0].message, same[0].memory, *templates(same[0]), messages=0, clients=0)
            if messages > room.messages or len(same) > room.clients:
                known = False
                self._layouts[name] = room._replace(
                    messages=max(messages, room.messages), clients=max(len(same), room.clients)
                )
        return known

    def close(self) -> None:
        """Ends the workers."""
        if self._pool:
            self._earlier += self._pool.stats()
            self._pool.close()
            self._pool = None

    def _round(self, program: ClientProgram, tasks: Sequence[ClientTask]) -> RoundResult:
        if program is not self._program:
            self.close()
            self._program, self._layouts, self._earlier = program, {}, FastStats()
        names = signatures(tasks)
        if not self._learn_layouts(program, tasks, names) or self._pool is None:
            self.close()
            workers = min(self.workers, len(tasks))
            self._pool = _Workers(program, self._layouts, workers, self.runner)
        aggregator = Aggregator(self.reducer(program.reductions), program)
        for results in sorted(self._pool.run(tasks, names), key=lambda results: results.place):
            aggregator.add(results)
        return aggregator.round_result()


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def refusal() -> str | None:
    """Says why workers cannot be forked here; None where they can."""
    if not hasattr(os, "fork"):
        return "this system cannot fork processes"
    if torch.accelerator.is_available():
        return "processes cannot be forked once torch has used an accelerator, and it sees one"
    return None


class _Shared:
    """A tree of tensors in anonymous memory that forked processes share.

    Args:
        like: A tree of its form.
        rows: How many such trees, stacked; None for one that is not.
    """

    def __init__(self, like: Tree, rows: int | None = None) -> None:
        if rows is not None:
            like = trees.map(lambda leaf: leaf.detach().expand(rows, *leaf.shape), like)
        leaves = trees.leaves(like)
        sizes = [math.ceil(leaf.numel() * leaf.element_size() / ALIGNMENT) * ALIGNMENT for leaf in leaves]
        memory = mmap.mmap(-1, max(sum(sizes), 1))
        starts = iter(itertools.accumulate(sizes, initial=0))

        def view(leaf: Tensor) -> Tensor:
            start = next(starts)
            if leaf.numel() == 0:
                return torch.empty(leaf.shape, dtype=leaf.dtype)
            flat = torch.frombuffer(memory, dtype=leaf.dtype, count=leaf.numel(), offset=start)
            return flat.view(leaf.shape)

        self.tree = trees.map(view, like)
        self._single: dict[int, Tree] = {}

    def rows(self, first: int, count: int) -> Tree:
        """Returns some of stacked trees."""
        if first in self._single and count == 1:  # of clients done alone there are many in every round
            return self._single[first]
        rows = trees.map(lambda leaf: leaf[first : first + count], self.tree)
        if count == 1:
            self._single[first] = rows
        return rows


def _write(place: Tree, tree: Tree) -> None:
    """Copies a tree to one of the same form: copying would silently stretch and cast another."""
    trees.map(lambda own, value: own.copy_(value), place, tree)


class _Room(NamedTuple):
    """Where clients' memories go in, and their uploads and new memories come out, a row for each client."""

    memory: _Shared
    upload: _Shared
    remembered: _Shared


class _Layout(NamedTuple):
    """What messages of one form bring: forms of memory and result, and how many there were in a round."""

    message: Tree
    memory: Tree
    upload: Tree
    remembered: Tree
    messages: int
    clients: int


class _Order(NamedTuple):
    """One client's work as a worker is told it: the rest it has by the fork, or in shared memory."""

    task: ClientTask
    kind: str
    message: int
    row: int


class _Share(NamedTuple):
    """What a worker does at a time, and its `_Order`s as they are sent."""

    tasks: Sequence[ClientTask]
    orders: bytes


class _Written(NamedTuple):
    """What a worker tells of work that is done: uploads and memories lie in rows that follow each other."""

    clients: list[int]
    kind: str
    first: int
    refused: dict[int, str]


class _Answer(NamedTuple):
    """What a worker says of a share: why it failed, or what it wrote, and what its fast path did so far."""

    failure: str | None
    written: list[_Written]
    fast: FastStats


class _Workers:
    """Workers for one program, with room for a cohort's messages and uploads of each kind."""

    def __init__(
        self, program: ClientProgram, layouts: dict[str, _Layout], workers: int, runner: Runner
    ) -> None:
        self.program = program
        self.runner = runner
        self._stats: dict[Any, FastStats] = {}
        self.layouts = layouts
        self._remembers = {name: bool(trees.leaves(layout.memory)) for name, layout in layouts.items()}
        self.messages = {
            name: [_Shared(room.message) for _ in range(room.messages)] for name, room in layouts.items()
        }
        self.rooms = {
            name: _Room(
                *(_Shared(tree, layout.clients) for tree in (layout.memory, layout.upload, layout.remembered))
            )
            for name, layout in layouts.items()
        }
        context = multiprocessing.get_context("fork")
        self.connections: list[Connection] = []
        self.processes: list[Any] = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            self.connections.append(ours)
            process = context.Process(target=self._serve, args=(theirs,), daemon=True)
            process.start()
            self.processes.append(process)
            theirs.close()

    def stats(self) -> FastStats:
        """Return what the fast path did in all workers, as of their last answers."""
        return sum(self._stats.values(), FastStats())

    def run(self, tasks: Sequence[ClientTask], names: Sequence[str]) -> list[ClientResults]:
        """Returns what clients' work gave, in any order; the uploads lie where the next round's will.

        Args:
            tasks: The cohort's.
            names: The kind of each piece of it.
        """
        kind_of = {task.client: name for task, name in zip(tasks, names, strict=True)}
        waiting = self._orders(self.runner.shares(tasks), kind_of)
        ready_made: list[_Share] = []
        busy: dict[Any, Sequence[ClientTask]] = {}
        results: list[ClientResults] = []

        def next_for(connection: Connection) -> None:
            share = ready_made.pop() if ready_made else next(waiting, None)
            if share:
                busy[connection] = share.tasks
                connection.send_bytes(share.orders)

        try:
            for connection in self.connections:
                next_for(connection)
            while busy:
                if not ready_made:  # the workers are busy, and this process is not
                    ready_made += itertools.islice(waiting, 1)
                ready = wait([*busy, *(process.sentinel for process in self.processes)])
                for connection in [c for c in ready if isinstance(c, Connection)]:
                    failure, written, self._stats[connection] = connection.recv()
                    share = busy.pop(connection)
                    if failure:
                        who = " or ".join(str(task.client) for task in share)
                        raise GenflError(f"client {who} failed in a worker:\n{failure}")
                    results += map(self._done, written)
                    next_for(connection)
                if not all(process.is_alive() for process in self.processes):
                    raise WorkerDied
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise WorkerDied from error
        return results

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
            process.close()
        for connection in self.connections:
            connection.close()

    def _orders(self, shares: Sequence[Sequence[ClientTask]], kind_of: dict[int, str]) -> Iterator[_Share]:
        """Puts each share's messages and memories into shared memory when asked for it; says where they are.

        A share's clients of one kind have rows that follow each other.
        """
        written: dict[str, dict[tuple[int, ...], int]] = {}
        rows: dict[str, int] = {}
        for share in shares:
            orders = []
            for task, identity in zip(share, _identities(share), strict=True):
                name = kind_of[task.client]
                places = written.setdefault(name, {})
                if identity not in places:
                    places[identity] = len(places)
                    _write(self.messages[name][places[identity]].tree, task.message)
                row = rows[name] = rows.get(name, -1) + 1
                if self._remembers[name]:
                    _write(self._row(name, row), task.memory)
                # What lies in shared memory, or is there by the fork, is not sent.
                bare = task._replace(message=None, memory=None)
                orders.append(_Order(bare, name, places[identity], row))
            yield _Share(share, pickle.dumps(orders))

    def _row(self, kind: str, row: int) -> Tree:
        """Returns the memory that one client goes to work with."""
        return trees.map(lambda leaf: leaf[row], self.rooms[kind].memory.tree)

    def _memory(self, order: _Order) -> Tree:
        """Returns the memory that a client goes to work with; where nothing is in it, one is all clients'."""
        if not self._remembers[order.kind]:
            return self.layouts[order.kind].memory
        # rows are not aligned as torch's own tensors are, which changes the last bits of some kernels
        return trees.map(torch.clone, self._row(order.kind, order.row))

    def _done(self, written: _Written) -> ClientResults:
        """Returns what a worker wrote; memories stay when the next round is written over it."""
        if not written.clients:
            return ClientResults([], {}, {}, written.refused)
        room, where = self.rooms[written.kind], (written.first, len(written.clients))
        memory = room.remembered.rows(*where)
        if len(written.clients) == 1:  # those of several are copied one by one when they are counted
            memory = trees.map(torch.clone, memory)
        return ClientResults(written.clients, room.upload.rows(*where), memory, written.refused)

    def _serve(self, connection: Connection) -> None:
        """Runs in a worker until its parent hangs up."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # the parent's progress bar may hold a lock
        for inherited in self.connections:
            inherited.close()  # or no worker would notice that the parent is gone
        torch.set_num_threads(1)
        while True:
            try:
                share: list[_Order] = connection.recv()
            except (EOFError, OSError):  # it was killed
                return
            try:
                answer = _Answer(None, self._work(share), self.runner.stats())
            except Exception:
                answer = _Answer(traceback.format_exc(), [], self.runner.stats())
            try:
                connection.send(answer)
            except OSError:
                return

    def _work(self, share: list[_Order]) -> list[_Written]:
        """Does a share of a round in a worker."""
        names = {order.task.client: order.kind for order in share}
        free: dict[str, int] = {}  # the next row of each kind
        for order in share:
            free.setdefault(order.kind, order.row)
        tasks = [
            order.task._replace(
                message=self.messages[order.kind][order.message].tree,
                memory=self._memory(order),
            )
            for order in share
        ]

        def expected(task: ClientTask) -> tuple[Tree, Tree]:
            layout = self.layouts[names[task.client]]
            return layout.upload, layout.remembered

        written = []
        for done in self.runner(self.program, tasks, expected):
            kind, count = names[done.place], len(done.clients)
            if count:
                _write(self.rooms[kind].upload.rows(free[kind], count), done.upload)
                _write(self.rooms[kind].remembered.rows(free[kind], count), done.memory)
            written.append(_Written(done.clients, kind, free[kind], done.refused))
            free[kind] += count
        return written


def _identities(tasks: Sequence[ClientTask]) -> list[tuple[int, ...]]:
    """Returns for each piece of work what is the same for those that are sent the same tensors."""
    known: dict[int, tuple[int, ...]] = {}
    for task in tasks:
        if id(task.message) not in known:
            known[id(task.message)] = tuple(map(id, trees.leaves(task.message)))
    return [known[id(task.message)] for task in tasks]
