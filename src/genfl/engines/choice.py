"""Which engine runs a federation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Literal

from genfl.engines.allocator import keeping_memory
from genfl.engines.base import Engine, ManyData
from genfl.engines.parallel import Parallel, cores, refusal
from genfl.engines.replay import Replaying
from genfl.engines.sequential import Sequential
from genfl.engines.vectorised import Vectorised

Name = Literal["auto", "parallel", "sequential", "vectorised"]

EXACT = {"auto", "parallel", "sequential"}
"""Engines that give the same bits; those of `vectorised` agree with them to rounding."""


@contextlib.contextmanager
def engine(name: Name, data: ManyData, cohort: int) -> Iterator[Engine]:
    """Opens an engine for the length of a federation.

    Args:
        name: ``auto`` is ``parallel`` where there are several cores, several clients in a round, and Linux
            without an accelerator, whose processes fork safely; ``sequential`` elsewhere. Both give the same
            bits. ``vectorised`` must be asked for.
        data: What the clients hold.
        cohort: Clients in a round.
    """
    forks = sys.platform == "linux" and refusal() is None and cores() > 1 and cohort > 1
    with keeping_memory():
        if name == "vectorised":
            yield Vectorised(data)
        elif name == "parallel" or (name == "auto" and forks):
            with contextlib.closing(Parallel(data)) as parallel:
                yield Replaying(parallel)
        else:
            yield Sequential(data) if name == "sequential" else Replaying(Sequential(data))
