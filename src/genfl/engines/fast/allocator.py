"""Memory that tensors free, kept for the next ones."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 2**31 - 1
_USUAL = 32 * 2**20  # the largest value that glibc chooses by itself


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Make the C library keep freed memory for the next tensors, for the length of a block.

    By default glibc returns blocks of more than 32 MiB, and free memory at its heap's end, to the system at
    once. So every step of a model asks for its pages again, which takes a quarter of the time of a CNN on
    CIFAR-sized images. Processes forked in the block keep their memory too. Without glibc nothing happens.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    assert libc is not None
    if not libc.mallopt(_MMAP_THRESHOLD, _LARGEST):
        libc.mallopt(_MMAP_THRESHOLD, _USUAL)  # the most that an older one takes
    libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _USUAL)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _USUAL)
        libc.malloc_trim(0)
