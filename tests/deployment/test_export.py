"""Exported models: folders that torch and safetensors alone load, model cards, ONNX files, uploads."""

import base64
import functools
import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import genfl
from genfl import config
from genfl.data.cards import licence_line
from genfl.data.media import Clip
from genfl.data.sounds import LogMelFormat
from genfl.data.texts import HASH_BUCKETS, TokenFormat
from genfl.deployment import export
from genfl.deployment.description import (
    Architecture,
    GreyInput,
    LogMelInput,
    ModelDescription,
    ModelFigures,
    PixelInput,
    TokenInput,
)
from genfl.deployment.model_page import model_card
from genfl.deployment.onnx import random_inputs, write_onnx
from genfl.errors import GenflError, InputError
from genfl.models import MODELS
from genfl.models.wrapped import last_layer
from genfl.storage import save_tensors, sha256
from genfl.threads import one_thread

pytestmark = pytest.mark.slow

TINY = {
    "cnn": ((1, 8, 8), {"width": 8, "hidden": 5}),
    "mlp": ((1, 8, 8), {"width": 16, "projection": 4}),
    "convnet": ((3, 8, 8), {"width": 8}),
    "resnet18": ((3, 8, 8), {"stem": "cifar", "norm": "group"}),
    "resnet20": ((3, 8, 8), {}),
    "resnet50": ((3, 8, 8), {"stem": "cifar"}),
    "vgg19": ((3, 32, 32), {}),
    "vgg19_imagenet": ((3, 32, 32), {"hidden": 8}),
    "fedaudio": ((21, 8), {"width": 8}),
    "lstm": ((7,), {"vocabulary": 30, "embedding": 4, "width": 8}),
}
"""Each model of `genfl list models` in small: the shape of an input, and options."""

LARGE = ("resnet18", "resnet50", "vgg19", "vgg19_imagenet")
"""The models with millions of parameters, which no option lowers."""

FORMS = {
    "image": PixelInput(size=(8, 8), channels=3, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25]),
    "audio": LogMelInput(seconds=0.2),
    "text": TokenInput(length=7, tokenizer="hashed", buckets=HASH_BUCKETS),
}


def tiny(name):
    """A tiny model with running statistics of its own and logits up to 1, and its description."""
    shape, options = TINY[name]
    modality = MODELS[name].modality
    description = ModelDescription(
        method="fedavg",
        seed=0,
        rounds=1,
        model=Architecture(name=name, options=options, own=False),
        shape=list(shape),
        precision="fp32",
        modality=modality,
        input=FORMS[modality],
        label_names=["left", "right", "none"],
        figures=None,
        config_digest="0" * 64,
        weights_sha256="0" * 64,
    )
    torch.manual_seed(0)
    model = description.build().train()
    for size in (3, 4):  # running statistics of batch norm
        model(random_inputs(description, size))
    model.eval()
    head = model.get_submodule(last_layer(model))
    with torch.no_grad():  # or some initial logits are smaller than the differences to be seen
        largest = model(random_inputs(description, 5)).abs().max()
        for values in head.parameters():
            values /= largest
    return model, description


def write(model, description, folder):
    """Write what an export has of a model, and its logits on random inputs, which are in inputs.pt."""
    folder.mkdir()
    floats = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    save_tensors(folder / "model.safetensors", floats)  # as runs do
    description.write(folder / "model.json")
    export._write_loader(description.model.name, folder)
    x = random_inputs(description, 5)
    with torch.no_grad(), one_thread():  # the number of threads changes the last bits
        torch.save([x, model(x)], folder / "inputs.pt")


ISOLATED = """
import importlib.util, pathlib, sys, warnings
warnings.simplefilter("ignore")  # torch says that there is no numpy
root = pathlib.Path(sys.argv[1])
hidden = ("genfl", "numpy", "annotated_types", "pydantic", "yaml", "tokenizers", "PIL", "scipy")
for name in hidden:
    assert importlib.util.find_spec(name) is None, name
import torch
torch.set_num_threads(1)
for folder in sorted(root.iterdir()):
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    model, description = loader.load(folder)
    assert not model.training
    x, expected = torch.load(folder / "inputs.pt")
    with torch.no_grad():
        gap = (model(x) - expected).abs().max().item()
    print(folder.name, gap, expected.std().item(), len(description["label_names"]))
assert not any(name.split(".")[0] in hidden for name in sys.modules)
"""


def required(name):
    """The distributions that one needs, itself included, without extras."""
    names, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current in names:
            continue
        names.add(current)
        for line in metadata.requires(current) or ():
            requirement, _, marker = line.partition(";")
            other = requirement.strip().split("[")[0]
            for sign in "<>=!~ (":
                other = other.split(sign)[0]
            try:
                metadata.distribution(other)
            except metadata.PackageNotFoundError:
                continue
            if "extra" not in marker:
                waiting.append(other)
    return names


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder of packages that holds torch, safetensors and what torch needs, and nothing else."""
    site = tmp_path_factory.mktemp("site")
    for name in required("torch") | {"safetensors"}:
        for file in metadata.distribution(name).files or ():
            top = Path(file.parts[0])
            target = Path(metadata.distribution(name).locate_file(top))
            if top.name not in ("..", "__pycache__", "bin") and not (site / top).exists() and target.exists():
                (site / top).symlink_to(target)
    return site


def isolated(site, code, *args, cwd=None):
    """Run Python with the standard library and the packages of a folder alone; return its output."""
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
    command = [sys.executable, "-I", "-S", "-c", program, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def gaps(bare, tmp_path_factory):
    """For some models each, how far the logits of its loader are from those here, and their spread."""

    @functools.cache
    def measure(*names):
        root = tmp_path_factory.mktemp("models")
        for name in names:
            write(*tiny(name), root / name)
        lines = [line.split() for line in isolated(bare, ISOLATED, root).splitlines()]
        return {name: (float(gap), float(spread)) for name, gap, spread, _ in lines}

    return measure


def test_tiny_models_are_all_models():
    built_in = [name for name, entry in MODELS.items() if entry.source is None]
    assert list(TINY) == built_in


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_loader_gives_the_same_logits_without_genfl(gaps, name):
    gap, spread = gaps(*(LARGE if name in LARGE else [name for name in TINY if name not in LARGE]))[name]
    assert spread > 0.05
    assert gap <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_onnx_gives_the_same_logits(name, tmp_path):
    import onnxruntime

    model, description = tiny(name)
    difference = write_onnx(model, description, tmp_path / "model.onnx")
    assert difference <= 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert session.get_inputs()[0].shape == ["batch", *description.shape]
    for size in (1, 9):  # a size that the check has, and one that it has not
        x = random_inputs(description, size)
        with torch.no_grad():
            expected = model(x)
        (logits,) = session.run(["logits"], {"x": x.numpy()})
        assert expected.abs().max() > 0.1
        assert np.abs(logits - expected.numpy()).max() <= 1e-5


def loader_of(folder):
    import importlib.util

    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_loader_prepares_pixels_as_training_does(tmp_path):
    from genfl.deployment.description import input_format

    model, description = tiny("resnet20")
    write(model, description, tmp_path / "m")
    loader = loader_of(tmp_path / "m")
    _, content = loader.load()
    x = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    expected = input_format(description.input, tmp_path).prepare(x)
    torch.testing.assert_close(loader.prepare(x, content), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"uint8 \[n, 3, 8, 8\], not torch.float32"):
        loader.prepare(x.float(), content)
    with pytest.raises(ValueError, match=r"not torch.uint8 \[4, 3, 8, 7\]"):
        loader.prepare(x[..., 1:], content)


@pytest.mark.parametrize("samples", [1024, 3200, 5000])
def test_loader_prepares_sounds_as_training_does(tmp_path, samples):
    model, description = tiny("fedaudio")
    write(model, description, tmp_path / "m")
    loader = loader_of(tmp_path / "m")
    _, content = loader.load()
    torch.manual_seed(samples)
    time = torch.arange(samples) / 16_000
    clip = 0.3 * torch.sin(2 * torch.pi * 440 * time) + 0.01 * torch.randn(samples)
    expected = LogMelFormat(0.2).encode(Clip(clip.numpy(), 16_000)).astype(np.float32)
    prepared = loader.prepare(clip[None], content)[0]
    assert prepared.shape == expected.shape == (21, 128)
    np.testing.assert_allclose(prepared, expected, atol=2e-3)  # half precision
    assert not loader.prepare(torch.zeros(1, 3200), content).any()
    with pytest.raises(ValueError, match="1024 samples"):
        loader.prepare(torch.zeros(1, 1000), content)


TEXTS = ["", "Hello, World! 日本 naïve cafe\u0301", "one two three four five six seven eight nine", "  \n\t"]


def test_loader_hashes_words_as_training_does(tmp_path):
    model, description = tiny("lstm")
    write(model, description, tmp_path / "m")
    loader = loader_of(tmp_path / "m")
    _, content = loader.load()
    encoded = TokenFormat(7)
    expected = np.stack([encoded.encode(text) for text in TEXTS]).astype(np.float32)
    np.testing.assert_array_equal(loader.prepare(TEXTS, content), expected)


def test_loader_reads_a_tokenizer_as_training_does(tmp_path):
    pytest.importorskip("tokenizers")
    from genfl.data.texts import train_tokenizer

    model, description = tiny("lstm")
    own = TokenInput(length=7, tokenizer="tokenizer.json", buckets=None)
    description = description.model_copy(update={"input": own})
    write(model, description, tmp_path / "m")
    file = tmp_path / "m" / "tokenizer.json"
    train_tokenizer(TEXTS, 20, file)
    loader = loader_of(tmp_path / "m")
    _, content = loader.load()
    encoded = TokenFormat(7, str(file))
    expected = np.stack([encoded.encode(text) for text in TEXTS]).astype(np.float32)
    np.testing.assert_array_equal(loader.prepare(TEXTS, content), expected)


def test_two_exports_load_in_one_process(tmp_path):
    for name in ("cnn", "mlp"):
        write(*tiny(name), tmp_path / name)
    loader = loader_of(tmp_path / "cnn")
    kinds = [type(loader.load(tmp_path / name)[0]).__name__ for name in ("cnn", "mlp", "cnn")]
    assert kinds == ["CNN", "MLP", "CNN"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two methods and a reference without a global model."""
    content = {
        "name": "tiny",
        "data": {"name": "digits", "partition": {"clients": 4, "alpha": 1.0, "samples": 200}},
        "generator": "none",
        "seeds": [0, 1],
        "model": {"name": "mlp", "width": 8},
        "federate": {"rounds": 2, "clients_per_round": 2, "engine": "sequential", "local": {"steps": 3}},
        "methods": {
            "fedavg": {"algorithm": "fedavg"},
            "prox": {"algorithm": {"name": "fedprox", "mu": 0.5}},
            "alone": {"algorithm": "local"},
        },
    }
    result = genfl.run(content, out=tmp_path_factory.mktemp("export") / "run")
    described(result)
    return result


def described(result, own=False):
    """Write the descriptions of a run's models, where there are none."""
    model = result.config.model
    options = {"width": 8, "projection": 0} if not own else {}
    for weights in result.folder.glob("federate/*/seed-?/model.safetensors"):
        file = weights.with_name("model.json")
        if not file.exists():
            ModelDescription(
                method=weights.parent.parent.name,
                seed=int(weights.parent.name.removeprefix("seed-")),
                rounds=2,
                model=Architecture(name=model.name, options=options, own=own),
                shape=[1, 8, 8],
                precision="fp32",
                modality="image",
                input=GreyInput(size=(8, 8)),
                label_names=result.label_names,
                figures=ModelFigures(
                    accuracy=0.5,
                    macro_f1=0.4,
                    calibration_error=None,
                    loss=1.0,
                    recall=[0.1, None, 0.0, *[1.0] * 7],
                    examples=360,
                ),
                config_digest="0" * 64,
                weights_sha256=sha256(weights),
            ).write(file)


@pytest.mark.slow
def test_default_method_is_the_best(run, tmp_path):
    accuracy = run.table()["mean"]
    best = max(("fedavg", "prox"), key=lambda name: accuracy[name])
    assert run.export(tmp_path / "m").method == best


NAMES = {
    "model.safetensors",
    "model.json",
    "README.md",
    "load.py",
    "architecture/__init__.py",
    "architecture/base.py",
    "architecture/cnn.py",
    "architecture/layers.py",
    "architecture/ranges.py",
}


def files(folder):
    """The files of a folder, with their content."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_export_gives_the_model_of_the_run(run, bare, tmp_path):
    before = files(run.folder)
    exported = run.export(tmp_path / "my model", method="prox", seed=1)
    assert exported.files.keys() == NAMES
    assert files(run.folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my model"]
    x = torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        expected = run.model("prox", seed=1)(x)
    torch.save([x, expected], tmp_path / "my model" / "inputs.pt")
    ((*_, gap, spread, classes),) = [line.split() for line in isolated(bare, ISOLATED, tmp_path).splitlines()]
    assert float(gap) <= 1e-6 < float(spread)
    assert classes == "10"


def test_model_card_is_one_of_the_hub(run, tmp_path):
    from huggingface_hub import ModelCard

    run.export(tmp_path / "m", method="prox")
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert "federated-learning" in card.data.tags
    for part in ("fedprox (mu=0.5)", "| seed | 0 |", "| clients | 4, dirichlet partition |", "Lowest recall"):
        assert part in card.text
    assert "## Limits" in card.text
    assert "Training had no differential privacy" in card.text
    assert str(run.folder) not in card.content
    assert str(tmp_path) not in card.content
    assert yaml.safe_load(card.content.split("---")[1])["metrics"] == ["accuracy", "f1"]


def test_model_card_says_how_it_was_trained(run):
    """Only federated methods are called so."""
    settings = config.read(run.folder / "config.yaml")
    described = ModelDescription.read(run.folder / "federate" / "fedavg" / "seed-0" / "model.json")
    result = run.summary.methods["fedavg"]
    one_place, generated = "trained on all private data in one place", "trained on generated data alone"
    for name, changes, phrase in (
        ("fedavg", {}, "after 2 rounds of federated learning"),
        ("centralised", {"reference": True}, one_place),
        ("upper_bound", {"reference": True}, one_place),
        ("synthetic_only", {"algorithm": None, "data": None, "source": "generated"}, generated),
    ):
        description = described.model_copy(update={"method": name})
        methods = {name: result.model_copy(update=changes)}
        text = model_card(description, settings, run.summary.model_copy(update={"methods": methods}))
        introduction = text.split("# ", 1)[1].split("## ")[0]
        assert phrase in introduction
        federated = name == "fedavg"
        assert ("rounds of federated learning" in introduction) == federated
        assert ("- federated-learning\n" in text) == federated


def test_model_card_names_generator_and_data_but_no_path(run):
    from huggingface_hub import ModelCard

    digits = config.load(Path(__file__).parents[2] / "examples" / "digits.yaml")
    settings = config.read(run.folder / "config.yaml")
    settings["generator"] = digits.generator.model_dump()
    settings["data"]["path"] = "/home/someone/secret"
    fedavg = run.summary.methods["fedavg"].model_copy(update={"uses_generator": True})
    summary = run.summary.model_copy(update={"methods": {"fedavg": fedavg}})
    description = ModelDescription.read(run.folder / "federate" / "fedavg" / "seed-0" / "model.json")
    text = model_card(description, settings, summary)
    licence = licence_line(Path(genfl.__file__).parent / "generators" / "miniature" / "README.md")
    assert licence
    assert "| generator | miniature |" in text
    assert f"| licence of the generator | {licence} |" in text
    assert "secret" not in text
    assert ModelCard(text).data.datasets is None

    settings["data"]["path"] = "hf://datasets/someone/digits"
    head = ModelCard(model_card(description, settings, summary, onnx=1e-7)).data
    assert head.datasets == ["someone/digits"]
    assert {result.metric_type: result.metric_value for result in head.eval_results} == {
        "accuracy": round(description.figures.accuracy, 4),
        "f1": round(description.figures.macro_f1, 4),
    }
    settings["generator"] = {"kind": "of_someone", "model": "/home/someone/secret"}  # it is not registered
    text = model_card(description, settings, summary)
    assert "| generator | of_someone |" in text
    assert "secret" not in text


def test_second_export_replaces_the_first(run, tmp_path):
    folder = tmp_path / "m"
    run.export(folder, method="fedavg")
    first = files(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "load.pyc").write_bytes(b"")
    run.export(folder, method="fedavg")
    assert files(folder) == first
    run.export(folder, method="prox")
    assert json.loads((folder / "model.json").read_text())["method"] == "prox"


@pytest.mark.parametrize("name", ["notes.txt", "architecture/notes.txt", "README.md", "model.json"])
def test_export_keeps_files_of_the_user(run, tmp_path, name):
    folder = tmp_path / "m"
    run.export(folder, method="fedavg")
    (folder / name).write_text("mine")
    before = files(folder)
    with pytest.raises(InputError, match=r"^folder: .*name another folder$"):
        run.export(folder, method="fedavg")
    assert files(folder) == before


def test_killed_replacement_leaves_an_export(run, tmp_path):
    folder = tmp_path / "m"
    run.export(folder, method="fedavg")
    first = files(folder)
    folder.rename(tmp_path / ".m.genfl-old")  # a process killed between the two renames
    (tmp_path / ".m.genfl-new").mkdir()
    with pytest.raises(InputError):
        run.export(folder, method="none")
    run.export(folder, method="fedavg")
    assert files(folder) == first
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def wrong(tmp_path, run):
    """Commands that fail, and what their only line says."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / ".genfl-sweep").touch()
    (tmp_path / "file").touch()
    yield [run, "--method", "fedavgg"], "--method: there is no 'fedavgg'; did you mean 'fedavg'?"
    yield [run, "--method", "alone"], "--method: alone has no global model; name one of fedavg, prox"
    yield [run, "--method", "fedavg", "--seed", "7"], "--seed: there is no 7; known: 0, 1"
    yield [tmp_path / "empty"], "empty holds no run, as it has no config.yaml; name the folder of a run"
    yield [tmp_path / "absent"], "absent holds no run, as it has no config.yaml; name the folder of a run"
    yield [tmp_path / "partial"], "is not finished, as it has no summary.json; resume it with genfl run"
    yield [tmp_path / "sweep"], "is the folder of a sweep; name one of the runs in it"
    inside = run / "federate" / "export"
    yield [run, "--method", "fedavg", "--to", inside], "and the run's folder contain one another"
    yield [run, "--method", "fedavg", "--to", run.parent], "and the run's folder contain one another"
    yield [run, "--method", "fedavg", "--to", tmp_path / "file"], "is a file; name a folder"
    yield [run, "--method", "fedavg", "--to", tmp_path], "which genfl did not export; name another folder"


def test_mistakes_are_one_line(run, tmp_path, capsys, monkeypatch):
    from genfl import cli

    for args, line in wrong(tmp_path, run.folder):
        to = [] if "--to" in args else ["--to", tmp_path / "new"]
        monkeypatch.setattr(sys, "argv", ["genfl", "export", *map(str, [*args, *to])])
        with pytest.raises(SystemExit) as end:
            cli.main()
        errors = capsys.readouterr().err.splitlines()
        assert end.value.code == 2
        assert len(errors) == 1
        assert errors[0].startswith("error: ")
        assert line in errors[0]
        assert not (tmp_path / "new").exists()


def test_damaged_weights_are_not_exported(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    file = copy / "federate" / "fedavg" / "seed-0" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(GenflError, match=r"is not the file that model\.json describes"):
        genfl.load_run(copy).export(tmp_path / "m", method="fedavg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.fixture
def foreign(run, tmp_path):
    """A copy of the run, which a stranger may have changed, and a folder beside it."""
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "beside").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "tokenizer.json", "."])
def test_links_out_of_the_run_are_not_followed(foreign, tmp_path, name):
    trial = foreign / "federate" / "fedavg" / "seed-0"
    path = trial / name
    target = tmp_path / "beside" / "secret"
    if path.exists():
        path.rename(target)
    else:
        target.write_text("secret")
    path.symlink_to(target)
    result = genfl.load_run(foreign)
    for use in (lambda: result.export(tmp_path / "m", method="fedavg"), lambda: result.model("fedavg")):
        with pytest.raises(InputError, match=r"^method: \S+ leads out of the run's folder; replace"):
            use()
    assert not (tmp_path / "m").exists()
    assert result.export(tmp_path / "m", method="fedavg", seed=1).seed == 1


def test_a_run_behind_a_link_is_exported(foreign, tmp_path):
    (tmp_path / "link").symlink_to(foreign)
    inside = foreign / "federate" / "fedavg" / "seed-0" / "model.json"
    inside.rename(inside.with_name("copy.json"))
    inside.symlink_to("copy.json")  # it does not lead out
    (inside.parent / "tokenizer.json").write_text("unused")
    assert genfl.load_run(tmp_path / "link").export(tmp_path / "m", method="fedavg").files.keys() == NAMES


def test_names_of_methods_do_not_lead_out_of_the_run(foreign, tmp_path):
    shutil.copytree(foreign / "federate" / "fedavg" / "seed-0", tmp_path / "beside" / "seed-0")
    file = foreign / "summary.json"
    summary = json.loads(file.read_text())
    summary["methods"]["../../beside"] = summary["methods"].pop("fedavg")
    file.write_text(json.dumps(summary))
    result = genfl.load_run(foreign)
    for use in (lambda name: result.export(tmp_path / "m", method=name), result.model):
        with pytest.raises(InputError, match=r"^method: .* leads out of the run's folder"):
            use("../../beside")


def changed(file, change):
    """Change the content of a JSON or YAML file."""
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def five_names(content):
    content["label_names"] = content["label_names"][:5]


def few_recalls(content):
    content["figures"]["recall"] = [0.5]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.json", lambda m: m["model"].update(name="mlpp"), "model: there is no 'mlpp'; did you mean"),
        ("model.json", lambda m: m["model"]["options"].update(width="wide"), "model: mlp does not take"),
        ("model.json", lambda m: m["model"]["options"].update(width=9), "method: .* does not fit the model"),
        ("model.json", lambda m: m.update(method="prox"), "method: .* is that of prox, seed 0; restore"),
        ("model.json", lambda m: m.update(method="absent"), "method: .* is that of absent, seed 0; restore"),
        ("model.json", lambda m: m.update(seed=1), "method: .* is that of fedavg, seed 1; restore"),
        ("model.json", five_names, "method: .* does not fit the model"),
        ("model.json", few_recalls, "RUN: no model card can be written"),
        ("config.yaml", lambda c: c.pop("data"), r"RUN: no model card can be written .*KeyError: 'data'"),
        ("config.yaml", lambda c: c.update(federate=3), "RUN: no model card can be written"),
    ],
)
def test_files_that_do_not_fit_are_one_line(foreign, tmp_path, name, change, message):
    trial = foreign / "federate" / "fedavg" / "seed-0"
    changed((trial if name == "model.json" else foreign) / name, change)
    with pytest.raises(InputError, match=f"^{message}") as error:
        genfl.load_run(foreign).export(tmp_path / "m", method="fedavg")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "run"]


def test_a_loader_of_another_architecture_is_not_exported(run, tmp_path, monkeypatch):
    """The code in this process and that on disk, which is copied, are no longer the same."""
    from genfl.models.cnn import MLP

    run.export(tmp_path / "m", method="fedavg")
    before, modules = files(tmp_path / "m"), set(sys.modules)
    features = MLP.features
    monkeypatch.setattr(MLP, "features", lambda self, x: features(self, x) + 1e-3)
    with pytest.raises(InputError, match=r"^method: the loader of mlp does not give the logits of the model"):
        run.export(tmp_path / "m", method="fedavg")
    assert files(tmp_path / "m") == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert set(sys.modules) == modules


@pytest.mark.parametrize("to", ["file", "file/below"])
def test_targets_that_cannot_be_written_are_named(run, tmp_path, to):
    (tmp_path / "file").touch()
    reason = r"(is a file; name a folder|cannot be written \(Not a directory\))"
    with pytest.raises(InputError, match=rf"^folder: \S+ {reason}"):
        run.export(tmp_path / to, method="fedavg")


class Own(nn.Module):
    """A model of a user's own, whose output may be random."""

    def __init__(self, classes: int, noise: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.layer = nn.Linear(64, classes)
        self.noise = noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.norm(x.flatten(1))
        return self.layer(flat + self.noise * torch.rand_like(flat) if self.noise else flat)


def register_own(noise):
    @genfl.register.model("mine", shape=(1, 8, 8))
    def mine(shape: tuple[int, ...], classes: int) -> nn.Module:
        return Own(classes, noise)


@pytest.mark.slow
def test_models_of_the_users_own_go_to_onnx(forget, tmp_path):
    register_own(0.0)
    content = {
        "name": "own",
        "data": {"name": "digits", "partition": {"clients": 3, "alpha": 1.0, "samples": 60}},
        "generator": "none",
        "seeds": [0],
        "model": {"name": "mine"},
        "federate": {"rounds": 1, "clients_per_round": 2, "engine": "sequential", "local": {"steps": 1}},
        "methods": {"fedavg": {"algorithm": "fedavg"}},
    }
    result = genfl.run(content, out=tmp_path / "run")
    described(result, own=True)
    with pytest.raises(InputError, match=r"^method: fedavg trained mine, .* add onnx, which needs none$"):
        result.export(tmp_path / "m")
    exported = result.export(tmp_path / "m", onnx=True)
    assert exported.files.keys() == {"model.safetensors", "model.json", "README.md", "model.onnx"}
    assert exported.onnx_difference <= 1e-5
    before = files(tmp_path / "m")

    register_own(0.5)
    for folder in ("m", "noisy"):
        with pytest.raises(GenflError, match=r"^onnx: the logits .* differ .* by [\d.]+, more than"):
            result.export(tmp_path / folder, onnx=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "run"]
    assert files(tmp_path / "m") == before

    del MODELS["mine"]
    with pytest.raises(InputError, match=r"^model: mine is a model of your own, whose code is not at hand; "):
        genfl.load_run(tmp_path / "run").export(tmp_path / "n", onnx=True)
    assert not (tmp_path / "n").exists()


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub that an upload asks: it takes commits, and keeps them."""

    commits: dict[str, bytes]
    created: list[dict]
    status = 200

    def do_GET(self):
        kept = type(self)
        if self.status != 200 or self.headers["Authorization"] != "Bearer hf_test":
            self.answer({"error": "no"}, self.status if self.status != 200 else 401)
        elif self.path.startswith("/api/models/me/digits/tree/main?"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in kept.commits.items()
            ]
            self.answer(entries)
        else:
            self.answer({"error": self.path}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kept = type(self)
        if self.status != 200 or self.headers["Authorization"] != "Bearer hf_test":
            self.answer({"error": "no"}, self.status if self.status != 200 else 401)
        elif self.path == "/api/repos/create":
            kept.created.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/me/digits"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/me/digits/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            entries = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": entries})
        elif self.path == "/api/models/me/digits/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    kept.commits[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del kept.commits[line["value"]["path"]]
            url = f"http://{self.headers['Host']}/me/digits/commit/1"
            self.answer({"commitUrl": url, "commitOid": "1", "pullRequestUrl": None})
        else:
            self.answer({"error": self.path}, 404)

    def answer(self, content, status=200):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A server on this machine that the Hub's client uploads to."""
    from huggingface_hub import constants

    class Kept(Hub):
        pass

    Kept.commits, Kept.created = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Kept)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield Kept
    server.shutdown()
    server.server_close()
    thread.join()


def test_upload_holds_all_but_the_marker(run, hub, tmp_path):
    run.export(tmp_path / "m", method="fedavg")
    assert hub.commits == {}  # nothing is uploaded without the flag
    (tmp_path / "m" / "__pycache__").mkdir()
    exported = run.export(tmp_path / "m", method="fedavg", push_to_hub="me/digits")
    assert exported.repository.endswith("/me/digits")
    assert hub.commits == {k: v for k, v in files(tmp_path / "m").items() if k != ".genfl-export"}
    assert hub.commits.keys() == NAMES
    (wish,) = hub.created
    assert wish.get("visibility") == "private" or wish["private"] is True


def test_upload_deletes_what_an_earlier_export_had(run, hub, tmp_path):
    earlier = ("model.onnx", "tokenizer.json", "architecture/resnet.py", "README.md")
    others = ("notes.md", ".gitattributes", "data/model.onnx", "architecture/weights.bin")
    hub.commits.update(dict.fromkeys((*earlier, *others), b"old"))
    run.export(tmp_path / "m", method="fedavg", push_to_hub="me/digits")
    assert hub.commits.keys() == NAMES | {*others}
    assert {hub.commits[name] for name in others} == {b"old"}
    assert hub.commits["README.md"] == (tmp_path / "m" / "README.md").read_bytes()


def test_rejected_upload_is_one_line(run, hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    def refused(repository):
        with pytest.raises(InputError) as error:
            run.export(tmp_path / "m", method="fedavg", push_to_hub=repository)
        assert files(tmp_path / "m").keys() == NAMES | {".genfl-export"}  # it is complete here
        assert "\n" not in str(error.value)
        return str(error.value)

    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert refused("me/digits").startswith("push_to_hub: me/digits was not uploaded (the Hub")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(hub, "status", 400)
    assert "the Hub answers with status 400" in refused("me/digits")
    assert "it is not a valid Hub id" in refused("not/a/name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub cannot be reached" in refused("me/digits")
