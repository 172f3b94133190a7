"""A client's step, recorded once and replayed without autograd and Python in between: the same bits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import StepFn
from genfl.engines.fast import FastStats
from genfl.engines.fast.replays import Replays
from genfl.engines.fast.rewrites import graph_of
from genfl.rng import Sampler, Stream
from genfl.trees import Tree

Path = tuple[int | str, ...]
"""An address in a step's stream."""


class DrawFn(Protocol):
    """A function that draws what a replayed step needs."""

    def __call__(self, path: Path, sampler: Sampler, inputs: list[Tensor], positions: list[int]) -> Any:
        """Return what is drawn.

        Args:
            path: Where in the step's stream.
            sampler: How.
            inputs: The step's inputs that the sampler reads.
            positions: Their positions among all inputs.
        """
        ...


class CannotRecord(Exception):
    """A step that cannot be recorded; the message says why."""


class RecordedStep:
    """A step that records itself, for every signature of carry and batch.

    Args:
        step: The step itself.
    """

    def __init__(self, step: StepFn) -> None:
        self.step = step
        self.replays = Replays(f"the step {name_of(step)}")
        self._last: tuple[Tree, Hashable, list[Any]] = (None, None, [])  # carry, its signature and leaves

    def __call__(self, carry: Tree, batch: Tree, key: Stream) -> Tree:
        """Return the carry after the step; see `genfl.algorithms.base.StepFn`."""
        if carry is not self._last[0]:
            self._last = (carry, strided_signature(carry), trees.leaves(carry))
        _, signature, leaves = self._last

        def draw(path: Path, sampler: Sampler, inputs: list[Tensor], positions: list[int]) -> Any:
            return key.fold(*path).draw(sampler, *inputs)

        def play(recording: Recording) -> Tree:
            after = recording(leaves, trees.leaves(batch), draw)
            result = trees.unflatten(carry, after)
            self._last = (result, signature, after)
            return result

        replay = self.replays.of((signature, strided_signature(batch)))
        return replay.run(
            lambda: record(self.step, carry, batch, key), play, lambda: self.step(carry, batch, key)
        )

    def stats(self) -> FastStats:
        """Return what was recorded and replayed."""
        return self.replays.stats()


class Draw(NamedTuple):
    """Something that a step draws.

    Attributes:
        path: Where in the step's stream.
        sampler: How.
        positions: The positions of the inputs that the sampler reads.
        device: Where the result is needed.
    """

    path: Path
    sampler: Sampler
    positions: list[int]
    device: torch.device


class Recording(NamedTuple):
    """The tensor operations of a step.

    Attributes:
        run: ``(*input tensors, *drawn tensors) -> the leaves that change``.
        tensors: The positions of the inputs that are tensors.
        draws: What is drawn.
        changing: The positions of the leaves that a step changes.
    """

    run: Callable[..., Sequence[Tensor]]
    tensors: list[int]
    draws: list[Draw]
    changing: list[int]

    def __call__(self, carry: list[Any], batch: list[Any], draw: DrawFn) -> list[Any]:
        """Return the leaves of the carry after a step.

        Args:
            carry: The leaves of the carry.
            batch: The leaves of the batch.
            draw: Draws what the step needs.
        """
        inputs = carry + batch
        drawn: list[Tensor] = []
        for path, sampler, positions, device in self.draws:
            values = _as_tuple(draw(path, sampler, [inputs[p] for p in positions], positions))
            drawn += [value.to(device) for value in values]
        with torch.no_grad():
            changed = self.run(*(inputs[p] for p in self.tensors), *drawn)
        after = list(carry)
        for position, leaf in zip(self.changing, changed, strict=True):
            after[position] = leaf
        return after


def record(step: StepFn, carry: Tree, batch: Tree, key: Stream) -> Recording:
    """Record a client's step.

    Raises:
        Exception: It cannot be recorded.
    """
    recording, inputs, drawn = trace(step, carry, batch, key)
    return recording._replace(run=graph_of(recording.run, *inputs, *drawn))


def trace(
    step: StepFn, carry: Tree, batch: Tree, key: Stream
) -> tuple[Recording, list[Tensor], list[Tensor]]:
    """Make a client's step a function of tensors alone, what it draws among them.

    Returns:
        A recording that runs the step's own Python, the tensors among the inputs, and those drawn.

    Raises:
        CannotRecord: The step changes its carry's signature, or draws from what it computes.
    """
    leaves = trees.leaves(carry)
    # The message's weights are also where training starts: what is one tensor here need not be later.
    inputs = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves + trees.leaves(batch)]
    tensors = [position for position, leaf in enumerate(inputs) if isinstance(leaf, Tensor)]

    def step_on(inputs: list[Any], stream: Stream) -> Tree:
        count = len(leaves)
        return step(trees.unflatten(carry, inputs[:count]), trees.unflatten(batch, inputs[count:]), stream)

    spy = _Spy(key, inputs, [], [])
    stepped = step_on(inputs, spy)
    if strided_signature(stepped) != strided_signature(carry):
        raise CannotRecord("it changes the structure, shapes, strides or dtypes of its carry")
    after = trees.leaves(stepped)
    changing = [position for position, leaf in enumerate(after) if leaf is not inputs[position]]

    def run(*flat: Tensor) -> list[Tensor]:
        replaced = list(inputs)
        for position, leaf in zip(tensors, flat[: len(tensors)], strict=True):
            replaced[position] = leaf
        rest = iter(flat[len(tensors) :])
        drawn = [tuple(islice(rest, len(v))) if isinstance(v, tuple) else next(rest) for v in spy.drawn]
        after = trees.leaves(step_on(replaced, _Drawn(iter(drawn))))
        return [after[position] for position in changing]

    drawn = [tensor for value in spy.drawn for tensor in _as_tuple(value)]
    return Recording(run, tensors, spy.draws, changing), [inputs[p] for p in tensors], drawn


class _Spy(NamedTuple):
    """A stream that notes what is drawn from it."""

    key: Stream
    inputs: list[Any]
    draws: list[Draw]
    drawn: list[Any]
    path: Path = ()

    def fold(self, *address: int | str) -> _Spy:
        return self._replace(path=self.path + address)

    def draw(self, sampler: Sampler, *tensors: Tensor) -> Any:
        positions = [
            position for tensor in tensors for position, leaf in enumerate(self.inputs) if leaf is tensor
        ]
        if len(positions) != len(tensors):
            raise CannotRecord("it draws from what it computes")
        value = self.key.fold(*self.path).draw(sampler, *tensors)
        self.draws.append(Draw(self.path, sampler, positions, _as_tuple(value)[0].device))
        self.drawn.append(value)
        return value


class _Drawn(NamedTuple):
    """A stream whose draws are known, in turn."""

    values: Iterator[Any]

    def fold(self, *address: int | str) -> _Drawn:
        return self

    def draw(self, sampler: Sampler, *tensors: Tensor) -> Any:
        return next(self.values)


def _as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def name_of(function: Any) -> str:
    """Return where a function is defined, for a person."""
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def strided_signature(tree: Tree) -> Any:
    """Return what is equal for trees on which the same operations may be replayed."""
    if type(tree) is dict:
        return tuple((name, strided_signature(branch)) for name, branch in tree.items())
    if isinstance(tree, Tensor):
        return tree.dtype, tree.device, tree.shape, tree.stride()
    return tree
