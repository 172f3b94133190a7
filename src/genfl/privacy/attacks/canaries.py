"""One-run audit: a lower bound on epsilon from canaries, with a confidence.

A canary is an example, or a client, that takes part in the training or not by the toss of a coin. After the
training, an attacker guesses from the model which canaries took part. Differential privacy bounds how often
it can be right. So many right guesses prove that epsilon is at least so large. The bound holds whatever the
attack; a better attack gives a larger one. Neighbouring data sets differ by one canary that is added or left
out.

Source: Steinke, Nasr and Jagielski, NeurIPS 2023 (arXiv 2305.08846). Canary clients: Andrew et al., ICLR 2024
(arXiv 2302.03098).

Example:
    >>> included = toss_coins(1000, Key(0))
    >>> scores = included + 0.5 * Key(1).numpy().normal(size=1000)  # a model that gives much away
    >>> result = audit_canaries(scores, included, positive=100, negative=100, delta=1e-5)
    >>> result.guesses, result.correct, round(result.epsilon, 1)
    (200, 198, 3.4)
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from genfl import trees
from genfl.errors import InputError
from genfl.learning.task import Task, Weights
from genfl.options import Count, Positive, Steps, range_checked
from genfl.rng import Key
from genfl.trees import Tree

_Confidence = Annotated[float, Gt(0), Lt(1)]
_Probability = Annotated[float, Ge(0), Lt(1)]

_LARGEST = 1024.0  # more than any number of right guesses can prove; e^−1024 is 0 in double precision
_PRECISION = 1e-6


class CanaryAudit(NamedTuple):
    """The result of a one-run audit.

    Attributes:
        canaries: How many canaries there were.
        guesses: For how many of them the attacker made a guess.
        correct: How many guesses were right.
        epsilon: The lower bound on epsilon; 0 if the guesses prove nothing.
        delta: The delta at which epsilon is bounded.
        confidence: The probability that such a bound is not above the true epsilon, at least.
    """

    canaries: int
    guesses: int
    correct: int
    epsilon: float
    delta: float
    confidence: float


def toss_coins(canaries: int, key: Key) -> np.ndarray:
    """Return which canaries take part: each with probability 1/2, independently. Booleans, [canaries]."""
    return key.numpy().random(canaries) < 0.5


@range_checked
def audit_canaries(
    scores: np.ndarray,
    included: np.ndarray,
    *,
    positive: Steps,
    negative: Steps,
    delta: _Probability,
    confidence: _Confidence = 0.95,
) -> CanaryAudit:
    """Return the lower bound on epsilon that the scores of canaries prove.

    The attacker calls the canaries of the highest scores members, and those of the lowest scores non-members.
    It abstains from the others. How many it calls so must be fixed before the scores are seen. Ties are
    broken by the canaries' order, of which membership is independent.

    Source: Steinke et al. 2023 (arXiv 2305.08846), Algorithm 1.

    Args:
        scores: A number for each canary, higher for those that look like members, [canaries].
        included: Which canaries took part, as `toss_coins` drew them, [canaries].
        positive: How many are called members, k₊.
        negative: How many are called non-members, k₋.
        delta: The delta of the guarantee.
        confidence: That of the bound.

    Raises:
        InputError: A score is NaN, the two arrays differ in length, there are more guesses than canaries, or
            a number is out of its range.
    """
    scores, included = np.asarray(scores, dtype=float), np.asarray(included, dtype=bool)
    canaries, guesses = len(scores), positive + negative
    if scores.shape != included.shape:
        raise InputError(f"included: {len(included)} coins for {canaries} scores; give one for each canary")
    if np.isnan(scores).any():
        raise InputError(f"scores: {int(np.isnan(scores).sum())} of {canaries} are NaN; give numbers")
    if guesses > canaries:
        raise InputError(
            f"positive, negative: {guesses} guesses for {canaries} canaries; guess at most once for each"
        )
    order = np.argsort(scores, kind="stable")
    members, others = order[canaries - positive :], order[:negative]
    correct = int(included[members].sum() + (~included[others]).sum())
    bound = epsilon_lower_bound(correct, guesses, canaries, delta, confidence)
    return CanaryAudit(canaries, guesses, correct, bound, delta, confidence)


@range_checked
def epsilon_lower_bound(
    correct: Steps, guesses: Steps, canaries: Count, delta: _Probability, confidence: _Confidence = 0.95
) -> float:
    """Return the largest epsilon that so many right guesses rule out, to 10⁻⁶; 0 if they rule out none.

    An (ε, δ)-DP training lets the attacker be right so often with a probability of at most `canary_p_value`.
    The bound is the largest ε for which this is at most ``1 − confidence``. Such an ε rules out all smaller
    ones, because a training with a smaller ε also is (ε, δ)-DP.

    Args:
        correct: How many guesses were right.
        guesses: For how many canaries the attacker made a guess, fixed beforehand.
        canaries: How many canaries there were, each included with probability 1/2.
        delta: The delta of the guarantee.
        confidence: The probability that the bound is not above the true epsilon, at least.

    Raises:
        InputError: There are more right guesses than guesses, more guesses than canaries, or a number is out
            of its range.
    """
    level = 1 - confidence
    if canary_p_value(correct, guesses, canaries, 0.0, delta) > level:
        return 0.0
    low, high = 0.0, 1.0
    while high < _LARGEST and canary_p_value(correct, guesses, canaries, high, delta) <= level:
        low, high = high, 2 * high
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if canary_p_value(correct, guesses, canaries, middle, delta) <= level:
            low = middle
        else:
            high = middle
    return low


@range_checked
def canary_p_value(
    correct: Steps, guesses: Steps, canaries: Count, epsilon: Annotated[float, Ge(0)], delta: _Probability
) -> float:
    """Return the largest probability of so many right guesses under (ε, δ)-DP, or a bound above it.

    With W binomial, of `guesses` trials with success ``e^ε / (e^ε + 1)``, m canaries and v right guesses:

        P[W ≥ v] + 2 m δ max_i (P[W ≥ v − i] − P[W ≥ v]) / i        (i from 1 to m)

    Source: Steinke et al. 2023 (arXiv 2305.08846), Theorem 5.2.

    Args:
        correct: How many guesses were right, v.
        guesses: For how many canaries the attacker made a guess, r.
        canaries: How many canaries there were, m.
        epsilon: The epsilon that is tested.
        delta: The delta that is tested.

    Raises:
        InputError: There are more right guesses than guesses, more guesses than canaries, or a number is out
            of its range.
    """
    from scipy.stats import binom

    if correct > guesses:
        raise InputError(f"correct: {correct} of {guesses} guesses; at most all of them can be right")
    if guesses > canaries:
        raise InputError(f"guesses: {guesses} for {canaries} canaries; guess at most once for each")
    success = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, success))
    if not (delta and correct):
        return tail
    # beyond i = v, the difference grows no more
    just_below = binom.pmf(np.arange(correct - 1, -1, -1), guesses, success)  # P[W = v − 1], P[W = v − 2], …
    steepest = (np.cumsum(just_below) / np.arange(1, correct + 1)).max()
    return min(1.0, tail + 2 * canaries * delta * float(steepest))


def loss_scores(task: Task, initial: Weights, final: Weights, x: Tensor, y: Tensor) -> np.ndarray:
    """Return how much training lowered the loss of each canary example, [n].

    Source: Steinke et al. 2023 (arXiv 2305.08846), Section 6, the black-box setting: the difference between
    the loss of the initial and of the final model.

    Args:
        task: What is learned.
        initial: The weights before training.
        final: The weights after training.
        x: The canaries as inputs of the model, [n, ...].
        y: Their class indices, [n].
    """

    def losses(weights: Weights) -> Tensor:
        return F.cross_entropy(task.predict(weights, x).double(), y, reduction="none")

    difference: np.ndarray = (losses(initial) - losses(final)).numpy()
    return difference


@range_checked
def canary_updates(like: Tree, canaries: Count, norm: Positive, key: Key) -> list[Tree]:
    """Return the uploads of canary clients; see `canary_update`.

    Args:
        like: The weights' params; uploads have its structure.
        canaries: How many clients.
        norm: The length of each upload.
        key: The random stream.
    """
    return [canary_update(like, norm, key.fold("canary", number)) for number in range(canaries)]


@range_checked
def canary_update(like: Tree, norm: Positive, key: Key) -> Tree:
    """Return the upload of a canary client: a random direction of one length.

    A canary client sends this in place of an update, in every round in which it takes part. Two random
    directions are nearly orthogonal in a large model, so canaries hardly disturb each other, or the training.

    Source: Andrew et al., ICLR 2024 (arXiv 2302.03098), Algorithm 1.

    Args:
        like: The weights' params; the upload has its structure.
        norm: The length of the upload: the clipping norm of user-level DP, for the strongest test.
        key: The random stream of this client.
    """
    generator = key.torch()
    direction = trees.map(lambda leaf: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype), like)
    return trees.scale(norm / trees.square_norm(direction).sqrt(), direction)


def update_scores(updates: list[Tree], initial: Tree, final: Tree) -> np.ndarray:
    """Return how far the model moved along each canary client's upload, [canaries].

    Source: Andrew et al., ICLR 2024 (arXiv 2302.03098), Algorithm 1, whose score is the cosine. The dot
    product orders canaries of one length alike.

    Args:
        updates: The canary clients' uploads, as differences to add to the weights.
        initial: The weights' params before the first round.
        final: The params after the last one.
    """
    change = trees.sub(final, initial)
    return np.array([float(trees.dot(update, change)) for update in updates])
