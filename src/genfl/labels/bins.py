"""Counts of clients in hashed bins: which label names enough clients hold, without naming any.

Each client hashes its label names into bins, with a key that all clients know and the server does not. It
marks the bins of its names, and a secure sum adds the marks up. So the server learns how many clients have a
name in each bin, but no name. It tells the clients which bins reach the least number of holders. A client
then puts only those names in its table whose bins all reach it.

A name of fewer holders gets through only if others fill all of its bins. With n other names and ``rows`` rows
of ``bins`` bins, the probability is at most ``(n / bins) ** rows``.

The rows of bins are a count-min sketch: Cormode and Muthukrishnan, "An improved data stream summary: the
count-min sketch and its applications", Journal of Algorithms 55(1), 2005, Section 3.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HolderBins:
    """The parameters of the bins, which all clients share.

    Attributes:
        bins: Bins in a row, at least 1.
        secret: The key of the hash, 16 to 64 bytes. The server must not have it: whoever has it can look for
            names that it guesses.
        rows: Rows of bins, 1 to 8. Each name has one bin in each row.

    Raises:
        ValueError: A parameter is out of range.
    """

    bins: int
    secret: bytes = field(repr=False)
    rows: int = 4

    def __post_init__(self) -> None:
        """Check the range of every parameter."""
        if self.bins < 1:
            raise ValueError(f"bins must be at least 1, not {self.bins}")
        if not 1 <= self.rows <= 8:
            raise ValueError(f"rows must be 1 to 8, not {self.rows}")
        if not 16 <= len(self.secret) <= 64:
            raise ValueError(f"the secret must have 16 to 64 bytes, not {len(self.secret)}")

    @property
    def nbytes(self) -> int:
        """Size of a client's upload in bytes."""
        return 4 * self.rows * self.bins

    def mark(self, names: Collection[str]) -> NDArray[np.uint32]:
        """Return a client's upload: 1 in each bin of its names, uint32 [rows, bins].

        Two names of one client in the same bin count once, because bins count clients.

        Args:
            names: The client's label names. They are normalised to NFC.
        """
        marks = np.zeros((self.rows, self.bins), dtype=np.uint32)
        for name in names:
            marks[np.arange(self.rows), self._bins_of(name)] = 1
        return marks

    def shared(self, names: Collection[str], enough: NDArray[np.bool_]) -> list[str]:
        """Return those of a client's names whose bins all have enough holders, in the order given.

        Args:
            names: The client's label names.
            enough: What the server says of each bin, [rows, bins].
        """
        return [name for name in names if enough[np.arange(self.rows), self._bins_of(name)].all()]

    def _bins_of(self, name: str) -> NDArray[np.int64]:
        """Return the bin of a name in each row, int64 [rows]."""
        text = unicodedata.normalize("NFC", name).encode()
        hashed = hashlib.blake2b(text, key=self.secret, digest_size=8 * self.rows).digest()
        return (np.frombuffer(hashed, dtype="<u8") % np.uint64(self.bins)).astype(np.int64)
