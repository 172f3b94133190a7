"""A client's step, recorded once and replayed without autograd and Python in between: the same bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import ClientProgram
from genfl.engines.fast import FastStats
from genfl.engines.fast.rewrites import graph_of
from genfl.rng import Sampler, Stream
from genfl.trees import Tree

log = logging.getLogger(__name__)

AFTER = 1000
"""Clients' steps of one form that a process takes before it records one, which costs it about a second."""

TRIALS = 3
"""Replays that are compared with the step itself before they are believed."""

_T = TypeVar("_T")

Step = Callable[[Tree, Tree, Stream], Tree]
"""``(carry, batch, stream) -> carry``."""

Path = tuple[int | str, ...]
"""A place in a step's stream."""

Draw = Callable[[Path, Sampler, list[Tensor], list[int]], Any]
"""``(path, sampler, given, places) -> drawn``, given some of a step's inputs, and their places among them."""


def replayed(program: ClientProgram) -> ClientProgram:
    """Returns a program of the same bits whose step, after many, replays the tensor operations of one.

    What a step draws is no part of the recording: it is drawn anew, from the step's stream. A step that
    cannot be recorded, or whose replays differ from it in one bit, runs as it is.
    """
    return program._replace(step=_Step(program.step))


class _CannotReplay(Exception):
    """Says why."""


class Replays:
    """Replays of what clients of one form do: their steps, or what comes after the last one."""

    def __init__(self) -> None:
        self.taken = 0
        self.replayed = 0
        self.compared = 0
        self.recording: Any = None
        self.hopeless = False

    @property
    def believed(self) -> bool:
        """Whether enough replays were the same as the step itself."""
        return self.compared >= TRIALS and not self.hopeless

    def replay(
        self, record: Callable[[], _T], play: Callable[[_T], Sequence[Any]], clients: int = 1
    ) -> list[Any] | None:
        """Returns the leaves that a replay gives; to be compared with the thing's own until `believed`.

        Args:
            record: Records what is done.
            play: Plays the recording.
            clients: How many clients do it.

        Returns:
            None if it is not replayed.
        """
        self.taken += clients
        if self.hopeless or self.taken <= AFTER:
            return None
        try:
            if self.recording is None:
                self.recording = record()
            leaves = list(play(self.recording))
        except Exception as error:  # whatever it is, the step itself can do without
            self._give_up(str(error).partition("\n")[0])
            return None
        if self.believed:
            self.replayed += clients
        return leaves

    def compare(self, replayed: list[Any], own: list[Any]) -> None:
        """Takes the leaves that a replay gave, and those that the thing itself gave."""
        self.compared += 1
        if not all(map(_same, replayed, own)):
            self._give_up("its replays differ from it")

    def _give_up(self, why: str) -> None:
        self.hopeless, self.recording = True, None
        log.info("what clients do runs as it is, not recorded and replayed: %s", why)


class _Step:
    """A step that records itself, for every form of carry and batch."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.forms: dict[Any, Replays] = {}
        self.last: tuple[Tree, Any, list[Any]] = (None, None, [])  # carry, its form and leaves

    def __call__(self, carry: Tree, batch: Tree, key: Stream) -> Tree:
        if carry is not self.last[0]:
            self.last = (carry, strided_signature(carry), trees.leaves(carry))
        _, of_carry, leaves = self.last
        replays = self.forms.setdefault((of_carry, strided_signature(batch)), Replays())

        def draw(path: Path, sampler: Sampler, given: list[Tensor], places: list[int]) -> Any:
            return key.fold(*path).draw(sampler, *given)

        after = replays.replay(
            lambda: record(self.step, carry, batch, key),
            lambda recording: recording(leaves, trees.leaves(batch), draw),
        )
        if after is not None and replays.believed:
            result = trees.unflatten(carry, after)
            self.last = (result, of_carry, after)
            return result
        expected = self.step(carry, batch, key)
        if after is not None:
            replays.compare(after, trees.leaves(expected))
        return expected

    def stats(self) -> FastStats:
        """Return what was recorded and replayed."""
        return FastStats(
            sum(replays.recording is not None for replays in self.forms.values()),
            sum(replays.replayed for replays in self.forms.values()),
            sum(replays.taken - replays.replayed for replays in self.forms.values()),
        )


class Drawn(NamedTuple):
    """Something a step draws: where in its stream, how, from which of its inputs, and where it is needed."""

    path: Path
    sampler: Sampler
    given: list[int]
    device: torch.device


class Recording(NamedTuple):
    """The tensor operations of a step.

    Attributes:
        run: ``(*input tensors, *drawn tensors) -> the leaves that move``.
        tensors: The places of the inputs that are tensors.
        draws: What is drawn.
        moving: The places of the leaves that a step changes.
    """

    run: Callable[..., Sequence[Tensor]]
    tensors: list[int]
    draws: list[Drawn]
    moving: list[int]

    def __call__(self, carry: list[Any], batch: list[Any], draw: Draw) -> list[Any]:
        """Returns the leaves of the carry after a step."""
        inputs = carry + batch
        drawn: list[Tensor] = []
        for path, sampler, given, device in self.draws:
            values = _several(draw(path, sampler, [inputs[place] for place in given], given))
            drawn += [value.to(device) for value in values]
        with torch.no_grad():
            moved = self.run(*(inputs[place] for place in self.tensors), *drawn)
        after = list(carry)
        for place, leaf in zip(self.moving, moved, strict=True):
            after[place] = leaf
        return after


def record(step: Step, carry: Tree, batch: Tree, key: Stream) -> Recording:
    """Records a client's step.

    Raises:
        Exception: It cannot be recorded.
    """
    recording, inputs, drawn = trace(step, carry, batch, key)
    return recording._replace(run=graph_of(recording.run, *inputs, *drawn))


def trace(step: Step, carry: Tree, batch: Tree, key: Stream) -> tuple[Recording, list[Tensor], list[Tensor]]:
    """Makes a client's step a function of tensors alone, what it draws among them.

    Returns:
        A recording that runs the step's own Python, the tensors among the inputs, and those drawn.
    """
    leaves = trees.leaves(carry)
    # The message's weights are also where training starts: what is one tensor here need not be later.
    inputs = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves + trees.leaves(batch)]
    tensors = [place for place, leaf in enumerate(inputs) if isinstance(leaf, Tensor)]

    def take(inputs: list[Any], stream: Stream) -> Tree:
        count = len(leaves)
        return step(trees.unflatten(carry, inputs[:count]), trees.unflatten(batch, inputs[count:]), stream)

    spy = _Spy(key, inputs, [], [])
    stepped = take(inputs, spy)
    if strided_signature(stepped) != strided_signature(carry):
        raise _CannotReplay("it changes the form of its carry")
    after = trees.leaves(stepped)
    moving = [place for place, leaf in enumerate(after) if leaf is not inputs[place]]

    def again(*flat: Tensor) -> list[Tensor]:
        own = list(inputs)
        for place, leaf in zip(tensors, flat[: len(tensors)], strict=True):
            own[place] = leaf
        rest = iter(flat[len(tensors) :])
        drawn = [tuple(islice(rest, len(v))) if isinstance(v, tuple) else next(rest) for v in spy.drawn]
        after = trees.leaves(take(own, _Told(iter(drawn))))
        return [after[place] for place in moving]

    drawn = [tensor for value in spy.drawn for tensor in _several(value)]
    return Recording(again, tensors, spy.draws, moving), [inputs[place] for place in tensors], drawn


class _Spy(NamedTuple):
    """A stream that notes what is drawn from it."""

    key: Stream
    inputs: list[Any]
    draws: list[Drawn]
    drawn: list[Any]
    path: Path = ()

    def fold(self, *address: int | str) -> _Spy:
        return self._replace(path=self.path + address)

    def draw(self, sampler: Sampler, *given: Tensor) -> Any:
        places = [place for tensor in given for place, leaf in enumerate(self.inputs) if leaf is tensor]
        if len(places) != len(given):
            raise _CannotReplay("it draws from what it computes")
        value = self.key.fold(*self.path).draw(sampler, *given)
        self.draws.append(Drawn(self.path, sampler, places, _several(value)[0].device))
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
    if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, 0, 0, equal_nan=True))


def strided_signature(tree: Tree) -> Any:
    """Returns what is equal for trees on which the same operations may be replayed."""
    if type(tree) is dict:
        return tuple((name, strided_signature(branch)) for name, branch in tree.items())
    if isinstance(tree, Tensor):
        return tree.dtype, tree.device, tree.shape, tree.stride()
    return tree
