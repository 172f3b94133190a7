"""Local training: steps of SGD on a client, with hooks for methods."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from genfl import trees
from genfl.errors import InputError
from genfl.learning.task import Aux, Batch, Task, Weights
from genfl.options import Decay, NonNegative, Positive, Share, check_fields
from genfl.rng import Stream
from genfl.trees import Tree


class Context(NamedTuple):
    """The values that a hook may read besides the model in training.

    Attributes:
        task: The learning task; a hook may run any model of its shapes on the batch.
        message: The server's message of this round; ``message["weights"]`` is the global model.
        memory: The value that the hook's `remember` kept on this client in its last counted round.
        client_info: Facts about the client's data: number of samples, label counts.
        key: The random stream of the step; a hook that draws folds its own name into it.
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


NOISE_SUMS = "noise_sums"
"""Where the state of local training adds up `genfl.learning.task.Aux.noise`, if a measure asks for it."""


class BatchGradient(Protocol):
    """The gradient of the local objective on a batch."""

    def __call__(
        self, params: Tree, buffers: Tree, batch: Batch, context: Context, penalty: Penalty
    ) -> tuple[Tree, Aux]:
        """Return the gradient, a tree like `params`, and the aux of the forward pass.

        Args:
            params: The point at which to differentiate.
            buffers: The running statistics there.
            batch: The step's examples.
            context: The values that hooks may read, the task among them.
            penalty: What hooks add to the task's loss.
        """
        ...


class Memory(NamedTuple):
    """A value that a client keeps for a hook between the rounds in which it trains.

    Attributes:
        initial: ``(weights) -> memory`` of a client that never trained.
        remember: ``(trained state) -> memory`` after the last step.
    """

    initial: Callable[[Weights], Tree]
    remember: Callable[[Tree], Tree]


nothing = Memory(lambda weights: {}, lambda state: {})
"""The memory of hooks that keep nothing."""


class LocalHook(NamedTuple):
    """A change to local training: FedProx, MOON, FedSAM and FedDecorr are hooks.

    A hook sets at least one of its three parts. `LocalSGD.with_hook` applies it.

    Example:
        >>> from genfl import trees
        >>> def pull(params, aux, batch, context):
        ...     return 0.05 * trees.square_norm(trees.sub(params, context.message["weights"]["params"]))
        >>> hook = LocalHook(penalty=pull, name="pull")
        >>> LocalSGD(lr=0.1).with_hook(hook).penalty is pull
        True

    Attributes:
        penalty: ``(params, aux, batch, context) -> scalar``, added to the task's loss. Penalties of several
            hooks add up.
        direction: ``(gradient, params, context) -> (direction, aux)``, used in place of the gradient.
        memory: The value that a client keeps for its next round.
        name: The name of the hook in error messages.
    """

    penalty: Penalty | None = None
    direction: Direction | None = None
    memory: Memory | None = None
    name: str = ""


def no_penalty(params: Tree, aux: Aux, batch: Batch, context: Context) -> float:
    """Return zero: the penalty of local training without hooks."""
    return 0.0


def _sum_of(first: Penalty, second: Penalty) -> Penalty:
    if first is no_penalty:
        return second
    return lambda *args: first(*args) + second(*args)


def plain_gradient(gradient: Gradient, params: Tree, context: Context) -> tuple[Tree, Aux]:
    """Return the gradient itself: the direction of local training without hooks."""
    return gradient(params)


def mean_gradient(
    params: Tree, buffers: Tree, batch: Batch, context: Context, penalty: Penalty
) -> tuple[Tree, Aux]:
    """Return the gradient of the mean loss over a batch, penalty included; see `BatchGradient`."""

    def objective(params: Tree) -> tuple[Tensor, Aux]:
        loss, aux = context.task.loss(params, buffers, batch, context.key)
        return loss + penalty(params, aux, batch, context), aux

    return differentiate(objective, params)


@dataclass(frozen=True)
class LocalSGD:
    """Local training by SGD as PyTorch defines it: ``v ← momentum v + g + weight_decay w``, ``w ← w − lr v``.

    The state is ``{"params", "buffers", "momentum", "steps"}``: the weights in training, the velocity (zero
    at the start of every round), and the number of steps taken (a scalar tensor). If the learning rate
    decays, the state also has ``lr``, that of the round (a scalar tensor, which the server sends).

    Example:
        >>> LocalSGD(lr=0.05, momentum=0.9).lr
        0.05

    Attributes:
        lr: Learning rate, positive.
        momentum: In [0, 1).
        weight_decay: Non-negative, added to the gradient.
        penalty: Added to the task's loss (FedProx, MOON, FedDecorr).
        direction: Turns gradients into the direction to descend (FedSAM).
        memory: The value that a client keeps for its next round (MOON's last model).
        lr_decay: Factor on the learning rate after every round, in (0, 1]. In round t it is
            ``lr · lr_decay^(t − 1)``.
        batch_gradient: The gradient on a batch: of the mean loss, or with differential privacy (DP-SGD).
    """

    lr: Positive
    momentum: Decay = 0.0
    weight_decay: NonNegative = 0.0
    penalty: Penalty = no_penalty
    direction: Direction = plain_gradient
    memory: Memory = nothing
    lr_decay: Share = 1.0
    batch_gradient: BatchGradient = mean_gradient

    def __post_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        numbers = [
            f"{name}={getattr(self, name):g}"
            for name in ("lr", "momentum", "weight_decay")
            if getattr(self, name)
        ]
        if self.decays:
            numbers.append(f"lr_decay={self.lr_decay:g}")
        defaults = {"penalty": no_penalty, "direction": plain_gradient, "memory": nothing}
        defaults |= {"batch_gradient": mean_gradient}
        hooks = [f"with a {part}" for part, none in defaults.items() if getattr(self, part) is not none]
        return f"LocalSGD({', '.join(numbers + hooks)})"

    def with_hook(self, hook: LocalHook) -> LocalSGD:
        """Return this local training with one more hook.

        Args:
            hook: The hook; its penalty is added to the penalties of earlier hooks.

        Raises:
            InputError: The hook sets a direction or a memory, and an earlier hook has set one: two of them
                have no defined meaning.
        """
        changes: dict[str, Any] = {}
        if hook.penalty:
            changes["penalty"] = _sum_of(self.penalty, hook.penalty)
        for part, default in (("direction", plain_gradient), ("memory", nothing)):
            value = getattr(hook, part)
            if value is None:
                continue
            if getattr(self, part) is not default:
                raise InputError(
                    f"{hook.name or 'local hook'}: local training has one {part}, and another hook sets it;"
                    " keep one of them"
                )
            changes[part] = value
        return replace(self, **changes)

    @property
    def decays(self) -> bool:
        """Whether the learning rate changes from round to round."""
        return self.lr_decay != 1

    def start(self, weights: Weights, lr: Tensor | None = None) -> Tree:
        """Return the state before the first step.

        Args:
            weights: The weights to start from.
            lr: The learning rate of the round, a scalar. It is only read if the learning rate decays.

        Raises:
            InputError: The learning rate decays, and none is sent.
        """
        state = {
            "params": weights["params"],
            "buffers": weights["buffers"],
            "momentum": trees.zeros_like(weights["params"]) if self.momentum else {},
            "steps": torch.zeros(()),
        }
        if not self.decays:
            return state
        if lr is None:
            raise InputError(
                "LocalSGD.lr_decay: the method's server sends no learning rate; return"
                " genfl.algorithms.base.decaying(algorithm, local) from its builder"
            )
        return {**state, "lr": lr}

    def rate(self, state: Tree) -> Tensor | float:
        """Return the learning rate of the round."""
        rate: Tensor | float = state["lr"] if self.decays else self.lr
        return rate

    def gradient(self, params: Tree, buffers: Tree, batch: Batch, context: Context) -> tuple[Tree, Aux]:
        """Return the gradient of the local objective, or the direction that `direction` makes of it.

        Args:
            params: The point at which to differentiate.
            buffers: The running statistics there.
            batch: The step's examples.
            context: The values that hooks may read, the task among them.

        Returns:
            A tree like `params`, weight decay included, and the aux of the first forward pass.
        """

        def gradient_at(at: Tree) -> tuple[Tree, Aux]:
            return self.batch_gradient(at, buffers, batch, context, self.penalty)

        gradient, aux = self.direction(gradient_at, params, context)
        if self.weight_decay:
            gradient = trees.map(lambda g, w: g + self.weight_decay * w, gradient, params)
        return gradient, aux

    def step(self, state: Tree, batch: Batch, context: Context, shift: Tree | None = None) -> Tree:
        """Return the state after one step.

        Args:
            state: The state before.
            batch: The step's examples.
            context: The values that hooks may read.
            shift: A constant tree that a method adds to every gradient (control variates, linear terms).
        """
        params = state["params"]
        gradient, aux = self.gradient(params, state["buffers"], batch, context)
        if shift is not None:
            gradient = trees.add(gradient, shift)
        velocity, lr = state["momentum"], self.rate(state)
        if self.momentum:
            gradient = velocity = trees.map(lambda v, g: self.momentum * v + g, velocity, gradient)
        if aux.noise is not None and NOISE_SUMS in state:
            state = {**state, NOISE_SUMS: state[NOISE_SUMS] + aux.noise}
        return {
            **state,
            "params": trees.map(lambda w, g: w - lr * g, params, gradient),
            "buffers": aux.buffers,
            "momentum": velocity,
            "steps": state["steps"] + 1,
        }

    def effective_steps(self, state: Tree) -> Tensor:
        """Return the effective number of steps: the sum of the weights of all gradients so far.

        Without momentum, this is the number of steps. With momentum ρ it is ``Σ_s (1 − ρ^s) / (1 − ρ)`` over
        steps s. Before the first step it is 1, so that callers may divide by it.
        """
        steps, rho = state["steps"].clamp(min=1), self.momentum
        effective: Tensor = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
        return effective


_batched: ContextVar[bool] = ContextVar("batched", default=False)


@contextlib.contextmanager
def batched() -> Iterator[None]:
    """Make local training fit for `torch.vmap` within a block."""
    before = _batched.set(True)
    try:
        yield
    finally:
        _batched.reset(before)


def differentiate(objective: Callable[[Tree], tuple[Tensor, Aux]], params: Tree) -> tuple[Tree, Aux]:
    """Return the gradient of a scalar objective.

    Autograd is used directly. Batches of clients (`batched`) need `torch.func.grad`, which doubles the time
    of a step on small models.

    Returns:
        The gradient, a tree like `params` (zero where the objective does not depend on an entry), and the
        objective's aux, detached.
    """
    if _batched.get():

        def with_plain_aux(params: Tree) -> tuple[Tensor, Tree]:  # torch.func takes no None among tensors
            value, aux = objective(params)
            return value, {name: part for name, part in aux._asdict().items() if part is not None}

        gradient, (_, aux) = torch.func.grad_and_value(with_plain_aux, has_aux=True)(params)
        return gradient, Aux(**aux)
    with torch.enable_grad():
        variables = trees.map(lambda p: p.detach().requires_grad_(), params)
        value, aux = objective(variables)
        flat = torch.autograd.grad(value, trees.leaves(variables), materialize_grads=True)
    grads = iter(flat)
    outputs = (value if value is None else value.detach() for value in (aux.features, aux.logits))
    return trees.map(lambda _: next(grads), params), Aux(trees.map(torch.detach, aux.buffers), *outputs)
