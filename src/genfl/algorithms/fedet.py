"""Fed-ET: clients train small models of several architectures, and the server distils a large one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import (
    Algorithm,
    ClientInfo,
    ClientProgram,
    Count,
    NonNegative,
    Positive,
    Steps,
    decaying,
    head_count,
    trained,
    training_client,
    training_memory,
)
from genfl.algorithms.parts import with_hooks
from genfl.errors import InputError
from genfl.learning.distil import distil
from genfl.learning.local import LocalHook, LocalSGD, nothing
from genfl.learning.task import Batch, Task, Weights
from genfl.options import range_checked
from genfl.rng import Key, Stream
from genfl.trees import Tree


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
) -> Algorithm:
    """Return Fed-ET: clients train small models, and the server learns from their `confident_consensus`.

    Client k runs architecture ``k mod U`` of U.

    The server keeps one model per architecture: the mean of the cohort's models, weighted by samples. It
    sends each client the model of its architecture. A model that no client of the cohort ran stays as it was.
    The large model is trained on the unlabelled inputs u with the loss
    ``CE(f(u), y(u)) + λ KL( softmax s_div(u) ‖ softmax f(u) )``.

    Source: Cho et al., IJCAI 2022 (arXiv 2204.12703), Section 3.2 and Algorithm 1.

    Deviation: in the paper, the small models and the large one may share a representation layer. Here they
    share none.

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

    Raises:
        InputError: A hook keeps a model between rounds. It may have another architecture in the next round.
    """
    local = with_hooks("fedet", local, hooks)
    if local.memory is not nothing:
        raise InputError(
            "fedet: clients train models of several architectures, but a hook keeps a model between rounds;"
            " leave the hook out"
        )

    def upload(carry: Tree) -> Tree:
        return {"weights": trained(carry), "samples": carry["client_info"]["samples"]}

    programs = {
        name: training_client(client_task, local, upload, {"weights": "each", "samples": "each"})
        for name, client_task in client_tasks.items()
    }
    names = list(client_tasks)

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        models = {name: client_task.init(key.fold(name)) for name, client_task in client_tasks.items()}
        return {"weights": weights, "models": models}

    def address(message: Tree, client: int) -> Tree:
        name = names[client % len(names)]
        return {"models": {name: message["models"][name]}}

    # A client's message and carry hold the name of its architecture, so that its program can be looked up.
    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        ((name, weights),) = message["models"].items()
        others = {part: value for part, value in message.items() if part != "models"}
        return {name: programs[name].start({**others, "weights": weights}, memory, client_info, key)}

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        ((name, training),) = carry.items()
        return {name: programs[name].step(training, batch, key)}

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        ((name, training),) = carry.items()
        model, memory = programs[name].finish(training)
        return {"trained": {name: model}}, memory

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        cohort = [pair for client in aggregate["trained"] for pair in client.items()]
        logits = [client_tasks[name].predict(model["weights"], unlabelled) for name, model in cohort]
        targets = confident_consensus(torch.stack(logits), diversity)
        student = distil(
            task, state["weights"], unlabelled, targets, steps=steps, lr=lr, batch_size=batch_size, key=key
        )
        models = {
            name: _mean(same) if (same := [model for of, model in cohort if of == name]) else before
            for name, before in state["models"].items()
        }
        return {"weights": student, "models": models}

    algorithm = Algorithm(
        census=head_count,
        init=init,
        send=lambda state: {"models": state["models"]},
        client=ClientProgram(start, step, finish, {"trained": "each"}),
        server=server,
        memory=training_memory(local),
        address=address,
        same_form=False,
        task=task,
    )
    return decaying(algorithm, local)


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


def _mean(models: list[Tree]) -> Weights:
    """Return the mean of models, weighted by their numbers of samples."""
    samples = torch.stack([model["samples"] for model in models])
    shares = samples / samples.sum()
    parts = [trees.scale(p, model["weights"]) for p, model in zip(shares, models, strict=True)]
    mean: Weights = trees.add(*parts)
    return mean
