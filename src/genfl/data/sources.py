"""Labelled data sets, by the names that a config uses."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genfl.data.decode import DatasetSpec, DrawnTest, Split, load_folder, read_originals
from genfl.data.folders import dataset_folder, fetch_from_hub
from genfl.data.formats import GreyFormat, InputFormat
from genfl.data.levels import OWNER_LEVELS, parse_levels
from genfl.data.media import MEDIA, Modality
from genfl.data.recipes import DIGIT_NAMES, RECIPES, DatasetRecipe, Metric, in_words
from genfl.errors import InputError
from genfl.identity import value_digest
from genfl.registry import Registry
from genfl.storage import digest


class LabelledExamples(NamedTuple):
    """Labelled examples.

    Attributes:
        x: Inputs as they are stored, [n, ...]: memory-mapped arrays of a `genfl.data.formats.InputFormat`, or
            the floats that models take.
        labels: The label *name* of each example. Label discovery decides the number of each name.
        client_ids: The client id of each example; None if the data has no client ids.
        groups: The group of each example; None if the data has no groups. Examples of a group are never on
            both sides of a test split.
    """

    x: Tensor
    labels: Sequence[str]
    client_ids: Sequence[str] | None = None
    groups: Sequence[str] | None = None


def as_stored(x: Tensor) -> Tensor:
    """Return inputs unchanged."""
    return x


def _no_originals(rows: Sequence[int]) -> Sequence[Any]:
    raise ValueError("the data set keeps no originals")


class DataSet(NamedTuple):
    """A data set as the pipeline uses it.

    Attributes:
        train: The training set, which is split over the clients as their private data.
        test: The test set, on which global models are scored.
        modality: image, audio or text.
        encode: ``(content) -> x``. Turns the content of a generated sample into an input like those of
            `train`. The content is a PIL image of any size and mode, a `genfl.data.media.Clip` or a text.
        decode: ``(x) -> image``. Turns an input into a PIL image of the same pixels; None if inputs are not
            images.
        prepare: Turns stored inputs, [n, ...], into the floats that models take. It is called on batches, not
            on the whole data.
        digest: A digest of the content; empty for data that never changes, such as ``digits``.
        vocabulary: The number of distinct tokens of texts, padding included; 0 for other modalities.
        label_order: The class names in the order of the data; names that are missing come last.
        notes: What a user should know of the reading, such as files that are left out.
        originals: ``(rows) -> contents`` of training examples as they are in their files, for guided
            generators: images of any size and mode, clips or texts. They may be decoded when they are read.
        format_digest: A digest of `encode` and `prepare`; empty for formats that never change.
        test_originals: The same as `originals`, for examples of the test set.
        input_range: The smallest and the largest value that `prepare` returns, for each channel; None if they
            are not known.
        format: The format of which `encode` and `prepare` are; None for data whose code alone knows it.
    """

    train: LabelledExamples
    test: LabelledExamples
    modality: Modality
    encode: Callable[[Any], Tensor]
    decode: Callable[[Tensor], Image.Image] | None = None
    prepare: Callable[[Tensor], Tensor] = as_stored
    digest: str = ""
    vocabulary: int = 0
    originals: Callable[[Sequence[int]], Sequence[Any]] = _no_originals
    notes: tuple[str, ...] = ()
    label_order: tuple[str, ...] = ()
    format_digest: str = ""
    test_originals: Callable[[Sequence[int]], Sequence[Any]] = _no_originals
    input_range: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    format: InputFormat | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.x.shape[1:])


class DataEntry(NamedTuple):
    """A data set that a config can name.

    Attributes:
        load: Returns the data set. With a recipe, it takes the options of `read_dataset`.
        modality: image, audio or text.
        summary: A description in one line.
        recipe: The recipe that `load` reads; None for data that takes no options.
        metric: The score that is usually reported.
        public: Whether anyone may see the examples; if not, reports show none by default.
    """

    load: Callable[..., DataSet]
    modality: Modality
    summary: str
    recipe: DatasetRecipe | None = None
    metric: Metric = "accuracy"
    public: bool = False

    @classmethod
    def from_recipe(cls, name: str, recipe: DatasetRecipe) -> DataEntry:
        """Return the entry of a data set that a recipe describes.

        Args:
            name: The name of the data set in configs.
            recipe: The recipe.
        """
        load = partial(read_dataset, name, recipe)
        return cls(load, recipe.format.modality, recipe.summary, recipe, recipe.metric, recipe.public)


DIGITS_FORMAT = GreyFormat((8, 8))
"""The input format of `digits`."""


def digits() -> DataSet:
    """Load the UCI handwritten digits of scikit-learn: 1,797 grey images of 8×8 by 43 people.

    Every pixel is the amount of ink in a 4×4 block of a 32×32 bitmap, divided by its maximum of 16. A fifth
    of each class is the test set, the same for every seed.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits".
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, target = load_digits(return_X_y=True)
    x = torch.from_numpy(images.reshape(-1, 1, 8, 8) / 16).float()
    train, test = train_test_split(np.arange(len(x)), test_size=360, stratify=target, random_state=0)

    def examples(rows: np.ndarray) -> LabelledExamples:
        return LabelledExamples(x[torch.from_numpy(rows)], [DIGIT_NAMES[label] for label in target[rows]])

    training = examples(train)
    return DataSet(
        training,
        examples(test),
        "image",
        grey_image(*DIGITS_FORMAT.size),
        to_image,
        originals=lambda rows: [to_image(training.x[row]) for row in rows],
        label_order=DIGIT_NAMES,
        input_range=DIGITS_FORMAT.input_range(),
        format=DIGITS_FORMAT,
    )


def grey_image(height: int, width: int) -> Callable[[Image.Image], Tensor]:
    """Return an encoder of images in the format `GreyFormat`."""
    encoding = GreyFormat((height, width))
    return lambda image: torch.from_numpy(encoding.encode(image))


def to_image(x: Tensor) -> Image.Image:
    """Return an input [1 or 3, height, width], uint8 or in [0, 1], as a grey or RGB image."""
    pixels = x.numpy() if x.dtype == torch.uint8 else np.rint(255 * x.numpy().clip(0, 1)).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def folder_of(recipe: DatasetRecipe, path: str | None, name: str) -> Path:
    """Return the folder of a data set: the copy at `path`, or the download of the recipe's own.

    Args:
        recipe: The recipe.
        path: A folder, or the address of a data set on the Hub; None for the recipe's own.
        name: The name of the data set in configs.

    Raises:
        InputError: The data set cannot be downloaded.
    """
    return dataset_folder(path) if path is not None else fetch_from_hub(name, str(recipe.hub))


def read_dataset(
    name: str,
    recipe: DatasetRecipe,
    *,
    path: str | None = None,
    input: str | None = None,
    label: str | None = None,
    client_id: str | None = None,
    folders: str | None = None,
    group: str | None = None,
    test_from: str = "split",
    test_share: float = 0.1,
    least: int = 1,
    **format_options: Any,
) -> DataSet:
    """Read a data set by its recipe; options override the recipe.

    Labels are ready for prompts: the recipe's words for the names in the data, or these names with spaces for
    underscores.

    Nothing is cached by path in this process: every call hashes the files, so it sees files and tokenizers
    that changed. Decoding is cached on disk, by content.

    Args:
        name: The name of the data set in configs.
        recipe: The recipe.
        path: A folder with a copy, see `genfl.data.decode.load_folder`, or an address on the Hub. Without it,
            the recipe's own is downloaded.
        input: The column of the examples.
        label: The column of the classes.
        client_id: The column of client ids.
        folders: What the folders of files mean; see `genfl.data.levels.parse_levels`.
        group: The column of groups.
        test_from: ``split`` for the test set of the data, ``samples`` or ``clients`` for one that is drawn;
            see `genfl.data.decode.DrawnTest`.
        test_share: The share of samples or clients that is drawn.
        least: Clients with fewer samples are left out, if the test set is drawn.
        format_options: Fields of the recipe's format.

    Raises:
        InputError: The data set cannot be downloaded, or its content is invalid.
    """
    if path is None and recipe.hub is None:
        raise InputError(f"data.path: required for {name}; give the folder with the data")
    encoding = replace(recipe.format, **format_options)  # type: ignore[type-var]  # all are dataclasses
    if missing := encoding.missing():
        raise InputError(f"data.{missing}")
    folder = folder_of(recipe, path, name)
    columns = ((input,) if input else recipe.input, (label,) if label else recipe.label)
    apart = (recipe.client_id, recipe.test_client_id) if recipe.client_id and recipe.test_client_id else None
    id_column = client_id or recipe.client_id
    folders = folders or recipe.folders
    for level in {*parse_levels(folders)} & {*OWNER_LEVELS} if folders else ():
        id_column = id_column or level
    drawn = None if test_from == "split" else DrawnTest(test_from, test_share, least)
    spec = DatasetSpec(
        *columns, id_column, encoding, apart, recipe.without, folders, group or recipe.group, drawn
    )
    decoded = load_folder(folder, spec)
    if client_id and decoded.train.client_ids is None:
        raise InputError(f"data.client_id: no column {client_id!r} in {folder}; name another column")
    if group and decoded.train.groups is None:
        raise InputError(f"data.group: no column {group!r} in {folder}; name another column")
    words = [in_words(name, recipe.words) for name in decoded.names]
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise InputError(f"data.label: two classes are both called {twice!r}; rename one of them")
    for word in words:
        if any(unicodedata.category(letter) == "Cc" for letter in word):
            raise InputError(f"data.label: class {word!r} holds a control character; rename it")

    def examples(split: Split) -> LabelledExamples:
        labels = [words[number] for number in split.labels]
        return LabelledExamples(torch.from_numpy(split.inputs), labels, split.client_ids, split.groups)

    def originals(rows: Sequence[int]) -> Sequence[Any]:
        return read_originals(folder, spec, [decoded.train.rows[row] for row in rows], decoded.digest)

    def test_originals(rows: Sequence[int]) -> Sequence[Any]:
        of_files = [decoded.test.rows[row] for row in rows]
        return read_originals(folder, spec, of_files, decoded.digest, test=True)

    train = examples(decoded.train)
    return DataSet(
        train,
        examples(decoded.test),
        encoding.modality,
        lambda content: torch.from_numpy(np.array(encoding.encode(content))),
        to_image if encoding.modality == "image" else None,
        encoding.prepare,
        decoded.digest,
        encoding.vocabulary(),
        originals,
        decoded.notes,
        tuple(words),
        digest(encoding.identity()),
        test_originals=test_originals,
        input_range=encoding.input_range(),
        format=encoding,
    )


DATASETS: Registry[DataEntry] = Registry(
    "data set",
    {
        "digits": DataEntry(
            digits,
            "image",
            "UCI handwritten digits, 1,797 of 8×8, bundled with scikit-learn",
            public=True,
        ),
        **{name: DataEntry.from_recipe(name, recipe) for name, recipe in RECIPES.items()},
    },
)
"""The data sets by the names that a config uses; `genfl.register.dataset` adds to them."""


def registered_dataset(load: Callable[..., DataSet], modality: Modality, summary: str) -> DataEntry:
    """Return the entry of a data set of the user's own.

    The digest of the data covers its content and the code of `load`, `encode` and `prepare`. So a run whose
    data or code changed is trained again. If `DataSet.digest` is set, it stands for the content.

    Args:
        load: Returns the data set; it is called in every run.
        modality: image, audio or text.
        summary: A description in one line.

    Raises:
        InputError: The modality is unknown.
    """
    if modality not in MEDIA:
        raise InputError(f"modality: {modality!r} is unknown; give {', '.join(MEDIA)}")
    return DataEntry(partial(_load_with_digest, load), modality, summary)


def _load_with_digest(load: Callable[..., DataSet], **options: Any) -> DataSet:
    data = load(**options)
    code = value_digest(load, data.encode, data.prepare)
    content = digest([data.digest or _content_digest(data), code])
    return data._replace(digest=content, format_digest=value_digest(data.encode, data.prepare))


def _content_digest(data: DataSet) -> str:
    """Return a digest of the inputs, labels and client ids of a data set."""
    content = hashlib.sha256()
    for x, labels, client_ids, groups in (data.train, data.test):
        ids = None if client_ids is None else list(client_ids)
        grouped = [] if groups is None else [list(groups)]
        content.update(digest([str(x.dtype), list(x.shape), list(labels), ids, *grouped]).encode())
        content.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
