"""DynaFed: the server refines FedAvg's mean on data that it learns from its first global models."""

from __future__ import annotations

import math

import torch

from genfl import trees
from genfl.algorithms.base import Algorithm, Count, Positive, Steps
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.parts import with_hooks
from genfl.learning.distil import distil
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import Task, Weights
from genfl.learning.trajectory import synthesise
from genfl.rng import Key
from genfl.trees import Tree


def dynafed(
    task: Task,
    local: LocalSGD,
    *hooks: LocalHook,
    rounds: int | None = None,
    trajectory: Count = 20,
    span: Count = 10,
    inner_steps: Count = 10,
    inner_lr: Positive = 0.1,
    per_class: Count = 5,
    synthesis_steps: Steps = 250,
    synthesis_lr: Positive = 0.1,
    refine_steps: Steps = 20,
    refine_lr: Positive = 1e-4,
) -> Algorithm:
    """Return DynaFed, which refines FedAvg's mean on data that imitates its first L rounds.

    From round L on, the data D trains a model as the first L rounds did.

    ``D = argmin E_t ‖A(w_t, D) − w_{t+s}‖² / ‖w_t − w_{t+s}‖²``, with ``0 ≤ t ≤ L − s``, is found once, at
    the end of round L, from FedAvg's global models ``w_0, …, w_L``. A takes s′ steps of SGD on D, which is
    inputs X, labels softmax(Y), and A's learning rate, all of them learned. From then on the mean of every
    round takes steps of Adam on ``CE(softmax(Y), f(X; w))`` before it becomes the global model; its
    batch-norm statistics stay the clients', and never see X. The server sees nothing but FedAvg's sums.

    Defaults are for small models on a CPU; the authors' code for CIFAR-10 has ``L = 24``, ``s = 3``,
    ``s′ = 20``, 15 samples a class, 3000 iterations and 20 refining steps with a learning rate of 10⁻⁴. It
    also draws augmentations of X, starts Y at zero, keeps Adam's rates constant, and averages some of the
    models up to w_{t+s} for a target; here there is no augmentation, every sample starts as one of a class,
    Adam's rates fall by cosine schedules, and the target is w_{t+s} as in the objective above.

    Source: Pi et al., CVPR 2023 (arXiv 2211.10878), Section 3.

    Args:
        task: What is learned.
        local: How a client trains.
        *hooks: Changes to local training.
        rounds: How many rounds there will be, if known.
        trajectory: The number of rounds L, of FedAvg, whose global models are kept.
        span: Rounds s that the synthetic data is to stand for, at most L.
        inner_steps: Steps s′ of training on it in their place.
        inner_lr: Their learning rate, to start with.
        per_class: Synthetic samples for each class.
        synthesis_steps: Iterations of Adam for the synthetic data.
        synthesis_lr: Their learning rate at the start.
        refine_steps: Steps on the synthetic data a round; without any it is FedAvg.
        refine_lr: Adam's learning rate at the start of each refinement.

    Raises:
        ValueError: The span is longer than the trajectory, or the trajectory as long as the federation.

    The server's state keeps the mean matching loss before and after the synthesis, ``state["matching"]``.
    """
    if span > trajectory:
        raise ValueError(f"span {span} is longer than the trajectory of {trajectory} rounds")
    if rounds is not None and trajectory >= rounds:
        raise ValueError(
            f"the trajectory of {trajectory} rounds leaves none of {rounds} to refine: it would be FedAvg;"
            " lower trajectory (and span)"
        )
    form = task.shapes()
    shape = form.learnable_input()
    average = fedavg(task, with_hooks("dynafed", local, hooks))

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        m = per_class * form.classes
        return {
            **average.init(weights, census, key),
            "round": torch.zeros((), dtype=torch.int64),
            "trajectory": trees.map(lambda w: torch.stack([w] * (trajectory + 1)), weights),
            "data": {
                "x": torch.randn(m, *shape, generator=key.fold("dynafed").torch()),
                "y": 3 * torch.eye(form.classes).repeat(per_class, 1),
                "log_lr": torch.tensor(math.log(inner_lr)),
            },
            "matching": torch.zeros(2),
        }

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        state = average.server(state, aggregate, key)
        number, weights, data = state["round"] + 1, state["weights"], state["data"]
        path, matching = state["trajectory"], state["matching"]
        if number <= trajectory:
            path = trees.map(lambda points, w: torch.cat([points[1:], w[None]]), path, weights)
        if number == trajectory:
            data, matching = synthesise(
                task,
                path,
                data,
                span=span,
                steps=inner_steps,
                iterations=synthesis_steps,
                lr=synthesis_lr,
                key=key,
            )
        if number >= trajectory:
            x, y = data["x"], data["y"].softmax(1)
            refined = distil(
                task, weights, x, y, steps=refine_steps, lr=refine_lr, batch_size=len(x), key=key
            )
            weights = {**weights, "params": refined["params"]}
        return {
            **state,
            "weights": weights,
            "round": number,
            "trajectory": path,
            "data": data,
            "matching": matching,
        }

    return average._replace(init=init, server=server)
