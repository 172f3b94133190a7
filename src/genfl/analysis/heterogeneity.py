"""Why generated content helps: how alike clients' data are, and what that does to their local models.

Source: Ye et al., "Federated Learning with Generative Content" (arXiv 2312.05807), on why it works.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import ClientProgram, model_change, trained
from genfl.analysis.extractors import Extract
from genfl.data.clients import ClientData
from genfl.learning.task import Task
from genfl.rng import Key
from genfl.simulation import Measure
from genfl.threads import one_thread
from genfl.trees import Tree

DIVERGENCE, GENERALITY = "divergence", "generality"


def divergence() -> Measure:
    """Measure how far a cohort's local models w_k end from their mean w̄: ``√(Σ_k ‖w_k − w̄‖² / m)``.

    With the changes Δ_k of the m clients, ``Σ_k ‖w_k − w̄‖² = Σ_k ‖Δ_k‖² − ‖Σ_k Δ_k‖² / m``. Both terms are
    sums over clients, so that measuring it would not defeat a secure sum.

    Source: FedGC (arXiv 2312.05807), Section 4.3 and Figure 7: the ℓ2 distance of local models to the
    aggregated model. Deviations from the paper: the mean over clients is that of the squares, and the
    aggregated model is the unweighted mean of the local ones, also where clients have weights.
    """

    def wrap(client: ClientProgram) -> ClientProgram:
        def finish(carry: Tree) -> tuple[Tree, Tree]:
            upload, memory = client.finish(carry)
            change = trees.map(torch.Tensor.double, model_change(carry)["params"])
            square_norm = trees.square_norm(change)
            sums = {"square_norm": square_norm, "change": change, "clients": torch.ones_like(square_norm)}
            return {**upload, DIVERGENCE: sums}, memory

        return client._replace(finish=finish, reductions={**client.reductions, DIVERGENCE: "sum"})

    def value(aggregate: Tree) -> float | None:
        clients = aggregate["clients"]
        spread = aggregate["square_norm"] - trees.square_norm(aggregate["change"]) / clients
        return float((spread / clients).clamp(min=0).sqrt())  # rounding may leave less than 0

    return Measure(wrap, value)


def generality(task: Task, x: Tensor, y: Tensor) -> Measure:
    """Measure how good local models are for everybody, before they are averaged: their mean test accuracy.

    Args:
        task: What is learned.
        x: Test inputs, as models are given them, [n, ...].
        y: Their class indices, [n].
    """

    def measured(carry: Tree) -> Tensor:
        predicted = task.predict(trained(carry), x).argmax(1)
        return (predicted == y.to(predicted.device)).double().mean()

    return _mean(GENERALITY, measured)


def _mean(name: str, measured: Callable[[Tree], Tensor]) -> Measure:
    """Return the measure that is the mean over the cohort of what each client measures, by sums alone."""

    def wrap(client: ClientProgram) -> ClientProgram:
        def finish(carry: Tree) -> tuple[Tree, Tree]:
            upload, memory = client.finish(carry)
            value = measured(carry)
            return {**upload, name: {"sum": value, "clients": torch.ones_like(value)}}, memory

        return client._replace(finish=finish, reductions={**client.reductions, name: "sum"})

    def value(aggregate: Tree) -> float | None:
        return float(aggregate["sum"] / aggregate["clients"])

    return Measure(wrap, value)


CHUNK = 250
"""The largest number of samples whose features are extracted at once."""


def mean_features(extract: Extract, clients: ClientData, most: int = 1000) -> Tensor:
    """Return the mean features of each client's data.

    Args:
        extract: Extracts the features.
        clients: What they hold. Clients without samples are left out.
        most: So many of a client's samples count at most: the first ones in an order drawn by its number.

    Returns:
        [clients, d].
    """
    means = []
    for client in filter(clients.samples, range(len(clients))):
        rows = Key(0).fold("features", client).numpy().permutation(clients.samples(client))[:most]
        with one_thread():  # the number of threads changes the last bits
            features = [
                extract(clients.batch(client, chunk)["x"]) for chunk in torch.from_numpy(rows).split(CHUNK)
            ]
        means.append(torch.cat(features).mean(0))
    return torch.stack(means) if means else torch.zeros(0, 1)


def client_similarity(features: Tensor) -> dict[str, list[list[float]]]:
    """Return how alike clients are, pair by pair: their features' ``cosine`` similarity and ``l2`` distance.

    Args:
        features: Of each client, [clients, d].
    """
    features = features.double()
    unit = torch.nn.functional.normalize(features, dim=1)
    return {
        "cosine": (unit @ unit.T).clamp(-1, 1).tolist(),
        "l2": torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").tolist(),
    }
