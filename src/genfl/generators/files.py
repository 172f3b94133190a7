"""Samples that exist already: a folder of them, by label."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from genfl.data.folders import Folder
from genfl.data.media import MEDIA, Modality
from genfl.data.recipes import in_words
from genfl.errors import InputError
from genfl.generators.base import Prompt, Sample
from genfl.rng import Key
from genfl.storage import digest

log = logging.getLogger(__name__)

ABOUT = ("dataset_dict.json", "dataset_info.json", "state.json")
"""Files that ``save_to_disk`` writes beside the examples; those of different ones may be the same."""


def unchanged(content: Any) -> Any:
    """Returns a sample as it is."""
    return content


class Files:
    """Takes samples of each label from a folder, each at most once, in an order drawn at random.

    Args:
        path: A folder in the Hugging Face layout, see `genfl.data.folders`: Parquet files, or one folder of
            files for each class. All its splits are used.
        modality: What the samples are.
        input: The column of the samples; None for what Hugging Face calls it.
        label: The column of the classes.
        words: What labels are called whose names in the folder are others.
        encode: What samples are turned into later; one that it raises anything on counts as unreadable.

    Raises:
        InputError: The folder cannot be read, has no such columns, or calls two labels the same.
    """

    def __init__(
        self,
        path: str,
        modality: Modality,
        input: str | None = None,
        label: str = "label",
        words: Mapping[str, str] | None = None,
        encode: Callable[[Any], Any] = unchanged,
    ) -> None:
        place = Path(path).expanduser()
        medium = MEDIA[modality]
        self.id = place.resolve().name
        self.modality = modality
        self.read = medium.read
        self.cells: dict[str, list[Any]] = {}
        known = words or {}
        for name, cells in _cells(place, modality, input or medium.column, label, encode).items():
            # as label discovery does: macOS writes folder names in NFD
            name = unicodedata.normalize("NFC", name)
            word = in_words(name, known)
            if word in self.cells:
                raise InputError(
                    f"generator.label: two labels of {self.id} are both called {word!r}; rename one of them"
                )
            order = Key(0).fold("files", word).numpy().permutation(len(cells))
            self.cells[word] = [cells[place] for place in order]

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Gives the sample of each prompt's label that its place says.

        Raises:
            InputError: There are too few of a label.
        """
        for prompt in prompts:
            self.check([prompt.label], prompt.nth + 1)
            yield Sample(prompt, self.read(self.cells[prompt.label][prompt.nth]))

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
def _cells(
    place: Path, modality: Modality, input: str, label: str, encode: Callable[[Any], Any]
) -> dict[str, list[Any]]:
    """Reads a folder: for each label, as the folder calls it, the cells of its samples that can be used."""
    medium = MEDIA[modality]
    folder = Folder(place, medium, "generator")
    found: dict[str, list[Any]] = {}
    unreadable = unlabelled = 0
    for stream in folder.splits()[0].values():
        sample = folder.column(stream.features, [input], "input")
        classes = folder.column(stream.features, [label], "label")
        name = folder.namer(stream.features, classes)
        for batch in folder.batches(stream, [sample, classes]):
            for cell, called in zip(batch[sample], map(name, batch[classes]), strict=True):
                if called is None:
                    unlabelled += 1
                    continue
                try:
                    encode(medium.read(cell))
                except InputError:  # a library that is not installed
                    raise
                except Exception:  # decoders raise what they like on damaged files
                    unreadable += 1
                else:
                    found.setdefault(called, []).append(cell)
    for number, why in ((unreadable, "cannot be read"), (unlabelled, "have no label")):
        if number:
            log.warning("%d %s of %s %s and are left out", number, medium.what, place, why)
    return found


def check_apart(path: str, private: str, modality: Modality) -> None:
    """Refuses a folder that shares examples with the private data.

    Args:
        path: The folder of samples.
        private: The folder of the private data.
        modality: What both hold.

    Raises:
        InputError: It is the same folder, or a file of samples is a file of private data, too.
    """
    ours, theirs = Path(path).expanduser(), Path(private).expanduser()
    advice = "whose examples are private; name a folder of generated samples"
    if ours.resolve() == theirs.resolve():
        raise InputError(f"generator.path: {path} is data.path, {advice}")
    medium = MEDIA[modality]
    kinds = {".parquet", ".arrow", *medium.suffixes()}
    known = {checksum for _, _, checksum in Folder(theirs, medium).identity()}
    for name, _, checksum in Folder(ours, medium, "generator").identity():
        file = Path(name)
        if checksum in known and file.suffix.lower() in kinds and file.name not in ABOUT:
            raise InputError(f"generator.path: its file {name} is one of data.path, too, {advice}")


@lru_cache
def fingerprint(path: str, modality: Modality) -> str:
    """Returns a digest of a folder's files."""
    return digest(Folder(Path(path).expanduser(), MEDIA[modality], "generator").identity())
