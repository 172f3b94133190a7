"""The costs of a method, and what the server sees of its clients. All of it is measured on the algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from genfl import trees
from genfl.algorithms.base import Algorithm, run_once
from genfl.algorithms.registry import RESOURCES, AlgorithmEntry, combine
from genfl.learning.local import LocalSGD
from genfl.learning.task import MissingPart, Task, classification
from genfl.models import CNN, MLP
from genfl.rng import Key

SHARED = 1000
"""Shared inputs in the reference setting, which is the CNN for 8×8 digits of ten classes."""

_SHAPE, _CLASSES = (1, 8, 8), 10


class Profile(NamedTuple):
    """The costs of a method, as multiples of the model's size, and what the server sees.

    Attributes:
        sees: ``sum`` if the server sees only sums of uploads, else ``each``.
        secure_sum: Whether the uploads can go through secure aggregation.
        uplink: Bytes that a client sends per round, divided by the bytes of the model.
        downlink: Bytes that a client receives per round, divided by the bytes of the model.
        memory: Bytes that a client keeps between rounds, divided by the bytes of the model.
        needs: The method's requirements besides a model with logits, comma-separated.
    """

    sees: str
    secure_sum: bool
    uplink: float
    downlink: float
    memory: float
    needs: str


def profile(entry: AlgorithmEntry) -> Profile:
    """Return the profile of a method, measured on the reference setting."""
    task = _task()
    algorithm = _build(entry, task)
    client_info = {"samples": torch.ones(()), "label_counts": torch.ones(_CLASSES)}
    weights = task.init(Key(0))
    message = algorithm.address(algorithm.send(_state(algorithm, task)), 0)
    upload, memory = run_once(algorithm.client, message, algorithm.memory(weights), client_info)
    model = trees.num_bytes(weights)
    only_sums = set(algorithm.client.reductions.values()) == {"sum"}
    return Profile(
        sees="sum" if only_sums else "each",
        secure_sum=only_sums,
        uplink=round(trees.num_bytes(upload) / model, 2),
        downlink=round(trees.num_bytes(message) / model, 2),
        memory=round(trees.num_bytes(memory) / model, 2),
        needs=", ".join(needs(entry)),
    )


def needs(entry: AlgorithmEntry) -> list[str]:
    """Return the requirements of a method: resources of the user, and parts of the model.

    To find the parts, the method takes a step on tasks from which one part is removed.
    """
    task = _task()
    parts = {"features": _without_features, "linear head": _without_head}
    asked = [RESOURCES[name] for name in entry.required if RESOURCES[name]]
    for part, without in parts.items():
        reduced = without(task)
        try:
            take_a_step(_build(entry, reduced), reduced)
        except MissingPart:
            asked.append(part)
    return asked


def take_a_step(algorithm: Algorithm, task: Task, client: int = 0) -> None:
    """Run a client for one step on zeros, to check that the task has every part that the algorithm needs.

    Raises:
        MissingPart: The task lacks a part. The message names it.
    """
    form = task.shapes()
    batch = {"x": torch.zeros(2, *form.input), "y": torch.arange(2) % form.classes}
    client_info = {"samples": torch.ones(()), "label_counts": torch.ones(form.classes)}
    message = algorithm.address(algorithm.send(_state(algorithm, task)), client)
    carry = algorithm.client.start(message, algorithm.memory(task.init(Key(0))), client_info, Key(0))
    algorithm.client.finish(algorithm.client.step(carry, batch, Key(0)))


def sends_weights(algorithm: Algorithm, task: Task) -> bool:
    """Return whether clients get the global model itself, so that they can compute losses with it."""
    return "weights" in algorithm.address(algorithm.send(_state(algorithm, task)), 0)


def _state(algorithm: Algorithm, task: Task) -> trees.Tree:
    client_info = {"samples": torch.ones(()), "label_counts": torch.ones(task.shapes().classes)}
    return algorithm.init(task.init(Key(0)), run_once(algorithm.census, {}, {}, client_info)[0], Key(0))


def in_reference_setting(
    parts: Sequence[tuple[AlgorithmEntry, Mapping[str, Any]]], shared: int = SHARED
) -> Algorithm:
    """Return the algorithm that some methods make together, for the CNN of the reference setting.

    Args:
        parts: The methods and their options.
        shared: The number of shared inputs.
    """
    return combine(_task(), LocalSGD(lr=0.1), parts, _resources(shared))


def _build(entry: AlgorithmEntry, task: Task) -> Algorithm:
    return entry.build(task, LocalSGD(lr=0.1), _resources(SHARED))


def _resources(shared: int) -> dict[str, Any]:
    return {
        "cohort": 1,
        "rounds": 10**9,
        "shared": torch.zeros(shared, *_SHAPE),
        "unlabelled": torch.zeros(shared, *_SHAPE),
        "client_tasks": {"mlp": classification(lambda: MLP(_SHAPE, _CLASSES), _SHAPE)},
    }


@cache
def _task() -> Task:
    return classification(lambda: CNN(_SHAPE, _CLASSES), _SHAPE)


def _without_features(task: Task) -> Task:
    def loss(*args: Any) -> Any:
        value, aux = task.loss(*args)
        return value, aux._replace(features=None)

    return task._replace(loss=loss)


def _without_head(task: Task) -> Task:
    return Task(task.init, task.loss, task.forward, form=task.form)
