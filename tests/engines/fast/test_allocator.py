"""What becomes of freed memory: kept for the next tensors, and given back in the end."""

import ctypes
import platform
import resource
from pathlib import Path

import pytest
import torch

from genfl.data.clients import ClientData
from genfl.engines.auto import engine
from genfl.engines.fast import keeping_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")

LARGE = 64 * 2**20


def new_pages():
    """Pages the system had to find for twenty large tensors, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(LARGE, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
def test_a_freed_tensors_pages_are_the_next_ones():
    usual = new_pages()
    with keeping_memory():
        new_pages()
        assert new_pages() < usual / 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["sequential", "parallel", "vectorized"],
)
def test_every_engine_keeps_them_while_it_is_open(name):
    data = ClientData(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), [[0], [1]], 1)
    usual = new_pages()
    with engine(name, data, 2):
        new_pages()
        assert new_pages() < usual / 10


def test_they_go_back_to_the_system_at_the_end_whatever_happened():
    ctypes.CDLL(None).malloc_trim(0)
    with pytest.raises(RuntimeError), keeping_memory():
        before = resident()
        torch.ones(4 * LARGE, dtype=torch.uint8)
        assert resident() > before + 3 * LARGE, "kept"
        raise RuntimeError
    assert resident() < before + LARGE
    usual = new_pages()
    assert usual > 100, "and later ones go back at once, as ever"
