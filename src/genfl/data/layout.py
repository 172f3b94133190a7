"""The layout of a data folder: one list of its files, with the split, class and client of each."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from genfl.data.cards import CARD, CardError, DataCard, read_card
from genfl.data.levels import (
    OWNER_LEVELS,
    SPLITS,
    Level,
    LevelError,
    infer_levels,
    outer_levels,
    parse_levels,
    split_in_name,
)
from genfl.data.media import Medium
from genfl.data.tables import TABLE_SUFFIXES, table_suffix
from genfl.errors import GenflError, InputError
from genfl.storage import read_json

DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
"""Names of files without examples, which Hugging Face's tools write beside tables."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of tables with the labels, or other columns, of the files beside them."""

NO_CONTENT = ("__MACOSX", "__pycache__")
"""Names of folders that programs write for themselves."""

Role = Literal["table", "example", "metadata", "other", "hidden"]


class File(NamedTuple):
    """A file of a data folder.

    Attributes:
        path: The file.
        name: Its path below the folder, printable, with slashes.
        parts: The names of this path.
        role: table: it holds many examples. example: it is one. metadata: it describes the files beside it.
            other: it is none of these. hidden: its name, or that of a folder above it, starts with a dot.
    """

    path: Path
    name: str
    parts: tuple[str, ...]
    role: Role


class PlacedFile(NamedTuple):
    """A file that is read.

    Attributes:
        file: The file.
        split: The name of its split.
        label: The class of an example that a folder names; None if no folder does.
        client: The client or domain that a folder names; None if no folder does.
        owner: Which of the two it is, the name of its column.
        named: The name of a file, folder or split in the data that stands for the split; empty if none does.
    """

    file: File
    split: str
    label: str | None = None
    client: str | None = None
    owner: str = "client"
    named: str = ""


class Layout:
    """The files of a folder. Links are followed.

    Args:
        path: The folder.
        medium: The kind of content of the examples.
        section: The section of the config that names the folder, for messages.
        levels: What the folders of example files mean, as in ``client/class``; None to tell it from their
            names (see `genfl.data.levels.infer_levels`).
    """

    def __init__(self, path: Path, medium: Medium, section: str, levels: str | None = None) -> None:
        self.path, self.medium, self.section = path, medium, section
        self.given_levels: tuple[Level, ...] | None = parse_levels(levels) if levels else None

    @cached_property
    def files(self) -> list[File]:
        """All files, sorted; a hidden or empty folder is listed as one file.

        Raises:
            InputError: A folder cannot be read, a link leads nowhere, or no file can hold examples.
        """
        status = self.path.stat()
        try:
            files = list(self._walk(self.path, (), ((status.st_dev, status.st_ino),)))
        except RecursionError as error:
            raise InputError(
                f"{self.section}.path: the folders in {self.path} are nested too deeply; move the files up"
            ) from error
        if not any(file.role in ("table", "example") for file in files):
            raise InputError(
                f"{self.section}.path: no Parquet files and no files of {self.medium.what} in {self.path}"
            )
        return files

    @cached_property
    def card(self) -> DataCard:
        """What the README of the folder says about its files.

        Raises:
            InputError: It names files outside the folder, or several data sets.
        """
        try:
            return read_card(self.path)
        except CardError as error:
            raise InputError(f"{self.section}.path: {self.path}: {error}") from error

    @cached_property
    def has_tables(self) -> bool:
        """Whether examples are rows of tables; if not, they are files."""
        return bool(self.files_of("table"))

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """What the folders of example files mean, from the outermost to the innermost.

        Raises:
            InputError: It cannot be told.
        """
        if self.given_levels is not None:
            return self.given_levels
        folders = [file.parts[:-1] for file in self.files_of("example")]
        try:
            if not self.metadata():
                return infer_levels(folders, f"{self.section}.folders")
            outer = outer_levels(folders)
        except LevelError as error:
            raise InputError(f"{self.section}.path: {self.path}: {error}") from error
        try:
            return (*infer_levels(folders), "**")
        except LevelError:
            return (*outer, "**")  # the metadata tells the classes

    def entries(self) -> list[PlacedFile]:
        """Return the files that are read: the tables, or else the examples.

        Raises:
            InputError: A file belongs to no split, or lies deeper than the folders that name classes.
        """
        if not self.card.files:
            return self._tables() if self.has_tables else list(map(self._placed, self.files_of("example")))
        files = self._described()
        if any(entry.file.role == "table" for entry in files):
            return [entry for entry in files if entry.file.role == "table"]
        return [
            self._placed(entry.file)._replace(split=_split_named(entry.split), named=entry.split)
            for entry in files
        ]

    def unread(self) -> dict[str, list[str]]:
        """Return the names of the files that are not read, by the reason."""
        read = {entry.file.name for entry in self.entries()}
        reasons: dict[str, list[str]] = {}
        for file in self.files:
            if file.name not in read and (reason := self._reason(file)):
                reasons.setdefault(reason, []).append(file.name)
        return reasons

    def check_classes(self) -> None:
        """Check that every folder of a class holds a file that can be an example.

        Raises:
            InputError: None of the files of a class can be an example.
        """
        if self.has_tables or self.card.files:
            return
        read = {entry.label for entry in self.entries()}
        for file in self.files_of("other"):
            if "class" in self.levels and len(file.parts) > self.levels.index("class") + 1:
                label = file.parts[self.levels.index("class")]
                if label not in read:
                    raise InputError(
                        f"{self.section}.path: folder {printable(label)} in {self.path} holds no"
                        f" {self.medium.what} (but {file.name}); convert its files, or remove it"
                    )

    def metadata(self) -> list[File]:
        """Return the tables that describe the files beside them."""
        return self.files_of("metadata")

    def _reason(self, file: File) -> str:
        """Return why a file is not read; empty for a file that is."""
        beside = "beside tables" if self.has_tables else f"beside the {self.medium.what}"
        if file.role == "hidden":
            return "hidden"
        if file.parts == (CARD,) or file.parts[-1] in DESCRIPTIONS:
            return "description of the data"
        if file.parts[: len(self.card.folder)] != self.card.folder:
            return f"not named by {CARD}"
        if file.role == "metadata":
            return beside if self.has_tables else ""
        if file.role == "other":
            return beside if self.has_tables or len(file.parts) == 1 else f"not {self.medium.what}"
        if file.role == "example" and self.has_tables:
            return beside
        return f"not named by {CARD}" if self.card.files else "not named by state.json"

    def files_of(self, role: Role) -> list[File]:
        """Return the files of a role, in the folder that the data card names."""
        inside = self.card.folder
        return [file for file in self.files if file.role == role and file.parts[: len(inside)] == inside]

    def _walk(self, folder: Path, parts: tuple[str, ...], above: tuple[Any, ...]) -> Iterator[File]:
        """Yield the files below a folder, in order.

        Args:
            folder: The folder.
            parts: Its path below the data's.
            above: Device and inode of the folders that hold it, which a link must not lead back to.
        """
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"{self.section}.path: folder {printable(folder)} cannot be read ({error.strerror}); make it"
                " readable, or remove it"
            ) from error
        for entry in entries:
            path, names = folder / entry.name, (*parts, entry.name)
            if _is_hidden(entry.name):
                yield self._file(path, names, "hidden")
                continue
            try:
                status = entry.stat()
            except OSError as error:
                raise InputError(
                    f"{self.section}.path: {printable(path)} cannot be read ({error.strerror}); if it is a"
                    " link, restore what it leads to, or remove it"
                ) from error
            if stat.S_ISDIR(status.st_mode):
                inode = (status.st_dev, status.st_ino)
                if inode in above:
                    raise InputError(
                        f"{self.section}.path: {printable(path)} leads to a folder that holds it; remove it"
                    )
                yield from self._walk(path, names, (*above, inode))
            else:
                role = self._role(path, names) if stat.S_ISREG(status.st_mode) else "other"
                yield self._file(path, names, role)
        if parts and all(_is_hidden(entry.name) for entry in entries):
            yield self._file(folder, (*parts, ""), "other")  # an empty folder may be a class

    @staticmethod
    def _file(path: Path, parts: tuple[str, ...], role: Role) -> File:
        return File(path, printable("/".join(parts)), parts, role)

    def _role(self, path: Path, parts: tuple[str, ...]) -> Role:
        name, suffix = parts[-1], table_suffix(path)
        if name in DESCRIPTIONS or parts == (CARD,):
            return "other"
        if suffix in self.medium.table_suffixes or path.suffix.lower() in TABLE_SUFFIXES:
            is_metadata = name.lower() in METADATA and not self.medium.table_suffixes
            return "metadata" if is_metadata else "table"
        if name.lower() in METADATA and not self.medium.table_suffixes:
            return "metadata"
        if suffix in self.medium.suffixes() or self.medium.recognises(path):
            return "example"
        return "other"

    def _described(self) -> list[PlacedFile]:
        """Return the files that the data card names."""
        entries: dict[str, PlacedFile] = {}
        for split, patterns in self.card.files.items():
            for pattern in patterns:
                # glob follows links, and Path.glob does not before Python 3.13
                names = set(glob.glob(pattern.removeprefix("./"), root_dir=self.path, recursive=True))  # noqa: PTH207
                candidates = self.files_of("table") + self.files_of("example")
                matched = [file for file in candidates if "/".join(file.parts) in names]
                if not matched:
                    raise InputError(
                        f"{self.section}.path: {CARD} names {pattern} for split {split}, and {self.path} has"
                        f" no such file of {self.medium.what}; correct {CARD}"
                    )
                for file in matched:
                    entries.setdefault(file.name, PlacedFile(file, split))
        return list(entries.values())

    def _tables(self) -> list[PlacedFile]:
        """Return the tables, each with its split: that of its name, or of a folder that holds it."""
        tables = self._saved() or self.files_of("table")
        entries = [self._placed_table(file) for file in tables]
        if not any(entry.split for entry in entries):
            return [entry._replace(split="train") for entry in entries]
        return entries

    def _saved(self) -> list[File]:
        """Return the tables of a data set that save_to_disk wrote: those that its ``state.json`` names.

        Others are caches, or left over from an earlier one. The list is empty for other data sets.

        Raises:
            InputError: A table is missing.
        """
        named: dict[tuple[str, ...], Path] = {}
        for file in self.files:
            if file.parts[-1] == "state.json":
                try:
                    names = [str(entry["filename"]) for entry in read_json(file.path)["_data_files"]]
                except (GenflError, LookupError, TypeError):
                    continue  # not one of the datasets library
                named |= {(*file.parts[:-1], name): file.path for name in names}
        tables = {file.parts: file for file in self.files_of("table")}
        for parts, state in named.items():
            if parts not in tables:
                raise InputError(
                    f"{self.section}.path: {state} names {parts[-1]}, which is missing; restore it, or save"
                    " the data again"
                )
        return [tables[parts] for parts in sorted(named)]

    @staticmethod
    def _placed_table(file: File) -> PlacedFile:
        """Return a table with the split that its name stands for; an empty split if it stands for none."""
        stem, *_ = file.parts[-1].split(".")
        if numbered := re.fullmatch(r"(.+)-\d{5}-of-\d{5}", stem):
            # save_to_disk calls the files of any split "data"
            split = numbered[1] if numbered[1] != "data" else "".join(file.parts[-2:-1])
            return PlacedFile(file, split, named=split)
        for name in (stem, *reversed(file.parts[:-1])):
            if split := split_in_name(name) or "":
                return PlacedFile(file, split, named=name)
        return PlacedFile(file, "")

    def _placed(self, file: File) -> PlacedFile:
        """Return the split, class and client of an example, which the folders that hold it name."""
        folders = file.parts[:-1]
        levels = self.levels[:-1] if self.levels[-1:] == ("**",) else self.levels
        if len(folders) > len(levels) and levels == self.levels:
            raise InputError(
                f"{self.section}.path: {file.name} in {self.path} lies deeper than other {self.medium.what},"
                f" whose folders are {'/'.join(self.levels) or 'none'}; move it, or set"
                f" {self.section}.folders, as in {'/'.join((*levels, '**'))}"
            )
        named = dict(zip(levels, folders, strict=False))
        for folder in folders:
            if printable(folder) != folder:
                raise InputError(
                    f"{self.section}.path: the name of folder {printable(folder)} in {self.path} is not"
                    " UTF-8; rename it"
                )
        split = named.get("split", "train")
        owner: Level = next((level for level in OWNER_LEVELS if level in named), "client")
        return PlacedFile(file, _split_named(split), named.get("class"), named.get(owner), owner, split)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in NO_CONTENT


def _split_named(name: str) -> str:
    return SPLITS.get(name.lower()) or split_in_name(name) or name


def printable(name: str | Path) -> str:
    """Return a name with marks for bytes that are not UTF-8, which file systems allow."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
