"""The choice of an engine for a federation."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from textwrap import shorten
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from genfl.algorithms.base import Algorithm, run_once
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.fast import keeping_memory
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.pool import WorkerPool, cores, refusal
from genfl.engines.protocol import (
    BatchedDataView,
    ClientResults,
    ClientTask,
    Engine,
    ReducerFactory,
    ResultTemplates,
    Runner,
)
from genfl.engines.reducers import PlainReducer
from genfl.engines.vmapped import LEAST, SHARES, VmapRunner
from genfl.errors import InputError, suggest
from genfl.learning.task import CPU, Task, Weights
from genfl.rng import Key
from genfl.threads import one_thread

Name = Literal["auto", "parallel", "sequential", "vectorized"]

EXACT = {"parallel", "sequential"}
"""Engines that give the same bits; those of `vectorized` agree with them to rounding."""

SHORT = 10_000_000
"""Floating point operations of a batch's forward pass up to which overhead takes most of a step's time."""

ALIKE = 0.9
"""Least share of all steps that clients of as many steps and of the same batch size take."""

ROUNDING = 2
"""The version of rounding. Raise it when clients in batches are computed or added up in another order."""

UNBATCHED = "There is a performance drop"
"""How torch's warning begins when vmap runs an operation once for each client."""


class EngineDecision(NamedTuple):
    """The decision whether clients run in batches, and its reason."""

    batched: bool
    why: str


def choose(task: Task, weights: Weights, data: ClientData, schedule: Schedule) -> EngineDecision:
    """Decide whether ``auto`` runs clients in batches (`vectorized`) or one by one: what is faster on a CPU.

    Batches pay where steps are short, every core gets a batch, and clients take the same steps: each number
    of clients still at work, and each batch size, needs a recording of its own. The rule looks at the
    federation and the number of cores, and measures nothing. So a result's bits do not depend on what else
    the machine does.

    Args:
        task: What is learned.
        weights: The initial global model.
        data: What the clients hold.
        schedule: Rounds, cohorts, local work.
    """
    if cores() > SHARES:
        return EngineDecision(False, f"there are more than {SHARES} cores, and no more parts of a cohort")
    if schedule.clients_per_round < (many := LEAST * max(2, cores())):
        return EngineDecision(False, f"fewer than {many} clients work in a round")
    share, client = _alike(data, schedule)
    if share < ALIKE:
        return EngineDecision(
            False, "clients differ in the number of their steps or in the size of their batches"
        )
    batch = data.batch(client, torch.arange(min(schedule.batch_size, data.samples(client))))
    with FlopCounterMode(display=False) as counter:
        task.predict(weights, batch["x"])
    operations = f"a batch's forward pass takes {counter.get_total_flops() / 1e6:.1f} million operations"
    if counter.get_total_flops() > SHORT:
        return EngineDecision(False, operations)
    return EngineDecision(True, f"they take the same steps, and {operations}")


def _alike(data: ClientData, schedule: Schedule) -> tuple[float, int]:
    """Return the largest share of all steps that clients take together, and one of these clients."""
    sizes = np.diff(data.ends, prepend=0)
    widths = np.minimum(sizes, schedule.batch_size)
    if schedule.local_steps is None:
        steps = schedule.local_epochs * (sizes // widths)
    else:
        steps = np.full_like(sizes, schedule.local_steps)
    pairs = widths * (steps.max() + 1) + steps  # each a number
    _, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    taken = counts * steps[first]
    return float(taken.max() / steps.sum()), int(first[taken.argmax()])


def obstacle(
    algorithm: Algorithm, weights: Weights, data: ClientData, schedule: Schedule, *, fast: bool = True
) -> str | None:
    """Return why an algorithm's clients cannot run in batches; None if two took a step together.

    Args:
        algorithm: What clients and server compute.
        weights: The initial global model.
        data: What the clients hold.
        schedule: Rounds, cohorts, local work.
        fast: Whether the fast path may be used.
    """
    if not algorithm.same_form:
        return "clients' models differ in form"
    try:
        stepped = together(algorithm, weights, data, schedule, fast=fast)
    except Exception as error:  # whatever it is, clients can run one by one
        return shorten(str(error), 100) or type(error).__name__
    return next((why for results in stepped for why in results.refused.values()), None)


def together(
    algorithm: Algorithm,
    weights: Weights,
    data: ClientData,
    schedule: Schedule,
    clients: Sequence[int] = (0, 1),
    *,
    fast: bool = True,
) -> list[ClientResults]:
    """Return the results of some clients that take one step together.

    Args:
        algorithm: What clients and server compute.
        weights: The initial global model.
        data: What the clients hold.
        schedule: Rounds, cohorts, local work.
        clients: Their numbers.
        fast: Whether the fast path may be used.

    Raises:
        Exception: They cannot: whatever the batching of an operation raises.
    """
    with one_thread(), warnings.catch_warnings():
        warnings.filterwarnings("error", message=UNBATCHED)
        sums = run_once(algorithm.census, {}, {}, data.client_info(0))[0]
        message = algorithm.send(algorithm.init(weights, sums, Key(0)))
        tasks = [
            ClientTask(
                client,
                algorithm.address(message, client),
                algorithm.memory(weights),
                schedule.batches(Key(0))._replace(steps=1),
                Key(0),
            )
            for client in clients
        ]
        runner = VmapRunner(data, accelerated=fast)
        return list(runner(algorithm.client, tasks, ResultTemplates(algorithm.client, data)))


def check_engine(name: str) -> None:
    """Check that there is an engine of a name.

    Args:
        name: The name.

    Raises:
        InputError: There is no such engine.
    """
    if name not in get_args(Name):
        raise InputError(f"engine: there is no {name!r}; {suggest(str(name), list(get_args(Name)))}")


@contextlib.contextmanager
def engine(
    name: Name,
    data: BatchedDataView,
    cohort: int,
    device: torch.device = CPU,
    *,
    fast: bool = True,
    reducer: ReducerFactory = PlainReducer,
) -> Iterator[Engine]:
    """Open an engine for the length of a federation.

    Args:
        name: ``auto`` runs clients one by one. It uses worker processes, as ``parallel`` does, on Linux
            without an accelerator, where processes fork safely, if there are several cores and several
            clients in a round. Elsewhere it runs them in this process, with the same bits. `choose` says
            whether to batch clients instead.
        data: What the clients hold.
        cohort: Clients in a round.
        device: Where they compute.
        fast: Whether the fast path may be used (see `genfl.engines.fast`); ``sequential`` never replays.
        reducer: Makes what adds up the uploads of a round.

    Raises:
        InputError: There is no such engine.
    """
    check_engine(name)
    forks = sys.platform == "linux" and refusal() is None and cores() > 1 and cohort > 1
    with keeping_memory(fast):
        if name == "sequential":
            yield sequential(data, reducer)
            return
        runner: Runner
        if name == "vectorized":
            shares = SHARES if device == CPU else 1  # a GPU takes a whole cohort
            runner = VmapRunner(data, shares=shares, accelerated=fast)
            pooled = forks
        else:
            runner = PerClientRunner(data, accelerated=fast)
            pooled = name == "parallel" or forks
        if not pooled:
            yield InProcess(runner, reducer)
            return
        with contextlib.closing(WorkerPool(runner, reducer)) as pool:
            yield pool
