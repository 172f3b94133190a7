"""How a client trains: local steps of SGD, with places where methods hook in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genfl import trees
from genfl.learning.task import Aux, Batch, Task, Weights
from genfl.rng import Stream
from genfl.trees import Tree


class Context(NamedTuple):
    """What a hook may read besides the model in training.

    Attributes:
        task: What is learned; a hook may run any model of its form on the batch.
        message: What the server sent this round; ``message["weights"]`` is the global model.
        memory: What the hook's `remember` kept on this client in its last counted round.
        facts: The client's facts (number of samples, label counts).
        key: The step's random stream; a hook that draws folds its own name into it.
    """

    task: Task
    message: Tree
    memory: Tree
    client_info: Tree
    key: Stream


Gradient = Callable[[Tree], tuple[Tree, Aux]]
"""``params -> (gradient of the local objective there, aux of that forward pass)``."""

Penalty = Callable[[Tree, Aux, Batch, Context], Tensor | float]
"""``(params, aux, batch, context) -> scalar`` added to the task's loss."""

Direction = Callable[[Gradient, Tree, Context], tuple[Tree, Aux]]
"""``(gradient, params, context) -> (direction to descend, aux of the first forward pass)``."""


class Memory(NamedTuple):
    """What a client keeps for a hook between the rounds it takes part in.

    Attributes:
        initial: ``(weights) -> memory`` of a client that never took part.
        remember: ``(trained state) -> memory`` after the last step.
    """

    initial: Callable[[Weights], Tree]
    remember: Callable[[Tree], Tree]


nothing = Memory(lambda weights: {}, lambda state: {})
"""The memory of hooks that need none."""


def none(params: Tree, aux: Aux, batch: Batch, context: Context) -> float:
    """The penalty that is zero."""
    return 0.0


def _both(first: Penalty, second: Penalty) -> Penalty:
    if first is none:
        return second
    return lambda *args: first(*args) + second(*args)


def plain(gradient: Gradient, params: Tree, context: Context) -> tuple[Tree, Aux]:
    """The direction that is the gradient itself."""
    return gradient(params)


@dataclass(frozen=True)
class LocalSGD:
    """Local steps of SGD as PyTorch defines it: ``v ← momentum v + g + weight_decay w``, ``w ← w − lr v``.

    Its state is ``{"params", "buffers", "momentum", "steps"}``: the weights in training, the velocity (which
    starts at zero in every round), and how many steps were taken (a scalar tensor).

    Attributes:
        lr: Learning rate, positive.
        momentum: In [0, 1).
        weight_decay: Non-negative, added to the gradient.
        penalty: Added to the task's loss (FedProx, MOON, FedDecorr).
        direction: Turns gradients into the direction to descend (FedSAM, DP-SGD).
        memory: What a client keeps for its next round (MOON's last model).
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    penalty: Penalty = none
    direction: Direction = plain
    memory: Memory = nothing

    def adding(
        self,
        *,
        penalty: Penalty | None = None,
        direction: Direction | None = None,
        memory: Memory | None = None,
    ) -> LocalSGD:
        """Returns this local training with more hooks; penalties add up.

        Raises:
            ValueError: There is a direction, or a memory, already: two of them have no defined meaning.
        """
        changes: dict[str, Any] = {}
        if penalty:
            changes["penalty"] = _both(self.penalty, penalty)
        if direction:
            if self.direction is not plain:
                raise ValueError("local training has one direction; two methods bring their own")
            changes["direction"] = direction
        if memory:
            if self.memory is not nothing:
                raise ValueError("local training has one memory; two methods bring their own")
            changes["memory"] = memory
        return replace(self, **changes)

    def start(self, weights: Weights) -> Tree:
        """Returns the state before the first step."""
        return {
            "params": weights["params"],
            "buffers": weights["buffers"],
            "momentum": trees.zeros_like(weights["params"]) if self.momentum else {},
            "steps": torch.zeros(()),
        }

    def slope(self, params: Tree, buffers: Tree, batch: Batch, context: Context) -> tuple[Tree, Aux]:
        """Returns where to descend from: the local objective's gradient, or what `direction` makes of it.

        Args:
            params: Where.
            buffers: The running statistics there.
            batch: The step's examples.
            context: What the hooks may read, the task among it.

        Returns:
            A tree like `params`, weight decay included, and the aux of the first forward pass.
        """

        def objective(params: Tree) -> tuple[Tensor, Aux]:
            loss, aux = context.task.loss(params, buffers, batch, context.key)
            return loss + self.penalty(params, aux, batch, context), aux

        slope, aux = self.direction(lambda at: gradient(objective, at), params, context)
        if self.weight_decay:
            slope = trees.map(lambda g, w: g + self.weight_decay * w, slope, params)
        return slope, aux

    def step(self, state: Tree, batch: Batch, context: Context, shift: Tree | None = None) -> Tree:
        """Takes one step.

        Args:
            state: The state before.
            batch: The step's examples.
            context: What the hooks may read.
            shift: A constant tree that a method adds to every gradient (control variates, linear terms).

        Returns:
            The state after.
        """
        params = state["params"]
        slope, aux = self.slope(params, state["buffers"], batch, context)
        if shift is not None:
            slope = trees.add(slope, shift)
        velocity = state["momentum"]
        if self.momentum:
            slope = velocity = trees.map(lambda v, g: self.momentum * v + g, velocity, slope)
        return {
            "params": trees.map(lambda w, g: w - self.lr * g, params, slope),
            "buffers": aux.buffers,
            "momentum": velocity,
            "steps": state["steps"] + 1,
        }

    def effective_steps(self, state: Tree) -> Tensor:
        """Returns the sum of the weights with which the steps so far added up their gradients.

        It is their number without momentum, and ``Σ_s (1 − ρ^s) / (1 − ρ)`` over steps s with momentum ρ; 1
        before the first step, so that one may divide by it.
        """
        steps, rho = state["steps"].clamp(min=1), self.momentum
        effective: Tensor = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
        return effective


_batched: ContextVar[bool] = ContextVar("batched", default=False)


@contextlib.contextmanager
def batched() -> Iterator[None]:
    """Makes local training fit for `torch.vmap` for the length of a block."""
    before = _batched.set(True)
    try:
        yield
    finally:
        _batched.reset(before)


def gradient(objective: Callable[[Tree], tuple[Tensor, Aux]], params: Tree) -> tuple[Tree, Aux]:
    """Differentiates a scalar objective.

    Uses autograd directly, but for batches of clients (`batched`), where only `torch.func.grad` works: on
    small models it costs twice the time of a step.

    Returns:
        The gradient, a tree like `params` (zero where the objective does not depend on an entry), and the
        objective's aux, detached.
    """
    if _batched.get():

        def with_plain_aux(params: Tree) -> tuple[Tensor, Tree]:  # torch.func knows no None among tensors
            value, aux = objective(params)
            return value, {name: part for name, part in aux._asdict().items() if part is not None}

        slope, (_, aux) = torch.func.grad_and_value(with_plain_aux, has_aux=True)(params)
        return slope, Aux(**aux)
    with torch.enable_grad():
        variables = trees.map(lambda p: p.detach().requires_grad_(), params)
        value, aux = objective(variables)
        flat = torch.autograd.grad(value, trees.leaves(variables), materialize_grads=True)
    grads = iter(flat)
    outputs = (value if value is None else value.detach() for value in (aux.features, aux.logits))
    return trees.map(lambda _: next(grads), params), Aux(trees.map(torch.detach, aux.buffers), *outputs)
