import numpy as np
import pytest
import torch

from genfl.data.clients import ClientData
from genfl.errors import InputError

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
        facts = data.facts(client)
        assert facts["samples"].item() == len(part)
        assert facts["label_counts"].tolist() == np.bincount(Y[part], minlength=3).tolist()


def test_an_empty_client_and_a_shared_row_are_refused():
    with pytest.raises(InputError, match="client 1 has no samples"):
        ClientData(X, Y, [np.array([0]), np.array([], dtype=int)], 3)
    with pytest.raises(InputError, match="two clients"):
        ClientData(X, Y, [np.array([0, 1]), np.array([1])], 3)
