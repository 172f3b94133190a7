"""MOON and FedDecorr: penalties and gradients against plain numpy."""

import numpy as np
import pytest
import torch

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.fedavg import fedavg
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.in_process import sequential
from genfl.learning.local import Context, LocalSGD
from genfl.learning.task import MissingPart, Task, classification
from genfl.models import Stack
from genfl.rng import Key
from genfl.simulation import federate

moon, feddecorr = ALGORITHMS["moon"].make, ALGORITHMS["feddecorr"].make
INPUTS, FEATURES, CLASSES, BATCH = 4, 3, 2, 6


def linear_features():
    """Features z = W x + b, so that the gradient with respect to W is that to z, times x."""
    return Stack(torch.nn.Linear(INPUTS, FEATURES), torch.nn.Linear(FEATURES, CLASSES))


@pytest.fixture
def task(float64):
    return classification(linear_features, (INPUTS,))


@pytest.fixture
def batch(float64):
    rng = torch.Generator().manual_seed(0)
    return {"x": torch.randn(BATCH, INPUTS, generator=rng), "y": torch.arange(BATCH) % CLASSES}


def added_slope(hook, task, weights, batch, message=None, memory=None):
    """What a hook adds to the task's gradient with respect to the features' W."""
    context = Context(task, message or {"weights": weights}, memory, {}, Key(0))
    slopes = [
        training.gradient(weights["params"], weights["buffers"], batch, context)[0]
        for training in (LocalSGD(0.1).with_hook(hook), LocalSGD(0.1))
    ]
    return trees.sub(*slopes)["body.weight"].numpy()


def features(weights, batch):
    p = weights["params"]
    return batch["x"].numpy() @ p["body.weight"].numpy().T + p["body.bias"].numpy()


def numeric(penalty, z, step=1e-6):
    """The gradient of a scalar of the features, by central differences."""
    slope = np.zeros_like(z)
    for at in np.ndindex(z.shape):
        ahead, behind = z.copy(), z.copy()
        ahead[at] += step
        behind[at] -= step
        slope[at] = (penalty(ahead) - penalty(behind)) / (2 * step)
    return slope


def moons_equation(z, z_glob, z_prev, mu, tau):
    def cos(a, b):
        return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    near, far = np.exp(cos(z, z_glob) / tau), np.exp(cos(z, z_prev) / tau)
    return mu * np.mean(-np.log(near / (near + far)))


def test_moons_gradient_equals_the_papers_equation(task, batch):
    now, glob, last = (task.init(Key(k)) for k in range(3))
    hook = moon(mu=5.0, temperature=0.5)
    got = added_slope(hook, task, now, batch, {"weights": glob}, last)
    z_glob, z_prev = features(glob, batch), features(last, batch)
    slope = numeric(lambda z: moons_equation(z, z_glob, z_prev, 5.0, 0.5), features(now, batch))
    np.testing.assert_allclose(got, slope.T @ batch["x"].numpy(), atol=1e-8)
    assert np.abs(got).max() > 0.01


def test_moons_penalty_equals_the_papers_equation(task, batch):
    now, glob, last = (task.init(Key(k)) for k in range(3))
    _, aux = task.loss(now["params"], now["buffers"], batch, Key(0))
    context = Context(task, {"weights": glob}, last, {}, Key(0))
    got = moon(mu=2.0, temperature=0.3).penalty(now["params"], aux, batch, context)
    z = [features(weights, batch) for weights in (now, glob, last)]
    assert got.item() == pytest.approx(moons_equation(*z, 2.0, 0.3), rel=1e-10)


def test_moon_remembers_the_model_it_ended_with(task, batch):
    algorithm = ALGORITHMS["moon"].build(task, LocalSGD(0.1))
    weights = task.init(Key(0))
    memory = algorithm.memory(weights)
    assert memory["local"] is weights, "a client that never took part compares with the initial model"
    client_info = {"samples": torch.tensor(6.0)}
    carry = algorithm.client.start({"weights": weights, "announced": {}}, memory, client_info, Key(0))
    carry = algorithm.client.step(carry, batch, Key(0))
    upload, memory = algorithm.client.finish(carry)
    ended = trees.add(weights, trees.scale(1 / 6, upload["delta"]))
    for a, b in zip(trees.leaves(memory["local"]), trees.leaves(ended), strict=True):
        torch.testing.assert_close(a, b)


def decorrs_equation(z, beta):
    correlation = np.corrcoef(z, rowvar=False)
    return beta * (correlation**2).sum() / z.shape[1] ** 2


def test_feddecorrs_penalty_and_gradient_equal_the_papers_equation(task, batch):
    weights = task.init(Key(0))
    _, aux = task.loss(weights["params"], weights["buffers"], batch, Key(0))
    hook = feddecorr(beta=0.7)
    context = Context(task, {}, {}, {}, Key(0))
    z = features(weights, batch)
    got = hook.penalty(weights["params"], aux, batch, context).item()
    assert got == pytest.approx(decorrs_equation(z, 0.7), rel=1e-6)
    slope = numeric(lambda z: decorrs_equation(z, 0.7), z).T @ batch["x"].numpy()
    np.testing.assert_allclose(added_slope(hook, task, weights, batch), slope, atol=1e-6)
    assert np.abs(slope).max() > 0.01


@pytest.mark.parametrize("n", [2, 3, 8])
def test_feddecorr_is_the_same_by_either_gram_matrix(float64, n):
    """Fewer samples than features or more: the norm of the correlation matrix does not care."""
    from genfl.learning.task import Aux

    z = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    got = feddecorr(beta=1.0).penalty({}, Aux({}, z), {}, None).item()
    assert got == pytest.approx(decorrs_equation(z.numpy(), 1.0), rel=1e-6)


def test_feddecorr_survives_constant_features_and_single_samples(float64):
    from genfl.learning.task import Aux

    penalty = feddecorr(beta=1.0).penalty
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    z[:, 1] = 7.0
    varying = decorrs_equation(z[:, [0, 2]].numpy(), 1.0) * 2**2 / 3**2
    z.requires_grad_()
    value = penalty({}, Aux({}, z), {}, None)
    assert value.item() == pytest.approx(varying, rel=1e-6)
    assert torch.autograd.grad(value, z)[0].isfinite().all()
    one = torch.tensor([[1.0, -1.0, 0.0]], requires_grad=True)
    assert torch.autograd.grad(penalty({}, Aux({}, one), {}, None), one)[0].abs().max() == 0


@pytest.fixture
def clients(float64):
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(60, INPUTS, generator=rng), torch.randint(CLASSES, (60,), generator=rng)
    parts = [np.arange(60)[start:end] for start, end in ((0, 5), (5, 20), (20, 60))]
    return ClientData(x, y, parts, CLASSES)


def path(algorithm, task, clients):
    seen = []
    federate(
        algorithm,
        task.init(Key(0)),
        clients,
        sequential(clients),
        Schedule(5, 2, batch_size=4, local_epochs=1),
        Key(1),
        lambda weights: seen.append(torch.cat([leaf.reshape(-1) for leaf in trees.leaves(weights)])) or {},
    )
    return torch.stack(seen)


@pytest.mark.parametrize(("name", "off", "on"), [("moon", {"mu": 0.0}, {}), ("feddecorr", {"beta": 0.0}, {})])
def test_without_their_term_they_are_fedavg_and_with_it_they_are_not(task, clients, name, off, on):
    plain = path(fedavg(task, LocalSGD(0.1)), task, clients)
    build = ALGORITHMS[name].build
    torch.testing.assert_close(path(build(task, LocalSGD(0.1), **off), task, clients), plain)
    assert (path(build(task, LocalSGD(0.1), **on), task, clients) - plain).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["moon", "feddecorr"])
def test_a_model_without_features_is_said_to_lack_them(batch, name):
    from genfl.learning.task import Aux

    task = Task(
        init=lambda key: {"params": {"w": torch.zeros(1)}, "buffers": {}},
        loss=lambda params, buffers, batch, key: (params["w"].sum(), Aux(buffers)),
    )
    weights = task.init(Key(0))
    local = LocalSGD(0.1).with_hook(ALGORITHMS[name].make())
    with pytest.raises(MissingPart, match="features"):
        local.gradient(weights["params"], {}, batch, Context(task, {"weights": weights}, weights, {}, Key(0)))
