import numpy as np
import pytest
import torch

from genfl.algorithms.base import ClientProgram
from genfl.engines.in_process import sequential
from genfl.engines.protocol import ClientTask
from genfl.engines.reducers import PlainReducer, secure_reducers
from genfl.privacy.secure_sum import SecureSum
from genfl.rng import Key


class Numbers:
    """Clients that know nothing but their own number."""

    def client_info(self, client):
        return {"client": client}


def _program(value, reductions=None) -> ClientProgram:
    return ClientProgram(
        start=lambda message, memory, client_info, key: client_info["client"],
        step=lambda carry, batch, key: carry,
        finish=lambda client: ({"tables": {"a": value(client), "b": value(client + 1)}}, {}),
        reductions=reductions or {"tables": "sum"},
    )


def _run(program, reduce, clients=5):
    work = [ClientTask(k, {}, {}, None, Key(k)) for k in range(clients)]
    return sequential(Numbers(), reduce).run(program, work)


def _table(client: int) -> torch.Tensor:
    rng = np.random.default_rng(client)
    return torch.from_numpy(rng.integers(0, 2**32, (3, 4), dtype=np.uint32))


def test_a_secure_sum_is_the_exact_sum_modulo_the_word_size():
    result = _run(_program(_table), secure_reducers(Key(0)))
    for name, first in (("a", 0), ("b", 1)):
        expected = sum(_table(k).numpy().astype(np.uint64) for k in range(first, first + 5)) % 2**32
        assert np.array_equal(result.aggregate["tables"][name].numpy(), expected)
    assert result.uplink_bytes == {"tables": 5 * 2 * 3 * 4 * 4}


def test_a_secure_sum_refuses_uploads_the_server_must_see():
    with pytest.raises(ValueError, match="one by one"):
        _run(_program(_table, {"tables": "each"}), secure_reducers(Key(0)))


def test_a_secure_sum_refuses_floats():
    with pytest.raises(ValueError, match="encode it first"):
        _run(_program(lambda k: torch.ones(2)), secure_reducers(Key(0)))


def test_each_lists_uploads_in_the_order_of_clients():
    program = _program(lambda k: torch.tensor(float(k)), {"tables": "each"})
    result = _run(program, PlainReducer)
    assert [upload["a"].item() for upload in result.aggregate["tables"]] == [0, 1, 2, 3, 4]


def test_a_plain_sum_adds_in_the_order_of_clients():
    values = [1e8, 1.0, -1e8, 1.0, 3.0]  # float32: any other order gives another result
    result = _run(_program(lambda k: torch.tensor(values[k % 5])), PlainReducer)
    expected = np.float32(0)
    for value in values:
        expected = expected + np.float32(value)
    assert result.aggregate["tables"]["a"].item() == expected


def test_stacks_are_added_whatever_is_in_which():
    """Uploads of five clients: one by one, all in one, or some of the later ones first."""
    rng = torch.Generator().manual_seed(0)
    floats = torch.randn(5, 3, 2, generator=rng, dtype=torch.float64)
    wholes = torch.arange(10, dtype=torch.int32).view(5, 2)
    for stacks in ([[0], [1], [2], [3], [4]], [[0, 1, 2, 3, 4]], [[3, 1], [4], [2, 0]]):
        plain = PlainReducer({"floats": "sum", "wholes": "sum", "seen": "each"})
        for clients in stacks:
            given = {"floats": floats[clients], "wholes": {"a": wholes[clients]}, "seen": floats[clients]}
            plain.add(clients, given)
            given["seen"].zero_()  # the next round's uploads lie where these did
            given["wholes"]["a"].zero_()
        found = plain.aggregate()
        torch.testing.assert_close(found["floats"], floats.sum(0), rtol=0, atol=1e-12)
        assert found["wholes"]["a"].dtype == torch.int32
        assert found["wholes"]["a"].tolist() == wholes.sum(0).tolist()
        assert [torch.equal(*pair) for pair in zip(found["seen"], floats, strict=True)] == [True] * 5


def test_every_tensor_of_an_upload_has_masks_of_its_own(monkeypatch):
    """Two tensors under one mask would reveal their difference."""
    masks = []
    mask = SecureSum.mask

    def watched(self, client, values):
        masked = mask(self, client, values)
        masks.append((masked - values).tobytes())
        return masked

    monkeypatch.setattr(SecureSum, "mask", watched)
    _run(_program(_table), secure_reducers(Key(0)))
    assert len(masks) == len(set(masks)) == 5 * 2


def test_no_mask_is_used_twice():
    """Two sums with one reduction have secrets of their own."""
    seen = []
    reduce = secure_reducers(Key(0))

    class Watched:
        def __init__(self, reductions):
            self.inner = reduce(reductions)

        def add(self, client, upload):
            return self.inner.add(client, upload)

        def nbytes(self, name, uploads):
            return self.inner.nbytes(name, uploads)

        def aggregate(self):
            seen.append(self.inner.key)
            return self.inner.aggregate()

    for _ in range(2):
        _run(_program(_table), Watched)
    assert len(set(seen)) == 2


@pytest.mark.parametrize("dtype", [torch.uint32, torch.uint64])
def test_a_plain_sum_of_unsigned_numbers_wraps_around(dtype):
    most = torch.iinfo(torch.uint32 if dtype is torch.uint32 else torch.uint64).max
    uploads = torch.from_numpy(np.array([[most, 1], [2, 3], [4, most]], dtype=str(dtype).split(".")[1]))
    for parts in ([uploads], [uploads[:1], uploads[1:]], [uploads[:2], uploads[2:]]):
        reducer = PlainReducer({"cells": "sum"})
        for number, part in enumerate(parts):
            reducer.add([number], {"cells": part})
        assert reducer.aggregate()["cells"].tolist() == [5, 3]
