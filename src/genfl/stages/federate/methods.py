"""The algorithm and the schedule of a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genfl.algorithms import ALGORITHMS, Algorithm, combine
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.filtering import SampleFilter, filtered
from genfl.config import Method
from genfl.config.training import Federation
from genfl.data.budget import ORDERS
from genfl.data.plans import Schedule
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task


def build_algorithm(
    federation: Federation,
    method: Method,
    task: Task,
    resources: Mapping[str, Any],
    local: LocalSGD | None = None,
) -> Algorithm:
    """Return the algorithm of a method. For a reference, it trains a single client.

    Args:
        federation: The section of the config.
        method: The method.
        task: The learning task.
        resources: The resources of builders; see `genfl.algorithms.registry.RESOURCES`.
        local: Local training, before the methods' hooks; if None, that of the federation.
    """
    local = local or local_training(federation)
    if method.reference:
        return fedavg(task, local)  # with a single client, FedAvg is its local training
    parts = [(ALGORITHMS[part.name], part.options()) for part in method.algorithm]
    combined = combine(task, local, parts, resources)
    choice = method.content.filter if method.content else None
    if choice is None:
        return combined
    keep = SampleFilter(choice.share, choice.by_class)
    part = 0 if method.data == "generated" else 1
    return filtered(combined, task, keep, part=part, from_round=choice.from_round)


def federation_resources(federation: Federation, client_tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Return the resources of builders that a config decides.

    Args:
        federation: The section of the config.
        client_tasks: The learning tasks of the clients' models, by name.
    """
    return {
        "cohort": federation.clients_per_round,
        "rounds": federation.rounds,
        "client_tasks": client_tasks or None,
    }


def local_training(federation: Federation) -> LocalSGD:
    """Return the local training of a federation, before the methods' hooks."""
    training = federation.local
    return LocalSGD(training.lr, training.momentum, training.weight_decay, lr_decay=training.lr_decay)


def schedule(federation: Federation, method: Method) -> Schedule:
    """Return a method's schedule. Only the order of private and generated samples depends on the method."""
    return Schedule(
        rounds=federation.rounds,
        clients_per_round=federation.clients_per_round,
        batch_size=federation.local.batch_size,
        local_steps=federation.local.steps,
        local_epochs=federation.local.epochs,
        evaluate_every=federation.evaluate_every,
        checkpoint_every=federation.checkpoint_every,
        order=ORDERS.get(method.data),
    )
