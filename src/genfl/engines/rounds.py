"""The loop over rounds, the same for every algorithm and engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from genfl import trees
from genfl.algorithms.base import Algorithm, Client, run_once
from genfl.data.clients import ClientData
from genfl.data.plans import Batches, Keep, Order
from genfl.engines.base import Engine, Work, one_thread
from genfl.engines.device import on_device
from genfl.engines.memory import Memories
from genfl.errors import GenflError
from genfl.learning.task import CPU, Weights
from genfl.rng import Key
from genfl.storage import load_checkpoint, save_tensors
from genfl.trees import Tree

log = logging.getLogger(__name__)

CHUNK = 10_000
"""Clients whose facts are in memory at a time."""


@dataclass(frozen=True)
class Schedule:
    """Who works when, and how much.

    Attributes:
        rounds: Number of rounds.
        clients_per_round: Size of the cohort, drawn uniformly without replacement.
        batch_size: Samples in a step's batch; a client with fewer uses all it has.
        local_steps: Steps a client takes in a round; None to count in epochs.
        local_epochs: Passes over the client's data in a round, where `local_steps` is None.
        evaluate_every: Evaluate after every so many rounds, besides round 0 and the last.
        checkpoint_every: Keep the state on disk after every so many rounds.
        order: How private and generated samples take turns in a client's round.
        keep: Which generated samples clients train on; None for all.
        keep_from: The first round in which `keep` counts.
    """

    rounds: int
    clients_per_round: int
    batch_size: int
    local_steps: int | None = None
    local_epochs: int = 1
    evaluate_every: int = 1
    checkpoint_every: int = 1
    order: Order = "mixed"
    keep: Keep | None = None
    keep_from: int = 1

    def batches(self, key: Key, number: int) -> Batches:
        """Returns how a client's batches are drawn in a round."""
        keep = self.keep if number >= self.keep_from else None
        return Batches(self.batch_size, self.local_steps, self.local_epochs, key, self.order, keep)


class Measure(NamedTuple):
    """Something measured on the cohort, at no cost to the federation being simulated.

    Attributes:
        wrap: Adds the measure's upload, under the measure's name, to a client program.
        value: Turns the aggregate of that upload into a number, or None where it has none.
    """

    wrap: Callable[[Client], Client]
    value: Callable[[Tree], float | None]


class Trace(NamedTuple):
    """What happened in a federation.

    Attributes:
        weights: The final global model.
        evaluations: One dict an evaluation: ``round``, and what the evaluation gave.
        rounds: One dict a round: ``round``, ``uplink_bytes`` and ``downlink_bytes`` of the whole cohort,
            ``refused`` (how many uploads were not counted), and each measure's value (None where no upload
            counted).
    """

    weights: Weights
    evaluations: list[dict[str, Any]]
    rounds: list[dict[str, Any]]


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
    checkpoint_key: str = "",
    measures: dict[str, Measure] | None = None,
    device: torch.device = CPU,
    on_round: Callable[[int], None] = lambda rounds: None,
) -> Trace:
    """Runs a federation, or goes on with one that was interrupted.

    Args:
        algorithm: What clients and server compute.
        weights: The initial global model.
        clients: The private data.
        engine: What executes the clients' work.
        schedule: Rounds, cohorts, local work.
        key: Where all randomness comes from: cohorts, batches, dropout.
        evaluate: Scores a global model.
        checkpoint: The file to resume from and to keep the state in; None keeps nothing. An interrupted run
            ends bit-identical to an uninterrupted one.
        checkpoint_key: What the federation depends on: a checkpoint with another key is not gone on with.
        measures: What to measure each round, by name.
        device: Where clients compute; the server computes on the CPU.
        on_round: Told how many rounds were just finished.
    """
    measures = measures or {}
    program = algorithm.client
    for measure in measures.values():
        program = measure.wrap(program)
    program = on_device(program, device)

    before, memories = _resume(checkpoint, checkpoint_key, algorithm.memory(weights), schedule.rounds)
    if before:
        tree, meta = before
        state, evaluations, rounds = tree["state"], meta["evaluations"], meta["rounds"]
        if len(rounds) < schedule.rounds:
            log.info("going on after round %d", len(rounds))
        on_round(len(rounds))
    else:
        with one_thread():
            state = algorithm.init(weights, census(algorithm.census, clients), key.fold("init"))
        rounds = []
        evaluations = [{"round": 0, **evaluate(state["weights"])}]

    for number in range(len(rounds) + 1, schedule.rounds + 1):
        message = algorithm.send(state)
        plans, streams = key.fold("plan", number), key.fold("client", number)
        work = [
            Work(
                client,
                algorithm.address(message, client),
                memories[client],
                schedule.batches(plans.fold(client), number),
                streams.fold(client),
            )
            for client in cohort(len(clients), schedule.clients_per_round, key.fold("cohort", number))
        ]
        outcome = engine(program, work)
        for client, why in outcome.refused.items():
            log.warning("round %d: the upload of client %d was refused: %s", number, client, why)
        if outcome.aggregate is not None:
            memories.update(outcome.memories)
            aggregate = {name: outcome.aggregate[name] for name in algorithm.client.reductions}
            with one_thread():
                state = algorithm.server(state, aggregate, key.fold("server", number))
        rounds.append(
            {
                "round": number,
                "uplink_bytes": sum(outcome.uplink_bytes[name] for name in algorithm.client.reductions),
                "downlink_bytes": _bytes_of(job.message for job in work),
                "refused": len(outcome.refused),
                **{
                    name: measure.value(outcome.aggregate[name]) if outcome.aggregate is not None else None
                    for name, measure in measures.items()
                },
            }
        )
        last = number == schedule.rounds
        if last or number % schedule.evaluate_every == 0:
            evaluations.append({"round": number, **evaluate(state["weights"])})
        if checkpoint and (last or number % schedule.checkpoint_every == 0):
            history = {"evaluations": evaluations, "rounds": rounds}
            meta = {"key": checkpoint_key, "memories": memories.flush(), **history}
            save_tensors(checkpoint, {"state": state}, meta)
            memories.clean()
        on_round(1)
    return Trace(state["weights"], evaluations, rounds)


def _resume(
    checkpoint: Path | None, key: str, initial: Tree, rounds: int
) -> tuple[tuple[Tree, dict[str, Any]] | None, Memories]:
    """Returns where an interrupted federation stood, if anywhere, and what its clients remember."""
    folder = checkpoint.with_suffix(".memories") if checkpoint else None
    before = load_checkpoint(checkpoint, key)
    if before and len(before[1]["rounds"]) >= rounds:
        return before, Memories(None, initial)  # nobody will ask
    if before and "memories" in before[1]:  # an earlier version had them among the tensors
        try:
            return before, Memories(folder, initial, before[1]["memories"])
        except GenflError as error:
            log.warning("%s; starting over", error)
    return None, Memories(folder, initial)


def _bytes_of(messages: Iterable[Tree]) -> int:
    """Returns the bytes of all messages; most clients are sent one and the same."""
    sizes: dict[int, int] = {}
    total = 0
    for message in messages:
        if id(message) not in sizes:
            sizes[id(message)] = trees.num_bytes(message)
        total += sizes[id(message)]
    return total


def cohort(clients: int, size: int, key: Key) -> Sequence[int]:
    """Draws a round's clients uniformly without replacement, in ascending order."""
    chosen = key.numpy().choice(clients, size, replace=False)
    return sorted(int(client) for client in chosen)


def census(program: Client, clients: ClientData) -> Tree:
    """Sums a program without batches over all clients, vectorised over the table of their facts."""

    def contribute(facts: Tree) -> Tree:
        return run_once(program, {}, {}, facts)[0]

    sums = [
        trees.map(lambda values: values.sum(0), torch.vmap(contribute)(clients.table(first, first + CHUNK)))
        for first in range(0, len(clients), CHUNK)
    ]
    return trees.add(*sums)
