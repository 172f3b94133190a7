"""DynaFed: trajectory matching in numpy and by finite differences, and what the server makes of it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genfl import trees
from genfl.algorithms import ALGORITHMS, profile
from genfl.algorithms.dynafed import dynafed
from genfl.algorithms.fedavg import fedavg
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.in_process import sequential
from genfl.learning.local import LocalSGD
from genfl.learning.task import Aux, Task, classification
from genfl.learning.trajectory import matching_loss, synthesise, train
from genfl.models import Stack
from genfl.rng import Key
from genfl.simulation import federate

D, C, L = 4, 3, 4
SMALL = {"trajectory": L, "span": 2, "inner_steps": 3, "per_class": 2, "synthesis_steps": 5}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear():
    return classification(lambda: Stack(nn.Identity(), nn.Linear(D, C)), (D,))


def hard(activation=nn.ReLU):
    """Has everything that a forward pass in the wrong mode would get wrong."""
    body = [nn.Linear(D, 6), nn.BatchNorm1d(6), activation(), nn.Dropout(0.3)]
    return classification(lambda: Stack(nn.Sequential(*body), nn.Linear(6, C)), (D,))


def data(m=5):
    return {"x": draw(m, D, seed=1), "y": draw(m, C, seed=2), "log_lr": torch.tensor(-1.3)}


def stack(points):
    return trees.map(lambda *leaves: torch.stack(leaves), *points)


def path(task, points):
    """Returns weights along plain gradient descent on some data, and those weights stacked."""
    batch = {"x": draw(60, D, seed=5), "y": draw(60, C, seed=6).argmax(1)}
    w = [task.init(Key(1))]
    for _ in range(points - 1):
        grads = torch.func.grad(lambda p: task.loss(p, w[-1]["buffers"], batch, Key(0))[0])(w[-1]["params"])
        w.append({**w[-1], "params": trees.map(lambda p, g: p - 0.5 * g, w[-1]["params"], grads)})
    return w, stack(w)


def equal(a, b):
    return trees.mismatch(a, b) is None and all(map(torch.equal, trees.leaves(a), trees.leaves(b)))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Trajectory matching


def affine(params):
    return np.concatenate(
        [params["classifier.weight"].detach(), params["classifier.bias"].detach()[:, None]], 1
    )


def test_training_and_the_matching_loss_equal_numpy(float64):
    """Softmax regression: ∇_W = (softmax(W x) − softmax(y)) xᵀ, averaged over the data."""
    task, d, steps = linear(), data(), 4
    start, target = task.init(Key(0)), task.init(Key(1))
    x, y = np.concatenate([d["x"], np.ones((5, 1))], 1), softmax(d["y"].numpy())
    w0, goal = affine(start["params"]), affine(target["params"])
    w = w0
    for _ in range(steps):
        w = w - np.exp(-1.3) * (softmax(x @ w.T) - y).T @ x / len(x)
    assert affine(train(task, start, d, steps=steps, key=Key(0))) == pytest.approx(w, abs=1e-14)
    loss = matching_loss(task, start, target, d, steps=steps, key=Key(0))
    assert loss.item() == pytest.approx(((w - goal) ** 2).sum() / ((w0 - goal) ** 2).sum(), rel=1e-12)


def test_without_a_step_nothing_is_matched():
    task = hard()
    ends = task.init(Key(0)), task.init(Key(1))
    assert matching_loss(task, *ends, data(), steps=0, key=Key(0)).item() == 1.0


def test_the_matching_losss_gradient_equals_finite_differences(float64):
    """Through batch norm in training and dropout, whose draws are the key's."""
    task, d = hard(nn.Tanh), data()
    ends = task.init(Key(0)), task.init(Key(1))

    def loss(x, y, log_lr):
        return matching_loss(task, *ends, {"x": x, "y": y, "log_lr": log_lr}, steps=3, key=Key(0))

    assert torch.autograd.gradcheck(loss, [leaf.requires_grad_() for leaf in d.values()], atol=1e-8)


def test_training_takes_the_starts_buffers_and_updates_them(float64):
    """The loss reads a buffer that doubles each step: lr Σ_s b 2^s is taken off, whatever the data."""
    task = Task(
        init=lambda key: {"params": {"w": torch.zeros(1)}, "buffers": {"b": torch.tensor(3.0)}},
        loss=lambda params, buffers, batch, key: (
            (buffers["b"] * params["w"]).sum(),
            Aux(trees.scale(2, buffers)),
        ),
    )
    end = train(task, task.init(Key(0)), data(), steps=3, key=Key(0))
    assert end["w"].item() == pytest.approx(-np.exp(-1.3) * 3 * (1 + 2 + 4))


def watched(task):
    """Returns the task, and the list of the keys of all its losses to come."""
    keys = []

    def loss(params, buffers, batch, key):
        keys.append(key)
        return task.loss(params, buffers, batch, key)

    return task._replace(loss=loss), keys


def test_each_step_of_training_has_its_own_random_stream():
    task, keys = watched(linear())
    train(task, task.init(Key(0)), data(), steps=4, key=Key(0))
    assert len(set(keys)) == 4


def options(**changes):
    return {"span": 2, "steps": 3, "iterations": 30, "lr": 0.1, "key": Key(0)} | changes


def test_synthesis_reports_the_mean_over_all_starts_before_and_after(float64):
    task, d = linear(), data()
    points, stacked = path(task, 5)
    after, matching = synthesise(task, stacked, d, **options())
    for which, reported in zip((d, after), matching, strict=True):
        losses = [matching_loss(task, points[t], points[t + 2], which, steps=3, key=Key(0)) for t in range(3)]
        assert reported.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-12)
    assert matching[1] < matching[0] / 2


def test_an_iteration_is_adams_on_one_start_and_every_start_occurs(float64):
    """Adam's first step is lr g/|g|, so that it tells at which start the gradient was taken."""
    task, d = linear(), data()
    points, stacked = path(task, 5)
    steps = []
    for t in range(3):
        leaf = trees.map(lambda p: p.clone().requires_grad_(), d)
        matching_loss(task, points[t], points[t + 2], leaf, steps=3, key=Key(0)).backward()
        steps.append(trees.map(lambda p: p.detach() - 0.1 * p.grad / (p.grad.abs() + 1e-8), leaf))
    seen = set()
    for seed in range(30):
        after, _ = synthesise(task, stacked, d, **options(iterations=1, key=Key(seed)))
        close = [all(map(torch.allclose, trees.leaves(after), trees.leaves(s))) for s in steps]
        assert sum(close) == 1
        seen.add(close.index(True))
    assert seen == {0, 1, 2}


def test_each_training_of_a_synthesis_has_its_own_random_stream():
    """But the two measurements, which share theirs: the draws are no part of the difference."""
    task, keys = watched(linear())
    synthesise(task, path(linear(), 5)[1], data(), **options(iterations=4))
    before, between, after = keys[:9], keys[9:-9], keys[-9:]
    assert before == after
    assert len(set(before + between)) == (3 + 4) * 3


def test_synthesis_is_adam_on_gradients_of_unit_norm_with_a_cosine_schedule(float64):
    task, d = linear(), data()
    points, stacked = path(task, 3)
    after, _ = synthesise(task, stacked, d, **options(iterations=6))
    m = v = [0.0] * 3
    for i in range(6):
        leaf = trees.map(lambda p: p.detach().requires_grad_(), d)
        matching_loss(task, points[0], points[2], leaf, steps=3, key=Key(0)).backward()
        g = [p.grad / p.grad.norm() for p in leaf.values()]
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b**2 for a, b in zip(v, g, strict=True)]
        rate = 0.1 * (1 + np.cos(np.pi * i / 6)) / 2
        moves = [
            a / (1 - 0.9 ** (i + 1)) / (b / (1 - 0.999 ** (i + 1))).sqrt() for a, b in zip(m, v, strict=True)
        ]
        d = {name: p - rate * move for (name, p), move in zip(d.items(), moves, strict=True)}
    assert all(torch.allclose(after[name], d[name], atol=1e-6) for name in d)


@pytest.mark.slow
def test_softmax_regression_learns_the_end_of_a_path_from_synthetic_data(float64):
    task = linear()
    points, stacked = path(task, 9)
    d, matching = synthesise(task, stacked, data(9), **options(span=8, steps=5, iterations=300, lr=0.03))
    assert matching[1] < 1e-10 * matching[0]
    x = draw(200, D, seed=7)
    student = {**points[0], "params": train(task, points[0], d, steps=5, key=Key(0))}
    for weights, enough in ((student, True), (points[0], False)):
        log_q = task.predict(weights, x).log_softmax(1)
        kl = F.kl_div(
            log_q, task.predict(points[-1], x).log_softmax(1), reduction="batchmean", log_target=True
        )
        assert (kl < 1e-8) == enough, kl


# DynaFed


@pytest.fixture(scope="module")
def clients():
    y = torch.randint(C, (60,), generator=torch.Generator().manual_seed(1))
    return ClientData(draw(60, D) + F.one_hot(y, D), y, [np.arange(60)[k::6] for k in range(6)], C)


def run(algorithm, task, clients, rounds=L + 2, **kwargs):
    """Returns the trace, and the server's states, the first of which is the initial one."""
    states = []

    def init(weights, census, key):
        states.append(algorithm.init(weights, census, key))
        return states[-1]

    def server(state, aggregate, key):
        states.append(algorithm.server(state, aggregate, key))
        return states[-1]

    trace = federate(
        algorithm._replace(init=init, server=server),
        task.init(Key(1)),
        clients,
        sequential(clients),
        Schedule(rounds, 3, 4, local_steps=3),
        Key(3),
        lambda weights: {"norm": trees.square_norm(weights).item()},
        **kwargs,
    )
    return trace, states


def test_without_refining_it_is_fedavg(clients):
    task = hard()
    plain, _ = run(fedavg(task, LocalSGD(0.1)), task, clients)
    method, _ = run(dynafed(task, LocalSGD(0.1), refine_steps=0, **SMALL), task, clients)
    assert method.rounds == plain.rounds, "the bytes are FedAvg's"
    assert method.evaluations == plain.evaluations
    assert equal(method.weights, plain.weights)


def test_refining_starts_in_the_round_in_which_the_trajectory_ends(clients):
    task = hard()
    plain, _ = run(fedavg(task, LocalSGD(0.1)), task, clients)
    method, _ = run(dynafed(task, LocalSGD(0.1), **SMALL), task, clients)
    same = [a == b for a, b in zip(method.evaluations, plain.evaluations, strict=True)]
    assert same == [True] * L + [False] * 3


@pytest.mark.slow
def test_it_synthesises_once_from_the_first_global_models(clients):
    task = hard()
    _, plain = run(fedavg(task, LocalSGD(0.1)), task, clients)
    _, states = run(dynafed(task, LocalSGD(0.1), **SMALL), task, clients)
    assert equal(states[L]["trajectory"], stack([state["weights"] for state in plain[: L + 1]]))
    for before, after in pairwise(states):
        changed = after["round"] == L
        assert equal(before["data"], after["data"]) != changed
        assert equal(before["matching"], after["matching"]) != changed
        assert trees.mismatch(before, after) is None, "the state keeps its form"
    assert equal(states[L]["trajectory"], states[-1]["trajectory"])


def test_the_data_starts_as_noise_with_labels_of_all_classes(float64):
    algorithm = dynafed(linear(), LocalSGD(0.1), per_class=400, inner_lr=0.2)
    first, second = (algorithm.init(linear().init(Key(0)), {}, Key(seed))["data"] for seed in (0, 1))
    assert first["x"].shape == (400 * C, D)
    assert first["x"].std().item() == pytest.approx(1, abs=0.05)
    assert first["x"].mean().item() == pytest.approx(0, abs=0.05)
    assert not torch.equal(first["x"], second["x"])
    assert first["y"].argmax(1).bincount().tolist() == [400] * C
    assert first["y"].softmax(1).max(1).values.tolist() == pytest.approx(
        [np.e**3 / (np.e**3 + C - 1)] * 400 * C
    )
    assert first["log_lr"].exp().item() == pytest.approx(0.2)


def test_every_rounds_mean_is_refined_by_adam_on_the_synthetic_data(clients):
    """The first step of Adam moves every parameter by lr g/|g|."""
    task = linear()
    algorithm = dynafed(task, LocalSGD(0.1), refine_lr=0.02, refine_steps=1, **SMALL)
    means = []

    def server(state, aggregate, key):
        means.append(fedavg(task, LocalSGD(0.1)).server(state, aggregate, key)["weights"]["params"])
        return algorithm.server(state, aggregate, key)

    _, states = run(algorithm._replace(server=server), task, clients)
    for mean, state in zip(means[L - 1 :], states[L:], strict=True):
        w, d = affine(mean), trees.map(torch.Tensor.double, state["data"])
        x = np.concatenate([d["x"], np.ones((len(d["x"]), 1))], 1)
        g = (softmax(x @ w.T) - softmax(d["y"].numpy())).T @ x / len(x)
        expected = w - 0.02 * g / (abs(g) + 1e-8)
        assert affine(state["weights"]["params"]) == pytest.approx(expected, abs=1e-5)


def test_the_server_trains_as_often_as_told_with_draws_below_its_rounds_key(clients):
    task, keys = watched(linear())
    algorithm = dynafed(task, LocalSGD(0.1), refine_steps=7, **SMALL)
    rounds = []

    def server(state, aggregate, key):
        keys.clear()
        after = algorithm.server(state, aggregate, key)
        assert all(k.seed == key.seed and k.path[: len(key.path)] == key.path for k in keys)
        rounds.append((len(keys), len(set(keys))))
        return after

    run(algorithm._replace(server=server), task, clients)
    starts, iterations, steps = 3, 5, 3
    synthesis = iterations * steps + 7
    first = (2 * starts * steps + synthesis, starts * steps + synthesis)
    assert rounds == [(0, 0)] * (L - 1) + [first, (7, 7), (7, 7)]


def test_batch_norms_statistics_stay_the_clients(clients):
    task = hard()
    (_, off), (_, on) = (
        run(dynafed(task, LocalSGD(0.1), refine_steps=steps, **SMALL), task, clients, L) for steps in (0, 5)
    )
    assert equal(on[L]["weights"]["buffers"], off[L]["weights"]["buffers"])
    assert not equal(on[L]["weights"]["params"], off[L]["weights"]["params"])


@pytest.mark.slow
def test_the_matching_loss_falls_by_a_lot_where_it_can(clients):
    task = linear()
    algorithm = dynafed(
        task, LocalSGD(0.1), trajectory=L, span=L, inner_lr=0.5, synthesis_steps=300, synthesis_lr=0.03
    )
    _, states = run(algorithm, task, clients, L)
    before, after = states[L]["matching"]
    assert after < 0.02 * before


class Interrupted(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("after", [L - 1, L, L + 1])
def test_a_run_killed_around_the_synthesis_ends_bit_identical(clients, tmp_path, after):
    task = hard()
    algorithm = dynafed(task, LocalSGD(0.1, momentum=0.9), **SMALL)
    whole, states = run(algorithm, task, clients)
    rounds = []

    def interrupt(count):
        rounds.append(count)
        if sum(rounds) == after:
            raise Interrupted

    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Interrupted):
        run(algorithm, task, clients, checkpoint=file, on_round=interrupt)
    resumed, rest = run(algorithm, task, clients, checkpoint=file)
    assert len(rest) == L + 2 - after
    assert resumed.evaluations == whole.evaluations
    assert equal(rest[-1], states[-1])


def test_a_span_longer_than_the_trajectory_is_refused():
    with pytest.raises(ValueError, match="span 5"):
        dynafed(linear(), LocalSGD(0.1), trajectory=4, span=5)


def test_it_costs_what_fedavg_costs():
    assert profile(ALGORITHMS["dynafed"]) == ("sum", True, 1.0, 1.0, 0.0, "")


def test_a_trajectory_that_leaves_no_round_to_refine_is_refused():
    with pytest.raises(ValueError, match="would be FedAvg"):
        ALGORITHMS["dynafed"].build(linear(), LocalSGD(0.1), {"rounds": L}, **SMALL)
    assert ALGORITHMS["dynafed"].build(linear(), LocalSGD(0.1), {"rounds": L + 1}, **SMALL)


def test_a_path_that_stands_still_gives_a_finite_loss():
    """As when no upload counted in a whole stretch of rounds."""
    weights = linear().init(Key(0))
    loss = matching_loss(linear(), weights, weights, data(), steps=2, key=Key(0))
    assert torch.isfinite(loss)
