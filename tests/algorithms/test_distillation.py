"""Methods that distil on shared inputs: teachers and losses as in the papers, written out in numpy."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genfl import trees
from genfl.algorithms import ALGORITHMS, combine, profile
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.fedet import confident_consensus
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.in_process import sequential
from genfl.learning.distil import distil
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN, MLP, Stack
from genfl.rng import Key
from genfl.simulation import cohort, federate

D, C = 5, 3
LR = 0.3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear():
    return classification(lambda: Stack(nn.Identity(), nn.Linear(D, C)), (D,))


def hard(width=6):
    """Has everything that a forward pass in the wrong mode would get wrong."""
    body = [nn.Linear(D, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5)]
    return classification(lambda: Stack(nn.Sequential(*body), nn.Linear(width, C)), (D,))


def data(sizes=(3, 8, 5, 9)):
    total = sum(sizes)
    y = torch.randint(C, (total,), generator=torch.Generator().manual_seed(1))
    return ClientData(draw(total, D, seed=2), y, np.split(np.arange(total), np.cumsum(sizes)[:-1]), C)


def run(algorithm, task, clients, rounds=3, size=2, batch_size=4, **options):
    """Returns the trace, and every server state it went through."""
    states = []

    def server(state, aggregate, key):
        states.append(algorithm.server(state, aggregate, key))
        return states[-1]

    trace = federate(
        algorithm._replace(server=server),
        task.init(Key(1)),
        clients,
        sequential(clients),
        Schedule(rounds, size, batch_size),
        Key(3),
        lambda weights: {"norm": trees.square_norm(weights).item()},
        **options,
    )
    return trace, states


def inputs(x):
    return {"shared": x, "unlabelled": x}


def build(name, task, shared=None, local=None, client_tasks=None, **options):
    resources = {**inputs(draw(4, D) if shared is None else shared), "client_tasks": client_tasks}
    return ALGORITHMS[name].build(task, local or LocalSGD(LR), resources, **options)


def same(a, b):
    return trees.mismatch(a, b) is None and all(map(torch.equal, trees.leaves(a), trees.leaves(b)))


def close(a, b, tolerance=1e-12):
    pairs = zip(trees.leaves(a), trees.leaves(b), strict=True)
    return all(torch.allclose(x, y, rtol=0, atol=tolerance) for x, y in pairs)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(teacher, task, student, x):
    """Returns the mean over inputs of KL(teacher ‖ student)."""
    q = np.asarray(teacher, dtype=float)
    log_p = torch.log_softmax(task.predict(student, x), 1).numpy()
    return float((q * (np.log(np.where(q > 0, q, 1)) - log_p)).sum(1).mean())


# distil


def test_distil_is_adam_with_a_cosine_schedule_in_numpy(float64):
    """On unnormalised targets too: the gradient in the logits is p Σ t − t."""
    task, x = linear(), draw(7, D)
    targets = draw(7, C, seed=1).square()
    student = task.init(Key(0))
    steps, lr = 6, 0.1
    out = distil(task, student, x, targets, steps=steps, lr=lr, batch_size=99, key=Key(0))
    wb = np.concatenate([p.numpy().reshape(C, -1) for p in trees.leaves(student["params"])], 1)
    inputs, t = np.concatenate([x.numpy(), np.ones((7, 1))], 1), targets.numpy()
    m = v = 0.0
    for step in range(steps):
        p = softmax(inputs @ wb.T)
        g = (p * t.sum(1, keepdims=True) - t).T @ inputs / 7
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = lr * (1 + np.cos(np.pi * step / steps)) / 2
        wb = wb - rate * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
    np.testing.assert_allclose(out["params"]["classifier.weight"], wb[:, :-1], atol=1e-12)
    np.testing.assert_allclose(out["params"]["classifier.bias"], wb[:, -1], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [3, 20])
def test_distil_reaches_its_teacher_in_batches_and_at_once(float64, batch_size):
    task, x = linear(), draw(20, D)
    teacher = torch.softmax(task.predict(task.init(Key(7)), x) * 4, 1)
    student = task.init(Key(0))
    assert kl(teacher, task, student, x) > 0.1
    out = distil(task, student, x, teacher, steps=1500, lr=0.05, batch_size=batch_size, key=Key(0))
    assert kl(teacher, task, out, x) < 1e-8


def test_distil_leaves_the_student_alone_and_takes_indices_as_one_hot_rows(float64):
    task, x = hard(), draw(9, D)
    student, label = task.init(Key(0)), torch.arange(9) % C
    before = trees.map(torch.clone, student)
    options = {"lr": 0.1, "batch_size": 4, "key": Key(0)}
    assert distil(task, student, x, label, steps=0, **options) is student
    out = [distil(task, student, x, t, steps=5, **options) for t in (label, F.one_hot(label, C).double())]
    assert same(student, before)
    assert close(*out)
    assert not any(leaf.requires_grad for model in out for leaf in trees.leaves(model))
    for before, after in zip(trees.leaves(student), trees.leaves(out[0]), strict=True):
        assert not torch.equal(before, after), "weights and batch norm's statistics both move"
    assert same(out[0], distil(task, student, x, label, steps=5, **options)), "nothing is kept between calls"


def test_distil_draws_its_batches_from_the_key(float64):
    task, x, targets = linear(), draw(12, D), torch.softmax(draw(12, C), 1)
    options = {"steps": 5, "lr": 0.1, "batch_size": 4}
    out = [distil(task, task.init(Key(0)), x, targets, key=Key(seed), **options) for seed in (0, 1)]
    assert not close(*out, 1e-3)


def test_distils_batches_are_full_and_no_input_is_seen_twice_in_a_pass(float64):
    task, x = linear(), torch.arange(7.0)[:, None].expand(7, D)
    seen, keys = [], []

    def loss(params, buffers, batch, key):
        assert torch.equal(batch["x"][:, 0], batch["y"][:, 0]), "targets belong to their inputs"
        seen.append(batch["x"][:, 0].tolist())
        keys.append(key)
        return task.loss(params, buffers, batch, key)

    watched = task._replace(loss=loss)
    distil(watched, task.init(Key(0)), x, x[:, :C], steps=8, lr=0.1, batch_size=3, key=Key(0))
    assert [len(set(a + b)) for a, b in zip(seen[::2], seen[1::2], strict=True)] == [6] * 4
    assert {row for rows in seen for row in rows} == set(range(7))
    assert len(set(keys)) == 8


# FedDF


BOTH = pytest.mark.parametrize("name", ["feddf", "feddf_logits"])


@BOTH
def test_feddf_without_steps_is_fedavg(float64, name):
    task, clients = hard(), data()
    traces = [
        run(algorithm, task, clients)[0]
        for algorithm in (build(name, task, steps=0), fedavg(task, LocalSGD(LR)))
    ]
    assert close(traces[0].weights, traces[1].weights)


def samples(clients, k):
    return int(clients.client_info(k)["samples"])


class Published:
    """FedDF as published (Algorithms 1 and 3), in plain PyTorch, for full batches.

    Each client's module is a deep copy that torch.optim.SGD trains. Modules are averaged by their state
    dicts, and every group's average learns the mean logits of all clients' modules.
    """

    def __init__(self, groups, of_client, unlabelled, steps, lr):
        self.groups, self.of_client = groups, of_client
        self.unlabelled, self.steps, self.lr = unlabelled, steps, lr

    def round(self, chosen, clients, local_steps):
        trained = {}
        for k in chosen:
            model = copy.deepcopy(self.groups[self.of_client(k)]).train()
            optimizer = torch.optim.SGD(model.parameters(), lr=LR)
            batch = clients.batch(k, torch.arange(samples(clients, k)))
            for _ in range(local_steps):
                optimizer.zero_grad()
                F.cross_entropy(model(batch["x"]), batch["y"]).backward()
                optimizer.step()
            trained[k] = model.eval()
        with torch.no_grad():
            logits = [model(self.unlabelled) for model in trained.values()]
            teacher = torch.softmax(sum(logits) / len(logits), 1)
        for name, group in self.groups.items():
            members = [k for k in chosen if self.of_client(k) == name]
            if members:
                total = sum(samples(clients, k) for k in members)
                states = {k: trained[k].state_dict() for k in members}
                mean = {
                    key: sum(samples(clients, k) / total * states[k][key] for k in members)
                    for key, value in group.state_dict().items()
                    if value.is_floating_point()
                }
                group.load_state_dict(mean, strict=False)
            self.distil(group, teacher)

    def distil(self, student, teacher):
        student.train()
        optimizer = torch.optim.Adam(student.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            optimizer.zero_grad()
            log_p = torch.log_softmax(student(self.unlabelled), 1)
            F.kl_div(log_p, teacher, reduction="batchmean").backward()
            optimizer.step()
            schedule.step()
        student.eval()


def smooth(width, features=6, head=C):
    """Batch norm, but no dropout and no bias before it, whose gradient would be rounding alone."""
    body = [nn.Linear(D, width, bias=False), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, features)]
    return classification(
        lambda: Stack(nn.Sequential(*map(copy.deepcopy, body)), nn.Linear(features, head)), (D,)
    )


def federated(algorithm, task, clients, rounds=5):
    """Returns the server's states, for full batches, three local steps and two clients a round."""
    states = []

    def server(state, aggregate, key):
        states.append(algorithm.server(state, aggregate, key))
        return states[-1]

    federate(
        algorithm._replace(server=server),
        task.init(Key(1)),
        clients,
        sequential(clients),
        Schedule(rounds, 2, 99, local_steps=3),
        Key(3),
        lambda weights: {},
    )
    return states


def equal_modules(task, weights, module, tolerance=1e-8):
    expected = module.state_dict()
    return all(
        torch.allclose(tensor, expected[name], rtol=0, atol=tolerance)
        for name, tensor in task.state_dict(weights).items()
    )


def test_feddf_equals_the_published_algorithm(float64):
    task, clients, unlabelled = smooth(7), data(), draw(8, D)
    algorithm = build("feddf", task, unlabelled, steps=6, lr=0.02)
    published = Published({"all": task.module(task.init(Key(1)))}, lambda k: "all", unlabelled, 6, 0.02)
    states = federated(algorithm, task, clients)
    for number, state in enumerate(states, 1):
        published.round(cohort(4, 2, Key(3).fold("cohort", number)), clients, 3)
        assert equal_modules(task, state["weights"], published.groups["all"])
    assert not close(states[0]["weights"], states[-1]["weights"], 0.1)


@pytest.mark.slow
def test_feddf_of_two_architectures_equals_the_published_algorithm(float64):
    """Groups without a client in the cohort learn as well, from where they were."""
    task, other, clients, unlabelled = smooth(7), smooth(4, features=3), data(), draw(8, D)
    tasks = {"other": other, "own": smooth(7)}
    algorithm = build("feddf", task, unlabelled, client_tasks=tasks, heterogeneous=True, steps=6, lr=0.02)
    first = algorithm.init(task.init(Key(1)), {}, Key(3).fold("init"))
    modules = {name: tasks[name].module(first["models"][name]) for name in tasks}
    published = Published(modules, lambda k: list(tasks)[k % 2], unlabelled, 6, 0.02)
    alone = 0
    for number, state in enumerate(federated(algorithm, task, clients, rounds=6), 1):
        chosen = cohort(4, 2, Key(3).fold("cohort", number))
        alone += len({k % 2 for k in chosen}) == 1
        published.round(chosen, clients, 3)
        for name in tasks:
            assert equal_modules(tasks[name], state["models"][name], modules[name])
        assert same(state["weights"], state["models"]["own"]), "the server's architecture is evaluated"
    assert alone, "a group had no client"


def test_feddf_sends_models_alone():
    task = hard(50)
    size = trees.num_bytes(task.init(Key(0)))
    trace, _ = run(build("feddf", task, steps=1), task, data())
    for r in trace.rounds:
        assert (r["downlink_bytes"], r["uplink_bytes"]) == (2 * size, 2 * (size + 4))


def test_feddf_of_several_architectures_names_what_is_missing():
    task = smooth(7)
    with pytest.raises(ValueError, match="feddf: heterogeneous needs client_models"):
        build("feddf", task, heterogeneous=True)
    with pytest.raises(ValueError, match=r"feddf: none of the client models \(small\) is the server's"):
        build("feddf", task, client_tasks={"small": smooth(4)}, heterogeneous=True)


@pytest.mark.slow
def test_feddf_logits_student_reaches_the_mean_of_the_clients_logits(float64):
    """Clients count alike in the teacher and by their samples in the student's start."""
    task, clients, shared = linear(), data((2, 30)), draw(4, D)
    logits = []

    def ends(state):
        """Returns where each client ends, from its upload in a round of its own."""
        for client in range(2):
            client_info = clients.client_info(client)
            carry = average.client.start(average.send(state), average.memory({}), client_info, Key(0))
            for _ in range(4):
                carry = average.client.step(carry, clients.batch(client, torch.arange(2)), Key(0))
            upload, _ = average.client.finish(carry)
            change = trees.scale(1 / client_info["samples"], upload["delta"])
            logits.append(task.predict(trees.add(state["weights"], change), shared))
            yield upload

    average = build("feddf_logits", task, shared, LocalSGD(1.0), steps=0)
    state = average.init(task.init(Key(1)), {}, Key(0))
    uploads = list(ends(state))
    for upload, own in zip(uploads, logits, strict=True):
        assert torch.allclose(upload["logits"], own)
    teacher = softmax(np.mean([z.numpy() for z in logits], 0))
    start = average.server(state, trees.add(*uploads), Key(0))["weights"]
    trained = build("feddf_logits", task, shared, steps=1500, lr=0.05)
    end = trained.server(state, trees.add(*uploads), Key(0))["weights"]
    assert kl(teacher, task, start, shared) > 0.05
    assert kl(teacher, task, end, shared) < 1e-8


@BOTH
def test_feddf_of_linear_models_and_equal_clients_is_fedavg(float64, name):
    """The mean model gives the mean logits: there is nothing left to learn.

    Shown for one step, because Adam makes steps of rounding errors, and the next of those steps.
    """
    task, clients = linear(), data((6, 6, 6, 6))
    traces = [
        run(algorithm, task, clients)[0]
        for algorithm in (build(name, task, steps=1), fedavg(task, LocalSGD(LR)))
    ]
    assert close(traces[0].weights, traces[1].weights, 1e-9)


def test_feddf_logits_clients_answer_as_in_evaluation(float64):
    task, clients, shared = hard(), data(), draw(4, D)
    algorithm = build("feddf_logits", task, shared)
    state = algorithm.init(task.init(Key(1)), {}, Key(0))
    carry = algorithm.client.start(
        algorithm.send(state), algorithm.memory({}), clients.client_info(1), Key(0)
    )
    carry = algorithm.client.step(carry, clients.batch(1, torch.arange(8)), Key(0))
    upload, _ = algorithm.client.finish(carry)
    local = trees.add(state["weights"], trees.scale(1 / clients.client_info(1)["samples"], upload["delta"]))
    alone = torch.cat([task.forward(local, x[None])[1] for x in shared])
    assert torch.allclose(upload["logits"], alone)


@BOTH
def test_fedprox_and_feddf_combine(float64, name):
    task, clients = hard(), data()
    parts = [(ALGORITHMS["fedprox"], {"mu": 0.7}), (ALGORITHMS[name], {"steps": 0})]
    both = combine(task, LocalSGD(LR), parts, {**inputs(draw(4, D))})
    assert close(
        run(both, task, clients)[0].weights, run(build("fedprox", task, mu=0.7), task, clients)[0].weights
    )


# DS-FL


class LinearDSFL:
    """DS-FL on softmax regression, transcribed: full batches of shared inputs, clients of one example."""

    def __init__(self, weights, shared, temperature, steps, lr, clients):
        self.u = np.concatenate([shared.numpy(), np.ones((len(shared), 1))], 1)
        self.part = self.before = self.u  # of this round, and of the last one
        self.server = self.matrix(weights)
        self.own = [self.server] * clients
        self.targets = None
        self.temperature, self.steps, self.lr = temperature, steps, lr

    @staticmethod
    def matrix(weights):
        return np.concatenate([p.numpy().reshape(C, -1) for p in trees.leaves(weights["params"])], 1)

    def learn(self, w, u):
        for _ in range(self.steps if self.targets is not None else 0):
            w = w - self.lr * (softmax(u @ w.T) - self.targets).T @ u / len(u)
        return w

    def round(self, work):
        """Takes for each client of the cohort its example and its number of steps."""
        answers = []
        for k, (x, label, steps) in work.items():
            w = self.learn(self.own[k], self.before)
            x = np.append(x, 1.0)
            for _ in range(steps):
                w = w - LR * np.outer(softmax(w @ x) - np.eye(C)[label], x)
            self.own[k] = w
            answers.append(softmax(self.part @ w.T))
        self.targets = softmax(np.mean(answers, 0) / self.temperature)
        self.server = self.learn(self.server, self.part)


def test_dsfl_equals_its_transcription_with_partial_participation_and_unequal_steps(float64):
    """The last client's inputs are infinite: its uploads are refused, and nothing of it counts."""
    task, shared = linear(), draw(6, D, seed=5)
    counts = [1, 4, 2, 3, 2]
    x, label = draw(5, D, seed=6), torch.tensor([0, 1, 2, 0, 1])
    x[4] = torch.inf
    rows = torch.arange(5).repeat_interleave(torch.tensor(counts))
    parts = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    clients = ClientData(x[rows], label[rows], parts, C)
    options = {"temperature": 0.1, "steps": 3, "lr": 0.2}
    algorithm = build("dsfl", task, shared, batch_size=50, **options)
    trace, states = run(algorithm, task, clients, rounds=8, size=3, batch_size=1)
    expected = LinearDSFL(task.init(Key(1)), shared, clients=5, **options)
    refused = 0
    for number, state in enumerate(states, 1):
        chosen = cohort(5, 3, Key(3).fold("cohort", number))
        refused += 4 in chosen
        expected.round({k: (x[k].numpy(), label[k], counts[k]) for k in chosen if k != 4})
        np.testing.assert_allclose(state["targets"], expected.targets, atol=1e-11)
        np.testing.assert_allclose(LinearDSFL.matrix(state["weights"]), expected.server, atol=1e-11)
    assert len(states) == 8
    assert refused == sum(r["refused"] for r in trace.rounds) > 0


def test_dsfl_of_a_random_part_equals_its_transcription(float64):
    """The soft labels of a round belong to the part that was drawn for it, and clients learn them later."""
    task, shared = linear(), draw(9, D, seed=5)
    x, label, counts = draw(5, D, seed=6), torch.tensor([0, 1, 2, 0, 1]), [1, 4, 2, 3, 2]
    rows = torch.arange(5).repeat_interleave(torch.tensor(counts))
    parts = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    clients = ClientData(x[rows], label[rows], parts, C)
    options = {"temperature": 0.1, "steps": 3, "lr": 0.2}
    algorithm = build("dsfl", task, shared, batch_size=50, per_round=4, **options)
    first = algorithm.init(task.init(Key(1)), {}, Key(3).fold("init"))
    trace, states = run(algorithm, task, clients, rounds=6, size=3, batch_size=1)
    expected = LinearDSFL(task.init(Key(1)), shared, clients=5, **options)
    everything, before, asked = expected.u, None, first["asked"]["rows"]
    drawn = []
    for number, state in enumerate(states, 1):
        chosen = cohort(5, 3, Key(3).fold("cohort", number))
        expected.part, expected.before = everything[asked], before
        expected.round({k: (x[k].numpy(), label[k], counts[k]) for k in chosen})
        np.testing.assert_allclose(state["targets"], expected.targets, atol=1e-11)
        np.testing.assert_allclose(LinearDSFL.matrix(state["weights"]), expected.server, atol=1e-11)
        assert torch.equal(state["labelled"]["rows"], asked)
        drawn.append(asked.tolist())
        before, asked = everything[asked], state["asked"]["rows"]
    assert all(len(set(part)) == 4 for part in drawn)
    assert len({tuple(part) for part in drawn}) == 6
    for r in trace.rounds:
        assert r["downlink_bytes"] == 3 * (4 * C * 8 + 2 * 4 * 8), "soft labels, and two lists of positions"
        assert r["uplink_bytes"] == 3 * (4 * C + 1) * 8


def test_dsfl_sends_only_answers(float64):
    task = hard(50)
    trace, _ = run(build("dsfl", task, steps=1), task, data())
    for r in trace.rounds:
        assert r["downlink_bytes"] == 2 * 4 * C * 8, "two clients, four inputs"
        assert r["uplink_bytes"] == 2 * (4 * C + 1) * 8, "and one count"


def test_dsfls_first_round_starts_from_the_clients_own_model(float64):
    """With batch norm's statistics, which a step without a gradient would still change."""
    task, clients = hard(), data()
    algorithm = build("dsfl", task, local=LocalSGD(LR))
    weights, own = task.init(Key(1)), task.init(Key(2))
    memory = algorithm.memory(weights)
    assert same(memory["method"], weights)
    state = algorithm.init(weights, {}, Key(0))
    carry = algorithm.client.start(
        algorithm.send(state), {**memory, "method": own}, clients.client_info(0), Key(0)
    )
    assert same(carry["message"]["weights"], own)
    assert same({part: carry["local"][part] for part in own}, own)
    known = {**algorithm.send(state), "targets": F.one_hot(torch.arange(4) % C, C).double()}
    carry = algorithm.client.start(known, {**memory, "method": own}, clients.client_info(0), Key(0))
    begin = carry["message"]["weights"]
    assert same({part: carry["local"][part] for part in own}, begin)
    for part, name in (("params", "classifier.weight"), ("buffers", "body.1.running_mean")):
        assert not close(begin[part][name], own[part][name], 1e-4)


def test_dsfls_distillation_draws_from_the_key(float64):
    """Batches, and in every step something else for dropout."""
    task, keys = linear(), []

    def loss(params, buffers, batch, key):
        keys.append(key)
        return task.loss(params, buffers, batch, key)

    algorithm = build("dsfl", task._replace(loss=loss), draw(12, D), batch_size=4, steps=5)
    targets, memory = torch.softmax(draw(12, C), 1), algorithm.memory(task.init(Key(1)))
    message = {"targets": targets, "labelled": {}, "asked": {}}
    starts = [
        algorithm.client.start(message, memory, {}, Key(seed))["message"]["weights"] for seed in (0, 0, 1)
    ]
    assert same(starts[0], starts[1])
    assert not close(starts[0], starts[2], 1e-3)
    assert len(set(keys)) == 10


def entropy(p):
    return -(p * p.log()).sum(1)


@pytest.mark.slow
def test_entropy_reduction_aggregation_lowers_entropy_and_the_student_reaches_it(float64):
    task, shared = linear(), 2 * torch.eye(D)[:4]
    answers = [torch.softmax(2 * draw(4, C, seed=seed), 1) for seed in range(3)]
    aggregate = {"clients": torch.tensor(3.0), "probabilities": sum(answers)}
    targets = {}
    for temperature in (0.1, 0.3, 1.0):
        algorithm = build("dsfl", task, shared, temperature=temperature, steps=500, lr=2.0)
        after = algorithm.server(algorithm.init(task.init(Key(1)), {}, Key(0)), aggregate, Key(0))
        targets[temperature] = after["targets"]
        expected = softmax(np.mean([a.numpy() for a in answers], 0) / temperature)
        np.testing.assert_allclose(after["targets"], expected, atol=1e-14)
        assert kl(after["targets"], task, after["weights"], shared) < 1e-4
    assert (entropy(targets[0.1]) < entropy(sum(answers) / 3)).all()
    assert (entropy(targets[0.1]) < entropy(targets[0.3])).all()
    assert (entropy(targets[0.3]) < entropy(targets[1.0])).all()


def test_moon_and_dsfl_combine():
    """MOON's last model and DS-FL's own one are both kept, and both the model at the end of training."""
    task, clients = hard(), data()

    def both(mu):
        parts = [(ALGORITHMS["moon"], {"mu": mu}), (ALGORITHMS["dsfl"], {"steps": 3})]
        return combine(task, LocalSGD(LR), parts, {**inputs(draw(4, D))})

    alone = run(build("dsfl", task, steps=3), task, clients)[0]
    assert same(run(both(0.0), task, clients)[0].weights, alone.weights)
    assert not close(run(both(5.0), task, clients)[0].weights, alone.weights, 1e-4)
    algorithm = both(5.0)
    weights = task.init(Key(1))
    message = algorithm.send(algorithm.init(weights, {}, Key(0)))
    carry = algorithm.client.start(message, algorithm.memory(weights), clients.client_info(1), Key(0))
    carry = algorithm.client.step(carry, clients.batch(1, torch.arange(8)), Key(0))
    _, memory = algorithm.client.finish(carry)
    assert same(memory["method"], memory["local"])
    assert same(memory["method"], {part: carry["local"][part] for part in weights})
    assert not same(memory["method"], weights)


# Fed-ET


def consensus_in_numpy(s, lam):
    """The paper's equations, one input at a time."""
    clients, m, classes = s.shape
    targets = np.zeros((m, classes))
    for i in range(m):
        var = [((s[k, i] - s[k, i].mean()) ** 2).mean() for k in range(clients)]
        consensus = sum(var[k] / sum(var) * s[k, i] for k in range(clients))
        y = int(np.argmax(consensus))
        targets[i, y] = 1
        others = [k for k in range(clients) if np.argmax(s[k, i]) != y]
        if others:
            total = sum(var[k] for k in others)
            targets[i] += lam * softmax(sum(var[k] / total * s[k, i] for k in others))
    return targets


def test_fedets_consensus_and_diversity_equal_the_papers_equations(float64):
    s = draw(5, 40, 4) * torch.tensor([0.2, 1.0, 1.0, 2.0, 3.0])[:, None, None] + draw(5, 1, 4, seed=1)
    s[:, :3] = s[0, :3] + 0.01 * draw(5, 3, 4, seed=2)  # all agree
    s[2, 3:6] = 1.0  # no opinion, and so no weight
    targets = confident_consensus(s, 0.3)
    np.testing.assert_allclose(targets, consensus_in_numpy(s.numpy(), 0.3), atol=1e-12)
    torch.testing.assert_close(targets.sum(1)[:3], torch.ones(3))
    assert (targets.sum(1) > 1.2).sum() > 20, "most inputs divide the clients"
    plain = s.mean(0).argmax(1)
    assert (plain != confident_consensus(s, 0.0).argmax(1)).any(), "the weights decide some labels"


def test_the_cross_entropy_with_fedets_targets_is_its_loss(float64):
    """Up to a constant, which has no gradient: CE(y) + λ KL(softmax s_div ‖ student)."""
    s, lam = draw(3, 6, 4), 0.7
    student = draw(6, 4, seed=9).requires_grad_()
    targets = confident_consensus(s, lam)
    label = confident_consensus(s, 0.0)
    diverse = (targets - label) / lam
    assert 0 < diverse.sum() < 6.5
    ours = F.cross_entropy(student, targets)
    theirs = F.cross_entropy(student, label.argmax(1)) + lam * F.kl_div(
        torch.log_softmax(student, 1), diverse, reduction="batchmean"
    )
    gradients = [torch.autograd.grad(value, student)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_clients_without_any_opinion_count_alike():
    assert torch.equal(confident_consensus(torch.zeros(3, 2, C), 0.5), torch.tensor([[1.0, 0, 0]] * 2))
    s = torch.zeros(2, 1, C)
    s[1] = torch.tensor([1e-30, 2e-30, 0.0])  # its variance underflows
    assert confident_consensus(s, 0.0).tolist() == [[0, 1, 0]]


def models():
    return {"narrow": hard(4), "flat": linear()}


def test_fedets_clients_run_their_architecture_and_one_nobody_ran_stays_as_it_was(float64):
    task, tasks, shared = hard(40), models(), draw(6, D)
    algorithm = build("fedet", task, shared, client_tasks=tasks, steps=3)
    state = algorithm.init(task.init(Key(1)), {}, Key(0))
    message = algorithm.send(state)
    for client in range(5):
        assert same(
            algorithm.address(message, client),
            {"models": {name: state["models"][name] for name in [list(tasks)[client % 2]]}},
        )
    ends = {3: tasks["flat"].init(Key(3)), 1: tasks["flat"].init(Key(4))}
    uploads = [
        {"flat": {"weights": ends[1], "samples": torch.tensor(2.0)}},
        {"flat": {"weights": ends[3], "samples": torch.tensor(6.0)}},
    ]
    after = algorithm.server(state, {"trained": uploads}, Key(0))
    assert list(after["models"]) == list(tasks)
    assert same(after["models"]["narrow"], state["models"]["narrow"])
    mean = trees.add(trees.scale(0.25, ends[1]), trees.scale(0.75, ends[3]))
    assert close(after["models"]["flat"], mean)
    logits = torch.stack([tasks["flat"].predict(weights, shared) for weights in (ends[1], ends[3])])
    expected = distil(
        task,
        state["weights"],
        shared,
        torch.tensor(consensus_in_numpy(logits.numpy(), 0.05)),
        steps=3,
        lr=1e-3,
        batch_size=128,
        key=Key(0),
    )
    # of the bias before batch norm the gradient is zero but for rounding, which Adam makes a larger step of
    assert close(after["weights"], expected, 1e-9)


def test_fedets_small_models_start_from_the_key(float64):
    task = hard()
    algorithm = build("fedet", task, client_tasks={"a": linear(), "b": linear()})
    first, second = (algorithm.init(task.init(Key(1)), {}, Key(seed)) for seed in (0, 1))
    assert same(first["weights"], task.init(Key(1)))
    assert not same(first["models"]["a"], first["models"]["b"])
    assert not same(first["models"]["a"], second["models"]["a"])


def test_fedets_small_models_of_one_architecture_are_fedavgs(float64):
    """A client is trained as in FedAvg, batches, dropout and hooks included, whatever the large model is."""
    task, small, clients = hard(40), hard(4), data()
    parts = [(ALGORITHMS["fedprox"], {"mu": 0.5})]
    algorithm = combine(
        task,
        LocalSGD(LR, momentum=0.5),
        [*parts, (ALGORITHMS["fedet"], {"steps": 1})],
        {**inputs(draw(4, D)), "client_tasks": {"small": small}},
    )
    trace, states = run(algorithm, task, clients, rounds=4)
    first = algorithm.init(task.init(Key(1)), {}, Key(3).fold("init"))["models"]["small"]
    average = combine(small, LocalSGD(LR, momentum=0.5), parts, {})
    expected, _ = run(average, small._replace(init=lambda key: first), clients, rounds=4)
    assert close(states[-1]["models"]["small"], expected.weights)
    assert [r["downlink_bytes"] for r in trace.rounds] == [r["downlink_bytes"] for r in expected.rounds]
    assert [r["uplink_bytes"] for r in trace.rounds] == [r["uplink_bytes"] for r in expected.rounds]


@pytest.mark.slow
def test_fedets_mixed_cohorts_train_a_larger_model_than_any_client_has(float64):
    task, tasks, clients, shared = hard(40), models(), data(), draw(6, D)
    size = {name: trees.num_bytes(own.init(Key(0))) for name, own in tasks.items()}
    large = trees.num_bytes(task.init(Key(0)))
    assert large > 2 * max(size.values())
    algorithm = build("fedet", task, shared, client_tasks=tasks)
    assert not algorithm.same_form
    trace, _ = run(algorithm, task, clients, rounds=5)
    mixed = 0
    for number, r in enumerate(trace.rounds, 1):
        names = [list(tasks)[k % 2] for k in cohort(4, 2, Key(3).fold("cohort", number))]
        mixed += len(set(names)) == 2
        assert r["downlink_bytes"] == sum(size[name] for name in names)
        assert r["uplink_bytes"] == sum(size[name] + 8 for name in names)
    assert mixed
    assert trees.num_bytes(trace.weights) == large


@pytest.mark.slow
@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_fedets_student_reaches_its_teacher(float64, diversity):
    task, shared = linear(), draw(4, D)
    algorithm = build("fedet", task, shared, client_tasks=models(), diversity=diversity, steps=3000, lr=0.1)
    state = algorithm.init(task.init(Key(1)), {}, Key(0))
    ends = [{"flat": {"weights": linear().init(Key(k)), "samples": torch.ones(())}} for k in (5, 6, 7)]
    after = algorithm.server(state, {"trained": ends}, Key(0))
    s = torch.stack([linear().predict(end["flat"]["weights"], shared) for end in ends])
    targets = consensus_in_numpy(s.numpy(), diversity)
    if diversity:
        assert targets.sum() > 4.4, "some inputs divide the clients"
    teacher = targets / targets.sum(1, keepdims=True)
    assert kl(teacher, task, state["weights"], shared) > 0.1
    assert kl(teacher, task, after["weights"], shared) < 1e-4


class PublishedEnsembleTransfer(Published):
    """Fed-ET with its shared heads, in plain PyTorch, for full batches."""

    def __init__(self, large, groups, of_client, unlabelled, steps, lr, diversity, sharing):
        super().__init__(groups, of_client, unlabelled, steps, lr)
        self.large, self.diversity, self.sharing = large, diversity, sharing
        for name in sharing:
            self.give_head(name)

    def give_head(self, name):
        self.groups[name].classifier.load_state_dict(self.large.classifier.state_dict())

    def distil(self, student, teacher):
        """The small models learn nothing at the server."""

    def round(self, chosen, clients, local_steps):
        before = {name: copy.deepcopy(group) for name, group in self.groups.items()}
        trained = {}
        for k in chosen:  # each client alone, so that its model can be seen
            self.groups = {name: copy.deepcopy(group) for name, group in before.items()}
            super().round([k], clients, local_steps)
            trained[k] = self.groups[self.of_client(k)]
        self.groups = before
        super().round(chosen, clients, local_steps)
        with torch.no_grad():
            s = np.stack([model(self.unlabelled).numpy() for model in trained.values()])
            sharing = [k for k in chosen if self.of_client(k) in self.sharing]
            total = sum(samples(clients, k) for k in sharing)
            for name in ("weight", "bias") if sharing else ():
                heads = [samples(clients, k) / total * getattr(trained[k].classifier, name) for k in sharing]
                getattr(self.large.classifier, name).copy_(sum(heads))
        labels = torch.tensor(consensus_in_numpy(s, 0.0)).argmax(1)
        diverse = torch.tensor(consensus_in_numpy(s, 1.0)) - F.one_hot(labels, C)
        self.large.train()
        optimizer = torch.optim.Adam(self.large.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            optimizer.zero_grad()
            out = self.large(self.unlabelled)
            others = F.kl_div(torch.log_softmax(out, 1), diverse, reduction="batchmean")
            (F.cross_entropy(out, labels) + self.diversity * others).backward()
            optimizer.step()
            schedule.step()
        self.large.eval()
        for name in self.sharing:
            self.give_head(name)


@pytest.mark.parametrize("share", [True, False])
def test_fedet_equals_its_transcription_with_and_without_a_shared_head(float64, share):
    """Two small models have the large one's features; the third has fewer, and shares nothing."""
    task, clients, unlabelled = smooth(20), data((3, 8, 5, 9, 4, 6)), draw(8, D)
    tasks = {"a": smooth(4), "b": smooth(7), "c": smooth(5, features=3)}
    algorithm = build(
        "fedet", task, unlabelled, client_tasks=tasks, share=share, steps=6, lr=0.02, diversity=0.3
    )
    first = algorithm.init(task.init(Key(1)), {}, Key(3).fold("init"))
    modules = {name: tasks[name].module(first["models"][name]) for name in tasks}
    published = PublishedEnsembleTransfer(
        task.module(task.init(Key(1))),
        modules,
        lambda k: list(tasks)[k % 3],
        unlabelled,
        6,
        0.02,
        0.3,
        ("a", "b") if share else (),
    )
    for name in published.sharing:
        assert equal_modules(tasks[name], first["models"][name], modules[name], 0.0)
    for number, state in enumerate(federated(algorithm, task, clients, rounds=6), 1):
        published.round(cohort(6, 2, Key(3).fold("cohort", number)), clients, 3)
        assert equal_modules(task, state["weights"], published.large)
        for name in tasks:
            assert equal_modules(tasks[name], state["models"][name], published.groups[name])
    head = state["weights"]["params"]["classifier.weight"]
    assert torch.equal(state["models"]["a"]["params"]["classifier.weight"], head) == share


def test_fedet_refuses_local_training_that_remembers_a_model():
    parts = [(ALGORITHMS["moon"], {}), (ALGORITHMS["fedet"], {})]
    with pytest.raises(ValueError, match="fedet: "):
        combine(hard(), LocalSGD(LR), parts, {**inputs(draw(4, D)), "client_tasks": models()})


# What they cost


@pytest.mark.slow
def test_what_they_need_and_cost_is_computed_from_their_values():
    shape = (1, 8, 8)
    cnn, mlp = (sum(p.numel() for p in model.parameters()) for model in (CNN(shape, 10), MLP(shape, 10)))
    answers, need = 1000 * 10, "synthetic or public data"
    expected = {
        "feddf": ("each", False, (cnn + 1) / cnn, 1.0, 0.0, need),
        "feddf_logits": ("sum", True, (cnn + answers + 2) / cnn, 1.0, 0.0, need),
        "dsfl": ("sum", True, (answers + 1) / cnn, answers / cnn, 1.0, need),
        "fedet": ("each", False, (mlp + 1) / cnn, mlp / cnn, 0.0, f"{need}, client_models"),
    }
    for name, values in expected.items():
        rounded = tuple(round(v, 2) if isinstance(v, float) else v for v in values)
        assert tuple(profile(ALGORITHMS[name])) == rounded
    assert cnn > 2 * mlp


@pytest.mark.parametrize("name", ["feddf", "feddf_logits", "dsfl", "fedet"])
def test_what_is_missing_is_named(name):
    with pytest.raises(ValueError, match=f"{name} needs synthetic or public data"):
        ALGORITHMS[name].build(hard(), LocalSGD(LR), {"client_tasks": models()})
