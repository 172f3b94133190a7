import pytest

from genfl.algorithms.fedavg import fedavg
from genfl.analysis.diversity import NAME, gradient_diversity
from genfl.learning.local import LocalSGD


def _first(quadratics, clients):
    from genfl.engines.in_process import sequential

    seen = {}

    def engine(data):
        inner = sequential(data)
        measure = gradient_diversity()

        def run(program, work):
            outcome = inner(measure.wrap(program), work)
            seen.setdefault("value", measure.value(outcome.aggregate[NAME]))
            return outcome

        return run

    quadratics(fedavg(quadratics.task, LocalSGD(0.1)), clients, rounds=1, engine=engine)
    return seen["value"]


def test_clients_that_move_alike_give_one_over_their_number(quadratics):
    assert _first(quadratics, [(1.0, 2.0, 3)] * 4) == pytest.approx(1 / 4)


def test_clients_that_cancel_out_have_no_diversity(quadratics):
    assert _first(quadratics, [(1.0, 1.0, 1), (1.0, -1.0, 1)]) is None


def test_opposite_clients_cancel_out(quadratics):
    """Changes 0.1·a·b: 0.3 and −0.1 give (0.09 + 0.01) / 0.2² = 2.5."""
    assert _first(quadratics, [(1.0, 3.0, 1), (1.0, -1.0, 1)]) == pytest.approx(2.5)
