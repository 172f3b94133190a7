"""What clients tell of a probe: sums over their own examples, a class at a time."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from genfl.algorithms.base import ClientInfo, ClientProgram, ReductionKind
from genfl.data.clients import ClientData
from genfl.data.plans import Batches
from genfl.engines.device import on_device
from genfl.engines.protocol import ClientTask, Engine
from genfl.learning.task import CPU, Batch, Task, Weights
from genfl.rng import Key, Stream
from genfl.trees import Tree

DIRECTIONS = 16
"""The most directions of features that are added up. They are drawn at random, the same for all."""

CLASS_SUMS = ("samples", "correct", "features", "products")


class ClassSums(NamedTuple):
    """Sums over examples, for each class.

    Attributes:
        samples: The number of examples, [classes].
        correct: The number that a model classifies right, [classes].
        features: The sum of their features along `DIRECTIONS`, [classes, d].
        products: The sum of the products of these, [classes, d, d].
    """

    samples: NDArray[np.int64]
    correct: NDArray[np.int64]
    features: NDArray[np.float64]
    products: NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        """The share of all examples that are classified right, in [0, 1]."""
        return int(self.correct.sum()) / max(int(self.samples.sum()), 1)

    @property
    def recall(self) -> list[float | None]:
        """The share of each class that is classified right; None for a class without examples."""
        pairs = zip(self.correct.tolist(), self.samples.tolist(), strict=True)
        return [right / count if count else None for right, count in pairs]


def directions(features: int) -> Tensor:
    """Return random orthogonal directions of features, [features, d].

    Args:
        features: The number of features of a model.
    """
    drawn = torch.randn(features, min(features, DIRECTIONS), generator=Key(0).fold("directions").torch())
    orthogonal: Tensor = torch.linalg.qr(drawn.double()).Q
    return orthogonal


def class_sums(task: Task) -> ClientProgram:
    """Return the program of a client that adds up what a model says of its examples, by class.

    Nothing but sums is uploaded, so a secure sum can carry all of it.

    Args:
        task: The classification task.
    """
    form = task.shapes()
    along = directions(form.features)
    classes, d = form.classes, along.shape[1]

    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        counts = dict.fromkeys(("samples", "correct"), torch.zeros(classes, dtype=torch.int64))
        moments = {
            "features": torch.zeros(classes, d, dtype=torch.float64),
            "products": torch.zeros(classes, d, d, dtype=torch.float64),
        }
        return {**counts, **moments, "weights": message["weights"]}

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        with torch.no_grad():
            features, logits = task.forward(carry["weights"], batch["x"])
        of_class = F.one_hot(batch["y"], classes)
        right = (logits.argmax(1) == batch["y"]).long()
        # features of a model that diverged would spoil the sums of all clients
        z = torch.nan_to_num(features.double().flatten(1) @ along.to(features.device), 0.0, 0.0, 0.0)
        weights = of_class.double()
        return {
            "samples": carry["samples"] + of_class.sum(0),
            "correct": carry["correct"] + (of_class * right[:, None]).sum(0),
            "features": carry["features"] + weights.T @ z,
            "products": carry["products"] + torch.einsum("nc,ni,nj->cij", weights, z, z),
            "weights": carry["weights"],
        }

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        return {name: carry[name] for name in CLASS_SUMS}, {}

    reductions: dict[str, ReductionKind] = dict.fromkeys(CLASS_SUMS, "sum")
    return ClientProgram(start, step, finish, reductions)


def sums_of_clients(
    task: Task, weights: Weights, clients: ClientData, engine: Engine, device: torch.device = CPU
) -> ClassSums:
    """Return the sums over the examples of all clients.

    Args:
        task: The classification task.
        weights: The model.
        clients: What they hold.
        engine: What executes the clients' work on `clients`.
        device: Where clients compute.
    """
    whole = Batches(sys.maxsize, None, 1, Key(0))  # one batch of all that a client holds
    tasks = [
        ClientTask(client, {"weights": weights}, {}, whole, Key(0))
        for client in range(len(clients))
        if clients.samples(client)
    ]
    total = engine.run(on_device(class_sums(task), device), tasks).aggregate
    assert total is not None
    return ClassSums(*(total[name].numpy() for name in CLASS_SUMS))


def distances(private: ClassSums, generated: ClassSums) -> list[float | None]:
    """Return the Fréchet distance between the features of private and generated examples of each class.

    It is that of two Gaussians (Dowson and Landau 1982; FID of Heusel et al. 2017), divided by the mean
    variance within the private classes, so that features of any scale can be compared.

    Args:
        private: The sums over private examples.
        generated: The sums over generated examples.

    Returns:
        A distance of at least 0 for each class; None for a class with fewer than two examples of either kind.
    """
    within = [
        _moments(private, number)[1] for number in range(len(private.samples)) if private.samples[number] > 1
    ]
    scale = float(np.mean([np.trace(covariance) for covariance in within])) if within else 0.0
    found: list[float | None] = []
    for number in range(len(private.samples)):
        if min(private.samples[number], generated.samples[number]) < 2 or scale <= 0:
            found.append(None)
            continue
        mean, covariance = _moments(private, number)
        other_mean, other_covariance = _moments(generated, number)
        root = _root(covariance)
        cross = float(np.sqrt(np.clip(np.linalg.eigvalsh(root @ other_covariance @ root), 0, None)).sum())
        squared = float(((mean - other_mean) ** 2).sum())
        spread = float(np.trace(covariance) + np.trace(other_covariance)) - 2 * cross
        found.append(math.sqrt(max(squared + spread, 0.0) / scale))
    return found


def _moments(sums: ClassSums, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the covariance of the features of a class."""
    count = int(sums.samples[number])
    mean = sums.features[number] / count
    covariance = sums.products[number] / count - np.outer(mean, mean)
    return mean, covariance


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the square root of a symmetric matrix; eigenvalues below 0 are rounding, and count as 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
