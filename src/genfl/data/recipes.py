"""The built-in data sets: where each is, its columns, its classes in words, and its form."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from genfl.data.forms import Form, Pixels

NOTHING: Mapping[str, str] = MappingProxyType({})


class Recipe(NamedTuple):
    """How a labelled data set is read, from a local copy or from the Hugging Face Hub.

    Attributes:
        summary: One line on what it is.
        hub: Its id on the Hub, where it is kept as Parquet; None for data that only its user has.
        form: What its examples are turned into.
        input: Names of the column with the examples; copies differ.
        label: Names of the column with the classes.
        key: The column that says whose an example is, where the data has clients of its own.
        words: What prompts call the classes whose own names are codes.
        metric: What is usually reported of it.
        verified: Whether genfl's tests have read a real copy of it.
    """

    summary: str
    hub: str | None
    form: Form
    input: tuple[str, ...]
    label: tuple[str, ...] = ("label",)
    key: str | None = None
    words: Mapping[str, str] = NOTHING
    metric: str = "accuracy"
    verified: bool = False


DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_DIGITS = {str(digit): name for digit, name in enumerate(DIGIT_NAMES)}
_EUROSAT = {
    "AnnualCrop": "annual crop",
    "Forest": "forest",
    "HerbaceousVegetation": "herbaceous vegetation",
    "Highway": "highway",
    "Industrial": "industrial buildings",
    "Pasture": "pasture",
    "PermanentCrop": "permanent crop",
    "Residential": "residential buildings",
    "River": "river",
    "SeaLake": "sea or lake",
}
_LESIONS = {
    "akiec": "actinic keratoses",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesions",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "melanocytic_Nevi": "melanocytic nevi",
    "nv": "melanocytic nevi",
    "vasc": "vascular lesions",
}
_CLOTHES = {"T - shirt / top": "t-shirt", "T-shirt/top": "t-shirt"}

_IMAGE = ("image",)

_PHOTOS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet, in use for photographs whatever the data set."""

RECIPES: dict[str, Recipe] = {
    "cifar10": Recipe(
        "CIFAR-10: 60,000 photos of ten kinds of animals and vehicles, RGB 32×32",
        "uoft-cs/cifar10",
        Pixels((32, 32), 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("img", "image"),
        verified=True,
    ),
    "cifar100": Recipe(
        "CIFAR-100: 60,000 photos of a hundred kinds of things, RGB 32×32",
        "uoft-cs/cifar100",
        Pixels((32, 32), 3, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("img", "image"),
        label=("fine_label", "label"),
    ),
    "flowers102": Recipe(
        "Oxford Flowers: 8,189 photos of 102 flowers, RGB, at 64×64",
        "Donghyun99/Oxford-Flower-102",
        Pixels((64, 64), 3, *_PHOTOS),
        _IMAGE,
    ),
    "eurosat": Recipe(
        "EuroSAT: 27,000 satellite images of ten uses of land, RGB 64×64",
        "blanchon/EuroSAT_RGB",
        Pixels((64, 64), 3, (0.3444, 0.3803, 0.4078), (0.2037, 0.1366, 0.1148)),
        _IMAGE,
        words=_EUROSAT,
        verified=True,
    ),
    "ham10000": Recipe(
        "HAM10000: 10,015 dermatoscopic images of seven kinds of skin lesions, RGB, at 64×64",
        "marmal88/skin_cancer",
        Pixels((64, 64), 3, *_PHOTOS),
        _IMAGE,
        label=("dx", "label"),
        words=_LESIONS,
        metric="macro_f1",
    ),
    "pacs": Recipe(
        "PACS: 9,991 photos, paintings, cartoons and sketches of seven things, RGB, at 64×64",
        "flwrlabs/pacs",
        Pixels((64, 64), 3, (0.7608, 0.7420, 0.7134), (0.2938, 0.3038, 0.3316)),
        _IMAGE,
        key="domain",
        verified=True,
    ),
    "food101": Recipe(
        "Food-101: 101,000 photos of 101 dishes, RGB, at 64×64",
        "ethz/food101",
        Pixels((64, 64), 3, *_PHOTOS),
        _IMAGE,
    ),
    "mnist": Recipe(
        "MNIST: 70,000 handwritten digits, grey 28×28",
        "ylecun/mnist",
        Pixels((28, 28), 1, (0.1307,), (0.3081,)),
        _IMAGE,
        words=_DIGITS,
        verified=True,
    ),
    "fashion_mnist": Recipe(
        "Fashion-MNIST: 70,000 pictures of ten kinds of clothes, grey 28×28",
        "zalando-datasets/fashion_mnist",
        Pixels((28, 28), 1, (0.2860,), (0.3530,)),
        _IMAGE,
        words=_CLOTHES,
    ),
    "images": Recipe(
        "Your own images: a folder of Parquet files, or one folder of image files for each class",
        None,
        Pixels(None, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        _IMAGE,
        verified=True,
    ),
}
