import numpy as np
import pytest
import torch

from genfl.engines.in_process import sequential
from genfl.engines.protocol import RoundResult
from genfl.engines.reducers import secure_reducers
from genfl.errors import GenflError, InputError
from genfl.labels.discovery import discover
from genfl.labels.iblt import IBLT
from genfl.rng import Key

SETS = [{"cat", "dog"}, {"dog"}, {"dog", "Ökölögie", "new york"}, {"cat"}]


def engine(data, key):
    return sequential(data, secure_reducers(key))


def test_the_union_and_the_number_of_holders_are_found():
    found = discover(SETS, engine, Key(0))
    assert found.holders == {"cat": 2, "dog": 3, "new york": 1, "Ökölögie": 1}
    assert (found.cells, found.attempts) == (80, 1)
    assert found.bytes_per_client == IBLT(80).nbytes == 80 * 37 * 4


class Recorded:
    """An engine that keeps the sums, which are all that the server sees."""

    sums: list

    def __init__(self, data, key):
        self.inner = engine(data, key)

    def run(self, program, tasks):
        result = self.inner.run(program, tasks)
        self.sums.append(result.aggregate)
        return result


@pytest.mark.parametrize("bins", [4096, 16])
def test_the_server_decodes_no_name_of_too_few_holders(bins, monkeypatch):
    monkeypatch.setattr(Recorded, "sums", [], raising=False)
    found = discover(SETS, Recorded, Key(0), min_holders=2, bins=bins)
    assert found.holders == {"cat": 2, "dog": 3}
    assert found.bytes_per_client == IBLT(80).nbytes + 4 * 4 * bins
    marks, table = Recorded.sums
    assert marks["marks"].shape == (4, bins)
    decoded = IBLT(80, seed=Key(0).fold("hashes", 1).integer()).decode(table["table"].numpy(), clients=4)
    assert decoded == {"cat": 2, "dog": 3}, "not even the table holds the others"


def test_names_that_pass_by_a_collision_are_deleted():
    assert discover(SETS, engine, Key(0), min_holders=2, bins=1).holders == {"cat": 2, "dog": 3}
    assert discover(SETS, engine, Key(0), min_holders=3, bins=1).holders == {"dog": 3}


def test_no_name_of_enough_holders_is_an_error():
    for bins in (1, 4096):
        with pytest.raises(
            InputError, match=r"^labels.min_holders: no label name is held by 4 clients; lower it"
        ):
            discover(SETS, engine, Key(0), min_holders=4, bins=bins)


def test_a_table_that_is_too_small_is_doubled_until_it_decodes():
    names = {f"label {n}" for n in range(200)}
    found = discover([names, names], engine, Key(0), cells=16)
    assert found.holders == dict.fromkeys(sorted(names), 2)
    assert found.attempts > 3
    assert found.cells == 16 * 2 ** (found.attempts - 1)
    assert found.bytes_per_client == sum(IBLT(16 * 2**a).nbytes for a in range(found.attempts))


def test_every_attempt_has_hash_functions_of_its_own():
    """Names that collide in one table would collide again."""
    sums = []

    class Kept:
        def __init__(self, data, key):
            self.inner = engine(data, key)

        def run(self, program, tasks):
            result = self.inner.run(program, tasks)
            sums.append(result.aggregate["table"].numpy())
            return result

    names = {f"label {n}" for n in range(60)}
    found = discover([names, names], Kept, Key(3), cells=16)
    assert len(sums) == found.attempts > 2
    seeds = [Key(3).fold("hashes", attempt).integer() for attempt in range(1, found.attempts + 1)]
    for table, seed in zip(sums, seeds, strict=True):
        fitting = [s for s in seeds if (IBLT(len(table), seed=s).encode(names) * 2 == table).all()]
        assert fitting == [seed]


def test_it_gives_up_with_what_to_change():
    names = {f"label {n}" for n in range(200)}
    with pytest.raises(InputError, match=r"raise labels\.cells"):
        discover([names, names], engine, Key(0), cells=8, attempts=3)


def test_a_long_name_names_the_option():
    with pytest.raises(InputError, match=r"labels\.max_bytes = 64"):
        discover([{"x" * 65}, {"y"}], engine, Key(0))
    assert discover([{"x" * 65}, {"y"}], engine, Key(0), max_bytes=65).holders == {"x" * 65: 1, "y": 1}


def test_the_server_never_gets_a_client_table_in_the_clear(monkeypatch):
    """What reaches the sum is masked: it equals no client's table, and is not mostly zeros as tables are."""
    from genfl.privacy.secure_sum import SecureSum

    received = {}
    add = SecureSum.add
    monkeypatch.setattr(SecureSum, "add", lambda self, masked: received.update(masked) or add(self, masked))
    discover(SETS, engine, Key(0))
    assert len(received) == len(SETS)
    for table in received.values():
        assert np.mean(table == 0) < 0.01
        assert abs(np.mean(table) / 2**31 - 1) < 0.1


def test_a_hostile_sum_is_an_error_and_never_a_union():
    class Hostile:
        def __init__(self, data, key):
            self.inner = engine(data, key)

        def run(self, program, tasks):
            result = self.inner.run(program, tasks)
            table = result.aggregate["table"].numpy().copy()
            table[np.flatnonzero(table[:, 0])[0], 0] += 70_000  # more holders than clients
            return RoundResult({"table": torch.from_numpy(table)}, result.memories, {}, {})

    with pytest.raises(GenflError):
        discover(SETS, Hostile, Key(0), attempts=2)
