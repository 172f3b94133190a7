"""Feature extractors by which clients are compared, against NumPy and against what a run trains."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genfl import config, pipeline
from genfl.analysis.extractors import build_extractor, choose_extractor, project, token_counts
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.models import CNN, MODELS
from genfl.models.pretrained import IMAGENET

SHAPE = (1, 8, 8)


def test_token_counts_are_those_of_numpy():
    tokens = np.random.default_rng(0).integers(0, 9000, size=(5, 30))
    tokens[:, 20:] = 0  # padding
    counted = token_counts(torch.from_numpy(tokens)).numpy()
    for row, text in zip(counted, tokens, strict=True):
        assert np.array_equal(row, np.bincount(text[text > 0] % 4096, minlength=4096))


def test_a_projection_keeps_distances_and_is_fixed():
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(12, 3, 20, 20)).astype(np.float32))
    projected, flat = project(x), x.flatten(1)
    ratio = (
        torch.cdist(projected, projected)[~torch.eye(12, dtype=bool)]
        / torch.cdist(flat, flat)[~torch.eye(12, dtype=bool)]
    )
    # 256 features: the standard deviation of a ratio is 1 / √512 = 0.044
    assert abs(ratio.mean() - 1) < 0.03
    assert ratio.std() < 0.07
    torch.manual_seed(7)
    assert torch.equal(project(x), projected)
    assert torch.allclose(project(x[:3]), projected[:3], atol=1e-4)


def test_a_file_gives_the_features_of_its_model(tmp_path):
    torch.manual_seed(0)
    model = CNN(SHAPE, 7, width=8).eval()  # a head for other classes
    save_file(model.state_dict(), tmp_path / "cnn.safetensors")
    x = torch.randn(4, *SHAPE)
    choice = choose_extractor(str(tmp_path / "cnn.safetensors"), "cnn", {"width": 8})
    assert torch.equal(build_extractor(choice, SHAPE, 10)(x), model.features(x).detach())
    with pytest.raises(ValueError, match="does not fit the model"):
        build_extractor(choose_extractor(f"mlp:{tmp_path / 'cnn.safetensors'}", "cnn", {}), SHAPE, 10)
    projected = choose_extractor(str(tmp_path / "cnn.safetensors"), "cnn", {"width": 8, "projection": 4})
    with pytest.raises(ValueError, match="no projection head, so its features would be random"):
        build_extractor(projected, SHAPE, 10)


@pytest.mark.slow
def test_imagenet_extracts_from_small_grey_images(tmp_path, monkeypatch):
    """Weights of torchvision's names and shapes, in the folder of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = MODELS["resnet18"].build((3, 32, 32), 1000).eval()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(model.state_dict(), tmp_path / "hub" / "checkpoints" / IMAGENET["resnet18"][0])
    extract = build_extractor(choose_extractor("imagenet", "cnn", {}), SHAPE, 10)
    x = torch.randn(2, *SHAPE)
    enlarged = torch.nn.functional.interpolate(
        x.repeat(1, 3, 1, 1), (32, 32), mode="bilinear", antialias=True
    )
    assert torch.allclose(extract(x), model.features(enlarged), atol=1e-5)
    with pytest.raises(ValueError, match="imagenet takes images"):
        build_extractor(choose_extractor("imagenet", "lstm", {}), (25,), 2)


CONFIG = """
name: extractors
seeds: [0, 1]
data: {name: digits, partition: {kind: dirichlet, alpha: 0.05, clients: 4, min_size: 5}}
prompts: {style: label, per_label: 4}
generator: {kind: none}
model: {name: mlp, width: 8}
federate: {rounds: 1, clients_per_round: 2, local: {steps: 1, batch_size: 8}, heterogeneity: true}
methods:
  plain: {algorithm: fedavg}
"""
GENERATES = ["generator={kind: image, steps: 1}", "methods.warm={algorithm: fedavg, start: pretrained}"]


def compared(folder, *overrides):
    return pipeline.execute(config.parse(CONFIG, overrides), folder)["methods"]["plain"]["heterogeneity"]


@pytest.mark.slow
def test_a_private_split_has_one_figure_whatever_is_pretrained(tmp_path):
    """The same clients, without a generator and with two recipes of pre-training."""
    alone = compared(tmp_path / "none")
    assert alone["extractor"] == "projection"
    assert len(alone["similarity"]) == len(alone["mean_cosine"]["per_seed"]) == 2
    for number, epochs in enumerate((1, 2)):
        same = compared(tmp_path / str(number), *GENERATES, f"pretrain.epochs={epochs}")
        assert [same[name] for name in ("similarity", "mean_cosine", "mean_l2")] == [
            alone[name] for name in ("similarity", "mean_cosine", "mean_l2")
        ]


@pytest.mark.slow
def test_another_extractor_repeats_no_trial(tmp_path, caplog):
    torch.manual_seed(0)
    save_file(MODELS["mlp"].build(SHAPE, 10, width=8).state_dict(), tmp_path / "mlp.safetensors")
    first = compared(tmp_path / "run")
    trace = tmp_path / "run/federate/plain/seed-0/checkpoint.safetensors"
    before = trace.stat().st_mtime_ns
    settings = config.parse(CONFIG, [f"federate.extractor={tmp_path / 'mlp.safetensors'}"])
    second = pipeline.execute(settings, tmp_path / "run", update=True)
    found = second["methods"]["plain"]["heterogeneity"]
    assert found["mean_cosine"] != first["mean_cosine"]
    assert found["divergence"] == first["divergence"]
    assert trace.stat().st_mtime_ns == before, "the trial was not trained again"


@pytest.mark.parametrize(
    ("extractor", "line"),
    [
        ("nowhere.pth", "federate.extractor: there is no file nowhere.pth"),
        ("cnn:nowhere.pth", "federate.extractor: there is no file nowhere.pth"),
    ],
)
def test_a_missing_file_is_named_before_the_run(tmp_path, extractor, line):
    with pytest.raises(InputError) as error:
        pipeline.checked(config.parse(CONFIG, [f"federate.extractor={extractor}"]), RunContext())
    assert str(error.value) == line
