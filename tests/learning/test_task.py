import pytest
import torch
from torch import nn

from genfl.learning.task import classification, load_weights, weights_of
from genfl.models import CNN, Stack
from genfl.rng import Key


def noisy():
    return Stack(nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), nn.Linear(64, 3))


def test_batch_norm_that_counts_its_batches_is_refused():
    """Its count is no part of the weights, so that its average would never move."""
    body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, momentum=None))
    with pytest.raises(ValueError, match="give it a momentum"):
        classification(lambda: Stack(body, nn.Linear(64, 3)), (1, 8, 8))


def test_a_key_decides_the_initial_weights():
    task = classification(lambda: CNN((1, 8, 8), 10), (1, 8, 8))
    a, b, c = task.init(Key(0)), task.init(Key(0)), task.init(Key(1))
    for name in a["params"]:
        assert torch.equal(a["params"][name], b["params"][name])
    assert not torch.equal(a["params"]["classifier.weight"], c["params"]["classifier.weight"])


def test_dropout_is_decided_by_the_key_and_absent_in_prediction():
    task = classification(noisy, (1, 8, 8))
    weights = task.init(Key(0))
    batch = {"x": torch.ones(4, 1, 8, 8), "y": torch.zeros(4, dtype=torch.long)}

    def features(key):
        return task.loss(weights["params"], {}, batch, key)[1].features

    assert torch.equal(features(Key(0).fold(1)), features(Key(0).fold(1)))
    assert not torch.equal(features(Key(0).fold(1)), features(Key(0).fold(2)))
    assert torch.equal(task.predict(weights, batch["x"]), task.predict(weights, batch["x"]))


def test_prediction_is_the_models_own_in_evaluation_mode():
    task = classification(lambda: CNN((1, 8, 8), 10, norm="batch"), (1, 8, 8))
    weights = task.init(Key(0))
    weights["buffers"] = {name: torch.rand_like(b) + 0.5 for name, b in weights["buffers"].items()}
    model = CNN((1, 8, 8), 10, norm="batch").eval()
    load_weights(model, weights)
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(task.predict(weights, x), model(x).detach())
    for name, value in weights_of(model)["buffers"].items():
        assert torch.equal(value, weights["buffers"][name])


def test_aux_holds_features_and_logits_of_the_pass():
    task = classification(lambda: CNN((1, 8, 8), 10), (1, 8, 8))
    weights = task.init(Key(0))
    batch = {"x": torch.rand(4, 1, 8, 8), "y": torch.arange(4)}
    loss, aux = task.loss(weights["params"], weights["buffers"], batch, Key(0))
    p = weights["params"]
    logits = aux.features @ p["classifier.weight"].T + p["classifier.bias"]
    torch.testing.assert_close(aux.logits, logits)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, batch["y"]))
