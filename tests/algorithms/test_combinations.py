"""Several methods as one algorithm: what adds up, what is refused, and how FedDisco weights."""

import numpy as np
import pytest
import torch

from genfl.algorithms import ALGORITHMS, combine, profile
from genfl.algorithms.feddisco import SMALLEST, feddisco
from genfl.errors import InputError
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import MLP
from genfl.rng import Key

EQUAL = [(1.0, -1.0, 10), (3.0, 2.0, 10)]
UNEQUAL = [(1.0, -1.0, 2), (3.0, 2.0, 10)]
LR = 0.05


def together(task, *names, local=None, resources=None, **options):
    parts = [(ALGORITHMS[name], options.get(name, {})) for name in names]
    return combine(task, local or LocalSGD(LR), parts, resources or {})


def path(quadratics, algorithm, rounds=8):
    return [e["w"] for e in quadratics(algorithm, UNEQUAL, rounds).evaluations]


def test_fedprox_with_fedadam_is_both(quadratics):
    """A client's pulled contraction, then Adam on the server: both written out."""
    mu, lr, tau = 0.5, 0.02, 1e-3
    options = {"fedprox": {"mu": mu}, "fedadam": {"lr": lr, "tau": tau}}
    got = path(quadratics, together(quadratics.task, "fedprox", "fedadam", **options))
    x, m, v, expected = 0.0, 0.0, tau**2, [0.0]
    for _ in range(8):
        ends = []
        for a, b, steps in UNEQUAL:
            w = x
            for _ in range(steps):
                w -= LR * (a * (w - b) + mu * (w - x))
            ends.append(w)
        delta = np.average(ends, weights=[2, 10]) - x
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
        x += lr * m / (np.sqrt(v) + tau)
        expected.append(x)
    assert got == pytest.approx(expected, abs=1e-12)


def test_the_order_of_the_names_changes_nothing(quadratics):
    paths = [
        path(quadratics, together(quadratics.task, *names))
        for names in (("fedprox", "scaffold"), ("scaffold", "fedprox"))
    ]
    assert paths[0] == paths[1]
    assert paths[0] != path(quadratics, together(quadratics.task, "scaffold"))


def test_fedavg_in_a_combination_is_where_the_others_hook_in(quadratics):
    assert path(quadratics, together(quadratics.task, "fedavg", "fedyogi")) == path(
        quadratics, together(quadratics.task, "fedyogi")
    )


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("fedadam", "fedyogi"), "fedadam and fedyogi take the same place"),
        (("scaffold", "feddyn"), "scaffold and feddyn take the same place"),
        (("scaffold", "fedadam"), "fedadam is a variant of FedAvg's server, and scaffold has its own"),
        (("feddyn", "feddisco"), "feddisco is a variant of FedAvg's server, and feddyn has its own"),
        (("fedprox", "fedprox"), "fedprox and fedprox take the same place"),
        (("fedsam", "fedsam"), "fedsam and fedsam take the same place"),
        (("moon", "moon"), "moon and moon take the same place"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(quadratics, names, line):
    with pytest.raises(InputError, match=line):
        together(quadratics.task, *names, resources={"cohort": 2})


def test_uniform_averaging_gives_every_client_of_the_cohort_the_same_weight(quadratics):
    """Two clients of 2 and 10 samples: their mean models, step by step."""
    x, expected = 0.0, [0.0]
    for _ in range(8):
        x = np.mean([b + (1 - LR * a) ** steps * (x - b) for a, b, steps in UNEQUAL])
        expected.append(x)
    options = {"fedavg": {"weighting": "uniform"}}
    alone = together(quadratics.task, "fedavg", **options)
    assert path(quadratics, alone) == pytest.approx(expected, abs=1e-12)
    with_server = together(quadratics.task, "fedprox", "fedavg", fedprox={"mu": 0.0}, **options)
    assert path(quadratics, with_server) == pytest.approx(expected, abs=1e-12)
    weighted = together(quadratics.task, "fedavg", fedavg={"weighting": "samples"})
    assert path(quadratics, weighted) == path(
        quadratics, together(quadratics.task, "fedprox", fedprox={"mu": 0.0})
    )
    assert path(quadratics, weighted) != pytest.approx(expected, abs=1e-3)


def test_uniform_averaging_beside_another_weighting_is_refused(quadratics):
    with pytest.raises(InputError, match="feddisco and uniform take the same place"):
        resources, chosen = {"cohort": 2}, {"weighting": "uniform"}
        together(quadratics.task, "feddisco", "fedavg", resources=resources, fedavg=chosen)
    with pytest.raises(InputError, match=r"fedavg\.weighting: there is no 'alike'"):
        together(quadratics.task, "fedavg", fedavg={"weighting": "alike"})


def test_a_missing_resource_is_named(quadratics):
    with pytest.raises(InputError, match="feddisco needs cohort"):
        together(quadratics.task, "feddisco")


@pytest.mark.slow
def test_the_table_knows_who_needs_features():
    needs = {name: profile(entry).needs for name, entry in ALGORITHMS.items()}
    assert needs["moon"] == needs["feddecorr"] == "features"
    assert needs["fedavg"] == needs["feddyn"] == needs["feddisco"] == needs["fedftg"] == ""
    assert needs["fedgen"] == "linear head"
    assert needs["feddf"] == needs["dsfl"] == "synthetic or public data"
    assert needs["fedet"] == "synthetic or public data, client_models"


def transcription(samples, counts, a, b):
    """FedDisco, Equation 7, with all clients in the round."""
    share = np.array(samples) / sum(samples)
    counts = np.array(counts, dtype=float)
    distribution = counts / counts.sum(1, keepdims=True)
    distance = np.sqrt(((distribution - 1 / counts.shape[1]) ** 2).sum(1))
    weight = np.maximum(share - a * distance + b, 0)
    return weight / weight.sum()


def disco_weights(samples, counts, cohort, clients, a, b):
    weighting = feddisco(cohort, a=a, b=b)
    census = {"samples": torch.tensor(float(sum(samples))), "clients": torch.tensor(float(clients))}
    announced = weighting.announce(census)
    client_info = [
        {"samples": torch.tensor(float(n)), "label_counts": torch.tensor(c, dtype=torch.double)}
        for n, c in zip(samples, counts, strict=True)
    ]
    weights = np.array([weighting.weight(f, announced).item() for f in client_info])
    return weights / weights.sum()


COUNTS = [[10, 10, 10], [30, 0, 0], [20, 5, 5], [1, 1, 2]]


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.1), (0.2, 0.0), (0.0, 0.3), (1.0, 0.5)])
def test_feddisco_with_all_clients_equals_the_papers_equation(float64, a, b):
    samples = [sum(c) for c in COUNTS]
    got = disco_weights(samples, COUNTS, 4, 4, a, b)
    np.testing.assert_allclose(got, transcription(samples, COUNTS, a, b), atol=10 * SMALLEST)


def test_feddisco_prefers_balanced_clients(float64):
    weights = disco_weights([30, 30], [[10, 10, 10], [30, 0, 0]], 2, 2, 0.5, 0.1)
    assert weights[0] > 3 * weights[1]


def test_feddisco_takes_a_cohorts_average_samples_for_its_share(float64):
    """Two of twenty clients a round: shares are of a tenth of all samples, not of all."""
    weighting = feddisco(2, a=0.0, b=0.0)
    announced = weighting.announce({"samples": torch.tensor(1000.0), "clients": torch.tensor(20.0)})
    client_info = {"samples": torch.tensor(50.0), "label_counts": torch.ones(3)}
    assert weighting.weight(client_info, announced).item() == pytest.approx(0.5, rel=2 * SMALLEST)


def test_feddisco_with_none_but_unbalanced_clients_averages_as_fedavg(float64):
    got = disco_weights([30, 10], [[30, 0, 0], [0, 10, 0]], 2, 2, 9.0, 0.0)
    np.testing.assert_allclose(got, [0.75, 0.25])


def test_feddisco_without_a_and_b_is_fedavg(quadratics):
    off = together(quadratics.task, "feddisco", resources={"cohort": 2}, feddisco={"a": 0.0, "b": 0.0})
    assert path(quadratics, off) == pytest.approx(
        path(quadratics, together(quadratics.task, "fedavg")), abs=1e-12
    )


def test_moon_joins_any_algorithm_that_sends_a_model():
    task = classification(lambda: MLP((4,), 3, width=5), (4,))
    for other in ("scaffold", "feddyn", "fednova", "fedadam"):
        algorithm = together(task, "moon", other)
        assert algorithm.memory(task.init(Key(0)))["local"], "it keeps its last model"
