"""Which engine a name, a machine and a federation give."""

import numpy as np
import pytest
import torch

from genfl.data.clients import ClientData
from genfl.engines import choice
from genfl.engines.choice import engine
from genfl.engines.parallel import Parallel
from genfl.engines.replay import Replaying
from genfl.engines.sequential import Sequential
from genfl.engines.vectorised import Together, Vectorised


@pytest.fixture
def clients():
    return ClientData(torch.zeros(6, 2), torch.zeros(6, dtype=torch.long), [np.arange(3), np.arange(3, 6)], 1)


@pytest.mark.parametrize(
    ("cores", "cohort", "kind"), [(2, 2, Parallel), (1, 2, Sequential), (2, 1, Sequential)]
)
def test_auto_has_the_bits_of_the_reference(clients, monkeypatch, cores, cohort, kind):
    monkeypatch.setattr(choice, "cores", lambda: cores)
    with engine("auto", clients, cohort) as run:
        assert isinstance(run, Replaying)
        assert isinstance(run.engine, kind)


def test_batches_of_clients_are_shared_where_there_are_cores(clients, monkeypatch):
    monkeypatch.setattr(choice, "cores", lambda: 2)
    with engine("vectorised", clients, 2) as run:
        assert isinstance(run, Parallel)
        assert isinstance(run.runner, Together)
    monkeypatch.setattr(choice, "cores", lambda: 1)
    with engine("vectorised", clients, 2) as run:
        assert isinstance(run, Vectorised)
