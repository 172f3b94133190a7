"""Which engine runs a federation."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from textwrap import shorten
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from genfl.algorithms.base import Algorithm, run_once
from genfl.data.clients import ClientData
from genfl.engines.allocator import keeping_memory
from genfl.engines.base import Engine, Forms, ManyData, Work, one_thread
from genfl.engines.parallel import Parallel, cores, refusal
from genfl.engines.replay import Replaying
from genfl.engines.rounds import Schedule
from genfl.engines.sequential import Sequential
from genfl.engines.vectorised import LEAST, SHARES, Together, Vectorised
from genfl.learning.task import Task, Weights
from genfl.rng import Key

Name = Literal["auto", "parallel", "sequential", "vectorised"]

EXACT = {"parallel", "sequential"}
"""Engines that give the same bits; those of `vectorised` agree with them to rounding."""

SHORT = 10_000_000
"""Floating point operations of a batch's forward pass up to which calling them takes longer than they do."""

MANY = 2 * LEAST
"""Clients in a round from which on there are batches of them."""

ALIKE = 0.9
"""Share of the clients that must take the same number of steps, with batches of the same size."""

UNBATCHED = "There is a performance drop"
"""How torch's warning begins when vmap runs an operation once for each client."""


class Choice(NamedTuple):
    """Whether clients run in batches, and why."""

    batched: bool
    why: str


def choose(
    algorithm: Algorithm, task: Task, weights: Weights, data: ClientData, schedule: Schedule
) -> Choice:
    """Decides what ``auto`` is: clients in batches (`vectorised`) where that is faster, else one by one.

    Batches pay where steps are short, many clients work in a round, and these go through the same steps: each
    number of clients still at work, and each batch size, is a program of its own to record. This is a rule
    about the federation and no measurement, so that a result's bits do not depend on a machine's load.

    Args:
        algorithm: What clients and server compute; if it fails on two clients at once, it is not batched.
        task: What is learned.
        weights: The initial global model.
        data: What the clients hold.
        schedule: Rounds, cohorts, local work.
    """
    if torch.accelerator.is_available():
        return Choice(False, "what pays beside an accelerator has not been measured")
    if schedule.clients_per_round < MANY:
        return Choice(False, f"fewer than {MANY} clients work in a round")
    if _alike(data, schedule) < ALIKE:
        return Choice(False, "clients differ in the number of their steps or in the size of their batches")
    operations = _operations(task, weights, data, schedule)
    if operations > SHORT:
        return Choice(False, f"a batch's forward pass takes {operations / 1e6:.0f} million operations")
    if problem := _problem(algorithm, weights, data, schedule):
        return Choice(False, f"they cannot be batched ({problem})")
    return Choice(True, f"a batch's forward pass takes no more than {SHORT / 1e6:.0f} million operations")


def _alike(data: ClientData, schedule: Schedule) -> float:
    """Returns the share of clients that go through the most common number of steps and batch size."""
    if schedule.keep or (schedule.order != "mixed" and data.generated()):
        return 0.0  # private and generated samples have steps of their own
    sizes = np.diff(data.ends, prepend=0)
    widths = np.minimum(sizes, schedule.batch_size)
    if schedule.local_steps is None:
        steps = schedule.local_epochs * (sizes // widths)
    else:
        steps = np.full_like(sizes, schedule.local_steps)
    _, counts = np.unique(widths * (steps.max() + 1) + steps, return_counts=True)  # each pair a number
    return float(counts.max() / len(sizes))


def _operations(task: Task, weights: Weights, data: ClientData, schedule: Schedule) -> int:
    """Returns the floating point operations of matrix products and convolutions in a batch's forward pass."""
    batch = data.batch(0, torch.arange(min(schedule.batch_size, data.samples(0))))
    with FlopCounterMode(display=False) as counter:
        task.predict(weights, batch["x"])
    return int(counter.get_total_flops())


def _problem(algorithm: Algorithm, weights: Weights, data: ClientData, schedule: Schedule) -> str | None:
    """Says why two clients cannot take a step at once; None if they can."""
    facts = run_once(algorithm.census, {}, {}, data.facts(0))[0]
    try:
        with one_thread(), warnings.catch_warnings():
            warnings.filterwarnings("error", message=UNBATCHED)
            message = algorithm.send(algorithm.init(weights, facts, Key(0)))
            work = [
                Work(
                    client,
                    algorithm.address(message, client),
                    algorithm.memory(weights),
                    schedule.batches(Key(0), 1)._replace(steps=1),
                    Key(0),
                )
                for client in (0, 1)
            ]
            list(Together(data)(algorithm.client, work, Forms(algorithm.client, data)))
    except Exception as error:  # whatever it is, one client after the other is what everything can do
        return shorten(str(error), 100)
    return None


@contextlib.contextmanager
def engine(name: Name, data: ManyData, cohort: int) -> Iterator[Engine]:
    """Opens an engine for the length of a federation.

    Args:
        name: ``auto`` is ``parallel`` where there are several cores, several clients in a round, and Linux
            without an accelerator, whose processes fork safely; ``sequential`` elsewhere. Both give the same
            bits, so that a result depends on no machine. Whether to batch clients instead, `choose` says.
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
