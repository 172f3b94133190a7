"""What clients tell of a probe."""

import math

import numpy as np
import pytest
import torch

from genfl.advisor.statistics import CLASS_SUMS, ClassSums, class_sums, directions, distances, sums_of_clients
from genfl.data.clients import ClientData
from genfl.engines.in_process import sequential
from genfl.engines.reducers import SumEncoding, encoded_reducers
from genfl.learning.task import classification
from genfl.models import MODELS
from genfl.privacy.secure_sum.fixed_point import SumRange
from genfl.rng import Key

CLASSES = 3


@pytest.fixture
def held():
    """A task, a model, and the data of four clients."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 1, 8, 8, generator=rng), torch.randint(CLASSES, (60,), generator=rng)
    rows = [np.arange(60)[n::4] for n in range(4)]
    task = classification(lambda: MODELS["mlp"].build((1, 8, 8), CLASSES), (1, 8, 8))
    return task, task.init(Key(0)), ClientData(x, y, rows, CLASSES)


def test_sums_equal_a_plain_loop_over_all_examples(held):
    task, weights, clients = held
    sums = sums_of_clients(task, weights, clients, sequential(clients))
    features, logits = task.forward(weights, clients.x)
    z = features.double() @ directions(features.shape[1])
    for label in range(CLASSES):
        own = clients.y == label
        assert sums.samples[label] == own.sum()
        assert sums.correct[label] == ((logits.argmax(1) == clients.y) & own).sum()
        assert np.allclose(sums.features[label], z[own].sum(0).detach(), atol=1e-9)
        assert np.allclose(sums.products[label], (z[own].T @ z[own]).detach(), atol=1e-9)
    assert sums.accuracy == pytest.approx((logits.argmax(1) == clients.y).double().mean().item())


def test_only_sums_travel_and_a_secure_sum_carries_them(held):
    task, weights, clients = held
    program = class_sums(task)
    assert dict(program.reductions) == dict.fromkeys(CLASS_SUMS, "sum")
    plain = sums_of_clients(task, weights, clients, sequential(clients))
    encoding = SumEncoding(SumRange(2.0**20, 2.0**-20), 4, 3)
    secure = sequential(clients, encoded_reducers(Key(1), encoding))
    masked = sums_of_clients(task, weights, clients, secure)
    assert (masked.samples == plain.samples).all()
    assert (masked.correct == plain.correct).all()
    assert np.allclose(masked.features, plain.features, atol=1e-5)
    assert np.allclose(masked.products, plain.products, atol=1e-5)


def test_a_class_without_examples_has_no_recall():
    sums = ClassSums(np.array([2, 0]), np.array([1, 0]), np.zeros((2, 1)), np.zeros((2, 1, 1)))
    assert sums.recall == [0.5, None]
    assert sums.accuracy == 0.5


def gaussian(mean, deviation, count=200_000, d=2):
    """The sums of one class of points from a Gaussian of the same deviation along all axes."""
    z = np.random.default_rng(0).normal(mean, deviation, (count, d))
    return ClassSums(np.array([count]), np.array([0]), z.sum(0)[None], (z.T @ z)[None])


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (3.0, 1.0), (0.0, 2.0), (1.0, 0.5)])
def test_the_distance_of_gaussians_is_the_known_one(mean, deviation):
    # Fréchet: |m1 − m2|² + Σ (s1 − s2)² over axes, here in units of the spread of the first, Σ s1²
    found = distances(gaussian(0.0, 1.0), gaussian(mean, deviation))[0]
    assert found == pytest.approx(math.sqrt(mean**2 + (1 - deviation) ** 2), abs=0.02)


def test_the_distance_does_not_depend_on_the_scale_of_features():
    near = distances(gaussian(0.0, 1.0), gaussian(1.0, 1.0))[0]
    far = distances(gaussian(0.0, 100.0), gaussian(100.0, 100.0))[0]
    assert near == pytest.approx(far, rel=0.02)


def test_too_few_examples_have_no_distance():
    one = ClassSums(np.array([1]), np.array([0]), np.ones((1, 2)), np.ones((1, 2, 2)))
    assert distances(gaussian(0.0, 1.0), one) == [None]
