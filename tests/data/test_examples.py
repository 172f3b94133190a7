"""Examples of data sets pass their checks and label discovery, on tiny stand-ins of the Hub's schema."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from support.parameters import mostly_slow

from genfl import config, grid, pipeline
from genfl.data.recipes import RECIPES, in_words
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run
from genfl.models import MODELS

from .helpers import SHARED, png, tables, tone, wav, write_parquet

EXAMPLES = Path(__file__).parents[2] / "examples"
PER_CLASS = 24

CLASSES = {
    "eurosat": ("Annual Crop", "Industrial Buildings", "SeaLake"),
    "flowers102": ("pink primrose", "hard-leaved pocket orchid", "bird of paradise"),
    "cifar100": ("apple", "aquarium_fish", "maple_tree"),
    "ham10000": ("melanocytic_Nevi", "benign_keratosis-like_lesions", "melanoma"),
    "vlcs": ("bird", "car", "chair"),
    "chest_xray": ("NORMAL", "PNEUMONIA"),
    "cifar10": ("airplane", "cat", "dog"),
    "pacs": ("dog", "elephant", "house"),
    "speech_commands": ("yes", "no", "up"),
    "esc50": ("dog", "sea_waves", "door_wood_knock"),
    "sentiment140": ("0", "4"),
    "yahoo_answers": ("Society & Culture", "Health", "Sports"),
}
"""Some classes of each data set, as its copy on the Hub names them."""

MEASURED = ("cifar10", "pacs", "speech_commands")
"""Data sets whose examples take other settings, and were run on real data."""

SMALL = (
    "seeds=[0]",
    "prompts={per_label: 4}",
    "federate.clients_per_round=2",
    "data.partition.alpha=5.0",
    "data.partition.clients=4",
)


def picture(number, n):
    """Returns a random picture whose brightness says its class."""
    rng = np.random.default_rng([number, n])
    return (rng.integers(0, 60, (12, 12, 3)) + 60 * number).astype(np.uint8)


def stand_in(folder, name):
    """Writes a data set in the schema of a recipe: its columns, class names, splits and owners."""
    classes, recipe = CLASSES[name], RECIPES[name]
    numbers = [number for _ in range(PER_CLASS) for number in range(len(classes))]
    if name == "vlcs":
        for domain in ("Caltech101", "LabelMe", "SUN09", "VOC2007"):
            for number, label in enumerate(classes):
                (folder / domain / label).mkdir(parents=True)
                for n in range(PER_CLASS):
                    Image.fromarray(picture(number, n)).save(folder / domain / label / f"{n}.png")
        return folder
    if recipe.format.modality == "text":
        owners = [f"u{row % 6}" for row in range(len(numbers))]
        rows = [
            {"text": f"{classes[k]} {row}", "sentiment": int(classes[k]), "user": owner}
            if name == "sentiment140"
            else {
                "question_title": f"title {row}",
                "question_content": classes[k],
                "best_answer": "yes",
                "topic": classes[k],
            }
            for row, (k, owner) in enumerate(zip(numbers, owners, strict=True))
        ]
        return tables(folder, train=rows, test=rows[:9])
    label = recipe.label[0]
    if recipe.format.modality == "audio":
        cells = [{"bytes": wav(tone(200 + 90 * k + row, 0.2)), "path": None} for row, k in enumerate(numbers)]
        rows = [
            {
                "audio": cell,
                label: classes[k],
                "fold": 1 + row // len(classes) % 5,
                "speaker_id": f"person {row % 4}",
            }
            for row, (cell, k) in enumerate(zip(cells, numbers, strict=True))
        ]
        return tables(folder, train=rows)
    for split in ("train", "test"):
        columns = {
            recipe.input[0]: [{"bytes": png(picture(k, row)), "path": None} for row, k in enumerate(numbers)],
            label: numbers if name != "ham10000" else [classes[k] for k in numbers],
            "lesion_id": [f"{split} {row // 2}" for row in range(len(numbers))],
            "domain": [("art", "cartoon", "photo", "sketch")[row // 3 % 4] for row in range(len(numbers))],
        }
        kind = datasets.ClassLabel(names=list(classes)) if name != "ham10000" else datasets.Value("string")
        texts = dict.fromkeys(("lesion_id", "domain"), datasets.Value("string"))
        features = {recipe.input[0]: datasets.Image(), label: kind, **texts}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        write_parquet(folder, **{split: table})
    return folder


def generated(folder, name):
    """Writes generated samples of each class, by the names that prompts use."""
    recipe = RECIPES[name]
    words = [in_words(label, recipe.words) for label in CLASSES[name]]
    if name == "eurosat":  # the real data has all classes
        words = sorted({*recipe.words.values()})
    if recipe.format.modality == "text":
        rows = [{"text": f"made {n} of {word}", "label": word} for word in words for n in range(5)]
        return tables(folder, "csv", train=rows)
    for number, word in enumerate(words):
        (folder / word).mkdir(parents=True)
        for n in range(5):
            if recipe.format.modality == "audio":
                (folder / word / f"{n}.wav").write_bytes(wav(tone(150 + 70 * number + n, 0.2)))
            else:
                Image.fromarray(picture(number % 4, 100 + n)).save(folder / word / f"{n}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    mostly_slow(
        [name for name in CLASSES if (EXAMPLES / f"{name}.yaml").is_file() and name not in MEASURED],
        "flowers102",
        "sentiment140",
    ),
)
def test_an_example_passes_its_checks_and_finds_its_labels(tmp_path, name):
    real = SHARED / "eurosat_rgb"
    data = real if name == "eurosat" and real.is_dir() else stand_in(tmp_path / "data", name)
    paths = (f"data.path={data}", f"generator.path={generated(tmp_path / 'generated', name)}")
    small = [text for text in SMALL if name != "vlcs" or "clients=4" not in text]
    more = ("data.partition.min_size=8",) if name == "sentiment140" else ()
    more = ("data.partition.samples=60",) if name == "yahoo_answers" else more
    more = ("data.partition.min_size=1",) if name == "chest_xray" else more
    settings = config.load(EXAMPLES / f"{name}.yaml", [*small, *more, *paths])
    pipeline.execute(settings, tmp_path / "run", until="labels")
    labels = Run(settings, tmp_path / "run").labels
    words = RECIPES[name].words
    expected = {in_words(label, words) for label in CLASSES[name]}
    assert {*labels} == ({*words.values()} if data == real else expected)
    clients = RunContext().resolve(settings).data.partition.clients
    assert clients == (20 if name == "vlcs" else 4)


PAPER = sorted(path.name for path in (EXAMPLES / "paper").glob("*.yaml"))


@pytest.fixture
def stand_ins(tiny_stable_diffusion, tiny_chat_model, tmp_path):
    """Settings that put a tiny model in the place of each generator, by its kind."""
    return {
        "image": {"kind": "image", "model": str(tiny_stable_diffusion)},
        "text": {"kind": "text", "model": str(tiny_chat_model), "words": 5, "max_tokens": 20},
        "speech": {"kind": "speech", "model": "espeak"},
        "sound": {"kind": "files", "path": str(tmp_path / "generated")},
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_a_paper_config_passes_its_checks_and_finds_its_labels(tmp_path, name, stand_ins, tiny_chat_model):
    """Of a grid, the schema is checked at each point, and the first one is run."""
    content = config.read(EXAMPLES / "paper" / name)
    fields = content.pop("grid", {})
    points = grid.points({**content, "grid": fields}) if fields else []
    content = config.plain_without_inherited(points[0].config if points else config.validate(content))
    data, kind = content["data"]["name"], content["generator"]["kind"]
    if kind == "sound":
        generated(tmp_path / "generated", data)
    model = tmp_path / "model.safetensors"
    settings = {
        "data.path": str(stand_in(tmp_path / "data", data)),
        "generator": stand_ins[kind],
        "seeds": [0],
        "device": "cpu",
        "precision": "fp32",  # an LSTM in bfloat16 needs a newer processor
        "data.partition.min_size": 1,
        "data.partition.samples": None,
        "federate.clients_per_round": 2,
        "prompts.per_label": 20,
    }
    if content["data"]["partition"]["kind"] == "dirichlet":
        settings |= {"data.partition.clients": 3, "data.partition.alpha": 5.0}
    else:
        content["data"]["partition"].pop("clients")
    if content.get("prompts", {}).get("llm"):
        settings["prompts.llm"] = {"model": str(tiny_chat_model)}
    if kind == "sound":  # files have no prompts
        content["prompts"] = {}
        settings["prompts.per_label"] = 5
    if content["model"]["name"] == "vgg19_imagenet":
        settings["model.hidden"] = 16  # of 4,096, which are 120 million weights
    if all(method["data"] == "private" for method in content["methods"].values()):
        content.pop("content", None)
    else:
        settings["content.per_client" if content["content"].get("per_client") else "content.samples"] = 12
    for method in content["methods"].values():
        if method["content"]:
            method["content"]["samples"] = 12
    if content.get("pretrain", {}).get("init"):
        small = {"name": "resnet20"}
        module = MODELS["resnet20"].build((3, 32, 32), len(CLASSES[data]))
        save_file(module.state_dict(), model)
        settings |= {"model": small, "pretrain.init": str(model)}
    for field, value in settings.items():
        config.put(content, field, value)
    checked = config.validate(content)
    pipeline.execute(checked, tmp_path / "run", until="labels")
    words = RECIPES[data].words
    assert {*Run(checked, tmp_path / "run").labels} == {in_words(label, words) for label in CLASSES[data]}
