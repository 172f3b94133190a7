"""Data sets in folders, in the Hugging Face layout: Parquet, CSV, JSONL, or a folder for each class."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from genfl.data.layout import SPLITS, Layout
from genfl.data.media import Medium
from genfl.errors import InputError, first_line
from genfl.model_folders import expanded
from genfl.storage import sha256

log = logging.getLogger(__name__)

BATCH_ROWS = 128
"""Undecoded cells that are held in memory at a time; a single scan or recording may have many megabytes."""

SHOWN_VALUES = 5
"""The number of values that a message lists."""

TYPED_ROWS = 1024
"""The number of rows that the column types of a JSONL file are inferred from."""


class Folder:
    """A data set in a folder.

    Args:
        path: The folder.
        medium: The kind of content of the examples.
        section: The section of the config that names the folder, for messages.

    Raises:
        InputError: The folder does not exist.
    """

    def __init__(self, path: Path, medium: Medium, section: str = "data") -> None:
        if not path.is_dir():
            problem = "is a file; give the folder it is in" if path.exists() else "does not exist; correct it"
            raise InputError(f"{section}.path: {path} {problem}")
        self.path = path
        self.medium = medium
        self.section = section
        self.layout = Layout(path, medium, section)

    def identity(self) -> list[Any]:
        """Return names, sizes and checksums of all files; they do not depend on where the folder is.

        Raises:
            InputError: None of the files can hold examples.
        """
        files = self.layout.files
        names = [path.relative_to(self.path).as_posix() for path in files]
        return [[name, path.stat().st_size, sha256(path)] for name, path in zip(names, files, strict=True)]

    def splits(self) -> tuple[dict[str, Any], int]:
        """Open the splits without reading them, and count their examples.

        Names that stand for train, validation or test are replaced by these (see `genfl.data.layout.SPLITS`).
        Other splits keep their names.

        Returns:
            A `datasets.IterableDataset` for each split, and the number of examples. The number is an estimate
            if examples are files.

        Raises:
            InputError: The folder cannot be read, or has files that belong to no split.
        """
        import datasets

        datasets.logging.set_verbosity(logging.CRITICAL)  # it also raises the errors that it logs
        try:
            if (self.path / "dataset_dict.json").exists() or (self.path / "state.json").exists():
                saved = datasets.load_from_disk(str(self.path))
                saved = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
                streams = {name: split.to_iterable_dataset() for name, split in saved.items()}
                return self._with_split_names(streams), sum(map(len, saved.values()))
            rows = [pyarrow.parquet.read_metadata(path).num_rows for path in self._parquet()]
            total = sum(rows) if rows else len(self.layout.files)
            by_split = self._builder().as_streaming_dataset()
            return self._with_split_names({name: _typed(stream) for name, stream in by_split.items()}), total
        except InputError:
            raise
        except Exception as error:  # of datasets, pyarrow, fsspec, ...
            raise InputError(self._damage(error)) from error

    def batches(self, stream: Any, columns: Sequence[str]) -> Iterator[Mapping[str, list[Any]]]:
        """Read the undecoded cells of a split, `BATCH_ROWS` rows at a time.

        Args:
            stream: A split, as `splits` returns it.
            columns: The names of the columns to read.

        Raises:
            InputError: A file is damaged; the message names it.
        """
        chosen = stream.select_columns(list(dict.fromkeys(columns)))
        try:
            for table in chosen.decode(False).with_format("arrow").iter(batch_size=BATCH_ROWS):
                yield {name: table[name].to_pylist() for name in columns}
        except Exception as error:  # of datasets, pyarrow, fsspec, ...
            raise InputError(self._damage(error)) from error

    def column(self, features: Mapping[str, Any], names: Sequence[str], field: str) -> str:
        """Return the first of some names that is the name of a column.

        Args:
            features: The columns of a split, with their types.
            names: The names to look for, in order.
            field: The field of the config that sets the name, for messages.

        Raises:
            InputError: No column has any of the names.
        """
        for name in names:
            if name in features:
                return name
        wanted = " or ".join(map(repr, names))
        raise InputError(
            f"{self.section}.{field}: no column {wanted} in {self.path}; its columns are:"
            f" {', '.join(features)}"
        )

    def label_reader(self, features: Mapping[str, Any], label: str) -> Callable[[Any], str | None]:
        """Return a function from a cell to the name of its class; None for a cell without a label.

        Args:
            features: The columns of a split, with their types.
            label: The column of the classes.

        Raises:
            InputError: The cells are not single values, or files number the classes differently.
        """
        import datasets

        feature = features[label]
        if not isinstance(feature, datasets.ClassLabel | datasets.Value):
            raise InputError(
                f"{self.section}.label: column {label!r} holds {feature}, but an example has one class;"
                " name another column"
            )
        self._check_names(label)
        names: list[str] = getattr(feature, "names", None) or []

        def name(cell: Any) -> str | None:
            if cell is None or (names and cell == -1):  # Hugging Face labels secret test sets with -1
                return None
            text = names[cell] if names and 0 <= cell < len(names) else cell_text(cell)
            return text if text and text.strip() else None

        return name

    def file_of(self, cell: Any) -> str | None:
        """Return the file of a cell, relative to the folder; None for a cell in a table."""
        if not isinstance(cell, dict) or cell.get("bytes") or not cell.get("path"):
            return None
        path, top = Path(cell["path"]), self.path.resolve()
        return path.relative_to(top).as_posix() if path.is_relative_to(top) else None

    def _check_names(self, label: str) -> None:
        """Check that all Parquet files number the classes alike; datasets applies the first numbering to all.

        Raises:
            InputError: Two files number the classes differently.
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
        """Return a `datasets` builder that reads the files, with every file in one split."""
        import datasets

        described = self.layout.described()
        if not described and not self.layout.has_tables():
            kind, patterns = f"{self.medium.column}folder", self.layout.class_folders()
            return datasets.load_dataset_builder(kind, data_files=patterns)
        builder = datasets.load_dataset_builder(str(self.path))
        read = builder.config.data_files
        if not described:
            self.layout.check_all_read(read)
        if builder.name == "csv" and not described and builder.info.features is None:
            tables = [Path(file) for split in read.values() for file in split]
            columns, builder.config.sep = self.layout.csv_columns(tables)
            # cells stay text, as in the file: 01 is not the number 1, and None and NA are words
            features = datasets.Features(dict.fromkeys(columns, datasets.Value("string")))
            builder.config.features = builder.info.features = features
            builder.config.keep_default_na, builder.config.na_values = False, [""]
        return builder

    def _parquet(self) -> list[Path]:
        return [path for path in self.layout.files if path.suffix == ".parquet"]

    def _with_split_names(self, streams: Mapping[str, Any]) -> dict[str, Any]:
        """Return the splits by the names train, validation and test where their own names stand for these."""
        named: dict[str, Any] = {}
        for name, stream in streams.items():
            split = SPLITS.get(name.lower(), name)
            if split in streams and split != name:
                split = name  # another split has exactly this name
            if split in named:
                raise InputError(
                    f"{self.section}.path: two splits of {self.path} both stand for {split}; join them"
                )
            named[split] = stream
        return named

    def _damage(self, error: Exception) -> str:
        """Return a message about the file that cannot be read; if all can, about the folder as a whole."""
        for path in self._parquet():
            try:
                if len(pyarrow.parquet.read_table(path)) == 0:  # datasets fails on empty tables
                    return f"{self.section}.path: {path} is empty; fill it, or remove it"
            except (OSError, pyarrow.ArrowException) as wrong:
                why = first_line(wrong)
                return f"{self.section}.path: {path} is damaged ({why}); replace it by an intact copy"
        if line := self.layout.damaged_line():
            return f"{self.section}.path: {line}"
        why = first_line(error)
        return f"{self.section}.path: {self.path} cannot be read as a data set ({why}); check its files"


def cell_text(cell: Any) -> str | None:
    """Return the value of a cell as text; None for an empty cell.

    An empty cell turns a column of integers into floats, and is itself NaN. So 3.0 is returned as ``3``.
    """
    if cell is None or cell != cell:
        return None
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _typed(stream: Any) -> Any:
    """Return a split with column types; those of JSONL files are inferred from the first rows."""
    import datasets

    if stream.features is not None:
        return stream
    first = next(iter(stream.with_format("arrow").iter(batch_size=TYPED_ROWS)))
    return stream.cast(datasets.Features.from_arrow_schema(first.schema))


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
