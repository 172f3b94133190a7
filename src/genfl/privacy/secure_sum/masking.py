"""Masks of a secure sum: who shares one with whom, and how they are added to words.

Sources: Bonawitz et al. 2017, section 4 (a self mask and pairwise masks); Bell et al. 2020, section 3 (a
sparse graph of neighbours: a ring in random order, where each client is linked to the nearest ones on both
sides).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from genfl.privacy.secure_sum.encoding import Vector
from genfl.privacy.secure_sum.primitives import derive, keystream

CHUNK_BYTES = 2**16
"""Bytes that are masked at a time: they and a part of a mask stay in a processor's cache."""


class Ring:
    """Clients on a ring in random order, each linked to the nearest ones on both sides.

    Args:
        clients: Distinct ids >= 0.
        beacon: What decides on the order. Colluders should not be able to choose it.
        degree: Neighbours of each client, even. If there are no more others than that, all are linked.
    """

    def __init__(self, clients: Collection[int], beacon: bytes, degree: int) -> None:
        self.degree = degree
        self.clients = sorted(clients)
        if degree < len(clients) - 1:
            self.clients.sort(key=lambda c: hashlib.sha256(beacon + b"%d" % c).digest())
        self._positions = {client: position for position, client in enumerate(self.clients)}

    def __contains__(self, client: int) -> bool:
        """Return whether a client is on the ring."""
        return client in self._positions

    def neighbours(self, client: int) -> tuple[int, ...]:
        """Return the neighbours of a client, in rising order; the relation is symmetric."""
        n, position = len(self.clients), self._positions[client]
        if self.degree >= n - 1:
            return tuple(other for other in self.clients if other != client)
        steps = [step for reach in range(1, self.degree // 2 + 1) for step in (-reach, reach)]
        return tuple(sorted(self.clients[(position + step) % n] for step in steps))


def pair_mask_key(secret: bytes, context: bytes) -> bytes:
    """Return the key of a pairwise mask, 16 bytes.

    Args:
        secret: What the two clients share.
        context: The sum. No two sums have the same.
    """
    return derive(secret, b"genfl pairwise mask" + context, 16)


def self_mask_key(seed: bytes, context: bytes) -> bytes:
    """Return the key of a self mask, 16 bytes.

    Args:
        seed: The client's secret.
        context: The sum. No two sums have the same.
    """
    return derive(seed, b"genfl self mask" + context, 16)


def own_masks(
    client: int, self_key: bytes, pair_keys: Mapping[int, bytes]
) -> tuple[list[bytes], list[bytes]]:
    """Return the keys of the masks that a client adds, and of those that it subtracts.

    Of two neighbours, the one with the lower id adds their mask, and the other one subtracts it.

    Args:
        client: The client.
        self_key: The key of its self mask.
        pair_keys: Neighbour -> key of their mask.
    """
    adds = [key for other, key in pair_keys.items() if client < other]
    subtracts = [key for other, key in pair_keys.items() if client > other]
    return [self_key, *adds], subtracts


def apply_masks(
    vectors: Sequence[Vector], adds: Sequence[bytes], subtracts: Sequence[bytes]
) -> tuple[Vector, ...]:
    """Return vectors plus and minus the masks of some keys, modulo the size of their words.

    A mask is one keystream through all vectors in their order.

    Args:
        vectors: uint32 or uint64, one-dimensional; not changed.
        adds: Keys of the masks to add.
        subtracts: Keys of the masks to subtract.
    """
    masked = tuple(np.array(vector) for vector in vectors)
    steps = [
        (keystream(key), operation)
        for keys, operation in ((adds, np.add), (subtracts, np.subtract))
        for key in keys
    ]
    longest = min(CHUNK_BYTES, max((vector.nbytes for vector in masked), default=0))
    zeros, block = bytes(longest), bytearray(longest + 15)  # of update_into, the size of an AES block less 1
    for vector in masked:
        length = CHUNK_BYTES // vector.itemsize
        words = np.frombuffer(block, vector.dtype, longest // vector.itemsize)
        for start in range(0, vector.size, length):
            chunk = vector[start : start + length]
            for stream, operation in steps:
                stream.update_into(memoryview(zeros)[: chunk.nbytes], block)
                operation(chunk, words[: chunk.size], out=chunk)
    return masked
