"""Which engine runs a federation."""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from genfl.algorithms.base import Client
from genfl.engines.allocator import keeping_memory
from genfl.engines.base import Engine, ManyData, Outcome, Work
from genfl.engines.parallel import Parallel, cores, refusal
from genfl.engines.replay import Replaying
from genfl.engines.sequential import Sequential
from genfl.engines.vectorised import Together, Vectorised
from genfl.storage import read_json, write_json

Name = Literal["auto", "parallel", "sequential", "vectorised"]

EXACT = {"parallel", "sequential"}
"""Engines that give the same bits; those of `vectorised` agree with them to rounding."""

FEWEST_ROUNDS = 100
"""Rounds from which on `auto` tries engines: a trial takes as long as some rounds."""

LEAST_SECONDS = 60.0
"""What a federation must take, by its first round, for `auto` to try engines."""

GAIN = 0.8
"""The share of the exact engine's time that one of other bits must not exceed."""

TRIALS = 4
"""Rounds of a trial; the first two fork workers and record steps, the others are timed."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def engine(
    name: Name,
    data: ManyData,
    cohort: int,
    *,
    rounds: int = 0,
    kept: Path | None = None,
    kept_key: str = "",
) -> Iterator[Engine]:
    """Opens an engine for the length of a federation.

    Args:
        name: Its name; ``auto`` is `Auto`. ``parallel`` needs a system that can fork, and no accelerator.
        data: What the clients hold.
        cohort: Clients in a round.
        rounds: How many rounds there are, as far as that is known.
        kept: The file in which ``auto`` keeps what it chose.
        kept_key: What the federation depends on: a choice kept with another key does not count.
    """
    with keeping_memory(), contextlib.ExitStack() as stack:
        if name == "auto":
            yield stack.enter_context(contextlib.closing(Auto(data, cohort, rounds, kept, kept_key)))
        elif name == "sequential":
            yield Sequential(data)  # the reference is not replayed
        else:
            yield _open(stack, name, data)


class Auto:
    """Runs a federation on the engine that is fastest for it.

    That is ``parallel`` where there are several cores, several clients in a round, and Linux without an
    accelerator, whose processes fork safely; ``sequential`` elsewhere. A long federation tries ``vectorised``
    as well, on the work of its first round, and takes it where it is clearly faster. Its bits are others, so
    that the choice is kept in a file, and followed when the federation is gone on with.

    Args:
        data: What the clients hold.
        cohort: Clients in a round.
        rounds: How many rounds there are.
        kept: The file with the choice; None keeps none.
        kept_key: What the federation depends on.
    """

    def __init__(
        self, data: ManyData, cohort: int, rounds: int = 0, kept: Path | None = None, kept_key: str = ""
    ) -> None:
        self.data = data
        self.rounds = rounds
        self.kept = kept
        self.kept_key = kept_key
        self.exact: Name = "parallel" if _forks() and cores() > 1 and cohort > 1 else "sequential"
        self.long = cohort > 1 and rounds >= FEWEST_ROUNDS
        self._stack = contextlib.ExitStack()
        self._engine: Engine | None = None

    def __call__(self, program: Client, work: Sequence[Work]) -> Outcome:
        """Runs the program for each client of the cohort; see `genfl.engines.base.Engine`."""
        if self._engine:
            return self._engine(program, work)
        before = self._kept()
        if before:
            self._engine = _open(self._stack, before, self.data)
            return self._engine(program, work)
        self._engine = _open(self._stack, self.exact, self.data)
        began = time.perf_counter()
        outcome = self._engine(program, work)
        spent = time.perf_counter() - began
        seconds: dict[str, float] = {self.exact: spent}
        chosen = self.exact
        if self.long and self.rounds * spent >= LEAST_SECONDS:
            self._engine = None
            self._stack.close()
            seconds[self.exact] = self._seconds(self.exact, program, work)
            most = GAIN * seconds[self.exact]
            try:
                seconds["vectorised"] = self._seconds("vectorised", program, work, most)
            except Exception as error:  # of a model that cannot be batched; the federation does without
                log.info("engine vectorised is not to be had: %s", str(error).strip().splitlines()[-1:])
            chosen = "vectorised" if seconds.get("vectorised", math.inf) <= most else self.exact
            told = ", ".join(f"{name} {spent:.3g}" for name, spent in seconds.items())
            log.info("engine %s; seconds a round: %s", chosen, told)
            self._engine = _open(self._stack, chosen, self.data)
            if chosen != self.exact:
                outcome = self._engine(program, work)
        if self.kept:
            self.kept.parent.mkdir(parents=True, exist_ok=True)
            facts = {"engine": chosen, "seconds_a_round": seconds, "cores": cores()}
            write_json(self.kept, {"key": self.kept_key, **facts})
        return outcome

    def close(self) -> None:
        """Ends the engine that was chosen."""
        self._stack.close()
        self._engine = None

    def _kept(self) -> Name | None:
        """Returns what was chosen before; of the engines of the same bits, that for this machine."""
        if self.kept is None or not self.kept.exists():
            return None
        known = read_json(self.kept)
        if known["key"] != self.kept_key:
            return None
        return self.exact if known["engine"] in EXACT else "vectorised"

    def _seconds(self, name: Name, program: Client, work: Sequence[Work], most: float = math.inf) -> float:
        """Returns how long a round takes; more than `most` need not be known better. Outcomes are lost."""
        spent: list[float] = []
        with contextlib.ExitStack() as stack:
            run = _open(stack, name, self.data, after=0)
            while len(spent) < TRIALS and not (len(spent) > 1 and spent[-1] > 2 * most):
                began = time.perf_counter()
                run(program, work)
                spent.append(time.perf_counter() - began)
        return statistics.median(spent[2:] or spent[-1:])


def _forks() -> bool:
    """Returns whether worker processes can be forked safely here."""
    return sys.platform == "linux" and refusal() is None


def _open(stack: contextlib.ExitStack, name: Name, data: ManyData, after: int | None = None) -> Engine:
    if name == "sequential":
        return Replaying(Sequential(data), after)
    if name == "vectorised" and not (_forks() and cores() > 1):
        return Vectorised(data, after=after)
    together = Together(data, after=after) if name == "vectorised" else None
    parallel = stack.enter_context(contextlib.closing(Parallel(data, together=together)))
    return parallel if together else Replaying(parallel, after)
