"""The loop over rounds, the same for every algorithm and engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from genfl import trees
from genfl.algorithms.base import Algorithm, ClientProgram, run_once
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.data.plans import cohort as cohort
from genfl.engines.client_state import ClientStateStore
from genfl.engines.device import on_device
from genfl.engines.protocol import ClientTask, Engine
from genfl.errors import GenflError, InputError
from genfl.journal import tell
from genfl.learning.task import CPU, Weights
from genfl.rng import Key
from genfl.storage import load_checkpoint, save_tensors
from genfl.threads import one_thread
from genfl.trees import Tree

log = logging.getLogger(__name__)

CENSUS_CHUNK = 10_000
"""Clients whose client info is in memory at a time."""


class Measure(NamedTuple):
    """A measurement on a round's cohort, which changes nothing in the simulated federation.

    Its upload does not count as sent bytes. See `genfl.analysis` for measures.

    Attributes:
        wrap: Adds the measure's upload, under the measure's name, to a client program.
        value: Turns the aggregate of that upload into a number, or None if it has none.
    """

    wrap: Callable[[ClientProgram], ClientProgram]
    value: Callable[[Tree], float | None]


class Trace(NamedTuple):
    """The result and the history of a federation.

    Attributes:
        weights: The final global model.
        evaluations: One dict an evaluation, the first of round 0: ``round``, and what `evaluate` returned.
        rounds: One dict a round: ``round``, from 1; ``uplink_bytes`` and ``downlink_bytes`` of the whole
            cohort; ``refused``, how many uploads were not counted; ``clients``, the size of a Poisson cohort;
            each measure's value, None if no upload counted; and what the algorithm observes.
    """

    weights: Weights
    evaluations: list[dict[str, Any]]
    rounds: list[dict[str, Any]]

    def __repr__(self) -> str:
        return f"Trace({len(self.rounds)} rounds, {len(self.evaluations)} evaluations)"


def federate(
    algorithm: Algorithm,
    weights: Weights,
    clients: ClientData,
    engine: Engine,
    schedule: Schedule,
    key: Key,
    evaluate: Callable[[Weights], Mapping[str, object]],
    *,
    checkpoint: Path | None = None,
    checkpoint_digest: str = "",
    measures: dict[str, Measure] | None = None,
    device: torch.device = CPU,
    on_round: Callable[[int], None] = lambda rounds: None,
    on_history: Callable[[list[dict[str, Any]], list[dict[str, Any]]], None] = lambda rows, evaluations: None,
    on_model: Callable[[int, Weights], None] = lambda number, weights: None,
    take_census: Callable[[ClientProgram], Tree] | None = None,
) -> Trace:
    """Run a federation, or resume one that was interrupted.

    Args:
        algorithm: What clients and server compute.
        weights: The initial global model.
        clients: The clients' data.
        engine: Runs the clients; see `genfl.engines.auto.engine` and `genfl.engines.in_process.sequential`.
        schedule: Rounds, cohorts, local work.
        key: Where all randomness comes from: cohorts, batches, dropout.
        evaluate: Scores a global model, as a dict of numbers.
        checkpoint: The file to resume from and to keep the state in; None keeps nothing. An interrupted run
            ends bit-identical to an uninterrupted one.
        checkpoint_digest: A digest of all that the federation depends on; a checkpoint with another digest is
            ignored.
        measures: The measures of each round, by name.
        device: Where clients compute; the server computes on the CPU.
        on_round: Called with the number of rounds just finished: 1 after each round, more when resuming.
        on_history: Called with all rounds and all evaluations so far, as in a `Trace`: before the first
            round, and after each one, before its checkpoint.
        on_model: Called after each round with its number and the global model, before its checkpoint.
        take_census: Returns the sums of a census over all clients; None computes them from `clients`.

    Returns:
        The final model, the evaluations and a row for each round.

    Raises:
        InputError: The checkpoint holds more rounds.
    """
    measures = measures or {}
    program = algorithm.client
    for measure in measures.values():
        program = measure.wrap(program)
    program = on_device(program, device)

    before, memories = _resume(checkpoint, checkpoint_digest, algorithm.memory(weights), schedule.rounds)
    if before:
        tree, meta = before
        state, rounds = tree["state"], meta["rounds"]
        evaluations = [  # the last round of a shorter federation is none of this one's
            row
            for row in meta["evaluations"]
            if row["round"] % schedule.evaluate_every == 0 or row["round"] == schedule.rounds
        ]
        if len(rounds) < schedule.rounds:
            log.info("resuming after round %d", len(rounds))
        on_round(len(rounds))
    else:
        with one_thread():
            sums = take_census(algorithm.census) if take_census else census(algorithm.census, clients)
            state = algorithm.init(weights, sums, key.fold("init"))
        rounds = []
        evaluations = [{"round": 0, **evaluate(state["weights"])}]

    on_history(rounds, evaluations)
    for number in range(len(rounds) + 1, schedule.rounds + 1):
        begin = time.monotonic()
        message = algorithm.send(state)
        plans, streams = key.fold("plan", number), key.fold("client", number)
        client_tasks = [
            ClientTask(
                client,
                algorithm.address(message, client),
                memories[client],
                schedule.batches(plans.fold(client)),
                streams.fold(client),
                number,
            )
            for client in schedule.cohort(len(clients), key, number)
        ]
        result = engine.run(program, client_tasks)
        for client, why in result.refused.items():
            log.warning("round %d: the upload of client %d was refused: %s", number, client, why)
        figures: dict[str, float | None] = {}
        if result.aggregate is not None or algorithm.steps_alone:
            memories.update(result.memories)
            sums = result.aggregate
            if sums is None:
                sums = _no_uploads(algorithm, weights, message, clients)
            aggregate = {name: sums[name] for name in algorithm.client.reductions}
            with one_thread():
                stream = key.fold("server", number)
                figures = algorithm.observe(state, aggregate, stream)
                state = algorithm.server(state, aggregate, stream)
        rounds.append(
            {
                "round": number,
                "uplink_bytes": sum(result.uplink_bytes[name] for name in algorithm.client.reductions),
                "downlink_bytes": _bytes_of(client_task.message for client_task in client_tasks),
                "refused": len(result.refused),
                **({"clients": len(client_tasks)} if schedule.cohorts == "poisson" else {}),
                "samples": result.samples
                if result.samples is not None
                else sum(
                    schedule.batches(plans).samples(clients.part_sizes(task.client)) for task in client_tasks
                ),
                **{
                    name: measure.value(result.aggregate[name]) if result.aggregate is not None else None
                    for name, measure in measures.items()
                },
                **figures,
            }
        )
        last = number == schedule.rounds
        if last or number % schedule.evaluate_every == 0:
            evaluations.append({"round": number, **evaluate(state["weights"])})
        tell("round_finished", round=number, seconds=time.monotonic() - begin)
        on_history(rounds, evaluations)
        on_model(number, state["weights"])
        if checkpoint and (last or number % schedule.checkpoint_every == 0):
            history = {"evaluations": evaluations, "rounds": rounds}
            meta = {"digest": checkpoint_digest, "memories": memories.flush(), **history}
            save_tensors(checkpoint, {"state": state}, meta)
            memories.clean()
            tell("checkpoint_written", round=number)
        on_round(1)
    return Trace(state["weights"], evaluations, rounds)


def _resume(
    checkpoint: Path | None, key: str, initial: Tree, rounds: int
) -> tuple[tuple[Tree, dict[str, Any]] | None, ClientStateStore]:
    """Return the checkpoint of an interrupted federation, if there is one, and its clients' memories."""
    folder = checkpoint.with_suffix(".memories") if checkpoint else None
    before = load_checkpoint(checkpoint, key)
    if before and len(before[1]["rounds"]) > rounds:
        raise InputError(
            f"checkpoint: {checkpoint} holds {len(before[1]['rounds'])} rounds, and {rounds} are asked for;"
            " ask for as many or more, or name another file"
        )
    if before and len(before[1]["rounds"]) == rounds:
        return before, ClientStateStore(None, initial)  # no client will need its memory
    if before and "memories" in before[1]:  # earlier versions stored them among the tensors
        try:
            return before, ClientStateStore(folder, initial, before[1]["memories"])
        except GenflError as error:
            log.warning("%s; starting over", error)
    return None, ClientStateStore(folder, initial)


def _no_uploads(algorithm: Algorithm, weights: Weights, message: Tree, clients: ClientData) -> Tree:
    """Return the aggregate of a round in which no upload counts: zeros."""
    sent, memory = algorithm.address(message, 0), algorithm.memory(weights)
    upload, _ = run_once(algorithm.client, sent, memory, clients.client_info(0))
    return trees.zeros_like(upload)


def _bytes_of(messages: Iterable[Tree]) -> int:
    """Return the bytes of all messages; most clients are sent the same message object."""
    sizes: dict[int, int] = {}
    total = 0
    for message in messages:
        if id(message) not in sizes:
            sizes[id(message)] = trees.num_bytes(message)
        total += sizes[id(message)]
    return total


def census(program: ClientProgram, clients: ClientData) -> Tree:
    """Return the sums of a program without batches over all clients, vectorized over their client info."""

    def contribute(client_info: Tree) -> Tree:
        return run_once(program, {}, {}, client_info)[0]

    sums = [
        trees.map(
            lambda values: values.sum(0), torch.vmap(contribute)(clients.table(first, first + CENSUS_CHUNK))
        )
        for first in range(0, len(clients), CENSUS_CHUNK)
    ]
    return trees.add(*sums)
