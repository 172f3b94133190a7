"""Run clients one by one: the readable way, and the one that every program can take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from genfl import trees
from genfl.algorithms.base import ClientProgram
from genfl.engines import fast
from genfl.engines.protocol import (
    ClientResults,
    ClientTask,
    DataView,
    ExpectedResult,
    longest_first,
    problem,
    run_client,
)


class PerClientRunner:
    """A runner of clients one by one, in the order in which they come.

    Args:
        data: What the clients hold.
        accelerated: Whether a client's step may be recorded and replayed (see `genfl.engines.fast`). The
            bits of the results are the same.
    """

    how = "per client"

    def __init__(self, data: DataView, *, accelerated: bool = True) -> None:
        self.data = data
        self._why_off = fast.why_off(accelerated)
        self._program: ClientProgram | None = None
        self._faster: ClientProgram | None = None

    def shares(self, tasks: Sequence[ClientTask]) -> list[list[ClientTask]]:
        """Return each client by itself, the one with the most steps first; see `Runner.shares`."""
        return [[task] for task in longest_first(tasks, self.data)]

    def run_cohort(
        self, program: ClientProgram, tasks: Sequence[ClientTask], expected: ExpectedResult
    ) -> Iterator[ClientResults]:
        """Run clients in the order of their numbers; see `Runner.run_cohort`."""
        return self(program, sorted(tasks, key=lambda task: task.client), expected)

    def __call__(
        self, program: ClientProgram, tasks: Sequence[ClientTask], expected: ExpectedResult
    ) -> Iterator[ClientResults]:
        """Run the program for each client; see `Runner`."""
        if program is not self._program:
            self._program = program
            self._faster = program if self._why_off else fast.accelerate(program)
        assert self._faster is not None
        for task in tasks:
            upload, memory = run_client(self._faster, self.data, task)
            if refusal := problem(upload, memory, expected(task)):
                yield ClientResults([], {}, {}, {task.client: refusal})
            else:
                yield ClientResults(
                    [task.client], trees.map(_as_stack, upload), trees.map(_as_stack, memory), {}
                )

    def stats(self) -> fast.FastStats:
        """Return what the fast path did for the current program."""
        return fast.FastStats(reasons=(self._why_off,)) if self._why_off else fast.stats_of(self._faster)


def _as_stack(leaf: Tensor) -> Tensor:
    return leaf.unsqueeze(0)
