"""Every image recipe on a tiny copy of what the Hub has: its columns, class names, splits and file names."""

import json

import datasets
import numpy as np
import pytest
import torch

from genfl import catalogue
from genfl.data.formats import PixelFormat
from genfl.data.recipes import RECIPES
from genfl.data.sources import DATASETS

from .helpers import png, write_parquet


def kinds(*names):
    return datasets.ClassLabel(names=list(names))


TEXT, NUMBER, REAL = (datasets.Value(kind) for kind in ("string", "int32", "float32"))
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# name: where the files are, splits, the input's column, the classes' column and its type,
# the other columns, and what the classes are called
HUB = {
    "cifar10": (
        "plain_text",
        ("train", "test"),
        "img",
        ("label", kinds("airplane", "automobile", "bird")),
        {},
        ("airplane", "automobile", "bird"),
    ),
    "cifar100": (
        "cifar100",
        ("train", "test"),
        "img",
        ("fine_label", kinds("apple", "aquarium_fish", "maple_tree")),
        {"coarse_label": kinds("aquatic_mammals", "fish")},
        ("apple", "aquarium fish", "maple tree"),
    ),
    "flowers102": (
        "data",
        ("train", "validation", "test"),
        "image",
        ("label", kinds("pink primrose", "hard-leaved pocket orchid", "bird of paradise")),
        {},
        ("pink primrose", "hard-leaved pocket orchid", "bird of paradise"),
    ),
    "eurosat": (
        "data",
        ("train", "validation", "test"),
        "image",
        ("label", kinds("Annual Crop", "Industrial Buildings", "SeaLake")),
        {"filename": TEXT},
        ("annual crop", "industrial buildings", "sea or lake"),
    ),
    "ham10000": (
        "data",
        ("train", "validation", "test"),
        "image",
        ("dx", ("melanocytic_Nevi", "benign_keratosis-like_lesions", "melanoma")),
        {
            "image_id": TEXT,
            "lesion_id": TEXT,
            "dx_type": TEXT,
            "age": REAL,
            "sex": TEXT,
            "localization": TEXT,
        },
        ("melanocytic nevi", "benign keratosis-like lesions", "melanoma"),
    ),
    "pacs": (
        "data",
        ("train",),
        "image",
        ("label", kinds("dog", "elephant", "giraffe")),
        {"domain": TEXT},
        ("dog", "elephant", "giraffe"),
    ),
    "vlcs": (
        "data",
        ("train",),
        "image",
        ("label", kinds("bird", "car", "chair")),
        {"domain": TEXT},
        ("bird", "car", "chair"),
    ),
    "chest_xray": (
        "data",
        ("train", "validation", "test"),
        "image",
        ("label", kinds("NORMAL", "PNEUMONIA")),
        {},
        ("normal chest", "chest with pneumonia"),
    ),
    "food101": (
        "data",
        ("train", "validation"),
        "image",
        ("label", kinds("apple_pie", "baby_back_ribs", "baklava")),
        {},
        ("apple pie", "baby back ribs", "baklava"),
    ),
    "mnist": ("mnist", ("train", "test"), "image", ("label", kinds(*"0123456789")), {}, DIGITS),
    "fashion_mnist": (
        "fashion_mnist",
        ("train", "test"),
        "image",
        ("label", kinds("T - shirt / top", "Trouser", "Ankle boot")),
        {},
        ("t-shirt", "Trouser", "Ankle boot"),
    ),
    "images": ("data", ("train", "test"), "image", ("label", kinds("a", "b_c")), {}, ("a", "b c")),
}
PER_CLASS = 5


def write(folder, name):
    """Writes five images of each class for each split, of a brightness that says which class."""
    place, splits, image, (label, classes), others, _ = HUB[name]
    names = classes.names if isinstance(classes, datasets.ClassLabel) else classes
    channels = RECIPES[name].format.channels
    for split in splits:
        numbers = [number for _ in range(PER_CLASS) for number in range(len(names))]
        columns = {image: [], label: numbers if names is not classes else [names[n] for n in numbers]}
        for number in numbers:
            shape = (9, 12, channels) if channels == 3 else (9, 12)
            columns[image].append({"bytes": png(np.full(shape, 20 * number, np.uint8)), "path": None})
        features = {image: datasets.Image(), label: classes if names is not classes else TEXT}
        for column, kind in others.items():
            features[column] = kind
            columns[column] = [f"{column} {n % 2}" if kind == TEXT else n % 2 for n in range(len(numbers))]
            if column == RECIPES[name].group:
                columns[column] = [f"{split} {n}" for n in range(len(numbers))]
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        write_parquet(folder / place, **{split: rows})
    return folder


def test_every_image_recipe_is_here():
    assert set(HUB) == {name for name, recipe in RECIPES.items() if isinstance(recipe.format, PixelFormat)}


@pytest.mark.parametrize("name", list(HUB))
def test_a_recipe_reads_what_the_hub_has(tmp_path, name):
    _, splits, _, _, others, words = HUB[name]
    recipe = RECIPES[name]
    size = {} if recipe.format.size else {"size": (8, 8)}
    data = DATASETS[name].load(path=str(write(tmp_path / "d", name)), **size)
    each = (PER_CLASS, PER_CLASS) if len(splits) > 1 else (PER_CLASS - 1, 1)
    for examples, count in zip((data.train, data.test), each, strict=True):
        assert sorted(examples.labels) == sorted(words * count)
        assert examples.x.dtype == torch.uint8
        assert tuple(examples.x.shape[1:]) == (recipe.format.channels, *(recipe.format.size or (8, 8)))
        for x, label in zip(examples.x, examples.labels, strict=True):
            assert bool((x == 20 * words.index(label)).all()), "each image keeps its label"
    if recipe.client_id:
        assert set(data.train.client_ids) == {f"{recipe.client_id} 0", f"{recipe.client_id} 1"}
        assert recipe.client_id in others
    else:
        assert data.train.client_ids is None
    assert all(word in words for word in recipe.words.values() if name == "mnist")


def test_the_catalogue_says_what_is_usually_reported():
    rows = {row["name"]: row for row in catalogue.datasets()}
    assert rows["ham10000"]["metric"] == "macro_f1"
    assert rows["cifar10"]["metric"] == rows["digits"]["metric"] == "accuracy"
    assert {row["metric"] for row in rows.values()} == {"accuracy", "macro_f1"}, "what summaries have"
    json.dumps(list(rows.values()))
