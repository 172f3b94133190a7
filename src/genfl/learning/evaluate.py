"""How good a model is on labelled data."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor

from genfl.learning.task import Task, Weights


class Scores(TypedDict):
    """How good a classifier is.

    Attributes:
        accuracy: In [0, 1].
        macro_f1: The mean of the classes' F1 scores, over the classes that occur in the labels or the
            predictions, in [0, 1].
        recall: See `recall`.
        calibration_error: See `calibration_error`; None where a diverged model's confidence is no number.
        loss: The mean cross-entropy in nats; None where a diverged model's overflows.
    """

    accuracy: float
    macro_f1: float
    recall: list[float | None]
    calibration_error: float | None
    loss: float | None


def evaluate(task: Task, weights: Weights, x: Tensor, y: Tensor) -> Scores:
    """Score a classifier.

    Args:
        task: The classification task.
        weights: The model, which computes where it is.
        x: Inputs [n, ...].
        y: True class indices [n], on the CPU.
    """
    scores = task.predict(weights, x).cpu()
    predicted = scores.argmax(1)
    return {
        "accuracy": float((predicted == y).double().mean()),
        "macro_f1": float(f1_score(y.numpy(), predicted.numpy(), average="macro", zero_division=0)),
        "recall": recall(predicted, y, scores.shape[1]),
        "calibration_error": _finite(calibration_error(scores.softmax(1), y)),
        "loss": _finite(float(F.cross_entropy(scores, y))),
    }


def recall(predicted: Tensor, y: Tensor, classes: int) -> list[float | None]:
    """Return for each class the share of its examples that is recognised, in [0, 1]; None where it has none.

    Args:
        predicted: Class indices [n].
        y: True class indices [n].
        classes: The number of classes.
    """
    found, there = (rows.bincount(minlength=classes).tolist() for rows in (y[predicted == y], y))
    return [hits / total if total else None for hits, total in zip(found, there, strict=True)]


def calibration_error(probabilities: Tensor, y: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error, ``Σ_b n_b/n |acc_b − conf_b|``.

    It says how far confidence, the probability of the predicted class, is from accuracy, in bins of
    confidence ``((b − 1)/B, b/B]``.

    Source: Guo et al., ICML 2017 (arXiv 1706.04599), Equation 3, with its 15 bins.

    Args:
        probabilities: Of the classes, [n, classes], in [0, 1].
        y: True class indices [n].
        bins: The number of bins B.

    Returns:
        In [0, 1]; NaN if a probability is.
    """
    confidence, predicted = probabilities.double().max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    gaps = (predicted == y).double() - confidence
    return float(torch.bucketize(confidence, edges).bincount(gaps).abs().sum() / len(y))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
