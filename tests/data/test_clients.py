import numpy as np
import pytest
import torch

from genfl.data.clients import ClientData, Joined, Ranges
from genfl.errors import InputError
from genfl.rng import Key

X = torch.arange(10.0)[:, None]
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def test_each_client_sees_exactly_its_rows():
    parts = [np.array([7, 1]), np.array([0, 9, 3]), np.array([5])]
    data = ClientData(X, Y, parts, 3)
    assert len(data) == 3
    for client, part in enumerate(parts):
        batch = data.batch(client, torch.arange(len(part)))
        assert batch["x"].flatten().tolist() == part.tolist()
        assert batch["y"].tolist() == Y[part].tolist()
        assert data.samples(client) == len(part)
        client_info = data.client_info(client)
        assert client_info["samples"].item() == len(part)
        assert client_info["label_counts"].tolist() == np.bincount(Y[part], minlength=3).tolist()


def test_an_empty_client_and_a_shared_row_are_refused():
    with pytest.raises(InputError, match="client 1 has no samples"):
        ClientData(X, Y, [np.array([0]), np.array([], dtype=int)], 3)
    with pytest.raises(InputError, match="two clients"):
        ClientData(X, Y, [np.array([0, 1]), np.array([1])], 3)


PARTS = [np.array([7, 1]), np.array([0, 9, 3]), np.array([5])]


def held(data, client):
    batch = data.batch(client, torch.arange(data.samples(client)))
    return batch["x"].flatten().tolist(), batch["y"].tolist()


def test_clients_made_of_clients_hold_what_these_hold():
    data = ClientData(X, Y, PARTS, 3)
    one = data.as_one([2, 0])
    assert (len(one), held(one, 0)) == (1, ([5, 7, 1], [2, 1, 1]))
    assert one.client_info(0)["label_counts"].tolist() == [0, 2, 1]
    assert held(one.as_one([0]), 0) == held(one, 0)
    assert one.x is data.x, "nothing is copied"


EXTRA = [np.array([2]), np.array([], dtype=int), np.array([4, 0])]


def enriched(data=None, **options):
    data = data or ClientData(X, Y, PARTS, 3)
    return data.with_part("generated", 100 + X, (Y + 1) % 3, EXTRA, **options)


def test_enriched_clients_hold_their_own_and_what_they_are_given():
    both = enriched()
    assert [held(both, k)[0] for k in range(3)] == [[7, 1, 102], [0, 9, 3], [5, 104, 100]]
    assert [held(both, k)[1] for k in range(3)] == [[1, 1, 0], [0, 0, 0], [2, 2, 1]]
    assert both.labels(2).tolist() == [2, 2, 1]
    assert [both.part_sizes(k) for k in range(3)] == [(2, 1), (3, 0), (1, 2)]
    assert [both.samples(k) for k in range(3)] == [3, 3, 3]


def test_joined_inputs_are_taken_as_from_one_tensor():
    parts = [torch.arange(n * 6).reshape(n, 2, 3) + 100 * n for n in (4, 1, 7)]
    joined, whole = Joined(*parts), torch.cat(parts)
    for index in (torch.tensor([11, 0, 4, 4, 3, 5]), torch.tensor([4]), torch.arange(0), torch.arange(12)):
        assert torch.equal(joined.take(index), whole[index])
    for beyond in (12, -1):
        with pytest.raises(IndexError, match="a row beyond the last of 12"):
            joined.take(torch.tensor([0, beyond]))


def test_generated_data_alone_is_told_from_private_data():
    private, generated = ClientData(X, Y, PARTS, 3), ClientData(X, Y, PARTS, 3, name="generated")
    assert private.part_sizes(1) == generated.part_sizes(1) == (3,)
    assert [
        (data.count("private"), data.count("generated")) for data in (private, generated, enriched())
    ] == [
        (6, 0),
        (0, 6),
        (6, 3),
    ]


def test_private_samples_alone_may_decide_a_clients_weight():
    both, own = enriched(), enriched(weighs=False)
    assert both.client_info_table["samples"].tolist() == [3, 3, 3]
    assert (
        own.client_info_table["samples"].tolist()
        == [own.client_info(k)["samples"] for k in range(3)]
        == [2, 3, 1]
    )
    labels = [[1, 2, 0], [3, 0, 0], [0, 1, 2]]  # trained on in either case
    assert (
        own.client_info_table["label_counts"].tolist()
        == both.client_info_table["label_counts"].tolist()
        == labels
    )
    assert own.table(1, 3)["samples"].tolist() == [3, 1]


def test_one_client_made_of_enriched_ones_has_private_samples_first():
    one = enriched(weighs=False).as_one([2, 0])
    assert held(one, 0)[0] == [5, 7, 1, 104, 100, 102]
    assert one.part_sizes(0) == (3, 3)
    assert one.client_info(0)["samples"].item() == 3


def test_inputs_are_prepared_when_they_become_a_batch_and_not_before():
    asked = []

    def prepare(x):
        asked.append(x.flatten().tolist())
        return x.float() / 2

    stored = torch.arange(10, dtype=torch.uint8)[:, None]
    data = ClientData(stored, Y, PARTS, 3, prepare)
    both = data.with_part("generated", stored, Y, PARTS)
    assert asked == []
    assert data.batch(1, torch.tensor([2, 0]))["x"].flatten().tolist() == [1.5, 0]
    assert data.as_one([1, 2]).batch(0, torch.tensor([3]))["x"].flatten().tolist() == [2.5]
    assert both.batch(0, torch.tensor([0, 2]))["x"].flatten().tolist() == [3.5, 3.5]
    assert asked == [[3, 0], [5], [7, 7]], "only what is in the batch"
    assert data.x.data_ptr() == stored.data_ptr()
    assert [part.data_ptr() for part in both.x.parts] == [stored.data_ptr()] * 2, "nothing is copied"


# --- random changes of inputs


def plus(amount):
    """Adds a number, and a draw below 1 that is another for each sample."""
    return lambda x, generator: x + amount + torch.rand(len(x), 1, generator=generator)


def changed(data, client, key):
    """Which whole numbers were added to a client's inputs, and what was drawn besides."""
    rows = torch.arange(data.samples(client))
    added = data.batch(client, rows, key)["x"] - data.batch(client, rows)["x"]
    return added.floor().flatten().tolist(), (added - added.floor()).flatten().tolist()


def test_each_part_of_a_client_keeps_its_own_changes():
    mine, plain, key = ClientData(X, Y, PARTS, 3, augment=plus(10)), ClientData(X, Y, PARTS, 3), Key(0)
    assert changed(enriched(mine, augment=plus(20)), 2, key)[0] == [10, 20, 20]
    assert changed(enriched(mine), 2, key)[0] == [10, 0, 0]
    assert changed(enriched(plain, augment=plus(20)), 2, key)[0] == [0, 20, 20]
    assert changed(enriched(mine, augment=plus(20)).as_one([2, 1]), 0, key)[0] == [10] * 4 + [20] * 2
    assert changed(enriched(plain), 2, key) == ([0] * 3, [0] * 3)


def test_changes_are_drawn_from_the_key_and_each_part_has_a_stream_of_its_own():
    mine = ClientData(X, Y, PARTS, 3, augment=plus(10))
    both = mine.with_part("generated", X, Y, PARTS, plus(20))
    _, drawn = changed(both, 1, Key(0))
    assert drawn == changed(both, 1, Key(0))[1] != changed(both, 1, Key(1))[1]
    assert len(set(drawn)) == 6
    alone = mine.with_part("generated", X, Y, PARTS)
    assert changed(alone, 1, Key(0))[1][:3] == drawn[:3], "whatever the other part does"
    assert held(both, 1)[0] == [0, 9, 3, 0, 9, 3], "without a key inputs stay as they are"
    assert torch.equal(mine.x, torch.arange(10.0)[:, None]), "and the stored ones always do"


def test_changes_are_of_what_is_prepared():
    seen = []

    def augment(x, generator):
        seen.append(x.dtype)
        return -x

    stored = torch.arange(10, dtype=torch.uint8)[:, None]
    data = ClientData(stored, Y, PARTS, 3, lambda x: x.float() / 2, augment)
    assert data.batch(0, torch.tensor([0, 1]), Key(0))["x"].flatten().tolist() == [-3.5, -0.5]
    assert seen == [torch.float32]


@pytest.mark.parametrize("row", [-1, 4, 100])
def test_a_batch_of_clients_reaches_no_row_that_is_anothers(row):
    data = ClientData(
        torch.arange(12.0)[:, None], torch.zeros(12, dtype=torch.long), Ranges(np.array([4, 8, 12])), 1
    )
    good = data.batches([0, 2], [torch.tensor([3]), torch.tensor([0])], list)
    assert good["x"].flatten().tolist() == [3, 8]
    with pytest.raises(IndexError, match="not the client's own"):
        data.batches([0, 1], [torch.tensor([0]), torch.tensor([row])], list)


@pytest.mark.parametrize(
    "x", [torch.randn(12, 2, 2, 3).permute(0, 3, 1, 2), torch.arange(12, dtype=torch.float32)]
)
def test_batches_have_the_memory_layout_of_the_examples(x):
    """On it the last bits of what a model makes of them depend."""
    y = torch.zeros(12, dtype=torch.int64)
    data = ClientData(x, y, [np.arange(5), np.arange(5, 12)], 2)
    rows = torch.tensor([3, 0, 3])
    batch = data.batch(1, rows)["x"]
    assert torch.equal(batch, x[5:][rows])
    assert batch.stride() == x[5:][rows].stride()
    assert torch.equal(
        data.batches([1, 0], [rows, rows], lambda: [])["x"], torch.stack([x[5:][rows], x[rows]])
    )


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_numbers_that_torch_cannot_select_are_taken(dtype):
    largest = torch.iinfo(dtype).max
    for x in (torch.tensor([3, largest, 5], dtype=dtype), torch.tensor([[3], [largest], [5]], dtype=dtype)):
        data = ClientData(x, torch.zeros(3, dtype=torch.int64), [np.arange(3)], 2)
        assert data.batch(0, torch.tensor([2, 1]))["x"].flatten().tolist() == [5, largest]
