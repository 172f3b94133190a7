"""The one-run audit of real federations: what it proves never exceeds the ε that is accounted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from genfl import trees
from genfl.algorithms.base import Algorithm, ClientProgram, head_count
from genfl.algorithms.fedavg import fedavg
from genfl.data.clients import ClientData
from genfl.data.plans import PoissonSampling, Schedule
from genfl.engines.in_process import sequential
from genfl.learning.local import LocalSGD
from genfl.learning.per_sample import by_layers
from genfl.learning.task import classification
from genfl.privacy.attacks.canaries import (
    audit_canaries,
    canary_updates,
    loss_scores,
    toss_coins,
    update_scores,
)
from genfl.privacy.dp.accounting import NoisedSums, epsilon_of
from genfl.privacy.dp.sample import ClippedGradient
from genfl.privacy.dp.user import UserNoise, user_level
from genfl.rng import Key
from genfl.simulation import federate

SEEDS, DELTA, CLAIM = range(100, 120), 1e-5, 1.0
GUESSES = 200


def proven(score, canaries):
    """The lower bounds on ε over the seeds."""
    bounds = []
    for seed in SEEDS:
        key = Key(seed)
        included = toss_coins(canaries, key.fold("coins"))
        half = GUESSES // 2
        scores = score(included, key.fold("training"))
        bounds.append(audit_canaries(scores, included, positive=half, negative=half, delta=DELTA).epsilon)
    return np.array(bounds)


# --- single samples: canaries are random inputs with random labels, at one client

INPUTS, CLASSES, CANARIES, STEPS, RATE = 2000, 4, 600, 20, 0.5


def scores_of_samples(noise):
    task = classification(lambda: nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, CLASSES)), (INPUTS,))
    gradient = ClippedGradient(noise, 1.0, by_layers)
    algorithm = fedavg(task, replace(LocalSGD(4.0), batch_gradient=gradient))

    def scores(included, key):
        generator = key.fold("data").torch()
        x = torch.randn(CANARIES, INPUTS, generator=generator) / INPUTS**0.5
        y = torch.randint(CLASSES, (CANARIES,), generator=generator)
        client = ClientData(x, y, [np.flatnonzero(included)], CLASSES)
        plan = Schedule(1, 1, 64, STEPS, poisson=PoissonSampling(RATE))
        initial = task.init(Key(0))
        trained = federate(algorithm, initial, client, sequential(client), plan, key, lambda weights: {})
        return loss_scores(task, initial, trained.weights, x, y)

    return scores


@pytest.mark.slow
def test_audit_of_dp_sgd_stays_below_epsilon():
    noise = 6.0
    epsilon = epsilon_of((NoisedSums(noise, RATE, STEPS),), DELTA, "pld")
    bounds = proven(scores_of_samples(noise), CANARIES)
    assert 1 < epsilon < 3, "an attacker who is always right proves more: about 4"
    assert (bounds < epsilon).sum() >= 19


@pytest.mark.slow
def test_audit_refutes_epsilon_1_where_the_noise_is_off():
    assert (proven(scores_of_samples(0.0), CANARIES) > CLAIM).sum() >= 19


# --- users: canaries are clients whose uploads are random directions

CLIENTS, ROUNDS, NORM, WIDTH = 400, 2, 0.5, 2000


def scores_of_users(noise):
    task = classification(lambda: nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, CLASSES)), (WIDTH,))
    weights = task.init(Key(0))
    canaries = canary_updates(weights["params"], CLIENTS, NORM, Key(1))
    stacked = trees.map(lambda *leaves: torch.stack(leaves), *canaries)

    def finish(counts):  # each client holds one sample of a class of its own, so the counts tell who it is
        client = int(counts.argmax())
        delta = trees.map(lambda leaves: counts[client] * leaves[client], stacked)
        return {"clients": torch.ones(()), "delta": delta}, {}

    def server(state, aggregate, key):
        step = trees.scale(1 / aggregate["clients"], aggregate["delta"])
        return {"weights": {"params": trees.add(state["weights"]["params"], step), "buffers": {}}}

    program = ClientProgram(
        lambda message, memory, client_info, key: client_info["label_counts"],
        lambda carry, batch, key: carry,
        finish,
        {"clients": "sum", "delta": "sum"},
    )
    algorithm = Algorithm(
        head_count,
        lambda weights, census, key: {"weights": weights},
        lambda state: {"weights": state["weights"]},
        program,
        server,
        lambda weights: {},
        task=task,
        counts=("clients",),
    )

    def scores(included, key):
        present = np.flatnonzero(included)
        x, y = torch.zeros(len(present), WIDTH), torch.from_numpy(present)
        clients = ClientData(x, y, list(np.arange(len(present))[:, None]), CLIENTS)
        noised = protected(algorithm, task, noise)
        plan = Schedule(ROUNDS, len(present), 1, 1)
        trained = federate(noised, weights, clients, sequential(clients), plan, key, lambda weights: {})
        return update_scores(canaries, weights["params"], trained.weights["params"])

    return scores


def protected(algorithm, task, noise):
    """The algorithm with noise on its sums; the check of equal weights does not fit canaries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genfl.privacy.dp.user.check_algorithm", lambda algorithm, task, name: None)
        return user_level(algorithm, task, UserNoise(noise, NORM, CLIENTS // 2))


@pytest.mark.slow
def test_audit_of_users_stays_below_epsilon():
    noise = 3.8
    epsilon = epsilon_of((NoisedSums(noise, 1.0, ROUNDS),), DELTA, "pld")
    bounds = proven(scores_of_users(noise), CLIENTS)
    assert 1 < epsilon < 3
    assert (bounds < epsilon).sum() >= 19


@pytest.mark.slow
def test_audit_of_users_refutes_epsilon_1_where_the_noise_is_off():
    assert (proven(scores_of_users(0.0), CLIENTS) > CLAIM).sum() >= 19
