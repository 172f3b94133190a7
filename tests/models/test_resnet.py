"""Residual networks against torchvision's names and transformers' arithmetic."""

import pytest
import torch
from support.parameters import mostly_slow
from torch import nn

from genfl.models import MODELS
from genfl.models.resnet import ResNet

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


def torchvision_state(name):
    """Every name and shape of torchvision's state dict, in its order, from the architecture's description."""

    def batch_norm(prefix, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{prefix}.{part}", (channels,)
        yield f"{prefix}.num_batches_tracked", ()

    def state():
        yield "conv1.weight", (64, 3, 7, 7)
        yield from batch_norm("bn1", 64)
        inputs = 64
        for layer, depth in enumerate(DEPTHS[name], 1):
            width = 32 * 2**layer
            outputs = width if name == "resnet18" else 4 * width
            for block in range(depth):
                prefix = f"layer{layer}.{block}"
                if name == "resnet18":
                    convolutions = [(inputs, width, 3), (width, width, 3)]
                else:
                    convolutions = [(inputs, width, 1), (width, width, 3), (width, outputs, 1)]
                for number, (i, o, k) in enumerate(convolutions, 1):
                    yield f"{prefix}.conv{number}.weight", (o, i, k, k)
                    yield from batch_norm(f"{prefix}.bn{number}", o)
                if block == 0 and inputs != outputs:
                    yield f"{prefix}.downsample.0.weight", (outputs, inputs, 1, 1)
                    yield from batch_norm(f"{prefix}.downsample.1", outputs)
                inputs = outputs
        yield "fc.weight", (1000, inputs)
        yield "fc.bias", (1000,)

    return list(state())


@pytest.mark.parametrize("name", list(DEPTHS))
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        model = MODELS[name].build((3, 224, 224), 1000)
    assert [(key, tuple(value.shape)) for key, value in model.state_dict().items()] == torchvision_state(name)
    parameters = [shape for key, shape in torchvision_state(name) if "running" not in key and shape]
    assert sum(torch.Size(shape).numel() for shape in parameters) == sum(
        p.numel() for p in model.parameters()
    )


def random_statistics(model):
    """Running statistics and affine parameters as after training, so that evaluation depends on each."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value in (module.running_mean, module.bias.data):
                value.normal_()
            for value in (module.running_var, module.weight.data):
                value.uniform_(0.5, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(DEPTHS))
def test_features_and_logits_are_those_of_transformers(name):
    """Of ResNetForImageClassification, which was checked against torchvision's weights, with our weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    model = MODELS[name].build((3, 64, 96), 7).eval()
    random_statistics(model)
    widths = [64, 128, 256, 512]
    basic = name == "resnet18"
    config = ResNetConfig(
        hidden_sizes=widths if basic else [4 * w for w in widths],
        depths=list(DEPTHS[name]),
        layer_type="basic" if basic else "bottleneck",
        num_labels=7,
    )
    with torch.device("meta"):
        theirs = ResNetForImageClassification(config).eval()

    def renamed(key):
        module, part = key.rsplit(".", 1)
        if module == "fc":
            return f"classifier.1.{part}"
        kind = (
            "convolution"
            if part == "weight" and ("conv" in module or module.endswith("downsample.0"))
            else "normalization"
        )
        if "layer" not in module:
            return f"resnet.embedder.embedder.{kind}.{part}"
        layer, block, inner = module.removeprefix("layer").split(".", 2)
        place = "shortcut" if inner.startswith("downsample") else f"layer.{int(inner[-1]) - 1}"
        return f"resnet.encoder.stages.{int(layer) - 1}.layers.{block}.{place}.{kind}.{part}"

    theirs.load_state_dict({renamed(k): v for k, v in model.state_dict().items()}, assign=True)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x).logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            model.features(x), theirs.resnet(x).pooler_output.flatten(1), rtol=1e-3, atol=1e-3
        )


def test_the_cifar_stem_keeps_height_and_width():
    seen = []
    for stem in ("imagenet", "cifar"):
        model = MODELS["resnet18"].build((3, 32, 64), 10, stem=stem).eval()
        for layer in (model.layer1, model.layer4):
            layer.register_forward_hook(lambda module, args, y: seen.append(tuple(y.shape[1:])))
        model(torch.zeros(1, 3, 32, 64))
        assert model.conv1.kernel_size == ((7, 7) if stem == "imagenet" else (3, 3))
    assert seen == [(64, 8, 16), (512, 1, 2), (64, 32, 64), (512, 4, 8)]


def test_shortcut_a_is_every_second_pixel_and_channels_of_zeros():
    model = MODELS["resnet20"].build((3, 32, 32), 10)
    x = torch.randn(2, 16, 6, 6)
    y = model.layer2[0].downsample(x)
    assert y.shape == (2, 32, 3, 3)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert y[:, 16:].abs().max() == 0


@pytest.mark.parametrize("name", mostly_slow(["resnet18", "resnet50", "resnet20"], "resnet20"))
def test_a_block_whose_convolutions_vanish_is_its_shortcut(name):
    model = MODELS[name].build((3, 32, 32), 10).eval()
    block = model.layer1[-1]  # keeps its shape
    last = block.bn3 if name == "resnet50" else block.bn2
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    x = torch.randn(2, block.conv1.in_channels, 5, 5)
    assert torch.equal(block(x), x.relu())


def test_convolutions_start_from_he_normal():
    torch.manual_seed(0)
    model: ResNet = MODELS["resnet18"].build((3, 32, 32), 10)
    for convolution in (model.conv1, model.layer2[0].conv1, model.layer4[1].conv2):
        fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
        expected = (2 / fan_out) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert abs(convolution.weight.mean().item()) < 0.05 * expected
    biases = [m.bias for m in MODELS["vgg19"].build((3, 32, 32), 10).body if isinstance(m, nn.Conv2d)]
    assert len(biases) == 16 and not any(bias.any() for bias in biases)
