"""How good a model is on labelled data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor

from genfl.learning.task import Task, Weights


def logits(task: Task, weights: Weights, x: Tensor, batch_size: int = 512) -> Tensor:
    """Returns the model's logits on all inputs, [n, classes]."""
    return torch.cat([task.predict(weights, part) for part in x.split(batch_size)])


def evaluate(task: Task, weights: Weights, x: Tensor, y: Tensor) -> dict[str, float]:
    """Scores a classifier.

    Args:
        task: The classification task.
        weights: The model.
        x: Inputs [n, ...].
        y: True class indices [n].

    Returns:
        ``accuracy`` and ``macro_f1`` (the mean of the classes' F1 scores, over the classes that occur in the
        labels or the predictions), both in [0, 1], and ``loss``, the mean cross-entropy in nats.
    """
    scores = logits(task, weights, x)
    predicted = scores.argmax(1)
    return {
        "accuracy": float((predicted == y).double().mean()),
        "macro_f1": float(f1_score(y.numpy(), predicted.numpy(), average="macro", zero_division=0)),
        "loss": float(F.cross_entropy(scores, y)),
    }
