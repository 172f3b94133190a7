"""FedDF in a variant whose server sees only sums: clients hold the inputs too, and upload their logits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genfl.algorithms.base import Algorithm, Count, Positive, ReductionKind, Steps, trained
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.parts import with_hooks
from genfl.learning.distil import distil
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import Task
from genfl.options import range_checked
from genfl.rng import Key
from genfl.trees import Tree


@range_checked
def feddf_logits(
    task: Task,
    local: LocalSGD,
    *hooks: LocalHook,
    shared: Tensor,
    steps: Steps = 100,
    lr: Positive = 1e-3,
    batch_size: Count = 128,
    weighting: Literal["samples", "uniform"] = "samples",
) -> Algorithm:
    """Return FedDF by logits: it distils the clients' mean logits on shared inputs into FedAvg's model x.

    The teacher and the student are those of `genfl.algorithms.feddf`, but the server sees only sums, so that
    secure aggregation is possible.

    The server minimises ``min_x Σ_u KL( q(u) ‖ softmax f(x; u) )`` over the shared inputs u. The ensemble's
    prediction is ``q(u) = softmax( 1/|S| Σ_k f(y_k; u) )``. Here f are the logits, and y_k are the models of
    the cohort S. All of them have the same weight.

    Source: Lin et al., NeurIPS 2020 (arXiv 2006.07242), Algorithm 1.

    Deviations:

    - The clients hold the shared inputs too, and upload their logits. In the paper, the server runs the
      clients' models itself.
    - The number of steps is fixed. The paper stops early by validation data, after at most 10⁴ steps. Here
      the server has no validation data.

    Args:
        task: The learning task.
        local: Local training.
        *hooks: Changes to local training.
        shared: Unlabelled inputs that the server and the clients hold, [m, ...].
        steps: Distillation steps per round. With 0, this is FedAvg.
        lr: Adam's learning rate at the start of each distillation.
        batch_size: Shared inputs in a step.
        weighting: The weights of clients in the mean model; see `genfl.algorithms.fedavg.fedavg`.
    """
    average = fedavg(task, with_hooks("feddf_logits", local, hooks), weighting=weighting)

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
    return average._replace(client=client, server=server, counts=(*average.counts, "clients"))
