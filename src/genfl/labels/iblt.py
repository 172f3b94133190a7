"""Label names in a table that can be summed: an invertible Bloom lookup table (IBLT).

Every client writes its set of label names into a table of ``uint32`` cells. A secure sum adds the tables
modulo 2^32, so nobody sees a single client's table. Only the sum is decoded. It gives every name, and the
number of clients that hold it. The names are open: no list of them is agreed on beforehand.

Encoding: a name is inserted into ``hashes`` distinct cells by adding its row ``[1, checksum, name]`` to each.
The name is stored as 16-bit limbs, so a cell with one name from m clients is exactly m times that row.

Decoding: such a cell is recognised and divided by m. Its name is *peeled*, that is, subtracted from the
name's other cells, which may leave further cells with a single name. A cell of several names may wrap.
Arithmetic modulo 2^32 is linear, so what remains after peeling is exact again. Decoding succeeds if the table
ends up all zero. For many names and 4 hashes, peeling needs about 1.30 cells per name. Few names need more,
see ``docs/results/iblt.md``.

Sources: Goodrich and Mitzenmacher, "Invertible Bloom Lookup Tables", 2011 (arXiv:1101.2245). Peeling in
parallel passes: Jiang, Mitzenmacher and Thaler, "Parallel Peeling Algorithms", 2014 (arXiv:1302.7014).

Guarantee: an answer ``a`` satisfies ``table == sum(a[name] * encode([name]))`` modulo 2^32 exactly, or there
is no answer. Damage never turns into a wrong union. The guarantee does not cover clients that lie: adding a
valid row twice, or subtracting one, gives another valid table, and no decoder of sums can detect it.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MAX_CLIENTS = 65_537
"""The largest number of clients in a sum: 65,537 * 65,535 = 2^32 - 1, the largest cell value."""

_CHECKSUM_LIMBS = 4


class DecodeError(ValueError):
    """A table that could not be decoded; there is no partial answer."""


class TableTooSmall(DecodeError):
    """A table with too many names for its cells, or damage that looks the same; retry with more cells."""


class CorruptTable(DecodeError):
    """A table that is not a sum of at most the stated number of clients' tables with these parameters."""


@dataclass(frozen=True)
class IBLT:
    """The public parameters of a table, which every client and the decoder share.

    Attributes:
        cells: Number of cells, at least ``hashes``.
        hashes: Number of distinct cells each name is written to, at least 1.
        max_bytes: Longest name in UTF-8 bytes, 1 to 1024.
        seed: Public seed of the cell positions, 0 to 2^64 - 1. A failed round can be retried with a new seed.

    Raises:
        ValueError: If a parameter is out of range.
    """

    cells: int
    hashes: int = 4
    max_bytes: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the range of every parameter."""
        if self.hashes < 1:
            raise ValueError(f"hashes must be at least 1, not {self.hashes}")
        if self.cells < self.hashes:
            raise ValueError(f"cells must be at least hashes ({self.hashes}), not {self.cells}")
        if not 1 <= self.max_bytes <= 1024:
            raise ValueError(f"labels.max_bytes must be 1 to 1024, not {self.max_bytes}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be 0 to 2^64 - 1, not {self.seed}")

    @property
    def width(self) -> int:
        """Number of values in a cell: the count, the checksum's 4 limbs and the name's limbs of 16 bits."""
        return 1 + _CHECKSUM_LIMBS + self._name_limbs

    @property
    def nbytes(self) -> int:
        """Size of a table in bytes."""
        return 4 * self.cells * self.width

    @property
    def _name_limbs(self) -> int:
        return (self.max_bytes + 1) // 2

    def encode(self, names: Iterable[str]) -> NDArray[np.uint32]:
        """Write one client's set of names into a table.

        Args:
            names: Label names. They are normalised to NFC, and duplicates count once.

        Returns:
            The table, uint32 [cells, width]. Tables are added modulo 2^32.

        Raises:
            ValueError: If a name is empty, holds a NUL, is not valid Unicode or is longer than ``max_bytes``.
            TypeError: If ``names`` is a single string.
        """
        if isinstance(names, str):
            raise TypeError("names must be a collection of strings, not one string")
        table = np.zeros((self.cells, self.width), dtype=np.uint32)
        rows, positions = self._insertions([self._utf8(name) for name in _nfc_set(names)])
        _add_rows(table, positions, rows)
        return table

    def decode(self, table: NDArray[np.uint32], clients: int) -> dict[str, int]:
        """Decode a sum of tables into every name and the number of clients that hold it.

        Every pass peels all recognised names at once, and then looks only at the cells it changed. The size
        of the table therefore bounds the work, whatever the table holds.

        Args:
            table: Sum modulo 2^32 of the clients' tables, uint32 [cells, width]; it is not changed.
            clients: Number of summed tables, 1 to 65,537.

        Returns:
            Name -> number of clients holding it (1 to ``clients``), sorted by name.

        Raises:
            TableTooSmall: If peeling gets stuck; retry with twice the cells.
            CorruptTable: If the table contradicts itself, ``clients`` or the parameters.
            ValueError: If ``clients`` is out of range.
        """
        if not 1 <= clients <= MAX_CLIENTS:
            raise ValueError(f"clients must be 1 to {MAX_CLIENTS:,}, not {clients:,}")
        if table.dtype != np.uint32 or table.shape != (self.cells, self.width):
            raise CorruptTable(
                f"the table must be uint32 {(self.cells, self.width)}, not {table.dtype} {table.shape}"
            )
        table = table.copy()
        holders: dict[str, int] = {}
        changed = np.arange(self.cells)
        while changed.size:
            names, counts, rows, positions = self._pure(table, changed)
            if counts.size and counts.max() > clients:
                raise CorruptTable(f"a name is held by {counts.max():,} clients out of {clients:,}")
            if not holders.keys().isdisjoint(names):
                raise CorruptTable("a name appears again after it was removed from the table")
            holders.update(zip(names, counts.tolist(), strict=True))
            # Each name is recognised in a cell of its own, so a valid sum has no more. This bounds the loop.
            if len(holders) > self.cells:
                raise CorruptTable(f"the table holds more names than its {self.cells:,} cells allow")
            changed = _add_rows(table, positions, -(rows * counts[:, None]))
        left = int(table.any(axis=1).sum())
        if left:
            raise TableTooSmall(
                f"decoding got stuck with {left:,} of {self.cells:,} cells left after {len(holders):,} names:"
                " too few cells for the names, or a damaged table"
            )
        return dict(sorted(holders.items()))

    def _pure(
        self, table: NDArray[np.uint32], cells: NDArray[np.int64]
    ) -> tuple[list[str], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int64]]:
        """Recognise those of some cells that hold a single name; each name is returned once.

        Returns:
            Of n distinct names: the names, counts uint32 [n], rows uint32 [n, width] and positions
            int64 [n, hashes].
        """
        count = table[cells, 0]
        possible = (count >= 1) & (count <= MAX_CLIENTS)
        cells, count = cells[possible], count[possible]
        body, remainder = np.divmod(table[cells, 1:], count[:, None])
        possible = (remainder == 0).all(axis=1)  # rejects nearly all mixed cells cheaply
        cells, count, body = cells[possible], count[possible], body[possible]

        parsed = [self._parse(row.tobytes()) for row in body[:, _CHECKSUM_LIMBS:].astype("<u2")]
        possible = np.array([name is not None for name in parsed], dtype=bool)
        cells, count, body = cells[possible], count[possible], body[possible]
        names = [name for name in parsed if name is not None]

        # Encoding the name again and comparing checks the checksum, the padding and the limbs' range at once.
        rows, positions = self._insertions([name.encode() for name in names])
        pure = (rows[:, 1:] == body).all(axis=1)
        if not (positions == cells[:, None]).any(axis=1)[pure].all():
            raise CorruptTable(
                "a name lies in a cell that is not its own: the table is damaged, or another seed or hashes"
                " made it"
            )
        first: dict[str, int] = {}
        for index in np.flatnonzero(pure).tolist():
            if count[first.setdefault(names[index], index)] != count[index]:
                raise CorruptTable("a name appears with different counts")
        keep = np.fromiter(first.values(), dtype=np.int64, count=len(first))
        return list(first), count[keep], rows[keep], positions[keep]

    def _insertions(self, encoded: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return rows uint32 [n, width] (count 1) and cells int64 [n, hashes] of n names in UTF-8."""
        size = 2 * self._name_limbs
        digests = np.frombuffer(b"".join(map(_digest, encoded)), dtype="<u2").reshape(len(encoded), 8)
        limbs = np.frombuffer(b"".join(data.ljust(size, b"\0") for data in encoded), dtype="<u2")
        rows = np.empty((len(encoded), self.width), dtype=np.uint32)
        rows[:, 0] = 1
        rows[:, 1 : 1 + _CHECKSUM_LIMBS] = digests[:, :_CHECKSUM_LIMBS]
        rows[:, 1 + _CHECKSUM_LIMBS :] = limbs.reshape(len(encoded), self._name_limbs)
        position_hashes = np.ascontiguousarray(digests[:, _CHECKSUM_LIMBS:]).view("<u8")[:, 0]
        return rows, self._positions(position_hashes.astype(np.uint64))

    def _positions(self, position_hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return distinct cells int64 [n, hashes] for hashes of names [n]; uniform if the hashes are."""
        state = position_hashes ^ _mix64(np.array([self.seed], dtype=np.uint64))
        positions = np.empty((position_hashes.size, self.hashes), dtype=np.int64)
        for j in range(self.hashes):
            state = state + _GOLDEN
            # The j-th pick is a rank among the cells not picked yet. Skip the picked cells, lowest first.
            pick = (_mix64(state) % np.uint64(self.cells - j)).astype(np.int64)
            for earlier in np.sort(positions[:, :j], axis=1).T:
                pick += pick >= earlier
            positions[:, j] = pick
        return positions

    def _utf8(self, name: str) -> bytes:
        """Return the UTF-8 bytes of an NFC name; raise ValueError if it is not a valid label name."""
        try:
            data = name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"label {name!r} is not valid Unicode: it holds a lone surrogate") from None
        if not name or "\0" in name:
            raise ValueError(f"label {name!r} must not be empty or hold a NUL character")
        if len(data) > self.max_bytes:
            raise ValueError(
                f"label {name!r} is {len(data)} bytes long in UTF-8, over labels.max_bytes = {self.max_bytes}"
            )
        return data

    def _parse(self, padded: bytes) -> str | None:
        """Return the name in the name bytes of a cell; None if no client could have written them."""
        data = padded.rstrip(b"\0")
        try:
            name = data.decode()
        except UnicodeDecodeError:
            return None
        fits = 0 < len(data) <= self.max_bytes
        return name if fits and "\0" not in name and unicodedata.is_normalized("NFC", name) else None


def _nfc_set(names: Iterable[str]) -> set[str]:
    return {unicodedata.normalize("NFC", name) for name in names}


@lru_cache(maxsize=2**16)
def _digest(data: bytes) -> bytes:
    """Hash a name to 16 bytes: 8 of checksum and 8 for its positions.

    The checksum must not be linear in the name. A cell with several names divides to their average, and a
    linear checksum would fit that average, too.
    """
    return hashlib.blake2b(data, digest_size=16, person=b"genfl.labels").digest()


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea and Flood 2014): a bijection that mixes all 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _add_rows(
    table: NDArray[np.uint32], positions: NDArray[np.int64], rows: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """Add row i [n, width] to the cells positions[i] [n, hashes] in place, and return the changed cells."""
    if not rows.size:
        return np.empty(0, dtype=np.int64)
    flat = positions.ravel()
    order = np.argsort(flat, kind="stable")
    cells, starts = np.unique(flat[order], return_index=True)
    # Several names may share a cell, so sum per cell first. The dtype keeps the sums modulo 2^32.
    table[cells] += np.add.reduceat(rows[order // positions.shape[1]], starts, axis=0, dtype=np.uint32)
    return cells
