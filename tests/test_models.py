import pytest
import torch

from genfl.models import CNN, MODELS


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_is_features_and_a_head(name):
    entry = MODELS[name]
    model = entry.build(entry.shape, entry.classes).eval()
    x = torch.rand(3, *entry.shape)
    features = model.features(x)
    assert features.ndim == 2
    assert torch.equal(model(x), model.head(features))
    assert model(x).shape == (3, entry.classes)


@pytest.mark.parametrize(("name", "parameters"), [("cnn", 21_578), ("mlp", 9_610)])
def test_parameter_counts(name, parameters):
    entry = MODELS[name]
    assert sum(p.numel() for p in entry.build(entry.shape, entry.classes).parameters()) == parameters


@pytest.mark.parametrize(("norm", "buffers"), [("group", 0), ("batch", 6), ("none", 0)])
def test_the_norm_layer_is_a_choice(norm, buffers):
    assert len(list(CNN((3, 32, 32), 10, norm=norm).buffers())) == buffers
