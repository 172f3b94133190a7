"""DS-FL: clients exchange predictions on shared inputs instead of models."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import (
    Algorithm,
    ClientInfo,
    Count,
    Positive,
    Steps,
    decaying,
    head_count,
    trained,
    training_client,
    training_memory,
)
from genfl.algorithms.parts import with_hooks
from genfl.data.plans import plan
from genfl.learning.local import Context, LocalHook, LocalSGD
from genfl.learning.task import Task, Weights
from genfl.options import range_checked
from genfl.rng import Key
from genfl.trees import Tree


@range_checked
def dsfl(
    task: Task,
    local: LocalSGD,
    *hooks: LocalHook,
    shared: Tensor,
    temperature: Positive = 0.1,
    steps: Steps = 50,
    lr: Positive = 0.1,
    batch_size: Count = 100,
    per_round: Steps = 0,
) -> Algorithm:
    """Return DS-FL: clients and server keep their own models, and learn from the cohort's mean predictions.

    A client k learns the last round's soft labels t of the shared inputs u by SGD. Then it trains on its own
    data, and uploads its probabilities ``p_k(u)``. The server sharpens their mean by entropy reduction
    aggregation, ``t(u) ← softmax( 1/|S| Σ_k p_k(u) / T )``. It learns the new t in the same way as the
    clients. The server's model is the one that is evaluated.

    In the first round, there are no soft labels yet. A client that never took part starts from the initial
    model. For hooks of local training, the global model is the client's model after it learned the soft
    labels.

    Source: Itahara et al., IEEE TMC 2021 (arXiv 2008.06180), Algorithm 1.

    In the paper, a round exchanges predictions on a random part of the shared inputs. This is `per_round`; by
    default, a round exchanges predictions on all of them. The message then holds the positions of the part,
    and those of the part before it, whose soft labels it brings.

    Args:
        task: The learning task.
        local: Local training on a client's own data.
        *hooks: Changes to local training.
        shared: Unlabelled inputs that the server and the clients hold, [m, ...].
        temperature: T, positive. A lower T lowers the entropy of the soft labels.
        steps: Steps per round on the soft labels.
        lr: Learning rate of these steps.
        batch_size: Shared inputs in such a step.
        per_round: Number of shared inputs that are drawn in each round. With 0, or if there are fewer, all.
    """
    local = with_hooks("dsfl", local, hooks)
    pupil = LocalSGD(lr)

    drawn = 0 < per_round < len(shared)

    def part(positions: Tree) -> Tensor:
        """Return the shared inputs of a round."""
        return shared[positions["rows"].cpu()] if drawn else shared

    def positions(key: Key) -> Tree:
        """Draw the shared inputs of a round; an empty tree if it is all of them."""
        if not drawn:
            return {}
        rows = np.sort(key.fold("shared").numpy().choice(len(shared), per_round, replace=False))
        return {"rows": torch.from_numpy(rows)}

    def learn(weights: Weights, x: Tensor, targets: Tensor, key: Key) -> Weights:
        state = pupil.start(weights)
        for step, rows in enumerate(plan(len(x), batch_size, steps, 1, key.fold("batches").numpy())):
            batch = {"x": x[rows].to(targets.device), "y": targets[rows]}
            state = pupil.step(state, batch, Context(task, {}, {}, {}, key.fold("step", step)))
        return {"params": state["params"], "buffers": state["buffers"]}

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        first = positions(key)
        zeros = torch.zeros_like(task.predict(weights, part(first)))
        return {"weights": weights, "targets": zeros, "labelled": first, "asked": first}

    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        kept, targets = memory["method"], message["targets"]
        # Zero targets give no gradient, but a forward pass would still change batch norm's statistics.
        first = (targets == 0).all()
        taught = learn(kept, part(message["labelled"]), targets, key)
        begin = trees.map(lambda a, b: torch.where(first, a, b), kept, taught)
        return client.start({**message, "weights": begin}, memory, client_info, key)

    def upload(carry: Tree) -> Tree:
        x = part(carry["message"]["asked"])
        return {"clients": torch.ones(()), "probabilities": torch.softmax(task.predict(trained(carry), x), 1)}

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        mean = aggregate["probabilities"] / aggregate["clients"]
        targets, asked = torch.softmax(mean / temperature, 1), state["asked"]
        weights = learn(state["weights"], part(asked), targets, key)
        return {"weights": weights, "targets": targets, "labelled": asked, "asked": positions(key)}

    def send(state: Tree) -> Tree:
        return {name: state[name] for name in ("targets", "labelled", "asked")}

    client = training_client(
        task, local, upload, {"clients": "sum", "probabilities": "sum"}, remember=trained
    )
    algorithm = Algorithm(
        census=head_count,
        init=init,
        send=send,
        client=client._replace(start=start),
        server=server,
        memory=training_memory(local, lambda weights: weights),
        task=task,
        counts=("clients",),
    )
    return decaying(algorithm, local)
