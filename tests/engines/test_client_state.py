"""The store of memories: a plain dict, its files, its bounds, and a federation killed at any instant."""

import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.parameters import mostly_slow

from genfl import storage, trees
from genfl.algorithms.scaffold import scaffold
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines import client_state as module
from genfl.engines.client_state import ClientStateStore
from genfl.engines.in_process import sequential
from genfl.errors import GenflError, InputError
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import MLP
from genfl.rng import Key
from genfl.simulation import federate

INITIAL = {"method": {"w": torch.zeros(2)}, "local": {}}


def remembered(value, size=2):
    """Keys in an order of their own, a nested empty dict, several dtypes, NaN, a scalar, nothing at all."""
    return {
        "method": {"w": torch.full((size,), float(value)), "b": torch.tensor(value % 2 == 0)},
        "local": {},
        "a": {"n": torch.tensor(value), "nan": torch.tensor([float("nan")]), "none": torch.empty(0, 3)},
        "half": torch.full((3, 1), value, dtype=torch.bfloat16).T,
    }


def identical(a, b):
    def orders(tree):
        return [(name, orders(branch)) for name, branch in tree.items()] if isinstance(tree, dict) else None

    return orders(a) == orders(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.numpy(force=True).tobytes() == y.numpy().tobytes()
        if x.dtype != torch.bfloat16
        else torch.equal(x, y)
        for x, y in zip(trees.leaves(a), trees.leaves(b), strict=True)
    )


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


OPERATIONS = st.one_of(
    st.tuples(st.just("update"), st.lists(st.integers(0, 9), unique=True, max_size=5)),
    st.tuples(st.just("read"), st.integers(0, 9)),
    st.sampled_from([("flush",), ("checkpoint",), ("killed",), ("killed before cleaning",)]),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=25), ram=st.sampled_from([0, 50, 10**6]))
def test_it_is_a_dict_whose_last_checkpoint_outlives_a_kill(tmp_path_factory, operations, ram):
    folder = tmp_path_factory.mktemp("m") / "memories"
    store, model = ClientStateStore(folder, INITIAL, ram=ram), {}
    names, saved, counter = [], {}, 0
    for operation, *rest in operations:
        if operation == "update":
            new = {}
            for client in rest[0]:
                counter += 1
                new[client] = remembered(counter % 7, size=1 + counter % 3)
            store.update(new)
            model |= new
        elif operation == "read":
            assert identical(store[rest[0]], model.get(rest[0], INITIAL))
        elif operation == "flush":
            store.flush()
        elif operation == "checkpoint":
            names, saved = store.flush(), dict(model)
            store.clean()
            assert sorted(path.name for path in folder.glob("*")) == sorted(names)
        else:
            if operation == "killed before cleaning":
                names, saved = store.flush(), dict(model)
            store, model = ClientStateStore(folder, INITIAL, names, ram=ram), dict(saved)
    for client in range(10):
        assert (client in store) == (client in model)
        assert identical(store[client], model.get(client, INITIAL))


def test_the_files_are_the_same_whether_it_was_interrupted_or_not(tmp_path):
    def rounds(folder, interrupted):
        store = ClientStateStore(folder, INITIAL, ram=300)
        rng = np.random.default_rng(0)
        for number in range(12):
            cohort = rng.choice(10, 4, replace=False).tolist()
            assert len([store[client] for client in cohort]) == 4
            store.update({client: remembered(number + client) for client in cohort})
            if number % 3 == 2:
                names = store.flush()
                store.clean()
                if interrupted:
                    store.update({client: remembered(99) for client in cohort})
                    store.flush()
                    store = ClientStateStore(folder, INITIAL, names, ram=300)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    assert rounds(tmp_path / "a", False) == rounds(tmp_path / "b", True)


def test_a_file_written_again_just_as_it_was_is_a_later_file(tmp_path):
    store = ClientStateStore(tmp_path, INITIAL)
    for memories in ({1: 0, 2: 0}, {1: 5, 3: 5}, {1: 0, 2: 0}):
        store.update({client: remembered(value) for client, value in memories.items()})
        names = store.flush()
    assert len(names) == 2
    store = ClientStateStore(tmp_path, INITIAL, names)
    assert [store[client]["a"]["n"].item() for client in (1, 2, 3)] == [0, 0, 5]


@pytest.mark.slow
def test_ram_and_disk_are_bounded_whoever_takes_part(tmp_path, monkeypatch):
    one = {"w": torch.zeros(1000)}
    bytes_each, ram = 4000, 40_000
    monkeypatch.setattr(module, "FILE", 10 * bytes_each)
    store = ClientStateStore(tmp_path, one, ram=ram)
    rng, seen = np.random.default_rng(0), set()
    for number in range(60):
        cohort = rng.choice(50, 1 + number % 20, replace=False).tolist()
        before = {client: store[client] for client in cohort}
        store.update({client: {"w": memory["w"] + client} for client, memory in before.items()})
        seen |= set(cohort)
        held = [*store._new.values(), *store._recent.values()]
        assert sum(map(trees.num_bytes, held)) <= ram
        if number % 7 == 0:
            store.flush()
            store.clean()
            assert size(tmp_path) <= 2.3 * len(seen) * bytes_each, "tables included"
        assert size(tmp_path) <= 4 * len(seen) * bytes_each + ram, "files of the last checkpoint included"
    assert len(seen) == 50


def test_the_most_recently_used_are_those_that_stay_in_ram(tmp_path):
    store = ClientStateStore(tmp_path, {"w": torch.zeros(1)}, ram=12)
    store.update({client: {"w": torch.tensor([float(client)])} for client in range(3)})
    store.flush()
    assert store[0]["w"].item() == 0
    store.update({3: {"w": torch.tensor([3.0])}})
    names = store.flush()
    for name in names:
        (tmp_path / name).unlink()
    assert [store[client]["w"].item() for client in (0, 2, 3)] == [0, 2, 3]
    with pytest.raises(GenflError, match="damaged"):
        store[1]


def test_methods_that_remember_nothing_write_nothing(tmp_path):
    empty = {"method": {}, "local": {}}
    store = ClientStateStore(tmp_path / "memories", empty)
    store.update({client: {"method": {}, "local": {}} for client in range(100)})
    assert store.flush() == []
    store.clean()
    assert not (tmp_path / "memories").exists()
    assert 5 not in store
    assert store[5] == empty
    store.update({5: {"method": {"w": torch.ones(1)}, "local": {}}})
    store.flush()
    store.update({5: empty})
    names = store.flush()
    assert ClientStateStore(tmp_path / "memories", empty, names)[5] == empty, "it had something to forget"


def test_an_empty_memory_is_not_taken_for_an_initial_one_that_is_not_empty(tmp_path):
    store = ClientStateStore(tmp_path, INITIAL)
    store.update({1: {"method": {}, "local": {}}})
    assert ClientStateStore(tmp_path, INITIAL, store.flush())[1] == {"method": {}, "local": {}}


def test_without_a_checkpoint_what_ram_does_not_hold_goes_to_a_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = ClientStateStore(None, INITIAL, ram=50)
    assert list(tmp_path.iterdir()) == []
    for value in range(20):
        store.update({value % 10: remembered(value)})
    assert [identical(store[client], remembered(10 + client)) for client in range(10)] == [True] * 10
    (folder,) = tmp_path.iterdir()
    assert size(folder) < 10 * size_of_one(tmp_path) * 2
    del store
    assert list(tmp_path.iterdir()) == []


def size_of_one(tmp_path):
    store = ClientStateStore(tmp_path / "one", INITIAL)
    store.update({0: remembered(0)})
    (name,) = store.flush()
    bytes_of_one = (tmp_path / "one" / name).stat().st_size
    (tmp_path / "one" / name).unlink()
    (tmp_path / "one").rmdir()
    return bytes_of_one


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_is_noticed_and_named_whatever_it_is_in(tmp_path, seed):
    store = ClientStateStore(tmp_path, INITIAL)
    expected = {client: remembered(client, size=40) for client in range(3)}
    store.update(expected)
    (name,) = names = store.flush()
    content = bytearray((tmp_path / name).read_bytes())
    rng = np.random.default_rng(seed)
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    (tmp_path / name).write_bytes(content)
    noticed = False
    for client in range(3):
        try:
            assert identical(ClientStateStore(tmp_path, INITIAL, names)[client], expected[client])
        except GenflError as error:
            assert name in str(error)
            assert "damaged" in str(error)
            noticed = True
    # the header has redundant parts: padding, the checksum of the whole
    assert noticed or seed_hits_what_nobody_reads(bytes(content), tmp_path / name)


def seed_hits_what_nobody_reads(content, path):
    """Whether all that is read of a damaged file is as it was written: then its table is that of its name."""
    table = storage.load_part(path, ())[1]
    return module._name(table) == path.name


def test_files_that_are_missing_or_of_another_run_are_noticed_at_once(tmp_path):
    store = ClientStateStore(tmp_path, INITIAL)
    store.update({1: remembered(1)})
    (first,) = store.flush()
    store.update({2: remembered(2)})
    _, second = names = store.flush()
    (tmp_path / second).write_bytes((tmp_path / first).read_bytes())
    with pytest.raises(GenflError, match=f"{second} is damaged"):
        ClientStateStore(tmp_path, INITIAL, names)
    (tmp_path / second).unlink()
    with pytest.raises(GenflError, match=f"{second} is damaged"):
        ClientStateStore(tmp_path, INITIAL, names)


def problem():
    rng = torch.Generator().manual_seed(0)
    data = ClientData(
        torch.randn(60, 1, 4, 4, generator=rng),
        torch.randint(3, (60,), generator=rng),
        [np.arange(60)[k::12] for k in range(12)],
        3,
    )
    task = classification(lambda: MLP((1, 4, 4), 3, 8), (1, 4, 4))
    return data, task


def scaffolded(checkpoint=None, rounds=12, on_round=lambda rounds: None):
    data, task = problem()
    return federate(
        scaffold(task, LocalSGD(0.1)),
        task.init(Key(1)),
        data,
        sequential(data),
        Schedule(rounds, 4, 4, local_steps=2, checkpoint_every=2),
        Key(5),
        lambda weights: {"norm": trees.square_norm(weights["params"]).item()},
        checkpoint=checkpoint,
        on_round=on_round,
    )


def assert_same(a, b):
    assert (a.evaluations, a.rounds) == (b.evaluations, b.rounds)
    assert all(map(torch.equal, trees.leaves(a.weights), trees.leaves(b.weights)))


@pytest.mark.slow
def test_a_federation_whose_memories_do_not_fit_into_ram_is_the_same(monkeypatch, tmp_path):
    whole = scaffolded()
    monkeypatch.setattr("genfl.engines.client_state.ClientStateStore.__init__.__defaults__", ((), 1))
    assert_same(whole, scaffolded())
    assert_same(whole, scaffolded(tmp_path / "checkpoint.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("harm", mostly_slow(["missing", "damaged"], "damaged"))
def test_a_federation_with_a_missing_or_damaged_file_says_so_and_starts_over(tmp_path, caplog, harm):
    path = tmp_path / "checkpoint.safetensors"
    whole = scaffolded()
    scaffolded(path, rounds=4)
    for file in (tmp_path / "checkpoint.memories").iterdir():
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        if harm == "missing":
            file.unlink()
    finished = scaffolded(path, rounds=4)
    assert "starting over" not in caplog.text, "nobody asks a finished federation for its memories"
    assert finished.evaluations == whole.evaluations[:5]
    assert_same(whole, scaffolded(path))
    assert "safetensors is damaged" in caplog.text
    assert "starting over" in caplog.text


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_starts_over(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    scaffolded(path, rounds=2)
    tree, meta = storage.load_tensors(path)
    del meta["memories"]
    storage.save_tensors(path, {**tree, "memories": {"0": {"w": torch.ones(1)}}}, meta)
    done = []
    assert_same(scaffolded(), scaffolded(path, on_round=done.append))
    assert done == [1] * 12


def killed_before_its_nth_change_of_a_file(n, checkpoint):
    """Runs the federation in a real process; returns whether it was killed."""
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    status = 1
    try:
        torch.set_num_threads(1)
        changes = itertools.count()

        def deadly(operation):
            def change(*args, **kwargs):
                if next(changes) == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return operation(*args, **kwargs)

            return change

        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir")):
            setattr(owner, name, deadly(getattr(owner, name)))
        scaffolded(checkpoint, rounds=6)
        status = 0
    finally:
        os._exit(status)


@pytest.mark.slow
def test_killed_before_any_change_of_a_file_it_goes_on_to_the_same_bits_and_files(tmp_path, caplog):
    expected = scaffolded(tmp_path / "whole" / "c.safetensors", rounds=6)
    files = contents(tmp_path / "whole")
    for n in itertools.count():
        folder = tmp_path / str(n)
        if not killed_before_its_nth_change_of_a_file(n, folder / "c.safetensors"):
            break
        assert_same(expected, scaffolded(folder / "c.safetensors", rounds=6))
        assert contents(folder) == files
    assert "starting over" not in caplog.text
    assert n > 3 * 4, "each of three checkpoints is two files, each written and renamed"


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_store_deletes_nothing_but_its_own_files(tmp_path):
    folder = tmp_path / "state.memories"
    store = ClientStateStore(folder, {"a": torch.zeros(2)})
    store.update({0: {"a": torch.ones(2)}})
    (name,) = store.flush()
    (folder / "notes.txt").write_text("mine")
    ClientStateStore(folder, {"a": torch.zeros(2)})
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    (tmp_path / "link.memories").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="is a link"):
        ClientStateStore(tmp_path / "link.memories", {"a": torch.zeros(2)})
    assert (tmp_path / "mine" / name).exists()
