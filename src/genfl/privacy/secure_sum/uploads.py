"""Uploads as words: trees of tensors that a secure sum adds up in one go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from genfl import trees
from genfl.privacy.secure_sum.encoding import Vector
from genfl.privacy.secure_sum.fixed_point import FixedPoint, SumRange
from genfl.privacy.secure_sum.messages import Segment
from genfl.privacy.secure_sum.primitives import SecureSumError
from genfl.trees import Tree


class UploadCodec:
    """How the uploads of one client program travel in a secure sum.

    All numbers of an upload travel, weights, counts and metrics included. Floats become fixed-point numbers
    in the shortest words that give the precision. Integers travel as they are, modulo 2^32 or 2^64.

    Args:
        like: An upload with the right structure, shapes and dtypes.
        clients: The most clients of a sum.
        numbers: Which floats a sum carries.

    Attributes:
        segments: The segments of `SumParameters`.
        fixed_point: The fixed-point numbers.

    Raises:
        ValueError: The limit or the precision is out of range, or a part has no numbers.
    """

    def __init__(self, like: Tree, clients: int, numbers: SumRange) -> None:
        self.like = like
        self.fixed_point = FixedPoint.fitting(numbers.limit, clients, numbers.precision)
        self._words: list[tuple[str, int]] = []  # of each leaf: its part, and the bits of its words
        for part, value in like.items():
            for leaf in trees.leaves(value):
                floats = leaf.is_floating_point()
                self._words.append((part, self.fixed_point.bits if floats else _integer_bits(part, leaf)))
        leaves = trees.leaves(like)
        sizes = {
            bits: sum(leaf.numel() for leaf, (_, b) in zip(leaves, self._words, strict=True) if b == bits)
            for bits in (32, 64)
        }
        self.segments = tuple(Segment(bits, size) for bits, size in sizes.items() if size)

    def nbytes(self, part: str) -> int:
        """Return how many bytes the words of a part take."""
        leaves = zip(trees.leaves(self.like), self._words, strict=True)
        return sum(leaf.numel() * bits // 8 for leaf, (owner, bits) in leaves if owner == part)

    def encode(self, upload: Tree, random: np.random.Generator | None = None) -> tuple[Vector, ...]:
        """Return the words of a client's upload, one vector for each segment.

        Args:
            upload: The upload, on the CPU.
            random: Rounds floats at random; None rounds them to the nearest number.

        Raises:
            SecureSumError: ``shape``: structure, shapes or dtypes are wrong; ``range``: a value is not
                finite, or beyond the limit.
        """
        if (wrong := trees.mismatch(upload, self.like)) is not None:
            raise SecureSumError("shape", f"an upload is not as agreed: {wrong}")
        vectors = {bits: np.empty(size, f"uint{bits}") for bits, size in self.segments}
        rest = dict(vectors)
        for leaf, (part, bits) in zip(trees.leaves(upload), self._words, strict=True):
            flat = leaf.detach().reshape(-1)
            if not leaf.numel():
                continue
            words, rest[bits] = rest[bits][: leaf.numel()], rest[bits][leaf.numel() :]
            if leaf.is_floating_point():
                try:
                    floats = flat.float() if leaf.itemsize < 4 else flat  # NumPy has no bfloat16
                    self.fixed_point.encode(floats.numpy(), random, out=words)
                except SecureSumError as error:
                    raise SecureSumError(error.code, f"{part}: {error.reason}") from error
            else:
                words[:] = flat.numpy().astype(f"uint{bits}", copy=False)
        return tuple(vectors.values())

    def decode(self, sums: Sequence[Vector]) -> Tree:
        """Return the sum of uploads, with their structure, shapes and dtypes.

        Args:
            sums: The sums of what `encode` returned, modulo the size of their words.
        """
        rest = {segment.bits: vector for segment, vector in zip(self.segments, sums, strict=True)}
        decoded = []
        for leaf, (_, bits) in zip(trees.leaves(self.like), self._words, strict=True):
            size = leaf.numel()
            words, rest[bits] = rest[bits][:size], rest[bits][size:]
            if leaf.is_floating_point():
                flat = torch.from_numpy(self.fixed_point.decode(words)).to(leaf.dtype)
            else:
                flat = torch.from_numpy(words.astype(torch.empty(0, dtype=leaf.dtype).numpy().dtype))
            decoded.append(flat.reshape(leaf.shape))
        return trees.unflatten(self.like, decoded)


def _integer_bits(part: str, leaf: torch.Tensor) -> int:
    """Return the bits of the words that add up integers as their dtype does."""
    if leaf.is_complex() or leaf.dtype is torch.bool:
        raise ValueError(f"{part}: a secure sum takes floats and integers, not {leaf.dtype}")
    return 32 if leaf.itemsize <= 4 else 64
