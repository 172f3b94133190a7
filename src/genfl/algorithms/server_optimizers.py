"""Server optimizers. They ascend along the clients' mean model change as a pseudo-gradient.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021 (arXiv 2003.00295), Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import Decay, Positive
from genfl.options import range_checked
from genfl.trees import Tree


class ServerOptimizer(NamedTuple):
    """An optimizer of the server's model.

    Attributes:
        init: ``(params) -> state``.
        step: ``(state, params, delta) -> (state, params)``, where `delta` is the mean change of the clients.
        name: The name of the optimizer in error messages.
    """

    init: Callable[[Tree], Tree]
    step: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    name: str = ""


def sgd(lr: float = 1.0) -> ServerOptimizer:
    """Return plain averaging with a server learning rate: ``x ← x + lr Δ`` (FedAvg at ``lr=1``)."""

    def step(state: Tree, params: Tree, delta: Tree) -> tuple[Tree, Tree]:
        return state, trees.map(lambda x, d: x + lr * d, params, delta)

    return ServerOptimizer(lambda params: {}, step, "sgd")


@range_checked
def fedavgm(*, lr: Positive = 1.0, beta: Decay = 0.9) -> ServerOptimizer:
    """Return server momentum: ``m ← β m + Δ``, ``x ← x + lr m``.

    Source: Hsu et al. 2019 (arXiv 1909.06335).

    Args:
        lr: Server learning rate, positive.
        beta: Momentum β, in [0, 1). With 0 and ``lr=1``, this is FedAvg.
    """

    def step(state: Tree, params: Tree, delta: Tree) -> tuple[Tree, Tree]:
        m = trees.map(lambda m, d: beta * m + d, state["m"], delta)
        return {"m": m}, trees.map(lambda x, m: x + lr * m, params, m)

    return ServerOptimizer(lambda params: {"m": trees.zeros_like(params)}, step, "fedavgm")


@range_checked
def fedadam(
    *,
    lr: Positive = 0.1,
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    tau: Positive = 1e-3,
    bias_correction: bool = False,
    initial: float | None = None,
) -> ServerOptimizer:
    """Return Adam on the server: ``v ← β₂ v + (1 − β₂) Δ²``; see `_adaptive`.

    Source: Reddi et al., ICLR 2021 (arXiv 2003.00295), Algorithm 2.

    Args:
        lr: Server learning rate η, positive.
        beta1: Decay of the first moment, in [0, 1).
        beta2: Decay of the second moment, in [0, 1).
        tau: Degree of adaptivity τ, positive. A smaller τ is more adaptive.
        bias_correction: Whether the learning rate in round t = 1, 2, … is
            ``lr √(1 − β₂ᵗ⁺¹) / (1 − β₁ᵗ⁺¹)``, as in Flower's FedAdam. Reddi et al. have no correction.
        initial: v before the first round. If None, τ², the smallest value that the paper allows.
    """

    def second(v: Tensor, d: Tensor) -> Tensor:
        return beta2 * v + (1 - beta2) * d.square()

    return _adaptive("fedadam", lr, beta1, tau, second, initial, beta2 if bias_correction else None)


@range_checked
def fedyogi(
    *,
    lr: Positive = 0.1,
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    tau: Positive = 1e-3,
    initial: float | None = None,
) -> ServerOptimizer:
    """Return Yogi on the server: ``v ← v − (1 − β₂) Δ² sign(v − Δ²)``.

    Source: see `fedadam`.

    Args:
        lr: Server learning rate η, positive.
        beta1: Decay of the first moment, in [0, 1).
        beta2: Decay of the second moment, in [0, 1).
        tau: Degree of adaptivity τ, positive. A smaller τ is more adaptive.
        initial: v before the first round. If None, τ², the smallest value that the paper allows.
    """

    def second(v: Tensor, d: Tensor) -> Tensor:
        square = d.square()
        return v - (1 - beta2) * square * torch.sign(v - square)

    return _adaptive("fedyogi", lr, beta1, tau, second, initial)


@range_checked
def fedadagrad(
    *,
    lr: Positive = 0.1,
    beta1: Decay = 0.0,
    tau: Positive = 1e-3,
    initial: float | None = None,
) -> ServerOptimizer:
    """Return Adagrad on the server: ``v ← v + Δ²``.

    Source: see `fedadam`. The paper has β₁ = 0.

    Args:
        lr: Server learning rate η, positive.
        beta1: Decay of the first moment, in [0, 1).
        tau: Degree of adaptivity τ, positive. A smaller τ is more adaptive.
        initial: v before the first round. If None, τ², the smallest value that the paper allows.
    """
    return _adaptive("fedadagrad", lr, beta1, tau, lambda v, d: v + d.square(), initial)


def _adaptive(
    name: str,
    lr: float,
    beta1: float,
    tau: float,
    second: Callable[[Tensor, Tensor], Tensor],
    initial: float | None,
    bias_beta2: float | None = None,
) -> ServerOptimizer:
    """Return Algorithm 2: ``m ← β₁ m + (1 − β₁) Δ``, v by `second`, ``x ← x + η m / (√v + τ)``."""
    v0 = tau**2 if initial is None else initial

    def init(params: Tree) -> Tree:
        return {
            "m": trees.zeros_like(params),
            "v": trees.map(lambda x: torch.full_like(x, v0), params),
            "rounds": torch.zeros(()),
        }

    def step(state: Tree, params: Tree, delta: Tree) -> tuple[Tree, Tree]:
        rounds = state["rounds"] + 1
        m = trees.map(lambda m, d: beta1 * m + (1 - beta1) * d, state["m"], delta)
        v = trees.map(second, state["v"], delta)
        rate = torch.tensor(lr)
        if bias_beta2 is not None:
            rate = lr * (1 - bias_beta2 ** (rounds + 1)).sqrt() / (1 - beta1 ** (rounds + 1))
        params = trees.map(lambda x, m, v: x + rate * m / (v.sqrt() + tau), params, m, v)
        return {"m": m, "v": v, "rounds": rounds}, params

    return ServerOptimizer(init, step, name)
