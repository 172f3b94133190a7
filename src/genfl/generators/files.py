"""Samples that exist already: a folder of them, by label."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from genfl.data.folders import Folder, located, some
from genfl.data.media import MEDIA, Modality
from genfl.data.recipes import in_words
from genfl.data.samples import Prompt, Sample
from genfl.errors import InputError
from genfl.generators.base import Generator
from genfl.hub import model_name
from genfl.rng import Key
from genfl.storage import digest

log = logging.getLogger(__name__)

ABOUT = ("dataset_dict.json", "dataset_info.json", "state.json")
"""Files that ``save_to_disk`` writes beside the examples; those of different ones may be the same."""


def unchanged(content: Any) -> Any:
    """Returns a sample as it is."""
    return content


class Files(Generator):
    """Takes samples of each label from a folder, each at most once, in an order drawn at random.

    Args:
        path: A folder in the Hugging Face layout, see `genfl.data.folders`: Parquet files, or one folder of
            files for each class; or the Hub's address of a data set. All its splits are used.
        modality: What the samples are.
        input: The column of the samples; None for what Hugging Face calls it.
        label: The column of the classes.
        words: What labels are called whose names in the folder are others.
        encode: What samples are turned into later; one that it raises anything on counts as unreadable.

    Raises:
        InputError: There is no such folder. When it is read: it has no such columns, or calls two labels the
            same.
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
        self.folder = Folder(located(path, "generator"), MEDIA[modality], "generator")
        self.id = model_name(path)
        self.modality = modality
        self.input = input or MEDIA[modality].column
        self.label = label
        self.words = words or {}
        self.encode = encode

    @cached_property
    def cells(self) -> dict[str, list[Any]]:
        """The cells of each label's samples that can be used, in the order in which they are taken.

        Raises:
            InputError: The folder cannot be read.
        """
        return {
            word: [cells[place] for place in Key(0).fold("files", word).numpy().permutation(len(cells))]
            for word, cells in self._read(samples=True).items()
        }

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuses to be asked for more than can be used; see `genfl.generators.base.Generator`."""
        most: dict[str, int] = {}
        for prompt in prompts:
            most[prompt.label] = max(most.get(prompt.label, 0), prompt.nth + 1)
        for label, count in most.items():
            self._refuse_fewer(self.cells, label, count)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Gives the sample of each prompt's label that its place says."""
        self.check_prompts(prompts)
        read = MEDIA[self.modality].read
        for prompt in prompts:
            yield Sample(prompt, read(self.cells[prompt.label][prompt.nth]))

    def check(self, labels: Sequence[str], per_label: int) -> None:
        """Refuses to be asked for more than there is, by the labels alone: no sample is decoded.

        Raises:
            InputError: There are too few of a label; it says of which.
        """
        there = self._read(samples=False)
        for label in labels:
            self._refuse_fewer(there, label, per_label)

    def _refuse_fewer(self, there: Mapping[str, Sequence[Any]], label: str, count: int) -> None:
        found = len(there.get(label, ()))
        if not found:
            raise InputError(
                f"generator.path: {self.id} has no {label!r}; its labels are: {', '.join(there)}"
            )
        if found < count:
            raise InputError(f"prompts.per_label: {count}, but {self.id} has {found} of {label!r}; lower it")

    def _read(self, samples: bool) -> dict[str, list[Any]]:
        """Returns the usable cells of each label, as the run calls it; without samples, nothing for each."""
        found: dict[str, list[Any]] = {}
        unlabelled, unreadable = 0, []
        for stream in self.folder.splits()[0].values():
            sample = self.folder.column(stream.features, [self.input], "input")
            classes = self.folder.column(stream.features, [self.label], "label")
            name = self.folder.namer(stream.features, classes)
            columns = [sample, classes] if samples else [classes, classes]
            for batch in self.folder.batches(stream, columns):
                for cell, label in zip(batch[columns[0]], map(name, batch[classes]), strict=True):
                    if label is None:
                        unlabelled += 1
                    elif samples and not self._usable(cell):
                        unreadable.append(self.folder.place(cell) or "one in a table")
                    else:
                        found.setdefault(label, []).append(cell if samples else None)
        what, place = MEDIA[self.modality].what, self.folder.path
        if unreadable:
            which = some(unreadable)
            log.warning(
                "%d %s of %s cannot be read and are left out: %s", len(unreadable), what, place, which
            )
        if unlabelled and samples:
            log.warning("%d %s of %s have no label and are left out", unlabelled, what, place)
        return self._in_words(found)

    def _usable(self, cell: Any) -> bool:
        try:
            self.encode(MEDIA[self.modality].read(cell))
        except InputError:  # a library that is not installed
            raise
        except Exception:  # decoders raise what they like on damaged files
            return False
        return True

    def _in_words(self, found: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Renames labels from what the folder calls them to what the run does."""
        named: dict[str, list[Any]] = {}
        for name, cells in found.items():
            # as label discovery does: macOS writes folder names in NFD
            word = in_words(unicodedata.normalize("NFC", name), self.words)
            if word in named:
                raise InputError(
                    f"generator.label: two labels of {self.id} are both called {word!r}; rename one of them"
                )
            named[word] = cells
        return named


def check_apart(path: str, private: Path, modality: Modality) -> None:
    """Refuses a folder that shares examples with the private data.

    Args:
        path: The folder of samples.
        private: The folder of the private data.
        modality: What both hold.

    Raises:
        InputError: It is the same folder, or a file of samples is a file of private data, too.
    """
    ours, theirs = located(path, "generator"), private
    advice = "whose examples are private; name a folder of generated samples"
    if ours.resolve() == theirs.resolve():
        raise InputError(f"generator.path: {path} is the private data, {advice}")
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
    return digest(Folder(located(path, "generator"), MEDIA[modality], "generator").identity())
