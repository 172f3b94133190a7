"""What federated methods are compared with: methods that are not federated, named beside them in a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.generators.classify import label_scores
from genfl.rng import Key
from genfl.simulation import Trace


class FederationPlan(NamedTuple):
    """What `genfl.simulation.federate` is to run.

    Attributes:
        clients: The private data.
        schedule: Rounds, cohorts, local work.
        key: Where its randomness comes from.
    """

    clients: ClientData
    schedule: Schedule
    key: Key


def local(clients: ClientData, schedule: Schedule, key: Key) -> list[FederationPlan]:
    """Every client alone, as a federation of one: nobody shares anything.

    Every client trains in every round, which is more work than a federation's clients do, of whom only a
    cohort trains in a round. As there, the momentum starts at zero in every round.
    """
    alone = replace(schedule, clients_per_round=1)
    return [FederationPlan(clients.as_one([k]), alone, key.fold("alone", k)) for k in range(len(clients))]


def centralised(clients: ClientData, schedule: Schedule, key: Key) -> list[FederationPlan]:
    """All clients' data in one place, as a federation of one: what federated learning is there to avoid.

    A round has as many steps as the clients of a cohort take together, on average over the cohorts where
    clients count in epochs.
    """
    plan = schedule.batches(key)
    steps = [plan.length(clients.part_sizes(client)) for client in range(len(clients))]
    work = round(schedule.clients_per_round * fmean(steps))
    one = replace(schedule, clients_per_round=1, local_steps=work)
    return [FederationPlan(clients.as_one(range(len(clients))), one, key)]


LOCAL, CENTRALISED = "local", "centralised"
GENERATOR = "generator"
"""The reference that trains nothing: the generator as a classifier."""

TRAINED: dict[str, Callable[[ClientData, Schedule, Key], list[FederationPlan]]] = {
    LOCAL: local,
    CENTRALISED: centralised,
}
"""The references that train: the federations of one they consist of, given the clients and the schedule."""

REFERENCES: dict[str, Callable[..., Any]] = {**TRAINED, GENERATOR: label_scores}
"""What a config can name beside the federated algorithms. Parameters with defaults are its options."""


def mean(traces: Sequence[Trace]) -> dict[str, Any]:
    """Return the evaluations and rounds of a reference, given those of its federations of one.

    Scores are means over the federations, and None where one of them is. Nothing goes over a network, so
    there are no bytes. Of what was refused, the sums remain: updates that were not finite.
    """
    evaluated = zip(*(trace.evaluations for trace in traces), strict=True)
    worked = zip(*(trace.rounds for trace in traces), strict=True)
    return {
        "evaluations": [
            {
                "round": rows[0]["round"],
                **{name: _mean([row[name] for row in rows]) for name in rows[0] if name != "round"},
            }
            for rows in evaluated
        ],
        "rounds": [
            {
                "round": rows[0]["round"],
                "uplink_bytes": 0,
                "downlink_bytes": 0,
                "refused": sum(row["refused"] for row in rows),
                "diversity": None,
            }
            for rows in worked
        ],
    }


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of figures, or of lists of figures one by one."""
    if isinstance(values[0], list):
        return [_mean(column) for column in zip(*values, strict=True)]
    finite = [value for value in values if value is not None]
    return fmean(finite) if len(finite) == len(values) else None
