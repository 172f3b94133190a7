"""Data sets in folders as Hugging Face lays them out: Parquet, a folder of files for each class, CSV, ..."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from genfl.data.media import Medium
from genfl.errors import InputError
from genfl.storage import sha256

BATCH = 1024
"""Examples that are held at a time."""


class Folder:
    """A data set in a folder.

    Args:
        path: Where it is.
        section: The part of the config that names it, for messages.

    Raises:
        InputError: There is no such folder.
    """

    def __init__(self, path: Path, section: str = "data") -> None:
        if not path.is_dir():
            what = "is a file; give the folder it is in" if path.exists() else "does not exist"
            raise InputError(f"{section}.path: {path} {what}")
        self.path = path
        self.section = section

    def identity(self, medium: Medium) -> list[Any]:
        """Returns names, sizes and checksums of all files: the same wherever the folder is.

        Raises:
            InputError: None of them can hold such a medium.
        """
        paths = sorted(path for path in self.path.rglob("*") if path.is_file())
        files = {path.relative_to(self.path): path for path in paths}
        shown = {name: path for name, path in files.items() if not any(part[0] == "." for part in name.parts)}
        if not any(name.suffix.lower() in (".parquet", ".arrow", *medium.suffixes()) for name in shown):
            raise InputError(
                f"{self.section}.path: no Parquet files and no files of {medium.what} in {self.path}"
            )
        return [[name.as_posix(), path.stat().st_size, sha256(path)] for name, path in shown.items()]

    def splits(self) -> tuple[dict[str, Any], int]:
        """Opens the splits without reading them, and says how many examples they have.

        Returns:
            For each name an `datasets.IterableDataset`; the number is an estimate where examples are files.

        Raises:
            InputError: It cannot be read.
        """
        import datasets

        datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs as an error, it raises, too
        try:
            if (self.path / "dataset_dict.json").exists() or (self.path / "state.json").exists():
                saved = datasets.load_from_disk(str(self.path))
                saved = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
                streams = {name: split.to_iterable_dataset() for name, split in saved.items()}
                return streams, sum(map(len, saved.values()))
            tables = list(self.path.rglob("*.parquet"))
            rows = (pyarrow.parquet.read_metadata(path).num_rows for path in tables)
            total = sum(rows) if tables else sum(path.is_file() for path in self.path.rglob("*"))
            found = datasets.load_dataset(str(self.path), streaming=True)
            return {name: _typed(stream) for name, stream in found.items()}, total
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

    def check_names(self, label: str) -> None:
        """Refuses Parquet files that number the classes differently: datasets reads all as it does the first.

        Raises:
            InputError: There are such files.
        """
        import datasets

        known: dict[tuple[str, ...], Path] = {}
        for path in sorted(self.path.rglob("*.parquet")):
            features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path))
            if names := getattr(features.get(label), "names", None):
                known.setdefault(tuple(names), path)
        if len(known) > 1:
            one, other, *_ = known.values()
            raise InputError(
                f"{self.section}.label: {one} and {other} number the classes of {label!r} differently; write"
                " both with the same names in the same order"
            )

    def _damage(self, error: Exception) -> str:
        """Says which file cannot be read, or if all can, what datasets said of the folder."""
        for path in sorted(self.path.rglob("*.parquet")):
            try:
                if len(pyarrow.parquet.read_table(path)) == 0:  # which datasets stumbles over
                    return f"{self.section}.path: {path} is empty; fill it, or take it away"
            except (OSError, pyarrow.ArrowException) as wrong:
                why = first_line(wrong)
                return f"{self.section}.path: {path} is damaged ({why}); put a whole copy in its place"
        return f"{self.section}.path: {self.path} cannot be read as a data set ({first_line(error)})"


def _typed(stream: Any) -> Any:
    """Returns a split whose columns have types: those of its first rows where its files, as CSV, say none."""
    import datasets

    if stream.features is not None:
        return stream
    first = next(iter(stream.with_format("arrow").iter(batch_size=BATCH)))
    return stream.cast(datasets.Features.from_arrow_schema(first.schema))


def fetch(name: str, hub: str) -> Path:
    """Returns the folder of the Hub's copy of a data set, downloaded if it was not before.

    Raises:
        InputError: It cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(hub, repo_type="dataset", allow_patterns=["*.parquet", "README.md"])
    except Exception as error:  # of the Hub's client, and of any library below it
        raise InputError(
            f"data.path: {name} was not downloaded before, and {hub} cannot be had from the Hugging Face Hub"
            f" now ({first_line(error)}); give data.path, a folder with a copy of it"
        ) from error
    return Path(found)


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
