"""Trajectory matching: learn data on which training follows a path through weight space."""

from __future__ import annotations

import torch
from torch import Tensor

from genfl import trees
from genfl.data.plans import plan
from genfl.learning.task import Task, Weights
from genfl.rng import Key
from genfl.trees import Tree


def train(task: Task, start: Weights, data: Tree, *, steps: int, key: Key) -> Tree:
    """Return the parameters after SGD on all of the data, ``w ← w − exp(λ) ∇loss(w; X, softmax(Y))``.

    Args:
        task: The learning task.
        start: The weights to start from. They are constants.
        data: ``{"x": X [m, ...], "y": Y [m, classes] logits, "log_lr": λ}``.
        steps: The number of steps.
        key: The random stream.

    Returns:
        The parameters after the last step. They can be differentiated with respect to `data`.
    """
    batch = {"x": data["x"], "y": data["y"].softmax(1)}
    params = trees.map(lambda w: w.detach().requires_grad_(), start["params"])
    buffers = start["buffers"]
    for step in range(steps):
        loss, aux = task.loss(params, buffers, batch, key.fold("step", step))
        flat = torch.autograd.grad(loss, trees.leaves(params), create_graph=True, materialize_grads=True)
        gradients = iter(flat)
        params = trees.map(lambda w, g=gradients: w - data["log_lr"].exp() * next(g), params)
        buffers = aux.buffers
    return params


def matching_loss(task: Task, start: Weights, target: Weights, data: Tree, *, steps: int, key: Key) -> Tensor:
    """Return ``‖A(w, D) − w′‖² / ‖w − w′‖²``, a scalar. It is 0 where training A on D leads from w to w′.

    Only parameters count, not buffers. The arguments are those of `train`, and `target` is w′.
    """
    end = train(task, start, data, steps=steps, key=key)
    miss, way = (trees.sub(target["params"], params) for params in (end, start["params"]))
    length = trees.square_norm(
        way
    )  # 0 if the model did not move, for example because every upload was rejected
    return trees.square_norm(miss) / length.clamp(min=1e-12)


def synthesise(
    task: Task, path: Weights, data: Tree, *, span: int, steps: int, iterations: int, lr: float, key: Key
) -> tuple[Tree, Tensor]:
    """Learn data on which a few steps of training imitate `span` steps of a path.

    The objective is ``min_D E_t ‖A(w_t, D) − w_{t+s}‖² / ‖w_t − w_{t+s}‖²``. The point t is uniform over all
    points of the path that have another s steps later. The optimizer is Adam, with a cosine schedule down to
    zero. The gradients of X, Y and λ are each scaled to norm one. A step takes one t, a pass every t.

    Source: Pi et al., CVPR 2023 (arXiv 2211.10878), Section 3; Cazenavette et al., CVPR 2022 (arXiv
    2203.11932).

    Args:
        task: The learning task.
        path: The points in order, stacked. The first dimension of every leaf is larger than `span`.
        data: The data to start with; see `train`.
        span: The distance s.
        steps: The number of training steps in A.
        iterations: The number of Adam steps.
        lr: Adam's learning rate at the start.
        key: The random stream.

    Returns:
        The data, and the mean of the matching loss over all t, before and after, [2].
    """
    starts = len(trees.leaves(path)[0]) - span
    data = trees.map(lambda leaf: leaf.clone().requires_grad_(), data)

    def loss(t: int, key: Key) -> Tensor:
        w, w_after = (trees.map(lambda leaf, i=i: leaf[i], path) for i in (t, t + span))
        return matching_loss(task, w, w_after, data, steps=steps, key=key)

    def mean() -> Tensor:
        return torch.stack([loss(t, key.fold("mean", t)).detach() for t in range(starts)]).mean()

    with torch.enable_grad():
        before = mean()
        adam = torch.optim.Adam(trees.leaves(data), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(iterations, 1))
        for i, t in enumerate(plan(starts, 1, iterations, 1, key.fold("starts").numpy())):
            adam.zero_grad()
            loss(int(t), key.fold("iteration", i)).backward()
            for leaf in trees.leaves(data):  # a single large gradient would slow Adam for a thousand steps
                leaf.grad /= leaf.grad.norm() + 1e-12  # type: ignore[union-attr]
            adam.step()
            schedule.step()
        after = mean()
    return trees.map(torch.detach, data), torch.stack([before, after])
