"""The messages of a secure sum, and the parameters that all parties agree on.

| round | from the server | from a client |
|---|---|---|
| 0 | `SumParameters` | `Advertisement` |
| 1 | `Roster` | `SealedShares` |
| 2 | `Delivery` | `MaskedInput` |
| 3 | `Survivors` | `Confirmation` |
| 4 | `Confirmations` | `Reveal` |

Each message names its sum by the digest of the parameters, so one of another round or run is refused.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from genfl.privacy.secure_sum.encoding import (
    VECTOR_CODEC,
    ByteReader,
    Vector,
    WireCodec,
    fields_of,
    fixed_bytes,
    integer,
    many,
    pair,
    short_bytes,
)
from genfl.privacy.secure_sum.primitives import SecureSumError

LARGEST_SUM = 2**17
"""The most clients of a sum."""

DEFAULT_NEIGHBOURS = 100
"""The neighbours of each client in a larger group."""

SHARE_BYTES = 33
"""Bytes of a share: a number below `genfl.privacy.secure_sum.shamir.SHARE_PRIME`."""

SEALED_BYTES = 2 * SHARE_BYTES + 16
"""Bytes of two shares, encrypted."""


class Segment(NamedTuple):
    """A part of the vector that clients add up.

    Attributes:
        bits: Bits of a word, 32 or 64: the sum is modulo 2^bits.
        size: Number of words.
    """

    bits: int
    size: int


@dataclass(frozen=True)
class SumParameters:
    """What all parties of a sum know and agree on.

    Attributes:
        session: The name of the sum, 1 to 255 bytes: never the same for two sums. A federation names its run,
            the round, and the attempt.
        clients: Ids of the clients that may take part, in rising order, at least 2.
        threshold: The fewest clients whose sum may be opened, more than half of all. See
            `default_threshold`.
        segments: What each client adds, at least one segment.
        neighbours: Even number of clients with whom each one shares masks and secrets. In a group of no more
            than that and one, all do so with all.

    Raises:
        SecureSumError: ``parameters``: one of them is out of range. A client that makes this value of what a
            server sends so refuses an unsafe sum.
    """

    session: bytes
    clients: tuple[int, ...]
    threshold: int
    segments: tuple[Segment, ...]
    neighbours: int = DEFAULT_NEIGHBOURS

    def __post_init__(self) -> None:
        """Check the parameters."""
        n = len(self.clients)
        if not 1 <= len(self.session) <= 255:
            raise SecureSumError(
                "parameters", f"the session must have 1 to 255 bytes, not {len(self.session)}"
            )
        if not 2 <= n <= LARGEST_SUM:
            raise SecureSumError("parameters", f"a sum needs 2 to {LARGEST_SUM} clients, not {n}")
        if any(a >= b for a, b in itertools.pairwise(self.clients)):
            raise SecureSumError("parameters", "the clients must be distinct and in rising order")
        if not 0 <= self.clients[0] <= self.clients[-1] < 2**64:
            raise SecureSumError("parameters", "the ids of clients must be from 0 to below 2^64")
        if not n < 2 * self.threshold <= 2 * n:
            raise SecureSumError(
                "parameters",
                f"the threshold is {self.threshold}; of {n} clients it must be {n // 2 + 1} to {n}",
            )
        if not self.segments or any(s.bits not in (32, 64) or not 0 <= s.size < 2**40 for s in self.segments):
            raise SecureSumError("parameters", "segments must have words of 32 or 64 bits")
        if not 2 <= self.neighbours < 2**32 or self.neighbours % 2:
            raise SecureSumError(
                "parameters", f"neighbours must be even and at least 2, not {self.neighbours}"
            )

    @cached_property
    def digest(self) -> bytes:
        """The 32 bytes by which messages name the sum."""
        return hashlib.sha256(to_bytes(self)).digest()

    @cached_property
    def members(self) -> frozenset[int]:
        """The clients, to look one up."""
        return frozenset(self.clients)

    @property
    def nbytes(self) -> int:
        """Bytes of the words of a client."""
        return sum(segment.bits // 8 * segment.size for segment in self.segments)

    def check_vectors(self, vectors: Sequence[Vector]) -> None:
        """Check that vectors have the agreed dtypes and sizes.

        Raises:
            SecureSumError: ``shape``: they do not.
        """
        got = [(np.dtype(vector.dtype).name, vector.shape) for vector in vectors]
        expected = [(f"uint{segment.bits}", (segment.size,)) for segment in self.segments]
        if got != expected:
            differing = [pair for pair in zip(got, expected, strict=False) if pair[0] != pair[1]]
            detail = (
                f"{differing[0][0][0]} {differing[0][0][1]} where {differing[0][1][0]} {differing[0][1][1]}"
                if differing
                else f"{len(got)} vectors where {len(expected)}"
            )
            raise SecureSumError("shape", f"{detail} is expected")


def default_threshold(clients: int) -> int:
    """Return the threshold of the paper's proof against an active server, floor(2n / 3) + 1.

    It holds while fewer than a third of the clients work for the server. For groups of 2 and 3 it leaves no
    room for a dropout.
    """
    return 2 * clients // 3 + 1


@dataclass(frozen=True)
class Advertisement:
    """A client's public keys of this sum, signed as its node.

    Attributes:
        digest: The sum.
        client: The sender.
        channel_key: X25519 key by which others send it shares.
        mask_key: X25519 key of its pairwise masks.
        commitment: SHA-256 of its self mask's seed, so that a wrong share of the seed is noticed.
        signature: Of all this.
    """

    digest: bytes
    client: int
    channel_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes

    @property
    def signed(self) -> bytes:
        """The bytes that are signed."""
        fields = (self.channel_key, self.mask_key, self.commitment)
        return b"".join([b"genfl secure sum keys", self.digest, self.client.to_bytes(8, "little"), *fields])


@dataclass(frozen=True)
class Roster:
    """The keys of all clients that take part, in the order of their ids; the same for every client."""

    digest: bytes
    advertisements: tuple[Advertisement, ...]

    @cached_property
    def fingerprint(self) -> bytes:
        """The 32 bytes to which shares and confirmations are bound."""
        return hashlib.sha256(to_bytes(self)).digest()

    @cached_property
    def keys(self) -> dict[int, Advertisement]:
        """The keys of each client."""
        return {advertisement.client: advertisement for advertisement in self.advertisements}


@dataclass(frozen=True)
class SealedShares:
    """The shares of a client's two secrets, encrypted for each neighbour: ``(recipient, sealed)``."""

    digest: bytes
    client: int
    shares: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class Delivery:
    """The shares that a client's neighbours sent to it: ``(sender, sealed)``, in the order of ids."""

    digest: bytes
    client: int
    shares: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class MaskedInput:
    """A client's words plus its masks."""

    digest: bytes
    client: int
    vectors: tuple[Vector, ...]


@dataclass(frozen=True)
class Survivors:
    """The clients in the sum, in the order of their ids; the same for every client.

    It is the only request to open masks. For these clients, self masks are opened; for all others, pairwise
    masks. So no message can ask for both masks of one client.
    """

    digest: bytes
    clients: tuple[int, ...]

    @cached_property
    def fingerprint(self) -> bytes:
        """The 32 bytes that stand for the set in a confirmation."""
        return hashlib.sha256(to_bytes(self)).digest()


@dataclass(frozen=True)
class Confirmation:
    """A client's signature of the roster and the survivors that it was shown."""

    digest: bytes
    client: int
    signature: bytes


@dataclass(frozen=True)
class Confirmations:
    """The confirmations of all clients that sent one, in the order of their ids."""

    digest: bytes
    confirmations: tuple[Confirmation, ...]


@dataclass(frozen=True)
class Reveal:
    """The shares that open the sum: ``(owner, share)``, in the order of ids.

    Attributes:
        digest: The sum.
        client: The sender.
        self_shares: Shares of the seeds of survivors' self masks.
        key_shares: Shares of the mask keys of clients that dropped out after they had shared them.
    """

    digest: bytes
    client: int
    self_shares: tuple[tuple[int, int], ...]
    key_shares: tuple[tuple[int, int], ...]


ClientMessage = Advertisement | SealedShares | MaskedInput | Confirmation | Reveal
"""What clients send."""

ServerMessage = SumParameters | Roster | Delivery | Survivors | Confirmations
"""What the server sends."""

_DIGEST, _KEY, _ID = fixed_bytes(32), fixed_bytes(32), integer(8)
_IDS = many(_ID, LARGEST_SUM)
_SIGNATURE = short_bytes(255)
_SEALED = many(pair(_ID, fixed_bytes(SEALED_BYTES)), LARGEST_SUM)
SHARES_CODEC = many(pair(_ID, integer(SHARE_BYTES)), LARGEST_SUM)
"""The codec of ``(owner, share)``."""
_ADVERTISEMENT = fields_of(
    Advertisement,
    digest=_DIGEST,
    client=_ID,
    channel_key=_KEY,
    mask_key=_KEY,
    commitment=_KEY,
    signature=_SIGNATURE,
)
_CONFIRMATION = fields_of(Confirmation, digest=_DIGEST, client=_ID, signature=_SIGNATURE)

PARAMETERS_CODEC = fields_of(
    SumParameters,
    session=short_bytes(255),
    clients=_IDS,
    threshold=integer(4),
    segments=many(fields_of(Segment, bits=integer(1), size=integer(8)), 2**16),
    neighbours=integer(4),
)
"""The codec of parameters."""

ROSTER_CODEC = fields_of(Roster, digest=_DIGEST, advertisements=many(_ADVERTISEMENT, LARGEST_SUM))
"""The codec of a roster."""

SURVIVORS_CODEC = fields_of(Survivors, digest=_DIGEST, clients=_IDS)
"""The codec of survivors."""

_CODECS: dict[type, WireCodec[Any]] = {
    SumParameters: PARAMETERS_CODEC,
    Advertisement: _ADVERTISEMENT,
    Roster: ROSTER_CODEC,
    SealedShares: fields_of(SealedShares, digest=_DIGEST, client=_ID, shares=_SEALED),
    Delivery: fields_of(Delivery, digest=_DIGEST, client=_ID, shares=_SEALED),
    # 4 bytes before, and these 44: the words of the first segment begin at a multiple of 8 bytes
    MaskedInput: fields_of(MaskedInput, digest=_DIGEST, client=_ID, vectors=many(VECTOR_CODEC, 2**16)),
    Survivors: SURVIVORS_CODEC,
    Confirmation: _CONFIRMATION,
    Confirmations: fields_of(Confirmations, digest=_DIGEST, confirmations=many(_CONFIRMATION, LARGEST_SUM)),
    Reveal: fields_of(Reveal, digest=_DIGEST, client=_ID, self_shares=SHARES_CODEC, key_shares=SHARES_CODEC),
}
_NUMBERS = {cls: number for number, cls in enumerate(_CODECS, start=1)}
_MAGIC = b"gs\x01"  # the last byte is the version

_M = TypeVar("_M", bound=ClientMessage | ServerMessage)


def to_bytes(message: ClientMessage | ServerMessage) -> bytes:
    """Return the bytes of a message.

    Raises:
        SecureSumError: ``encoding``: a field has another length than the protocol's.
    """
    try:
        parts = _CODECS[type(message)].write(message)
    except OverflowError as error:
        raise SecureSumError("encoding", "a number of a message is out of range") from error
    return b"".join([_MAGIC, bytes([_NUMBERS[type(message)]]), *parts])


def from_bytes(data: bytes | memoryview, expected: type[_M]) -> _M:
    """Return the message of some bytes; vectors of a `MaskedInput` are views of them.

    Args:
        data: The bytes.
        expected: The only class of message that is due.

    Raises:
        SecureSumError: ``encoding``: the bytes are no such message, end early, or are too many;
            ``parameters``: they are those of an unsafe sum.
    """
    reader = ByteReader(data)
    if bytes(reader.take(3)) != _MAGIC:
        raise SecureSumError("encoding", "this is no message of a secure sum, or one of another version")
    number = reader.integer(1)
    if number != _NUMBERS[expected]:
        raise SecureSumError("encoding", f"this is no {expected.__name__}, but message {number}")
    message: _M = _CODECS[expected].read(reader)
    if reader.rest:
        raise SecureSumError("encoding", f"a message has {len(reader.rest)} bytes too many")
    return message
