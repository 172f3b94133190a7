"""Uploads as words: trees of tensors that a secure sum adds up in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from genfl import trees
from genfl.privacy.secure_sum.encoding import Vector
from genfl.privacy.secure_sum.fixed_point import FixedPoint
from genfl.privacy.secure_sum.messages import Segment
from genfl.privacy.secure_sum.primitives import SecureSumError
from genfl.trees import Tree

UPLOAD_LIMIT = 2.0**20
"""The largest absolute value of an entry of an upload, unless a part has its own."""

UPLOAD_PRECISION = 2.0**-20
"""The largest step of encoded numbers, unless a part has its own."""


class UploadCodec:
    """How the uploads of one client program travel in a secure sum.

    All numbers of an upload travel, weights, counts and metrics included. Floats become fixed-point numbers
    in the shortest words that give the precision. Integers travel as they are, modulo 2^32 or 2^64.

    Args:
        like: An upload with the right structure, shapes and dtypes.
        clients: The most clients of a sum.
        limits: Part of the upload -> largest absolute value of its entries. Others have `UPLOAD_LIMIT`.
        precisions: Part of the upload -> largest step of its numbers. Others have `UPLOAD_PRECISION`.

    Attributes:
        segments: The segments of `SumParameters`.
        numbers: Part of the upload -> its fixed-point numbers; of those with floats.

    Raises:
        ValueError: A limit or precision is out of range, or is of a part that is not there.
    """

    def __init__(
        self,
        like: Tree,
        clients: int,
        limits: Mapping[str, float] | None = None,
        precisions: Mapping[str, float] | None = None,
    ) -> None:
        limits, precisions = limits or {}, precisions or {}
        if unknown := sorted({*limits, *precisions} - set(like)):
            raise ValueError(f"there is no part {unknown[0]!r} in the upload; it has {', '.join(like)}")
        self.like = like
        self.numbers: dict[str, FixedPoint] = {}
        self._words: list[tuple[str, int]] = []  # of each leaf: its part, and the bits of its words
        for part, value in like.items():
            for leaf in trees.leaves(value):
                if leaf.is_floating_point() and part not in self.numbers:
                    limit, precision = limits.get(part, UPLOAD_LIMIT), precisions.get(part, UPLOAD_PRECISION)
                    self.numbers[part] = FixedPoint.fitting(limit, clients, precision)
                bits = self.numbers[part].bits if leaf.is_floating_point() else _integer_bits(part, leaf)
                self._words.append((part, bits))
        leaves = trees.leaves(like)
        sizes = {
            bits: sum(leaf.numel() for leaf, (_, b) in zip(leaves, self._words, strict=True) if b == bits)
            for bits in (32, 64)
        }
        self.segments = tuple(Segment(bits, size) for bits, size in sizes.items() if size)

    def encode(self, upload: Tree, random: np.random.Generator | None = None) -> tuple[Vector, ...]:
        """Return the words of a client's upload, one vector for each segment.

        Args:
            upload: The upload, on the CPU.
            random: Rounds floats at random; None rounds them to the nearest number.

        Raises:
            SecureSumError: ``shape``: structure, shapes or dtypes are wrong; ``range``: a value is not
                finite, or beyond its part's limit.
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
                    self.numbers[part].encode(floats.numpy(), random, out=words)
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
        for leaf, (part, bits) in zip(trees.leaves(self.like), self._words, strict=True):
            size = leaf.numel()
            words, rest[bits] = rest[bits][:size], rest[bits][size:]
            if leaf.is_floating_point():
                flat = torch.from_numpy(self.numbers[part].decode(words)).to(leaf.dtype)
            else:
                flat = torch.from_numpy(words.astype(torch.empty(0, dtype=leaf.dtype).numpy().dtype))
            decoded.append(flat.reshape(leaf.shape))
        return trees.unflatten(self.like, decoded)


def _integer_bits(part: str, leaf: torch.Tensor) -> int:
    """Return the bits of the words that add up integers as their dtype does."""
    if leaf.is_complex() or leaf.dtype is torch.bool:
        raise ValueError(f"{part}: a secure sum takes floats and integers, not {leaf.dtype}")
    return 32 if leaf.itemsize <= 4 else 64
