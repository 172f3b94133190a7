"""Keys, trees and files."""

import json
import os
import subprocess
import sys

import filelock
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from genfl import storage, trees
from genfl.errors import GenflError, InputError
from genfl.rng import Key

TREE = {"b": {"y": torch.arange(3.0), "x": torch.ones(2, 2)}, "a": torch.tensor(7), "empty": {}}


def test_the_same_address_gives_the_same_numbers_and_another_other_ones():
    a = Key(0).fold("plan", 3, 5)
    assert a == Key(0).fold("plan").fold(3).fold(5)
    assert a.numpy().random() == a.numpy().random()
    assert torch.rand(3, generator=a.torch()).equal(torch.rand(3, generator=a.torch()))
    others = [
        Key(1).fold("plan", 3, 5),
        Key(0).fold("plan", 5, 3),
        Key(0).fold("plan", 3),
        Key(0).fold("x", 3, 5),
    ]
    assert len({key.integer() for key in [a, *others]}) == 5


def test_a_key_is_not_made_of_negative_numbers():
    with pytest.raises(ValueError, match="non-negative"):
        Key(0).fold(-1)


@given(st.integers(0, 2**63), st.lists(st.integers(0, 2**40), max_size=4))
def test_integers_are_63_bits(seed, path):
    assert 0 <= Key(seed).fold(*path).integer() < 2**63


@given(st.integers(0, 2**80), st.lists(st.integers(0, 2**34), max_size=6))
def test_streams_are_those_that_numpy_spawns(seed, path):
    spawned = np.random.SeedSequence(seed, spawn_key=tuple(path))
    expected = np.random.default_rng(spawned).integers(0, 2**63, 3)
    assert Key(seed, tuple(path)).numpy().integers(0, 2**63, 3).tolist() == expected.tolist()


@pytest.mark.parametrize(("seed", "error"), [(1.5, TypeError), (-1, ValueError), ("1", TypeError)])
def test_a_seed_is_a_non_negative_integer(seed, error):
    with pytest.raises(error):
        Key(seed).numpy()


def test_tree_arithmetic():
    a = {"x": torch.tensor([1.0, 2.0]), "y": {"z": torch.tensor(3.0)}}
    assert trees.dot(a, a) == trees.square_norm(a) == 14
    assert trees.sub(trees.add(a, a, a), trees.scale(3, a))["y"]["z"] == 0
    assert trees.num_bytes(a) == 12
    assert trees.num_bytes(trees.zeros_like(a)) == 12
    assert trees.is_finite(a)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_what_is_finite_is_told_from_what_overflows_when_it_is_added_up(dtype):
    inf, nan, largest = float("inf"), float("nan"), torch.finfo(dtype).max
    for values in ([inf, 1.0], [inf, -inf], [1.0, nan], [-inf]):
        assert not trees.is_finite({"a": torch.ones(2), "b": torch.tensor(values, dtype=dtype)})
    for values in ([largest, largest, largest], [-largest, -largest], [], [0.0]):
        assert trees.is_finite({"a": torch.ones(2), "b": torch.tensor(values, dtype=dtype)})


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.uint32, torch.bool, torch.float8_e5m2])
def test_what_cannot_be_added_up_or_knows_no_infinity_may_be_finite(dtype):
    assert trees.is_finite({"a": torch.ones(3).to(dtype)})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"x": torch.ones(2), "z": torch.ones(())}, "structure"),
        ({"x": torch.ones(2)}, "structure"),
        ({"x": torch.ones(3), "y": torch.ones(())}, "shape"),
        ({"x": torch.ones(2).double(), "y": torch.ones(())}, "dtype"),
    ],
)
def test_mismatches_are_named(other, words):
    like = {"x": torch.ones(2), "y": torch.ones(())}
    assert trees.mismatch(like, like) is None
    assert words in trees.mismatch(other, like)


def test_tensors_come_back_in_order_with_their_meta(tmp_path):
    path = tmp_path / "deep" / "tree.safetensors"
    storage.save_tensors(path, TREE, {"round": 3, "loss": 0.1 + 0.2})
    tree, meta = storage.load_tensors(path)
    assert meta == {"round": 3, "loss": 0.1 + 0.2}
    assert list(tree) == ["b", "a", "empty"]
    assert list(tree["b"]) == ["y", "x"]
    assert tree["empty"] == {}
    assert trees.mismatch(tree, TREE) is None
    for a, b in zip(trees.leaves(tree), trees.leaves(TREE), strict=True):
        assert torch.equal(a, b)


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    for n in range(20):  # whatever order a hash map has today
        storage.save_tensors(tmp_path / str(n), TREE, {"b": 1, "a": 2})
    assert len({(tmp_path / str(n)).read_bytes() for n in range(20)}) == 1


@pytest.mark.parametrize("position", [0, 20, 60, -1])
def test_a_flipped_bit_is_noticed_and_a_damaged_checkpoint_starts_over(tmp_path, caplog, position):
    path = tmp_path / "checkpoint.safetensors"
    assert storage.load_checkpoint(path) is storage.load_checkpoint(None) is None
    storage.save_tensors(path, TREE)
    assert storage.load_checkpoint(path) is not None
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(GenflError, match=r"checkpoint\.safetensors is damaged"):
        storage.load_tensors(path)
    assert storage.load_checkpoint(path) is None
    assert "checkpoint.safetensors is damaged" in caplog.text
    assert not path.exists()


def test_damaged_json_names_the_file(tmp_path):
    (tmp_path / "f.json").write_text("{")
    with pytest.raises(GenflError, match=r"f\.json is damaged .*delete it"):
        storage.read_json(tmp_path / "f.json")


def test_tensors_that_share_memory_can_be_saved(tmp_path):
    shared = torch.ones(3)
    storage.save_tensors(
        tmp_path / "t", {"a": shared, "b": shared, "c": shared[1:], "d": shared.expand(2, 3)}
    )
    assert storage.load_tensors(tmp_path / "t")[0]["d"].equal(torch.ones(2, 3))


def test_a_name_with_the_separator_is_refused(tmp_path):
    with pytest.raises(ValueError, match="may not hold"):
        storage.save_tensors(tmp_path / "t", {"a/b": torch.ones(1)})


def test_a_file_is_complete_or_as_it_was(tmp_path):
    path = tmp_path / "f.json"
    storage.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), storage.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_digests_ignore_the_order_of_keys():
    assert storage.digest({"a": 1, "b": [2]}) == storage.digest({"b": [2], "a": 1})
    assert storage.digest({"a": 1}) != storage.digest({"a": 2})


def test_trees_are_matched_by_name_whatever_the_order_of_their_keys():
    a = {"x": torch.tensor([1.0]), "y": {"z": torch.tensor([2.0, 3.0])}}
    b = {"y": {"z": torch.tensor([10.0, 20.0])}, "x": torch.tensor([5.0])}
    assert trees.dot(a, b).item() == 5 + 20 + 60
    assert trees.sub(b, a)["x"].item() == 4
    assert trees.mismatch(a, b) is None
    with pytest.raises(ValueError, match="different structure"):
        trees.add(a, {"x": torch.tensor([1.0])})


def other_name(tensors):
    return {"a": tensors["a"], "c": tensors["b"]}


def other_type(tensors):
    return {"a": tensors["a"].view(torch.int32), "b": tensors["b"]}


def other_shapes(tensors):
    """The same numbers in the same order, cut at another place."""
    return {"a": tensors["a"].reshape(2, 2), "b": tensors["b"]}


@pytest.mark.parametrize("change", [other_name, other_type, other_shapes])
def test_checksum_covers_name_type_and_shape(tmp_path, change):
    path = tmp_path / "t.safetensors"
    storage.save_tensors(path, {"a": torch.arange(4.0), "b": torch.ones(2)})
    with safetensors.safe_open(path, framework="pt") as file:
        tensors, meta = {name: file.get_tensor(name) for name in ("a", "b")}, file.metadata()
    safetensors.torch.save_file(tensors, path, meta)
    assert storage.load_tensors(path)[0]["a"].equal(torch.arange(4.0))
    safetensors.torch.save_file(change(tensors), path, meta)
    with pytest.raises(GenflError, match="checksum"):
        storage.load_tensors(path)


KILLED = """
import os, sys, torch, pathlib
from genfl.storage import save_tensors
os.fsync = lambda descriptor: os.kill(os.getpid(), 9)  # once all is written, before the file has its name
save_tensors(pathlib.Path(sys.argv[1]) / "t.safetensors", {"a": torch.ones(1000)})
"""


@pytest.mark.slow
def test_a_killed_write_leaves_one_file_that_the_next_write_deletes(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [".t.safetensors.tmp"]
    storage.save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.fixture
def run_and_mine(tmp_path):
    """A run's folder, and a folder beside it with files that nobody may delete."""
    for name in ("run/pretrain/seed-0", "mine/seed-0"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "run", tmp_path / "mine"


def test_remove_deletes_files_folders_and_links_themselves(run_and_mine):
    run, mine = run_and_mine
    (run / "link").symlink_to(mine)
    (run / "dangling").symlink_to(mine / "nothing")
    for name in ("link", "dangling", "pretrain/seed-0/file", "pretrain", "absent", "absent/file"):
        storage.remove(run / name, run)
    assert list(run.iterdir()) == []
    assert (mine / "seed-0" / "file").exists()


def test_remove_deletes_nothing_behind_links_or_outside(run_and_mine):
    run, mine = run_and_mine
    (run / "link").symlink_to(mine)
    (run / "inside").symlink_to(run / "pretrain")
    for name in ("link/seed-0", "link/seed-0/file", "inside/seed-0", "../mine", "pretrain/../../mine", ".."):
        with pytest.raises(InputError, match=r"^--out: .* so it is not deleted; "):
            storage.remove(run / name, run)
    for path in (mine, run):
        with pytest.raises(InputError):
            storage.remove(path, run)
    assert (mine / "seed-0" / "file").exists()
    assert (run / "pretrain" / "seed-0" / "file").exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "."])
def test_is_below_refuses_paths_that_lead_out(name):
    assert not storage.is_below(name)
    assert storage.is_below("data/train.parquet")


def test_locked_is_free_at_once_although_a_fork_lives_on(tmp_path):
    path = tmp_path / ".lock"
    with storage.locked(path), pytest.raises(filelock.Timeout), storage.locked(path):
        pass
    code = (
        "import os, sys, time, pathlib\nfrom genfl.storage import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n        print(os.getpid(), flush=True)\n        time.sleep(60)\n"
        "    else:\n        time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        with pytest.raises(filelock.Timeout), storage.locked(path):
            pass
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives on
        with storage.locked(path):
            pass
        os.kill(child, 9)


def test_take_checkpoint_links_only_the_same_work(tmp_path):
    own, same, other = (tmp_path / name / "checkpoint.safetensors" for name in ("own", "same", "other"))
    storage.save_tensors(same, {"a": torch.ones(1)}, {"digest": "x"})
    storage.save_tensors(other, {"a": torch.zeros(1)}, {"digest": "y"})
    (tmp_path / "damaged").write_bytes(b"...")
    others = [tmp_path / "absent", tmp_path / "damaged", other, same]
    assert not storage.take_checkpoint(own, "z", others)
    assert not own.exists()
    assert storage.take_checkpoint(own, "x", others)
    assert own.samefile(same)
    storage.save_tensors(own, {"a": torch.ones(2)}, {"digest": "x"})
    assert not storage.take_checkpoint(own, "x", others), "its own may be further"
    assert (tmp_path / "damaged").exists()


def test_take_checkpoint_takes_what_it_needs_from_one_run(tmp_path):
    def save(run, *names):
        for name in names:
            storage.save_tensors(tmp_path / run / name, {"a": torch.ones(1)}, {"digest": "x", "run": run})

    def runs(folder):
        return {file.name: storage.load_tensors(file)[1]["run"] for file in (tmp_path / folder).iterdir()}

    save("lacks", "1", "checkpoint")
    save("whole", "1", "2", "checkpoint")
    save("own", "1")
    own, *others = (tmp_path / run / "checkpoint" for run in ("own", "lacks", "whole"))
    assert not storage.take_checkpoint(own, "x", others[:1], lambda checkpoint: ["1", "2"])
    assert runs("own") == {"1": "own"}, "all or none"
    assert storage.take_checkpoint(own, "x", others, lambda checkpoint: ["1", "2"])
    assert runs("own") == dict.fromkeys(("1", "2", "checkpoint"), "whole")
