"""FedNova: model changes are normalised by each client's number of effective steps."""

from __future__ import annotations

from genfl import trees
from genfl.algorithms.base import (
    Algorithm,
    ReductionKind,
    decaying,
    head_count,
    model_change,
    send_weights,
    training_client,
    training_memory,
)
from genfl.algorithms.parts import with_hooks
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import Task, Weights
from genfl.options import range_checked
from genfl.rng import Key
from genfl.trees import Tree


@range_checked
def fednova(task: Task, local: LocalSGD, *hooks: LocalHook) -> Algorithm:
    """Return FedNova: the mean of normalised changes, scaled by the mean number of effective steps.

    The update is ``x ← x + τ Σ p_k (y_k − x) / ‖a_k‖₁`` with ``τ = Σ p_k ‖a_k‖₁``. p_k is the client's share
    of the cohort's samples. ‖a_k‖₁ is its number of effective steps. Without local momentum, that is the
    number of steps. With momentum ρ, it is ``Σ_s (1 − ρ^s) / (1 − ρ)`` over the steps s.

    Source: Wang et al., NeurIPS 2020 (arXiv 2007.07481), Equations 7 and 12, Section 4.

    Args:
        task: The learning task.
        local: Local training. Weight decay counts as part of the objective.
        *hooks: Changes to local training.
    """
    local = with_hooks("fednova", local, hooks)

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {"weights": weights}

    def upload(carry: Tree) -> Tree:
        samples, change = carry["client_info"]["samples"], model_change(carry)
        effective = local.effective_steps(carry["local"])
        return {
            "samples": samples,
            "steps": samples * effective,
            "direction": trees.scale(samples / effective, change["params"]),
            "buffers": trees.scale(samples, change["buffers"]),
        }

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        samples, weights = aggregate["samples"], state["weights"]
        tau = aggregate["steps"] / samples
        params = trees.add(weights["params"], trees.scale(tau / samples, aggregate["direction"]))
        buffers = trees.add(weights["buffers"], trees.scale(1 / samples, aggregate["buffers"]))
        return {"weights": {"params": params, "buffers": buffers}}

    uploads: dict[str, ReductionKind] = dict.fromkeys(("samples", "steps", "direction", "buffers"), "sum")
    client = training_client(task, local, upload, uploads)
    memory = training_memory(local)
    algorithm = Algorithm(head_count, init, send_weights, client, server, memory, task=task)
    return decaying(algorithm, local)
