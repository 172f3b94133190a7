import pytest

from genfl.algorithms.fedavg import fedavg
from genfl.analysis.diversity import DIVERSITY, gradient_diversity
from genfl.engines.in_process import sequential
from genfl.learning.local import LocalSGD

from ..engines.helpers import SpyEngine


def _first(quadratics, clients):
    measure, engines = gradient_diversity(), []

    def engine(data):
        engines.append(SpyEngine(sequential(data), measure.wrap))
        return engines[0]

    quadratics(fedavg(quadratics.task, LocalSGD(0.1)), clients, rounds=1, engine=engine)
    return measure.value(engines[0].results[0].aggregate[DIVERSITY])


def test_clients_that_move_alike_give_one_over_their_number(quadratics):
    assert _first(quadratics, [(1.0, 2.0, 3)] * 4) == pytest.approx(1 / 4)


def test_clients_that_cancel_out_have_no_diversity(quadratics):
    assert _first(quadratics, [(1.0, 1.0, 1), (1.0, -1.0, 1)]) is None


def test_opposite_clients_cancel_out(quadratics):
    """Changes 0.1·a·b: 0.3 and −0.1 give (0.09 + 0.01) / 0.2² = 2.5."""
    assert _first(quadratics, [(1.0, 3.0, 1), (1.0, -1.0, 1)]) == pytest.approx(2.5)
