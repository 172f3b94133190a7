"""FedAvg and its server optimizers against known optima over many rounds."""

import itertools

import numpy as np
import pytest
import torch
from support.parameters import mostly_slow

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.server_optimizers import sgd
from genfl.algorithms.weighting import Weighting
from genfl.learning.local import LocalSGD

LR = 0.05
EQUAL = [(1.0, -1.0, 10), (3.0, 2.0, 10)]
UNEQUAL = [(1.0, -1.0, 2), (3.0, 2.0, 10)]
TEN = [(0.5 + k, (-1.0) ** k * k, 1 + k) for k in range(10)]


def fixed_point(clients, weights):
    """Where FedAvg stops: Σ p (1 − r) b / Σ p (1 − r), r = (1 − lr a)^steps being a client's contraction."""
    pull = np.array([w * (1 - (1 - LR * a) ** k) for (a, _, k), w in zip(clients, weights, strict=True)])
    return float(pull @ np.array([b for _, b, _ in clients]) / pull.sum())


@pytest.mark.slow
@pytest.mark.parametrize("clients", mostly_slow([EQUAL, UNEQUAL, TEN], UNEQUAL))
def test_fedavg_converges_to_its_own_biased_fixed_point(quadratics, clients):
    trace = quadratics(fedavg(quadratics.task, LocalSGD(LR)), clients)
    expected = fixed_point(clients, [steps for _, _, steps in clients])
    assert trace.weights["params"]["w"].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_fedavg_is_biased_away_from_the_minimiser_of_the_mean_objective(quadratics):
    trace = quadratics(fedavg(quadratics.task, LocalSGD(LR)), EQUAL)
    assert abs(trace.weights["params"]["w"].item() - 1.25) > 0.1


@pytest.mark.slow
def test_the_weight_decides_the_fixed_point(quadratics):
    alike = Weighting(lambda census: {}, lambda client_info, announced: torch.ones(()))
    one = fedavg(quadratics.task, LocalSGD(LR), alike)
    trace = quadratics(one, UNEQUAL)
    assert trace.weights["params"]["w"].item() == pytest.approx(fixed_point(UNEQUAL, [1, 1]), abs=1e-9)


def test_partial_participation_averages_over_the_cohort_alone(quadratics):
    """With one client a round, each round is one client's contraction, whoever it is."""
    trace = quadratics(fedavg(quadratics.task, LocalSGD(LR)), UNEQUAL, rounds=30, cohort=1)
    path = [e["w"] for e in trace.evaluations]
    for before, after in itertools.pairwise(path):
        ends = [b + (1 - LR * a) ** k * (before - b) for a, b, k in UNEQUAL]
        assert min(abs(after - end) for end in ends) < 1e-12


def test_one_full_batch_step_of_every_client_is_gradient_descent(quadratics):
    clients = [(1.0, -1.0, 1), (3.0, 2.0, 1)]
    trace = quadratics(fedavg(quadratics.task, LocalSGD(LR)), clients, rounds=20)
    w = 0.0
    for evaluation in trace.evaluations:
        assert evaluation["w"] == pytest.approx(w, abs=1e-12)
        w -= LR * np.mean([a * (w - b) for a, b, _ in clients])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "rounds", "tolerance"),
    [
        ("fedavgm", {"beta": 0.5}, 80, 1e-9),
        ("fedadam", {"lr": 0.02}, 200, 2e-2),
        ("fedyogi", {"lr": 0.02}, 200, 2e-2),
        ("fedadagrad", {"lr": 0.5}, 80, 1e-3),
    ],
)
def test_server_optimizers_share_fedavgs_fixed_point(quadratics, name, options, rounds, tolerance):
    """Any server optimizer stands still exactly where the mean change is zero."""
    algorithm = ALGORITHMS[name].build(quadratics.task, LocalSGD(LR), **options)
    trace = quadratics(algorithm, UNEQUAL, rounds)
    assert trace.weights["params"]["w"].item() == pytest.approx(fixed_point(UNEQUAL, [2, 10]), abs=tolerance)


@pytest.mark.parametrize("name", ["fedavgm", "sgd"])
def test_identities_with_fedavg(quadratics, name):
    local = LocalSGD(LR, momentum=0.5)
    same = {
        "fedavgm": lambda: ALGORITHMS["fedavgm"].build(quadratics.task, local, beta=0.0),
        "sgd": lambda: fedavg(quadratics.task, local, sgd(1.0)),
    }[name]()
    paths = [
        quadratics(a, UNEQUAL, rounds=10, cohort=1).evaluations
        for a in (same, fedavg(quadratics.task, local))
    ]
    assert paths[0] == paths[1]


@pytest.mark.parametrize(
    ("name", "options", "mean"),
    [
        ("fedavg", {}, 4.0),
        ("fedavgm", {"lr": 0.5}, 4.0),
        ("fedadam", {"lr": 0.5}, 4.0),
        ("fednova", {}, 4.0),
        ("scaffold", {"lr": 0.5}, 3.0),
        ("feddyn", {}, 3.0),
        ("fedsam", {}, 4.0),
    ],
)
def test_buffers_are_averaged_as_the_models_are_and_never_stepped(name, options, mean):
    """Clients of 1 and 3 samples end at 1 and 5, from 2; where they count alike, 3 is the mean."""
    from genfl.learning.task import Aux, Task
    from genfl.rng import Key

    task = Task(
        init=lambda key: {"params": {"w": torch.zeros(1)}, "buffers": {"mean": torch.tensor([2.0])}},
        loss=lambda params, buffers, batch, key: (params["w"].sum(), Aux({"mean": batch["x"]})),
    )
    algorithm = ALGORITHMS[name].build(task, LocalSGD(LR), **options)
    weights = task.init(Key(0))
    state = algorithm.init(weights, {"clients": torch.tensor(2.0)}, Key(0))
    uploads = []
    for value, samples in ((1.0, 1.0), (5.0, 3.0)):
        client_info = {"samples": torch.tensor(samples)}
        carry = algorithm.client.start(algorithm.send(state), algorithm.memory(weights), client_info, Key(0))
        carry = algorithm.client.step(carry, {"x": torch.tensor([value])}, Key(0))
        uploads.append(algorithm.client.finish(carry)[0])
    after = algorithm.server(state, trees.add(*uploads), Key(0))
    assert after["weights"]["buffers"]["mean"].item() == mean
