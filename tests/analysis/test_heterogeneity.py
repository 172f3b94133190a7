"""How alike clients are, against plain numpy and by hand."""

import numpy as np
import pytest
import torch

from genfl import config, pipeline, trees
from genfl.algorithms import ALGORITHMS
from genfl.analysis.heterogeneity import client_similarity, divergence, generality, mean_features
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.protocol import run_client
from genfl.engines.vmapped import VmapRunner
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN
from genfl.results import summarise as summary
from genfl.rng import Key
from genfl.simulation import cohort, federate

from ..engines.helpers import SpyEngine

SHAPE = (1, 8, 8)
PARTS = [np.arange(0, 9), np.arange(9, 30), np.arange(30, 34), np.arange(34, 60)]


@pytest.fixture
def clients(float64):
    rng = Key(0).torch()
    return ClientData(
        torch.randn(60, *SHAPE, generator=rng), torch.randint(3, (60,), generator=rng), PARTS, 3
    )


@pytest.fixture
def task(float64):
    return classification(lambda: CNN(SHAPE, 3, width=4), SHAPE)


def test_similarity_is_that_of_numpy():
    features = np.random.default_rng(0).normal(size=(5, 7))
    found = client_similarity(torch.from_numpy(features))
    norms = np.linalg.norm(features, axis=1)
    assert np.allclose(found["cosine"], features @ features.T / norms[:, None] / norms)
    assert np.allclose(found["l2"], np.linalg.norm(features[:, None] - features[None], axis=2))
    alike = client_similarity(torch.ones(3, 4))
    assert np.allclose(alike["cosine"], 1)
    assert np.allclose(alike["l2"], 0)


def test_mean_features_are_the_mean_over_all_that_a_client_holds(clients, task):
    weights = task.init(Key(1))
    extract = lambda x: task.forward(weights, x)[0].detach()  # noqa: E731
    found = mean_features(extract, clients)
    for client, part in enumerate(PARTS):
        assert torch.allclose(found[client], task.forward(weights, clients.x[part])[0].mean(0))
    few = mean_features(extract, clients, most=3)
    assert torch.equal(few, mean_features(extract, clients, most=3))
    assert not torch.allclose(few, found)


def run(clients, task, engine, measures, schedule):
    return federate(
        ALGORITHMS["scaffold"].build(task, LocalSGD(0.1), {}),
        task.init(Key(1)),
        clients,
        engine,
        schedule,
        Key(5),
        lambda weights: {},
        measures=measures,
    )


@pytest.mark.parametrize(
    "make", [sequential, pytest.param(lambda data: InProcess(VmapRunner(data)), marks=pytest.mark.slow)]
)
def test_divergence_and_generality_are_those_of_the_local_models(clients, task, make):
    rng = Key(7).torch()
    x, y = torch.randn(40, *SHAPE, generator=rng), torch.randint(3, (40,), generator=rng)
    schedule = Schedule(5, 3, batch_size=8, local_steps=4)
    seen = []

    def watch(program, work):
        """Train every client's model aside, and note their spread and accuracies."""
        plain = ALGORITHMS["scaffold"].build(task, LocalSGD(0.1), {}).client
        models, accuracies = [], []
        for client_task in work:
            upload, _ = run_client(plain, clients, client_task)
            change = upload["delta"]
            local = trees.add(client_task.message["weights"], change)
            right = task.forward(local, x)[1].argmax(1) == y
            models.append(torch.cat([leaf.flatten() for leaf in trees.leaves(local["params"])]))
            accuracies.append(float(right.double().mean()))
        distances = torch.stack(models) - torch.stack(models).mean(0)
        seen.append((float(distances.square().sum(1).mean().sqrt()), np.mean(accuracies)))

    measures = {"divergence": divergence(), "generality": generality(task, x, y)}
    engine = SpyEngine(make(clients), on_round=watch)
    rounds = run(clients, task, engine, measures, schedule).rounds
    assert np.allclose([row["divergence"] for row in rounds], [found[0] for found in seen])
    assert np.allclose([row["generality"] for row in rounds], [found[1] for found in seen])


def test_measuring_changes_nothing_else(clients, task):
    schedule = Schedule(3, 3, batch_size=8, local_steps=4)
    engine = sequential(clients)
    without = run(clients, task, engine, {}, schedule)
    measured = run(clients, task, engine, {"divergence": divergence()}, schedule)
    pairs = zip(trees.leaves(without.weights), trees.leaves(measured.weights), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for name in ("uplink_bytes", "downlink_bytes"):
        assert [row[name] for row in without.rounds] == [row[name] for row in measured.rounds]
    assert len(cohort(4, 3, Key(0))) == 3


CONFIG = """
name: heterogeneity
seeds: [0, 1]
data: {name: digits, partition: {kind: dirichlet, alpha: 0.05, clients: 4, min_size: 5}}
prompts: {style: label, per_label: 20}
generator: {steps: 4}
model: {name: mlp, width: 16}
pretrain: {epochs: 2}
federate: {rounds: 3, clients_per_round: 4, local: {steps: 4, batch_size: 8}, evaluate_every: 2}
methods:
  plain: {algorithm: fedavg}
  mixed: {algorithm: fedavg, data: mixed}
  alone: {algorithm: local}
"""


def test_with_too_many_clients_for_pairs_the_rest_is_still_there():
    rows = [{"divergence": 2.0, "generality": 0.5, "round": n} for n in (1, 2)]
    found = summary._heterogeneity([{"rounds": rows, "similarity": None}], "projection")
    assert found.similarity is found.mean_cosine is None
    assert found.divergence == [(1, 2.0, 0.0), (2, 2.0, 0.0)]
    assert summary._heterogeneity([{"rounds": [{"round": 1}], "similarity": None}], "projection") is None


@pytest.mark.slow
def test_a_run_says_how_alike_clients_are(tmp_path):
    methods = pipeline.execute(config.parse(CONFIG, ["federate.heterogeneity=true"]), tmp_path)["methods"]
    plain, mixed = (methods[name]["heterogeneity"] for name in ("plain", "mixed"))
    for seed in (0, 1):
        assert np.shape(plain["similarity"][seed]["cosine"]) == (4, 4)
        assert np.shape(mixed["similarity"][seed]["l2"]) == (4, 4)
    assert plain["similarity"][0] != plain["similarity"][1], "each seed has a split of its own"
    assert mixed["mean_cosine"]["mean"] > plain["mean_cosine"]["mean"], (
        "generated content makes clients alike"
    )
    assert mixed["mean_l2"]["mean"] < plain["mean_l2"]["mean"]
    assert [point[0] for point in plain["divergence"]] == [1, 2, 3]
    assert [point[0] for point in plain["generality"]] == [1, 2, 3]
    assert methods["alone"]["heterogeneity"]["divergence"] == []
    page = (tmp_path / "report" / "index.html").read_text()
    assert "How alike the clients are" in page
