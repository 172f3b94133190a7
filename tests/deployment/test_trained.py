"""A run's models need nothing but the run's folder, and read files as training does."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import shutil

import pytest
import torch
from PIL import Image
from support.small_runs import image_folder, image_run
from torch import nn

import genfl
from genfl import pipeline
from genfl.data.sources import DATASETS
from genfl.deployment.description import ModelDescription
from genfl.deployment.trained import RunModel
from genfl.errors import InputError
from genfl.models import MODELS
from genfl.stages.federate.stage import STAGE


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a folder of images, which is moved away."""
    folder = tmp_path_factory.mktemp("trained")
    private = image_folder(folder / "private", 12)
    result = image_run(private, folder / "run", seeds=[0, 1])
    private.rename(folder / "away")
    return result


def test_model_needs_the_folder_alone(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "elsewhere")
    model = genfl.load_run(tmp_path / "elsewhere").model("fedavg", seed=1)
    assert model.label_names == ["dark", "light", "middle"]
    assert not model.training
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    described = model.description
    assert (described.method, described.seed, described.rounds) == ("fedavg", 1, 2)
    assert described.input.size == (8, 8)
    assert described.model.options == {"width": 8, "projection": 0}
    assert not described.model.own


def test_description_has_the_figures_of_the_run(run):
    last = [run.model("fedavg", seed).description.figures for seed in (0, 1)]
    final = run.summary.methods["fedavg"].curve[-1]
    assert sum(figures.accuracy for figures in last) / 2 == pytest.approx(final.mean, abs=1e-12)
    assert {figures.examples for figures in last} == {run.summary.test_samples}


def test_model_is_that_of_the_task(run):
    """The weights of the file, in a module that nothing of the deployment builds."""
    described = run.model("fedavg").description
    plain = MODELS["mlp"].build((3, 8, 8), 3, **described.model.options)
    plain.load_state_dict(run.model("fedavg").state_dict())
    x = torch.rand(5, 3, 8, 8)
    assert torch.equal(run.model("fedavg")(x), plain(x))


def test_predict_reads_files_and_contents(run, tmp_path):
    paths = []
    for name, value in (("dark", 10), ("light", 245)):
        paths.append(tmp_path / f"{name}.png")
        Image.new("RGB", (13, 9), (value, value, value)).save(paths[-1])
    model = run.model("fedavg")
    from_files = model.predict(paths, top=2)
    from_contents = model.predict([Image.open(path) for path in paths], top=2)
    assert [p.labels for p in from_files] == [p.labels for p in from_contents]
    assert [p.probabilities for p in from_files] == [p.probabilities for p in from_contents]
    assert from_files[0].input == str(paths[0])
    assert all(len(p.labels) == 2 for p in from_files)
    encoded = torch.stack([model.inputs.encode(Image.open(path)) for path in paths])
    expected = model(model.inputs.prepare(encoded)).softmax(1)
    assert [p.probability for p in from_files] == pytest.approx(expected.amax(1).tolist(), abs=1e-6)
    assert sum(model.predict(paths, top=9)[0].probabilities) == pytest.approx(1, abs=1e-5)


def test_predict_takes_a_single_input(run, tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8), (200, 0, 0)).save(path)
    model = run.model("fedavg")
    (expected,) = model.predict([path])
    for single in (str(path), path, path.read_bytes(), Image.open(path)):
        (prediction,) = model.predict(single)
        assert prediction.probabilities == expected.probabilities
    for top in (0, -1, 1.5, True):
        with pytest.raises(InputError, match=rf"^top: {top} is no whole number from 1; give one$"):
            model.predict(path, top=top)


def test_predict_names_what_cannot_be_read(run, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^files: .*broken.png cannot be read \(.*\); leave it out"):
        run.model("fedavg").predict([tmp_path / "broken.png"])


@pytest.mark.slow
def test_a_simulation_starts_from_a_model(run):
    x, y = torch.rand(30, 3, 8, 8), torch.arange(30) % 3
    labels = run.label_names
    data = genfl.FederatedDataset.from_arrays(x, y, genfl.partition.iid(3), (x, y), labels)
    model = run.model("fedavg")
    task = genfl.task("mlp", data, width=8)
    algorithm = genfl.fedavg(task, genfl.LocalSGD(0.1))
    result = genfl.simulate(algorithm, data, rounds=1, batch_size=5, start=model)
    expected = (model(x).argmax(1) == y).double().mean()
    assert result.accuracy[0] == pytest.approx(float(expected))
    of_module = genfl.simulate(
        genfl.fedavg(genfl.task(model, data), genfl.LocalSGD(0.1)), data, rounds=1, batch_size=5
    )
    assert of_module.accuracy == result.accuracy


def test_model_is_part_of_another_module(run):
    model, other = run.model("fedavg", seed=0), run.model("fedavg", seed=1)
    x = torch.rand(4, 3, 8, 8)
    names = list(model.state_dict())
    for again in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        whole = nn.Sequential(nn.Identity(), nn.Sequential(again, nn.Softmax(1)))
        state = {name: value.clone() for name, value in whole.state_dict().items()}
        assert list(state) == [f"1.0.{name}" for name in names]
        again.load_state_dict(other.state_dict())
        assert torch.equal(whole(x), other(x).softmax(1))
        assert whole.load_state_dict(state).missing_keys == []
        assert torch.equal(whole(x), run.model("fedavg", seed=0)(x).softmax(1))
        for wrong in ({**state, "1.0.extra": x}, {**state, names[0]: x}, dict(list(state.items())[1:])):
            with pytest.raises(RuntimeError):
                whole.load_state_dict(wrong)
        again.load_state_dict(model.state_dict())


def test_predict_is_in_evaluation_mode(run):
    model = run.model("fedavg")
    layers = model.inner.classifier
    model.inner.classifier = nn.Sequential(nn.BatchNorm1d(8), layers)
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 90, 255)]
    expected = model.eval().predict(images)
    model.train()
    model.inner.classifier[1].eval()
    assert model.predict(images) == expected
    modes = [model.training, model.inner.training, *(part.training for part in model.inner.classifier)]
    assert modes == [True, True, True, False]
    assert model.inner.classifier[0].num_batches_tracked == 0


def test_model_is_copied_and_pickled(run):
    model, x = run.model("fedavg"), torch.rand(2, 3, 8, 8)
    assert model.inputs
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), model(x))
        assert again.predict([Image.new("RGB", (8, 8))]) == model.predict([Image.new("RGB", (8, 8))])


def test_damaged_files_are_named(run, tmp_path):
    folder = run.folder / "federate" / "fedavg" / "seed-0"
    shutil.copytree(folder, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    shutil.copy2(run.folder / "federate" / "fedavg" / "seed-1" / "model.safetensors", weights)
    with pytest.raises(InputError, match=r"is not the file that model.json describes"):
        RunModel.load(tmp_path / "copy")
    (tmp_path / "copy" / "model.json").unlink()
    with pytest.raises(InputError, match="run the config again, which writes it without training"):
        RunModel.load(tmp_path / "copy")


@pytest.mark.slow
def test_an_older_run_gets_descriptions_without_training(tmp_path, monkeypatch):
    """The version of the stage, not that of its trials, says that files are new."""
    private = image_folder(tmp_path / "private", 12)
    older = dataclasses.replace(STAGE, version=4)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "STAGES", [older if s is STAGE else s for s in pipeline.STAGES])
        run = image_run(private, tmp_path / "run")
    trial = run.folder / "federate" / "fedavg" / "seed-0"
    expected = ModelDescription.read(trial / "model.json")
    (trial / "model.json").unlink()
    record = pipeline.read_record(run.folder / "stages" / "federate.json")
    files = {name: checksum for name, checksum in record["files"].items() if "model.json" not in name}
    pipeline.write_record(run.folder / "stages" / "federate.json", {**record, "files": files})
    checkpoint = (trial / "checkpoint.safetensors").stat()
    again = image_run(private, tmp_path / "run")
    assert again.model("fedavg").description == expected
    after = (trial / "checkpoint.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (checkpoint.st_ino, checkpoint.st_mtime_ns)
    assert again.summary.stages["federate"].skipped is False


@pytest.mark.slow
def test_own_code_that_is_not_at_hand(tmp_path, forget):
    x = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    names = ["up", "down"] * 12

    def register() -> None:
        @genfl.register.model("flat", shape=(1, 4, 4))
        def flat(shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))

        @genfl.register.dataset("noise")
        def noise() -> genfl.DataSet:
            examples = genfl.LabelledExamples(x, names)
            return genfl.DataSet(examples, examples, "image", lambda image: x[0])

    register()
    result = genfl.run(
        {
            "name": "own",
            "generator": "none",
            "seeds": [0],
            "data": {"name": "noise", "partition": {"kind": "iid", "clients": 2}},
            "model": "flat",
            "methods": {"fedavg": {"algorithm": "fedavg"}},
            "federate": {"rounds": 1, "clients_per_round": 2, "engine": "sequential"},
        },
        out=tmp_path / "run",
    )
    model = result.model("fedavg")
    assert model.description.model.own
    assert model.description.input.data == "noise"
    image = Image.new("L", (4, 4))
    assert model.predict([image])[0].label in names
    entries = MODELS.added(), DATASETS.added()
    MODELS.restore({name: entry for name, entry in entries[0].items() if name != "flat"})
    with pytest.raises(InputError, match=r"^model: flat is a model of your own"):
        genfl.load_run(tmp_path / "run").model("fedavg")
    MODELS.restore(entries[0])
    DATASETS.restore({name: entry for name, entry in entries[1].items() if name != "noise"})
    away = genfl.load_run(tmp_path / "run").model("fedavg")
    assert away(x).shape == (24, 2)  # prepared inputs need no data set
    with pytest.raises(InputError, match=r"^data: noise is a data set of your own"):
        away.predict([image])
