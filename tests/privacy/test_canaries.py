"""The one-run audit: exact arithmetic, known mechanisms, and real trainings with and without noise."""

import functools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.parameters import mostly_slow
from torch import nn

from genfl import trees
from genfl.errors import InputError
from genfl.learning.task import classification
from genfl.privacy.attacks.canaries import (
    audit_canaries,
    canary_p_value,
    canary_updates,
    epsilon_lower_bound,
    loss_scores,
    toss_coins,
    update_scores,
)
from genfl.rng import Key

DELTA = 1e-5
SEEDS = range(20)


def exact_p_value(v, r, m, epsilon, delta):
    """Theorem 5.2 as it is written, with 60 digits."""
    with mpmath.workdps(60):
        q = mpmath.exp(epsilon) / (mpmath.exp(epsilon) + 1)

        chances = [mpmath.binomial(r, w) * q**w * (1 - q) ** (r - w) for w in range(r + 1)]
        tails = [mpmath.mpf(0)]
        for chance in reversed(chances):
            tails.append(tails[-1] + chance)

        def at_least(k):
            return tails[r + 1 - max(k, 0)]

        alpha = max((at_least(v - i) - at_least(v)) / i for i in range(1, m + 1))
        return min(mpmath.mpf(1), at_least(v) + 2 * m * mpmath.mpf(delta) * alpha)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize(
    ("v", "r", "m"),
    [(0, 0, 1), (0, 5, 9), (1, 1, 1), (3, 5, 5), (5, 5, 30), (12, 20, 20), (33, 40, 60), (60, 60, 60)],
)
def test_p_value_is_that_of_the_theorem(v, r, m, delta):
    for epsilon in (0.0, 0.1, 1.0, 4.0, 9.0):
        exact = exact_p_value(v, r, m, epsilon, delta)
        assert canary_p_value(v, r, m, epsilon, delta) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("delta", [0.0, 1e-5])
@pytest.mark.parametrize(("v", "r", "m"), [(30, 30, 30), (75, 90, 100), (199, 200, 1000), (60, 90, 100)])
def test_bound_is_where_the_p_value_crosses_the_level(v, r, m, delta):
    for confidence in (0.9, 0.95, 0.99):
        bound = epsilon_lower_bound(v, r, m, delta, confidence)
        level = 1 - confidence
        if bound:
            assert exact_p_value(v, r, m, bound, delta) <= level * (1 + 1e-9)
        assert exact_p_value(v, r, m, bound + 2e-6, delta) > level


@pytest.mark.parametrize("guesses", [1, 5, 30, 1000])
def test_bound_of_an_attacker_who_is_always_right(guesses):
    q = 0.05 ** (1 / guesses)  # pure DP: q to the power of the guesses is the level
    assert epsilon_lower_bound(guesses, guesses, guesses, 0.0) == pytest.approx(
        max(0, math.log(q / (1 - q))), abs=2e-6
    )


def test_bound_of_guesses_that_prove_nothing():
    assert epsilon_lower_bound(0, 0, 10, DELTA) == 0
    assert epsilon_lower_bound(50, 100, 100, 0.0) == 0
    assert epsilon_lower_bound(0, 100, 100, 0.0) == 0
    assert epsilon_lower_bound(100, 100, 100, 0.5) == 0  # at such a delta, anything is allowed
    assert epsilon_lower_bound(58, 100, 100, 0.0) == 0
    assert epsilon_lower_bound(59, 100, 100, 0.0) > 0  # P[Binomial(100, 1/2) ≥ 59] = 0.044


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.data())
def test_bound_is_monotone(canaries, data):
    guesses = data.draw(st.integers(1, canaries))
    correct = data.draw(st.integers(0, guesses - 1))
    delta = data.draw(st.sampled_from([0.0, 1e-6, 1e-4, 1e-3]))
    bound = epsilon_lower_bound(correct, guesses, canaries, delta)
    assert epsilon_lower_bound(correct + 1, guesses, canaries, delta) >= bound - 1e-5
    assert epsilon_lower_bound(correct, guesses, canaries, 2 * delta + 1e-6) <= bound + 1e-5
    assert epsilon_lower_bound(correct, guesses, canaries, delta, 0.99) <= bound + 1e-5
    assert epsilon_lower_bound(correct, guesses, canaries + 50, delta) <= bound + 1e-5


def test_audit_counts_right_guesses_at_both_ends():
    scores = np.array([0.3, 9.0, -4.0, 5.0, 0.2, -7.0])
    included = np.array([False, True, True, False, True, False])
    result = audit_canaries(scores, included, positive=2, negative=1, delta=0.0)
    assert (result.canaries, result.guesses, result.correct) == (6, 3, 2)  # 9 and −7 are right, 5 is not
    all_of_them = audit_canaries(scores, included, positive=3, negative=3, delta=0.0)
    assert (all_of_them.guesses, all_of_them.correct) == (6, 2)
    none = audit_canaries(scores, included, positive=0, negative=0, delta=0.0)
    assert (none.guesses, none.correct, none.epsilon) == (0, 0, 0.0)
    ties = audit_canaries(
        np.zeros(4), np.array([True, True, False, False]), positive=1, negative=1, delta=0.0
    )
    assert ties.correct == 0  # by order alone: the last is called a member


def test_coins_are_fair_independent_and_reproducible():
    tosses = toss_coins(10_000, Key(3))
    assert np.array_equal(tosses, toss_coins(10_000, Key(3)))
    assert not np.array_equal(tosses, toss_coins(10_000, Key(4)))
    assert abs(tosses.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(tosses[1:], tosses[:-1])[0, 1]) < 0.04


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([1.0, math.nan, 2.0])}, "scores: 1 of 3 are NaN"),
        ({"included": np.array([True])}, "included: 1 coins for 3 scores"),
        ({"positive": 3}, "4 guesses for 3 canaries"),
        ({"positive": -1}, "positive.*-1"),
        ({"delta": 1.0}, "delta.*1"),
        ({"delta": math.nan}, "delta"),
        ({"confidence": 1.0}, "confidence.*1"),
    ],
)
def test_wrong_input_of_an_audit_is_refused(change, message):
    arguments = {"scores": np.arange(3.0), "included": np.array([True, False, True])}
    arguments |= {"positive": 1, "negative": 1, "delta": DELTA} | change
    with pytest.raises(InputError, match=message):
        audit_canaries(arguments.pop("scores"), arguments.pop("included"), **arguments)


def test_impossible_counts_are_refused():
    with pytest.raises(InputError, match="correct: 6 of 5"):
        epsilon_lower_bound(6, 5, 10, DELTA)
    with pytest.raises(InputError, match="guesses: 11 for 10"):
        epsilon_lower_bound(6, 11, 10, DELTA)


def accounted(sigma, steps=1, rate=1.0):
    """The epsilon of Gaussian releases with noise σ times the sensitivity, by dp-accounting."""
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.pld import PLDAccountant

    release = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(sigma))
    return PLDAccountant().compose(accounting.SelfComposedDpEvent(release, steps)).get_epsilon(DELTA)


def bounds_of(scores_of, canaries, guesses):
    """The audit's bounds over the seeds; half of the guesses say member, and half say non-member."""
    bounds = []
    for seed in SEEDS:
        included = toss_coins(canaries, Key(seed).fold("coins"))
        scores = scores_of(included, Key(seed).fold("training"))
        result = audit_canaries(scores, included, positive=guesses // 2, negative=guesses // 2, delta=DELTA)
        bounds.append(result.epsilon)
    return np.array(bounds)


def below_in_19_of_20(bounds, epsilon):
    return int((bounds < epsilon).sum()) >= 19


@pytest.mark.slow
@pytest.mark.parametrize("sigma", mostly_slow([0.5, 1.0, 2.0], 1.0, 2.0))
def test_audit_of_a_gaussian_mechanism_stays_below_its_epsilon(sigma):
    epsilon = accounted(sigma)
    bounds = bounds_of(
        lambda included, key: included + sigma * key.numpy().normal(size=len(included)), 2000, 200
    )
    assert below_in_19_of_20(bounds, epsilon)
    assert np.mean(bounds) > 0.2 * epsilon  # far from trivial


def test_audit_unmasks_a_mechanism_without_noise():
    bounds = bounds_of(lambda included, key: included.astype(float), 2000, 200)
    assert int((bounds > 1).sum()) >= 19


CLASSES, INPUTS, CANARIES, REAL = 4, 2000, 200, 100


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, CLASSES))


def dp_sgd(included, key, sigma, steps=20, rate=0.5, clip=1.0, lr=4.0):
    """A plain DP-SGD of a linear model, and the scores of its canaries: random examples, random labels."""
    task = classification(linear, (INPUTS,))
    initial = task.init(Key(0))
    generator = key.fold("data").torch()
    x = torch.randn(CANARIES + REAL, INPUTS, generator=generator) / math.sqrt(INPUTS)
    y = torch.randint(CLASSES, (len(x),), generator=generator)
    takes_part = torch.cat([torch.from_numpy(included), torch.ones(REAL, dtype=torch.bool)])
    weight_name, bias_name = initial["params"]
    weight, bias = (initial["params"][name].clone() for name in (weight_name, bias_name))
    noise = key.fold("noise").torch()
    for _ in range(steps):
        sampled = takes_part & (torch.rand(len(x), generator=generator) < rate)
        inputs, labels = x[sampled], y[sampled]
        error = (inputs @ weight.T + bias).softmax(1) - nn.functional.one_hot(labels, CLASSES)
        norms = (
            error.norm(dim=1) * (inputs.square().sum(1) + 1).sqrt()
        )  # of gradients: error times (input, 1)
        error = error * (clip / norms.clamp(min=1e-12)).clamp(max=1)[:, None]
        scale = lr / (rate * REAL)
        weight = weight - scale * (
            error.T @ inputs + sigma * clip * torch.randn(weight.shape, generator=noise)
        )
        bias = bias - scale * (error.sum(0) + sigma * clip * torch.randn(bias.shape, generator=noise))
    final = {"params": {weight_name: weight, bias_name: bias}, "buffers": {}}
    return loss_scores(task, initial, final, x[:CANARIES], y[:CANARIES])


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_audit_of_dp_sgd_stays_below_the_accounted_epsilon(sigma):
    bounds = bounds_of(functools.partial(dp_sgd, sigma=sigma), CANARIES, 60)
    assert below_in_19_of_20(bounds, accounted(sigma, steps=20, rate=0.5))


@pytest.mark.slow
def test_audit_of_dp_sgd_without_noise_refutes_epsilon_1():
    bounds = bounds_of(functools.partial(dp_sgd, sigma=0.0), CANARIES, 60)
    assert int((bounds > 1).sum()) >= 19


def small():
    return nn.Sequential(nn.Linear(100, 20), nn.Tanh(), nn.Linear(20, 10))


def user_level(included, key, sigma, rounds=5, clip=0.5, real=10):
    """A plain federated averaging with user-level DP, and the scores of its canary clients."""
    task = classification(small, (100,))
    params = initial = task.init(Key(0))["params"]
    canaries = canary_updates(params, CANARIES, clip, Key(1))
    present = [update for update, takes_part in zip(canaries, included, strict=True) if takes_part]
    of_canaries = trees.add(*present)
    noise = key.fold("noise").torch()
    for _ in range(rounds):
        updates = trees.map(lambda leaf: 0.01 * torch.randn(real, *leaf.shape, generator=noise), params)
        norms = sum(leaf.flatten(1).square().sum(1) for leaf in trees.leaves(updates)).sqrt()
        shrink = (clip / norms).clamp(max=1)
        of_real = trees.map(lambda leaf: torch.einsum("n,n...->...", shrink, leaf), updates)  # noqa: B023
        blur = trees.map(lambda leaf: sigma * clip * torch.randn(leaf.shape, generator=noise), params)
        params = trees.add(params, trees.scale(1 / real, trees.add(of_canaries, of_real, blur)))
    return update_scores(canaries, initial, params)


@pytest.mark.slow
def test_audit_of_canary_clients_stays_below_the_accounted_epsilon():
    bounds = bounds_of(functools.partial(user_level, sigma=2.0), CANARIES, 60)
    assert below_in_19_of_20(bounds, accounted(2.0, steps=5))
    assert np.mean(bounds) > 0.5


@pytest.mark.slow
def test_audit_of_canary_clients_without_noise_refutes_epsilon_1():
    bounds = bounds_of(functools.partial(user_level, sigma=0.0), CANARIES, 60)
    assert int((bounds > 1).sum()) >= 19


def test_canary_updates_have_one_length_and_random_directions():
    like = {"a": torch.zeros(30, 40, dtype=torch.float64), "b": {"c": torch.zeros(800, dtype=torch.float64)}}
    updates = canary_updates(like, 20, 0.25, Key(0))
    gram = np.array([[float(trees.dot(a, b)) for b in updates] for a in updates]) / 0.25**2
    assert np.allclose(np.diag(gram), 1)
    cosines = gram[np.triu_indices(20, 1)]
    assert abs(cosines.mean()) < 0.01
    assert math.isclose(cosines.std(), 1 / math.sqrt(2000), rel_tol=0.25)
    assert trees.signature(updates[0]) == trees.signature(like)
    again = canary_updates(like, 20, 0.25, Key(0))
    assert all(
        torch.equal(a, b) for a, b in zip(trees.leaves(updates[3]), trees.leaves(again[3]), strict=True)
    )


def test_update_scores_are_dot_products_with_the_change():
    initial, final = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 1.0])}
    updates = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.5, 2.0])}]
    assert update_scores(updates, initial, final).tolist() == [2.0, -1.0]


def test_loss_scores_are_what_training_took_from_the_loss():
    task = classification(linear, (INPUTS,))
    before, after = task.init(Key(0)), task.init(Key(1))
    x = torch.randn(5, INPUTS, generator=Key(2).torch())
    y = torch.tensor([0, 1, 2, 3, 0])
    modules = [task.module(weights) for weights in (before, after)]
    losses = [
        [float(nn.functional.cross_entropy(m(x[n : n + 1]), y[n : n + 1]).detach()) for n in range(5)]
        for m in modules
    ]
    assert loss_scores(task, before, after, x, y) == pytest.approx(np.subtract(*losses), abs=1e-5)
