"""Training a model on the answers of others."""

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
    """Train a student to give the target probabilities, with Adam and a cosine schedule down to zero.

    The loss is the cross-entropy with the targets, ``− Σ_c t_c log p_c``, whose gradient is that of the
    Kullback-Leibler divergence from the targets to the student's softmax p.

    Args:
        task: What is learned.
        student: The model to start from; it is left alone.
        x: Inputs, [m, ...].
        targets: Probabilities [m, classes], or class indices [m]. Rows of another sum than one are weights
            times probabilities: they add up as losses do.
        steps: How many; none give the student back.
        lr: Adam's learning rate at the start.
        batch_size: Inputs in a step, drawn as a client's are; see `genfl.data.plans.plan`.
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
