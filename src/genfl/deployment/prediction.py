"""Predictions for files: batches are decoded as they are needed, so any number of files fits into memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from genfl import progress
from genfl.data.folders import BATCH_ROWS, has_column, joined_cells, joined_columns
from genfl.data.layout import Layout, printable
from genfl.data.media import MEDIA, Modality
from genfl.data.recipes import RECIPES, DatasetRecipe
from genfl.data.tables import TABLE_SUFFIXES, Table, TableError, open_table, table_suffix
from genfl.deployment.tables import write_csv
from genfl.errors import InputError, on_one_line
from genfl.experiment.records import RUN_MARKER
from genfl.results.schema import ResultModel
from genfl.storage import check_target, explaining_target, replacing

if TYPE_CHECKING:
    from genfl.deployment.trained import RunModel

GENERIC: dict[Modality, DatasetRecipe] = {
    "image": RECIPES["images"],
    "audio": RECIPES["sounds"],
    "text": RECIPES["texts"],
}
"""The recipes of data that is not described, by the kind of content."""


class Prediction(ResultModel):
    """The likeliest classes of one input."""

    input: str = Field(description="File, or table and row, from 1.")
    labels: list[str] = Field(description="Names of the classes, the likeliest first.")
    probabilities: list[float] = Field(description="Their probabilities, in [0, 1].")

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """Its probability, in [0, 1]."""
        return self.probabilities[0]


class Unreadable(NamedTuple):
    """An input that cannot be read, and why."""

    input: str
    reason: str


class Inputs(NamedTuple):
    """The inputs below some paths.

    Attributes:
        total: Their number.
        items: The name and the content of each, or its file: an iterator that reads tables as it goes.
    """

    total: int
    items: Iterator[tuple[str, Any] | Unreadable]


def check_out(out: Path, paths: Sequence[Path]) -> None:
    """Check that predictions can be written to a file, and that it is none of their inputs.

    Args:
        out: The file.
        paths: The files and folders that are read.

    Raises:
        InputError: It is an input, or a file in a folder that is read or in the folder of a run, it has
            another ending than .csv or .json, or it cannot be written.
    """
    _check_ending(out)
    check_target(out, "out")
    name = on_one_line(out, 200)
    targets = (out.resolve(), out.parent.resolve() / out.name)  # a link, and what it leads to
    for path in paths:
        source = path.resolve()
        if source in targets or (out.exists() and path.is_file() and out.samefile(path)):
            raise InputError(f"out: {name} is an input, which would be overwritten; name another file")
        if out.exists() and any(target.is_relative_to(source) for target in targets):
            raise InputError(
                f"out: {name} is a file in the input {on_one_line(path, 200)}, which would be overwritten;"
                " name another file"
            )
    if any((above / RUN_MARKER).exists() for target in targets for above in target.parents):
        raise InputError(f"out: {name} is in the folder of a run; name another file")


def _check_ending(out: Path) -> None:
    if out.suffix.lower() not in (".csv", ".json"):
        raise InputError(f"out: {on_one_line(out, 200)} does not end in .csv or .json; rename it")


def predictions(
    model: RunModel, items: Iterable[tuple[str, Any] | Unreadable], top: int
) -> Iterator[Prediction | Unreadable]:
    """Yield the prediction of each input, in order.

    Args:
        model: The model.
        items: The name and the content of each input, or its file.
        top: The number of classes of each prediction, at most.
    """
    modality, encode = model.description.modality, model.inputs.encode

    def read(item: tuple[str, Any] | Unreadable) -> Tensor | Unreadable:
        if isinstance(item, Unreadable):
            return item
        name, cell = item
        try:
            return encode(content_of(cell, modality))
        except InputError:  # a library is not installed, or the tokenizer is unsuitable
            raise
        except Exception as error:  # decoders raise many types on damaged files
            return Unreadable(name, reason(error))

    remaining = iter(items)
    with ThreadPoolExecutor() as pool:
        while batch := list(itertools.islice(remaining, BATCH_ROWS)):
            encoded = list(pool.map(read, batch))
            stored = [x for x in encoded if isinstance(x, Tensor)]
            likeliest = iter(_likeliest(model, torch.stack(stored), top) if stored else ())
            for item, x in zip(batch, encoded, strict=True):
                if isinstance(x, Unreadable):
                    yield x
                else:
                    labels, probabilities = next(likeliest)
                    yield Prediction(input=item[0], labels=labels, probabilities=probabilities)


def readable_predictions(
    model: RunModel, inputs: Inputs, top: int, failed: list[Unreadable]
) -> Iterator[Prediction]:
    """Yield the prediction of each input that can be read, with a progress bar.

    Args:
        model: The model.
        inputs: The inputs.
        top: The number of classes of each prediction, at most.
        failed: Gets the inputs that cannot be read.

    Raises:
        InputError: None of the inputs can be read.
    """
    read = 0
    with progress.bar("predict", inputs.total, MEDIA[model.description.modality].what) as advance:
        for prediction in predictions(model, inputs.items, top):
            advance(1)
            if isinstance(prediction, Unreadable):
                failed.append(prediction)
            else:
                read += 1
                yield prediction
    if not read:
        example = f" (such as {failed[0].input}: {failed[0].reason})" if failed else ""
        raise InputError(f"files: none of the {len(failed)} inputs can be read{example}; name others")


def write_predictions(path: Path, rows: Iterable[Prediction], top: int) -> None:
    """Write predictions as CSV or JSON, one after the other.

    Args:
        path: The file, replaced if it exists. It ends in .csv or .json.
        rows: The predictions.
        top: The number of classes of each prediction, at most.

    Raises:
        InputError: The name has another ending, or the file cannot be written.
    """
    _check_ending(path)
    with explaining_target(path, "out"):
        if path.suffix.lower() == ".csv":
            write_csv(path, prediction_columns(top), map(prediction_cells, rows))
        else:
            with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.writelines(json_lines(rows))


def prediction_columns(top: int) -> list[str]:
    """Return the names of the columns of a table of predictions."""
    return ["input", *(f"{name}_{n}" for n in range(1, top + 1) for name in ("label", "probability"))]


def prediction_cells(row: Prediction) -> list[Any]:
    """Return the cells of a prediction, in the order of `prediction_columns`."""
    pairs = zip(row.labels, row.probabilities, strict=True)
    return [row.input, *itertools.chain.from_iterable(pairs)]


def json_lines(rows: Iterable[Prediction]) -> Iterator[str]:
    """Yield a JSON list of predictions, a line for each."""
    for mark, row in _marked(rows):
        yield _json_line(mark, row)
    yield _JSON_END


def printing(rows: Iterable[Prediction], put: Callable[[str], object]) -> Iterator[Prediction]:
    """Yield predictions, and print their JSON list meanwhile.

    Args:
        rows: The predictions.
        put: Prints a part of the list, which ends its lines itself.
    """
    for mark, row in _marked(rows):
        put(_json_line(mark, row))
        yield row
    put(_JSON_END)


_JSON_END = "\n]\n"


def _marked(rows: Iterable[Prediction]) -> Iterator[tuple[str, Prediction]]:
    """Yield each prediction with what comes before it in a JSON list."""
    return zip(itertools.chain("[", itertools.repeat(",")), rows, strict=False)


def _json_line(mark: str, row: Prediction) -> str:
    return f"{mark}\n{json.dumps(row.to_dict(), ensure_ascii=False)}"


def _likeliest(model: RunModel, stored: Tensor, top: int) -> list[tuple[list[str], list[float]]]:
    names = model.label_names
    values, classes = model.logits(stored).softmax(1).topk(min(top, len(names)), 1)
    if not values.isfinite().all():
        raise InputError("method: the outputs of its model are not finite, as its training diverged")
    return [
        ([names[number] for number in row], probabilities)
        for row, probabilities in zip(classes.tolist(), values.tolist(), strict=True)
    ]


def content_of(cell: Any, modality: Modality) -> Any:
    """Return the content of a file, a table's cell, or content as it is.

    Args:
        cell: A path, bytes or a cell of a table, or an image, a clip or a text. A str is a text. It never
            names a file, because that of a table could name any file of this machine.
        modality: The kind of content.
    """
    if isinstance(cell, Path | bytes | dict | str) or cell is None:
        return MEDIA[modality].read(cell)
    return cell


def reason(error: BaseException) -> str:
    """Return why something cannot be read, on one short line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return on_one_line((text.strip().splitlines() or [type(error).__name__])[0], 120)


def find_inputs(
    paths: Sequence[Path], modality: Modality, columns: Sequence[str], *, exact: bool = False
) -> Inputs:
    """Return all inputs below some paths: files, the files of folders, and rows of tables.

    Hidden files are left out, and so are files of other kinds in folders. A path that is named is always
    read.

    Args:
        paths: Files and folders.
        modality: The kind of content.
        columns: The possible names of the column with the inputs, in tables.
        exact: Whether the user named this column. If not, the only column of a table is read, whatever its
            name.

    Raises:
        InputError: There is no such path, a folder holds no input, or a table has no such column.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            try:
                listed = Layout(path, MEDIA[modality], "files").files
            except InputError as error:
                raise InputError(str(error).replace("files.path:", "files:", 1)) from error
            files += [file.path for file in listed if file.role in ("table", "example")]
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"files: {on_one_line(path, 200)} does not exist; correct it")
    tables = {file: _opened(file, columns, exact) for file in files if _is_table(file, modality)}
    total = sum(_rows(tables[file]) if file in tables else 1 for file in files)

    def items() -> Iterator[tuple[str, Any] | Unreadable]:
        for file in files:
            table = tables.get(file)
            if table is None:
                yield printable(file), file
            elif isinstance(table, Unreadable):
                yield table
            else:
                yield from _cells(*table)

    return Inputs(total, items())


def _is_table(path: Path, modality: Modality) -> bool:
    return table_suffix(path) in (*TABLE_SUFFIXES, *MEDIA[modality].table_suffixes)


def _opened(path: Path, columns: Sequence[str], exact: bool) -> tuple[Table, str] | Unreadable:
    """Return a table and the column of its inputs."""
    try:
        table = open_table(path)
    except TableError as error:
        return Unreadable(printable(path), reason(error))
    column = next((name for name in columns if has_column(table.columns, name)), None)
    if column is None and len(table.columns) == 1 and not exact:
        column = table.columns[0]
    if column is None:
        raise InputError(
            f"input: no column {' or '.join(map(repr, columns))} in {printable(path)}; its columns are:"
            f" {', '.join(table.columns)}; name one of them"
        )
    return table, column


def _rows(table: tuple[Table, str] | Unreadable) -> int:
    """Return the number of rows of a table; those before the damage, if it is damaged."""
    if isinstance(table, Unreadable):
        return 1
    return table[0].rows or sum(1 for _ in _cells(*table))


def _cells(table: Table, column: str) -> Iterator[tuple[str, Any] | Unreadable]:
    name, row = printable(table.path), 0
    try:
        for chunk in table.chunks(joined_columns(column), BATCH_ROWS):
            for cell in joined_cells(chunk, column):
                row += 1
                yield f"{name}:{row}", cell
    except TableError as error:
        yield Unreadable(name, reason(error))
