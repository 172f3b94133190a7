"""FedAvg, with places for the server's optimizer and the clients' weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from genfl import trees
from genfl.algorithms.base import (
    Algorithm,
    ClientInfo,
    head_count,
    model_change,
    training_client,
    training_memory,
)
from genfl.algorithms.server_optimizers import ServerOptimizer, sgd
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task, Weights
from genfl.rng import Key
from genfl.trees import Tree


class Weighting(NamedTuple):
    """How much a client counts in the mean.

    Attributes:
        announce: ``(census sums) -> tree`` that the server sends along.
        weight: ``(facts, announced) -> scalar``, before normalisation over the cohort.
    """

    announce: Callable[[Tree], Tree]
    weight: Callable[[ClientInfo, Tree], Tensor]


by_samples = Weighting(lambda census: {}, lambda client_info, announced: client_info["samples"])
"""Weights a client by its number of samples."""


def fedavg(
    task: Task,
    local: LocalSGD,
    *,
    server_opt: ServerOptimizer | None = None,
    weighting: Weighting = by_samples,
) -> Algorithm:
    """Federated averaging: ``Δ = Σ w_k (y_k − x) / Σ w_k``, ``x ← x + Δ``.

    Batch-norm buffers are averaged with the same weights and never stepped by the server's optimizer.

    Source: McMahan et al., AISTATS 2017 (arXiv 1602.05629), Algorithm 1.

    Args:
        task: What is learned.
        local: How a client trains.
        server_opt: What the server does with Δ; plain averaging if None.
        weighting: A client's weight w_k; its number of samples by default.
    """
    optimizer = server_opt or sgd()

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {
            "weights": weights,
            "optimizer": optimizer.init(weights["params"]),
            "announced": weighting.announce(census),
        }

    def send(state: Tree) -> Tree:
        return {"weights": state["weights"], "announced": state["announced"]}

    def upload(carry: Tree) -> Tree:
        w = weighting.weight(carry["client_info"], carry["message"]["announced"])
        return {"weight": w, "delta": trees.scale(w, model_change(carry))}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        mean = trees.scale(1 / aggregate["weight"], aggregate["delta"])
        opt, params = optimizer.step(state["optimizer"], state["weights"]["params"], mean["params"])
        buffers = trees.add(state["weights"]["buffers"], mean["buffers"])
        return {**state, "weights": {"params": params, "buffers": buffers}, "optimizer": opt}

    return Algorithm(
        census=head_count,
        init=init,
        send=send,
        client=training_client(task, local, upload, {"weight": "sum", "delta": "sum"}),
        server=server,
        memory=training_memory(local),
    )
