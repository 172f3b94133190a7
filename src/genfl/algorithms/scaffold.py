"""SCAFFOLD: control variates correct the clients' drift."""

from __future__ import annotations

from typing import Literal

import torch

from genfl import trees
from genfl.algorithms.base import (
    Algorithm,
    ClientInfo,
    ClientProgram,
    Positive,
    context,
    decaying,
    head_count,
    model_change,
    training_client,
    training_memory,
)
from genfl.algorithms.parts import with_hooks
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import Batch, Task, Weights
from genfl.options import range_checked
from genfl.rng import Key, Stream
from genfl.trees import Tree


@range_checked
def scaffold(
    task: Task,
    local: LocalSGD,
    *hooks: LocalHook,
    lr: Positive = 1.0,
    option: Literal["I", "II"] = "II",
) -> Algorithm:
    """Return SCAFFOLD, which corrects every local gradient by ``c − c_k``.

    The paper has two options for a client's new control variate:

    - Option I is the mean gradient of the round's batches at the global model, ``c_k⁺ = 1/K Σ g(x)``. It
      costs a second gradient per step.
    - Option II is the mean gradient along the client's path, ``c_k⁺ = c_k − c + (x − y_k) / (K lr)``.

    Then ``x ← x + η/|S| Σ (y_k − x)`` and ``c ← c + 1/N Σ (c_k⁺ − c_k)``.

    y_k is the model of client k after its K steps. With local momentum, K counts effective steps. S is the
    cohort and N is the number of clients. All clients have the same weight, for any number of samples. So
    SCAFFOLD minimises the mean of the clients' objectives.

    Source: Karimireddy et al., ICML 2020 (arXiv 1910.06378), Algorithm 1.

    Args:
        task: The learning task.
        local: Local training.
        *hooks: Changes to local training.
        lr: The server's learning rate η.
        option: The formula of the control variates.
    """
    local = with_hooks("scaffold", local, hooks)

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {
            "weights": weights,
            "control": trees.zeros_like(weights["params"]),
            "clients": census["clients"],
        }

    def send(state: Tree) -> Tree:
        return {"weights": state["weights"], "control": state["control"]}

    def new_control(carry: Tree) -> Tree:
        c_k, c = carry["memory"]["method"], carry["message"]["control"]
        if option == "I":
            return trees.scale(1 / carry["local"]["steps"].clamp(min=1), carry["at_global"])
        steps = local.effective_steps(carry["local"])
        moved = trees.scale(-1 / (steps * local.rate(carry["local"])), model_change(carry)["params"])
        return trees.add(trees.sub(c_k, c), moved)

    def upload(carry: Tree) -> Tree:
        change = trees.sub(new_control(carry), carry["memory"]["method"])
        return {"clients": torch.ones(()), "delta": model_change(carry), "control": change}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        mean = trees.scale(1 / aggregate["clients"], aggregate["delta"])
        mean["params"] = trees.scale(lr, mean["params"])
        change = trees.scale(1 / state["clients"], aggregate["control"])
        return {
            "weights": trees.add(state["weights"], mean),
            "control": trees.add(state["control"], change),
            "clients": state["clients"],
        }

    client = training_client(
        task,
        local,
        upload,
        dict.fromkeys(("clients", "delta", "control"), "sum"),
        shift=lambda message, c_k: trees.sub(message["control"], c_k),
        remember=new_control,
    )
    if option == "I":
        client = _summing_gradients(client, task, local)
    memory = training_memory(local, lambda weights: trees.zeros_like(weights["params"]))
    algorithm = Algorithm(head_count, init, send, client, server, memory, task=task, counts=("clients",))
    return decaying(algorithm, local)


def _summing_gradients(client: ClientProgram, task: Task, local: LocalSGD) -> ClientProgram:
    """Return a client whose carry also sums the batches' gradients at the global model, as ``at_global``."""

    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        zero = trees.zeros_like(message["weights"]["params"])
        return {**client.start(message, memory, client_info, key), "at_global": zero}

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        x = carry["message"]["weights"]
        gradient, _ = local.gradient(x["params"], x["buffers"], batch, context(task, carry, key))
        return {**client.step(carry, batch, key), "at_global": trees.add(carry["at_global"], gradient)}

    return client._replace(start=start, step=step)
