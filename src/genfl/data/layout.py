"""Which files of a folder are data, which split they belong to, and how tables of texts are written."""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from genfl.data.media import Medium
from genfl.errors import InputError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What folders, files and splits may be called, and which split Hugging Face takes them for."""

TABLES = (".parquet", ".arrow")

NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json")
"""Files that Hugging Face's tools write beside tables."""


class Layout:
    """The files of a folder.

    Args:
        path: The folder.
        medium: What its examples are.
        section: The part of the config that names it, for messages.
    """

    def __init__(self, path: Path, medium: Medium, section: str) -> None:
        self.path, self.medium, self.section = path, medium, section

    @cached_property
    def files(self) -> list[Path]:
        """All files but hidden ones, in order.

        Raises:
            InputError: None of them can hold examples.
        """
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and not self._hidden(path))
        if not any(self._is_table(path) or self._is_example(path) for path in files):
            raise InputError(
                f"{self.section}.path: no Parquet files and no files of {self.medium.what} in {self.path}"
            )
        return files

    def described(self) -> bool:
        """Whether the folder's README says which files are which split, as data sets on the Hub do."""
        from huggingface_hub import metadata_load

        readme = self.path / "README.md"
        return readme.exists() and "configs" in (metadata_load(readme) or {})

    def has_tables(self) -> bool:
        """Whether examples are rows of tables, and no files of their own."""
        return any(map(self._is_table, self.files))

    def class_folders(self) -> dict[str, list[str]]:
        """Returns the files of each split, as patterns: of folders called so, or else all are for train.

        A class or a file may be called anything: only folders of class folders are splits.

        Raises:
            InputError: A folder beside those of splits is none.
        """
        top = self.path
        examples = [path.relative_to(top).parts for path in self.files if self._is_example(path)]
        while True:
            folders = sorted({first for first, *inner in examples if inner})
            holders = {parts[0] for parts in examples if len(parts) > 2}  # of folders with examples
            splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
            if not splits and holders == set(folders) and all(map(_word, folders)):
                splits = {name: str(_word(name)) for name in folders}  # train_images and test_images
            if splits and (holders & splits.keys() or len(splits) == len(folders)):
                break
            if len(folders) != 1:
                return {"train": [_inside(self.path)]}
            top, examples = top / folders[0], [parts[1:] for parts in examples if len(parts) > 1]
        if others := [name for name in folders if name not in splits]:
            raise InputError(
                f"{self.section}.path: in {top} there is {others[0]} beside the split {next(iter(splits))};"
                " take it away, or give it the name of a split"
            )
        patterns: dict[str, list[str]] = {}
        for name, split in splits.items():
            patterns.setdefault(split, []).append(_inside(top / name))
        return patterns

    def refuse_unread(self, read: Mapping[str, Sequence[str]]) -> None:
        """Refuses tables of no split: where some are called like splits, datasets reads no others.

        Args:
            read: The files of each split.

        Raises:
            InputError: There is one that is not read.
        """
        used = {Path(file).resolve() for split in read.values() for file in split}
        kinds = {path.suffix for path in used}
        for path in self.files:
            if path.suffix in kinds and path.name not in NO_DATA and path.resolve() not in used:
                there = ", ".join(map(str, read))
                raise InputError(
                    f"{self.section}.path: {path} would not be read, because other files are called {there},"
                    " and it is not; name it so, or take it away"
                )

    def csv_columns(self, tables: Sequence[Path]) -> tuple[list[str], str]:
        """Returns the names of the columns of CSV files, and what separates them.

        Raises:
            InputError: They have different ones.
        """
        import pandas

        known: dict[tuple[str, frozenset[str]], tuple[Path, list[str]]] = {}
        for path in tables:
            with path.open(encoding="utf-8-sig", newline="") as file:
                head = next((line for line in file if line.strip()), "")
            separator = max(",;\t", key=lambda mark: len(next(csv.reader([head], delimiter=mark), [])))
            columns = list(pandas.read_csv(path, sep=separator, nrows=0, encoding="utf-8").columns)
            known.setdefault((separator, frozenset(columns)), (path, columns))
        if len(known) > 1:
            (one, first), (other, second), *_ = known.values()
            raise InputError(
                f"{self.section}.path: {other} has the columns {', '.join(second)}, and {one}"
                f" {', '.join(first)}; give all tables the same"
            )
        (((separator, _), (_, columns)),) = known.items()
        return columns, separator

    def damaged_line(self) -> str | None:
        """Says which line of a table of texts is no UTF-8, or of JSONL no JSON; None where all are."""
        for path in filter(self._is_example, self.files if self.medium.tables else ()):
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        text = line.decode("utf-8")
                        if path.suffix.lower() == ".jsonl" and text.strip():
                            json.loads(text)
                    except UnicodeDecodeError:
                        return f"line {number} of {path} is not UTF-8; save it as such"
                    except ValueError as error:
                        return f"line {number} of {path} is not JSON ({error}); mend it"
        return None

    def _hidden(self, path: Path) -> bool:
        """Whether datasets passes over a file."""
        *folders, name = path.relative_to(self.path).parts
        return name[0] == "." or any(folder.startswith((".", "__")) for folder in folders)

    def _is_example(self, path: Path) -> bool:
        return path.suffix.lower() in self.medium.suffixes()

    def _is_table(self, path: Path) -> bool:
        """Whether a file holds many examples; a file called metadata describes those beside it."""
        if self.medium.tables and self._is_example(path):
            return True
        return path.suffix.lower() in TABLES and path.stem != "metadata"


def _word(name: str) -> str | None:
    """Returns the split that a word in a name says, if a single one does."""
    said = {SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS}
    return said.pop() if len(said) == 1 else None


def _inside(path: Path) -> str:
    return f"{glob.escape(str(path.resolve()))}/**"
