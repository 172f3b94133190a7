"""The parts that algorithms are combined of: local hooks, server optimizers and weightings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

from genfl.algorithms.server_optimizers import ServerOptimizer, sgd
from genfl.algorithms.weighting import Weighting, by_samples
from genfl.errors import InputError
from genfl.learning.local import LocalHook, LocalSGD

Part = LocalHook | ServerOptimizer | Weighting
"""A change to FedAvg in one place; builders such as `fedprox`, `fedadam` and `feddisco` return one."""


class Parts(NamedTuple):
    """The parts of one algorithm, by kind.

    Attributes:
        local: Local training with all hooks.
        server_optimizer: The server's optimizer; plain averaging unless a part sets one.
        weighting: The weights of clients; their numbers of samples unless a part sets another.
    """

    local: LocalSGD
    server_optimizer: ServerOptimizer
    weighting: Weighting


def sort_parts(local: LocalSGD, parts: Sequence[Part]) -> Parts:
    """Return the parts of an algorithm by kind, whatever their order.

    Args:
        local: Local training before the hooks.
        parts: Any number of different hooks, at most one server optimizer and at most one weighting.

    Raises:
        InputError: Two parts take the same place, or a value is no part, such as a builder that was not
            called. The message names them.
    """
    for part in parts:
        if not isinstance(part, Part):
            fix = f"call it, as in {part.__name__}()" if inspect.isfunction(part) else "leave it out"
            raise InputError(f"parts: {_shown(part)} is no LocalHook, ServerOptimizer or Weighting; {fix}")
    hooks = [part for part in parts if isinstance(part, LocalHook)]
    optimizers = [part for part in parts if isinstance(part, ServerOptimizer)]
    weightings = [part for part in parts if isinstance(part, Weighting)]
    _refuse_rivals(optimizers)
    _refuse_rivals(weightings)
    for hook in hooks:
        if hook.name:
            _refuse_rivals([other for other in hooks if other.name == hook.name])
        local = local.with_hook(hook)
    optimizer = optimizers[0] if optimizers else sgd()
    return Parts(local, optimizer, weightings[0] if weightings else by_samples)


def with_hooks(method: str, local: LocalSGD, parts: Sequence[Part]) -> LocalSGD:
    """Return local training with the hooks of a method that has its own server.

    Args:
        method: The name of the method, for messages.
        local: Local training before the hooks.
        parts: Any number of different hooks.

    Raises:
        InputError: Two hooks take the same place, a part changes FedAvg's server, or a value is no hook.
    """
    for part in parts:
        if isinstance(part, ServerOptimizer | Weighting):
            raise InputError(
                f"{part_name(part)} is a variant of FedAvg's server, and {method} has its own; keep one"
            )
    return sort_parts(local, parts).local


def _shown(value: object) -> str:
    return str(getattr(value, "__name__", None) or f"a {type(value).__name__}")


def part_name(part: Part) -> str:
    """Return the name of a part, or of its kind where it has none."""
    return part.name or type(part).__name__


def _refuse_rivals(parts: Sequence[Part]) -> None:
    if len(parts) > 1:
        raise InputError(f"{' and '.join(map(part_name, parts))} take the same place; keep one")
