"""Bytes of the messages of a secure sum: versioned, bounded, and one way to write each message.

A reader never trusts a length: it takes what the rest of the bytes can hold, and refuses bytes that are left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from genfl.privacy.secure_sum.primitives import SecureSumError

_T = TypeVar("_T")
_U = TypeVar("_U")

Vector = NDArray[np.unsignedinteger]
"""Words that are added up, one-dimensional."""


class WireCodec(NamedTuple, Generic[_T]):
    """How values of one kind are written and read.

    Attributes:
        write: ``value -> parts of bytes``.
        read: ``reader -> value``.
    """

    write: Callable[[_T], list[Any]]
    read: Callable[[ByteReader], _T]


class ByteReader:
    """Bytes that are read from the front.

    Args:
        data: The bytes; arrays that are read are views of them.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self.rest = memoryview(data)

    def take(self, length: int) -> memoryview:
        """Return the next bytes.

        Raises:
            SecureSumError: ``encoding``: there are fewer.
        """
        if length > len(self.rest):
            raise SecureSumError(
                "encoding", f"a message ends early: {length - len(self.rest)} bytes are missing"
            )
        part, self.rest = self.rest[:length], self.rest[length:]
        return part

    def integer(self, length: int) -> int:
        """Return the next bytes as an unsigned little-endian number."""
        return int.from_bytes(self.take(length), "little")


def integer(length: int) -> WireCodec[int]:
    """Return the codec of unsigned integers of a number of bytes."""
    return WireCodec(lambda value: [value.to_bytes(length, "little")], lambda reader: reader.integer(length))


def fixed_bytes(length: int) -> WireCodec[bytes]:
    """Return the codec of bytes of one length."""

    def write(value: bytes) -> list[Any]:
        if len(value) != length:
            raise SecureSumError("encoding", f"{len(value)} bytes where {length} are expected")
        return [value]

    return WireCodec(write, lambda reader: bytes(reader.take(length)))


def short_bytes(longest: int) -> WireCodec[bytes]:
    """Return the codec of up to so many bytes, 255 at most."""

    def write(value: bytes) -> list[Any]:
        if len(value) > longest:
            raise SecureSumError("encoding", f"{len(value)} bytes where at most {longest} are allowed")
        return [bytes([len(value)]), value]

    def read(reader: ByteReader) -> bytes:
        length = reader.integer(1)
        if length > longest:
            raise SecureSumError("encoding", f"{length} bytes where at most {longest} are allowed")
        return bytes(reader.take(length))

    return WireCodec(write, read)


def many(item: WireCodec[_T], most: int) -> WireCodec[tuple[_T, ...]]:
    """Return the codec of up to `most` values of one kind."""

    def write(values: tuple[_T, ...]) -> list[Any]:
        parts: list[Any] = [len(values).to_bytes(4, "little")]
        for value in values:
            parts += item.write(value)
        return parts

    def read(reader: ByteReader) -> tuple[_T, ...]:
        count = reader.integer(4)
        if count > most:
            raise SecureSumError("encoding", f"a list of {count} entries where at most {most} are allowed")
        return tuple(item.read(reader) for _ in range(count))

    return WireCodec(write, read)


def pair(first: WireCodec[_T], second: WireCodec[_U]) -> WireCodec[tuple[_T, _U]]:
    """Return the codec of two values of different kinds."""
    return WireCodec(
        lambda value: [*first.write(value[0]), *second.write(value[1])],
        lambda reader: (first.read(reader), second.read(reader)),
    )


def optional(item: WireCodec[_T]) -> WireCodec[_T | None]:
    """Return the codec of a value that may be None."""
    one = many(item, 1)

    def read(reader: ByteReader) -> _T | None:
        values = one.read(reader)
        return values[0] if values else None

    return WireCodec(lambda value: one.write(() if value is None else (value,)), read)


def choice(values: tuple[_T, ...]) -> WireCodec[_T]:
    """Return the codec of one of up to 256 known values."""

    def read(reader: ByteReader) -> _T:
        number = reader.integer(1)
        if number >= len(values):
            raise SecureSumError("encoding", f"choice {number} of {len(values)}")
        return values[number]

    return WireCodec(lambda value: [bytes([values.index(value)])], read)


def fields_of(cls: Callable[..., _T], **fields: WireCodec[Any]) -> WireCodec[_T]:
    """Return the codec of a class whose fields are written in this order."""

    def write(value: _T) -> list[Any]:
        return [part for name, codec in fields.items() for part in codec.write(getattr(value, name))]

    def read(reader: ByteReader) -> _T:
        return cls(**{name: codec.read(reader) for name, codec in fields.items()})

    return WireCodec(write, read)


def _write_vector(vector: Vector) -> list[Any]:
    words = np.ascontiguousarray(vector, vector.dtype.newbyteorder("<"))
    return [words.itemsize.to_bytes(8, "little"), words.size.to_bytes(8, "little"), words.data.cast("B")]


def _read_vector(reader: ByteReader) -> Vector:
    itemsize, size = reader.integer(8), reader.integer(8)
    if itemsize not in (4, 8):
        raise SecureSumError("encoding", f"words of {itemsize} bytes; they have 4 or 8")
    words = np.frombuffer(reader.take(itemsize * size), f"<u{itemsize}")
    return words.astype(words.dtype.newbyteorder("="), copy=False)


VECTOR_CODEC: WireCodec[Vector] = WireCodec(_write_vector, _read_vector)
"""The codec of a vector of words; what is read is a view."""
