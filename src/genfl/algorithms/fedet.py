"""Fed-ET: clients train small models of several architectures, and the server distils a large one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genfl.algorithms.architectures import TrainedModel, client_models
from genfl.algorithms.base import (
    Algorithm,
    Count,
    NonNegative,
    Positive,
    Steps,
)
from genfl.algorithms.parts import with_hooks
from genfl.learning.distil import distil
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import MissingPart, Task, Weights
from genfl.options import range_checked
from genfl.rng import Key
from genfl.trees import Tree

log = logging.getLogger(__name__)


@range_checked
def fedet(
    task: Task,
    local: LocalSGD,
    *hooks: LocalHook,
    unlabelled: Tensor,
    client_tasks: Mapping[str, Task],
    diversity: NonNegative = 0.05,
    steps: Steps = 100,
    lr: Positive = 1e-3,
    batch_size: Count = 128,
    share: bool = True,
) -> Algorithm:
    """Return Fed-ET: clients train small models, and the server learns from their `confident_consensus`.

    Client k runs architecture ``k mod U`` of U. A round has three steps:

    1. The server sends each client the model of its architecture. The client trains it.
    2. The server keeps one model per architecture: the mean of the cohort's models, weighted by samples. A
       model that no client of the cohort ran stays as it was. The large model starts from that of the last
       round. Its head is replaced by the mean of the cohort's heads, weighted by samples. It is trained on
       the unlabelled inputs u with the loss ``CE(f(u), y(u)) + λ KL( softmax s_div(u) ‖ softmax f(u) )``.
    3. The head of the large model becomes the head of the small models. So all features learn to fit one
       head.

    Only models with as many features as the large one can share its head. Others share nothing: a message in
    the log names them. The option `hidden` of the model cnn, and `width` of the model mlp, set the number of
    features.

    Source: Cho et al., IJCAI 2022 (arXiv 2204.12703), Section 3.2 and Algorithm 1.

    Left open by the sources that were at hand, and chosen here:

    - The paper's small models and its large one share representation layers at their ends, which are
      averaged over clients, trained at the server and sent back. Here they are the head alone, as in a public
      reproduction of the method.
    - The mean of the heads is weighted by samples, like that of the small models.
    - The server's optimizer is Adam with a cosine schedule to zero. The number of its steps is an option.

    Args:
        task: The learning task of the server's model.
        local: Local training. Its hooks see the client's task, and may keep nothing between rounds.
        *hooks: Changes to local training.
        unlabelled: Unlabelled inputs that the server holds, [m, ...].
        client_tasks: The learning tasks of the clients' models, by name.
        diversity: The weight λ of the disagreeing clients' predictions.
        steps: Steps of the server's model per round.
        lr: Adam's learning rate at the start of these steps.
        batch_size: Unlabelled inputs in a step.
        share: Whether the models share a head. Without it, only predictions pass to the server's model.

    Raises:
        InputError: A hook keeps a model between rounds. It may have another architecture in the next round.
    """
    local = with_hooks("fedet", local, hooks)
    clients = client_models("fedet", client_tasks, local)
    heads = _shared_heads(task, client_tasks) if share else {}
    own_head = _head_names(task) if heads else []

    def with_head(models: Mapping[str, Weights], head: Sequence[Tensor]) -> dict[str, Weights]:
        """Return the small models with the large model's head, where they share it."""
        return {name: _replaced(model, heads.get(name, []), head) for name, model in models.items()}

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        head = [weights["params"][name] for name in own_head]
        return {"weights": weights, "models": with_head(clients.initial(key), head)}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        cohort = clients.cohort(aggregate)
        targets = confident_consensus(clients.logits(cohort, unlabelled), diversity)
        start = _replaced(state["weights"], own_head, _mean_head(cohort, heads))
        student = distil(task, start, unlabelled, targets, steps=steps, lr=lr, batch_size=batch_size, key=key)
        head = [student["params"][name] for name in own_head]
        return {"weights": student, "models": with_head(clients.means(state["models"], cohort), head)}

    return clients.algorithm(task, local, init, server)


def _shared_heads(task: Task, client_tasks: Mapping[str, Task]) -> dict[str, list[str]]:
    """Return the names of the head's parameters of each client model that has the large model's head."""

    def shapes(of: Task, names: Sequence[str]) -> list[torch.Size]:
        params = of.init(Key(0))["params"]
        return [params[name].shape for name in names]

    expected = shapes(task, _head_names(task))
    heads = {}
    for name, client_task in client_tasks.items():
        names = _head_names(client_task)
        if names and shapes(client_task, names) == expected:
            heads[name] = names
        else:
            log.info("fedet: %s has another head than the server's model, and does not share it", name)
    return heads


def _head_names(task: Task) -> list[str]:
    """Return the names of the parameters of a model's head: those that its logits depend on, given features.

    They are the weight and the bias of a linear layer. A model without a linear head has none.
    """
    params = {n: p.detach().requires_grad_() for n, p in task.init(Key(0))["params"].items()}
    try:
        with torch.enable_grad():
            total = task.head(params, torch.ones(1, task.shapes().features)).sum()
            gradients = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    except MissingPart:
        return []
    return [name for name, gradient in zip(params, gradients, strict=True) if gradient is not None]


def _mean_head(cohort: Sequence[TrainedModel], heads: Mapping[str, Sequence[str]]) -> list[Tensor]:
    """Return the mean of the cohort's shared heads, weighted by samples; empty if no model shares one."""
    sharing = [model for model in cohort if model.name in heads]
    if not sharing:
        return []
    samples = torch.stack([model.samples for model in sharing])
    shares = samples / samples.sum()
    own = [[model.weights["params"][name] for name in heads[model.name]] for model in sharing]
    return [
        torch.stack([p * tensor for p, tensor in zip(shares, of_all, strict=True)]).sum(0)
        for of_all in zip(*own, strict=True)
    ]


def _replaced(model: Weights, names: Sequence[str], tensors: Sequence[Tensor]) -> Weights:
    """Return a model with other values for some parameters; the model itself if there are no values."""
    if not tensors:
        return model
    return {**model, "params": model["params"] | dict(zip(names, tensors, strict=bool(names)))}


def confident_consensus(logits: Tensor, diversity: float) -> Tensor:
    """Return targets for `distil` from the clients' logits for each input, [m, classes].

    A client gets more weight if its logits s_k vary more over the classes: ``s = Σ α_k s_k`` with
    ``α_k = Var(s_k) / Σ_l Var(s_l)``. The pseudo-label is ``y = argmax s``. ``s_div = Σ α'_k s_k`` is the
    same sum over only those clients whose argmax is not y. The target is ``onehot(y) + λ softmax(s_div)``, or
    ``onehot(y)`` if all clients agree. The cross-entropy with the target is
    ``CE(y) + λ KL( softmax s_div ‖ student )`` up to a constant.

    Source: Cho et al., IJCAI 2022 (arXiv 2204.12703), Section 3.2.

    Args:
        logits: The clients' logits, [clients, m, classes].
        diversity: The weight λ.
    """
    confidence = logits.var(-1, correction=0).clamp(min=torch.finfo(logits.dtype).tiny)

    def mean(counted: Tensor) -> Tensor:
        weights = confidence * counted
        weights = weights / weights.sum(0).clamp(min=torch.finfo(logits.dtype).tiny)
        return (weights[..., None] * logits).sum(0)

    label = mean(torch.ones_like(confidence)).argmax(-1)
    disagrees = logits.argmax(-1) != label
    others = disagrees.any(0)[:, None] * torch.softmax(mean(disagrees), -1)
    return F.one_hot(label, logits.shape[-1]) + diversity * others
