"""How a cohort's uploads become what the server sees."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from genfl import trees
from genfl.privacy.secure_sum import SecureSum
from genfl.rng import Key
from genfl.trees import Tree


class Plain:
    """Adds uploads in the clear, as they come; uploads declared ``each`` are listed."""

    def __init__(self, reductions: dict[str, str]) -> None:
        self.reductions = reductions
        self.aggregate: dict[str, Tree] = {}

    def add(self, client: int, upload: Tree) -> None:
        """Takes one client's upload."""
        for name, value in upload.items():
            if self.reductions[name] == "each":
                self.aggregate.setdefault(name, []).append(trees.map(torch.clone, value))
            elif name in self.aggregate:
                trees.map(Tensor.add_, self.aggregate[name], value)
            else:
                self.aggregate[name] = trees.map(torch.clone, value)

    def result(self) -> Tree:
        """Returns the aggregate of all uploads taken."""
        return self.aggregate


class Secure:
    """Adds masked unsigned integers, so that only their sum is ever in the clear.

    It simulates the protocol in one process (see `genfl.privacy.secure_sum`). A program with an upload that
    is not declared ``sum`` is refused.

    Args:
        reductions: The program's declared reductions.
        key: Where the pairwise secrets come from; fresh for every sum.
    """

    def __init__(self, reductions: dict[str, str], key: Key) -> None:
        each = [name for name, reduction in reductions.items() if reduction != "sum"]
        if each:
            raise ValueError(f"a secure sum cannot carry uploads the server must see one by one: {each}")
        self.key = key
        self.uploads: dict[int, Tree] = {}

    def add(self, client: int, upload: Tree) -> None:
        """Takes one client's upload."""
        self.uploads[client] = upload

    def result(self) -> Tree:
        """Masks every client's upload, adds the masked ones, and returns the sum that appears."""
        clients = tuple(self.uploads)
        counter = itertools.count()

        def add_masked(*values: Tensor) -> Tensor:
            context = f"leaf {next(counter)}"  # no mask is ever used twice
            protocol = SecureSum(clients, seed=self.key.integer(), context=context)
            masked = {k: protocol.mask(k, _unsigned(v)) for k, v in zip(clients, values, strict=True)}
            return torch.from_numpy(protocol.add(masked))

        return trees.map(add_masked, *self.uploads.values())


def secure(key: Key) -> Callable[[dict[str, str]], Secure]:
    """Returns the reduction that adds by pairwise masking, with secrets derived from `key`.

    Every sum gets secrets of its own: two uploads under one mask would tell their difference.
    """
    sums = itertools.count()
    return lambda reductions: Secure(reductions, key.fold("sum", next(sums)))


def _unsigned(value: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]:
    array = value.numpy()
    if array.dtype not in (np.uint32, np.uint64):
        raise ValueError(f"a secure sum adds uint32 or uint64, not {array.dtype}: encode it first")
    return array
