"""What every engine takes and gives: an engine runs a client program for a cohort and adds the uploads up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import Client, Facts, run_once
from genfl.data.plans import Batches
from genfl.learning.task import Batch
from genfl.rng import Key
from genfl.trees import Tree


class Data(Protocol):
    """What clients hold, as they themselves see it."""

    def facts(self, client: int) -> Facts:
        """Returns what a program may know of a client's data."""
        ...

    def sizes(self, client: int) -> tuple[int, int]:
        """Returns how many private and generated samples a client has; it numbers them in this order."""
        ...

    def batch(self, client: int, rows: Tensor, key: Key | None = None) -> Batch:
        """Returns some of a client's examples, with random changes of the inputs drawn from the key."""
        ...


class ManyData(Data, Protocol):
    """What an engine that batches clients asks for."""

    def batches(
        self, clients: Sequence[int], rows: Sequence[Tensor], keys: Callable[[], Sequence[Key]]
    ) -> Batch:
        """Returns what `batch` gives for each client, stacked; the keys are made only if they are needed."""
        ...


class Work(NamedTuple):
    """One client's part of a round. What a client holds is not in it: that is for the client to look up.

    Attributes:
        client: Its number.
        message: What the server sent it.
        memory: What the client kept from its last counted round.
        batches: How its batches are drawn; None for programs without batches.
        key: The client's random stream for this round.
    """

    client: int
    message: Tree
    memory: Tree
    batches: Batches | None
    key: Key


def run_client(program: Client, data: Data, job: Work) -> tuple[Tree, Tree]:
    """Runs a client program on a client's data, as the client would.

    Returns:
        The upload, and the client's new memory.
    """
    carry = program.start(job.message, job.memory, data.facts(job.client), job.key.fold("start"))
    for step, chosen in enumerate(drawn(program, data, job)):
        key = job.key.fold(step)
        carry = program.step(carry, data.batch(job.client, chosen, key.fold("augment")), key)
    return program.finish(carry)


def drawn(program: Client, data: Data, job: Work) -> list[Tensor]:
    """Returns the rows, of what a client holds, of each of its steps in a round."""
    if job.batches is None:
        return []
    private, generated = data.sizes(job.client)
    if not (job.batches.keep and generated):
        return job.batches.draw(private, generated)
    rows = torch.arange(private + generated)
    examples = data.batch(job.client, rows[private:])
    kept = job.batches.keep.choose(program.losses(job.message, examples), examples["y"])
    rows = torch.cat([rows[:private], rows[private:][kept]])
    return [rows[places] for places in job.batches.draw(private, len(kept))]


def kinds(work: Sequence[Work]) -> list[str]:
    """Returns for each piece of work a text that is the same for those whose results have the same form."""
    forms: dict[int, str] = {}  # most clients are sent one and the same message

    def form(tree: Tree) -> str:
        if id(tree) not in forms:
            forms[id(tree)] = trees.form(tree)
        return forms[id(tree)]

    return [f"{form(job.message)} {form(job.memory)}" for job in work]


class Forms:
    """What uploads and memories must look like, for all `kinds` of work."""

    def __init__(self, program: Client, data: Data) -> None:
        self.program = program
        self.data = data
        self.known: dict[str, tuple[Tree, Tree]] = {}

    def __call__(self, job: Work) -> tuple[Tree, Tree]:
        """Returns an upload and a memory of the form that a piece of work must give."""
        (name,) = kinds([job])
        if name not in self.known:
            facts = self.data.facts(job.client)
            self.known[name] = run_once(self.program, job.message, job.memory, facts)
        return self.known[name]


class Done(NamedTuple):
    """What the work of some clients gave, stacked: they all have the same form.

    Attributes:
        clients: The numbers of those whose work counts.
        upload: What they send; the first dimension of every leaf is theirs, in this order.
        memory: What they keep, likewise.
        refused: Why the work of others must not count, by client.
    """

    clients: list[int]
    upload: Tree
    memory: Tree
    refused: dict[int, str]

    @property
    def place(self) -> int:
        """Where it stands among others: clients done alone are in the order of their numbers."""
        return min([*self.clients, *self.refused])


Expected = Callable[[Work], tuple[Tree, Tree]]
"""``(job) -> upload and memory`` of the form that its work must give."""


class Runner(Protocol):
    """How a process does a program's work, on one thread: each client in its turn, or many at a time."""

    def shares(self, work: Sequence[Work]) -> list[list[Work]]:
        """Divides a cohort into what is done at a time, the longest first, whoever does it."""
        ...

    def __call__(self, program: Client, work: Sequence[Work], expected: Expected) -> Iterator[Done]:
        """Runs the program for each client of a share."""
        ...


def longest_first(work: Sequence[Work], data: Data) -> list[Work]:
    """Returns work in the order of steps, the most first, and of client numbers."""
    length = {job.client: job.batches.length(*data.sizes(job.client)) if job.batches else 0 for job in work}
    return sorted(work, key=lambda job: (-length[job.client], job.client))


class OneByOne:
    """Runs clients alone, in the order they come in.

    Args:
        data: What the clients hold.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    def shares(self, work: Sequence[Work]) -> list[list[Work]]:
        """Returns each client by itself; see `Runner`."""
        return [[job] for job in longest_first(work, self.data)]

    def __call__(self, program: Client, work: Sequence[Work], expected: Expected) -> Iterator[Done]:
        """Runs the program for each client; see `Runner`."""
        for job in work:
            upload, memory = run_client(program, self.data, job)
            if wrong := problem(upload, memory, expected(job)):
                yield Done([], {}, {}, {job.client: wrong})
            else:
                yield Done([job.client], trees.map(_as_stack, upload), trees.map(_as_stack, memory), {})


def _as_stack(leaf: Tensor) -> Tensor:
    return leaf.unsqueeze(0)


class Outcome(NamedTuple):
    """What a cohort's work came to.

    Attributes:
        aggregate: For each name of the upload its sum over the counted clients, or the list of them in the
            order of client numbers, as the program's reductions say. None if no upload counted.
        memories: The new memory of each counted client.
        refused: Why an upload was not counted, by client.
        uplink_bytes: For each name of the upload, the bytes all counted clients sent.
    """

    aggregate: Tree | None
    memories: dict[int, Tree]
    refused: dict[int, str]
    uplink_bytes: dict[str, int]


class Engine(Protocol):
    """Runs a client program for each piece of work, in any order, and reduces the uploads."""

    def __call__(self, program: Client, work: Sequence[Work]) -> Outcome:
        """Returns the outcome; the same for every engine, worker count and order."""
        ...


class Reduction(Protocol):
    """Adds up uploads as they arrive, always in the same order."""

    def add(self, clients: Sequence[int], uploads: Tree) -> None:
        """Takes some clients' stacked uploads, whose tensors may hold something else after this round."""
        ...

    def result(self) -> Tree:
        """Returns the aggregate of all uploads taken."""
        ...


Reduce = Callable[[dict[str, str]], Reduction]
"""Makes the reduction of a round from a program's declared reductions."""


class Tally:
    """Adds up the uploads of a round, but for those that must not count."""

    def __init__(self, reduction: Reduction, program: Client) -> None:
        self.reduction = reduction
        self.memories: dict[int, Tree] = {}
        self.refused: dict[int, str] = {}
        self.uplink = dict.fromkeys(program.reductions, 0)

    def add(self, done: Done) -> None:
        """Takes what some clients' work gave; a memory that is part of something larger is copied."""
        self.refused |= done.refused
        if not done.clients:
            return
        self.reduction.add(done.clients, done.upload)
        memories = trees.apart(done.memory, len(done.clients))
        if trees.leaves(done.memory):
            memories = [trees.map(_alone, memory) for memory in memories]
        self.memories |= zip(done.clients, memories, strict=True)
        for name, value in done.upload.items():
            self.uplink[name] += trees.num_bytes(value)

    def outcome(self) -> Outcome:
        """Returns what the round came to."""
        aggregate = self.reduction.result() if self.memories else None
        return Outcome(aggregate, self.memories, self.refused, self.uplink)


def _alone(leaf: Tensor) -> Tensor:
    """Returns a tensor that keeps no memory but its own."""
    return leaf if leaf.untyped_storage().nbytes() == leaf.nbytes else leaf.clone()


NOT_FINITE = "it holds NaN or infinite values"


def problem(upload: Tree, memory: Tree, like: tuple[Tree, Tree]) -> str | None:
    """Says why a client's work must not be counted: a form is wrong, or something is not finite.

    A memory that is not finite would spoil every later round of the client, so it counts as well.

    Returns:
        None for good work.
    """
    for tree, expected in zip((upload, memory), like, strict=True):
        wrong = trees.mismatch(tree, expected)
        if wrong is not None:
            return wrong
        if not trees.is_finite(tree):
            return NOT_FINITE
    return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Runs a block's torch operations on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
