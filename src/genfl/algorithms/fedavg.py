"""FedAvg, with optional local hooks, a server optimizer and a weighting of clients."""

from __future__ import annotations

from typing import Literal

from genfl import trees
from genfl.algorithms.base import (
    Algorithm,
    decaying,
    head_count,
    model_change,
    training_client,
    training_memory,
)
from genfl.algorithms.parts import Part, sort_parts
from genfl.algorithms.weighting import uniform
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task, Weights
from genfl.options import range_checked
from genfl.rng import Key
from genfl.trees import Tree


@range_checked
def fedavg(
    task: Task, local: LocalSGD, *parts: Part, weighting: Literal["samples", "uniform"] = "samples"
) -> Algorithm:
    """Return federated averaging: ``Δ = Σ w_k (y_k − x) / Σ w_k``, ``x ← x + Δ``.

    Batch-norm buffers are averaged with the same weights. The server's optimizer never steps them.

    Source: McMahan et al., AISTATS 2017 (arXiv 1602.05629), Algorithm 1.

    Example:
        >>> from torch import nn
        >>> import genfl
        >>> task = genfl.task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8), 10)
        >>> algorithm = genfl.fedavg(
        ...     task, genfl.LocalSGD(lr=0.05), genfl.fedprox(mu=0.1), genfl.fedadam(lr=0.03)
        ... )
        >>> algorithm.task is task
        True

    Args:
        task: The learning task.
        local: Local training.
        *parts: Changes, in any order: local hooks (`fedprox`, `moon`, ...), at most one server optimizer
            (`fedadam`, ...), and at most one weighting (`feddisco`).
        weighting: The weights of clients in the mean. ``samples`` counts a client's samples. ``uniform``
            gives every client of the cohort the weight 1.

    Raises:
        InputError: Two parts change the same thing, or a value is not a part. The message names them.
    """
    if weighting == "uniform":
        parts = (*parts, uniform)
    local, optimizer, weights_of = sort_parts(local, parts)

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {
            "weights": weights,
            "optimizer": optimizer.init(weights["params"]),
            "announced": weights_of.announce(census),
        }

    def send(state: Tree) -> Tree:
        return {"weights": state["weights"], "announced": state["announced"]}

    def upload(carry: Tree) -> Tree:
        w = weights_of.weight(carry["client_info"], carry["message"]["announced"])
        return {"weight": w, "delta": trees.scale(w, model_change(carry))}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        mean = trees.scale(1 / aggregate["weight"], aggregate["delta"])
        opt, params = optimizer.step(state["optimizer"], state["weights"]["params"], mean["params"])
        buffers = trees.add(state["weights"]["buffers"], mean["buffers"])
        return {**state, "weights": {"params": params, "buffers": buffers}, "optimizer": opt}

    algorithm = Algorithm(
        census=head_count,
        init=init,
        send=send,
        client=training_client(task, local, upload, {"weight": "sum", "delta": "sum"}),
        server=server,
        memory=training_memory(local),
        task=task,
        counts=("weight",) if weights_of is uniform else (),
    )
    return decaying(algorithm, local)
