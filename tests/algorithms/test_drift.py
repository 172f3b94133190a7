"""Methods against client drift, at their known optima."""

import numpy as np
import pytest
import torch
from support.parameters import mostly_slow

from genfl.algorithms import ALGORITHMS
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.feddyn import feddyn
from genfl.algorithms.fednova import fednova
from genfl.algorithms.scaffold import scaffold
from genfl.learning.local import Context, LocalHook, LocalSGD, Memory
from genfl.learning.task import classification
from genfl.models import Stack
from genfl.rng import Key
from genfl.simulation import cohort as drawn

fedprox, fedsam = ALGORITHMS["fedprox"].build, ALGORITHMS["fedsam"].build
LR = 0.05
EQUAL = [(1.0, -1.0, 10), (3.0, 2.0, 10)]
UNEQUAL = [(1.0, -1.0, 2), (3.0, 2.0, 10)]
TEN = [(0.5 + 0.3 * k, (-1.0) ** k * k, 1 + k) for k in range(10)]
SETTINGS = [(EQUAL, None), (UNEQUAL, None), (TEN, None), (TEN, 4)]


def minimiser(clients):
    """Where the mean of the clients' objectives is smallest: Σ a b / Σ a."""
    return sum(a * b for a, b, _ in clients) / sum(a for a, _, _ in clients)


@pytest.mark.slow
@pytest.mark.parametrize(("momentum", "option"), [(0.0, "I"), (0.0, "II"), (0.7, "II")])
@pytest.mark.parametrize(("clients", "cohort"), SETTINGS)
def test_scaffold_converges_to_the_minimiser_of_the_mean_objective(
    quadratics, clients, cohort, momentum, option
):
    """Also with unequal steps, with part of the clients in each round, and with local momentum."""
    rounds = 60 if cohort is None else 70
    local = LocalSGD(LR * (1 - momentum), momentum)
    trace = quadratics(scaffold(quadratics.task, local, option=option), clients, rounds, cohort)
    tolerance = 1e-8 if cohort is None else 1e-4
    assert trace.weights["params"]["w"].item() == pytest.approx(minimiser(clients), abs=tolerance)


def test_the_minimiser_of_the_example_is_the_known_one():
    assert minimiser(EQUAL) == 1.25


def test_scaffolds_first_round_is_fedavgs(quadratics):
    """From zero control variates, and with equal numbers of samples."""
    first = [
        quadratics(build(quadratics.task, LocalSGD(LR)), EQUAL, rounds=1).weights["params"]["w"].item()
        for build in (scaffold, fedavg)
    ]
    assert first[0] == pytest.approx(first[1], abs=1e-15)


def test_scaffold_on_identical_clients_is_fedavg(quadratics):
    paths = [
        [
            e["w"]
            for e in quadratics(build(quadratics.task, LocalSGD(LR)), [(2.0, 3.0, 4)] * 3, 10).evaluations
        ]
        for build in (scaffold, fedavg)
    ]
    assert paths[0] == pytest.approx(paths[1], abs=1e-12)


def test_scaffolds_control_variate_is_the_mean_gradient_of_the_round(quadratics):
    """Option II from zero controls: c_k = (x − y_k)/(K lr), the average of the K local gradients."""
    from genfl import trees

    a, b, steps = 3.0, 2.0, 4
    algorithm = scaffold(quadratics.task, LocalSGD(LR))
    weights = {"params": {"w": torch.tensor([0.5])}, "buffers": {}}
    state = algorithm.init(weights, {"clients": torch.tensor(2.0)}, Key(0))
    carry = algorithm.client.start(algorithm.send(state), algorithm.memory(weights), {}, Key(0))
    gradients = []
    for _ in range(steps):
        gradients.append(a * (carry["local"]["params"]["w"].item() - b))
        carry = algorithm.client.step(carry, {"x": torch.tensor([[a, b]])}, Key(0))
    upload, memory = algorithm.client.finish(carry)
    assert memory["method"]["w"].item() == pytest.approx(sum(gradients) / steps)
    after = algorithm.server(state, trees.map(torch.clone, upload), Key(0))
    assert after["control"]["w"].item() == pytest.approx(sum(gradients) / steps / 2), "1/N, not 1/|S|"


def test_scaffolds_option_one_takes_the_gradient_at_the_global_model(quadratics):
    """Whatever happens on the way: momentum, unequal steps, and weight decay, which belongs to it."""
    a, b, x = 3.0, 2.0, 0.5
    algorithm = scaffold(quadratics.task, LocalSGD(LR, 0.9, weight_decay=0.1), option="I")
    weights = {"params": {"w": torch.tensor([x])}, "buffers": {}}
    state = algorithm.init(weights, {"clients": torch.tensor(2.0)}, Key(0))
    carry = algorithm.client.start(algorithm.send(state), algorithm.memory(weights), {}, Key(0))
    for step in range(4):
        carry = algorithm.client.step(carry, {"x": torch.tensor([[a, b]])}, Key(step))
    _, memory = algorithm.client.finish(carry)
    assert memory["method"]["w"].item() == pytest.approx(a * (x - b) + 0.1 * x)


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "cohort"), SETTINGS)
def test_feddyn_converges_to_the_minimiser_of_the_mean_objective(quadratics, clients, cohort):
    """Also with unequal steps, and with part of the clients in each round."""
    algorithm = feddyn(quadratics.task, LocalSGD(LR), alpha=3.0)
    trace = quadratics(algorithm, clients, 110, cohort)
    tolerance = 1e-8 if cohort is None else 2e-3
    assert trace.weights["params"]["w"].item() == pytest.approx(minimiser(clients), abs=tolerance)


def descend(w, clients, k, shift):
    """A client's local steps on ½ a (w − b)² with something added to every gradient."""
    a, b, steps = clients[k]
    for _ in range(steps):
        w = w - LR * (a * (w - b) + shift(w))
    return w


def test_feddyn_follows_its_algorithm_round_by_round(quadratics):
    """Not only to its fixed point, which a client's linear term reaches at any scale."""
    alpha, rounds = 0.7, 12
    x, h, g = 0.0, 0.0, [0.0] * len(TEN)
    path = [x]
    for number in range(1, rounds + 1):
        chosen = drawn(len(TEN), 4, Key(0).fold("cohort", number))
        ended = {k: descend(x, TEN, k, lambda w, k=k, x=x: alpha * (w - x) - g[k]) for k in chosen}
        for k, y in ended.items():
            g[k] -= alpha * (y - x)
        h -= alpha * sum(y - x for y in ended.values()) / len(TEN)
        x = np.mean(list(ended.values())) - h / alpha
        path.append(x)
    trace = quadratics(feddyn(quadratics.task, LocalSGD(LR), alpha=alpha), TEN, rounds, 4)
    assert [e["w"] for e in trace.evaluations] == pytest.approx(path, abs=1e-10)


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_follows_its_algorithm_round_by_round(quadratics, option):
    server_lr, rounds = 0.6, 12
    x, c, own = 0.0, 0.0, [0.0] * len(TEN)
    path = [x]
    for number in range(1, rounds + 1):
        chosen = drawn(len(TEN), 4, Key(0).fold("cohort", number))
        ended = {k: descend(x, TEN, k, lambda w, k=k, c=c: c - own[k]) for k in chosen}
        before = list(own)
        for k, y in ended.items():
            a, b, steps = TEN[k]
            own[k] = a * (x - b) if option == "I" else own[k] - c + (x - y) / (steps * LR)
        x += server_lr * np.mean([y - x for y in ended.values()])
        c += sum(own[k] - before[k] for k in chosen) / len(TEN)
        path.append(x)
    algorithm = scaffold(quadratics.task, LocalSGD(LR), option=option, lr=server_lr)
    trace = quadratics(algorithm, TEN, rounds, 4)
    assert [e["w"] for e in trace.evaluations] == pytest.approx(path, abs=1e-10)


def test_feddyns_first_round_is_fedprox_plus_an_extrapolation(quadratics):
    """From zero state h becomes −α mean(y − x), so that the mean model moves twice as far."""
    alpha = 0.7
    dyn = quadratics(feddyn(quadratics.task, LocalSGD(LR), alpha=alpha), EQUAL, rounds=1)
    prox = quadratics(fedprox(quadratics.task, LocalSGD(LR), mu=alpha), EQUAL, rounds=1)
    assert dyn.evaluations[1]["w"] == pytest.approx(2 * prox.evaluations[1]["w"], abs=1e-14)


def weighted_minimiser(clients):
    """Where the mean over samples is smallest, a client having one sample a step."""
    weights = [steps * a for a, _, steps in clients]
    return sum(w * b for w, (_, b, _) in zip(weights, clients, strict=True)) / sum(weights)


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fednova_nears_the_minimiser_as_the_learning_rate_falls_and_fedavg_does_not(quadratics, momentum):
    errors = {}
    for lr in (2e-2, 5e-3):
        for build in (fednova, fedavg):
            algorithm = build(quadratics.task, LocalSGD(lr, momentum))
            trace = quadratics(algorithm, UNEQUAL, rounds=int(1 / lr), evaluate_every=10**9)
            errors[build, lr] = abs(trace.weights["params"]["w"].item() - weighted_minimiser(UNEQUAL))
    assert errors[fednova, 5e-3] < 0.35 * errors[fednova, 2e-2]
    assert errors[fednova, 5e-3] < 0.2 * errors[fedavg, 5e-3]


def test_fednova_equals_the_papers_equation_in_numpy(quadratics):
    """One round: x + τ Σ p_k (y_k − x)/‖a_k‖₁, with the weights a_k of the gradients written out."""
    rho = 0.8
    trace = quadratics(fednova(quadratics.task, LocalSGD(LR, rho)), UNEQUAL, rounds=1)
    norms, changes = [], []
    for a, b, steps in UNEQUAL:
        w = v = 0.0
        for _ in range(steps):
            v = rho * v + a * (w - b)
            w -= LR * v
        changes.append(w)
        # The gradient of step s is added in every later step, ρ times weaker each time.
        norms.append(sum(rho**later for s in range(steps) for later in range(steps - s)))
    p = np.array([2, 10]) / 12
    expected = (p @ norms) * (p @ (np.array(changes) / norms))
    assert trace.evaluations[1]["w"] == pytest.approx(expected, rel=1e-12)


def test_fednova_with_equal_steps_is_fedavg(quadratics):
    paths = [
        [e["w"] for e in quadratics(build(quadratics.task, LocalSGD(LR, 0.5)), EQUAL, 10).evaluations]
        for build in (fednova, fedavg)
    ]
    assert paths[0] == pytest.approx(paths[1], abs=1e-12)


def test_fedsam_descends_along_the_gradient_ahead(quadratics):
    """On ½ a (w − b)² the gradient at w + ρ sign(w − b) is a (w − b) + a ρ sign(w − b)."""
    rho = 0.3
    trace = quadratics(fedsam(quadratics.task, LocalSGD(LR), rho=rho), UNEQUAL, rounds=1)
    ends = []
    for a, b, steps in UNEQUAL:
        w = 0.0
        for _ in range(steps):
            w -= LR * a * (w - b + rho * np.sign(w - b))
        ends.append(w)
    assert trace.evaluations[1]["w"] == pytest.approx(np.average(ends, weights=[2, 10]), rel=1e-9)


def test_fedsam_stays_where_the_slope_is_zero(quadratics):
    trace = quadratics(fedsam(quadratics.task, LocalSGD(LR), rho=0.3), [(2.0, 0.0, 3)] * 2, rounds=2)
    assert trace.weights["params"]["w"].item() == 0.0


def test_fedsam_keeps_the_statistics_of_the_model_itself():
    """Batch norm's statistics are those of the first pass, at w, not those at the point ahead."""
    body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    task = classification(lambda: Stack(body, torch.nn.Linear(8, 3)), (4,))
    weights = task.init(Key(0))
    batch = {"x": torch.randn(6, 4, generator=Key(1).torch()), "y": torch.arange(6) % 3}
    plain, ahead = LocalSGD(LR), LocalSGD(LR).with_hook(ALGORITHMS["fedsam"].make(rho=5.0))
    given = Context(task, {"weights": weights}, {}, {}, Key(2))
    states = [local.step(local.start(weights), batch, given) for local in (plain, ahead)]
    for name, value in states[0]["buffers"].items():
        assert torch.equal(states[1]["buffers"][name], value)
        assert not torch.equal(weights["buffers"][name], value)
    assert not torch.equal(states[0]["params"]["classifier.weight"], states[1]["params"]["classifier.weight"])


def test_fedsam_without_radius_is_fedavg(quadratics):
    paths = [
        quadratics(algorithm, UNEQUAL, 10, 1).evaluations
        for algorithm in (
            fedsam(quadratics.task, LocalSGD(LR), rho=0.0),
            fedavg(quadratics.task, LocalSGD(LR)),
        )
    ]
    assert paths[0] == paths[1]


def fedprox_fixed_point(clients, mu):
    """A client contracts towards b by 1 − lr(a+μ) a step, with the pull of x added: a linear map of x."""
    total = pull = 0.0
    for a, b, steps in clients:
        rate = 1 - LR * (a + mu)
        share = (1 - rate**steps) * a / (a + mu)  # y = x + share (b − x)
        total += steps * share
        pull += steps * share * b
    return pull / total


@pytest.mark.slow
@pytest.mark.parametrize("mu", mostly_slow([0.0, 0.5, 3.0], 0.5))
@pytest.mark.parametrize("clients", mostly_slow([EQUAL, UNEQUAL], UNEQUAL))
def test_fedprox_converges_to_its_own_fixed_point(quadratics, clients, mu):
    trace = quadratics(fedprox(quadratics.task, LocalSGD(LR), mu=mu), clients)
    assert trace.weights["params"]["w"].item() == pytest.approx(fedprox_fixed_point(clients, mu), abs=1e-9)


def test_fedprox_without_pull_is_fedavg(quadratics):
    paths = [
        quadratics(algorithm, UNEQUAL, 10, 1).evaluations
        for algorithm in (
            fedprox(quadratics.task, LocalSGD(LR), mu=0.0),
            fedavg(quadratics.task, LocalSGD(LR)),
        )
    ]
    assert paths[0] == paths[1]


def test_hooks_compose_and_contradictions_are_refused(quadratics):
    local = LocalSGD(LR).with_hook(LocalHook(lambda *_: 1.0)).with_hook(LocalHook(lambda *_: 2.0))
    assert local.penalty(None, None, None, None) == 3.0
    turn = LocalHook(direction=lambda gradient, params, context: gradient(params), name="turn")
    with pytest.raises(ValueError, match="turn: local training has one direction"):
        local.with_hook(turn).with_hook(turn)
    memory = LocalHook(memory=Memory(lambda weights: {}, lambda state: {}))
    with pytest.raises(ValueError, match="one memory"):
        local.with_hook(memory).with_hook(memory)


@pytest.mark.slow
def test_scaffold_starts_from_fedproxs_local_training_too(quadratics):
    """A penalty is a matter of local training: SCAFFOLD takes it, and ends elsewhere than without."""
    pull = LocalHook(lambda params, aux, batch, context: 0.5 * (params["w"] - 10.0).square().sum())
    trace = quadratics(scaffold(quadratics.task, LocalSGD(LR), pull), EQUAL)
    # Every client's objective gains ½ (w − 10)²: Σ (a b + 10) / Σ (a + 1).
    assert trace.weights["params"]["w"].item() == pytest.approx((5 + 20) / (4 + 2), abs=1e-8)


def test_what_they_cost_is_computed_from_their_values():
    from genfl.algorithms import profile

    assert profile(ALGORITHMS["fedprox"]) == ("sum", True, 1.0, 1.0, 0.0, "")
    assert profile(ALGORITHMS["scaffold"]) == ("sum", True, 2.0, 2.0, 1.0, "")
