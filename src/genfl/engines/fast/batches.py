"""Steps that many clients take together, by `torch.vmap`, recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import ClientProgram
from genfl.engines.fast import FastStats
from genfl.engines.fast.recording import DrawFn, Recording, name_of, strided_signature, trace
from genfl.engines.fast.replays import Replay, Replays
from genfl.engines.fast.rewrites import graph_of
from genfl.engines.fast.vmap_layers import Folding
from genfl.learning.local import batched
from genfl.rng import Key
from genfl.trees import Tree

_T = TypeVar("_T")

Dims = list[int | None]
"""For each leaf of a carry, 0 where clients are stacked in its first dimension, None where all share it."""


class _Finish(NamedTuple):
    """The operations after the last step, and a tree of the structure of what they give."""

    run: Callable[..., Sequence[Tensor]]
    like: Tree


class BatchedSteps:
    """Recordings of what many clients do together, and layers that `torch.vmap` runs once for all of them.

    Args:
        program: What each of the clients does.
    """

    def __init__(self, program: ClientProgram) -> None:
        self.program = program
        self.replays = Replays(f"the batched step {name_of(program.step)}")
        self._folds = True

    def stats(self) -> FastStats:
        """Return what was recorded and replayed."""
        return self.replays.stats()

    def step(
        self,
        like: Tree,
        leaves: list[Any],
        dims: Dims,
        batch: Tree,
        keys: Callable[[], list[Key]],
        draw: DrawFn,
        step: Callable[[], list[Any]],
        clients: int,
    ) -> list[Any]:
        """Return the leaves of the clients' carries after a step.

        Args:
            like: A client's carry.
            leaves: The leaves of all carries, stacked as `dims` says.
            dims: How they are stacked.
            batch: The clients' examples, stacked.
            keys: The clients' random streams of the step.
            draw: Draws what the step needs, for all clients.
            step: The step itself.
            clients: How many they are.
        """
        examples = trees.leaves(batch)
        replay = self._replay("step", leaves + examples, dims, like)
        return replay.run(
            lambda: self._record(like, leaves, dims, batch, keys()),
            lambda recording: recording(leaves, examples, draw),
            step,
            clients,
        )

    def finish(
        self, like: Tree, leaves: list[Any], dims: Dims, finish: Callable[[list[Any]], Tree], clients: int
    ) -> Tree:
        """Return the clients' results, stacked.

        Args:
            like: A client's carry.
            leaves: The leaves of all carries after the last step, stacked as `dims` says.
            dims: How they are stacked.
            finish: ``(leaves) -> results`` of all clients.
            clients: How many they are.
        """
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def record() -> _Finish:
            results: list[Tree] = []

            def run(*tensors: Tensor) -> list[Tensor]:
                rest = iter(tensors)
                results.append(finish([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]))
                return trees.leaves(results[-1])

            return _Finish(graph_of(run, *tensors), trees.map(lambda leaf: None, results[-1]))

        return self._replay("finish", leaves, dims, like).run(
            record,
            lambda recording: trees.unflatten(recording.like, recording.run(*tensors)),
            lambda: finish(leaves),
            clients,
        )

    def folded(self, run: Callable[[], _T]) -> _T:
        """Return what a function gives that uses `torch.vmap`, with clients folded into layers' channels.

        A program that needs more of layers than values and gradients runs as `torch.vmap` alone runs it.
        """
        if self._folds:
            try:
                with batched(), Folding():
                    return run()
            except NotImplementedError as error:
                why = error
        with batched():
            result = run()
        if self._folds:
            self.replays.note(f"layers are batched by torch.vmap alone: {why}")
            self._folds = False
        return result

    def _replay(self, what: str, leaves: list[Any], dims: Dims, like: Tree) -> Replay:
        """Return the replays of what is done with leaves of this signature."""
        return self.replays.of(
            (what, strided_signature(dict(enumerate(leaves))), tuple(dims), trees.names(like))
        )

    def _record(self, like: Tree, leaves: list[Any], dims: Dims, batch: Tree, keys: list[Key]) -> Recording:
        """Record a step of all clients, from the step of the first of them."""
        first = [leaf if dim is None else leaf[0] for leaf, dim in zip(leaves, dims, strict=True)]
        example = trees.map(lambda leaf: leaf[0], batch)

        def recorded() -> Recording:
            alone, _, drawn = trace(self.program.step, trees.unflatten(like, first), example, keys[0])
            many = [leaf.expand(len(keys), *leaf.shape).clone() for leaf in drawn]
            inputs, all_dims = leaves + trees.leaves(batch), [*dims, *(0 for _ in batch)]
            tensors = [inputs[position] for position in alone.tensors]
            in_dims = (*(all_dims[position] for position in alone.tensors), *(0 for _ in many))
            run = torch.vmap(alone.run, in_dims, randomness="error")
            return alone._replace(run=graph_of(run, *tensors, *many))

        return self.folded(recorded)
