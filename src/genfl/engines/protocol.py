"""The protocol of engines: an engine runs a client program for a cohort and adds the uploads up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import ClientInfo, ClientProgram, HeldSamples, ReductionKind, run_once
from genfl.data.plans import Batches
from genfl.engines.fast import FastStats
from genfl.learning.task import Batch
from genfl.rng import Key
from genfl.trees import Tree


class DataView(Protocol):
    """Clients' data, as the clients themselves see it."""

    def client_info(self, client: int) -> ClientInfo:
        """Return what a program may know of a client's data."""
        ...

    def part_sizes(self, client: int) -> Sequence[int]:
        """Return how many samples a client has of each part of the data; it numbers them in this order."""
        ...

    def batch(self, client: int, rows: Tensor, key: Key | None = None) -> Batch:
        """Return some of a client's examples, with random changes of the inputs drawn from the key."""
        ...


class BatchedDataView(DataView, Protocol):
    """Clients' data for an engine that batches clients."""

    def batches(
        self, clients: Sequence[int], rows: Sequence[Tensor], keys: Callable[[], Sequence[Key]]
    ) -> Batch:
        """Return what `batch` gives for each client, stacked; the keys are made only if they are needed."""
        ...


class InfoOnly:
    """Clients whose program uses no examples: it reads what it may know of their data, and nothing else.

    Args:
        client_info: What each client's program may know, by the client's number.
    """

    def __init__(self, client_info: Sequence[ClientInfo]) -> None:
        self._client_info = client_info

    def client_info(self, client: int) -> ClientInfo:
        """Return what a program may know of a client's data."""
        return self._client_info[client]

    def part_sizes(self, client: int) -> Sequence[int]:
        """Return no parts."""
        return ()

    def batch(self, client: int, rows: Tensor, key: Key | None = None) -> Batch:
        """Refuse: there are no examples."""
        raise IndexError("these clients hold no examples")


class ClientTask(NamedTuple):
    """One client's part of a round. It does not hold the client's data: the client looks that up.

    Attributes:
        client: The client's number.
        message: What the server sent it.
        memory: What the client kept from its last counted round.
        batches: How its batches are drawn; None for programs without batches.
        key: The client's random stream for this round.
        round: The round's number, from 1.
    """

    client: int
    message: Tree
    memory: Tree
    batches: Batches | None
    key: Key
    round: int = 1


def run_client(program: ClientProgram, data: DataView, task: ClientTask) -> tuple[Tree, Tree]:
    """Run a client program on a client's data, as the client would.

    Returns:
        The upload, and the client's new memory.
    """
    carry = program.start(task.message, task.memory, data.client_info(task.client), task.key.fold("start"))
    for step, chosen in enumerate(planned_rows(program, data, task)):
        key = task.key.fold(step)
        carry = program.step(carry, step_batch(data, task, chosen, key.fold("augment")), key)
    return program.finish(carry)


def step_batch(data: DataView, task: ClientTask, rows: Tensor, key: Key) -> Batch:
    """Return the examples of a client's step, and what DP-SGD must know of them.

    Args:
        data: The clients' data.
        task: The client's part of the round.
        rows: The rows of the step; see `planned_rows`.
        key: The random stream of changes of the inputs.
    """
    return data.batch(task.client, examples_of(task, rows), key) | marks(data, task, rows)


def marks(data: DataView, task: ClientTask, rows: Tensor) -> dict[str, Tensor]:
    """Return what DP-SGD must know of a step's examples; nothing without it. See `PoissonSampling.marks`."""
    if task.batches is None or task.batches.poisson is None:
        return {}
    return task.batches.poisson.marks(rows, data.part_sizes(task.client))


def examples_of(task: ClientTask, rows: Tensor) -> Tensor:
    """Return rows with some sample of the client in place of padding, which training leaves out."""
    return rows.clamp(min=0) if task.batches is not None and task.batches.poisson else rows


def planned_rows(program: ClientProgram, data: DataView, task: ClientTask) -> list[Tensor]:
    """Return the rows, of all that the client holds, of each of its steps in the round; -1 for padding."""
    if task.batches is None:
        return []
    sizes = tuple(data.part_sizes(task.client))
    if program.select is None:
        return task.batches.draw(sizes)
    held = HeldSamples(task.round, sizes, lambda rows: data.batch(task.client, rows))
    selected = program.select(task.message, held)
    rows = torch.cat(list(selected))
    drawn = task.batches.draw([len(part) for part in selected])
    return [torch.where(numbers < 0, numbers, rows[numbers]) for numbers in drawn]


def signatures(tasks: Sequence[ClientTask]) -> list[str]:
    """Return a text for each task: equal texts stand for results of the same structure, shapes and dtypes."""
    known: dict[int, str] = {}  # most clients are sent one and the same message

    def signature(tree: Tree) -> str:
        if id(tree) not in known:
            known[id(tree)] = trees.signature(tree)
        return known[id(tree)]

    return [f"{signature(task.message)} {signature(task.memory)}" for task in tasks]


class ResultTemplates:
    """The uploads and memories that a program must give, for each signature of a task.

    Args:
        program: What clients run.
        data: What the clients hold.
    """

    def __init__(self, program: ClientProgram, data: DataView) -> None:
        self.program = program
        self.data = data
        self._known: dict[str, tuple[Tree, Tree]] = {}

    def __call__(self, task: ClientTask) -> tuple[Tree, Tree]:
        """Return an upload and a memory with the structure, shapes and dtypes that the task must give."""
        (signature,) = signatures([task])
        if signature not in self._known:
            client_info = self.data.client_info(task.client)
            self._known[signature] = run_once(self.program, task.message, task.memory, client_info)
        return self._known[signature]


class ClientResults(NamedTuple):
    """The results of some clients, stacked: they all have the same structure, shapes and dtypes.

    Attributes:
        clients: The numbers of those whose results count.
        upload: What they send; the first dimension of every leaf is the clients, in this order.
        memory: What they keep, likewise.
        refused: Why the results of others must not count, by client.
    """

    clients: list[int]
    upload: Tree
    memory: Tree
    refused: dict[int, str]

    @property
    def position(self) -> int:
        """The least client number: results are added up in this order, whoever was first."""
        return min([*self.clients, *self.refused])


ExpectedResult = Callable[[ClientTask], tuple[Tree, Tree]]
"""``(task) -> upload and memory`` with the structure, shapes and dtypes that its results must have."""


class Runner(Protocol):
    """A way to run clients in one process, on one thread: one by one, or many at a time.

    Attributes:
        how: Its name for a person: ``per client`` or ``vmapped``.
    """

    how: str

    @property
    def data(self) -> DataView:
        """What the clients hold."""
        ...

    def shares(self, tasks: Sequence[ClientTask]) -> list[list[ClientTask]]:
        """Divide a cohort into the shares that a process runs at a time, the longest first."""
        ...

    def run_cohort(
        self, program: ClientProgram, tasks: Sequence[ClientTask], expected: ExpectedResult
    ) -> Iterator[ClientResults]:
        """Run a whole cohort; results come in the order in which they must be added up."""
        ...

    def __call__(
        self, program: ClientProgram, tasks: Sequence[ClientTask], expected: ExpectedResult
    ) -> Iterator[ClientResults]:
        """Run the program for each client of a share."""
        ...

    def stats(self) -> FastStats:
        """Return what the fast path did for the current program, in this process."""
        ...


def longest_first(tasks: Sequence[ClientTask], data: DataView) -> list[ClientTask]:
    """Sort tasks by their number of steps, the most first, and then by client."""
    steps = {
        task.client: task.batches.length(data.part_sizes(task.client)) if task.batches else 0
        for task in tasks
    }
    return sorted(tasks, key=lambda task: (-steps[task.client], task.client))


class RoundResult(NamedTuple):
    """The outcome of a cohort's round.

    Attributes:
        aggregate: For each name of the upload its sum over the counted clients, or the list of them in the
            order of client numbers, as the program's reductions say. None if no upload counted.
        memories: The new memory of each counted client.
        refused: Why an upload was not counted, by client.
        uplink_bytes: For each name of the upload, the bytes all counted clients sent.
        samples: How many samples clients trained on, as they say; None if they are not asked.
    """

    aggregate: Tree | None
    memories: dict[int, Tree]
    refused: dict[int, str]
    uplink_bytes: dict[str, int]
    samples: int | None = None


class EngineStats(NamedTuple):
    """An engine's kind, and the numbers of its fast path.

    Attributes:
        where: Where clients run: ``in process`` or ``pool``.
        how: How a process runs them: ``per client`` or ``vmapped``.
        workers: How many processes run clients.
        fast: What the fast path did for the current program, in all processes together.
    """

    where: str
    how: str
    workers: int
    fast: FastStats


class Engine(Protocol):
    """A way to run a client program for each task of a round, in any order, and to reduce the uploads."""

    def run(self, program: ClientProgram, tasks: Sequence[ClientTask]) -> RoundResult:
        """Run a round; the result is the same for every engine, number of workers and order of tasks."""
        ...

    def stats(self) -> EngineStats:
        """Return what the engine is, and what its fast path did."""
        ...


class Reducer(Protocol):
    """A sum of uploads in the making: they are added as they arrive, always in the same order."""

    def add(self, clients: Sequence[int], uploads: Tree) -> dict[int, str]:
        """Take some clients' stacked uploads, whose tensors may hold something else after this round.

        Returns:
            Why the uploads of some of them must not count, by client.
        """
        ...

    def nbytes(self, name: str, uploads: Tree) -> int:
        """Return the bytes that clients send for one part of their uploads, which are stacked.

        Args:
            name: The part.
            uploads: It, of some clients.
        """
        ...

    def aggregate(self) -> Tree:
        """Return the aggregate of all uploads taken; None if there are too few of them to tell it."""
        ...


ReducerFactory = Callable[[Mapping[str, ReductionKind]], Reducer]
"""Makes the reducer of a round from a program's declared reductions."""


class Aggregator:
    """The sums of a round, in the making: it leaves out what must not count.

    Args:
        reducer: Adds up the uploads.
        program: What clients run.
    """

    def __init__(self, reducer: Reducer, program: ClientProgram) -> None:
        self.reducer = reducer
        self.memories: dict[int, Tree] = {}
        self.refused: dict[int, str] = {}
        self.uplink = dict.fromkeys(program.reductions, 0)

    def add(self, results: ClientResults) -> None:
        """Take some clients' results; a memory that is a view of a larger tensor is copied."""
        self.refused |= results.refused
        if not results.clients:
            return
        refused = self.reducer.add(results.clients, results.upload)
        self.refused |= refused
        memories = trees.apart(results.memory, len(results.clients))
        if trees.leaves(results.memory):
            memories = [trees.map(_without_base, memory) for memory in memories]
        counted = dict(zip(results.clients, memories, strict=True))
        self.memories |= {client: memory for client, memory in counted.items() if client not in refused}
        for name, value in results.upload.items():
            sent = self.reducer.nbytes(name, value)
            self.uplink[name] += sent - sent // len(results.clients) * len(refused)

    def round_result(self) -> RoundResult:
        """Return the outcome of the round."""
        aggregate = self.reducer.aggregate() if self.memories else None
        return RoundResult(aggregate, self.memories, self.refused, self.uplink)


def _without_base(leaf: Tensor) -> Tensor:
    """Return a tensor that keeps no larger one alive."""
    return leaf if leaf.untyped_storage().nbytes() == leaf.nbytes else leaf.clone()


NOT_FINITE = "it holds NaN or infinite values"


def problem(upload: Tree, memory: Tree, like: tuple[Tree, Tree]) -> str | None:
    """Return why a client's results must not be counted: a wrong shape, or numbers that are not finite.

    A memory that is not finite would spoil every later round of the client, so it is checked as well.

    Args:
        upload: What the client sends.
        memory: What it keeps.
        like: An upload and a memory with the right structure, shapes and dtypes.

    Returns:
        None for good results.
    """
    for tree, expected in zip((upload, memory), like, strict=True):
        wrong = trees.mismatch(tree, expected)
        if wrong is not None:
            return wrong
        if not trees.is_finite(tree):
            return NOT_FINITE
    return None
