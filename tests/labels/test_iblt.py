import hashlib
import random
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genfl.labels.iblt import IBLT, MAX_CLIENTS, CorruptTable, DecodeError, TableTooSmall

POOL = [f"label {index:05d}" for index in range(20_000)]

# Any Unicode but NUL and surrogates; 16 characters are at most 64 bytes, and NFC at most trebles them.
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=16)
client_sets = st.lists(st.sets(names, max_size=8), min_size=1, max_size=6)
roomy = IBLT(cells=600, max_bytes=192)


def nfc(values):
    return {unicodedata.normalize("NFC", value) for value in values}


def total(table, clients):
    return np.sum([table.encode(client) for client in clients], axis=0, dtype=np.uint32)


def raw_row(table, data):
    """The row of a name given as bytes, whether or not it is one a client could write."""
    checksum = hashlib.blake2b(data, digest_size=16, person=b"genfl.labels").digest()[:8]
    limbs = np.frombuffer(checksum + data.ljust(2 * (table.width - 5), b"\0"), dtype="<u2")
    return np.concatenate([[1], limbs]).astype(np.uint32)


def cells_of(table, name):
    return np.flatnonzero(table.encode([name])[:, 0])


# --- what decoding gives


@pytest.mark.slow
@given(client_sets)
def test_the_sum_decodes_to_every_name_and_its_number_of_clients(clients):
    expected = Counter(name for client in clients for name in nfc(client))
    decoded = roomy.decode(total(roomy, clients), len(clients))
    assert decoded == expected
    assert list(decoded) == sorted(expected)


@given(st.sets(names, max_size=8), st.sets(names, max_size=8))
def test_tables_are_linear(left, right):
    left, right = nfc(left), nfc(right)
    together = roomy.encode(left | right) + roomy.encode(left & right)
    assert (roomy.encode(left) + roomy.encode(right) == together).all()


@given(st.lists(names, max_size=8), st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(values, rng):
    shuffled = values * 2
    rng.shuffle(shuffled)
    assert (roomy.encode(values) == roomy.encode(shuffled)).all()


def test_names_are_normalised():
    table = IBLT(cells=40)
    assert (table.encode(["e\u0301t\u00e9"]) == table.encode(["\u00e9te\u0301", "\u00e9t\u00e9"])).all()
    assert table.decode(table.encode(["e\u0301"]), 1) == {"\u00e9": 1}


def test_an_empty_table_is_no_names():
    table = IBLT(cells=4)
    assert table.decode(table.encode([]), 5) == {}


def test_decoding_leaves_the_table_as_it_is():
    table = IBLT(cells=40)
    before = table.encode(["a", "b"])
    after = before.copy()
    table.decode(after, 1)
    assert (before == after).all()


def test_the_most_clients_hold_a_name_of_the_largest_limbs():
    # U+FFFFF is F3 BF BF BF in UTF-8: no name's limbs come closer to FFFF. A checksum's may reach it, below.
    table = IBLT(cells=40, max_bytes=1024)
    large = [chr(0xFFFFF) * 256, *(chr(0xFFFFF) * 255 + letter for letter in "abcdef")]
    one = table.encode(large)
    assert table.decode(one * np.uint32(MAX_CLIENTS), MAX_CLIENTS) == dict.fromkeys(
        sorted(large), MAX_CLIENTS
    )


@pytest.mark.slow
def test_a_checksum_limb_of_all_ones_does_not_wrap():
    # The largest limb there is, times the most clients, is exactly the largest cell value.
    table = IBLT(cells=4)
    name = next(name for name in map(str, range(10**6)) if (table.encode([name])[:, 1:5] == 0xFFFF).any())
    table_sum = table.encode([name]) * np.uint32(MAX_CLIENTS)
    assert table_sum.max() == 2**32 - 1
    assert table.decode(table_sum, MAX_CLIENTS) == {name: MAX_CLIENTS}


def test_cells_that_wrap_decode_exactly():
    table = IBLT(cells=140)
    labels = POOL[:60]
    one = table.encode(labels)
    wide = one.astype(np.uint64) * MAX_CLIENTS
    assert wide.max() >= 2**32
    assert table.decode(wide.astype(np.uint32), MAX_CLIENTS) == dict.fromkeys(labels, MAX_CLIENTS)


@pytest.mark.parametrize("hashes", [1, 2, 3, 4, 7])
def test_every_name_lies_in_distinct_cells_spread_evenly(hashes):
    table = IBLT(cells=7, hashes=hashes)
    per_cell = np.zeros(7)
    for name in POOL[:700]:
        counts = table.encode([name])[:, 0]
        assert counts.max() == 1
        assert counts.sum() == hashes
        per_cell += counts
    # 5 standard deviations of a binomial count.
    share = hashes / 7
    assert (np.abs(per_cell - 700 * share) <= 5 * np.sqrt(700 * share * (1 - share))).all()


def splitmix64(state):
    """Steele, Lea and Flood 2014, on Python's integers: the next state, and its output."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return state, z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_cells_are_those_of_a_transcription(seed):
    """Seeds are mixed, so that those that differ in a bit have nothing in common."""
    table = IBLT(cells=1000, hashes=4, seed=seed)
    _, mixed = splitmix64((seed - 0x9E3779B97F4A7C15) % 2**64)
    for name in ("cat", "Ökölögie", "new york"):
        digest = hashlib.blake2b(name.encode(), digest_size=16, person=b"genfl.labels").digest()
        state, cells, free = int.from_bytes(digest[8:], "little") ^ mixed, [], list(range(1000))
        for _ in range(4):
            state, output = splitmix64(state)
            cells.append(free.pop(output % len(free)))
        assert cells_of(table, name).tolist() == sorted(cells)


def test_the_seed_moves_the_names():
    first, second = IBLT(cells=1000), IBLT(cells=1000, seed=1)
    assert (cells_of(first, "cat") != cells_of(second, "cat")).any()


# --- how often decoding succeeds


CERTAIN = 3000
"""Trials of which none fails in one case of twenty where a thousandth does: 0.999 ** 3000 < 0.05."""


def failures(labels, cells_per_label, hashes=4, trials=CERTAIN):
    failed = 0
    for trial in range(trials):
        chosen = random.Random(trial).sample(POOL, labels)
        # Short names only save time: their length has no part in which cells they fall into.
        table = IBLT(round(cells_per_label * labels), hashes, max_bytes=16, seed=trial)
        try:
            decoded = table.decode(table.encode(chosen) * np.uint32(3), 3)
        except TableTooSmall:
            failed += 1
        else:
            assert decoded == dict.fromkeys(chosen, 3)
    return failed


@pytest.mark.slow
def test_10_labels_fail_in_at_most_a_thousandth_at_8_cells_per_label():
    assert failures(10, 8) == 0


@pytest.mark.slow
def test_100_labels_fail_in_at_most_a_thousandth_at_3_cells_per_label():
    assert failures(100, 3) == 0


@pytest.mark.slow
def test_1000_labels_fail_in_at_most_a_thousandth_at_1_4_cells_per_label():
    assert failures(1000, 1.4) == 0


def test_too_few_cells_are_told_and_twice_as_many_suffice():
    labels = POOL[:100]
    small, large = IBLT(cells=110), IBLT(cells=220)
    with pytest.raises(TableTooSmall, match=r"stuck with .* of 110 cells"):
        small.decode(small.encode(labels), 1)
    assert large.decode(large.encode(labels), 1) == dict.fromkeys(labels, 1)


# --- hostile and damaged tables


flips = st.lists(
    st.tuples(st.integers(0, 2**20), st.integers(0, 2**20), st.integers(1, 2**32 - 1)), max_size=5
)


@pytest.mark.slow
@given(client_sets, flips, st.booleans())
def test_damage_never_gives_a_wrong_union(clients, damage, single_bits):
    table = IBLT(cells=400, max_bytes=192)
    correct = total(table, clients)
    damaged = correct.copy()
    for cell, column, value in damage:
        flip = 1 << value % 32 if single_bits else value
        damaged[cell % table.cells, column % table.width] ^= np.uint32(flip)
    expected = Counter(name for client in clients for name in nfc(client))
    if (damaged == correct).all():
        assert table.decode(damaged, len(clients)) == expected
    else:
        with pytest.raises(DecodeError):
            table.decode(damaged, len(clients))


@pytest.mark.slow
def test_every_single_bit_flip_is_told():
    table = IBLT(cells=12, max_bytes=4)
    correct = total(table, [{"cat", "dog"}, {"cat"}, {"emu"}])
    assert table.decode(correct, 3) == {"cat": 2, "dog": 1, "emu": 1}
    for index in np.ndindex(correct.shape):
        for bit in range(32):
            damaged = correct.copy()
            damaged[index] ^= np.uint32(1 << bit)
            with pytest.raises(DecodeError):
                table.decode(damaged, 3)


@given(st.sets(names, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_moved_cells_are_told(values, rng):
    correct = roomy.encode(values)
    moved = correct.copy()
    source, target = rng.choice(np.flatnonzero(correct[:, 0]).tolist()), rng.randrange(roomy.cells)
    moved[[source, target]] = correct[[target, source]]
    if (moved != correct).any():
        with pytest.raises(DecodeError):
            roomy.decode(moved, 1)


@pytest.mark.parametrize("bits", [1, 2, 8, 17, 32])
def test_random_tables_are_told(bits):
    rng = np.random.default_rng(bits)
    for hashes in (1, 4):
        table = IBLT(cells=50, hashes=hashes)
        for _ in range(50):
            random_table = rng.integers(2**bits, size=(table.cells, table.width), dtype=np.uint32)
            with pytest.raises(DecodeError):
                table.decode(random_table, MAX_CLIENTS)


def test_the_average_of_names_is_not_taken_for_a_name():
    # "b" is the mean of "a" and "c": a checksum linear in the name would take the two for twice "b".
    table = IBLT(cells=4)
    assert (table.encode(["a", "c"])[:, 5:] == 2 * table.encode(["b"])[:, 5:]).all()
    with pytest.raises(TableTooSmall):
        table.decode(table.encode(["a", "c"]), 2)


def test_a_name_held_by_more_than_all_clients_is_told():
    table = IBLT(cells=40)
    with pytest.raises(CorruptTable, match="held by 3 clients out of 2"):
        table.decode(table.encode(["cat"]) * np.uint32(3), 2)


def test_a_name_in_a_foreign_cell_is_told():
    table = IBLT(cells=40)
    damaged = table.encode(["cat"])
    damaged[next(cell for cell in range(40) if cell not in cells_of(table, "cat"))] = raw_row(table, b"cat")
    with pytest.raises(CorruptTable, match="a cell that is not its own"):
        table.decode(damaged, 1)


def test_another_seed_is_told():
    with pytest.raises(CorruptTable, match="another seed"):
        IBLT(cells=400, seed=1).decode(IBLT(cells=400).encode(["cat"]), 1)


def test_different_counts_of_a_name_are_told():
    table = IBLT(cells=40)
    damaged = table.encode(["cat"])
    damaged[cells_of(table, "cat")[0]] *= np.uint32(2)
    with pytest.raises(CorruptTable, match="different counts"):
        table.decode(damaged, 2)


def test_a_name_that_comes_back_is_told():
    table = IBLT(cells=40)
    # "dog" hides that one cell holds "cat" twice until both have been peeled.
    other = next(name for name in POOL if np.intersect1d(cells_of(table, "cat"), cells_of(table, name)).size)
    shared = np.intersect1d(cells_of(table, "cat"), cells_of(table, other))[0]
    damaged = table.encode(["cat", other])
    damaged[shared] += raw_row(table, b"cat")
    with pytest.raises(CorruptTable, match="again"):
        table.decode(damaged, 2)


def test_a_name_missing_from_one_of_its_cells_is_told():
    table = IBLT(cells=40)
    damaged = table.encode(["cat"])
    damaged[cells_of(table, "cat")[0]] = 0
    with pytest.raises(TableTooSmall):
        table.decode(damaged, 1)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"a\0b", id="NUL"),
        pytest.param("e\u0301".encode(), id="not NFC"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b"\xed\xa0\x80", id="surrogate"),
        pytest.param(b"123456", id="too long"),
    ],
)
def test_names_no_client_may_write_are_not_read(data):
    # With as many hashes as cells every name lies in every cell, so the positions are right for any name.
    table = IBLT(cells=3, hashes=3, max_bytes=5)
    assert table.decode(np.tile(raw_row(table, b"12345"), (3, 1)), 1) == {"12345": 1}
    with pytest.raises(TableTooSmall):
        table.decode(np.tile(raw_row(table, data), (3, 1)), 1)


def test_decoding_ends_whatever_the_cells_hold(monkeypatch):
    fresh = iter(range(10**9))

    def always_another(self, table, cells):
        rows, positions = self._insertions([b"cat"])
        return [str(next(fresh))], rows[:, 0], rows, positions

    monkeypatch.setattr(IBLT, "_pure", always_another)
    with pytest.raises(CorruptTable, match="more names than its 40 cells"):
        IBLT(cells=40).decode(IBLT(cells=40).encode([]), 1)


@pytest.mark.parametrize(
    "table",
    [
        np.zeros((40, 36), np.uint32),
        np.zeros((39, 37), np.uint32),
        np.zeros(40 * 37, np.uint32),
        np.zeros((40, 37), np.uint64),
        np.zeros((40, 37), np.int32),
        np.zeros((40, 37), np.float64),
    ],
)
def test_tables_of_another_shape_or_dtype_are_refused(table):
    with pytest.raises(CorruptTable, match=r"must be uint32 \(40, 37\)"):
        IBLT(cells=40).decode(table, 1)


# --- what is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("\ud800", "lone surrogate"),
        ("\u00e9" * 5, r"label '\u00e9{5}' is 10 bytes long in UTF-8, over labels\.max_bytes = 9"),
    ],
)
def test_bad_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        IBLT(cells=4, max_bytes=9).encode(["fine", name])


def test_the_longest_name_fits_and_length_counts_after_normalising():
    table = IBLT(cells=4, max_bytes=9)
    for name in ("123456789", "e\u0301" * 4):
        assert table.decode(table.encode([name]), 1) == {unicodedata.normalize("NFC", name): 1}


def test_one_string_is_no_collection():
    with pytest.raises(TypeError, match="not one string"):
        IBLT(cells=40).encode("cat")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"cells": 3}, "cells must be at least hashes"),
        ({"cells": 40, "hashes": 0}, "hashes must be"),
        ({"cells": 40, "max_bytes": 0}, "labels.max_bytes"),
        ({"cells": 40, "max_bytes": 1025}, "labels.max_bytes"),
        ({"cells": 40, "seed": -1}, "seed"),
        ({"cells": 40, "seed": 2**64}, "seed"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        IBLT(**parameters)


@pytest.mark.parametrize("clients", [0, -1, MAX_CLIENTS + 1])
def test_a_bad_number_of_clients_is_refused(clients):
    table = IBLT(cells=40)
    with pytest.raises(ValueError, match="clients must be 1 to 65,537"):
        table.decode(table.encode([]), clients)


def test_sizes():
    assert (IBLT(cells=40).width, IBLT(cells=40).nbytes) == (37, 40 * 37 * 4)
    assert IBLT(cells=40, max_bytes=1).width == 6
