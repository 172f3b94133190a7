"""Existing samples from a folder, by label."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from genfl.data.folders import Folder, dataset_folder, first_few
from genfl.data.media import MEDIA, Modality
from genfl.data.recipes import in_words
from genfl.data.samples import Prompt, Sample
from genfl.errors import InputError
from genfl.generators.base import Generator
from genfl.hub import model_name
from genfl.rng import Key
from genfl.storage import digest

log = logging.getLogger(__name__)


def unchanged(content: Any) -> Any:
    """Return a sample as it is."""
    return content


class Files(Generator):
    """A folder of samples. Each sample of a label is used at most once, in a random order.

    Args:
        path: A folder in the Hugging Face layout (see `genfl.data.folders`): Parquet files, or one folder of
            files for each class. Or the Hub's address of a data set. All splits are used.
        modality: What the samples are.
        input: The column of the samples; None for the name that Hugging Face uses.
        label: The column of the classes.
        words: The run's names of labels that have other names in the folder.
        encode: The function that later turns a sample into an input; a sample that it fails on counts as
            unreadable.

    Raises:
        InputError: The folder does not exist. On reading: a column does not exist, or two labels have the
            same name.
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
        self.folder = Folder(dataset_folder(path, "generator"), MEDIA[modality], "generator")
        self.id = model_name(path)
        self.modality = modality
        self.input = input or MEDIA[modality].column
        self.label = label
        self.words = words or {}
        self.encode = encode

    @cached_property
    def cells(self) -> dict[str, list[Any]]:
        """The cells of each label's usable samples, in the order in which they are used.

        Raises:
            InputError: The folder cannot be read.
        """
        return {
            word: [cells[row] for row in Key(0).fold("files", word).numpy().permutation(len(cells))]
            for word, cells in self._read(samples=True).items()
        }

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Check that there are enough usable samples; see `genfl.generators.base.Generator`."""
        counts: dict[str, int] = {}
        for prompt in prompts:
            counts[prompt.label] = max(counts.get(prompt.label, 0), prompt.nth + 1)
        for label, count in counts.items():
            self._check_count(self.cells, label, count)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Yield for each prompt the sample of its label with the prompt's number."""
        self.check_prompts(prompts)
        read = MEDIA[self.modality].read
        for prompt in prompts:
            yield Sample(prompt, read(self.cells[prompt.label][prompt.nth]))

    def check_labels(self, labels: Sequence[str], per_label: int) -> None:
        """Check that there are enough samples of each label, without decoding any.

        Args:
            labels: The names of the classes.
            per_label: The number of samples wanted of each.

        Raises:
            InputError: There are too few samples of a label; the message names it.
        """
        cells = self._read(samples=False)
        for label in labels:
            self._check_count(cells, label, per_label)

    def _check_count(self, cells: Mapping[str, Sequence[Any]], label: str, count: int) -> None:
        available = len(cells.get(label, ()))
        if not available:
            raise InputError(
                f"generator.path: {self.id} has no samples of {label!r}; give another folder, or rename one"
                f" of its labels: {', '.join(cells)}"
            )
        if available < count:
            raise InputError(
                f"prompts.per_label: {count}, but {self.id} has {available} samples of {label!r}; lower it"
            )

    def _read(self, samples: bool) -> dict[str, list[Any]]:
        """Return the usable cells of each label by the run's names; without samples, None for each cell."""
        labelled: dict[str, list[Any]] = {}
        unlabelled, unreadable = 0, []
        for split in self.folder.splits([self.input], [self.label])[0].values():
            sample = self.folder.column(split.columns, [self.input], "input")
            classes = self.folder.column(split.columns, [self.label], "label")
            for batch in split.batches([sample, classes] if samples else [classes], classes):
                cells = map(self.folder.content, batch[sample]) if samples else batch[classes]
                for cell, label in zip(cells, batch[classes], strict=True):
                    if label is None:
                        unlabelled += 1
                    elif samples and not self._usable(cell):
                        unreadable.append(self.folder.file_of(cell) or "one in a table")
                    else:
                        labelled.setdefault(label, []).append(cell if samples else None)
        plural, path = MEDIA[self.modality].what, self.folder.path
        for note in dict.fromkeys([*self.folder.unread_notes(), *self.folder.warnings]) if samples else ():
            log.warning("%s: %s", path, note)
        if unreadable:
            log.warning(
                "%d %s of %s cannot be read and are left out: %s",
                len(unreadable),
                plural,
                path,
                first_few(unreadable),
            )
        if unlabelled and samples:
            log.warning("%d %s of %s have no label and are left out", unlabelled, plural, path)
        return self._in_words(labelled)

    def _usable(self, cell: Any) -> bool:
        try:
            self.encode(MEDIA[self.modality].read(cell))
        except InputError:  # a missing library
            raise
        except Exception:  # decoders raise any error on damaged files
            return False
        return True

    def _in_words(self, labelled: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Rename labels from the folder's names to the run's."""
        renamed: dict[str, list[Any]] = {}
        for name, cells in labelled.items():
            word = in_words(name, self.words)
            if word in renamed:
                raise InputError(
                    f"generator.label: two labels of {self.id} are both called {word!r}; rename one of them"
                )
            renamed[word] = cells
        return renamed


def check_not_private(path: str, private: Path, modality: Modality) -> None:
    """Check that a folder of samples shares no example with the private data.

    Args:
        path: The folder of samples.
        private: The folder of the private data.
        modality: What both hold.

    Raises:
        InputError: It is the same folder, or one of its files is also a file of the private data.
    """
    samples = dataset_folder(path, "generator")
    advice = "whose examples are private; give a folder of generated samples"
    if samples.resolve() == private.resolve():
        raise InputError(f"generator.path: {path} is the private data, {advice}")
    medium = MEDIA[modality]
    nothing = {"", hashlib.sha256().hexdigest()}  # files that cannot be read, and empty ones
    private_checksums = {checksum for _, checksum in Folder(private, medium).checksums()} - nothing
    for name, checksum in Folder(samples, medium, "generator").checksums():
        if checksum in private_checksums:
            raise InputError(f"generator.path: its file {name} is also in data.path, {advice}")


def samples_fingerprint(path: str, modality: Modality) -> str:
    """Return a digest of the files of a folder; every call reads them again.

    Args:
        path: A folder, or the Hub's address of a data set.
        modality: What the samples are.

    Raises:
        InputError: The folder does not exist.
    """
    return digest(Folder(dataset_folder(path, "generator"), MEDIA[modality], "generator").identity())
