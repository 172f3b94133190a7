"""Pre-training that starts from an existing model, and methods that start from it as it is."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from support.opened import open_run

from genfl import config, pipeline
from genfl.errors import InputError
from genfl.experiment import records
from genfl.experiment.context import RunContext, class_indices, initial_key
from genfl.learning.evaluate import evaluate
from genfl.models import MODELS
from genfl.models.resnet import resnet18, resnet20
from genfl.report import text
from genfl.results.schema import Summary
from genfl.stages import pretrain
from genfl.stages.base import Upstream
from genfl.stages.pretrain import ModelInputs
from genfl.storage import load_tensors

CONFIG = """
name: warm
seeds: [0, 1]
data: {name: images, size: [8, 8], partition: {kind: iid, clients: 3}}
generator: {kind: files}
prompts: {per_label: 6}
model: {name: resnet20}
pretrain: {epochs: 1, batch_size: 4, lr: 1.0e-12, schedule: constant}
federate: {rounds: 1, clients_per_round: 2, engine: sequential, local: {steps: 1, batch_size: 4, lr: 0.01}}
methods:
  scratch: {algorithm: fedavg}
  existing: {algorithm: fedavg, start: init}
  gptfl: {algorithm: fedavg, start: pretrained}
"""
LABELS = ["black", "white"]


def draw(folder, per_class, seed):
    """Writes noise that is dark or bright."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(LABELS):
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        for n in range(per_class):
            pixels = rng.integers(100, size=(8, 8, 3), dtype=np.uint8) + np.uint8(150 * number)
            Image.fromarray(pixels).save(folder / "train" / name / f"{n}.bmp")
    return folder


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Reads the config, with data to train on and no caches but the test's own."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    own, made = draw(tmp_path / "own", 12, seed=0), draw(tmp_path / "made", 6, seed=1)

    def parse(*overrides):
        return config.parse(CONFIG, [f"data.path={own}", f"generator.path={made}", *overrides])

    return parse


def trained(model):
    """Gives a model weights and statistics that no fresh one has, and its counts of batches are integers."""
    rng = torch.Generator().manual_seed(5)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(value + 0.01 * torch.rand(value.shape, generator=rng))
    return model


def saved(model, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def weights_file(tmp_path):
    """Weights of the config's model, trained on seven other classes."""
    torch.manual_seed(1)
    return saved(trained(resnet20((3, 8, 8), 7)), tmp_path / "existing.pth")


def flat(weights):
    return weights["params"] | weights["buffers"]


def model_inputs(settings):
    """Returns the inputs that are about the model, and the task of two classes."""
    context = RunContext()
    task = context.classify(settings.data, settings.model, 2, settings.precision)
    return ModelInputs.of(settings, context), task


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_all_but_a_head_of_other_classes_is_the_existing_models(parse, tmp_path, caplog, suffix):
    source = trained(resnet20((3, 8, 8), 7))
    path = saved(source, tmp_path / f"existing{suffix}")
    settings = parse(f"pretrain.init={path}")
    model, task = model_inputs(settings)
    before = torch.get_rng_state()
    found = flat(model.weights(task, seed=3)[0])
    assert torch.equal(torch.get_rng_state(), before)
    with caplog.at_level(logging.INFO, "genfl"):
        model.check(task, settings.seeds[0])
    assert f"the weights of {path}, with a new head (fc.weight, fc.bias)" in caplog.text
    fresh, theirs = flat(task.init(initial_key(3))), source.state_dict()
    assert list(found) == list(fresh), "in the model's own order"
    for name, value in found.items():
        assert torch.equal(value, fresh[name] if name.startswith("fc.") else theirs[name]), name
    other = flat(model.weights(task, seed=4)[0])
    assert not torch.equal(other["fc.weight"], found["fc.weight"]), "the head is the seed's"


def test_a_head_of_as_many_classes_is_kept(parse, tmp_path, caplog):
    source = trained(resnet20((3, 8, 8), 2))
    settings = parse(f"pretrain.init={saved(source, tmp_path / 'existing.pth')}")
    model, task = model_inputs(settings)
    with caplog.at_level(logging.INFO, "genfl"):
        model.check(task, settings.seeds[0])
    found = flat(model.weights(task, seed=3)[0])
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in found.items())
    assert caplog.messages == [f"pretrain.init: the weights of {tmp_path / 'existing.pth'}"]


@pytest.mark.slow
def test_methods_and_pretraining_start_from_it(parse, tmp_path, weights_file):
    settings = parse(f"pretrain.init={weights_file}")
    summary = pipeline.execute(settings, tmp_path / "run")
    run = open_run(settings, tmp_path / "run")
    data, task = run.data, run.task
    y = class_indices(data.test, run.labels)
    traces = run.result("federate")["methods"]
    for seed in settings.seeds:
        start = run.initial(seed)
        trained_on, _ = load_tensors(run.folder / "pretrain" / f"seed-{seed}" / "model.safetensors")
        for name, value in start["params"].items():  # its learning rate is as good as nothing
            torch.testing.assert_close(trained_on[name], value, rtol=1e-6, atol=1e-6)
        for name, weights in {"existing": start, "scratch": task.init(initial_key(seed))}.items():
            scores = evaluate(task.of_stored(data.prepare), weights, data.test.x, y)
            first = traces[name][str(seed)]["evaluations"][0]
            assert {key: first[key] for key in scores} == scores
    methods = summary["methods"]
    assert {name: m["uses_generator"] for name, m in methods.items() if name in settings.methods} == {
        "scratch": False,
        "existing": False,
        "gptfl": True,
    }
    assert [name for name in methods if methods[name]["existing_model"]] == [
        "synthetic_only",
        "existing",
        "gptfl",
    ]
    assert methods["existing"]["setup_bytes"] == 0
    figures = Summary.parse(summary)
    assert text.contest(figures) == ("gptfl", "existing"), "only the generated data tells them apart"
    assert "The existing model, trained on generated data alone, gives" in text.verdict(figures)
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    for note in (
        "fedavg, from scratch",
        "fedavg, from an existing model",
        "from an existing model, trained on",
    ):
        assert note in page


@pytest.mark.slow
def test_without_the_like_nothing_is_compared(parse, tmp_path, weights_file):
    settings = parse(f"pretrain.init={weights_file}", "seeds=[0]")
    methods = {name: method for name, method in settings.methods.items() if name != "existing"}
    summary = pipeline.execute(settings.model_copy(update={"methods": methods}), tmp_path / "run")
    figures = Summary.parse(summary)
    assert text.contest(figures) == ("gptfl", None)
    assert "no method has the same algorithm and existing model without the generator" in text.verdict(
        figures
    )


@pytest.mark.slow
def test_its_content_counts_and_not_its_place(parse, tmp_path, weights_file):
    settings = parse(f"pretrain.init={weights_file}", "seeds=[0]")
    pipeline.execute(settings, tmp_path / "run", until="pretrain")
    copy = tmp_path / "elsewhere" / "weights.pth"
    copy.parent.mkdir()
    copy.write_bytes(weights_file.read_bytes())
    moved = parse(f"pretrain.init={copy}", "seeds=[0]")

    def digests(settings):
        run = open_run(settings, tmp_path / "run")
        return {method: run.trial_digest(method, 0) for method in settings.methods}

    def state(settings):
        pipeline.execute(settings, tmp_path / "run", until="labels", update=True)
        return {row.name: row.state for row in pipeline.run_status(tmp_path / "run")}["pretrain"]

    before = digests(settings)
    assert state(moved) == "done"
    assert digests(moved) == before
    torch.manual_seed(2)
    saved(resnet20((3, 8, 8), 7), copy)
    assert state(moved) == "missing"
    after = digests(moved)
    assert after["existing"] != before["existing"]
    assert after["scratch"] == before["scratch"]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["resnet18-f37072fd.pth", "resnet18-5c106cde.pth"])
def test_imagenet_is_torchvisions_file_where_torch_hub_keeps_it(parse, tmp_path, file):
    torch.manual_seed(3)
    source = resnet18((3, 224, 224), 1000)
    saved(source, tmp_path / "torch" / "hub" / "checkpoints" / file)
    settings = parse("model.name=resnet18", "data.size=[32, 32]", "pretrain.init=imagenet")
    model, task = model_inputs(settings)
    found = flat(model.weights(task, seed=0)[0])
    assert all(torch.equal(v, source.state_dict()[n]) for n, v in found.items() if not n.startswith("fc."))
    assert model.initial is not None


def refused(settings, line, folder):
    with pytest.raises(InputError) as caught:
        pipeline.execute(settings, folder, until="pretrain")
    assert line in str(caught.value), caught.value
    assert "\n" not in str(caught.value)
    assert not folder.exists(), "before any work"


@pytest.mark.slow
def test_what_cannot_be_started_from_is_said_before_any_work(parse, tmp_path, weights_file):
    folder = tmp_path / "run"
    refused(parse("pretrain.init=absent.pth"), "pretrain.init: there is no file absent.pth", folder)
    refused(parse(f"pretrain.init={tmp_path}"), "pretrain.init: there is no file", folder)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    refused(parse(f"pretrain.init={tmp_path / 'bad.pth'}"), "bad.pth is damaged", folder)
    wrong = parse(f"pretrain.init={weights_file}", "model.norm=group")
    refused(wrong, "does not fit the model: bn1.running_mean: not in the model", folder)
    grey = parse(f"pretrain.init={weights_file}", "data.channels=1")
    refused(grey, "conv1.weight: (16, 3, 3, 3) in the file, (16, 1, 3, 3) in the model", folder)
    refused(
        parse("pretrain.init=imagenet"),
        "imagenet is available for resnet18, resnet50, vgg19_imagenet, not for resnet20",
        folder,
    )
    nowhere = parse("pretrain.init=imagenet", "model.name=resnet18", "data.size=[32, 32]")
    refused(
        nowhere,
        "pretrain.init: the weights of imagenet are missing; put https://download.pytorch.org/models/resnet18-f37072fd.pth",
        folder,
    )
    refused(nowhere, str(tmp_path / "torch" / "hub" / "checkpoints"), folder)
    refused(
        parse("data.size=[2, 2]", "methods.existing.start=random"), "model: resnet20 does not fit", folder
    )


def test_a_method_cannot_start_from_no_model(parse):
    with pytest.raises(
        InputError, match=r"^methods\.existing\.start: init, but pretrain\.init is not set; set it"
    ):
        parse()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "pretrain.augment.time_mask=3",
            "pretrain.augment.time_mask: not available for image; use one of: crop, ",
        ),
        ("pretrain.augment.crop=8", "pretrain.augment.crop: 8 of 8 leaves nothing"),
        ("pretrain.augment.shift=1", "pretrain.augment.shift: unknown key"),
        ("pretrain.augment.data=private", "pretrain.augment.data: unknown key"),
        ("pretrain.augment.noise=-1", "pretrain.augment.noise: should be greater than or equal to 0"),
        ("federate.local.augment.masks=2", "federate.local.augment.masks: not available for image"),
        ("federate.local.augment.cutout=9", "federate.local.augment.cutout: 9 of 8 leaves nothing"),
        ("federate.local.augment.data=[]", "federate.local.augment.data: "),
        (
            "federate.local.augment.data=public",
            "federate.local.augment.data.0: should be 'private' or 'generated'",
        ),
    ],
)
def test_augmentations_that_cannot_be(parse, tmp_path, override, line):
    with pytest.raises(InputError) as caught:
        pipeline.execute(parse("methods.existing.start=random", override), tmp_path / "run")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "private", "generated"),
    [
        pytest.param("private", True, False, marks=pytest.mark.slow),
        pytest.param("[generated]", False, True, marks=pytest.mark.slow),
        ("[private, generated]", True, True),
    ],
)
def test_clients_change_what_the_config_says(parse, tmp_path, data, private, generated):
    settings = parse("methods.existing.start=random", "federate.local.augment.flip=true")
    settings = config.validate(config.plain(config.dump(settings)))  # as from a run's folder
    assert settings.federate.local.augment.data == ["private", "generated"]
    mixed = ("methods.existing.start=random", "methods.mixed={algorithm: fedavg, data: mixed}")
    settings = parse(*mixed, f"federate.local.augment={{flip: true, data: {data}}}")
    pipeline.execute(settings, tmp_path / "run", until="generate")
    held = open_run(settings, tmp_path / "run").training_data("mixed", 0)
    assert [part.augment is not None for part in held.parts] == [private, generated]
    off = parse("methods.existing.start=random", f"federate.local.augment={{data: {data}}}")
    held = open_run(off, tmp_path / "run").private(0)
    assert [part.augment for part in held.parts] == [None]


@pytest.mark.slow
def test_augmentation_changes_what_is_learned_and_a_run_can_be_repeated(parse, tmp_path):
    def accuracies(name, *overrides):
        settings = parse("methods={a: {algorithm: fedavg, data: mixed}}", "seeds=[0]", *overrides)
        pipeline.execute(settings, tmp_path / name)
        found, _ = load_tensors(tmp_path / name / "federate" / "a" / "seed-0" / "model.safetensors")
        return found["conv1.weight"]

    change = "federate.local.augment={crop: 2, flip: true, data: private}"
    first = accuracies("one", change)
    assert torch.equal(first, accuracies("two", change))
    assert not torch.equal(first, accuracies("three"))
    assert json.loads((tmp_path / "one" / "summary.json").read_text())["schema"] == 8


def test_every_file_for_imagenet_is_of_a_model_there_is():
    from genfl.models.pretrained import IMAGENET

    for name, files in IMAGENET.items():
        assert name in MODELS
        theirs = name.removesuffix("_imagenet")  # torchvision has one vgg19
        assert all(file.startswith(f"{theirs}-") and file.endswith(".pth") for file in files)


def written(folder):
    """Returns when each model's and each method's state was last written, by seed."""
    return {
        path.parent.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.glob("*/**/checkpoint.safetensors")
    }


@pytest.mark.slow
def test_a_seed_more_or_less_leaves_the_others_as_they_are(parse, tmp_path):
    run = tmp_path / "run"
    warm = ["methods.existing={algorithm: fedprox, start: pretrained}"]
    pipeline.execute(parse("seeds=[0]", *warm), run)
    first = written(run)
    both = pipeline.execute(parse("seeds=[0, 3]", *warm), run, update=True)
    after = written(run)
    assert {place: after[place] for place in first} == first, "what was there has not been done again"
    warm_started = {"pretrain/seed-3", "federate/gptfl/seed-3", "federate/existing/seed-3"}
    assert set(after) - set(first) == warm_started | {"federate/scratch/seed-3"}
    anew = pipeline.execute(parse("seeds=[0, 3]", *warm), tmp_path / "anew")
    assert both["methods"] == anew["methods"]

    pipeline.execute(parse("seeds=[0]", *warm), run, update=True)
    assert written(run) == first
    assert not (run / "pretrain" / "seed-3").exists()

    pipeline.execute(parse("seeds=[0]", "pretrain.weight_decay=0.2", *warm), run, update=True)
    last = written(run)
    assert {place for place in last if last[place] == first[place]} == {"federate/scratch/seed-0"}


@pytest.mark.slow
@pytest.mark.parametrize("change", ["prompts.per_label=4", "seeds=[3]"])
def test_what_is_generated_anew_is_learnt_anew(parse, tmp_path, change):
    """The first seed is that of prompts and generator, too."""
    run, only = tmp_path / "run", ["methods.existing={algorithm: fedavg}"]
    pipeline.execute(parse("seeds=[0, 3]", *only), run)
    before = written(run)
    changed = pipeline.execute(parse("seeds=[0, 3]", *only, change), run, update=True)
    now = written(run)
    cold = {place for place in now if "scratch" in place or "existing" in place}
    assert {place for place in now if now[place] == before[place]} == cold
    assert (
        changed["methods"]
        == pipeline.execute(parse("seeds=[0, 3]", *only, change), tmp_path / "anew")["methods"]
    )


def test_a_model_depends_on_what_it_learns_from_and_how(parse, tmp_path, monkeypatch):
    settings = parse("seeds=[0]", "methods.existing={algorithm: fedavg}")
    pipeline.execute(settings, tmp_path / "run", until="generate")
    run = open_run(settings, tmp_path / "run")
    known = run.pretrain_digest(0)
    assert run.pretrain_digest(0) == known != run.pretrain_digest(1)

    def changed(place, name, value):
        with monkeypatch.context() as change:
            change.setattr(place, name, value)
            return run.pretrain_digest(0) != known

    assert changed(Upstream, "digest", lambda self, stage: f"another {stage}")
    assert changed(Upstream, "labels", ["black", "grey"])
    newer = dataclasses.replace(pretrain.STAGE, version=pretrain.STAGE.version + 1)
    assert changed(pretrain, "STAGE", newer)
    assert not changed(pretrain, "STAGE", pretrain.STAGE)


def test_a_model_of_texts_depends_on_the_words_they_are_read_by(parse, tmp_path):
    for place in ("texts", "written"):
        (tmp_path / place).mkdir()
        rows = [{"text": f"{label} {n}", "label": label} for label in LABELS for n in range(6)]
        (tmp_path / place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = parse(
        f"data={{name: texts, path: {tmp_path / 'texts'}, tokenizer: generated, partition: {{clients: 2}}}}",
        f"generator.path={tmp_path / 'written'}",
        "model=lstm",
        "methods.existing={algorithm: fedavg}",
    )
    run = open_run(settings, tmp_path / "run")
    run.record("labels", {"found": LABELS})
    run.record("generate", {})
    digests = []
    for version in "112":
        run.record("vocabulary", {}, digest=version)
        digests.append(run.pretrain_digest(0))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
def test_what_is_taken_over_is_all_there_is(parse, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    few = ["methods.existing={algorithm: fedavg}"]
    pipeline.execute(parse("seeds=[0, 3]", *few), one)
    pipeline.execute(parse("seeds=[0]", *few), two)
    pipeline.execute(parse("seeds=[0]", *few), one, update=True, others=[two])
    assert not list(one.glob("**/seed-3")), "nothing of the seed that was"


@pytest.mark.slow
def test_the_status_of_a_run_whose_labels_are_being_found_again(parse, tmp_path):
    settings = parse("seeds=[0]", "methods.existing={algorithm: fedavg}")
    pipeline.execute(settings, tmp_path / "run")
    for stage in ("labels", "federate"):
        record = json.loads((tmp_path / "run" / "stages" / f"{stage}.json").read_text())
        records.write_record(
            tmp_path / "run" / "stages" / f"{stage}.json",
            {"stage": stage, "digest": record["digest"], "done": False},
        )
    states = {row.name: (row.state, row.progress) for row in pipeline.run_status(tmp_path / "run")}
    assert states["labels"] == states["federate"] == ("partial", "")
    assert states["pretrain"] == ("done", "")
