"""The layout of a data folder: which files are data, their splits, and the format of tables of texts."""

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
"""The accepted names of folders, files and splits, and the split that Hugging Face takes each for."""

TABLES = (".parquet", ".arrow")
"""Suffixes of files that hold many examples of any kind."""

NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json")
"""Names of files without examples, which Hugging Face's tools write beside tables."""


class Layout:
    """The files of a folder.

    Args:
        path: The folder.
        medium: The kind of content of the examples.
        section: The section of the config that names the folder, for messages.
    """

    def __init__(self, path: Path, medium: Medium, section: str) -> None:
        self.path, self.medium, self.section = path, medium, section

    @cached_property
    def files(self) -> list[Path]:
        """All files that are not hidden, sorted.

        Raises:
            InputError: None of the files can hold examples.
        """
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and not self._hidden(path))
        if not any(self._is_table(path) or self._is_example(path) for path in files):
            raise InputError(
                f"{self.section}.path: no Parquet files and no files of {self.medium.what} in {self.path}"
            )
        return files

    def described(self) -> bool:
        """Return whether the folder's README assigns files to splits, as data sets on the Hub do."""
        from huggingface_hub import metadata_load

        readme = self.path / "README.md"
        return readme.exists() and "configs" in (metadata_load(readme) or {})

    def has_tables(self) -> bool:
        """Return whether examples are rows of tables, and not files."""
        return any(map(self._is_table, self.files))

    def class_folders(self) -> dict[str, list[str]]:
        """Return the files of each split, as glob patterns.

        Only folders that hold class folders are splits, so a class or a file may have any name. Without such
        folders, all files belong to train.

        Raises:
            InputError: A folder beside the folders of splits is not a split.
        """
        top = self.path
        examples = [path.relative_to(top).parts for path in self.files if self._is_example(path)]
        while True:
            folders = sorted({first for first, *inner in examples if inner})
            holders = {parts[0] for parts in examples if len(parts) > 2}  # they hold class folders
            splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
            if not splits and holders == set(folders) and all(map(_split_in_name, folders)):
                splits = {name: str(_split_in_name(name)) for name in folders}  # train_images and test_images
            if splits and (holders & splits.keys() or len(splits) == len(folders)):
                break
            if len(folders) != 1:
                return {"train": [_inside(self.path)]}
            top, examples = top / folders[0], [parts[1:] for parts in examples if len(parts) > 1]
        if others := [name for name in folders if name not in splits]:
            raise InputError(
                f"{self.section}.path: {others[0]} beside the split {next(iter(splits))} in {top} is not a"
                " split; remove it, or rename it to a split"
            )
        patterns: dict[str, list[str]] = {}
        for name, split in splits.items():
            patterns.setdefault(split, []).append(_inside(top / name))
        return patterns

    def check_all_read(self, read: Mapping[str, Sequence[str]]) -> None:
        """Reject a folder with tables that datasets would skip because other tables are named like splits.

        Args:
            read: The files that datasets reads for each split.

        Raises:
            InputError: A table would not be read.
        """
        used = {Path(file).resolve() for split in read.values() for file in split}
        kinds = {path.suffix for path in used}
        for path in self.files:
            if path.suffix in kinds and path.name not in NO_DATA and path.resolve() not in used:
                splits = ", ".join(map(str, read))
                raise InputError(
                    f"{self.section}.path: {path} would not be read, because other files are called {splits};"
                    " rename it to one of these splits, or remove it"
                )

    def csv_columns(self, tables: Sequence[Path]) -> tuple[list[str], str]:
        """Return the column names of CSV files, and their separator.

        Args:
            tables: The files.

        Raises:
            InputError: The files have different columns or separators.
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
                f"{self.section}.path: {other} has the columns {', '.join(second)}, but {one} has"
                f" {', '.join(first)}; give all tables the same columns and separator"
            )
        (((separator, _), (_, columns)),) = known.items()
        return columns, separator

    def damaged_line(self) -> str | None:
        """Return a message about the first line of a table that is not UTF-8 or JSON; None if all are."""
        for path in filter(self._is_example, self.files if self.medium.tables else ()):
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        text = line.decode("utf-8")
                        if path.suffix.lower() == ".jsonl" and text.strip():
                            json.loads(text)
                    except UnicodeDecodeError:
                        return f"line {number} of {path} is not UTF-8; save the file as UTF-8"
                    except ValueError as error:
                        return f"line {number} of {path} is not JSON ({error}); correct it"
        return None

    def _hidden(self, path: Path) -> bool:
        """Return whether datasets ignores a file."""
        *folders, name = path.relative_to(self.path).parts
        return name[0] == "." or any(folder.startswith((".", "__")) for folder in folders)

    def _is_example(self, path: Path) -> bool:
        return path.suffix.lower() in self.medium.suffixes()

    def _is_table(self, path: Path) -> bool:
        """Return whether a file holds many examples; a file called metadata describes the files beside it."""
        if self.medium.tables and self._is_example(path):
            return True
        return path.suffix.lower() in TABLES and path.stem != "metadata"


def _split_in_name(name: str) -> str | None:
    """Return the split that the words of a name stand for; None if they stand for none or several."""
    splits = {SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS}
    return splits.pop() if len(splits) == 1 else None


def _inside(path: Path) -> str:
    return f"{glob.escape(str(path.resolve()))}/**"
