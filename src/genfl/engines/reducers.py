"""Reducers: they turn a cohort's uploads into the aggregate that the server sees."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from genfl import trees
from genfl.privacy.secure_sum import SecureSum
from genfl.rng import Key
from genfl.trees import Tree


class PlainReducer:
    """A sum of uploads in the clear, added as they come; uploads declared ``each`` are listed.

    Args:
        reductions: The program's declared reductions.
    """

    def __init__(self, reductions: Mapping[str, str]) -> None:
        self.reductions = reductions
        self.sums: dict[str, Tree] = {}
        self.lists: dict[str, dict[int, Tree]] = {}

    def add(self, clients: Sequence[int], uploads: Tree) -> None:
        """Take some clients' stacked uploads."""
        for name, value in uploads.items():
            if self.reductions[name] == "each":
                copies = [trees.map(torch.clone, upload) for upload in trees.apart(value, len(clients))]
                self.lists.setdefault(name, {}).update(zip(clients, copies, strict=True))
            elif name in self.sums:
                trees.map(_add, self.sums[name], value)
            else:
                self.sums[name] = trees.map(lambda stack: _sum(stack).clone(), value)

    def aggregate(self) -> Tree:
        """Return the aggregate of all uploads taken; lists are in the order of client numbers."""
        lists = {name: [value for _, value in sorted(each.items())] for name, each in self.lists.items()}
        return self.sums | lists


_SIGNED = {torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Types of the same width. torch adds no unsigned ones, and modulo 2^32 or 2^64 the bits are the same."""


def _add(total: Tensor, stack: Tensor) -> None:
    signed = _SIGNED.get(total.dtype, total.dtype)
    total.view(signed).add_(_sum(stack).view(signed))


def _sum(stack: Tensor) -> Tensor:
    """Return the sum over clients; of one, its upload itself."""
    if stack.shape[0] == 1:
        return stack.squeeze(0)
    signed = _SIGNED.get(stack.dtype, stack.dtype)
    return stack.view(signed).sum(0, dtype=signed).view(stack.dtype)


class SecureReducer:
    """A sum of masked unsigned integers: only the sum is ever in the clear.

    It simulates the protocol in one process (see `genfl.privacy.secure_sum`).

    Args:
        reductions: The program's declared reductions.
        key: The random stream of the pairwise secrets; a fresh one for every sum.

    Raises:
        ValueError: An upload is not declared ``sum``.
    """

    def __init__(self, reductions: Mapping[str, str], key: Key) -> None:
        each = [name for name, reduction in reductions.items() if reduction != "sum"]
        if each:
            raise ValueError(f"a secure sum cannot carry uploads the server must see one by one: {each}")
        self.key = key
        self.uploads: dict[int, Tree] = {}

    def add(self, clients: Sequence[int], uploads: Tree) -> None:
        """Take some clients' stacked uploads."""
        self.uploads |= zip(clients, trees.apart(uploads, len(clients)), strict=True)

    def aggregate(self) -> Tree:
        """Mask every client's upload, add the masked ones, and return their sum."""
        clients = tuple(self.uploads)
        counter = itertools.count()

        def add_masked(*values: Tensor) -> Tensor:
            context = f"leaf {next(counter)}"  # no mask is ever used twice
            protocol = SecureSum(clients, seed=self.key.integer(), context=context)
            masked = {k: protocol.mask(k, _unsigned(v)) for k, v in zip(clients, values, strict=True)}
            return torch.from_numpy(protocol.add(masked))

        return trees.map(add_masked, *self.uploads.values())


def secure_reducers(key: Key) -> Callable[[Mapping[str, str]], SecureReducer]:
    """Return a factory of reducers that add by pairwise masking, with secrets derived from `key`.

    Every sum gets new secrets: two uploads under one mask would reveal their difference.
    """
    sums = itertools.count()
    return lambda reductions: SecureReducer(reductions, key.fold("sum", next(sums)))


def _unsigned(value: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]:
    array = value.numpy()
    if array.dtype not in (np.uint32, np.uint64):
        raise ValueError(f"a secure sum adds uint32 or uint64, not {array.dtype}: encode it first")
    return array
