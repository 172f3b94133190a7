"""Data sets in folders as Hugging Face lays them out: Parquet, a folder of files for each class, CSV, ..."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from genfl.data.layout import SPLITS, Layout
from genfl.data.media import Medium
from genfl.errors import InputError
from genfl.storage import sha256

log = logging.getLogger(__name__)

BATCH = 128
"""Cells that are held at a time, undecoded: a scan or a recording may have many megabytes."""

SHOWN = 5
"""How many of several things a message names."""

TYPED = 1024
"""Rows that say what a JSONL file's columns hold."""


class Folder:
    """A data set in a folder.

    Args:
        path: Where it is.
        medium: What its examples are.
        section: The part of the config that names it, for messages.

    Raises:
        InputError: There is no such folder.
    """

    def __init__(self, path: Path, medium: Medium, section: str = "data") -> None:
        if not path.is_dir():
            what = "is a file; give the folder it is in" if path.exists() else "does not exist"
            raise InputError(f"{section}.path: {path} {what}")
        self.path = path
        self.medium = medium
        self.section = section
        self.layout = Layout(path, medium, section)

    def identity(self) -> list[Any]:
        """Returns names, sizes and checksums of all files: the same wherever the folder is.

        Raises:
            InputError: None of them can hold examples.
        """
        files = self.layout.files
        names = [path.relative_to(self.path).as_posix() for path in files]
        return [[name, path.stat().st_size, sha256(path)] for name, path in zip(names, files, strict=True)]

    def splits(self) -> tuple[dict[str, Any], int]:
        """Opens the splits without reading them, and says how many examples they have.

        Splits are called train, validation and test, whatever the folder calls these (see
        `genfl.data.layout.SPLITS`); others keep their names.

        Returns:
            For each name an `datasets.IterableDataset`; the number is an estimate where examples are files.

        Raises:
            InputError: It cannot be read, or it has files that belong to no split.
        """
        import datasets

        datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs as an error, it raises, too
        try:
            if (self.path / "dataset_dict.json").exists() or (self.path / "state.json").exists():
                saved = datasets.load_from_disk(str(self.path))
                saved = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
                streams = {name: split.to_iterable_dataset() for name, split in saved.items()}
                return self._named(streams), sum(map(len, saved.values()))
            rows = [pyarrow.parquet.read_metadata(path).num_rows for path in self._parquet()]
            total = sum(rows) if rows else len(self.layout.files)
            found = self._builder().as_streaming_dataset()
            return self._named({name: _typed(stream) for name, stream in found.items()}), total
        except InputError:
            raise
        except Exception as error:  # of datasets, pyarrow, fsspec, ...
            raise InputError(self._damage(error)) from error

    def batches(self, stream: Any, columns: Sequence[str]) -> Iterator[Mapping[str, list[Any]]]:
        """Reads a split's cells as they are stored, undecoded, `BATCH` rows at a time.

        Raises:
            InputError: A file is damaged; it is named.
        """
        chosen = stream.select_columns(list(dict.fromkeys(columns)))
        try:
            for table in chosen.decode(False).with_format("arrow").iter(batch_size=BATCH):
                yield {name: table[name].to_pylist() for name in columns}
        except Exception as error:  # of datasets, pyarrow, fsspec, ...
            raise InputError(self._damage(error)) from error

    def column(self, features: Mapping[str, Any], names: Sequence[str], field: str) -> str:
        """Returns the first of some names that a column has.

        Raises:
            InputError: There is none.
        """
        for name in names:
            if name in features:
                return name
        wanted = " or ".join(map(repr, names))
        there = ", ".join(features)
        raise InputError(f"{self.section}.{field}: no column {wanted} in {self.path}; there are: {there}")

    def namer(self, features: Mapping[str, Any], label: str) -> Callable[[Any], str | None]:
        """Returns what gives a class's name by what a cell says; None where it says none, or is blank.

        Raises:
            InputError: The column's cells are no single values, or files number the classes differently.
        """
        import datasets

        feature = features[label]
        if not isinstance(feature, datasets.ClassLabel | datasets.Value):
            raise InputError(
                f"{self.section}.label: column {label!r} holds {feature}, and an example is of one class;"
                " name another column"
            )
        self._check_names(label)
        names: list[str] = getattr(feature, "names", None) or []

        def name(cell: Any) -> str | None:
            if cell is None or (names and cell == -1):  # as Hugging Face has the classes of a secret test set
                return None
            called = names[cell] if names and 0 <= cell < len(names) else said(cell)
            return called if called and called.strip() else None

        return name

    def place(self, cell: Any) -> str | None:
        """Returns which of the folder's files a cell is; None for one in a table."""
        if not isinstance(cell, dict) or cell.get("bytes") or not cell.get("path"):
            return None
        path, top = Path(cell["path"]), self.path.resolve()
        return path.relative_to(top).as_posix() if path.is_relative_to(top) else None

    def _check_names(self, label: str) -> None:
        """Refuses Parquet files that number the classes differently: datasets reads all as it does the first.

        Raises:
            InputError: There are such files.
        """
        import datasets

        known: dict[tuple[str, ...], Path] = {}
        for path in self._parquet():
            features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path))
            if names := getattr(features.get(label), "names", None):
                known.setdefault(tuple(names), path)
        if len(known) > 1:
            one, other, *_ = known.values()
            raise InputError(
                f"{self.section}.label: {one} and {other} number the classes of {label!r} differently; write"
                " both with the same names in the same order"
            )

    def _builder(self) -> Any:
        """Returns what reads the files, each of which is in one split."""
        import datasets

        described = self.layout.described()
        if not described and not self.layout.has_tables():
            kind, patterns = f"{self.medium.column}folder", self.layout.class_folders()
            return datasets.load_dataset_builder(kind, data_files=patterns)
        builder = datasets.load_dataset_builder(str(self.path))
        read = builder.config.data_files
        if not described:
            self.layout.refuse_unread(read)
        if builder.name == "csv" and not described and builder.info.features is None:
            tables = [Path(file) for split in read.values() for file in split]
            columns, builder.config.sep = self.layout.csv_columns(tables)
            # all cells are text, as in the file: 01 is no number, and None and NA are words like others
            features = datasets.Features(dict.fromkeys(columns, datasets.Value("string")))
            builder.config.features = builder.info.features = features
            builder.config.keep_default_na, builder.config.na_values = False, [""]
        return builder

    def _parquet(self) -> list[Path]:
        return [path for path in self.layout.files if path.suffix == ".parquet"]

    def _named(self, streams: Mapping[str, Any]) -> dict[str, Any]:
        """Returns splits by what they are, where their names say it."""
        found: dict[str, Any] = {}
        for name, stream in streams.items():
            split = SPLITS.get(name.lower(), name)
            if split in streams and split != name:
                split = name  # besides one that is called so
            if split in found:
                raise InputError(
                    f"{self.section}.path: two splits of {self.path} are both {split}; join them"
                )
            found[split] = stream
        return found

    def _damage(self, error: Exception) -> str:
        """Says which file cannot be read, or if all can, what datasets said of the folder."""
        for path in self._parquet():
            try:
                if len(pyarrow.parquet.read_table(path)) == 0:  # which datasets stumbles over
                    return f"{self.section}.path: {path} is empty; fill it, or take it away"
            except (OSError, pyarrow.ArrowException) as wrong:
                why = first_line(wrong)
                return f"{self.section}.path: {path} is damaged ({why}); put a whole copy in its place"
        if line := self.layout.damaged_line():
            return f"{self.section}.path: {line}"
        return f"{self.section}.path: {self.path} cannot be read as a data set ({first_line(error)})"


def said(cell: Any) -> str | None:
    """Returns what a cell says, as text; None where it says nothing.

    A gap makes the whole numbers of a column real, and is NaN itself.
    """
    if cell is None or cell != cell:
        return None
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _typed(stream: Any) -> Any:
    """Returns a split whose columns have types: where files say none, as JSONL, those of the first rows."""
    import datasets

    if stream.features is not None:
        return stream
    first = next(iter(stream.with_format("arrow").iter(batch_size=TYPED)))
    return stream.cast(datasets.Features.from_arrow_schema(first.schema))


def fetch(name: str, hub: str) -> Path:
    """Returns the folder of the Hub's copy of a data set, downloaded if it was not before.

    Raises:
        InputError: It cannot be had.
    """
    try:
        return _downloaded(hub, ("*.parquet", "README.md"))
    except Exception as error:  # of the Hub's client, and of any library below it
        raise InputError(
            f"data.path: {name} was not downloaded before, and {hub} cannot be had from the Hugging Face Hub"
            f" now ({first_line(error)}); give data.path, a folder with a copy of it"
        ) from error


HUB = "hf://datasets/"
"""How the address of a data set of the Hub begins: ``hf://datasets/owner/name``."""


def located(path: str, section: str = "data") -> Path:
    """Returns the folder of a data set; one of the Hub is downloaded if it was not before.

    Args:
        path: A folder, or the Hub's address of a data set.
        section: The part of the config that names it, for messages.

    Raises:
        InputError: It is an address, and cannot be had.
    """
    if not path.startswith(HUB):
        return Path(path).expanduser()
    try:
        return _downloaded(path.removeprefix(HUB).rstrip("/"))
    except Exception as error:  # of the Hub's client, and of any library below it
        raise InputError(
            f"{section}.path: {path} was not downloaded before, and cannot be had now ({first_line(error)});"
            " give a folder with a copy of it"
        ) from error


def _downloaded(hub: str, patterns: tuple[str, ...] | None = None) -> Path:
    from huggingface_hub import snapshot_download

    chosen = list(patterns) if patterns else None
    log.info("%s is taken from the Hugging Face Hub", hub)
    return Path(snapshot_download(hub, repo_type="dataset", allow_patterns=chosen))


def some(values: Sequence[Any]) -> str:
    """Returns the first of some values, as many as a message names."""
    return ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
