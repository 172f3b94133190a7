"""Simulated secure sums: masked uploads whose sum over all clients can be read, but nothing else.

Every pair of neighbouring clients shares a secret. From it, both derive the same pseudorandom mask. The
client with the lower id adds the mask to its upload, and the other one subtracts it. So the masks cancel in
the sum.

Sources: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
section 4 (pairwise masking); Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
CCS 2020, section 3 (sparse neighbour graph: a ring in random order, where each client is linked to the
nearest ones on both sides).

**This simulates the protocol in one process.** The arithmetic and the masks are those of the protocol. These
parts are not:

* Key agreement: the pairwise secrets and the order of the ring are derived from one seed. Whoever has the
  seed, and so this process, can unmask everything. Nothing here protects against the process itself.
* Dropouts: there is no recovery. If the upload of one client is missing, there is no sum.

Threat model of the simulated protocol: the server follows the protocol but is curious, and clients may
collude with it. An upload looks uniformly random, and so does the sum of any group of uploads, as long as the
group has an honest neighbour outside it. Colluding neighbours can remove their masks. Consider a ring of n
clients where a random share c colludes. The honest clients are split into two groups with a probability of
about ``(n * c ** (degree / 2)) ** 2 / 2`` (two runs of degree / 2 colluders). This is below 2^-39 for 5,000
clients, a third of them colluding, and the default degree of 40.

Out of scope: clients that upload false values; a server that deviates or lies about who takes part; and what
the sum itself reveals. If all clients but one collude, they learn the last one's values from it. A secure sum
is not differential privacy.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

COMPLETE_UP_TO = 100
"""The most clients for which ``degree=None`` links every pair."""

RING_DEGREE = 40
"""The neighbours per client of a larger group with ``degree=None``."""

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
        position = self._positions.get(client)
        if position is None:
            raise ValueError(f"client {client} does not take part in this secure sum")
        ring, n = tuple(self._positions), len(self.clients)
        degree = self.degree or (n - 1 if n <= COMPLETE_UP_TO else RING_DEGREE)
        if degree >= n - 1:
            return tuple(sorted(set(ring) - {client}))
        reach = range(1, degree // 2 + 1)
        return tuple(sorted(ring[(position + step) % n] for r in reach for step in (-r, r)))

    def mask(self, client: int, values: NDArray[Word]) -> NDArray[Word]:
        """Mask one client's values for upload.

        Args:
            client: The client's id.
            values: uint32 or uint64, any shape, the same for all clients; not changed.

        Returns:
            The values plus or minus one mask per neighbour, modulo 2^32 or 2^64; same shape and dtype.

        Raises:
            ValueError: The client does not take part, or the dtype is another.
        """
        _check_dtype(values.dtype)
        masked = np.array(values)
        for other in self.neighbours(client):
            mask = self._pair_mask(client, other, values)
            if client < other:
                np.add(masked, mask, out=masked)
            else:
                np.subtract(masked, mask, out=masked)
        return masked

    def add(self, masked: Mapping[int, NDArray[Word]]) -> NDArray[Word]:
        """Sum the masked uploads of all clients; the masks cancel.

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
        return total

    @cached_property
    def _positions(self) -> dict[int, int]:
        """Client -> position on the ring; the order is random, so colluders cannot choose neighbours."""
        ring = sorted(self.clients, key=lambda client: self._secret(f"ring {client:d}"))
        return {client: position for position, client in enumerate(ring)}

    def _secret(self, purpose: str) -> bytes:
        """Return 32 bytes for a purpose, derived from the seed in place of a key agreement."""
        return hashlib.sha3_256(f"genfl secure sum {self.seed:d} {purpose}".encode()).digest()

    def _pair_mask(self, client: int, other: int, like: NDArray[Word]) -> NDArray[Word]:
        """Return the pair's mask with the shape and dtype of ``like``, from SHAKE256."""
        secret = self._secret(f"pair {min(client, other):d} {max(client, other):d}")
        # The shape is part of the input so that uploads of two shapes never share the beginning of a mask.
        purpose = repr((self.context, like.itemsize, like.shape)).encode()
        stream = hashlib.shake_256(secret + purpose).digest(like.nbytes)
        return np.frombuffer(stream, dtype=like.dtype).reshape(like.shape)


def _check_dtype(dtype: np.dtype[np.generic]) -> None:
    if dtype not in (np.uint32, np.uint64):
        raise ValueError(f"a secure sum takes uint32 or uint64 values, not {dtype}")


def encode_fixed(values: NDArray[np.floating], clients: int, fraction_bits: int = 24) -> NDArray[np.uint64]:
    """Encode reals as fixed-point numbers in the ring of 64-bit integers, for a secure sum.

    Args:
        values: Floats of up to 64 bits, any shape; absolute values below about
            2^(63 - fraction_bits) / clients.
        clients: Number of summands, at least 1; fixes the range so that no sum can wrap.
        fraction_bits: Bits after the binary point, 0 to 62.

    Returns:
        ``round(values * 2^fraction_bits)`` in two's complement, same shape. Each is off by at most
        2^-(fraction_bits + 1).

    Raises:
        ValueError: A value is not finite or out of range, or ``clients`` or ``fraction_bits`` is.
    """
    _check_fraction_bits(fraction_bits)
    if clients < 1:
        raise ValueError(f"clients must be at least 1, not {clients}")
    exact = np.asarray(values, dtype=np.float64)
    if not np.isfinite(exact).all():
        raise ValueError("a secure sum takes finite values only")
    limit = (2**63 - 1) // clients
    with np.errstate(over="ignore"):  # infinity is out of range below
        scaled = np.rint(np.ldexp(exact, fraction_bits))
    # Beyond 63 bits the conversion to integers is undefined; below, comparing integers is exact.
    convertible = np.abs(scaled) < 2.0**63
    integers = np.where(convertible, scaled, 0).astype(np.int64)
    if not (convertible & (np.abs(integers) <= limit)).all():
        raise ValueError(
            f"a value of {np.abs(exact).max():.3g} exceeds the {limit / 2**fraction_bits:.3g} that "
            f"{clients} clients with {fraction_bits} fraction bits can sum"
        )
    return integers.view(np.uint64)


def decode_fixed(total: NDArray[np.uint64], fraction_bits: int = 24) -> NDArray[np.float64]:
    """Decode a sum of fixed-point numbers.

    Args:
        total: Sum modulo 2^64 of encoded values, uint64, any shape.
        fraction_bits: As given to :func:`encode_fixed`.

    Returns:
        The sum, same shape, off by at most clients * 2^-(fraction_bits + 1), plus float64's own rounding of
        at most 2^-53 of the result (none while it is below 2^(53 - fraction_bits)).

    Raises:
        ValueError: The dtype is not uint64 or ``fraction_bits`` is out of range.
    """
    _check_fraction_bits(fraction_bits)
    if total.dtype != np.uint64:
        raise ValueError(f"a fixed-point sum is uint64, not {total.dtype}")
    return np.ldexp(total.view(np.int64).astype(np.float64), -fraction_bits)


def _check_fraction_bits(fraction_bits: int) -> None:
    if not 0 <= fraction_bits <= 62:
        raise ValueError(f"fraction_bits must be 0 to 62, not {fraction_bits}")
