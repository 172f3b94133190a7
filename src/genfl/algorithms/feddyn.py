"""FedDyn: dynamic regularisation aligns the stationary points of the clients with the global one."""

from __future__ import annotations

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import (
    Algorithm,
    Positive,
    decaying,
    head_count,
    model_change,
    send_weights,
    training_client,
    training_memory,
)
from genfl.algorithms.parts import with_hooks
from genfl.learning.local import Context, LocalHook, LocalSGD
from genfl.learning.task import Aux, Batch, Task, Weights
from genfl.options import range_checked
from genfl.rng import Key
from genfl.trees import Tree


@range_checked
def feddyn(task: Task, local: LocalSGD, *hooks: LocalHook, alpha: Positive = 0.01) -> Algorithm:
    """Return FedDyn: clients minimise ``F_k(w) − ⟨g_k, w⟩ + α/2 ‖w − x‖²``, then ``g_k ← g_k − α (y_k − x)``.

    The server keeps ``h ← h − α/N Σ (y_k − x)``, where the sum is over the cohort and N is the number of all
    clients. The global model is the cohort's mean model minus ``h/α``. All clients have the same weight, for
    any number of samples. So FedDyn minimises the mean of the clients' objectives.

    Source: Acar et al., ICLR 2021 (arXiv 2111.04263), Algorithm 1.

    Args:
        task: The learning task.
        local: Local training.
        *hooks: Changes to local training.
        alpha: Strength α of the regularisation, positive.
    """
    local = with_hooks("feddyn", local, hooks)

    def pull(params: Tree, aux: Aux, batch: Batch, context: Context) -> Tensor:
        return alpha / 2 * trees.square_norm(trees.sub(params, context.message["weights"]["params"]))

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {"weights": weights, "h": trees.zeros_like(weights["params"]), "clients": census["clients"]}

    def upload(carry: Tree) -> Tree:
        return {"clients": torch.ones(()), "delta": model_change(carry)}

    def remember(carry: Tree) -> Tree:
        moved = trees.scale(-alpha, model_change(carry)["params"])
        return trees.add(carry["memory"]["method"], moved)

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        share = trees.scale(-alpha / state["clients"], aggregate["delta"]["params"])
        h = trees.add(state["h"], share)
        mean = trees.add(state["weights"], trees.scale(1 / aggregate["clients"], aggregate["delta"]))
        params = trees.add(mean["params"], trees.scale(-1 / alpha, h))
        return {**state, "weights": {"params": params, "buffers": mean["buffers"]}, "h": h}

    client = training_client(
        task,
        local.with_hook(LocalHook(penalty=pull, name="feddyn")),
        upload,
        {"clients": "sum", "delta": "sum"},
        shift=lambda message, g: trees.scale(-1.0, g),
        remember=remember,
    )
    memory = training_memory(local, lambda weights: trees.zeros_like(weights["params"]))
    algorithm = Algorithm(
        head_count, init, send_weights, client, server, memory, task=task, counts=("clients",)
    )
    return decaying(algorithm, local)
