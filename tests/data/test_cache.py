import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

from genfl import cli
from genfl.data.cache import cached_data, clear_cache
from genfl.data.sources import DATASETS

from .helpers import tables

ROWS = [{"text": f"t{n}", "label": "ab"[n % 2], "who": f"u{n % 3}"} for n in range(10)]


@pytest.fixture
def cached(tmp_path, cache):
    folder = tables(tmp_path / "d", "csv", train=ROWS)
    DATASETS["texts"].load(path=str(folder), length=4)
    return folder


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_cache_is_private_to_its_user(cached, cache):
    for path in (cache, *cache.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_cache_lists_what_it_holds(cached, cache):
    (entry,) = cached_data()
    assert (entry.examples, entry.classes) == (10, ("a", "b"))
    assert entry.bytes == sum(path.stat().st_size for path in entry.path.iterdir())
    (entry.path / "about.json").write_text("{")
    (damaged,) = cached_data()
    assert (damaged.examples, damaged.classes) == (None, ())


def test_cleared_cache_is_filled_again(cached, cache):
    before = np.load(next(cache.glob("*/train.npy")))
    assert clear_cache() > 0
    assert cached_data() == []
    DATASETS["texts"].load(path=str(cached), length=4)
    assert np.array_equal(np.load(next(cache.glob("*/train.npy"))), before)


def test_cache_command_lists_and_clears(cached, cache):
    run = CliRunner().invoke
    listed = json.loads(run(cli.app, ["cache", "--json"]).stdout)
    assert [entry["examples"] for entry in listed] == [10]
    assert "10" in run(cli.app, ["cache", "list"]).stdout
    cleared = run(cli.app, ["cache", "clear"])
    assert cleared.exit_code == 0
    assert "freed" in cleared.stdout
    assert json.loads(run(cli.app, ["cache", "list", "--json"]).stdout) == []
    assert run(cli.app, ["cache", "burn"]).exit_code == 2


def test_a_warm_cache_is_read_without_a_lock(cached, cache):
    for path in cache.glob("*.lock"):
        path.unlink()
    cache.chmod(0o500)
    try:
        DATASETS["texts"].load(path=str(cached), length=4)
        assert not list(cache.glob("*.lock"))
    finally:
        cache.chmod(0o700)
