"""Which engine runs a federation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Literal

import torch

from genfl.engines.allocator import keeping_memory
from genfl.engines.base import Engine, ManyData
from genfl.engines.parallel import Parallel, cores, refusal
from genfl.engines.replay import Replaying
from genfl.engines.sequential import Sequential
from genfl.engines.vectorised import SHARES, Together, Vectorised

Name = Literal["auto", "parallel", "sequential", "vectorised"]

EXACT = {"auto", "parallel", "sequential"}
"""Engines that give the same bits; those of `vectorised` agree with them to rounding."""


@contextlib.contextmanager
def engine(name: Name, data: ManyData, cohort: int) -> Iterator[Engine]:
    """Opens an engine for the length of a federation.

    Args:
        name: ``auto`` is ``parallel`` where there are several cores, several clients in a round, and Linux
            without an accelerator, whose processes fork safely; ``sequential`` elsewhere. Both give the same
            bits, so that a result depends on no machine's load. ``vectorised`` must be asked for.
        data: What the clients hold.
        cohort: Clients in a round.
    """
    forks = sys.platform == "linux" and refusal() is None and cores() > 1 and cohort > 1
    with keeping_memory():
        if name == "vectorised":
            alone = torch.accelerator.is_available()  # an accelerator has room for a whole cohort
            together = Together(data, shares=1 if alone else SHARES)
            if forks:
                with contextlib.closing(Parallel(data, together=together)) as parallel:
                    yield parallel
            else:
                yield Vectorised(together)
        elif name == "parallel" or (name == "auto" and forks):
            with contextlib.closing(Parallel(data)) as parallel:
                yield Replaying(parallel)
        else:
            yield Sequential(data) if name == "sequential" else Replaying(Sequential(data))
