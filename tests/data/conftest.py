"""Real data sets, where there are any, and a cache of the tests' own."""

import os

import pytest

from genfl.data.sources import DATASETS

from .helpers import find


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    """A cache that all processes of the tests share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the folder of this process lies in one of all
        folder = folder.parent
    (folder / "decoded").mkdir(exist_ok=True)
    return folder / "decoded"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache that nothing else sees."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def real(session_cache, monkeypatch):
    """Loads a real data set by the name of its recipe and its folder, decoding it once for all tests."""

    def load(name, folder):
        path = find(folder)
        monkeypatch.setenv("GENFL_CACHE", str(session_cache))
        return DATASETS[name].load(path=str(path))

    return load
