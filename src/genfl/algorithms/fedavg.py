"""FedAvg, and what differs from it only in the server's optimizer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from genfl import trees
from genfl.algorithms import server_optimizers
from genfl.algorithms.base import (
    Algorithm,
    Decay,
    Facts,
    Positive,
    head_count,
    model_change,
    send_weights,
    training_client,
    training_memory,
)
from genfl.algorithms.server_optimizers import ServerOptimizer
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task, Weights
from genfl.rng import Key
from genfl.trees import Tree

Weight = Callable[[Facts, Tree], Tensor]
"""``(facts, message) -> scalar``: a client's weight in the mean, before normalisation."""


def count(facts: Facts, message: Tree) -> Tensor:
    """Weights a client by its number of samples."""
    samples: Tensor = facts["samples"]
    return samples


def fedavg(
    task: Task,
    local: LocalSGD,
    *,
    server_opt: ServerOptimizer | None = None,
    weight: Weight = count,
) -> Algorithm:
    """Federated averaging: ``Δ = Σ w_k (y_k − x) / Σ w_k``, ``x ← x + Δ``.

    Batch-norm buffers are averaged with the same weights and never stepped by the server's optimizer.

    Source: McMahan et al., AISTATS 2017 (arXiv 1602.05629), Algorithm 1.

    Args:
        task: What is learned.
        local: How a client trains.
        server_opt: What the server does with Δ; plain averaging if None.
        weight: A client's weight w_k; its number of samples by default.
    """
    optimizer = server_opt or server_optimizers.sgd()

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {"weights": weights, "optimizer": optimizer.init(weights["params"])}

    def upload(carry: Tree) -> Tree:
        w = weight(carry["facts"], carry["message"])
        return {"weight": w, "delta": trees.scale(w, model_change(carry))}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        mean = trees.scale(1 / aggregate["weight"], aggregate["delta"])
        opt, params = optimizer.step(state["optimizer"], state["weights"]["params"], mean["params"])
        buffers = trees.add(state["weights"]["buffers"], mean["buffers"])
        return {"weights": {"params": params, "buffers": buffers}, "optimizer": opt}

    return Algorithm(
        census=head_count,
        init=init,
        send=send_weights,
        client=training_client(task, local, upload, {"weight": "sum", "delta": "sum"}),
        server=server,
        memory=training_memory(local),
    )


def fedavgm(task: Task, local: LocalSGD, *, server_lr: Positive = 1.0, beta: Decay = 0.9) -> Algorithm:
    """FedAvg with server momentum: ``m ← β m + Δ``, ``x ← x + lr m``.

    Source: Hsu et al. 2019 (arXiv 1909.06335).
    """
    return fedavg(task, local, server_opt=server_optimizers.momentum(server_lr, beta))


def fedadam(
    task: Task,
    local: LocalSGD,
    *,
    server_lr: Positive = 0.1,
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    tau: Positive = 1e-3,
    bias_correction: bool = False,
) -> Algorithm:
    """FedOpt with Adam on the server. Source: Reddi et al., ICLR 2021 (arXiv 2003.00295), Algorithm 2."""
    opt = server_optimizers.adam(server_lr, beta1, beta2, tau, bias_correction=bias_correction)
    return fedavg(task, local, server_opt=opt)


def fedyogi(
    task: Task,
    local: LocalSGD,
    *,
    server_lr: Positive = 0.1,
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    tau: Positive = 1e-3,
) -> Algorithm:
    """FedOpt with Yogi on the server. Source: Reddi et al., ICLR 2021 (arXiv 2003.00295), Algorithm 2."""
    return fedavg(task, local, server_opt=server_optimizers.yogi(server_lr, beta1, beta2, tau))


def fedadagrad(task: Task, local: LocalSGD, *, server_lr: Positive = 0.1, tau: Positive = 1e-3) -> Algorithm:
    """FedOpt with Adagrad on the server. Source: Reddi et al., ICLR 2021 (arXiv 2003.00295), Algorithm 2."""
    return fedavg(task, local, server_opt=server_optimizers.adagrad(server_lr, tau=tau))
