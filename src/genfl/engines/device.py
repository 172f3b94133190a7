"""Client programs that compute on an accelerator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from genfl import trees
from genfl.algorithms.base import ClientInfo, ClientProgram, HeldSamples
from genfl.learning.task import CPU, Batch
from genfl.rng import Key, Stream
from genfl.trees import Tree


@contextlib.contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Makes a GPU's convolutions compute in the precision that was asked for, and the same each time."""
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False) if device != CPU else nullcontext():
        yield


def on_device(program: ClientProgram, device: torch.device) -> ClientProgram:
    """Returns a client program that does the same on a device, and gives and takes tensors of the CPU.

    So engines, servers and files know of no device, and what is drawn is drawn on the CPU, the same for all.
    What a message holds is moved once for all clients that are sent it.

    Args:
        program: What a client does.
        device: Where it computes.
    """
    if device == CPU:
        return program
    there: dict[int, tuple[Tensor, Tensor]] = {}  # by what is moved, which must stay alive to keep its id

    def moved(message: Tree) -> Tree:
        leaves = trees.leaves(message)
        if any(id(leaf) not in there for leaf in leaves):  # another round's
            kept = {id(leaf): there[id(leaf)] for leaf in leaves if id(leaf) in there}
            there.clear()
            there.update({id(leaf): (leaf, leaf.to(device)) for leaf in leaves} | kept)
        return trees.map(lambda leaf: there[id(leaf)][1], message)

    def start(message: Tree, memory: Tree, client_info: ClientInfo, key: Key) -> Tree:
        with device:
            return program.start(moved(message), trees.to(memory, device), trees.to(client_info, device), key)

    def step(carry: Tree, batch: Batch, key: Stream) -> Tree:
        with device:
            return program.step(carry, trees.to(batch, device), key)

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        with device:
            upload, memory = program.finish(carry)
        return trees.to(upload, CPU), trees.to(memory, CPU)

    def select(message: Tree, held: HeldSamples) -> Sequence[Tensor]:
        assert program.select is not None
        with device:
            there = held._replace(examples=lambda rows: trees.to(held.examples(rows), device))
            return program.select(moved(message), there)

    return ClientProgram(start, step, finish, program.reductions, select if program.select else None)
