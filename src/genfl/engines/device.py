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
    """Make a GPU's convolutions compute in the precision asked for, with the same result each time."""
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False) if device != CPU else nullcontext():
        yield


def on_device(program: ClientProgram, device: torch.device) -> ClientProgram:
    """Return a client program that computes on a device, and takes and gives tensors of the CPU.

    Engines, servers and files see the CPU only. Random numbers are drawn on the CPU, the same for every
    device. A message is moved once for all clients that are sent it.

    Args:
        program: What clients run.
        device: Where they compute.
    """
    if device == CPU:
        return program
    copies: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the original, which must stay alive

    def moved(message: Tree) -> Tree:
        leaves = trees.leaves(message)
        if any(id(leaf) not in copies for leaf in leaves):  # another round's
            kept = {id(leaf): copies[id(leaf)] for leaf in leaves if id(leaf) in copies}
            copies.clear()
            copies.update({id(leaf): (leaf, leaf.to(device)) for leaf in leaves} | kept)
        return trees.map(lambda leaf: copies[id(leaf)][1], message)

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
            held_on_device = held._replace(examples=lambda rows: trees.to(held.examples(rows), device))
            return program.select(moved(message), held_on_device)

    return ClientProgram(start, step, finish, program.reductions, select if program.select else None)
