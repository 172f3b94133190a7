"""Run a cohort in worker processes on one machine, one thread each, on all cores."""

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
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import ClientProgram
from genfl.engines.fast import FastStats, leave_logging_to_parent, log_changes
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
from genfl.errors import GenflError, cause
from genfl.storage import ALIGNMENT
from genfl.trees import Tree

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a round is tried in which workers die."""


class WorkerDied(Exception):
    """A worker process ended in the middle of a round."""


class WorkerPool:
    """An engine that deals a cohort out to worker processes, the longest tasks first.

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
        if not tasks:
            return Aggregator(self.reducer(program.reductions), program).round_result()
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
        return EngineStats(self.where, self.runner.how, self.workers, self._fast_stats())

    def _fast_stats(self) -> FastStats:
        """Return what the fast path of this process and of all workers did for the current program."""
        workers = self._pool.stats() if self._pool else FastStats()
        return self.runner.stats() + self._earlier + workers

    def _learn_layouts(
        self, program: ClientProgram, tasks: Sequence[ClientTask], signatures: Sequence[str]
    ) -> bool:
        """Note the layouts that tasks need; return whether all of them were known before."""
        known = True
        templates = ResultTemplates(program, self.runner.data)
        by_signature: dict[str, list[ClientTask]] = {}
        for task, signature in zip(tasks, signatures, strict=True):
            by_signature.setdefault(signature, []).append(task)
        for signature, alike in by_signature.items():
            messages = len(set(_identities(alike)))
            layout = self._layouts.get(signature)
            if layout is None:
                message, memory = alike[0].message, alike[0].memory
                layout = _Layout(message, memory, *templates(alike[0]), messages=0, clients=0)
            if messages > layout.messages or len(alike) > layout.clients:
                known = False
                self._layouts[signature] = layout._replace(
                    messages=max(messages, layout.messages), clients=max(len(alike), layout.clients)
                )
        return known

    def close(self) -> None:
        """End the workers."""
        if self._pool:
            self._earlier += self._pool.stats()
            self._pool.close()
            self._pool = None

    def _round(self, program: ClientProgram, tasks: Sequence[ClientTask]) -> RoundResult:
        if program is not self._program:
            self.close()
            self._program, self._layouts, self._earlier = program, {}, FastStats()
        by_task = signatures(tasks)
        if not self._learn_layouts(program, tasks, by_task) or self._pool is None:
            self.close()
            workers = min(self.workers, len(tasks))
            self._pool = _Workers(program, self._layouts, workers, self.runner)
        before = self._fast_stats()
        aggregator = Aggregator(self.reducer(program.reductions), program)
        for results in sorted(self._pool.run(tasks, by_task), key=lambda results: results.position):
            aggregator.add(results)
        log_changes(before, self._fast_stats())
        return aggregator.round_result()


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def refusal() -> str | None:
    """Return why workers cannot be forked here; None where they can."""
    if not hasattr(os, "fork"):
        return "this system cannot fork processes"
    if torch.accelerator.is_available():
        return "processes cannot be forked once torch has used an accelerator, and it sees one"
    return None


class _Shared:
    """A tree of tensors in anonymous memory that forked processes share.

    Args:
        like: A tree of its structure, shapes and dtypes.
        rows: How many such trees are stacked; None for a single one, which is not.
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
        """Return some of the stacked trees."""
        if first in self._single and count == 1:  # clients that run one by one ask for theirs every round
            return self._single[first]
        rows = trees.map(lambda leaf: leaf[first : first + count], self.tree)
        if count == 1:
            self._single[first] = rows
        return rows


def _write(target: Tree, tree: Tree) -> None:
    """Copy a tree to one of the same shapes and dtypes: others would silently be stretched and cast."""
    trees.map(lambda leaf, value: leaf.copy_(value), target, tree)


class _Room(NamedTuple):
    """Shared memory for clients' memories, uploads and new memories: a row for each client."""

    memory: _Shared
    upload: _Shared
    new_memory: _Shared


class _Layout(NamedTuple):
    """Trees of the shapes and dtypes of one signature, and how many of them a round had at most.

    Attributes:
        message: What clients are sent.
        memory: What they kept.
        upload: What they send back.
        new_memory: What they keep from now on.
        messages: How many different messages there were.
        clients: How many clients there were.
    """

    message: Tree
    memory: Tree
    upload: Tree
    new_memory: Tree
    messages: int
    clients: int


class _Order(NamedTuple):
    """One client's task as it is sent to a worker, which has the rest by the fork, or in shared memory.

    Attributes:
        task: The task, without message and memory.
        signature: Its signature.
        message: The number of its message among those of the signature.
        row: Its row in the signature's `_Room`.
    """

    task: ClientTask
    signature: str
    message: int
    row: int


class _Share(NamedTuple):
    """The tasks that a worker runs at a time, and the `_Order`s of them, pickled."""

    tasks: Sequence[ClientTask]
    orders: bytes


class _Written(NamedTuple):
    """The rows in which a worker wrote uploads and memories: `first`, and those that follow it."""

    clients: list[int]
    signature: str
    first: int
    refused: dict[int, str]


class WorkerTraceback(Exception):
    """The traceback of an error in a worker; it is the cause of the error that its parent raises."""


class _Answer(NamedTuple):
    """What a worker says of a share.

    Attributes:
        failure: Why it failed: a line, and then the traceback. None if it did not.
        written: What it wrote.
        fast: What its fast path did so far.
    """

    failure: str | None
    written: list[_Written]
    fast: FastStats


class _Workers:
    """Workers for one program, with room for a cohort's messages and uploads of each signature."""

    def __init__(
        self, program: ClientProgram, layouts: dict[str, _Layout], workers: int, runner: Runner
    ) -> None:
        self.program = program
        self.runner = runner
        self._stats: dict[Any, FastStats] = {}
        self.layouts = layouts
        self._has_memory = {
            signature: bool(trees.leaves(layout.memory)) for signature, layout in layouts.items()
        }
        self.messages = {
            signature: [_Shared(layout.message) for _ in range(layout.messages)]
            for signature, layout in layouts.items()
        }
        self.rooms = {
            signature: _Room(
                *(_Shared(tree, layout.clients) for tree in (layout.memory, layout.upload, layout.new_memory))
            )
            for signature, layout in layouts.items()
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

    def run(self, tasks: Sequence[ClientTask], signatures: Sequence[str]) -> list[ClientResults]:
        """Return the clients' results, in any order; the next round overwrites the uploads.

        Args:
            tasks: The cohort's tasks.
            signatures: The signature of each.
        """
        signature_of = {task.client: signature for task, signature in zip(tasks, signatures, strict=True)}
        waiting = self._orders(self.runner.shares(tasks), signature_of)
        prepared: list[_Share] = []
        busy: dict[Any, Sequence[ClientTask]] = {}
        results: list[ClientResults] = []

        def send_next(connection: Connection) -> None:
            share = prepared.pop() if prepared else next(waiting, None)
            if share:
                busy[connection] = share.tasks
                connection.send_bytes(share.orders)

        try:
            for connection in self.connections:
                send_next(connection)
            while busy:
                if not prepared:  # the workers are busy, and this process is not
                    prepared += itertools.islice(waiting, 1)
                ready = wait([*busy, *(process.sentinel for process in self.processes)])
                for connection in [c for c in ready if isinstance(c, Connection)]:
                    failure, written, self._stats[connection] = connection.recv()
                    share = busy.pop(connection)
                    if failure:
                        clients = " or ".join(str(task.client) for task in share)
                        line, _, rest = failure.partition("\n")
                        why = f"client {clients} failed in a worker: {line}"
                        raise GenflError(why) from WorkerTraceback(rest)
                    results += map(self._results, written)
                    send_next(connection)
                if not all(process.is_alive() for process in self.processes):
                    raise WorkerDied
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise WorkerDied from error
        return results

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
            process.close()
        for connection in self.connections:
            connection.close()

    def _orders(
        self, shares: Sequence[Sequence[ClientTask]], signature_of: dict[int, str]
    ) -> Iterator[_Share]:
        """Yield the orders of each share, and put its messages and memories into shared memory just before.

        A share's clients of one signature have rows that follow each other.
        """
        written: dict[str, dict[tuple[int, ...], int]] = {}
        rows: dict[str, int] = {}
        for share in shares:
            orders = []
            for task, identity in zip(share, _identities(share), strict=True):
                signature = signature_of[task.client]
                numbers = written.setdefault(signature, {})
                if identity not in numbers:
                    numbers[identity] = len(numbers)
                    _write(self.messages[signature][numbers[identity]].tree, task.message)
                row = rows[signature] = rows.get(signature, -1) + 1
                if self._has_memory[signature]:
                    _write(self._row(signature, row), task.memory)
                # What lies in shared memory, or came by the fork, is not sent.
                bare = task._replace(message=None, memory=None)
                orders.append(_Order(bare, signature, numbers[identity], row))
            yield _Share(share, pickle.dumps(orders))

    def _row(self, signature: str, row: int) -> Tree:
        """Return the shared memory of what one client kept."""
        return trees.map(lambda leaf: leaf[row], self.rooms[signature].memory.tree)

    def _memory(self, order: _Order) -> Tree:
        """Return what a client kept; clients that keep nothing share one empty tree."""
        if not self._has_memory[order.signature]:
            return self.layouts[order.signature].memory
        # Rows are not aligned as torch's own tensors are, which changes the last bits of some kernels.
        return trees.map(torch.clone, self._row(order.signature, order.row))

    def _results(self, written: _Written) -> ClientResults:
        """Return what a worker wrote; the memories stay when the next round overwrites the rows."""
        if not written.clients:
            return ClientResults([], {}, {}, written.refused)
        room, rows = self.rooms[written.signature], (written.first, len(written.clients))
        memory = room.new_memory.rows(*rows)
        if len(written.clients) == 1:  # the aggregator copies those of several, one by one
            memory = trees.map(torch.clone, memory)
        return ClientResults(written.clients, room.upload.rows(*rows), memory, written.refused)

    def _serve(self, connection: Connection) -> None:
        """Run shares in a worker until its parent hangs up."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # the parent's progress bar may hold a lock
        for inherited in self.connections:
            inherited.close()  # or no worker would notice that the parent is gone
        leave_logging_to_parent()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        torch.set_num_threads(1)
        while True:
            try:
                share: list[_Order] = connection.recv()
            except (EOFError, OSError):  # it was killed
                return
            try:
                answer = _Answer(None, self._run_share(share), self.runner.stats())
            except Exception as error:
                failure = f"{cause(error)}\n{traceback.format_exc()}"
                answer = _Answer(failure, [], self.runner.stats())
            try:
                connection.send(answer)
            except OSError:
                return

    def _run_share(self, share: list[_Order]) -> list[_Written]:
        """Run a share of a round in a worker."""
        signature_of = {order.task.client: order.signature for order in share}
        next_row: dict[str, int] = {}
        for order in share:
            next_row.setdefault(order.signature, order.row)
        tasks = [
            order.task._replace(
                message=self.messages[order.signature][order.message].tree,
                memory=self._memory(order),
            )
            for order in share
        ]

        def expected(task: ClientTask) -> tuple[Tree, Tree]:
            layout = self.layouts[signature_of[task.client]]
            return layout.upload, layout.new_memory

        written = []
        for results in self.runner(self.program, tasks, expected):
            signature, count = signature_of[results.position], len(results.clients)
            first = next_row[signature]
            if count:
                _write(self.rooms[signature].upload.rows(first, count), results.upload)
                _write(self.rooms[signature].new_memory.rows(first, count), results.memory)
            written.append(_Written(results.clients, signature, first, results.refused))
            next_row[signature] += count
        return written


def _end_with_parent() -> None:
    """End this worker at once when the process that forked it ends, also in the middle of a share."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _identities(tasks: Sequence[ClientTask]) -> list[tuple[int, ...]]:
    """Return for each task what is the same for those that are sent the same tensors."""
    known: dict[int, tuple[int, ...]] = {}
    for task in tasks:
        if id(task.message) not in known:
            known[id(task.message)] = tuple(map(id, trees.leaves(task.message)))
    return [known[id(task.message)] for task in tasks]
