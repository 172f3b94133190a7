"""Scores of membership inference: the higher the score of an example, the likelier it was trained on.

Everything starts from one number for each example and model, its confidence ``φ = log(p / (1 − p))``, where p
is the probability that the model gives to the example's class. The loss is ``log(1 + exp(−φ))``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp
from scipy.stats import norm

from genfl.errors import InputError

FloatArray = NDArray[np.float64]
"""A number for each example, or for each model and example."""

Membership = NDArray[np.bool_]
"""Whether each shadow model was trained on each example, bool [models, n]."""

FIXED_BELOW = 64
"""LiRA fits one variance for all examples with fewer shadow models than this, as its paper advises."""

SMALLEST_DEVIATION = 1e-6
"""The least standard deviation of a fitted Gaussian, so that equal confidences give finite scores."""


def confidence(logits: NDArray[np.floating], y: NDArray[np.integer]) -> FloatArray:
    """Return the logit-scaled confidence of a model in the class of each example.

    ``φ(p) = log(p / (1 − p))`` is computed from logits as ``z_y − log Σ_{c ≠ y} exp(z_c)``, which keeps its
    precision where p is close to 1.

    Source: Carlini et al., IEEE S&P 2022 (arXiv 2112.03570), the stable form of the logit scaling in the
    section on LiRA's details.

    Args:
        logits: The model's outputs, [n, classes], finite, of at least two classes.
        y: The class of each example, [n].

    Returns:
        Confidences, [n].

    Raises:
        InputError: An output is not finite.
    """
    z = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(z).all():
        raise InputError("method: the model's outputs are not finite; name a method that did not diverge")
    rows = np.arange(len(z))
    others = z.copy()
    others[rows, y] = -np.inf
    scores: FloatArray = z[rows, y] - logsumexp(others, axis=1)
    return scores


def loss(phi: FloatArray) -> FloatArray:
    """Return the cross-entropy of each example, in nats, from its confidence."""
    losses: FloatArray = np.logaddexp(0.0, -phi)
    return losses


def loss_score(phi: FloatArray) -> FloatArray:
    """Return the scores of the loss attack: the smaller the loss, the likelier a member.

    FedGC's attack classifies examples by their loss. A classifier of one number is a threshold, which
    `genfl.privacy.attacks.roc.held_out_accuracy` fits on examples whose membership the attacker knows.

    Source: Ye et al., FedGC (arXiv 2312.05807), Appendix F.1; the loss threshold is that of Yeom et al., CSF
    2018 (arXiv 1709.01604).

    Args:
        phi: Confidences of the attacked model, [n].

    Returns:
        Minus the losses, [n].
    """
    return -loss(phi)


def lira_online(
    observed: FloatArray, shadows: FloatArray, member: Membership, fixed_variance: bool | None = None
) -> FloatArray:
    """Return the logarithm of LiRA's likelihood ratio.

    ``Λ = N(φ; μ_in, σ²_in) / N(φ; μ_out, σ²_out)``. For each example, one Gaussian is fitted to its
    confidences under the shadow models that were trained on it, and one to those under the others.

    Source: Carlini et al. (arXiv 2112.03570), Algorithm 1. A fixed variance is the pooled variance within
    examples, without the spread between them. Each model is queried once for an example.

    Args:
        observed: Confidences of the attacked model, [n].
        shadows: Confidences of the shadow models, [models, n].
        member: Whether each shadow model was trained on each example.
        fixed_variance: Whether all examples share one variance; by default with fewer than `FIXED_BELOW`
            shadow models.

    Returns:
        ``log Λ``, [n].

    Raises:
        ValueError: An example has too few shadow models with it or without it.
    """
    fixed = len(shadows) < FIXED_BELOW if fixed_variance is None else fixed_variance
    inside, outside = (_gaussian(shadows, chosen, fixed) for chosen in (member, ~member))
    ratio: FloatArray = norm.logpdf(observed, *inside) - norm.logpdf(observed, *outside)
    return ratio


def lira_offline(
    observed: FloatArray, shadows: FloatArray, member: Membership, fixed_variance: bool | None = None
) -> FloatArray:
    """Return the score of LiRA's one-sided test, which reads only shadow models that never saw the example.

    The paper's score is ``Λ = 1 − Pr[Z > φ]`` with ``Z ~ N(μ_out, σ²_out)``. This function returns
    ``(φ − μ_out) / σ_out``, whose normal distribution function is Λ. It orders examples in the same way, and
    does not round to 1.

    Source: Carlini et al. (arXiv 2112.03570), the offline attack.

    Args:
        observed: Confidences of the attacked model, [n].
        shadows: Confidences of the shadow models, [models, n].
        member: Whether each shadow model was trained on each example.
        fixed_variance: As in `lira_online`.

    Returns:
        Standardised confidences, [n].

    Raises:
        ValueError: An example has too few shadow models without it.
    """
    fixed = len(shadows) < FIXED_BELOW if fixed_variance is None else fixed_variance
    mean, deviation = _gaussian(shadows, ~member, fixed)
    return (observed - mean) / deviation


def rmia(
    observed: FloatArray,
    shadows: FloatArray,
    member: Membership,
    population: Membership,
    a: float = 0.3,
    gamma: float = 1.0,
) -> FloatArray:
    """Return the scores of RMIA: the share of population samples that an example's likelihood ratio beats.

    ``LR(x, z) = [Pr(x|θ) / Pr(x)] / [Pr(z|θ) / Pr(z)]``, and the score of x is ``Pr_z[LR(x, z) ≥ γ]``. Pr is
    the probability of the true class. Only shadow models that never saw an example are read for it (the
    offline attack): ``Pr(x) ≈ ½ ((1 + a) Pr_out(x) + (1 − a))``, where Pr_out is their mean.

    A sample of the population does not beat itself. So where the population are the non-members, the scores
    have the ROC of the ratios. The score grows with ``Pr(x|θ) / Pr(x)``. So the population decides how fine
    the scores are, and hardly
    the order of the examples.

    Source: Zarifzadeh et al., ICML 2024 (arXiv 2312.03262): the relative likelihood ratio, and the linear
    approximation of the offline attack.

    Args:
        observed: Confidences of the attacked model, [n].
        shadows: Confidences of the shadow models, [models, n].
        member: Whether each shadow model was trained on each example.
        population: Which of the examples are the population z, bool [n].
        a: The linear correction for a mean over models that never saw the example, in [0, 1]. The paper
            takes 0.3 for CIFAR-10.
        gamma: The least ratio γ, at least 1.

    Returns:
        Scores, [n], in [0, 1].

    Raises:
        ValueError: An example has no shadow model without it, or the population is empty.
    """
    if not population.any():
        raise ValueError("the population is empty")
    counts = (~member).sum(0)
    if not counts.all():
        raise ValueError(f"example {int(counts.argmin())} is in every shadow model")
    out = (expit(shadows) * ~member).sum(0) / counts
    ratio = expit(observed) / (0.5 * ((1 + a) * out + (1 - a)))
    beaten = np.searchsorted(np.sort(ratio[population]), ratio / gamma, side="right")
    itself = population & (ratio / gamma >= ratio)
    scores: FloatArray = (beaten - itself) / population.sum()
    return scores


def _gaussian(shadows: FloatArray, chosen: Membership, fixed: bool) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard deviation of each example's confidences under the chosen models, both [n]."""
    counts = chosen.sum(0)
    least = 1 if fixed else 2
    if counts.min() < least or (fixed and counts.max() < 2):
        raise ValueError(f"example {int(counts.argmin())} has {int(counts.min())} shadow models to fit")
    mean = (shadows * chosen).sum(0) / counts
    squares = ((shadows - mean) ** 2 * chosen).sum(0)
    variance = np.full_like(mean, squares.sum() / (counts - 1).sum()) if fixed else squares / (counts - 1)
    return mean, np.maximum(np.sqrt(variance), SMALLEST_DEVIATION)
