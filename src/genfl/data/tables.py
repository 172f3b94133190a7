"""Tables of examples, read a few rows at a time: Parquet, Arrow, CSV, TSV, JSON and JSON lines."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import itertools
import json
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from genfl.errors import first_line

TABLE_SUFFIXES = (".parquet", ".arrow")
"""Suffixes of tables that hold examples of any kind."""

TEXT_TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
"""Suffixes of tables that hold text alone."""

COMPRESSED: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Suffixes of compressed files, and the functions that open them."""

TYPED_ROWS = 1024
"""The number of rows of a JSON file whose keys are its columns."""

Cells = Mapping[str, list[Any]]
"""Undecoded cells of some rows, by column."""


class TableError(Exception):
    """A table that cannot be read.

    Args:
        problem: What is wrong, and what to do. The name of the file comes before it.
        line: The number of the line where it is wrong; None for the whole file.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line

    def of(self, path: Path) -> str:
        """Return the message about a file."""
        return f"line {self.line} of {path} {self}" if self.line else f"{path} {self}"


@dataclass(frozen=True)
class CSVOptions:
    """The options of CSV files that a data card may set.

    Attributes:
        separator: The mark between cells; None to take the likeliest one of the first line.
        names: The names of the columns of files without a header; empty for files with one.
    """

    separator: str | None = None
    names: tuple[str, ...] = ()


DEFAULT_CSV = CSVOptions()
"""The default options of CSV files."""


@dataclass(frozen=True)
class Table:
    """A file that holds a row for each example.

    Attributes:
        path: The file.
        columns: The names of its columns.
        class_names: The names that the file gives to the numbers of a column, by column.
        rows: The number of rows; None if only reading tells.
        chunks: ``(columns, size) -> cells``: an iterator over the rows, `size` at a time.
    """

    path: Path
    columns: Sequence[str]
    class_names: Mapping[str, Sequence[str]]
    rows: int | None
    chunks: Callable[[Sequence[str], int], Iterator[Cells]] = field(repr=False)


def table_suffix(path: Path) -> str:
    """Return the suffix that tells how a table is written, in lower case: ``.csv`` for ``A.CSV.gz``."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in COMPRESSED else suffix


def open_table(path: Path, options: CSVOptions = DEFAULT_CSV) -> Table:
    """Open a table, and read its columns.

    Args:
        path: A file with a suffix of `TABLE_SUFFIXES` or `TEXT_TABLE_SUFFIXES`.
        options: The options of CSV files.

    Raises:
        TableError: The file is empty or damaged.
    """
    suffix = table_suffix(path)
    if suffix == ".parquet":
        return _parquet(path)
    if suffix == ".arrow":
        return _arrow(path)
    return _json(path) if suffix.startswith(".json") else _csv(path, suffix, options)


def _parquet(path: Path) -> Table:
    def chunks(columns: Sequence[str], size: int) -> Iterator[Cells]:
        with _table_errors(), path.open("rb") as source, pyarrow.parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(size, columns=list(dict.fromkeys(columns))):
                yield {name: batch[name].to_pylist() for name in columns}

    with _table_errors(), path.open("rb") as source, pyarrow.parquet.ParquetFile(source) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    return Table(path, schema.names, _class_names(schema), rows, chunks)


def _arrow(path: Path) -> Table:
    def opened(source: Any) -> Any:
        try:
            return pyarrow.ipc.open_stream(source)  # as save_to_disk writes it
        except pyarrow.ArrowInvalid:
            source.seek(0)
            file = pyarrow.ipc.open_file(source)
            return pyarrow.RecordBatchReader.from_batches(
                file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
            )

    def chunks(columns: Sequence[str], size: int) -> Iterator[Cells]:
        with _table_errors(), path.open("rb") as source:
            for batch in opened(source):
                batch.validate(full=True)  # pyarrow trusts offsets, and reads outside of its memory
                for first in range(0, batch.num_rows, size):
                    rows = batch.slice(first, size)
                    yield {name: rows[name].to_pylist() for name in columns}

    with _table_errors(), path.open("rb") as source:
        schema = opened(source).schema
    return Table(path, schema.names, _class_names(schema), None, chunks)


def _class_names(schema: pyarrow.Schema) -> dict[str, Sequence[str]]:
    """Return the names of classes that the datasets library has written into a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(text) for text in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return {}


@contextlib.contextmanager
def _table_errors() -> Iterator[None]:
    """Turn the errors of pyarrow, and of values that Python cannot hold, into a `TableError`."""
    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise TableError(f"is damaged ({first_line(error)}); replace it by an intact copy") from error
    except (ValueError, LookupError, OverflowError) as error:
        raise TableError(f"cannot be read ({first_line(error)}); write it in another way") from error


def _csv(path: Path, suffix: str, options: CSVOptions) -> Table:
    """Open a CSV or TSV file; all cells are text, as they are in the file, and empty cells are None."""
    separator = options.separator or ("\t" if suffix == ".tsv" else _separator(path))

    def records() -> Iterator[list[str]]:
        csv.field_size_limit(2**31 - 1)
        with _open_text(path) as lines:
            reader = csv.reader(_decoded(lines), delimiter=separator, strict=True)
            while True:
                try:
                    record = next(reader, None)
                except csv.Error as error:
                    raise TableError(f"is not CSV ({error}); correct it", reader.line_num) from error
                if record is None:
                    return
                if any(record):
                    yield [str(reader.line_num), *record]

    header = list(options.names) or [name.strip() for name in next(records(), [""])[1:]]
    if not any(header):
        raise TableError("is empty; fill it, or remove it")
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise TableError(f"has the column {twice[0]!r} twice; rename one of them")

    def rows() -> Iterator[dict[str, str | None]]:
        for line, *cells in records() if options.names else itertools.islice(records(), 1, None):
            if any(cells[len(header) :]):
                raise TableError(
                    f"has {len(cells)} cells, but the header has {len(header)}; correct it, or put cells that"
                    " hold the separator in quotes",
                    int(line),
                )
            yield {name: cell or None for name, cell in zip(header, cells, strict=False)}

    return Table(path, header, {}, None, _chunked(rows))


def _separator(path: Path) -> str:
    with _open_text(path) as lines:
        head = next((line for line in _decoded(lines) if line.strip()), "")
    try:
        return max(",;\t", key=lambda mark: len(next(csv.reader([head], delimiter=mark), [])))
    except csv.Error as error:
        raise TableError(f"is not CSV ({error}); save it with ordinary line ends", 1) from error


def _json(path: Path) -> Table:
    """Open a file of JSON lines, or of one JSON list of rows or object of columns."""

    def rows() -> Iterator[dict[str, Any]]:
        if table_suffix(path) == ".json":
            with _open_text(path) as lines:
                text = "".join(_decoded(lines))
            try:
                yield from _records(json.loads(text))
                return
            except ValueError:
                pass  # .json is also a suffix of JSON lines
            except RecursionError as error:
                raise TableError("is nested too deeply; give a list of rows") from error
        with _open_text(path) as lines:
            for number, line in enumerate(_decoded(lines), 1):
                if line.strip():
                    yield _record(line, number)

    columns = dict.fromkeys(itertools.chain.from_iterable(itertools.islice(rows(), TYPED_ROWS)))
    return Table(path, [str(name) for name in columns], {}, None, _chunked(rows))


def _record(line: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TableError(f"is not JSON ({error}); correct it", number) from error
    if not isinstance(record, dict):
        raise TableError("is not a JSON object; write one object of columns in each line", number)
    return record


def _records(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON file: a list of objects, or an object of lists, one for each column."""
    if isinstance(content, dict):
        lists = {name: cells for name, cells in content.items() if isinstance(cells, list)}
        if len(lists) == 1 and all(isinstance(cell, dict) for cell in next(iter(lists.values()))):
            content = next(iter(lists.values()))  # {"data": [{...}, {...}]}
        elif lists and len(lists) == len(content) and len({len(cells) for cells in lists.values()}) == 1:
            content = [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
        else:
            content = [content]  # a single row, or a table of label names
    rows = content if isinstance(content, list) else []
    objects = sum(isinstance(row, dict) for row in rows)
    if objects and objects < len(rows):
        number = next(number for number, row in enumerate(rows, 1) if not isinstance(row, dict))
        raise TableError(f"has the row {number}, which is not a JSON object; correct it")
    yield from rows if objects else ()


def _chunked(
    rows: Callable[[], Iterator[Mapping[str, Any]]],
) -> Callable[[Sequence[str], int], Iterator[Cells]]:
    def chunks(columns: Sequence[str], size: int) -> Iterator[Cells]:
        source = rows()
        while some := list(itertools.islice(source, size)):
            yield {name: [row.get(name) for row in some] for name in columns}

    return chunks


def _open_text(path: Path) -> IO[bytes]:
    try:
        file: IO[bytes] = COMPRESSED.get(path.suffix.lower(), open)(path, "rb")
    except OSError as error:
        raise TableError(f"cannot be read ({error.strerror}); make it readable, or remove it") from error
    return file


def _decoded(lines: IO[bytes]) -> Iterator[str]:
    """Yield lines as text, without the mark that some programs write at the start of UTF-8 files."""
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise TableError("is not UTF-8; save the file as UTF-8", number) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise TableError(f"is damaged ({error}); replace it by an intact copy") from error
