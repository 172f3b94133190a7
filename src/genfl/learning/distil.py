"""Distillation: training a model on the answers of other models."""

from __future__ import annotations

import torch
from torch import Tensor

from genfl import trees
from genfl.data.plans import plan
from genfl.learning.task import Task, Weights
from genfl.rng import Key


def distil(
    task: Task,
    student: Weights,
    x: Tensor,
    targets: Tensor,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    key: Key,
) -> Weights:
    """Train a student to predict target probabilities, with Adam and a cosine schedule down to zero.

    The loss is the cross-entropy with the targets, ``− Σ_c t_c log p_c``, where p is the student's softmax.
    Its gradient is that of the Kullback-Leibler divergence from the targets to p.

    Args:
        task: The learning task.
        student: The model to start from. It is not changed.
        x: Inputs, [m, ...].
        targets: Probabilities [m, classes], or class indices [m]. A row whose sum is not one is a weight
            times probabilities.
        steps: The number of steps. With 0, the student is returned as it is.
        lr: Adam's learning rate at the start.
        batch_size: Inputs in a step, drawn as for a client; see `genfl.data.plans.plan`.
        key: The random stream.

    Returns:
        The trained student.
    """
    if steps == 0:
        return student
    params = trees.map(lambda p: p.detach().clone().requires_grad_(), student["params"])
    buffers = student["buffers"]
    optimizer = torch.optim.Adam(trees.leaves(params), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, rows in enumerate(plan(len(x), batch_size, steps, 1, key.fold("batches").numpy())):
        batch = {"x": x[rows], "y": targets[rows]}
        with torch.enable_grad():
            loss, aux = task.loss(params, buffers, batch, key.fold("step", step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        buffers = trees.map(torch.detach, aux.buffers)
    return {"params": trees.map(torch.detach, params), "buffers": buffers}
