"""FedGen and FedFTG: equations in plain numpy, identities with FedAvg, and what they learn on real digits."""

import numpy as np
import pytest
import torch

from genfl import trees
from genfl.algorithms import ALGORITHMS, profile
from genfl.algorithms.base import context, trained
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.fedftg import class_weights, discrepancy, ensemble, fedftg
from genfl.algorithms.fedgen import fedgen
from genfl.algorithms.profile import take_a_step
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.data.sources import DIGIT_NAMES, digits
from genfl.engines.in_process import sequential
from genfl.learning.conditional import ConditionalGenerator, noise_similarity
from genfl.learning.evaluate import evaluate
from genfl.learning.local import LocalSGD
from genfl.learning.task import MissingPart, classification
from genfl.models import MLP, Stack
from genfl.rng import Key
from genfl.simulation import federate

SHAPE, CLASSES = (1, 8, 8), 10


def batch_norm_model():
    body = [torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU()]
    return Stack(torch.nn.Sequential(*body), torch.nn.Linear(16, CLASSES))


def softmax_regression():
    return Stack(torch.nn.Flatten(), torch.nn.Linear(4, 3))


@pytest.fixture(scope="module")
def handwriting():
    """Twenty clients with the digits of two classes each, and the test set."""
    data = digits()
    number = {name: index for index, name in enumerate(DIGIT_NAMES)}
    y, test = (torch.tensor([number[name] for name in part.labels]) for part in (data.train, data.test))
    of = [torch.nonzero(y == label).flatten().numpy() for label in range(CLASSES)]
    parts = [
        np.concatenate([of[(k + shift) % CLASSES][k // CLASSES + 2 * shift :: 4] for shift in (0, 1)])
        for k in range(2 * CLASSES)
    ]
    return ClientData(data.train.x, y, parts, CLASSES), data.test.x, test


def run(algorithm, task, handwriting, rounds, cohort=4, seed=0):
    data, x, y = handwriting
    states = []

    def server(*args):
        states.append(algorithm.server(*args))
        return states[-1]

    trace = federate(
        algorithm._replace(server=server),
        task.init(Key(seed)),
        data,
        sequential(data),
        Schedule(rounds, cohort, 32, 10, evaluate_every=rounds),
        Key(seed),
        lambda weights: evaluate(task, weights, x, y),
    )
    return trace, states


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(trees.leaves(a), trees.leaves(b), strict=True))


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


# The generator


def test_a_sample_is_a_function_of_its_label_and_noise_alone(float64):
    generator = ConditionalGenerator((2, 3), 4, 5, width=7)
    params = generator.init(Key(0))
    y, eps = torch.tensor([0, 3, 3]), torch.randn(3, 5, generator=Key(1).torch())
    made = generator(params, y, eps)
    given = np.concatenate([np.eye(4)[y], eps], 1)
    hidden, output = ({k: v.numpy() for k, v in params[name].items()} for name in ("hidden", "output"))
    activity = np.maximum(given @ hidden["weight"].T + hidden["bias"], 0)
    expected = (activity @ output["weight"].T + output["bias"]).reshape(3, 2, 3)
    np.testing.assert_allclose(made, expected, atol=1e-12)


def test_conditions_follow_the_shares_and_never_name_an_absent_class():
    generator = ConditionalGenerator((1,), 4, 3)
    y, eps = generator.conditions(torch.tensor([5.0, 0.0, 15.0, 0.0]), 20_000, Key(0).torch())
    assert torch.bincount(y, minlength=4).tolist()[1::2] == [0, 0]
    assert (y == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert eps.shape == (20_000, 3)
    assert eps.mean().item() == pytest.approx(0, abs=0.02)
    assert eps.std().item() == pytest.approx(1, abs=0.02)


def test_similarity_equals_a_loop_over_pairs(float64):
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 5))
    total = sum(
        np.abs(x[i] - x[j]).mean() * np.square(eps[i] - eps[j]).mean() for i in range(4) for j in range(4)
    )
    value = noise_similarity(torch.from_numpy(x), torch.from_numpy(eps))
    assert value.item() == pytest.approx(np.exp(-total / 16), rel=1e-12)
    assert noise_similarity(torch.ones(4, 6), torch.from_numpy(eps)).item() == 1, "a collapsed generator"


def test_initial_weights_have_the_stated_spread():
    params = ConditionalGenerator((2, 200), 10, 90, width=400).init(Key(0))
    for name, inputs in (("hidden", 100), ("output", 400)):
        assert params[name]["weight"].std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.02)
        assert not params[name]["bias"].any()


# FedGen


def mlp_task(width=32):
    return classification(lambda: MLP(SHAPE, CLASSES, width), SHAPE)


def test_fedgen_without_weight_is_fedavg(handwriting):
    task, local = mlp_task(), LocalSGD(0.1, momentum=0.5)
    ours, _ = run(fedgen(task, local, weight=0.0, generator_steps=2), task, handwriting, 3)
    plain, _ = run(fedavg(task, local), task, handwriting, 3)
    assert same(ours.weights, plain.weights)


@pytest.mark.slow
def test_fedgens_first_round_is_fedavgs_and_its_second_is_not(handwriting):
    task, local = mlp_task(), LocalSGD(0.1)
    _, ours = run(fedgen(task, local, weight=1.0), task, handwriting, 2)
    _, plain = run(fedavg(task, local), task, handwriting, 2)
    assert same(ours[0]["weights"], plain[0]["weights"])
    assert not same(ours[1]["weights"], plain[1]["weights"])


def test_fedgens_shares_are_those_of_all_clients(handwriting):
    task = mlp_task()
    _, (state,) = run(fedgen(task, LocalSGD(0.1), generator_steps=0), task, handwriting, 1, cohort=1)
    data, *_ = handwriting
    expected = np.bincount(data.y, minlength=CLASSES) / len(data.y)
    np.testing.assert_allclose(state["shares"], expected, rtol=1e-6)


def test_fedgens_penalty_and_its_gradient_equal_numpys_and_reach_only_the_head(float64):
    """One SGD step with and without: the difference is −lr λ times the gradient of the cross-entropy."""
    lr, weight, size = 0.1, 0.7, 6
    task = mlp_task(8)
    weights = task.init(Key(0))
    batch = {"x": torch.randn(5, *SHAPE, generator=Key(1).torch()), "y": torch.arange(5)}
    client_info = {"samples": torch.tensor(5.0), "label_counts": torch.ones(CLASSES)}
    algorithm = fedgen(task, LocalSGD(lr), weight=weight, generator_steps=0, noise=3, batch_size=size)
    state = algorithm.init(weights, {"label_counts": torch.arange(float(CLASSES))}, Key(2))
    ends = []
    for strength in (weight, 0.0):
        message = algorithm.send(state) | {"strength": torch.tensor(strength)}
        carry = algorithm.client.start(message, algorithm.memory(weights), client_info, Key(3))
        ends.append(trained(algorithm.client.step(carry, batch, Key(4)))["params"])
        key = context(task, carry, Key(4)).key
    moved = trees.sub(*ends)

    generator = ConditionalGenerator((8,), CLASSES, 3, 64)
    y, eps = generator.conditions(state["shares"], size, key.fold("fedgen").torch())
    z = generator(state["generator"], y, eps).numpy()
    w, b = (weights["params"][f"classifier.{name}"].numpy() for name in ("weight", "bias"))
    slope = (softmax(z @ w.T + b) - np.eye(CLASSES)[y]) / size
    np.testing.assert_allclose(moved["classifier.weight"], -lr * weight * slope.T @ z, atol=1e-12)
    np.testing.assert_allclose(moved["classifier.bias"], -lr * weight * slope.sum(0), atol=1e-12)
    for name in moved.keys() - {"classifier.weight", "classifier.bias"}:
        assert not moved[name].any(), f"{name} moved"


def test_fedgens_labels_and_noise_differ_from_step_to_step(float64):
    task = mlp_task(8)
    weights = task.init(Key(0))
    algorithm = fedgen(task, LocalSGD(0.1))
    state = algorithm.init(weights, {"label_counts": torch.ones(CLASSES)}, Key(2))
    message = algorithm.send(state) | {"strength": torch.tensor(1.0)}
    client_info = {"samples": torch.tensor(5.0), "label_counts": torch.ones(CLASSES)}
    batch = {"x": torch.zeros(5, *SHAPE), "y": torch.arange(5)}
    carry = algorithm.client.start(message, algorithm.memory(weights), client_info, Key(3))
    ends = [trained(algorithm.client.step(carry, batch, Key(4).fold(step))) for step in range(2)]
    assert not same(*ends)


def test_fedgens_server_draws_anew_in_every_round():
    """From one state and one upload, another key learns another generator; the same key the same."""
    task = mlp_task(8)
    weights = task.init(Key(0))
    algorithm = fedgen(task, LocalSGD(0.1), generator_steps=2)
    census = {"label_counts": torch.ones(CLASSES)}
    state = algorithm.init(weights, census, Key(2))
    assert not same(state["generator"], algorithm.init(weights, census, Key(3))["generator"])
    upload = {"weight": torch.ones(()), "delta": trees.zeros_like(weights)}
    first, again, other = (algorithm.server(state, upload, Key(seed))["generator"] for seed in (4, 4, 5))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 100), marks=pytest.mark.slow)], ids=str)
def test_fedgen_needs_a_linear_head_and_says_so(seeds):
    task = classification(lambda: MLP(SHAPE, CLASSES), SHAPE)
    take_a_step(fedgen(task, LocalSGD(0.1)), task)
    for seed in seeds:  # some bend but little
        torch.manual_seed(seed)
        head = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU(), torch.nn.Linear(2, CLASSES))
        body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
        bent = classification(lambda body=body, head=head: Stack(body, head), SHAPE)
        with pytest.raises(MissingPart, match="linear head"):
            take_a_step(fedgen(bent, LocalSGD(0.1)), bent)


@pytest.mark.slow
def test_fedgens_features_are_of_the_class_asked_for_and_varied(handwriting):
    """On held labels of each class; without the second term the noise would change less."""
    task, found = mlp_task(), {}
    for diversity in (0.0, 1.0):
        algorithm = fedgen(task, LocalSGD(0.1), diversity=diversity)
        _, states = run(algorithm, task, handwriting, 8)
        generator = ConditionalGenerator((32,), CLASSES, 32, 64)
        y, eps = generator.conditions(states[-1]["shares"], 1000, Key(9).torch())
        z = generator(states[-1]["generator"], y, eps)
        answer = task.head(states[-1]["weights"]["params"], z).argmax(1)
        found[diversity] = noise_similarity(z, eps).item()
        assert (answer == y).double().mean() >= 0.9
    assert found[1.0] < found[0.0]


# FedFTG


def test_class_weights_equal_the_paper_also_for_a_class_nobody_holds(float64):
    counts = np.array([[3.0, 0.0, 5.0], [1.0, 0.0, 0.0]])
    expected = [[0.75, 0.0, 1.0], [0.25, 0.0, 0.0]]
    np.testing.assert_allclose(class_weights(torch.from_numpy(counts)), expected, atol=1e-15)


def test_discrepancy_and_ensemble_equal_a_loop_over_clients(float64):
    rng = np.random.default_rng(0)
    teachers, student = rng.normal(size=(2, 4, 3)), rng.normal(size=(4, 3))
    alpha = rng.dirichlet(np.ones(2), size=4).T
    q, total, mixed = softmax(student), 0.0, np.zeros((4, 3))
    for k in range(2):
        p = softmax(teachers[k])
        for n in range(4):
            total += alpha[k, n] * (p[n] * np.log(p[n] / q[n])).sum() / 4
            mixed[n] += alpha[k, n] * teachers[k, n]
    t, s, a = map(torch.from_numpy, (teachers, student, alpha))
    assert discrepancy(t, s, a).item() == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(ensemble(t, a), mixed, atol=1e-12)
    assert discrepancy(s.expand(2, 4, 3), s, a).item() == pytest.approx(0, abs=1e-15)


def test_fedftg_without_steps_is_fedavg(handwriting):
    task, local = classification(batch_norm_model, SHAPE), LocalSGD(0.1, momentum=0.5)
    ours, _ = run(fedftg(task, local, steps=0), task, handwriting, 3)
    plain, _ = run(fedavg(task, local), task, handwriting, 3)
    assert same(ours.weights, plain.weights)


def test_fedftg_leaves_batch_norms_statistics_at_fedavgs_mean(handwriting):
    task, local = classification(batch_norm_model, SHAPE), LocalSGD(0.1)
    ours, _ = run(fedftg(task, local), task, handwriting, 1)
    plain, _ = run(fedavg(task, local), task, handwriting, 1)
    assert same(ours.weights["buffers"], plain.weights["buffers"])
    assert not same(ours.weights["params"], plain.weights["params"])


def aggregate_of(start, models, samples, counts):
    deltas = [trees.scale(n, trees.sub(model, start)) for n, model in zip(samples, models, strict=True)]
    return {
        "weight": list(torch.tensor(samples)),
        "delta": deltas,
        "label_counts": list(torch.tensor(counts)),
    }


def test_fedftg_of_clients_that_agree_is_fedavg(float64):
    """The mean is its own teacher: nothing to learn, whatever the inputs."""
    task = classification(softmax_regression, (4,))
    model, start = task.init(Key(0)), task.init(Key(2))
    aggregate = aggregate_of(start, [model, model], [3.0, 1.0], [[4.0, 3.0, 5.0], [1.0, 0.0, 2.0]])
    algorithm = fedftg(task, LocalSGD(0.1), steps=20, lr=1.0)
    after = algorithm.server(algorithm.init(start, {}, Key(0)), aggregate, Key(1))["weights"]
    for got, expected in zip(trees.leaves(after), trees.leaves(model), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.slow
def test_fedftgs_student_reaches_the_teacher_that_holds_the_classes(float64):
    """Softmax regression; the mean starts at a client that holds no class, and so has no say."""
    task = classification(softmax_regression, (4,))
    models = [task.init(Key(k)) for k in range(2)]
    start = task.init(Key(2))
    aggregate = aggregate_of(start, models, [1.0, 1e6], [[4.0, 3.0, 5.0], [0.0, 0.0, 0.0]])
    options = {"lr": 0.5, "generator_lr": 0.003, "lambda_cls": 1.0, "low": -2.0, "high": 2.0}
    algorithm = fedftg(task, LocalSGD(0.1), steps=600, **options)
    before = algorithm.init(start, {}, Key(0))
    after = algorithm.server(before, aggregate, Key(1))
    x = torch.randn(500, 4, generator=Key(3).torch())
    p, first, q = (task.predict(w, x).log_softmax(1) for w in (models[0], models[1], after["weights"]))
    assert (p.exp() * (p - first)).sum(1).mean() > 0.01
    assert (p.exp() * (p - q)).sum(1).mean() < 1e-4


def test_one_step_of_fedftg_equals_numpy(float64):
    """The model's step by SGD, and the sign of Adam's first step of the generator, both at the old values."""
    task = classification(softmax_regression, (4,))
    models, start = [task.init(Key(k)) for k in range(2)], task.init(Key(2))
    samples, counts = [3.0, 5.0], [[3.0, 0.0, 0.0], [1.0, 0.0, 4.0]]
    options = {
        "lr": 0.5,
        "generator_lr": 0.01,
        "lambda_cls": 0.6,
        "lambda_dis": 0.3,
        "low": -1.0,
        "high": 3.0,
    }
    algorithm = fedftg(task, LocalSGD(0.1), steps=1, noise=2, batch_size=6, **options)
    before = algorithm.init(start, {}, Key(0))
    after = algorithm.server(before, aggregate_of(start, models, samples, counts), Key(1))

    generator = ConditionalGenerator((4,), 3, 2)
    y, eps = generator.conditions(torch.tensor(counts).sum(0), 6, Key(1).fold("fedftg").torch())
    alpha = np.array(counts) / np.maximum(np.sum(counts, 0), 1)
    affine = [[m["params"][f"classifier.{n}"].numpy() for n in ("weight", "bias")] for m in models]
    mean = [np.average([model[i] for model in affine], axis=0, weights=samples) for i in range(2)]

    def inputs(g):
        return -1 + 4 / (1 + np.exp(-generator(g, y, eps).numpy()))

    x = inputs(before["generator"])
    taught = sum(alpha[k][y][:, None] * softmax(x @ w.T + b) for k, (w, b) in enumerate(affine))
    slope = (softmax(x @ mean[0].T + mean[1]) - taught) / 6
    np.testing.assert_allclose(after["weights"]["params"]["classifier.weight"], mean[0] - 0.5 * slope.T @ x)
    np.testing.assert_allclose(after["weights"]["params"]["classifier.bias"], mean[1] - 0.5 * slope.sum(0))

    def objective(g):
        x = inputs(g)
        q, mixed, value = softmax(x @ mean[0].T + mean[1]), 0.0, 0.0
        for k, (w, b) in enumerate(affine):
            p = softmax(x @ w.T + b)
            value -= (alpha[k][y] * (p * np.log(p / q)).sum(1)).mean()
            mixed = mixed + alpha[k][y][:, None] * (x @ w.T + b)
        value -= 0.6 * np.log(softmax(mixed)[np.arange(6), y]).mean()
        apart = np.abs(x[:, None] - x).mean(2) * np.square(eps.numpy()[:, None] - eps.numpy()).mean(2)
        return value + 0.3 * np.exp(-apart.mean())

    step = trees.sub(after["generator"], before["generator"])["hidden"]["bias"].numpy()
    slopes = np.zeros(len(step))
    for unit in range(len(step)):
        for h in (1e-5, -1e-5):
            moved = trees.map(torch.clone, before["generator"])
            moved["hidden"]["bias"][unit] += h
            slopes[unit] += objective(moved) / (2 * h)
    clear = np.abs(slopes) > 1e-6
    assert clear.sum() > 100
    np.testing.assert_allclose(step[clear], -0.01 * np.sign(slopes[clear]), rtol=0.05)


@pytest.mark.slow
def test_fedftgs_inputs_are_of_the_class_asked_for_by_the_class_level_ensemble(handwriting):
    task = mlp_task()
    algorithm = fedftg(task, LocalSGD(0.1))
    seen = {}

    def server(state, aggregate, key):
        seen["teachers"] = [
            trees.add(state["weights"], trees.scale(1 / w, d))
            for w, d in zip(aggregate["weight"], aggregate["delta"], strict=True)
        ]
        seen["counts"] = torch.stack(aggregate["label_counts"])
        return algorithm.server(state, aggregate, key)

    _, states = run(algorithm._replace(server=server), task, handwriting, 12)
    generator = ConditionalGenerator(SHAPE, CLASSES, 100)
    held = seen["counts"].sum(0)
    assert (held == 0).any(), "the cohort lacks a class"
    y, eps = generator.conditions(held, 1000, Key(9).torch())
    x = generator(states[-1]["generator"], y, eps).sigmoid()
    said = torch.stack([task.predict(teacher, x) for teacher in seen["teachers"]])
    answer = ensemble(said, class_weights(seen["counts"])[:, y]).argmax(1)
    assert (answer == y).double().mean() >= 0.9


@pytest.mark.parametrize("build", [fedgen, fedftg])
def test_a_class_that_nobody_holds_is_never_generated(float64, build):
    """Its column of the generator's first weights has no gradient; those of other classes move."""
    task = classification(softmax_regression, (4,))
    model, start, counts = task.init(Key(0)), task.init(Key(2)), torch.tensor([4.0, 0.0, 5.0])
    algorithm = build(task, LocalSGD(0.1))
    state = algorithm.init(start, {"label_counts": counts}, Key(0))
    aggregate = aggregate_of(start, [model], [1.0], [counts.tolist()])
    if build is fedgen:
        aggregate = {name: aggregate[name][0] for name in ("weight", "delta")}
    after = algorithm.server(state, aggregate, Key(1))["generator"]
    moved = trees.sub(after, state["generator"])["hidden"]["weight"]
    assert [bool(moved[:, label].any()) for label in range(3)] == [True, False, True]


def test_what_they_cost_is_computed_from_their_values():
    gen, ftg = profile(ALGORITHMS["fedgen"]), profile(ALGORITHMS["fedftg"])
    assert (gen.sees, gen.secure_sum, gen.uplink, gen.memory, gen.needs) == (
        "sum",
        True,
        1.0,
        0.0,
        "linear head",
    )
    assert gen.downlink > 1, "the generator travels"
    assert (ftg.sees, ftg.secure_sum, ftg.uplink, ftg.downlink, ftg.memory, ftg.needs) == (
        "each",
        False,
        1.0,
        1.0,
        0.0,
        "",
    )
