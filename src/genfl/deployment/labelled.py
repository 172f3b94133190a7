"""Labelled data that a model is tested on: one split of a folder, read in batches, with nothing cached."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genfl.config import read as read_config
from genfl.data.decode import TEST_SPLITS
from genfl.data.folders import FileRows, Folder, Rows, cell_text, dataset_folder, joined_cells, joined_columns
from genfl.data.layout import Layout
from genfl.data.levels import OWNER_LEVELS, parse_levels
from genfl.data.media import MEDIA, Medium, Modality
from genfl.data.recipes import RECIPES, DatasetRecipe, in_words
from genfl.data.sources import DATASETS
from genfl.deployment.prediction import GENERIC, content_of, reason
from genfl.errors import InputError, on_one_line
from genfl.experiment.records import RUN_CONFIG

MOST_UNREADABLE = 20
"""The largest number of unreadable examples that are named."""


class DataColumns(NamedTuple):
    """How the examples of a data set are read: as a run read its own, unless the user says otherwise.

    Attributes:
        recipe: The recipe of the run's data; a general one if it has none.
        input: The column of the inputs; None for the recipe's.
        label: The column of the classes; None for the recipe's.
        client_id: The column of client ids; None for the recipe's.
        group: The column of groups; None for the recipe's.
        folders: What the folders of files mean; None to tell it from their names.
    """

    recipe: DatasetRecipe
    input: str | None = None
    label: str | None = None
    client_id: str | None = None
    group: str | None = None
    folders: str | None = None

    @classmethod
    def of_run(cls, folder: Path, modality: Modality) -> DataColumns:
        """Return how a run read its data. Nothing that its config names needs to be registered.

        Args:
            folder: The run's folder.
            modality: The kind of content.
        """
        data = read_config(folder / RUN_CONFIG).get("data")
        section: Mapping[str, Any] = data if isinstance(data, Mapping) else {"name": data}
        name = section.get("name")
        entry = DATASETS.get(str(name))
        recipe = RECIPES["mnist"] if name == "digits" else entry.recipe if entry else None
        recipe = recipe or GENERIC[modality]
        options = {field: section.get(field) for field in cls._fields if field != "recipe"}
        return cls(recipe, **options)._replace(folders=options["folders"] or recipe.folders)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The possible names of the column of the inputs."""
        return (self.input,) if self.input else self.recipe.input

    @property
    def labels(self) -> tuple[str, ...]:
        """The possible names of the column of the classes."""
        return (self.label,) if self.label else self.recipe.label


class LabelledBatch(NamedTuple):
    """Some labelled examples.

    Attributes:
        stored: The encoded inputs, [n, ...].
        labels: The label of each.
        clients: The client or domain of each; None where none is named.
        groups: The group of each; None where none is named.
    """

    stored: Tensor
    labels: list[str]
    clients: list[str | None]
    groups: list[str | None]


class LabelledFolder:
    """A split of a data set in a folder.

    Args:
        source: The folder, or the address of a data set on the Hub.
        modality: The kind of content.
        columns: How examples are read.
        split: The split; None for the test set, or else the validation set, or else the only one.

    Attributes:
        name: The source, as the user named it.
        path: The folder.
        split: The name of the split.
        total: The number of examples; an estimate if tables do not tell it.
        unreadable: The examples that could not be read, at most `MOST_UNREADABLE` of them.
        left_out: The number of examples that could not be read, and of those without a label.
        client_column: The column of clients or domains; None without one.
        group_column: The column of groups; None without one.

    Raises:
        InputError: The folder is empty, or it has no such split or column.
    """

    def __init__(
        self, source: str, modality: Modality, columns: DataColumns, split: str | None = None
    ) -> None:
        medium = MEDIA[modality]
        with _naming_arguments():
            self.name, path = source, dataset_folder(source)
            levels = _levels(path, medium, columns.folders)
            self._folder = Folder(path, medium, levels=levels)
            splits, total = self._folder.splits(columns.inputs, columns.labels)
            self.split = _choose(path, splits, columns, split)
            self._rows: Rows = splits[self.split]
            known = self._rows.columns
            self._input = self._folder.column(known, columns.inputs, "input")
            self._label = self._folder.column(known, columns.labels, "label")
        rows = self._rows
        exact = (
            len(rows.rows) if isinstance(rows, FileRows) else sum(table.rows or 0 for table in rows.tables)
        )
        self.total = exact or total
        self.path, self.modality, self._recipe = path, modality, columns.recipe
        self.unreadable: list[str] = []
        self.left_out: Counter[str] = Counter()
        owners = (columns.client_id, columns.recipe.client_id, *OWNER_LEVELS)
        self.client_column = next((name for name in owners if name in known), None)
        groups = (columns.group, columns.recipe.group)
        self.group_column = next((name for name in groups if name in known), None)

    def batches(self, encode: Callable[[Any], Tensor]) -> Iterator[LabelledBatch]:
        """Yield the examples with a label that can be read, some at a time.

        Args:
            encode: ``(content) -> x``: the stored form of one example.
        """
        optional = [name for name in (self.client_column, self.group_column) if name]
        columns = [*joined_columns(self._input), self._label, *optional]
        row = 0

        def read(cell: Any) -> Tensor | str:
            try:
                return encode(content_of(cell, self.modality))
            except InputError:  # a library is not installed, or the tokenizer is unsuitable
                raise
            except Exception as error:  # decoders raise many types on damaged files
                return reason(error)

        with ThreadPoolExecutor() as pool, _naming_arguments():
            for batch in self._rows.batches(columns, self._label):
                cells = [self._folder.content(cell) for cell in joined_cells(batch, self._input)]
                stored: list[Tensor] = []
                kept = LabelledBatch(torch.empty(0), [], [], [])
                extra = [
                    list(map(cell_text, batch[name])) if name else [None] * len(cells)
                    for name in (self.client_column, self.group_column)
                ]
                encoded = pool.map(read, cells)
                for cell, x, label, client, group in zip(
                    cells, encoded, batch[self._label], *extra, strict=True
                ):
                    row += 1
                    if isinstance(x, str):
                        self.left_out["unreadable"] += 1
                        if len(self.unreadable) < MOST_UNREADABLE:
                            name = self._folder.file_of(cell) or f"row {row} of {self.split}"
                            self.unreadable.append(f"{name}: {x}")
                    elif label is None:
                        self.left_out["unlabelled"] += 1
                    else:
                        stored.append(x)
                        kept.labels.append(self.label_of(label))
                        kept.clients.append(client)
                        kept.groups.append(group)
                yield kept._replace(stored=torch.stack(stored) if stored else kept.stored)

    def label_of(self, name: str) -> str:
        """Return the name that models have for a class of the data."""
        return unicodedata.normalize("NFC", in_words(name, self._recipe.words))


def _levels(path: Path, medium: Medium, folders: str | None) -> str | None:
    """Return what folders mean: as in the run's data, without outer levels that are absent here."""
    if folders is None or not path.is_dir():
        return folders
    levels = parse_levels(folders)
    depth = max((len(file.parts) - 1 for file in Layout(path, medium, "data").files_of("example")), default=0)
    if "**" in levels or depth >= len(levels):
        return folders
    inner = levels[len(levels) - depth :]
    return "/".join(inner) if "class" in inner else None


def _choose(path: Path, splits: Mapping[str, Rows], columns: DataColumns, split: str | None) -> str:
    names = ", ".join(splits)
    if split is not None:
        if split not in splits:
            raise InputError(f"split: there is no {on_one_line(split)!r} in {path}; its splits are: {names}")
        return split
    labelled = [name for name in splits if any(label in splits[name].columns for label in columns.labels)]
    for name in TEST_SPLITS:
        if name in labelled:
            return name
    if len(labelled) > 1:
        raise InputError(f"split: {path} has the splits {names}, none of them for tests; name one")
    return (*labelled, *splits)[0]


@contextlib.contextmanager
def _naming_arguments() -> Iterator[None]:
    """Name the arguments of an evaluation in messages, where the reading of data names fields of a config."""
    try:
        yield
    except InputError as error:
        text = re.sub(r"(?m)^data\.(path|input|label|folders)\b", r"\1", str(error))
        raise InputError(text) from error
