"""A secure sum that is simulated in one process: masks and arithmetic of the protocol, and no messages.

**Shortcuts**, which keep a simulation of thousands of clients fast:

* Key agreement: all secrets and the order of the ring are derived from one seed. Whoever has the seed, and so
  this process, can unmask everything. Nothing here protects against the process itself.
* Dropouts: the process knows all seeds of self masks, so nothing is shared or recovered. If the upload of one
  client is missing, there is no sum.
* Groups of more than 100 clients: 40 neighbours each. That is enough to hide uploads from a third of the
  clients. If a random share c of a ring of n colludes, the others are split into two groups with a
  probability of about ``(n * c ** (degree / 2)) ** 2 / 2`` (two runs of degree / 2 colluders). This is below
  2^-39 for 5,000 clients. A real sum needs more, for its shares: see
  `genfl.privacy.secure_sum.messages.DEFAULT_NEIGHBOURS`.

Masks, neighbours and sums are made by the same functions as in the protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from genfl.privacy.secure_sum.masking import Ring, apply_masks, own_masks, pair_mask_key, self_mask_key

COMPLETE_UP_TO = 100
"""The most clients for which ``degree=None`` links every pair."""

RING_DEGREE = 40
"""The neighbours per client of a larger group with ``degree=None``, in a simulation."""

Word = TypeVar("Word", np.uint32, np.uint64)


@dataclass(frozen=True)
class SecureSum:
    """One secure sum, as all parties see it, with one upload per client.

    A context must be used for one upload per client only, because two uploads under the same masks reveal
    their difference. So the context names the round and what is summed, and a repetition gets a new context.

    Attributes:
        clients: Distinct ids (>= 0) of the clients that take part, at least 2.
        seed: The source of all pairwise secrets, >= 0; it stands in for a key agreement.
        context: What the masks are for, such as ``"round 3/labels"``.
        degree: Neighbours per client, even and at least 2. If there are no more other clients than that, all
            are linked. None links all of up to 100 clients, and 40 neighbours per client beyond.

    Raises:
        ValueError: There are fewer than 2 clients (a sum of one hides nothing), an id is negative or occurs
            twice, or ``seed`` or ``degree`` is out of range.
    """

    clients: tuple[int, ...]
    seed: int = field(repr=False)
    context: str
    degree: int | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        if len(self.clients) < 2:
            raise ValueError(f"a secure sum needs at least 2 clients, not {len(self.clients)}")
        if len(set(self.clients)) < len(self.clients) or min(self.clients) < 0:
            raise ValueError("the clients of a secure sum must be distinct ids >= 0")
        if self.seed < 0:
            raise ValueError("the seed of a secure sum must be >= 0")
        if self.degree is not None and (self.degree < 2 or self.degree % 2):
            raise ValueError(f"degree must be even and at least 2, not {self.degree}")

    def neighbours(self, client: int) -> tuple[int, ...]:
        """Return the clients that share a mask with ``client``, in rising order; the relation is symmetric.

        Raises:
            ValueError: The client does not take part.
        """
        if client not in self._ring:
            raise ValueError(f"client {client} does not take part in this secure sum")
        return self._ring.neighbours(int(client))

    def mask(self, client: int, values: NDArray[Word]) -> NDArray[Word]:
        """Mask one client's values for upload.

        Args:
            client: The client's id.
            values: uint32 or uint64, any shape, the same for all clients; not changed.

        Returns:
            The values plus the client's self mask, and plus or minus one mask per neighbour, modulo 2^32 or
            2^64; same shape and dtype.

        Raises:
            ValueError: The client does not take part, or the dtype is another.
        """
        _check_dtype(values.dtype)
        context = self._context(values)
        pair_keys = {other: self._pair_key(client, other, context) for other in self.neighbours(client)}
        adds, subtracts = own_masks(client, self._self_key(client, context), pair_keys)
        return _masked(values, adds, subtracts)

    def add(self, masked: Mapping[int, NDArray[Word]]) -> NDArray[Word]:
        """Sum the masked uploads of all clients, and take out their self masks.

        Args:
            masked: Client id -> masked upload, of one shape and dtype.

        Returns:
            The exact sum of the clients' values modulo 2^32 or 2^64.

        Raises:
            ValueError: An upload is missing, comes from a client that does not take part, or differs from
                the others in shape or dtype.
        """
        if missing := sorted(set(self.clients) - masked.keys()):
            raise ValueError(f"{len(missing)} uploads are missing, client {missing[0]}'s among them")
        if unknown := sorted(masked.keys() - set(self.clients)):
            raise ValueError(f"client {unknown[0]} does not take part in this secure sum")
        first = masked[self.clients[0]]
        _check_dtype(first.dtype)
        total = np.zeros_like(first)
        for client in self.clients:
            upload = masked[client]
            if upload.shape != first.shape or upload.dtype != first.dtype:
                raise ValueError(
                    f"client {client} uploaded {upload.dtype} {upload.shape}, "
                    f"client {self.clients[0]} {first.dtype} {first.shape}"
                )
            np.add(total, upload, out=total)
        context = self._context(total)
        self_keys = [self._self_key(client, context) for client in self.clients]
        return _masked(total, [], self_keys)

    @cached_property
    def _ring(self) -> Ring:
        """The ring in random order, so that colluders cannot choose neighbours."""
        degree = self.degree
        if degree is None:
            degree = COMPLETE_UP_TO if len(self.clients) <= COMPLETE_UP_TO else RING_DEGREE
        return Ring([int(client) for client in self.clients], self._secret("ring"), degree)

    def _secret(self, purpose: str) -> bytes:
        """Return 32 bytes for a purpose, derived from the seed in place of a key agreement."""
        return hashlib.sha3_256(f"genfl secure sum {self.seed:d} {purpose}".encode()).digest()

    def _context(self, values: NDArray[Word]) -> bytes:
        """Return what masks are for, so that uploads of two shapes never share the beginning of a mask."""
        return repr((self.context, values.itemsize, values.shape)).encode()

    def _pair_key(self, client: int, other: int, context: bytes) -> bytes:
        secret = self._secret(f"pair {min(client, other):d} {max(client, other):d}")
        return pair_mask_key(secret, context)

    def _self_key(self, client: int, context: bytes) -> bytes:
        return self_mask_key(self._secret(f"self {client:d}"), context)


def _masked(values: NDArray[Word], adds: list[bytes], subtracts: list[bytes]) -> NDArray[Word]:
    (masked,) = apply_masks([values.reshape(-1)], adds, subtracts)
    return np.asarray(masked, values.dtype).reshape(values.shape)


def _check_dtype(dtype: np.dtype[np.generic]) -> None:
    if dtype not in (np.uint32, np.uint64):
        raise ValueError(f"a secure sum takes uint32 or uint64 values, not {dtype}")
