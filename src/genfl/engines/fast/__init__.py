"""The fast path: a client's step, recorded once and replayed without autograd and Python in between."""

from __future__ import annotations

from typing import NamedTuple

from genfl.algorithms.base import ClientProgram


class FastStats(NamedTuple):
    """What the fast path did for a program.

    Attributes:
        recordings: How many recordings there are.
        replayed: How many client steps were replayed from them.
        stepped: How many client steps ran as they are.
    """

    recordings: int = 0
    replayed: int = 0
    stepped: int = 0

    def __add__(self, other: object) -> FastStats:
        """Return the sums of both."""
        if not isinstance(other, FastStats):
            return NotImplemented
        return FastStats(*(mine + its for mine, its in zip(self, other, strict=True)))


def accelerate(program: ClientProgram) -> ClientProgram:
    """Return a program of the same bits whose step, after many, replays the tensor operations of one."""
    from genfl.engines.fast.recording import replayed

    return replayed(program)


def stats_of(program: ClientProgram | None) -> FastStats:
    """Return what the fast path did for a program that `accelerate` returned."""
    stats = getattr(program.step if program else None, "stats", None)
    return stats() if stats else FastStats()
