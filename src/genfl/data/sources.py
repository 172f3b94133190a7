"""Labelled data sets, by the names a config uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genfl.data.decode import Split, Wanted, contents, load
from genfl.data.folders import fetch, located
from genfl.data.media import Modality
from genfl.data.recipes import DIGIT_NAMES, RECIPES, Metric, Recipe, in_words
from genfl.errors import InputError


class Examples(NamedTuple):
    """Labelled examples.

    Attributes:
        x: Inputs as they are stored, [n, ...]: memory-mapped arrays of their `genfl.data.forms.Form`, or
            floats as models are given them.
        labels: The label *name* of each; what number a name gets is for the label discovery to say.
        keys: Whose each is; None where the data does not say.
    """

    x: Tensor
    labels: Sequence[str]
    keys: Sequence[str] | None = None


def as_stored(x: Tensor) -> Tensor:
    """Returns inputs as they are."""
    return x


def _no_originals(rows: Sequence[int]) -> list[Any]:
    raise ValueError("the data set keeps no originals")


class DataSet(NamedTuple):
    """A data set as the pipeline uses it.

    Attributes:
        train: What is split over the clients as their private data.
        test: What global models are scored on.
        modality: image, audio or text.
        encode: Turns the content of a generated sample (a PIL image of any size and mode, a
            `genfl.data.media.Clip`, a text) into an input like those of `train`.
        decode: Turns an input into a PIL image of the same pixels; None where inputs are no images.
        prepare: Turns inputs as they are stored, [n, ...], into what models are given: floats. It is called
            on what is about to be used, not on the whole data.
        digest: Of the content, for data that is not genfl's own.
        vocabulary: Of texts, the number of tokens there can be, padding included; 0 for everything else.
        originals: ``(rows) -> contents`` of examples to train on, such as generators are guided by: images as
            they are stored, clips and texts as they are in their files.
    """

    train: Examples
    test: Examples
    modality: Modality
    encode: Callable[[Any], Tensor]
    decode: Callable[[Tensor], Image.Image] | None = None
    prepare: Callable[[Tensor], Tensor] = as_stored
    digest: str = ""
    vocabulary: int = 0
    originals: Callable[[Sequence[int]], list[Any]] = _no_originals

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.x.shape[1:])


class DataEntry(NamedTuple):
    """A data set a config can name.

    Attributes:
        load: Gives the data set; where there is a recipe, it takes what `read` does.
        modality: image, audio or text.
        summary: One line on what it is.
        recipe: How it is read; None for data that comes with genfl's requirements.
    """

    load: Callable[..., DataSet]
    modality: Modality
    summary: str
    recipe: Recipe | None = None

    @property
    def metric(self) -> Metric:
        """What is usually reported of it, as summaries call it."""
        return self.recipe.metric if self.recipe else "accuracy"

    @property
    def public(self) -> bool:
        """Whether anyone may see its examples."""
        return self.recipe is None or self.recipe.public


def digits() -> DataSet:
    """Loads the UCI handwritten digits that scikit-learn ships: 1,797 grey images of 8×8 by 43 people.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits". Every pixel counts the ink
    in a 4×4 block of a 32×32 bitmap, here divided by its maximum of 16. A fifth of each class is the test
    set, the same for every seed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, target = load_digits(return_X_y=True)
    x = torch.from_numpy(images.reshape(-1, 1, 8, 8) / 16).float()
    train, test = train_test_split(np.arange(len(x)), test_size=360, stratify=target, random_state=0)

    def examples(rows: np.ndarray) -> Examples:
        return Examples(x[torch.from_numpy(rows)], [DIGIT_NAMES[label] for label in target[rows]])

    own = examples(train)
    return DataSet(
        own,
        examples(test),
        "image",
        grey_image(8, 8),
        to_image,
        originals=lambda rows: [to_image(own.x[row]) for row in rows],
    )


def grey_image(height: int, width: int) -> Callable[[Image.Image], Tensor]:
    """Returns an encoder of images as one channel in [0, 1], reduced by averaging over blocks."""

    def encode(image: Image.Image) -> Tensor:
        small = image.convert("L").resize((width, height), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)[None]

    return encode


def to_image(x: Tensor) -> Image.Image:
    """Turns an input [1 or 3, height, width], uint8 or in [0, 1], into a grey or RGB image."""
    pixels = x.numpy() if x.dtype == torch.uint8 else np.rint(255 * x.numpy().clip(0, 1)).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def folder_of(recipe: Recipe, path: str | None, name: str) -> Path:
    """Returns the folder that a data set is read from: a copy, or what is downloaded from the Hub.

    Raises:
        InputError: It cannot be had.
    """
    return located(path) if path is not None else fetch(name, str(recipe.hub))


def read(
    name: str,
    recipe: Recipe,
    *,
    path: str | None = None,
    input: str | None = None,
    label: str | None = None,
    key: str | None = None,
    **form_options: Any,
) -> DataSet:
    """Reads a data set; what is given replaces what the recipe says.

    Labels are prompt-ready: the recipe's words for the data's own names, or these names with spaces for
    underscores.

    Args:
        name: What a config calls it.
        recipe: How it is read.
        path: A folder with a copy of it, see `genfl.data.decode.load`, or an address of the Hub; without it,
            the recipe's own is read.
        input: The column of the examples.
        label: The column of the classes.
        key: The column that says whose an example is.
        form_options: Fields of the recipe's form.

    Raises:
        InputError: It cannot be had, or is not as it must be.
    """
    if path is None and recipe.hub is None:
        raise InputError(f"data.path: {name} needs the folder it is in")
    form = replace(recipe.form, **form_options)  # type: ignore[type-var]  # all forms are dataclasses
    if missing := form.missing():
        raise InputError(f"data.{missing}")
    folder = folder_of(recipe, path, name)
    columns = ((input,) if input else recipe.input, (label,) if label else recipe.label)
    apart = (recipe.key, recipe.test_key) if recipe.key and recipe.test_key else None
    wanted = Wanted(*columns, key or recipe.key, form, apart, recipe.without)
    found = load(folder, wanted)
    if key and found.train.keys is None:
        raise InputError(f"data.key: no column {key!r} in {folder}")
    words = [in_words(name, recipe.words) for name in found.names]
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise InputError(f"data.label: two classes are both called {twice!r}; rename one of them")

    def examples(split: Split) -> Examples:
        return Examples(torch.from_numpy(split.inputs), [words[label] for label in split.labels], split.keys)

    def originals(rows: Sequence[int]) -> list[Any]:
        if form.modality == "image":
            return [to_image(train.x[row]) for row in rows]
        return contents(folder, wanted, [found.train.rows[row] for row in rows])

    train = examples(found.train)
    return DataSet(
        train,
        examples(found.test),
        form.modality,
        lambda content: torch.from_numpy(np.array(form.encode(content))),
        to_image if form.modality == "image" else None,
        form.prepare,
        found.digest,
        form.vocabulary(),
        originals,
    )


DATASETS: dict[str, DataEntry] = {
    "digits": DataEntry(digits, "image", "UCI handwritten digits, 1,797 of 8×8, bundled with scikit-learn"),
    **{
        name: DataEntry(partial(read, name, recipe), recipe.form.modality, recipe.summary, recipe)
        for name, recipe in RECIPES.items()
    },
}
