"""FedGen: the heads of clients also train on features that a generator makes from labels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import Algorithm, Count, NonNegative, Positive, Steps, statistics
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.parts import with_hooks
from genfl.learning.conditional import ConditionalGenerator, noise_similarity
from genfl.learning.local import Context, LocalHook, LocalSGD
from genfl.learning.task import Aux, Batch, Task, Weights
from genfl.options import range_checked
from genfl.rng import Key
from genfl.trees import Tree


@range_checked
def fedgen(
    task: Task,
    local: LocalSGD,
    *hooks: LocalHook,
    weight: NonNegative = 1.0,
    generator_steps: Steps = 50,
    generator_lr: Positive = 1e-3,
    diversity: NonNegative = 1.0,
    noise: Count = 32,
    width: Count = 64,
    batch_size: Count = 32,
    weighting: Literal["samples", "uniform"] = "samples",
) -> Algorithm:
    """Return FedGen: FedAvg whose clients minimise ``F_k(w) + λ E_{y~p, ε} CE(head_w(G(y, ε)), y)``.

    After aggregation, the server trains G, a generator of features, by Adam on

    ``E_{y~p, ε} CE(mean_k head_k(G(y, ε)), y) + γ exp(−mean_ij ‖z_i − z_j‖ ‖ε_i − ε_j‖)``, ``z = G(y, ε)``.

    p is the distribution of labels over all clients. The heads are linear, so the mean of their logits is
    the logits of the mean head. Therefore sums of uploads suffice. In the first round, clients train without
    G, because the server has not learned it yet. G is kept from round to round, but Adam's moments are not.

    Source: Zhu et al., ICML 2021 (arXiv 2105.10056), Algorithm 1. The second term is from the authors' code.

    Deviations:

    - By default, the mean weights clients by their samples, as in FedAvg. In the paper, all clients have the
      same weight, as with ``weighting="uniform"``.
    - G has one hidden layer, as in the authors' code, but no batch norm behind it. So a feature does not
      depend on the other features of its batch. The code draws ε uniformly from [0, 1). For CIFAR-10, it has
      512 hidden units and 64 numbers of noise. G makes features, so it is no convolutional network.
    - The authors' code has three more things that are not in the paper's objective. They are left out: a
      decay of λ, a decay of the learning rate, and a penalty between predictions on real inputs and on
      generated features.

    Args:
        task: The learning task. The head of its model is linear.
        local: Local training.
        *hooks: Changes to local training.
        weight: Weight λ of the generated features. With 0, this is FedAvg.
        generator_steps: The server's steps per round.
        generator_lr: Learning rate of Adam. The code uses 3e-4, with which G needs about 15 rounds.
        diversity: Weight γ of the similarity of features; see
            `genfl.learning.conditional.noise_similarity`.
        noise: Length of ε.
        width: Hidden units of G. The server sends G to every client of a cohort.
        batch_size: Generated features in a step of a client, and of the server.
        weighting: The weights of clients in the mean model; see `genfl.algorithms.fedavg.fedavg`.
    """
    form = task.shapes()
    generator = ConditionalGenerator((form.features,), form.classes, noise, width)

    def knowledge(params: Tree, aux: Aux, batch: Batch, context: Context) -> Tensor:
        sent = context.message
        y, eps = context.key.fold("fedgen").draw(
            lambda rng, shares: generator.conditions(shares, batch_size, rng), sent["shares"]
        )
        logits = task.head(params, generator(sent["generator"], y, eps))
        return torch.mul(sent["strength"], F.cross_entropy(logits, y))

    hook = LocalHook(penalty=knowledge, name="fedgen")
    average = fedavg(task, with_hooks("fedgen", local, hooks).with_hook(hook), weighting=weighting)

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {
            **average.init(weights, census, key),
            "generator": generator.init(key.fold("generator")),
            "shares": census["label_counts"] / census["label_counts"].sum(),
            "strength": torch.zeros(()),
        }

    def send(state: Tree) -> Tree:
        return average.send(state) | {name: state[name] for name in ("generator", "shares", "strength")}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        state = average.server(state, aggregate, key)
        g = trees.map(lambda p: p.clone().requires_grad_(), state["generator"])
        adam = torch.optim.Adam(trees.leaves(g), lr=generator_lr)
        rng = key.fold("fedgen").torch()
        for _ in range(generator_steps):
            y, eps = generator.conditions(state["shares"], batch_size, rng)
            z = generator(g, y, eps)
            logits = task.head(state["weights"]["params"], z)
            adam.zero_grad()
            (F.cross_entropy(logits, y) + diversity * noise_similarity(z, eps)).backward()
            adam.step()
        strength = torch.full_like(state["strength"], weight)
        return {**state, "generator": trees.map(torch.detach, g), "strength": strength}

    census = statistics({"label_counts": lambda client_info: client_info["label_counts"]})
    return average._replace(census=census, init=init, send=send, server=server)
