"""Figures of a classifier, against others' implementations and transcriptions of their definitions."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score

from genfl.learning.evaluate import calibration_error, evaluate, recall
from genfl.learning.task import Task, classification
from genfl.models import Stack
from genfl.references import mean
from genfl.rng import Key
from genfl.simulation import Trace

given = Task(init=None, loss=None, forward=lambda weights, x: (x, x))
"""A task whose inputs are the logits."""


def draw(n, classes, seed=0, sharpness=2.0):
    rng = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, classes, generator=rng)
    return logits, torch.randint(classes, (n,), generator=rng)


def guo(probabilities, y, bins=15):
    """Guo et al. 2017, Equations 1 to 3, word for word."""
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    total = 0.0
    for m in range(1, bins + 1):
        rows = [i for i in range(len(y)) if (m - 1) / bins < confidence[i] <= m / bins]
        if rows:
            accuracy = np.mean([predicted[i] == y[i] for i in rows])
            total += len(rows) / len(y) * abs(accuracy - np.mean([confidence[i] for i in rows]))
    return total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 10])
def test_calibration_error_is_that_of_its_paper(seed, classes):
    logits, y = draw(300, classes, seed)
    probabilities = logits.double().softmax(1)
    assert calibration_error(probabilities, y) == pytest.approx(
        guo(probabilities.numpy(), y.numpy()), abs=1e-12
    )


def test_calibration_error_of_known_cases():
    sure = torch.eye(2).repeat(5, 1)  # always certain: wrong in 3 of 10
    y = torch.tensor([0, 1] * 5)
    y[:3] = 1 - y[:3]
    assert calibration_error(sure, y) == pytest.approx(0.3)
    # of the same bin: 0.8 and 0.85 sure, right once in two: |0.5 - 0.825|; in another: 0.6 sure and right
    some = torch.tensor([[0.8, 0.2], [0.85, 0.15], [0.6, 0.4]])
    assert calibration_error(some, torch.tensor([0, 1, 0]), bins=3) == pytest.approx(
        2 / 3 * 0.325 + 1 / 3 * 0.4
    )
    # errors of one bin cancel, of two they do not
    assert calibration_error(torch.tensor([[0.5, 0.5]] * 2), torch.tensor([0, 1])) == pytest.approx(0)
    halves = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    assert calibration_error(halves, torch.tensor([1, 0])) == pytest.approx((0.9 + 0.4) / 2)
    assert calibration_error(halves, torch.tensor([1, 0]), bins=1) == pytest.approx(abs(0.5 - 0.75))


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    probabilities = torch.tensor([[0.75, 0.25], [0.76, 0.24], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 0])
    assert calibration_error(probabilities, y, bins=4) == pytest.approx(guo(probabilities.numpy(), y, bins=4))
    assert calibration_error(probabilities, y, bins=4) != pytest.approx(
        abs(0.5 - 0.755) / 2 + 0.5 / 4  # with 0.75 in the upper bin
    )


def test_recall_is_that_of_scikit_learn_and_none_without_examples():
    logits, y = draw(200, 6)
    y[y == 4] = 5
    predicted = logits.argmax(1)
    found = recall(predicted, y, 6)
    theirs = recall_score(y, predicted, labels=range(6), average=None, zero_division=np.nan)
    assert found[4] is None
    assert math.isnan(theirs[4])
    assert [value for value in found if value is not None] == pytest.approx(np.delete(theirs, 4).tolist())


def test_scores_of_a_model_agree_with_each_other():
    task = classification(lambda: Stack(torch.nn.Flatten(), torch.nn.Linear(5, 3)), (5,))
    x, y = draw(90, 5)[0], torch.arange(90) % 3
    weights = task.init(Key(0))
    scores = evaluate(task, weights, x, y)
    assert np.mean(scores["recall"]) == pytest.approx(scores["accuracy"]), "as classes are of one size"
    assert scores["calibration_error"] == pytest.approx(
        guo(task.predict(weights, x).softmax(1).double().numpy(), y.numpy()), abs=1e-6
    )


def test_macro_f1_counts_every_class_alike_however_many_examples_it_has():
    """Eight of nine, and one of three, are of the class; the one example of the third is missed."""
    predicted, y = torch.tensor([0] * 8 + [1] * 2 + [0]), torch.tensor([0] * 8 + [0, 1, 2])
    logits = torch.nn.functional.one_hot(predicted, 3).float()
    f1 = [2 * 8 / (9 + 9), 2 * 1 / (2 + 1), 0.0]  # 2 hits / (predicted + true)
    assert evaluate(given, {}, logits, y)["macro_f1"] == pytest.approx(sum(f1) / 3, abs=1e-12)


def test_figures_of_classes_are_averaged_one_by_one_over_the_models_of_a_reference():
    def trace(*recalls):
        return Trace({}, [{"round": n, "recall": recall} for n, recall in enumerate(recalls)], [])

    found = mean([trace([0.0, 0.5, None], [1.0, 0.5, None]), trace([1.0, 1.0, None], [1.0, 0.0, None])])
    assert [row["recall"] for row in found["evaluations"]] == [[0.5, 0.75, None], [1.0, 0.25, None]]


def test_a_diverged_model_has_no_loss_and_no_calibration_but_an_accuracy():
    logits = torch.tensor([[torch.inf, 0.0], [1.0, 0.0], [0.0, torch.nan]])
    scores = evaluate(given, {}, logits, torch.tensor([0, 0, 1]))
    assert scores["loss"] is None
    assert scores["calibration_error"] is None
    assert scores["accuracy"] == 1
    assert scores["recall"] == [1, 1]
