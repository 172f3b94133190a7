"""Reducers: they turn a cohort's uploads into the aggregate that the server sees."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genfl import trees
from genfl.privacy.secure_sum import SecureSum, SecureSumError
from genfl.privacy.secure_sum.encoding import Vector
from genfl.privacy.secure_sum.fixed_point import SumRange
from genfl.privacy.secure_sum.uploads import UploadCodec
from genfl.rng import Key
from genfl.trees import Tree

log = logging.getLogger(__name__)


class PlainReducer:
    """A sum of uploads in the clear, added as they come; uploads declared ``each`` are listed.

    Args:
        reductions: The program's declared reductions.
    """

    def __init__(self, reductions: Mapping[str, str]) -> None:
        self.reductions = reductions
        self.sums: dict[str, Tree] = {}
        self.lists: dict[str, dict[int, Tree]] = {}

    def add(self, clients: Sequence[int], uploads: Tree) -> dict[int, str]:
        """Take some clients' stacked uploads."""
        for name, value in uploads.items():
            if self.reductions[name] == "each":
                copies = [trees.map(torch.clone, upload) for upload in trees.apart(value, len(clients))]
                self.lists.setdefault(name, {}).update(zip(clients, copies, strict=True))
            elif name in self.sums:
                trees.map(_add, self.sums[name], value)
            else:
                self.sums[name] = trees.map(lambda stack: _sum(stack).clone(), value)
        return {}

    def nbytes(self, name: str, uploads: Tree) -> int:
        """Return the bytes that clients send for a part of their uploads."""
        return trees.num_bytes(uploads)

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


class SumEncoding(NamedTuple):
    """How uploads become the words of a secure sum.

    Attributes:
        numbers: Which numbers a sum carries.
        clients: The most clients of a sum.
        threshold: The fewest clients whose sum is opened.
    """

    numbers: SumRange
    clients: int
    threshold: int = 2


class SecureReducer:
    """A sum of masked unsigned integers: only the sum is ever in the clear.

    It simulates the protocol in one process (see `genfl.privacy.secure_sum`), with the sums of the protocol.

    Args:
        reductions: The program's declared reductions.
        key: The random stream of the pairwise secrets; a fresh one for every sum.

    Raises:
        ValueError: An upload is not declared ``sum``.
    """

    def __init__(self, reductions: Mapping[str, str], key: Key) -> None:
        _check_sums(reductions)
        self.key = key
        self.uploads: dict[int, Tree] = {}

    def add(self, clients: Sequence[int], uploads: Tree) -> dict[int, str]:
        """Take some clients' stacked uploads."""
        self.uploads |= zip(clients, trees.apart(uploads, len(clients)), strict=True)
        return {}

    def nbytes(self, name: str, uploads: Tree) -> int:
        """Return the bytes that clients send for a part of their uploads."""
        return trees.num_bytes(uploads)

    def aggregate(self) -> Tree:
        """Mask every client's upload, add the masked ones, and return their sum."""
        clients = tuple(self.uploads)
        counter = itertools.count()

        def add_masked(*values: Tensor) -> Tensor:
            words = {client: _unsigned(value) for client, value in zip(clients, values, strict=True)}
            return torch.from_numpy(_masked_sum(self.key, f"leaf {next(counter)}", words))

        return trees.map(add_masked, *self.uploads.values())


class EncodedReducer:
    """A secure sum of uploads with floats, beside measures that only a simulation adds up.

    Args:
        reductions: The program's declared reductions.
        key: The random stream of the pairwise secrets; a fresh one for every sum.
        encoding: How uploads become words.
        names: The parts of the upload that clients mask, None for all. Others are added in the clear.

    Raises:
        ValueError: An upload is not declared ``sum``.
    """

    def __init__(
        self,
        reductions: Mapping[str, str],
        key: Key,
        encoding: SumEncoding,
        names: Collection[str] | None = None,
    ) -> None:
        _check_sums(reductions)
        self.key, self.encoding = key, encoding
        self.names = set(reductions if names is None else names)
        self.plain = PlainReducer({name: kind for name, kind in reductions.items() if name not in self.names})
        self.codec: UploadCodec | None = None
        self.words: dict[int, tuple[Vector, ...]] = {}

    def add(self, clients: Sequence[int], uploads: Tree) -> dict[int, str]:
        """Take some clients' stacked uploads, and refuse those with values that no word can carry."""
        masked = {name: value for name, value in uploads.items() if name in self.names}
        refused: dict[int, str] = {}
        for client, upload in zip(clients, trees.apart(masked, len(clients)), strict=True):
            if self.codec is None:
                self.codec = UploadCodec(upload, self.encoding.clients, self.encoding.numbers)
            try:
                self.words[client] = self.codec.encode(upload)
            except SecureSumError as error:
                refused[client] = f"upload: {error.reason} (federate.secure.limit)"
        kept = [row for row, client in enumerate(clients) if client not in refused]
        if kept:
            rest = {name: value for name, value in uploads.items() if name not in self.names}
            self.plain.add([clients[row] for row in kept], trees.map(lambda leaf: leaf[kept], rest))
        return refused

    def nbytes(self, name: str, uploads: Tree) -> int:
        """Return the bytes that clients send for a part of their uploads."""
        if self.codec is None or name not in self.names:
            return trees.num_bytes(uploads)
        clients = next((len(leaf) for leaf in trees.leaves(uploads)), 0)
        return self.codec.nbytes(name) * clients

    def aggregate(self) -> Tree:
        """Mask the words of every client, add them, and return their sum; None below the threshold."""
        if self.codec is None or len(self.words) < self.encoding.threshold:
            log.warning(
                "%d uploads count, and a secure sum needs %d: the round is skipped",
                *(len(self.words), self.encoding.threshold),
            )
            return None
        sums = [
            _masked_sum(self.key, f"segment {n}", {k: vectors[n] for k, vectors in self.words.items()})
            for n in range(len(self.codec.segments))
        ]
        return self.codec.decode(sums) | self.plain.aggregate()


def _check_sums(reductions: Mapping[str, str]) -> None:
    each = [name for name, reduction in reductions.items() if reduction != "sum"]
    if each:
        raise ValueError(f"a secure sum cannot carry uploads the server must see one by one: {each}")


def _masked_sum(key: Key, context: str, words: Mapping[int, Any]) -> Any:
    """Return the sum of words of clients, each masked. No two sums share a context, nor a mask."""
    protocol = SecureSum(tuple(words), seed=key.integer(), context=context)
    return protocol.add({client: protocol.mask(client, values) for client, values in words.items()})


class QuorumReducer:
    """A secure sum of the words of a quorum's clients, beside uploads that only a simulation adds up.

    Args:
        reductions: The program's declared reductions.
        words: The name of the upload that clients mask: int32, added modulo 2^32.
        quorum: The fewest uploads of which there is a sum.
        key: The random stream of the pairwise secrets; a fresh one for every sum.
    """

    def __init__(self, reductions: Mapping[str, str], words: str, quorum: int, key: Key) -> None:
        self.words, self.quorum = words, quorum
        self.secure = SecureReducer({words: reductions[words]}, key)
        self.plain = PlainReducer({name: kind for name, kind in reductions.items() if name != words})

    def add(self, clients: Sequence[int], uploads: Tree) -> dict[int, str]:
        """Take some clients' stacked uploads."""
        masked = uploads[self.words].clone().view(torch.uint32)
        self.secure.add(clients, {self.words: masked})
        self.plain.add(clients, {name: value for name, value in uploads.items() if name != self.words})
        return {}

    def nbytes(self, name: str, uploads: Tree) -> int:
        """Return the bytes that clients send for a part of their uploads."""
        return trees.num_bytes(uploads)

    def aggregate(self) -> Tree:
        """Return the aggregate of all uploads taken; None if there is no quorum."""
        count = len(self.secure.uploads)
        if count < self.quorum:
            log.warning("%d clients finished, and the quorum is %d: the round is skipped", count, self.quorum)
            return None
        return self.secure.aggregate() | self.plain.aggregate()


def quorum_reducers(words: str, quorum: int) -> Callable[[Mapping[str, str]], QuorumReducer]:
    """Return a factory of reducers that add words by pairwise masking, if a quorum sends them.

    The secrets are drawn anew in each process. Masks cancel, so results do not depend on them.

    Args:
        words: The name of the upload that clients mask.
        quorum: The fewest uploads of which there is a sum.
    """
    key, sums = Key(secrets.randbits(128)), itertools.count()
    return lambda reductions: QuorumReducer(reductions, words, quorum, key.fold("sum", next(sums)))


def secure_reducers(key: Key) -> Callable[[Mapping[str, str]], SecureReducer]:
    """Return a factory of reducers that add by pairwise masking, with secrets derived from `key`.

    Every sum gets new secrets: two uploads under one mask would reveal their difference.

    Args:
        key: The random stream of all secrets.
    """
    sums = itertools.count()
    return lambda reductions: SecureReducer(reductions, key.fold("sum", next(sums)))


def encoded_reducers(
    key: Key, encoding: SumEncoding, names: Collection[str] | None = None
) -> Callable[[Mapping[str, str]], EncodedReducer]:
    """Return a factory of reducers of uploads with floats; see `secure_reducers` and `EncodedReducer`."""
    sums = itertools.count()
    return lambda reductions: EncodedReducer(reductions, key.fold("sum", next(sums)), encoding, names)


def _unsigned(value: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]:
    array = value.numpy()
    if array.dtype not in (np.uint32, np.uint64):
        raise ValueError(f"a secure sum adds uint32 or uint64, not {array.dtype}: encode it first")
    return array
