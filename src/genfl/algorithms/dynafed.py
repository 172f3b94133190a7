"""DynaFed: the server refines FedAvg's mean on data that it learns from the first global models."""

from __future__ import annotations

import math
from typing import Literal

import torch

from genfl import trees
from genfl.algorithms.base import Algorithm, Count, Positive, Steps
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.parts import with_hooks
from genfl.errors import InputError
from genfl.learning.distil import distil
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import Task, Weights
from genfl.learning.trajectory import synthesise
from genfl.options import range_checked
from genfl.rng import Key
from genfl.trees import Tree


@range_checked
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
    weighting: Literal["samples", "uniform"] = "samples",
) -> Algorithm:
    """Return DynaFed, which refines FedAvg's mean on data that imitates its first L rounds.

    At the end of round L, the server learns data D from FedAvg's global models ``w_0, …, w_L``:

    ``D = argmin E_t ‖A(w_t, D) − w_{t+s}‖² / ‖w_t − w_{t+s}‖²``, with ``0 ≤ t ≤ L − s``.

    A takes s′ steps of SGD on D. D consists of inputs X, labels softmax(Y), and A's learning rate. All three
    are learned. From round L on, the mean of every round is refined before it becomes the global model: it
    takes steps of Adam on ``CE(softmax(Y), f(X; w))``. Its batch-norm statistics are those of the clients;
    they never see X. The server sees only FedAvg's sums. Its state keeps the mean matching loss before and
    after the synthesis, ``state["matching"]``.

    X starts as standard normal noise, which suits inputs that are normalised by mean and standard deviation.
    Its values are not limited to the range of inputs. Both are as in the authors' code.

    The defaults are for small models on a CPU. The authors' code for CIFAR-10 uses ``L = 24``, ``s = 3``,
    ``s′ = 20``, 15 samples a class and 3000 iterations. It takes 20 refining steps with a learning rate of
    10⁻⁴.

    Source: Pi et al., CVPR 2023 (arXiv 2211.10878), Section 3.

    Deviations from the authors' code:

    - X is not augmented.
    - Y starts as the one-hot labels times 3, not at zero.
    - Adam's learning rates fall by cosine schedules; in the code they are constant.
    - The target is w_{t+s}, as in the objective above. The code averages some of the models up to w_{t+s}.

    Args:
        task: The learning task.
        local: Local training.
        *hooks: Changes to local training.
        rounds: The number of rounds of the federation, if known.
        trajectory: The number of rounds L of FedAvg whose global models are kept.
        span: The number of rounds s that training on the synthetic data imitates, at most L.
        inner_steps: The number of training steps s′ that imitate these rounds.
        inner_lr: Learning rate of these steps, before it is learned.
        per_class: Synthetic samples for each class.
        synthesis_steps: Iterations of Adam for the synthetic data.
        synthesis_lr: Adam's learning rate at the start of the synthesis.
        refine_steps: Steps on the synthetic data per round. With 0, this is FedAvg.
        refine_lr: Adam's learning rate at the start of each refinement.
        weighting: The weights of clients in the mean model; see `genfl.algorithms.fedavg.fedavg`.

    Raises:
        InputError: The span is longer than the trajectory, or the trajectory is as long as the federation.
    """
    if span > trajectory:
        raise InputError(f"span {span} is longer than the trajectory of {trajectory} rounds; lower span")
    if rounds is not None and trajectory >= rounds:
        raise InputError(
            f"the trajectory of {trajectory} rounds leaves none of {rounds} rounds to refine: this would be"
            " FedAvg; lower trajectory (and span)"
        )
    form = task.shapes()
    shape = form.learnable_input()
    average = fedavg(task, with_hooks("dynafed", local, hooks), weighting=weighting)

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
