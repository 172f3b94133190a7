"""Scores of a classifier on labelled data."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from genfl.learning.task import Task, Weights


class Scores(TypedDict):
    """The scores of a classifier.

    Attributes:
        accuracy: In [0, 1].
        macro_f1: The mean F1 score over the classes that occur in the labels or the predictions, in [0, 1].
        recall: The recall of each class; see `recall`.
        calibration_error: See `calibration_error`. None if the model diverged and its confidence is NaN.
        loss: The mean cross-entropy in nats. None if it is not finite.
    """

    accuracy: float
    macro_f1: float
    recall: list[float | None]
    calibration_error: float | None
    loss: float | None


def evaluate(task: Task, weights: Weights, x: Tensor, y: Tensor) -> Scores:
    """Return the scores of a classifier.

    Args:
        task: The classification task.
        weights: The model. Predictions are computed on its device.
        x: Inputs [n, ...].
        y: True class indices [n], on the CPU.
    """
    return scores_of(task.predict(weights, x).cpu(), y)


def scores_of(scores: Tensor, y: Tensor) -> Scores:
    """Return the scores of a classifier from its outputs.

    Args:
        scores: The logits [n, classes].
        y: True class indices [n].
    """
    from sklearn.metrics import f1_score  # slow to import, and not every command evaluates

    predicted = scores.argmax(1)
    return {
        "accuracy": float((predicted == y).double().mean()),
        "macro_f1": float(f1_score(y.numpy(), predicted.numpy(), average="macro", zero_division=0)),
        "recall": recall(predicted, y, scores.shape[1]),
        "calibration_error": _finite(calibration_error(scores.softmax(1), y)),
        "loss": _finite(float(F.cross_entropy(scores, y))),
    }


def recall(predicted: Tensor, y: Tensor, classes: int) -> list[float | None]:
    """Return the recall of each class, in [0, 1]; None for a class without examples.

    Args:
        predicted: Class indices [n].
        y: True class indices [n].
        classes: The number of classes.
    """
    hits, totals = (rows.bincount(minlength=classes).tolist() for rows in (y[predicted == y], y))
    return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]


def calibration_error(probabilities: Tensor, y: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error, ``Σ_b n_b/n |acc_b − conf_b|``.

    Confidence is the probability of the predicted class. The error is the mean distance of confidence from
    accuracy, over bins of confidence ``((b − 1)/B, b/B]``.

    Source: Guo et al., ICML 2017 (arXiv 1706.04599), Equation 3, with its 15 bins.

    Args:
        probabilities: The probability of each class, [n, classes], in [0, 1].
        y: True class indices [n].
        bins: The number of bins B.

    Returns:
        The error, in [0, 1]; NaN if a probability is NaN.
    """
    confidence, predicted = probabilities.double().max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    gaps = (predicted == y).double() - confidence
    return float(torch.bucketize(confidence, edges).bincount(gaps).abs().sum() / len(y))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
