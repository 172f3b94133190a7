"""Real data sets, where there are any, and a cache of the tests' own."""

import pytest

from genfl.data.sources import DATASETS

from .helpers import find


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


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
