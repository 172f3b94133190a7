import itertools
import logging

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from genfl import config
from genfl.data.partition import hold_back, partition, subset
from genfl.data.sources import DATASETS, DataEntry, DataSet, LabelledExamples, digits
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.rng import Key

LABELS = [f"label {n % 7}" for n in range(500)]
DEFAULTS = {"alpha": 1.0, "min_size": 1, "seed": 0}


def split(kind, clients=None, labels=LABELS, **options):
    return partition(labels, kind, clients, **(DEFAULTS | options))


def is_a_partition(found, samples):
    return sorted(np.concatenate(found).tolist()) == list(range(samples))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["dirichlet", "iid", "shards", "quantity"]),
    clients=st.integers(2, 20),
    alpha=st.floats(0.5, 100),
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(60, 500),
    classes=st.integers(1, 9),
)
def test_every_sample_belongs_to_exactly_one_client(kind, clients, alpha, seed, samples, classes):
    labels = [f"label {n * n % classes}" for n in range(samples)]
    try:
        found = split(kind, clients, labels, alpha=alpha, seed=seed)
    except InputError:
        assert kind == "dirichlet", "the others always exist"
        return
    assert len(found) == clients
    assert is_a_partition(found, samples)
    assert min(map(len, found)) >= 1


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["iid", "shards", "quantity"]),
    clients=st.integers(2, 30),
    min_size=st.integers(1, 12),
    shards=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_everyone_has_the_least_size_or_the_split_is_refused(kind, clients, min_size, shards, seed):
    labels = LABELS[:120]
    try:
        found = split(
            kind, clients, labels, alpha=0.05, min_size=min_size, seed=seed, shards_per_client=shards
        )
    except InputError as error:
        assert clients * min_size > 120 or kind == "shards"
        assert "min_size" in str(error)
    else:
        assert min(map(len, found)) >= min_size
        assert is_a_partition(found, 120)


@pytest.mark.parametrize("kind", ["iid", "quantity", "shards"])
def test_as_many_clients_as_samples(kind):
    assert {len(rows) for rows in split(kind, 120, LABELS[:120], shards_per_client=1)} == {1}


@pytest.mark.parametrize("kind", ["iid", "quantity", "shards", "dirichlet", "natural", "domain"])
def test_a_seed_decides_the_split(kind):
    client_ids = [f"{n % 3}" for n in range(500)]
    splits = [
        split(kind, None if kind in ("natural", "domain") else 6, seed=s, client_ids=client_ids)
        for s in (0, 0, 1)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(splits[0], splits[1], strict=True))
    same = all(np.array_equal(a, b) for a, b in zip(splits[0], splits[2], strict=True))
    assert same == (kind == "natural")


def test_alpha_is_how_alike_the_clients_are():
    def labels_held(alpha):
        found = split("dirichlet", 5, alpha=alpha)
        return np.mean([len({LABELS[row] for row in rows}) for rows in found])

    assert labels_held(0.05) < 4 < labels_held(100.0) == 7


def test_impossible_splits_say_what_to_change():
    for kind in ("dirichlet", "iid", "shards", "quantity"):
        with pytest.raises(InputError, match=r"lower data\.partition\.clients or min_size"):
            split(kind, 100, min_size=6)
    with pytest.raises(InputError, match="raise alpha"):
        split("dirichlet", 50, alpha=0.001, min_size=9)
    with pytest.raises(InputError, match=r"data\.partition\.shards_per_client: 100 clients with 6 shards"):
        split("shards", 100, shards_per_client=6)


# --- shards


def test_shards_are_pieces_of_the_data_sorted_by_label():
    """McMahan et al.: 10 labels of 60, 100 clients with 2 shards of 3 each: at most 2 labels a client."""
    labels = [f"{n % 10}" for n in range(600)]
    found = split("shards", 100, labels)
    assert {len(rows) for rows in found} == {6}
    held = [len({labels[row] for row in rows}) for rows in found]
    assert set(held) == {1, 2}
    assert held.count(1) < 30, "the two are drawn at random"
    (first, _) = split("shards", 2, ["a"] * 100, shards_per_client=1)
    assert np.ptp(first) > 50, "and so is the order within a label"


def test_shards_are_those_of_flower_where_these_use_all_samples():
    from datasets import Dataset
    from flwr_datasets.partitioner import ShardPartitioner

    labels = [f"{n % 3}" for n in range(48)]

    def cut(found):
        """How often each number of samples of each label is held together."""
        return sorted(
            tuple(sorted(np.unique([labels[row] for row in rows], return_counts=True)[1])) for rows in found
        )

    def seen(splits):
        return set(itertools.chain(*map(cut, splits)))

    theirs = []
    for seed in range(20):
        partitioner = ShardPartitioner(6, "label", num_shards_per_partition=2, seed=seed)
        partitioner.dataset = Dataset.from_dict({"label": labels, "row": range(48)})
        theirs.append([partitioner.load_partition(k)["row"] for k in range(6)])
    ours = [split("shards", 6, labels, seed=seed) for seed in range(20)]
    assert seen(ours) == seen(theirs) == {(8,), (4, 4)}


def test_no_label_is_left_out_of_the_shards():
    """50 shards of 1,010 samples, where equal ones would leave out the ten of the last label."""
    labels = ["a"] * 1000 + ["b"] * 10
    assert any("b" in {labels[row] for row in rows} for rows in split("shards", 25, labels))


# --- quantity


def test_sizes_are_dirichlet_shares_and_labels_are_alike():
    labels = [f"{n % 4}" for n in range(40_000)]
    even, skewed = (sorted(map(len, split("quantity", 10, labels, alpha=a))) for a in (1000.0, 0.3))
    assert even[-1] < 1.2 * even[0]
    assert skewed[-1] > 10 * skewed[0]
    largest = max(split("quantity", 10, labels, alpha=0.3), key=len)
    counts = np.unique([labels[row] for row in largest], return_counts=True)[1]
    assert np.allclose(counts / len(largest), 0.25, atol=0.02)


def test_labels_are_alike_also_where_the_data_is_sorted_by_label():
    labels = [f"{n // 1000}" for n in range(4000)]
    for rows in split("quantity", 5, labels, alpha=10.0, min_size=100):
        counts = np.unique([labels[row] for row in rows], return_counts=True)[1]
        assert counts / len(rows) == pytest.approx([0.25] * 4, abs=0.12)


def test_sizes_have_the_variance_of_a_dirichlet_distribution():
    clients, alpha, samples = 5, 2.0, 10_000
    found = [split("quantity", clients, ["a"] * samples, alpha=alpha, seed=s) for s in range(600)]
    shares = np.array([[len(rows) for rows in one] for one in found]) / samples
    total = clients * alpha
    expected = (alpha / total) * (1 - alpha / total) / (total + 1)
    assert np.allclose(shares.mean(0), 1 / clients, atol=0.03)
    assert np.allclose(shares.var(0), expected, rtol=0.25)


def test_an_extreme_quantity_skew_still_gives_everyone_the_least():
    sizes = sorted(map(len, split("quantity", 20, alpha=1e-9, min_size=3)))
    assert sizes == [3] * 19 + [500 - 57]


# --- by client ids

OWNERS = ["ann", "bob", "ann", "cid", "bob", "ann"]


def natural(client_ids=OWNERS, labels=("x",) * 6, **options):
    return split("natural", options.pop("clients", None), list(labels), client_ids=client_ids, **options)


def test_the_natural_split_is_by_whose_samples_are():
    assert [part.tolist() for part in natural()] == [[0, 2, 5], [1, 4], [3]]
    assert len(natural(clients=3)) == 3


def test_the_natural_split_is_that_of_flower():
    from datasets import Dataset
    from flwr_datasets.partitioner import NaturalIdPartitioner

    partitioner = NaturalIdPartitioner("client_id")
    partitioner.dataset = Dataset.from_dict({"client_id": OWNERS, "row": range(6)})
    theirs = [partitioner.load_partition(k)["row"] for k in range(3)]
    assert sorted(map(list, theirs)) == sorted(part.tolist() for part in natural())


def test_whoever_has_too_few_is_left_out_of_the_natural_split():
    assert [part.tolist() for part in natural(min_size=2)] == [[0, 2, 5], [1, 4]]
    assert [part.tolist() for part in natural(min_size=3)] == [[0, 2, 5]]


def test_natural_splits_that_cannot_be():
    with pytest.raises(InputError, match=r"data\.partition\.clients: 4, but the data has 3"):
        natural(clients=4)
    with pytest.raises(InputError, match=r"min_size: nobody with 2 samples or more holds 'y'; lower it"):
        natural(min_size=2, labels="xxxyxx")
    with pytest.raises(InputError, match=r"min_size: nobody with 9 samples or more holds 'x'; lower it"):
        natural(min_size=9)
    with pytest.raises(InputError, match=r"data\.partition\.kind: .* data\.client_id"):
        natural(client_ids=None)


def test_natural_clients_are_drawn_for_each_seed():
    owners = [f"p{n % 30:02}" for n in range(150)]
    everyone = natural(owners, ["x"] * 150)
    drawn = [natural(owners, ["x"] * 150, clients=10, seed=seed) for seed in (0, 0, 1)]
    kept = [[part.tolist() for part in parts] for parts in drawn]
    assert all(len(parts) == 10 for parts in kept)
    assert all(part in [rows.tolist() for rows in everyone] for parts in kept for part in parts)
    assert kept[0] == kept[1] != kept[2]
    assert kept[0] == sorted(kept[0], key=lambda rows: owners[rows[0]]), "in alphabetical order"
    assert [part.tolist() for part in natural(owners, ["x"] * 150, clients=30)] == [
        part.tolist() for part in everyone
    ]


def test_drawn_clients_are_those_with_enough_samples():
    owners = [name for name, count in (("a", 5), ("b", 1), ("c", 4), ("d", 9)) for _ in range(count)]
    for seed in range(9):
        parts = natural(owners, ["x"] * 19, clients=2, min_size=4, seed=seed)
        assert {len(part) for part in parts} <= {4, 5, 9}
    with pytest.raises(InputError, match=r"clients: 4, but the data has 3 of its own with 4 samples or more"):
        natural(owners, ["x"] * 19, clients=4, min_size=4)


def test_drawn_clients_that_lose_a_label_are_an_error():
    owners, labels = list("aabbcc"), list("xyxyzz")
    with pytest.raises(
        InputError, match=r"clients: none of the 2 clients that are drawn holds '.'; raise it"
    ):
        for seed in range(9):
            natural(owners, labels, clients=2, seed=seed)


def test_a_config_draws_natural_clients_for_each_seed(keyed):
    resolved = RunContext().resolve(read(kind="natural", clients=20))
    assert resolved.data.partition.clients == 20
    context = RunContext()
    first, second = (context.client_rows(resolved.data, seed) for seed in (0, 1))
    assert len(first) == len(second) == 20
    assert [rows.tolist() for rows in first] != [rows.tolist() for rows in second]
    owner = {
        row: number
        for number, rows in enumerate(context.client_rows(read(kind="natural").data, 0))
        for row in rows.tolist()
    }
    assert all(len({owner[row] for row in rows.tolist()}) == 1 for rows in first)


DOMAINS = [("photo", "sketch", "art")[n % 5 % 3] for n in range(500)]  # 200, 200 and 100


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    within=st.sampled_from(["iid", "dirichlet"]), clients=st.integers(1, 6), seed=st.integers(0, 2**32 - 1)
)
def test_a_client_holds_samples_of_one_domain(within, clients, seed):
    found = split("domain", clients_per_domain=clients, within=within, seed=seed, client_ids=DOMAINS)
    assert is_a_partition(found, 500)
    held = [{DOMAINS[row] for row in rows} for rows in found]
    assert held == [{name} for name in ("art", "photo", "sketch") for _ in range(clients)]
    if within == "iid":
        sizes = [len(rows) for rows in found]
        assert max(sizes[:clients]) - min(sizes[:clients]) <= 1


def test_domains_are_split_independently_and_with_labels_skewed_if_asked():
    labels = [f"{n // 5 % 4}" for n in range(500)]

    def counts(within):
        found = split(
            "domain", labels=labels, within=within, alpha=0.1, clients_per_domain=2, client_ids=DOMAINS
        )
        return np.array([[sum(labels[row] == name for row in rows) for name in "0123"] for rows in found])

    assert counts("iid").min() > 0
    skewed = counts("dirichlet")
    assert (skewed <= 2).any()
    assert not np.array_equal(skewed[2:4], skewed[4:6]), "domains of one size are not split alike"


def test_with_one_client_a_domain_it_is_the_natural_split():
    ours = split("domain", clients_per_domain=1, client_ids=DOMAINS)
    theirs = split("natural", client_ids=DOMAINS)
    assert [sorted(rows) for rows in ours] == [rows.tolist() for rows in theirs]


def test_domain_splits_that_cannot_be():
    with pytest.raises(InputError, match=r"clients_per_domain: 'art' has 100 samples, too few for 60"):
        split("domain", clients_per_domain=60, min_size=2, client_ids=DOMAINS)
    with pytest.raises(InputError, match=r"data\.partition\.clients: 20, but the data has 15 of its own"):
        split("domain", 20, client_ids=DOMAINS)
    with pytest.raises(InputError, match=r"data\.client_id"):
        split("domain")


# --- rows held back for testing


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12).filter(lambda sizes: max(sizes) > 9),
    share=st.floats(0.1, 0.99),
    seed=st.integers(0, 99),
)
def test_nobody_trains_on_what_is_held_back_and_everybody_trains(sizes, share, seed):
    rows = np.random.default_rng(seed).permutation(sum(sizes))
    own = np.split(rows, np.cumsum(sizes)[:-1])
    kept, held = hold_back(own, share, Key(seed))
    for mine, training, testing in zip(own, kept, held, strict=True):
        assert sorted([*training, *testing]) == sorted(mine)
        assert len(training) >= 1
        assert share * len(mine) - 1 < len(testing) + 1e-6
        assert len(testing) <= share * len(mine) + 1e-6


@pytest.mark.parametrize(("share", "held"), [(0.29, 29), (0.57, 57), (0.1, 10)])
def test_a_share_of_a_hundred_is_its_percentage(share, held):
    """Though 0.29 · 100 is 28.999999999999996."""
    assert len(hold_back([np.arange(100)], share, Key(0))[1][0]) == held


def test_without_a_share_the_rows_are_as_they_were():
    own = [np.array([3, 1, 2]), np.array([0])]
    kept, held = hold_back(own, 0.0, Key(0))
    assert [rows.tolist() for rows in kept] == [[3, 1, 2], [0]]
    assert [len(rows) for rows in held] == [0, 0]


def test_what_is_held_back_is_drawn_at_random_for_each_client_and_seed():
    own = [np.arange(100), np.arange(100, 200)]
    (_, (first, second)), (_, (other, _)) = (hold_back(own, 0.5, Key(seed)) for seed in (0, 1))
    assert first.tolist() != list(range(50))
    assert first.tolist() != (second - 100).tolist()
    assert first.tolist() != other.tolist()
    assert hold_back(own, 0.5, Key(0))[1][0].tolist() == first.tolist()


def test_a_share_that_is_no_sample_for_anyone_is_refused():
    with pytest.raises(
        InputError, match=r"data\.partition\.test: 0\.3 of .*, 3, is less than a sample; raise"
    ):
        hold_back([np.arange(3), np.arange(2)], 0.3, Key(0))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), share=st.sampled_from([0.2, 0.5]))
def test_groups_are_held_back_as_a_whole(seed, share):
    rng = np.random.default_rng(seed)
    groups = [f"g{n}" for n in rng.integers(0, 12, 60)]
    kept, held = hold_back([np.arange(30), np.arange(30, 60)], share, Key(seed), groups)
    for trained, tested in zip(kept, held, strict=True):
        assert sorted([*trained, *tested]) in (list(range(30)), list(range(30, 60)))
        assert not {groups[row] for row in trained} & {groups[row] for row in tested}
        assert 0 < len(tested) <= share * 30


# --- a subset of the training data


def test_a_subset_keeps_the_frequencies_of_classes():
    labels = ["a"] * 600 + ["b"] * 300 + ["c"] * 100
    rows = subset(labels, 100)
    assert [sum(labels[row] == name for row in rows) for name in "abc"] == [60, 30, 10]
    assert subset(labels, 100).tolist() == rows.tolist() == sorted(set(rows.tolist()))
    assert subset(labels, None).tolist() == list(range(1000))
    assert len(subset(labels, 999)) == 999


def test_a_subset_leaves_no_class_out_or_is_refused():
    rare = ["a"] * 500 + ["b"] * 2
    with pytest.raises(InputError, match=r"samples: 20 are so few that none is left of 'b'; raise it"):
        subset(rare, 20)
    with pytest.raises(InputError, match=r"data\.partition\.samples: .*only 1 member"):
        subset(["a"] * 500 + ["b"], 20)
    with pytest.raises(InputError, match="must be from 2"):
        subset(rare, 1)


# --- in a config


@pytest.fixture
def keyed():
    """The digits, written by people: p0 has 1 of them, p1 has 2, and so on."""
    data = digits()
    owners = [f"p{k:02}" for k in range(60) for _ in range(k + 1)][: len(data.train.labels)]
    train = LabelledExamples(data.train.x, data.train.labels, owners)
    DATASETS["keyed"] = DataEntry(lambda: DataSet(train, *data[1:]), "image", "")
    yield owners
    del DATASETS["keyed"]


def read(*overrides, **split):
    content = {
        "name": "keyed",
        "data": {"name": "keyed", "partition": split},
        "model": {"name": "mlp"},
        "federate": {"clients_per_round": 2},
        "methods": {"fedavg": {"algorithm": "fedavg"}},
    }
    return config.parse(yaml.safe_dump(content), overrides)


@pytest.mark.slow
def test_the_data_says_how_many_clients_there_are(keyed, caplog):
    asked = read(kind="natural")
    assert asked.data.partition.known is None
    found = RunContext().resolve(asked)
    assert found.data.partition.clients == found.data.partition.known == len(set(keyed))
    assert "left out" not in caplog.text
    assert RunContext().resolve(found) == found, "what is resolved stays so"
    assert config.parse(config.dump(found)) == found
    domains = RunContext().resolve(read(kind="domain", clients_per_domain=1))
    assert domains.data.partition.clients == len(set(keyed))
    assert RunContext().resolve(read()).data.partition.clients == 20


def test_clients_with_few_samples_are_counted_and_left_out(keyed, caplog):
    with caplog.at_level(logging.WARNING, logger="genfl"):
        found = RunContext().resolve(read(kind="natural", min_size=10))
    sizes = np.unique(keyed, return_counts=True)[1]
    few = sizes[sizes < 10]
    assert found.data.partition.clients == len(sizes) - len(few)
    assert caplog.messages == [
        f"data.partition.min_size: {len(few)} of {len(sizes)} clients have fewer than 10 samples and are left"
        f" out, with {few.sum()} samples in total"
    ]


def test_what_cannot_be_is_one_line(keyed):
    with pytest.raises(InputError, match=r"^federate\.clients_per_round: 50 clients a round, but [^\n]*$"):
        RunContext().resolve(read("federate.clients_per_round=50", kind="natural", min_size=30))
    with pytest.raises(
        InputError, match=r"^data\.partition\.clients: 70, but the data has 54 of its own[^\n]*$"
    ):
        RunContext().resolve(read(kind="natural", clients=70))
    with pytest.raises(
        InputError, match=r"^data\.partition\.kind: natural, but [^\n]* a single client[^\n]*$"
    ):
        RunContext().resolve(read(kind="natural", min_size=53))
    with pytest.raises(InputError, match=r"^data\.partition\.test: should be less than 1, not 1\.0$"):
        read(test=1.0)
    with pytest.raises(
        InputError, match=r"^data\.partition\.kind: [^\n]*'natural'[^\n]*, not 'pathological'$"
    ):
        read(kind="pathological")


def test_what_clients_hold_back_is_part_of_what_they_have(keyed):
    whole, held_back = read(kind="dirichlet", alpha=1.0), read(kind="dirichlet", alpha=1.0, test=0.25)
    own = RunContext().client_rows(whole.data, 3)
    kept, held = RunContext().train_test_rows(held_back.data, 3)
    assert [sorted([*a, *b]) for a, b in zip(kept, held, strict=True)] == [sorted(rows) for rows in own]
    assert [len(rows) for rows in held] == [len(rows) // 4 for rows in own]
