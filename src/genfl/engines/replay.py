"""A client's step, recorded once and replayed without autograd and Python in between: the same bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import Client
from genfl.engines.base import Engine, Outcome, Work
from genfl.rng import Sampler, Stream
from genfl.trees import Tree

log = logging.getLogger(__name__)

AFTER = 1000
"""Steps of one form that a process takes before it records one, which costs it about a second."""

TRIALS = 3
"""Replays that are compared with the step itself before they are believed."""


class Replaying:
    """Runs programs on another engine, which may replay their steps.

    Args:
        engine: What executes the work.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._program: Client | None = None

    def __call__(self, program: Client, work: Sequence[Work]) -> Outcome:
        """Runs the program for each client of the cohort; see `genfl.engines.base.Engine`."""
        if program is not self._program:
            self._program, self._replayed = program, replayed(program)
        return self.engine(self._replayed, work)


def replayed(program: Client) -> Client:
    """Returns a program of the same bits whose step, after many, replays the tensor operations of one.

    What a step draws is no part of the recording: it is drawn anew, from the step's stream. A step that
    cannot be recorded, or whose replays differ from it in one bit, runs as it is.
    """
    return program._replace(step=_Step(program.step))


class _CannotReplay(Exception):
    """Says why."""


@dataclass
class _Form:
    """Steps whose carries and batches are of one form."""

    taken: int = 0
    recording: _Recording | None = None
    hopeless: bool = False


class _Step:
    """A step that records itself, for every form of carry and batch."""

    def __init__(self, step: Callable[[Tree, Tree, Stream], Tree]) -> None:
        self.step = step
        self.forms: dict[Any, _Form] = {}
        self.last: tuple[Tree, Any, list[Any]] = (None, None, [])  # carry, its form and leaves

    def __call__(self, carry: Tree, batch: Tree, key: Stream) -> Tree:
        if carry is not self.last[0]:
            self.last = (carry, _form(carry), trees.leaves(carry))
        _, of_carry, leaves = self.last
        form = self.forms.setdefault((of_carry, _form(batch)), _Form())
        form.taken += 1
        if form.hopeless or form.taken <= AFTER:
            return self.step(carry, batch, key)
        try:
            if form.recording is None:
                form.recording = _record(self.step, carry, batch, key)
            after = form.recording(leaves, trees.leaves(batch), key)
        except Exception as error:  # whatever it is, the step itself can do without
            form.hopeless = True
            log.info("a client's step is not replayed: %s", str(error).partition("\n")[0])
            return self.step(carry, batch, key)
        if form.taken > AFTER + TRIALS:
            result = trees.unflatten(carry, after)
            self.last = (result, of_carry, after)
            return result
        expected = self.step(carry, batch, key)
        if not all(map(_same, after, trees.leaves(expected))):
            form.hopeless = True
            log.info("a client's step is not replayed: its replays differ from it")
        return expected


class _Draw(NamedTuple):
    """Something a step draws: where in its stream, how, and from which of its inputs."""

    path: tuple[int | str, ...]
    sampler: Sampler
    given: list[int]


class _Recording(NamedTuple):
    """The tensor operations of a step.

    Attributes:
        run: ``(*input tensors, *drawn tensors) -> the leaves that move``.
        tensors: The places of the inputs that are tensors.
        draws: What is drawn.
        moving: The places of the leaves that a step changes.
    """

    run: Callable[..., list[Tensor]]
    tensors: list[int]
    draws: list[_Draw]
    moving: list[int]

    def __call__(self, carry: list[Any], batch: list[Any], key: Stream) -> list[Any]:
        """Returns the leaves of the carry after a step."""
        inputs = carry + batch
        drawn: list[Tensor] = []
        for path, sampler, given in self.draws:
            drawn += _several(key.fold(*path).draw(sampler, *(inputs[place] for place in given)))
        with torch.no_grad():
            moved = self.run(*(inputs[place] for place in self.tensors), *drawn)
        after = list(carry)
        for place, leaf in zip(self.moving, moved, strict=True):
            after[place] = leaf
        return after


def _record(step: Callable[[Tree, Tree, Stream], Tree], carry: Tree, batch: Tree, key: Stream) -> _Recording:
    from torch.fx.experimental.proxy_tensor import make_fx

    leaves = trees.leaves(carry)
    # The message's weights are also where training starts: what is one tensor here need not be later.
    inputs = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves + trees.leaves(batch)]
    tensors = [place for place, leaf in enumerate(inputs) if isinstance(leaf, Tensor)]

    def take(inputs: list[Any], stream: Stream) -> list[Any]:
        count = len(leaves)
        after = step(trees.unflatten(carry, inputs[:count]), trees.unflatten(batch, inputs[count:]), stream)
        if _form(after) != _form(carry):
            raise _CannotReplay("it changes the form of its carry")
        return trees.leaves(after)

    spy = _Spy(key, inputs, [], [])
    after = take(inputs, spy)
    moving = [place for place, leaf in enumerate(after) if leaf is not inputs[place]]

    def again(*flat: Tensor) -> list[Tensor]:
        own = list(inputs)
        for place, leaf in zip(tensors, flat[: len(tensors)], strict=True):
            own[place] = leaf
        rest = iter(flat[len(tensors) :])
        drawn = [tuple(islice(rest, len(v))) if isinstance(v, tuple) else next(rest) for v in spy.drawn]
        after = take(own, _Told(iter(drawn)))
        return [after[place] for place in moving]

    drawn = [tensor for value in spy.drawn for tensor in _several(value)]
    graph = make_fx(again)(*(inputs[place] for place in tensors), *drawn)
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.detach.default:  # without autograd, a tensor's other name
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    return _Recording(graph.forward, tensors, spy.draws, moving)


class _Spy(NamedTuple):
    """A stream that notes what is drawn from it."""

    key: Stream
    inputs: list[Any]
    draws: list[_Draw]
    drawn: list[Any]
    path: tuple[int | str, ...] = ()

    def fold(self, *address: int | str) -> _Spy:
        return self._replace(path=self.path + address)

    def draw(self, sampler: Sampler, *given: Tensor) -> Any:
        places = [place for tensor in given for place, leaf in enumerate(self.inputs) if leaf is tensor]
        if len(places) != len(given):
            raise _CannotReplay("it draws from what it computes")
        value = self.key.fold(*self.path).draw(sampler, *given)
        self.draws.append(_Draw(self.path, sampler, places))
        self.drawn.append(value)
        return value


class _Told(NamedTuple):
    """A stream of which is known what is drawn from it, in turn."""

    drawn: Iterator[Any]

    def fold(self, *address: int | str) -> _Told:
        return self

    def draw(self, sampler: Sampler, *given: Tensor) -> Any:
        return next(self.drawn)


def _several(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, 0, 0, equal_nan=True))


def _form(tree: Tree) -> Any:
    """Returns what is equal for trees on which the same operations may be replayed."""
    if type(tree) is dict:
        return tuple((name, _form(branch)) for name, branch in tree.items())
    if isinstance(tree, Tensor):
        return tree.dtype, tree.device, tree.shape, tree.stride()
    return tree
