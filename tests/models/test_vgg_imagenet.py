"""VGG-19 for ImageNet against torchvision's layers, names and shapes, written out."""

import pytest
import torch
from torch import nn

from genfl.models import MODELS
from genfl.models.pretrained import load_pretrained

WIDTHS = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]
"""Configuration E, as torchvision lists it."""

HIDDEN, CLASSES = 24, 7


class Torchvisions(nn.Module):
    """The layers of torchvision's vgg19, or of its vgg19_bn, as plain sequences."""

    def __init__(self, hidden, classes, batch_norm=False):
        super().__init__()
        layers, channels = [], 3
        for width in WIDTHS:
            if width == "M":
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
                continue
            layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, hidden),
            nn.ReLU(True),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(0.5),
            nn.Linear(hidden, classes),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def test_vgg19_has_torchvisions_names_and_shapes():
    with torch.device("meta"):
        ours = MODELS["vgg19_imagenet"].build((3, 224, 224), 1000).state_dict()
        theirs = Torchvisions(4096, 1000).state_dict()
    renamed = {name.replace("body.", "features."): tuple(value.shape) for name, value in ours.items()}
    assert renamed == {name: tuple(value.shape) for name, value in theirs.items()}
    # the file of torchvision's ImageNet weights, by its names of convolutions and dense layers
    numbers = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    layers = [*(f"features.{n}" for n in numbers), *(f"classifier.{n}" for n in (0, 3, 6))]
    assert list(renamed) == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    assert renamed["classifier.0.weight"] == (4096, 25_088)
    assert sum(value.numel() for value in ours.values()) == 143_667_240


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_vgg19_loads_torchvisions_file_and_gives_its_logits(tmp_path, norm):
    torch.manual_seed(0)
    theirs = Torchvisions(HIDDEN, CLASSES, norm == "batch").eval()
    for value in theirs.buffers():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    path = tmp_path / "vgg19.pth"
    torch.save(theirs.state_dict(), path)
    ours = MODELS["vgg19_imagenet"].build((3, 40, 64), CLASSES, norm=norm, hidden=HIDDEN).eval()
    assert load_pretrained(ours, path) == []
    x = torch.randn(2, 3, 40, 64)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected)
        assert expected.std() > 1e-3
        hidden = theirs.classifier[:5](torch.flatten(theirs.avgpool(theirs.features(x)), 1))
        torch.testing.assert_close(ours.features(x), hidden)
    fewer = MODELS["vgg19_imagenet"].build((3, 32, 32), 3, norm=norm, hidden=HIDDEN)
    assert load_pretrained(fewer, path) == ["classifier.6.weight", "classifier.6.bias"]


def test_vgg19_starts_as_torchvision_starts_it():
    torch.manual_seed(0)
    model = MODELS["vgg19_imagenet"].build((3, 32, 32), 10, hidden=64)
    assert model.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert model.classifier[3].weight.std().item() == pytest.approx(0.01, rel=0.05)
    deep = model.body[34].weight  # N(0, 2 / fan-out)
    assert deep.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


@pytest.mark.slow
def test_vgg19_drops_half_of_its_hidden_units_in_training():
    torch.manual_seed(0)
    model = MODELS["vgg19_imagenet"].build((3, 32, 32), 10, hidden=4000).train()
    nn.init.ones_(model.classifier[3].bias)
    with torch.no_grad():
        z = model.features(torch.randn(1, 3, 32, 32))
    assert (z == 0).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert z[z != 0].mean().item() == pytest.approx(2, rel=0.05)
