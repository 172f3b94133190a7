"""FedDF: the server distils the ensemble of the clients' models into their average."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.architectures import ClientModels, TrainedModel, client_models, mean_model
from genfl.algorithms.base import (
    Algorithm,
    Count,
    Positive,
    Steps,
    decaying,
    head_count,
    send_weights,
    trained,
    training_client,
    training_memory,
)
from genfl.algorithms.parts import with_hooks
from genfl.errors import InputError
from genfl.learning.distil import distil
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import Task, Weights
from genfl.options import range_checked
from genfl.rng import Key
from genfl.trees import Tree


@range_checked
def feddf(
    task: Task,
    local: LocalSGD,
    *hooks: LocalHook,
    unlabelled: Tensor,
    client_tasks: Mapping[str, Task] | None = None,
    heterogeneous: bool = False,
    steps: Steps = 100,
    lr: Positive = 1e-3,
    batch_size: Count = 128,
) -> Algorithm:
    """Return FedDF: the server distils the ensemble of the clients' models y_k into their mean x.

    The server gets the models themselves. It starts from ``x = Σ_k n_k y_k / Σ_k n_k`` and minimises
    ``Σ_u KL( q(u) ‖ softmax f(x; u) )`` over its unlabelled inputs u. The ensemble's prediction is
    ``q(u) = softmax( 1/|S| Σ_k f(y_k; u) )``. Here f are the logits, and y_k are the models of the cohort S,
    which all have the same weight. The optimizer is Adam with a cosine schedule to zero.

    With ``heterogeneous``, client k runs architecture ``k mod U`` of the U client models. The server keeps
    one student for each. Each starts from the mean of its own group, and all learn from the ensemble of all
    models. A group that no client of the cohort is in keeps its model of the last round as its start. The
    global model, which is evaluated, is the student whose architecture is that of the server's model.

    Source: Lin et al., NeurIPS 2020 (arXiv 2006.07242), Algorithm 1, and Algorithm 3 for several
    architectures.

    Deviations:

    - The number of steps is fixed. The paper stops early by validation data, after at most 10⁴ steps. Here
      the server has unlabelled inputs alone.
    - The paper's student of a group without a client in the cohort is not defined.

    Args:
        task: The learning task.
        local: Local training. With several architectures, its hooks may keep nothing between rounds.
        *hooks: Changes to local training.
        unlabelled: Unlabelled inputs that the server holds, [m, ...].
        client_tasks: The learning tasks of the clients' models, by name. They are used with `heterogeneous`.
        heterogeneous: Whether clients run the client models. Otherwise they all run the server's model.
        steps: Distillation steps per round. With 0, this is FedAvg.
        lr: Adam's learning rate at the start of each distillation.
        batch_size: Unlabelled inputs in a step.

    Raises:
        InputError: There are no client models, none of them is the server's model, or a hook of clients with
            several architectures keeps a model.
    """
    local = with_hooks("feddf", local, hooks)

    def learn(student: Task, start: Weights, logits: Tensor, key: Key) -> Weights:
        teacher = torch.softmax(logits.mean(0), 1)
        return distil(student, start, unlabelled, teacher, steps=steps, lr=lr, batch_size=batch_size, key=key)

    if heterogeneous:
        if not client_tasks:
            raise InputError("feddf: heterogeneous needs client_models; list them, or leave it out")
        clients = client_models("feddf", client_tasks, local)
        return _of_several(task, local, clients, _evaluated(task, client_tasks), unlabelled, learn)

    def upload(carry: Tree) -> Tree:
        return {"model": {"weights": trained(carry), "samples": carry["client_info"]["samples"]}}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        cohort = [TrainedModel("", model["weights"], model["samples"]) for model in aggregate["model"]]
        logits = torch.stack([task.predict(model.weights, unlabelled) for model in cohort])
        return {"weights": learn(task, mean_model(cohort), logits, key)}

    algorithm = Algorithm(
        census=head_count,
        init=lambda weights, census, key: {"weights": weights},
        send=send_weights,
        client=training_client(task, local, upload, {"model": "each"}),
        server=server,
        memory=training_memory(local),
        task=task,
    )
    return decaying(algorithm, local)


def _of_several(
    task: Task,
    local: LocalSGD,
    clients: ClientModels,
    evaluated: str,
    unlabelled: Tensor,
    learn: Callable[[Task, Weights, Tensor, Key], Weights],
) -> Algorithm:
    """Return FedDF for clients of several architectures (Algorithm 3).

    Args:
        task: The learning task of the global model.
        local: Local training.
        clients: The clients.
        evaluated: The name of the architecture of the global model.
        unlabelled: Inputs that the server holds, [m, ...].
        learn: ``(student's task, start, logits of the cohort, key) -> student``.
    """

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {"weights": weights, "models": {**clients.initial(key), evaluated: weights}}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        cohort = clients.cohort(aggregate)
        logits = clients.logits(cohort, unlabelled)
        students = {
            name: learn(clients.tasks[name], start, logits, key.fold(name))
            for name, start in clients.means(state["models"], cohort).items()
        }
        return {"weights": students[evaluated], "models": students}

    return clients.algorithm(task, local, init, server)


def _evaluated(task: Task, client_tasks: Mapping[str, Task]) -> str:
    """Return the name of the first client model of the architecture of the server's model."""
    model = task.init(Key(0))
    for name, client_task in client_tasks.items():
        if trees.mismatch(model, client_task.init(Key(0))) is None:
            return name
    raise InputError(
        f"feddf: none of the client models ({', '.join(client_tasks)}) is the server's model, which is"
        " evaluated; add it to client_models"
    )
