"""Attacks that reconstruct examples from gradients and uploads, on real digits."""

import functools
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.parameters import mostly_slow
from torch import nn

from genfl import trees
from genfl.algorithms import fedavg, fedprox
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.data.sources import digits
from genfl.engines.in_process import sequential
from genfl.errors import InputError
from genfl.learning.inspect import MissingPart
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN, LSTM
from genfl.privacy.attacks.leakage import (
    batch_gradient,
    dlg,
    idlg,
    invert_gradients,
    label_of_gradient,
    local_update,
)
from genfl.privacy.attacks.resemblance import matched, psnr
from genfl.rng import Key
from genfl.simulation import federate

SHAPE = (1, 8, 8)
BOX = ((0.0,), (1.0,))


def sigmoid_lenet():
    """The paper's kind of model: convolutions with sigmoids, weights in [−0.5, 0.5]."""
    body = [nn.Conv2d(1, 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 1, 2), nn.Sigmoid(), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(192, 10))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model


@pytest.fixture(scope="module")
def real():
    """Real digits and their class indices."""
    data = digits().train
    names = sorted(set(data.labels))
    return data.x, torch.tensor([names.index(label) for label in data.labels])


@pytest.fixture(scope="module")
def smooth():
    task = classification(sigmoid_lenet, SHAPE, input_range=BOX)
    return task, task.init(Key(0))


@pytest.fixture(scope="module")
def group_norm_cnn():
    """The model of the digits' runs: ReLU, max-pooling and group norm."""
    task = classification(lambda: CNN(SHAPE, 10), SHAPE, input_range=BOX)
    return task, task.init(Key(0))


@pytest.mark.slow
@pytest.mark.parametrize("row", mostly_slow([0, 1, 2], 0))
def test_dlg_recovers_a_digit_and_its_label(smooth, real, row):
    task, weights = smooth
    x, y = real[0][row : row + 1], real[1][row : row + 1]
    client = batch_gradient(task, weights)
    result = dlg(task, client, client(x, y), Key(row))
    assert psnr(result.x[0], x[0]) >= 25
    assert result.y.argmax(1).tolist() == y.tolist()
    assert result.y.max() > 0.9
    assert float(result.y.sum()) == pytest.approx(1)  # probabilities


@pytest.mark.slow
def test_dlg_recovers_both_digits_of_a_batch(smooth, real):
    task, weights = smooth
    client = batch_gradient(task, weights)
    result = dlg(task, client, client(real[0][:2], real[1][:2]), Key(0), examples=2, restarts=2)
    order = matched(result.x, real[0][:2])
    assert min(map(psnr, order, real[0][:2])) >= 25


def test_idlg_recovers_a_digit(smooth, real):
    task, weights = smooth
    client = batch_gradient(task, weights)
    result = idlg(task, client, client(real[0][:1], real[1][:1]), Key(0))
    assert psnr(result.x[0], real[0][0]) >= 25
    assert result.y.tolist() == real[1][:1].tolist()


@pytest.mark.slow
def test_inverting_gradients_recovers_a_digit_from_a_model_of_a_run(group_norm_cnn, real):
    task, weights = group_norm_cnn
    x, y = real[0][:1], real[1][:1]
    client = batch_gradient(task, weights)
    result = invert_gradients(task, client, client(x, y), y, Key(0), steps=150)
    assert psnr(result.x[0], x[0]) >= 25
    assert result.x.min() >= 0
    assert result.x.max() <= 1


def test_attacks_learn_nothing_from_an_upload_of_other_examples(smooth, real):
    task, weights = smooth
    client = batch_gradient(task, weights)
    unrelated = client(real[0][5:6], real[1][:1])
    assert psnr(idlg(task, client, unrelated, Key(0), steps=100).x[0], real[0][0]) < 15


@pytest.mark.slow
def test_attacks_are_deterministic_by_key(smooth, real):
    task, weights = smooth
    client = batch_gradient(task, weights)
    observed, y = client(real[0][:1], real[1][:1]), real[1][:1]
    for attack in (
        functools.partial(dlg, steps=5),
        functools.partial(idlg, steps=5),
        lambda *args: invert_gradients(*args[:3], y, args[3], steps=5),
    ):
        first, again, other = (attack(task, client, observed, Key(seed)) for seed in (0, 0, 1))
        assert torch.equal(first.x, again.x)
        assert first.loss == again.loss
        assert not torch.equal(first.x, other.x)


@pytest.mark.slow
def test_restarts_keep_the_least_loss(smooth, real):
    task, weights = smooth
    client = batch_gradient(task, weights)
    observed = client(real[0][:1], real[1][:1])
    single = dlg(task, client, observed, Key(8), steps=4)
    several = [dlg(task, client, observed, Key(8), steps=4, restarts=n) for n in range(1, 6)]
    losses = [result.loss for result in several]
    assert torch.equal(several[0].x, single.x)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_batch_gradient_is_that_of_autograd(float64):
    task = classification(lambda: CNN(SHAPE, 10, width=4), SHAPE)
    weights = task.init(Key(1))
    x, y = torch.rand(3, *SHAPE, generator=Key(0).torch()), torch.tensor([1, 5, 5])
    module = task.module(weights).train()
    F.cross_entropy(module(x), y).backward()
    gradient = batch_gradient(task, weights)(x, y)
    for name, parameter in module.named_parameters():
        assert torch.allclose(gradient[name], parameter.grad, atol=1e-12)


def test_gradients_reach_inputs_through_local_steps(float64):
    task = classification(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), (1, 2, 2)
    )
    weights = task.init(Key(1))
    local = LocalSGD(lr=0.5, momentum=0.9, weight_decay=0.1)
    client = local_update(
        task, local, weights, [torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([0])]
    )
    x = torch.rand(3, 1, 2, 2, generator=Key(0).torch()).requires_grad_()
    soft = torch.rand(3, 2, generator=Key(1).torch()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: tuple(trees.leaves(client(x, y))), (x, soft))


@pytest.mark.parametrize("hook", [None, fedprox(mu=0.3)])
def test_local_update_is_what_a_client_sends(float64, real, hook):
    x, y = real[0][:12].double(), real[1][:12]
    task = classification(lambda: CNN(SHAPE, 10, width=4), SHAPE)
    weights, local = task.init(Key(0)), LocalSGD(lr=0.1, momentum=0.5)
    local = local.with_hook(hook) if hook else local
    clients, algorithm = ClientData(x, y, [torch.arange(12).numpy()], 10), fedavg(task, local)
    drawn = []

    def step(carry, batch, key):
        drawn.append(batch["x"])
        return algorithm.client.step(carry, batch, key)

    watched = algorithm._replace(client=algorithm.client._replace(step=step))
    schedule = Schedule(1, 1, batch_size=4, local_epochs=2)
    trace = federate(watched, weights, clients, sequential(clients), schedule, Key(0), lambda weights: {})
    rows = [torch.tensor([next(i for i in range(12) if torch.equal(x[i], one)) for one in b]) for b in drawn]
    assert [len(part) for part in rows] == [4] * 6
    sent = local_update(task, local, weights, rows)(x, y)
    for name, moved in sent.items():
        change = weights["params"][name] - trace.weights["params"][name]
        assert torch.allclose(moved, change, atol=1e-12)


@pytest.mark.slow
def test_inverting_an_upload_of_several_local_steps(smooth, real):
    task, weights = smooth
    x, y = real[0][:2], real[1][:2]
    client = local_update(task, LocalSGD(lr=0.1), weights, [torch.tensor([0]), torch.tensor([1])])
    result = invert_gradients(task, client, client(x, y), y, Key(0), steps=80)
    assert min(map(psnr, result.x, x)) >= 25  # labels and order are known


def test_inverting_gradients_follows_the_paper(float64):
    task = classification(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3)), (1, 3, 3)
    )
    task = task._replace(form=task.shapes()._replace(input_range=((-0.2,), (0.6,))))
    weights, y, alpha, steps = task.init(Key(2)), torch.tensor([2, 0]), 0.3, 16
    client = batch_gradient(task, weights)
    observed = client(torch.rand(2, 1, 3, 3, generator=Key(3).torch()), y)

    def objective(x):
        a, b = (
            torch.cat([leaf.flatten() for leaf in trees.leaves(tree)]) for tree in (client(x, y), observed)
        )
        vertical = sum(
            abs(x[n, 0, i + 1, j] - x[n, 0, i, j]) for n in range(2) for i in range(2) for j in range(3)
        )
        across = sum(
            abs(x[n, 0, i, j + 1] - x[n, 0, i, j]) for n in range(2) for i in range(3) for j in range(2)
        )
        return 1 - a @ b / (a.norm() * b.norm()) + alpha * (vertical + across) / 12

    start = Key(5).fold("restart", 0).fold("x").torch()
    x = torch.randn(2, 1, 3, 3, generator=start).requires_grad_()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, steps + 1):
        (gradient,) = torch.autograd.grad(objective(x), x)
        sign = gradient.sign()
        first, second = 0.9 * first + 0.1 * sign, 0.999 * second + 0.001 * sign**2
        rate = 0.1 * 0.1 ** sum(step > steps * part / 8 for part in (3, 5, 7))
        move = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        x = (x.detach() - rate * move).clamp(-0.2, 0.6).requires_grad_()
    result = invert_gradients(task, client, observed, y, Key(5), total_variation=alpha, steps=steps)
    assert torch.allclose(result.x, x.detach(), atol=1e-9)
    assert math.isclose(result.loss, float(objective(x).detach()), rel_tol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("classes", mostly_slow([2, 3, 10], 2, 3))
def test_label_of_gradient_is_right_for_every_class(bias, classes):
    activation = nn.Sigmoid if classes == 2 else nn.Tanh  # the sign of features decides between two classes

    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), activation(), nn.Linear(7, classes, bias=bias))

    task = classification(model, SHAPE)
    for seed in range(5):
        weights = task.init(Key(seed))
        x = torch.randn(1, *SHAPE, generator=Key(seed).torch())
        for label in range(classes):
            y = torch.tensor([label])
            assert label_of_gradient(task, batch_gradient(task, weights)(x, y)) == label
            step = local_update(task, LocalSGD(lr=0.01), weights, [torch.tensor([0])] * 3)(x, y)
            assert label_of_gradient(task, step) == label


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_upload_that_is_not_finite_is_refused(smooth, real, value):
    task, weights = smooth
    client, y = batch_gradient(task, weights), real[1][:1]
    broken = trees.map(torch.clone, client(real[0][:1], y))
    trees.leaves(broken)[0].view(-1)[0] = value
    for attack in (dlg, idlg):
        with pytest.raises(InputError, match=r"observed: .*not finite"):
            attack(task, client, broken, Key(0))
    with pytest.raises(InputError, match=r"observed: .*not finite"):
        invert_gradients(task, client, broken, y, Key(0))


def test_wrong_input_of_attacks_is_refused(smooth, real):
    task, weights = smooth
    client, y = batch_gradient(task, weights), real[1][:1]
    observed = client(real[0][:1], y)
    with pytest.raises(InputError, match="observed: the upload is zero"):
        invert_gradients(task, client, trees.zeros_like(observed), y, Key(0))
    with pytest.raises(InputError, match=r"dlg\.steps.*0"):
        dlg(task, client, observed, Key(0), steps=0)
    with pytest.raises(InputError, match=r"total_variation.*-1"):
        invert_gradients(task, client, observed, y, Key(0), total_variation=-1.0)
    texts = classification(lambda: LSTM((5,), 2), (5,))
    with pytest.raises(MissingPart, match="inputs that gradients reach"):
        dlg(texts, client, observed, Key(0))


@pytest.mark.slow
def test_examples_of_the_page_print_what_it_says(capsys):
    page = (Path(__file__).parents[2] / "docs" / "leakage.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n\nIt prints `(.*?)`", page, re.DOTALL)
    assert len(blocks) == 2
    for code, printed in blocks:
        exec(compile(code, "leakage.md", "exec"), {})
        assert capsys.readouterr().out.strip() == printed
