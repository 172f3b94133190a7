"""Data sets in folders, in the Hugging Face layout: tables, or a folder of files for each class."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from genfl.data.layout import File, Layout, PlacedFile, printable
from genfl.data.levels import SPLITS, split_words
from genfl.data.media import Medium
from genfl.data.tables import DEFAULT_CSV, CSVOptions, Table, TableError, open_table, table_suffix
from genfl.errors import InputError
from genfl.model_folders import expanded
from genfl.storage import sha256

log = logging.getLogger(__name__)

BATCH_ROWS = 128
"""Undecoded cells that are held in memory at a time; a single scan or recording may have many megabytes."""

SHOWN_VALUES = 5
"""The number of values that a message lists."""

EXPECTED = ("hidden", "description of the data")
"""Reasons for not reading a file that need no mention."""

FILE_NAME = "file_name"
"""The column of metadata tables with the names of the files that their rows describe."""


JOINED = " + "
"""Between the names of columns whose texts are joined, as in ``title + body``."""


def joined_columns(name: str) -> list[str]:
    """Return the names of the columns that a name stands for: one, or those that `JOINED` separates."""
    return name.split(JOINED)


def joined_cells(batch: Mapping[str, list[Any]], name: str) -> list[Any]:
    """Return the cells of a column, or the texts of several columns with a blank between them.

    Args:
        batch: The cells of each column.
        name: The column, or several; see `joined_columns`. Empty cells are left out.
    """
    if name in batch:
        return batch[name]
    rows = zip(*(batch[column] for column in joined_columns(name)), strict=True)
    return [" ".join(text for text in map(cell_text, row) if text) for row in rows]


def has_column(columns: Sequence[str], name: str) -> bool:
    """Return whether a column, or all that are joined, are among some columns."""
    return all(column in columns for column in joined_columns(name))


@dataclass(frozen=True)
class TableRows:
    """The rows of a split that tables hold.

    Attributes:
        folder: The data set.
        tables: The tables, in order.
        class_names: The names of the numbers in a column, for tables that have none.
    """

    folder: Folder
    tables: Sequence[Table]
    class_names: Mapping[str, Sequence[str]]

    @property
    def columns(self) -> list[str]:
        """The names of the columns of any table."""
        return list(dict.fromkeys(name for table in self.tables for name in table.columns))

    def classes(self, label: str) -> list[str]:
        """Return the class names that the tables list, in their order; empty if they list none."""
        names = [name for table in self.tables for name in self._names(table, label)]
        return list(dict.fromkeys(map(clean_label, names)))

    def batches(self, columns: Sequence[str], label: str) -> Iterator[Mapping[str, list[Any]]]:
        """Yield undecoded cells, `BATCH_ROWS` rows at a time, with class names in the column of labels.

        Args:
            columns: The columns to read.
            label: The column of the classes.

        Raises:
            InputError: A table is empty or damaged.
        """
        for table in self.tables:
            names = self._names(table, label)
            present = [name for name in columns if name in table.columns]
            rows = 0
            try:
                for chunk in table.chunks(present, BATCH_ROWS):
                    size = len(next(iter(chunk.values())))
                    rows += size
                    cells = {name: chunk.get(name, [None] * size) for name in columns}
                    if label in cells:
                        cells[label] = [self.folder.label_of(cell, names, label) for cell in cells[label]]
                    yield cells
            except TableError as error:
                raise InputError(f"{self.folder.section}.path: {error.of(table.path)}") from error
            if not rows:
                raise InputError(f"{self.folder.section}.path: {table.path} is empty; fill it, or remove it")

    def _names(self, table: Table, label: str) -> Sequence[str]:
        return table.class_names.get(label) or self.class_names.get(label, ())


@dataclass(frozen=True)
class FileRows:
    """The rows of a split that are files, in the order of their names.

    Attributes:
        folder: The data set.
        rows: The cells of each file: its path, its class, its client, and what metadata tells.
        class_names: The names of the numbers in a column of the metadata.
    """

    folder: Folder
    rows: Sequence[Mapping[str, Any]]
    class_names: Mapping[str, Sequence[str]]

    @property
    def columns(self) -> list[str]:
        """The names of the columns of any file."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def classes(self, label: str) -> list[str]:
        """Return the class names that the metadata lists, in their order; folders have no order."""
        return [clean_label(name) for name in self.class_names.get(label, ())]

    def batches(self, columns: Sequence[str], label: str) -> Iterator[Mapping[str, list[Any]]]:
        """Yield paths and other cells, `BATCH_ROWS` rows at a time; see `TableRows.batches`."""
        for first in range(0, len(self.rows), BATCH_ROWS):
            rows = self.rows[first : first + BATCH_ROWS]
            cells = {name: [row.get(name) for row in rows] for name in columns}
            if label in cells:
                names = self.class_names.get(label, ())
                cells[label] = [self.folder.label_of(cell, names, label) for cell in cells[label]]
            yield cells


Rows = TableRows | FileRows
"""The undecoded rows of a split."""


class Folder:
    """A data set in a folder.

    Args:
        path: The folder.
        medium: The kind of content of the examples.
        section: The section of the config that names the folder, for messages.
        levels: What the folders of files mean; see `genfl.data.levels.parse_levels`.

    Raises:
        InputError: The folder does not exist.
    """

    def __init__(self, path: Path, medium: Medium, section: str = "data", levels: str | None = None) -> None:
        if not path.is_dir():
            problem = "is a file; give the folder it is in" if path.exists() else "does not exist; correct it"
            raise InputError(f"{section}.path: {path} {problem}")
        self.path = path
        self.medium = medium
        self.section = section
        self.layout = Layout(path, medium, section, levels)
        self.warnings: list[str] = []
        """What `splits` left out, in words."""

    def identity(self) -> list[Any]:
        """Return names and checksums of the files that decide what is read.

        They do not depend on where the folder is. Files that can hold no examples, such as a licence, are not
        among them.

        Raises:
            InputError: None of the files can hold examples.
        """
        card, levels = self.layout.card, self.layout.given_levels
        described = [
            {split: list(names) for split, names in card.files.items()},
            {name: list(names) for name, names in card.class_names.items()},
            [card.csv.separator, *card.csv.names],
        ]
        read = [[entry.file.name, entry.split, entry.label, entry.client] for entry in self.layout.entries()]
        return [[described, list(levels or ()), read], *map(list, self.checksums())]

    def checksums(self) -> list[tuple[str, str]]:
        """Return names and checksums of tables, examples and metadata; "" for unreadable files."""
        files = [file for file in self.layout.files if file.role in ("table", "example", "metadata")]
        return [(file.name, _checksum(file.path)) for file in files]

    def unread_notes(self) -> list[str]:
        """Return what a user should know of the files that are not read, a text for each reason."""
        return [
            f"{len(names)} file{'s' * (len(names) > 1)} not read ({reason}): {first_few(names)}"
            for reason, names in self.layout.unread().items()
            if reason not in EXPECTED
        ]

    def splits(self, input: Sequence[str], label: Sequence[str]) -> tuple[dict[str, Rows], int]:
        """List the rows of each split without decoding them, and count the examples.

        Names that stand for train, validation or test are replaced by these (see `genfl.data.levels.SPLITS`).
        Other splits keep their names.

        Args:
            input: The possible names of the column of the examples.
            label: The possible names of the column of the classes.

        Returns:
            The rows of each split, and the number of examples. The number is an estimate if tables do not
            tell it.

        Raises:
            InputError: A file is damaged, or belongs to no split.
        """
        entries = self.layout.entries()
        self._note_joined(entries)
        if any(entry.file.role == "table" for entry in entries):
            tables = self._open_tables([entry for entry in entries if entry.file.role == "table"])
            used = self._with_columns(tables, input, label)
            grouped: dict[str, list[Table]] = {}
            for split, table in used:
                grouped.setdefault(split, []).append(table)
            total = sum(table.rows or 0 for _, table in used) or len(self.layout.files)
            names = self.layout.card.class_names
            return {split: TableRows(self, grouped[split], names) for split in _in_order(grouped)}, total
        described, class_names = self._metadata()
        if any({*label} & cells.keys() for cells in described.values()):
            entries = [entry._replace(label=None) for entry in entries]  # the metadata tells the classes
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for entry in entries:
            cells: dict[str, Any] = {self.medium.column: entry.file.path}
            named = {"label": entry.label, entry.owner: entry.client}
            cells |= {name: value for name, value in named.items() if value is not None}
            rows.setdefault(entry.split, []).append({**cells, **described.get(entry.file.parts, {})})
        return {split: FileRows(self, rows[split], class_names) for split in _in_order(rows)}, len(entries)

    def column(self, columns: Sequence[str], names: Sequence[str], field: str) -> str:
        """Return the first of some names that is the name of a column.

        Args:
            columns: The columns of a split.
            names: The names to look for, in order.
            field: The field of the config that sets the name, for messages.

        Raises:
            InputError: No column has any of the names.
        """
        for name in names:
            if has_column(columns, name):
                return name
        wanted = " or ".join(map(repr, names))
        hint = ""
        tables, files = (self.layout.files_of(role) for role in ("table", "example"))
        if tables and files:
            hint = (
                f"; {tables[0].name} is read as a table, so {len(files)} files of {self.medium.what} are not;"
                " remove the one or the others"
            )
        elif field == "label" and not tables:
            hint = (
                f"; put the {self.medium.what} in a folder for each class, or add metadata.csv with the"
                f" columns {FILE_NAME} and label"
            )
        raise InputError(
            f"{self.section}.{field}: no column {wanted} in {self.path}; its columns are:"
            f" {', '.join(columns)}{hint}"
        )

    def label_of(self, cell: Any, names: Sequence[str], label: str) -> str | None:
        """Return the class of a cell; None for a cell without a label.

        Args:
            cell: The name of the class, or its number.
            names: The names of the numbers; empty if the cells are names.
            label: The column, for messages.

        Raises:
            InputError: The cell holds several values.
        """
        if isinstance(cell, list | dict | bytes):
            raise InputError(
                f"{self.section}.label: column {label!r} holds {type(cell).__name__} values, but an example"
                " has one class; name another column"
            )
        if cell is None or (names and cell in (-1, "-1")):  # Hugging Face labels secret test sets with -1
            return None
        if names and isinstance(cell, float) and cell.is_integer():
            cell = int(cell)  # an empty cell turns a column of integers into floats
        if names and isinstance(cell, str) and cell not in names and cell.isdecimal():
            cell = int(cell)  # cells of CSV files are text
        text = names[cell] if names and isinstance(cell, int) and 0 <= cell < len(names) else cell_text(cell)
        return clean_label(text) or None if text else None

    def content(self, cell: Any) -> Any:
        """Return a cell that `Medium.read` takes: a table may name a file, if it lies in the folder.

        Args:
            cell: A cell of the column of the examples.
        """
        name = cell.get("path") if isinstance(cell, dict) and not cell.get("bytes") else cell
        if not isinstance(name, str) or not name or not self.medium.by_path:
            return cell
        inside = Path(os.path.relpath(self.path / name, self.path))  # also of a path from the root
        return self._known.get(inside.parts)

    def file_of(self, cell: Any) -> str | None:
        """Return the file of a cell, relative to the folder; None for a cell in a table."""
        return printable(os.path.relpath(cell, self.path)) if isinstance(cell, Path) else None

    @cached_property
    def _known(self) -> dict[tuple[str, ...], Path]:
        """The files whose content is in the identity, by the parts of their names."""
        return {file.parts: file.path for file in self.layout.files_of("example")}

    def _note_joined(self, entries: Sequence[PlacedFile]) -> None:
        """Warn of splits that are read as one, such as test and eval."""
        words: dict[str, set[str]] = {}
        for entry in entries:
            words.setdefault(entry.split, set()).update(split_words(entry.named))
        for split, named in words.items():
            if len(named) > 1:
                self.warnings.append(f"{' and '.join(sorted(named))} are read as one split, {split}")

    def _open_tables(self, entries: Sequence[PlacedFile]) -> list[tuple[str, Table]]:
        """Open tables, and give each the name of its split: train, validation, test, or its own."""
        raw = dict.fromkeys(entry.split for entry in entries)
        named: dict[str, str] = {}
        for name in raw:
            split = SPLITS.get(name.lower(), name)
            if split in raw and split != name:
                split = name  # another split has exactly this name
            if split in named.values():
                raise InputError(
                    f"{self.section}.path: two splits of {self.path} both stand for {split}; join them"
                )
            named[name] = split
        return [(named[entry.split], self._open(entry.file, self.layout.card.csv)) for entry in entries]

    def _open(self, file: File, options: CSVOptions = DEFAULT_CSV) -> Table:
        try:
            table = open_table(file.path, options)
        except TableError as error:
            raise InputError(f"{self.section}.path: {error.of(file.path)}") from error
        if table.rows == 0:
            raise InputError(f"{self.section}.path: {file.path} is empty; fill it, or remove it")
        return table

    def _with_columns(
        self, tables: Sequence[tuple[str, Table]], input: Sequence[str], label: Sequence[str]
    ) -> list[tuple[str, Table]]:
        """Return the tables that have one of the columns; others hold no examples, such as a list of labels.

        Raises:
            InputError: A table with such a column belongs to no split, or lacks one that its split has.
        """

        def roles(table: Table) -> list[str | None]:
            return [
                next((name for name in names if has_column(table.columns, name)), None)
                for names in (input, label)
            ]

        used = [(split, table) for split, table in tables if any(roles(table))]
        if not used:
            return list(tables)  # the error names their columns
        splits = ", ".join(_in_order({split for split, _ in used if split}))
        first: dict[str, Table] = {}
        for split, table in used:
            if not split:
                raise InputError(
                    f"{self.section}.path: {table.path} would not be read, because it belongs to no split and"
                    f" other files are called {splits}; rename or remove it"
                )
            other = first.setdefault(split, table)
            if roles(table) != roles(other):
                self._reject_columns(table, other)
        for split, table in tables:
            if any(roles(table)):
                continue
            alike = first.get(split)
            if alike and table.columns and table_suffix(table.path) == table_suffix(alike.path):
                self._reject_columns(table, alike)
            wanted = " or ".join(map(repr, dict.fromkeys([*input, *label])))
            self.warnings.append(f"{table.path.name} not read (no column {wanted})")
        return used

    def _reject_columns(self, table: Table, other: Table) -> NoReturn:
        raise InputError(
            f"{self.section}.path: {table.path} has the columns {', '.join(table.columns)}, but"
            f" {other.path} has {', '.join(other.columns)}; give all tables the same columns, or remove it"
        )

    def _metadata(self) -> tuple[dict[tuple[str, ...], dict[str, Any]], dict[str, Sequence[str]]]:
        """Return the cells that metadata tables hold of each file, and the class names that they list."""
        cells: dict[tuple[str, ...], dict[str, Any]] = {}
        class_names: dict[str, Sequence[str]] = dict(self.layout.card.class_names)
        for file in sorted(self.layout.metadata(), key=lambda file: len(file.parts)):
            table = self._open(file)
            if FILE_NAME not in table.columns:
                raise InputError(
                    f"{self.section}.path: {file.path} has no column {FILE_NAME}, which names the files that"
                    f" its rows describe; its columns are: {', '.join(table.columns)}"
                )
            class_names |= table.class_names
            rows = self._described(file, table)
            if absent := [name for name in rows if name not in self._known]:
                self.warnings.append(
                    f"{file.name} names {len(absent)} files that are not there:"
                    f" {first_few(['/'.join(name) for name in absent])}"
                )
            for name in rows.keys() & self._known.keys():
                cells.setdefault(name, {}).update(rows[name])
        return cells, class_names

    def _described(self, file: File, table: Table) -> dict[tuple[str, ...], dict[str, Any]]:
        """Return the cells of a metadata table, by the parts of the names of the files they describe."""
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        columns = [name for name in table.columns if name != self.medium.column]  # that is the file itself
        try:
            for chunk in table.chunks(columns, BATCH_ROWS):
                for values in zip(*chunk.values(), strict=True):
                    row = dict(zip(chunk, values, strict=True))
                    name = str(row.pop(FILE_NAME) or "")
                    parts = (*file.parts[:-1], *Path(os.path.normpath(name)).parts)
                    if parts in rows:
                        raise InputError(
                            f"{self.section}.path: {file.path} describes {name} twice; remove one of the rows"
                        )
                    rows[parts] = {key: value for key, value in row.items() if value is not None}
        except TableError as error:
            raise InputError(f"{self.section}.path: {error.of(file.path)}") from error
        return rows


def _checksum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError:  # it is left out as unreadable
        return ""


def _in_order(splits: Iterable[str]) -> list[str]:
    """Return splits in the order train, validation, test, and then others by name."""
    first = list(dict.fromkeys(SPLITS.values()))
    return sorted(splits, key=lambda split: (first.index(split) if split in first else len(first), split))


def clean_label(text: str) -> str:
    """Return a class name with single blanks and in Unicode's composed form, as prompts and discovery use it.

    ``happy`` and ``happy `` are one class, and so are the two spellings of ``café``: nobody can tell them
    apart.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def cell_text(cell: Any) -> str | None:
    """Return the value of a cell as text; None for an empty cell.

    An empty cell turns a column of integers into floats, and is itself NaN. So 3.0 is returned as ``3``.
    """
    if cell is None or cell != cell:
        return None
    text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON can hold half a character


def fetch_from_hub(name: str, hub: str) -> Path:
    """Return the folder of a data set of the Hub, which is downloaded on first use.

    Args:
        name: The name of the data set in the config.
        hub: Its id on the Hub, ``owner/name``.

    Raises:
        InputError: The data set is not downloaded, and the Hub cannot be reached.
    """
    try:
        return _downloaded(hub, ("*.parquet", "README.md"))
    except Exception as error:  # the Hub's client and the libraries below it raise many types
        from genfl.hub import hub_reason

        raise InputError(
            f"data.path: {name} is not downloaded yet, and {hub} cannot be downloaded from the Hugging Face"
            f" Hub ({hub_reason(error)}); give data.path, a folder with a copy of it"
        ) from error


HUB = "hf://datasets/"
"""The start of the address of a data set on the Hub: ``hf://datasets/owner/name``."""


def dataset_folder(path: str, section: str = "data") -> Path:
    """Return the folder of a data set; a data set of the Hub is downloaded on first use.

    Args:
        path: A folder, or the address of a data set on the Hub.
        section: The section of the config that names the path, for messages.

    Raises:
        InputError: The path is an address, and cannot be downloaded.
    """
    if not path.startswith(HUB):
        return Path(expanded(path))
    try:
        return _downloaded(path.removeprefix(HUB).rstrip("/"))
    except Exception as error:  # the Hub's client and the libraries below it raise many types
        from genfl.hub import hub_reason

        raise InputError(
            f"{section}.path: {path} is not downloaded yet, and cannot be downloaded ({hub_reason(error)});"
            " give a folder with a copy of it"
        ) from error


def _downloaded(hub: str, patterns: tuple[str, ...] | None = None) -> Path:
    from huggingface_hub import snapshot_download

    chosen = list(patterns) if patterns else None
    log.info("downloading %s from the Hugging Face Hub, unless it is downloaded already", hub)
    return Path(snapshot_download(hub, repo_type="dataset", allow_patterns=chosen))


def first_few(values: Sequence[Any]) -> str:
    """Return the first `SHOWN_VALUES` values as text, for a message."""
    return ", ".join(map(str, values[:SHOWN_VALUES])) + (", ..." if len(values) > SHOWN_VALUES else "")
