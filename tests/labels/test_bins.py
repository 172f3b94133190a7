import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genfl.labels.bins import HolderBins

SECRET = bytes(range(32))
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


def enough(bins, label_sets, least):
    return sum(bins.mark(names) for names in label_sets) >= least


@pytest.mark.slow
@given(
    st.lists(st.frozensets(NAMES, max_size=5), min_size=1, max_size=6), st.integers(2, 4), st.integers(1, 40)
)
def test_names_of_enough_holders_always_pass(label_sets, least, size):
    bins = HolderBins(size, SECRET)
    passed = [bins.shared(names, enough(bins, label_sets, least)) for names in label_sets]
    for name in frozenset.union(*label_sets):
        holders = [number for number, names in enumerate(label_sets) if name in names]
        if len(holders) >= least:
            assert all(name in passed[number] for number in holders)


def test_names_of_too_few_holders_stop_unless_all_their_bins_are_shared():
    bins = HolderBins(4096, SECRET)
    sets = [{"cat", "dog"}, {"cat", "rare"}, {"dog", "unique"}]
    reached = enough(bins, sets, 2)
    assert [bins.shared(sorted(names), reached) for names in sets] == [["cat", "dog"], ["cat"], ["dog"]]
    one_bin = HolderBins(1, SECRET)
    assert one_bin.shared(["rare"], enough(one_bin, sets, 2)) == ["rare"], "a bin cannot tell its names apart"


def test_the_rate_of_collisions_is_that_of_the_formula():
    bins, common = HolderBins(64, SECRET, rows=2), [f"common {n}" for n in range(16)]
    reached = enough(bins, [common, common], 2)
    rare = [f"rare {n}" for n in range(20_000)]
    rate = len(bins.shared(rare, reached)) / len(rare)
    filled = reached.mean(1).prod()  # each row fills 64 (1 - (63/64)^16) bins on average
    assert rate == pytest.approx(filled, abs=4 * np.sqrt(filled / len(rare)))
    assert rate <= (16 / 64) ** 2


def test_bins_count_clients_and_depend_on_the_secret():
    bins = HolderBins(2, SECRET, rows=1)
    names = [f"label {n}" for n in range(20)]
    assert bins.mark(names).tolist() == [[1, 1]], "20 names of one client count once"
    assert bins.mark(["café", "cafe\u0301"]).sum() == 1, "both spellings are one name"
    wide = [HolderBins(4096, secret) for secret in (SECRET, SECRET[::-1])]
    first, second = (np.flatnonzero(some.mark(names)) for some in wide)
    assert len(np.intersect1d(first, second)) < 10, "80 marks in 16,384 bins meet 0.4 times by chance"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bins": 0}, "bins must be at least 1, not 0"),
        ({"rows": 9}, "rows must be 1 to 8, not 9"),
        ({"secret": b"short"}, "the secret must have 16 to 64 bytes, not 5"),
    ],
)
def test_parameters_out_of_range_are_rejected(options, problem):
    with pytest.raises(ValueError, match=problem):
        HolderBins(**{"bins": 8, "secret": SECRET, **options})
