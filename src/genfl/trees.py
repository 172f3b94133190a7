"""Arithmetic on trees of tensors: nested dicts such as ``{"params": {...}, "buffers": {...}}``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

Tree = Any
"""A tensor, or a (nested) dict of them."""

map = tree_map
leaves: Callable[[Tree], list[Tensor]] = tree_leaves


def add(*trees: Tree) -> Tree:
    """Returns the sum of trees of one structure, added from left to right."""
    total = trees[0]
    for tree in trees[1:]:
        total = tree_map(torch.add, total, tree)
    return total


def sub(a: Tree, b: Tree) -> Tree:
    """Returns ``a - b``."""
    return tree_map(torch.sub, a, b)


def scale(factor: float | Tensor, tree: Tree) -> Tree:
    """Returns ``factor * tree``."""
    return tree_map(lambda leaf: factor * leaf, tree)


def zeros_like(tree: Tree) -> Tree:
    """Returns a tree of zeros with the structure of `tree`."""
    return tree_map(torch.zeros_like, tree)


def dot(a: Tree, b: Tree) -> Tensor:
    """Returns the inner product of two trees, a scalar."""
    products = [(x * y).sum() for x, y in zip(leaves(a), leaves(b), strict=True)]
    return torch.stack(products).sum() if products else torch.zeros(())


def square_norm(tree: Tree) -> Tensor:
    """Returns the squared Euclidean norm of all entries together, a scalar."""
    return dot(tree, tree)


def num_bytes(tree: Tree) -> int:
    """Returns how many bytes the tree's tensors take on the wire, uncompressed."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree))


def mismatch(tree: Tree, like: Tree) -> str | None:
    """Says in a few words how `tree` fails to have the structure, shapes and dtypes of `like`.

    Returns:
        None where it has them.
    """
    if tree_structure(tree) != tree_structure(like):
        return "its structure is not the expected one"
    for got, expected in zip(leaves(tree), leaves(like), strict=True):
        if got.shape != expected.shape:
            return f"shape {tuple(got.shape)} where {tuple(expected.shape)} is expected"
        if got.dtype != expected.dtype:
            return f"dtype {got.dtype} where {expected.dtype} is expected"
    return None


def is_finite(tree: Tree) -> bool:
    """Returns whether no entry is NaN or infinite."""
    return all(bool(torch.isfinite(leaf).all()) for leaf in leaves(tree))
