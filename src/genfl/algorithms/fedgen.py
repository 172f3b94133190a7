"""FedGen: clients' heads also classify features that a generator, learned by the server, makes of labels."""

from __future__ import annotations

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
from genfl.rng import Key
from genfl.trees import Tree


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
) -> Algorithm:
    """Return FedGen: FedAvg whose clients minimise ``F_k(w) + λ E_{y~p, ε} CE(head_w(G(y, ε)), y)``.

    After aggregation the server goes on with G, a generator of features, by Adam on

    ``E_{y~p, ε} CE(mean_k head_k(G(y, ε)), y) + γ exp(−mean_ij ‖z_i − z_j‖ ‖ε_i − ε_j‖)``, ``z = G(y, ε)``.

    The heads being linear, the mean of their logits is the logits of the mean head, so that sums of uploads
    suffice; the paper's mean counts clients alike, this one, as FedAvg's, by their samples. p is the
    distribution of labels over all clients, and the second term is the authors' code's. Clients train
    without G in the first round, before the server has learned it. It goes on with G, but not Adam's moments,
    from round to round. Of that code it leaves out what the paper's objective has not: decays of λ and of the
    learning rate, and a pull of the predictions on real inputs to those on generated features.

    Source: Zhu et al., ICML 2021 (arXiv 2105.10056), Algorithm 1.

    Args:
        task: What is learned; its model's head is linear.
        local: How a client trains.
        *hooks: Changes to local training.
        weight: Weight λ of the generated features; 0 is FedAvg.
        generator_steps: The server's steps a round.
        generator_lr: Learning rate of Adam; the code's is 3e-4, with which G takes some 15 rounds.
        diversity: Weight γ of the features' similarity; see `genfl.learning.conditional.noise_similarity`.
        noise: Length of ε.
        width: Hidden units of G, which travels to every client of every round.
        batch_size: Generated features in a step, of client and server.
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
    average = fedavg(task, with_hooks("fedgen", local, hooks).with_hook(hook))

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
