"""Small models, ConvNet, VGG and FedAudio against their layers written out."""

import pytest
import torch
import torch.nn.functional as F

from genfl.models import MODELS


def test_the_small_models_are_their_layers(float64):
    x = torch.randn(2, 1, 9, 12)
    cnn = MODELS["cnn"].build((1, 9, 12), 10, width=4)
    p, y = dict(cnn.named_parameters()), x
    for conv, norm in (("body.0", "body.1"), ("body.4", "body.5")):
        y = F.conv2d(y, p[f"{conv}.weight"], p[f"{conv}.bias"], padding=1)
        y = F.max_pool2d(F.relu(F.group_norm(y, 4, p[f"{norm}.weight"], p[f"{norm}.bias"])), 2)
    torch.testing.assert_close(cnn.features(x), y.flatten(1))
    mlp = MODELS["mlp"].build((1, 9, 12), 10, width=4)
    hidden = mlp.body[1]
    torch.testing.assert_close(mlp.features(x), F.relu(x.flatten(1) @ hidden.weight.T + hidden.bias))


def test_a_hidden_layer_gives_the_cnn_as_many_features_as_asked(float64):
    build, x = MODELS["cnn"].build, torch.randn(2, 3, 8, 8)
    model = build((3, 8, 8), 5, width=4, hidden=7)
    plain = build((3, 8, 8), 5, width=4)
    assert [*model.body.state_dict()][:-2] == [*plain.body.state_dict()], "without it, nothing changes"
    plain.body.load_state_dict(dict([*model.body.state_dict().items()][:-2]))
    flat, hidden = plain.features(x), model.body[-2]
    expected = torch.relu(flat @ hidden.weight.T + hidden.bias)
    torch.testing.assert_close(model.features(x), expected)
    assert model.classifier.in_features == 7


def test_the_convnet_is_its_papers(float64):
    model = MODELS["convnet"].build((3, 16, 24), 10, width=8)
    names = dict(model.named_parameters())
    for value in names.values():
        torch.nn.init.normal_(value.data)
    x = y = torch.randn(2, 3, 16, 24)
    for block in range(3):
        conv, norm = f"body.{4 * block}", f"body.{4 * block + 1}"
        y = F.conv2d(y, names[f"{conv}.weight"], names[f"{conv}.bias"], padding=1)
        y = F.instance_norm(y, weight=names[f"{norm}.weight"], bias=names[f"{norm}.bias"])
        y = F.avg_pool2d(F.relu(y), 2)
    torch.testing.assert_close(model.features(x), y.flatten(1))
    torch.testing.assert_close(
        model(x), y.flatten(1) @ names["classifier.weight"].T + names["classifier.bias"]
    )


@pytest.mark.slow
def test_vgg19_is_configuration_e(float64):
    model = MODELS["vgg19"].build((3, 64, 64), 10, norm="none")
    parameters = list(model.parameters())
    x = y = torch.randn(1, 3, 64, 64)
    for stage in ("64 64", "128 128", "256 256 256 256", "512 512 512 512", "512 512 512 512"):
        for width in map(int, stage.split()):
            weight, bias = parameters.pop(0), parameters.pop(0)
            assert len(weight) == width
            y = F.relu(F.conv2d(y, weight, bias, padding=1))
        y = F.max_pool2d(y, 2)
    assert y.shape == (1, 512, 2, 2)
    torch.testing.assert_close(model.features(x), y.mean((2, 3)))
    assert len(parameters) == 2


def gru(x, weights, reverse):
    """One direction of a GRU [n, time, d], by PyTorch's documented equations."""
    w_ih, w_hh, b_ih, b_hh = weights
    h = torch.zeros(len(x), w_hh.shape[1])
    states = []
    for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        ir, iz, i_n = (x[:, t] @ w_ih.T + b_ih).chunk(3, 1)
        hr, hz, hn = (h @ w_hh.T + b_hh).chunk(3, 1)
        z = torch.sigmoid(iz + hz)
        h = (1 - z) * torch.tanh(i_n + torch.sigmoid(ir + hr) * hn) + z * h
        states.append(h)
    return torch.stack(states, 1)  # in the order of the walk, which the mean does not see


def test_fedaudio_is_convolutions_a_gru_and_the_mean_over_time(float64):
    model = MODELS["fedaudio"].build((18, 6), 5, width=8).eval()
    p = dict(model.named_parameters())
    x = torch.randn(3, 18, 6)
    y = x.transpose(1, 2)
    for conv in ("conv.0", "conv.4"):
        y = F.max_pool1d(F.relu(F.conv1d(y, p[f"{conv}.weight"], p[f"{conv}.bias"], padding=1)), 2)
    y = y.transpose(1, 2)
    assert y.shape == (3, 4, 8)
    directions = []
    for suffix in ("", "_reverse"):
        weights = [p[f"rnn.{part}_l0{suffix}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        directions.append(gru(y, weights, bool(suffix)))
    pooled = torch.cat(directions, -1).mean(1)
    z = F.relu(pooled @ p["hidden.weight"].T + p["hidden.bias"])
    torch.testing.assert_close(model.features(x), z)


def test_fedaudios_dropout_zeroes_a_share_of_the_convolutions_output():
    model = MODELS["fedaudio"].build((16, 6), 5, width=8, dropout=0.5)
    x = torch.randn(64, 6, 16)
    torch.manual_seed(0)
    thinned, whole = model.train().conv(x), model.eval().conv(x)
    kept = thinned[whole > 0] > 0
    assert 0.4 < kept.double().mean() < 0.6
    torch.testing.assert_close(thinned[whole > 0][kept], 2 * whole[whole > 0][kept])
