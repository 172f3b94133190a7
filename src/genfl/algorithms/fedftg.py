"""FedFTG: the server fine-tunes FedAvg's mean against the clients' models, on inputs it generates."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import Algorithm, Count, NonNegative, Positive, ReductionKind, Steps
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.parts import with_hooks
from genfl.errors import InputError
from genfl.learning.conditional import (
    CONVOLUTIONAL,
    ConditionalGenerator,
    ConvolutionalGenerator,
    noise_similarity,
)
from genfl.learning.inspect import TaskShapes
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import Task, Weights
from genfl.options import range_checked
from genfl.rng import Key
from genfl.trees import Tree


@range_checked
def fedftg(
    task: Task,
    local: LocalSGD,
    *hooks: LocalHook,
    steps: Steps = 10,
    lr: Positive = 0.003,
    generator_lr: Positive = 0.01,
    lambda_cls: NonNegative = 10.0,
    lambda_dis: NonNegative = 1.0,
    low: float | None = None,
    high: float | None = None,
    noise: Count = 100,
    batch_size: Count = 32,
    generator: Literal["auto", "conv", "mlp"] = "auto",
    width: Count = 64,
) -> Algorithm:
    """Return FedFTG, which distils the clients' models into FedAvg's mean without any data.

    After aggregation, the models D(·; w_k) are distilled into the mean w. The inputs are ``x̃ = G(y, ε)`` of
    classes ``y ∝ Σ_k n_k^y``, with sums over the cohort. The class-level weights are
    ``α_k^y = n_k^y / Σ_j n_j^y``. Every step descends, for the model w and for the generator G, on

    ``w: L_md = Σ_k α_k^y KL(softmax D(x̃; w_k) ‖ softmax D(x̃; w))``,
    ``G: −L_md + λ_cls CE(Σ_k α_k^y D(x̃; w_k), y) + λ_dis exp(−mean_ij ‖x̃_i − x̃_j‖ ‖ε_i − ε_j‖)``.

    So G looks for inputs of class y on which the mean has most to learn. G is kept from round to round, but
    Adam's moments are not. The server sees every client's model and label counts.

    Source: Zhang et al., CVPR 2022 (arXiv 2203.09249), Algorithm 1. The divergence has the direction of the
    authors' code, where the model fits the clients' probabilities.

    Deviations from the authors' code:

    - One batch serves a step of w and a step of G. The code takes several steps of w for each step of G.
    - All models are in evaluation mode. So batch norm's statistics stay FedAvg's means, and never see
      generated inputs.
    - The code's G gives inputs of mean 0 and standard deviation 1 without limits. Here the outputs are put
      in the range of the data's inputs; see `genfl.learning.conditional.ConvolutionalGenerator`. For inputs
      that are not images, and for small images, G has one hidden layer of 256 units and a sigmoid.
    - The code's λ_cls is 1, and its learning rates are 0.1 and 0.001. The defaults here suit small models
      with few steps, which larger steps of w harm.

    Args:
        task: The learning task.
        local: Local training.
        *hooks: Changes to local training.
        steps: Steps per round. With 0, this is FedAvg.
        lr: Learning rate of SGD for the model.
        generator_lr: Learning rate of Adam for the generator.
        lambda_cls: Weight λ_cls of the classification loss.
        lambda_dis: Weight λ_dis of the similarity of samples; see
            `genfl.learning.conditional.noise_similarity`.
        low: Smallest value of a generated input. By default, that of the data set's format for each channel,
            and 0 if the format does not say.
        high: Largest value of a generated input. By default, that of the data set's format for each channel,
            and 1 if the format does not say.
        noise: Length of ε.
        batch_size: Inputs in a step.
        generator: The network G. ``conv`` is the code's, for images whose height and width are multiples of
            4. ``mlp`` has one hidden layer. ``auto`` is ``conv`` for such images of at least 16×16 pixels.
        width: Maps of the convolutional G; see `genfl.learning.conditional.ConvolutionalGenerator`.

    Raises:
        InputError: The range is empty, or inputs are no images that the convolutional G can make.
    """
    form = task.shapes()
    make_inputs = _generator(form.learnable_input(), form.classes, noise, generator, width)
    lowest, highest = _input_range(form, low, high)
    average = fedavg(task, with_hooks("fedftg", local, hooks))

    def init(weights: Weights, census: Tree, key: Key) -> Tree:
        return {**average.init(weights, census, key), "generator": make_inputs.init(key.fold("generator"))}

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        upload, memory = average.client.finish(carry)
        return {**upload, "label_counts": carry["client_info"]["label_counts"]}, memory

    def server(state: Tree, aggregate: Tree, key: Key) -> Tree:
        teachers = [
            trees.add(state["weights"], trees.scale(1 / weight, delta))
            for weight, delta in zip(aggregate["weight"], aggregate["delta"], strict=True)
        ]
        sums = {name: trees.add(*aggregate[name]) for name in ("weight", "delta")}
        state = average.server(state, sums, key)
        counts = torch.stack(aggregate["label_counts"])
        alpha = class_weights(counts)

        model, g = (
            trees.map(lambda p: p.clone().requires_grad_(), params)
            for params in (state["weights"]["params"], state["generator"])
        )
        sgd = torch.optim.SGD(trees.leaves(model), lr=lr)
        adam = torch.optim.Adam(trees.leaves(g), lr=generator_lr)
        rng = key.fold("fedftg").torch()
        for _ in range(steps):
            y, eps = make_inputs.conditions(counts.sum(0), batch_size, rng)
            x = make_inputs.bounded(make_inputs(g, y, eps), lowest, highest)
            teacher_logits = torch.stack([task.forward(teacher, x)[1] for teacher in teachers])
            logits = task.forward({**state["weights"], "params": model}, x)[1]
            l_md = discrepancy(teacher_logits, logits, alpha[:, y])
            l_cls = F.cross_entropy(ensemble(teacher_logits, alpha[:, y]), y)
            sgd.zero_grad()
            adam.zero_grad()
            l_md.backward(inputs=trees.leaves(model), retain_graph=True)
            hard = -l_md + lambda_cls * l_cls + lambda_dis * noise_similarity(x, eps)
            hard.backward(inputs=trees.leaves(g))
            sgd.step()
            adam.step()
        weights = {**state["weights"], "params": trees.map(torch.detach, model)}
        return {**state, "weights": weights, "generator": trees.map(torch.detach, g)}

    reductions: dict[str, ReductionKind] = dict.fromkeys(("weight", "delta", "label_counts"), "each")
    client = average.client._replace(finish=finish, reductions=reductions)
    return average._replace(init=init, client=client, server=server)


def _generator(
    shape: tuple[int, ...], classes: int, noise: int, kind: str, width: int
) -> ConditionalGenerator:
    fits = ConvolutionalGenerator.fits(shape)
    if kind == "conv" and not fits:
        raise InputError(
            f"fedftg.generator: conv makes images whose height and width are multiples of 4, and inputs are"
            f" {shape}; use mlp"
        )
    if kind == "conv" or (kind == "auto" and fits and min(shape[1:]) >= CONVOLUTIONAL):
        return ConvolutionalGenerator(shape, classes, noise, width)
    return ConditionalGenerator(shape, classes, noise)


def _input_range(form: TaskShapes, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest values of inputs, in shapes that broadcast with one."""
    known = form.input_range or ((0.0,), (1.0,))
    ends = [
        torch.tensor(values if end is None else (end,)).view(-1, *(1 for _ in form.input[1:]))
        for end, values in zip((low, high), known, strict=True)
    ]
    if not bool((ends[0] < ends[1]).all()):
        shown = " to ".join(str([round(value, 3) for value in end.flatten().tolist()]) for end in ends)
        raise InputError(f"fedftg.low: the range of inputs, {shown}, is empty; lower low, or raise high")
    return ends[0], ends[1]


def class_weights(counts: Tensor) -> Tensor:
    """Return ``α_k^y = n_k^y / Σ_j n_j^y`` of label counts [clients, classes]; 0 for an absent class."""
    return counts / counts.sum(0).clamp(min=1)


def ensemble(logits: Tensor, alpha: Tensor) -> Tensor:
    """Return ``Σ_k α_k D_k`` [n, classes] of logits [clients, n, classes] with weights α [clients, n]."""
    return (alpha[:, :, None] * logits).sum(0)


def discrepancy(teachers: Tensor, student: Tensor, alpha: Tensor) -> Tensor:
    """Return L_md, the mean over inputs of ``Σ_k α_k KL(softmax teachers_k ‖ softmax student)``.

    Args:
        teachers: The clients' logits, [clients, n, classes].
        student: The global model's logits, [n, classes].
        alpha: Each client's weight for each input, [clients, n].
    """
    log_p, log_q = teachers.log_softmax(2), student.log_softmax(1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(2)
    return (alpha * divergence).sum(0).mean()
