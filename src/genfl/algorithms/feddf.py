"""FedDF: the server distils the ensemble of the clients' models into their average."""

from __future__ import annotations

import torch
from torch import Tensor

from genfl.algorithms.base import Algorithm, Count, Positive, ReductionKind, Steps, trained
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.parts import with_hooks
from genfl.learning.distil import distil
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import Task
from genfl.rng import Key
from genfl.trees import Tree


def feddf(
    task: Task,
    local: LocalSGD,
    *hooks: LocalHook,
    shared: Tensor,
    steps: Steps = 100,
    lr: Positive = 1e-3,
    batch_size: Count = 128,
) -> Algorithm:
    """Return FedDF, which trains FedAvg's model x to answer as the ensemble of the clients' models.

    The server minimises ``min_x Σ_u KL( q(u) ‖ softmax f(x; u) )``.

    The ensemble's answer to a shared input u is ``q(u) = softmax( 1/|S| Σ_k f(y_k; u) )``, f being the logits
    and y_k the models of the cohort S, which count alike here. As the clients hold the shared inputs too,
    they upload their logits, and the server sees nothing but sums; in the paper it runs the clients' models
    itself. The paper stops early, after at most 10⁴ steps, by validation data that a server does not have
    here: the number of steps is fixed.

    Source: Lin et al., NeurIPS 2020 (arXiv 2006.07242), Algorithm 1.

    Args:
        task: What is learned.
        local: How a client trains.
        *hooks: Changes to local training.
        shared: Unlabelled inputs that server and clients hold, [m, ...].
        steps: Distillation steps a round; without any it is FedAvg.
        lr: Adam's learning rate at the start of each distillation.
        batch_size: Shared inputs in a step.
    """
    average = fedavg(task, with_hooks("feddf", local, hooks))

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        upload, memory = average.client.finish(carry)
        logits = task.predict(trained(carry), shared)
        return {**upload, "clients": torch.ones(()), "logits": logits}, memory

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        after = average.server(state, aggregate, key)
        teacher = torch.softmax(aggregate["logits"] / aggregate["clients"], 1)
        student = distil(
            task, after["weights"], shared, teacher, steps=steps, lr=lr, batch_size=batch_size, key=key
        )
        return {**after, "weights": student}

    reductions: dict[str, ReductionKind] = {**average.client.reductions, "clients": "sum", "logits": "sum"}
    client = average.client._replace(finish=finish, reductions=reductions)
    return average._replace(client=client, server=server)
