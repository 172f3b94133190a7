"""Samples that exist already: a folder of them, by label."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from genfl.data.folders import Folder
from genfl.data.media import MEDIA, Modality
from genfl.errors import InputError
from genfl.generators.base import Prompt, Sample
from genfl.rng import Key
from genfl.storage import digest

log = logging.getLogger(__name__)


class Files:
    """Takes samples of each label from a folder, each at most once, in an order drawn at random.

    Args:
        path: A folder in the Hugging Face layout, see `genfl.data.folders`: Parquet files, or one folder of
            files for each class. All its splits are used.
        modality: What the samples are.
        input: The column of the samples; None for what Hugging Face calls it.
        label: The column of the classes.
        words: What labels are called whose names in the folder are others.

    Raises:
        InputError: The folder cannot be read, or has no such columns.
    """

    def __init__(
        self,
        path: str,
        modality: Modality,
        input: str | None = None,
        label: str = "label",
        words: Mapping[str, str] | None = None,
    ) -> None:
        place = Path(path).expanduser()
        medium = MEDIA[modality]
        self.id = place.resolve().name
        self.modality = modality
        self.read = medium.read
        self.cells = _cells(place, modality, input or medium.column, label)
        known = words or {}
        self.cells = {known.get(name, name.replace("_", " ")): cells for name, cells in self.cells.items()}

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Gives the sample of each prompt's label that its place says.

        Raises:
            InputError: There are too few of a label.
        """
        for prompt in prompts:
            self.check([prompt.label], prompt.nth + 1)
            cells = self.cells[prompt.label]
            order = Key(0).fold("files", prompt.label).numpy().permutation(len(cells))
            yield Sample(prompt, self.read(cells[order[prompt.nth]]))

    def check(self, labels: Sequence[str], per_label: int) -> None:
        """Refuses to be asked for more than there is.

        Raises:
            InputError: There are too few of a label; it says of which.
        """
        for label in labels:
            there = len(self.cells.get(label, ()))
            if not there:
                raise InputError(
                    f"generator.path: {self.id} has no {label!r}; its labels are: {', '.join(self.cells)}"
                )
            if there < per_label:
                raise InputError(
                    f"prompts.per_label: {per_label}, but {self.id} has {there} of {label!r}; lower it"
                )


@lru_cache(maxsize=1)
def _cells(place: Path, modality: Modality, input: str, label: str) -> dict[str, list[Any]]:
    """Reads a folder: for each label, as the folder calls it, the cells of its samples that can be read."""
    folder, medium = Folder(place, "generator"), MEDIA[modality]
    folder.identity(medium)
    found: dict[str, list[Any]] = {}
    unreadable = 0
    for stream in folder.splits()[0].values():
        sample = folder.column(stream.features, [input], "input")
        classes = folder.column(stream.features, [label], "label")
        names = getattr(stream.features[classes], "names", None)
        for batch in folder.batches(stream, [sample, classes]):
            for cell, value in zip(batch[sample], batch[classes], strict=True):
                try:
                    medium.read(cell)
                except InputError:  # a library that is not installed
                    raise
                except Exception:  # decoders raise what they like on damaged files
                    unreadable += 1
                else:
                    found.setdefault(names[value] if names else str(value), []).append(cell)
    if unreadable:
        log.warning("%d %s of %s cannot be read and are left out", unreadable, medium.what, place)
    return found


@lru_cache
def fingerprint(path: str, modality: Modality) -> str:
    """Returns a digest of a folder's files."""
    return digest(Folder(Path(path).expanduser(), "generator").identity(MEDIA[modality]))
