"""References: methods that are not federated, to compare federated methods with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Le

from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.rng import Key
from genfl.simulation import Trace


class FederationPlan(NamedTuple):
    """The arguments of a federation; see `genfl.simulation.federate`.

    Attributes:
        clients: The private data.
        schedule: Rounds, cohorts, local work.
        key: The random stream.
    """

    clients: ClientData
    schedule: Schedule
    key: Key


def local(clients: ClientData, schedule: Schedule, key: Key) -> list[FederationPlan]:
    """Return the plans of local training: one federation per client, so that nothing is shared.

    Every client trains in every round. That is more work than in a federation, where only a cohort trains in
    a round. The momentum starts at zero in every round, as in a federation.
    """
    alone = replace(schedule, clients_per_round=1)
    return [FederationPlan(clients.as_one([k]), alone, key.fold("alone", k)) for k in range(len(clients))]


def centralised(clients: ClientData, schedule: Schedule, key: Key) -> list[FederationPlan]:
    """Return the plan of centralised training: a federation of one client that holds all data.

    A round has as many steps as all clients of a cohort together. If the schedule counts epochs, it is the
    average over clients.
    """
    plan = schedule.batches(key)
    steps = [plan.length(clients.part_sizes(client)) for client in range(len(clients))]
    work = round(schedule.clients_per_round * fmean(steps))
    one = replace(schedule, clients_per_round=1, local_steps=work)
    return [FederationPlan(clients.as_one(range(len(clients))), one, key)]


LOCAL, CENTRALISED = "local", "centralised"
GENERATOR = "generator"
"""The reference without training: the generator as a classifier."""

TRAINED: dict[str, Callable[[ClientData, Schedule, Key], list[FederationPlan]]] = {
    LOCAL: local,
    CENTRALISED: centralised,
}
"""The references that train: functions from clients and schedule to federations of a single client."""


class GeneratorClassifier(NamedTuple):
    """The options of the generator as a classifier; see `genfl.generators`.

    Attributes:
        samples: Images: the number of pairs of a timestep and noise.
        shots: Texts: the number of labelled examples in a query.
        normalize: Texts, models that run here: whether a log-likelihood is divided by its number of tokens.
        votes: Texts, servers: the number of answers that vote.
        query: Texts: the name of a preset, or a query with blanks.
    """

    samples: int
    shots: int
    normalize: bool
    votes: int
    query: str


def generator_classifier(
    *,
    samples: Annotated[int, Ge(1), Le(1000)] = 16,
    shots: Annotated[int, Ge(0), Le(1000)] = 0,
    normalize: bool = False,
    votes: Annotated[int, Ge(1), Le(1000)] = 1,
    query: str = "classify",
) -> GeneratorClassifier:
    """Return the options of the generator as a classifier."""
    return GeneratorClassifier(samples, shots, normalize, votes, query)


REFERENCES: dict[str, Callable[..., Any]] = {**TRAINED, GENERATOR: generator_classifier}
"""The references that a config can name. Their parameters with defaults are their options."""


def mean(traces: Sequence[Trace]) -> dict[str, Any]:
    """Return the evaluations and rounds of a reference, as means over its federations.

    A mean is None if one of its values is None. Nothing goes over a network, so the bytes are 0. The numbers
    of rejected uploads are added up.
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
