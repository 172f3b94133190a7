"""Data sets, decoded once into arrays on disk that are memory-mapped from then on."""

from __future__ import annotations

import contextlib
import itertools
import logging
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np

from genfl import progress
from genfl.data.cache import FACTS_FILE, cache_folder, cache_lock, read_facts, write_facts
from genfl.data.folders import (
    BATCH_ROWS,
    Folder,
    Rows,
    cell_text,
    first_few,
    joined_cells,
    joined_columns,
)
from genfl.data.formats import InputFormat
from genfl.data.media import MEDIA
from genfl.errors import GenflError, InputError
from genfl.natural_order import in_natural_order
from genfl.storage import digest, is_full_disk, remove, replacing, sha256

log = logging.getLogger(__name__)

CACHE_VERSION = 7
"""The version of the decoded arrays; raise it with every change of this module that changes them."""

TEST_SPLITS = ("test", "validation")
"""The splits that can be the test set, in order of preference; without them, a fifth of each class is."""

HOPELESS_ROWS = 10_000
"""Reading stops after so many examples, if none of them could be read."""

DECODE_ROWS = 16
"""The number of examples that a thread decodes at a time."""


class DrawnTest(NamedTuple):
    """A test set that is drawn from the clients that the data names, as LEAF does (arXiv 1812.01097).

    Attributes:
        by: ``samples``: of a client with n samples, max(1, ⌊(1 − share) n⌋) stay in train. ``clients``: of n
            clients, ⌊(1 − share) n⌋ stay in train, with all of their samples.
        share: In (0, 1); 0.1 in LEAF.
        least: Clients with fewer samples are left out.
    """

    by: str
    share: float
    least: int


class DatasetSpec(NamedTuple):
    """The columns that are read of a data set, and the format that its examples are encoded in.

    Attributes:
        input: The possible names of the column of the examples.
        label: The possible names of the column of the classes.
        client_id: The column of client ids; it is ignored if the data does not have it.
        format: The arrays that the examples are encoded as.
        apart: The column, and its value, of the examples that are the test set if there is no test split.
            For example, clips of one recording must not be in both sets. None for a fifth of each class.
        without: The names of classes that are left out.
        levels: What the folders of files mean; see `genfl.data.levels.parse_levels`. None to tell it from
            their names.
        group: The column of groups; it is ignored if the data does not have it.
        drawn: How a test set is drawn from clients; None for the data's own, or a fifth of each class.
    """

    input: tuple[str, ...]
    label: tuple[str, ...]
    client_id: str | None
    format: InputFormat
    apart: tuple[str, str] | None = None
    without: tuple[str, ...] = ()
    levels: str | None = None
    group: str | None = None
    drawn: DrawnTest | None = None


class Split(NamedTuple):
    """A decoded split of n examples.

    Attributes:
        inputs: The arrays, [n, ...], of the format's shape and dtype. They are memory-mapped, and writing to
            them changes no file.
        labels: The class of each example, an index into the names of the data set.
        client_ids: The client id of each example, never empty in train; None if the data has no such column.
        rows: The row of each example in the files, counted over the split that the files have it in.
        groups: The group of each example; None if the data has no such column.
    """

    inputs: np.ndarray
    labels: list[int]
    client_ids: list[str] | None
    rows: list[int]
    groups: list[str] | None = None


class Decoded(NamedTuple):
    """A decoded data set.

    Attributes:
        names: The class names in the data, in its order.
        train: The training set.
        test: The test set.
        digest: A digest of the content of the files and of the spec; it does not depend on the path.
        notes: What a user should know of the reading: what is left out, and where the test set is from.
    """

    names: list[str]
    train: Split
    test: Split
    digest: str
    notes: tuple[str, ...]


def load_folder(path: Path, spec: DatasetSpec) -> Decoded:
    """Read a local data set, from the disk cache if the same content was decoded before.

    Unreadable examples are left out, and a warning counts them. So are examples of classes in `spec.without`,
    and training examples without a client id if the data has client ids.

    Args:
        path: A folder with Parquet files in the Hugging Face layout, one folder of image or sound files for
            each class, CSV or JSONL tables of texts, or the output of ``save_to_disk``.
        spec: The columns and the format.

    Raises:
        InputError: The folder, a column or a split is missing or invalid.
        GenflError: The cache is damaged right after it was written.
    """
    medium = MEDIA[spec.format.modality]
    folder = Folder(path, medium, levels=spec.levels)
    content_digest = _content_digest(folder, spec)
    folder.layout.check_classes()
    target = cache_folder() / content_digest[:32]
    facts = read_facts(target)  # no lock: a read-only cache cannot hold a lock file
    if facts is None:
        with cache_lock(target):
            facts = read_facts(target)
            if facts is None:
                try:
                    _decode(folder, spec, target, content_digest)
                except BaseException as error:
                    with contextlib.suppress(OSError):
                        remove(target, target.parent)
                    if is_full_disk(error):
                        raise GenflError(
                            f"GENFL_CACHE: no space left in {target.parent}; make room, or name another"
                            " folder"
                        ) from error
                    raise
                facts = read_facts(target)
    if facts is None:
        raise GenflError(f"{target}: damaged right after it was written; check the disk")
    notes = folder.unread_notes()
    for name, split in facts["splits"].items():
        notes += _left_out(name, split, medium.what)
    notes += facts["warnings"]
    for note in notes:
        log.warning("%s", note)
    for note in facts["notes"]:
        log.info("%s: %s", path, note)
    try:
        train, test = (_read_split(target, name, facts["splits"][name]) for name in ("train", "test"))
    except FileNotFoundError as error:
        raise GenflError(f"{target}: deleted while it was read; run again") from error
    return Decoded(facts["names"], train, test, content_digest, (*facts["notes"], *notes))


class Originals(Sequence[Any]):
    """Examples as they are in their files: images at their size, clips or texts.

    An example is decoded each time that it is read, so few of them are in memory. Examples in tables are held
    in their encoded form.

    Args:
        cells: The cell of each example.
        read: Decodes a cell.
    """

    def __init__(self, cells: Sequence[Any], read: Callable[[Any], Any]) -> None:
        self._cells = cells
        self._read = read

    def __len__(self) -> int:
        return len(self._cells)

    def __repr__(self) -> str:
        return reprlib.repr(list(self[:7]))  # of more than six, it ends with dots

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Originals: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Originals(self._cells[index], self._read)
        return self._read(self._cells[index])


def read_originals(
    path: Path, spec: DatasetSpec, rows: Sequence[int], expected: str, *, test: bool = False
) -> Originals:
    """Return examples as they are in their files. No other example is opened.

    Args:
        path: The folder that `load_folder` read.
        spec: The spec that `load_folder` was given.
        rows: The rows of the examples, from `Split.rows`.
        expected: The digest that `load_folder` returned.
        test: Whether the rows are those of the test set. If not, they are those of the training set.

    Raises:
        InputError: The files changed since `load_folder` read them.
    """
    medium = MEDIA[spec.format.modality]
    folder = Folder(path, medium, levels=spec.levels)
    if _content_digest(folder, spec) != expected:
        raise InputError(f"data.path: the files in {path} changed while they were in use; run again")
    splits_of = folder.splits(spec.input, spec.label)[0]
    tested = _test_splits(splits_of, spec)[:1] if test and not spec.drawn else []
    split = splits_of[(*tested, "train")[0]]
    column = folder.column(split.columns, spec.input, "input")
    label = folder.column(split.columns, spec.label, "label")
    batches = split.batches(joined_columns(column), label)
    cells = itertools.chain.from_iterable(joined_cells(batch, column) for batch in batches)
    wanted = set(rows)
    contents = {row: folder.content(cell) for row, cell in enumerate(cells) if row in wanted}
    return Originals([contents[row] for row in rows], medium.read)


def _content_digest(folder: Folder, spec: DatasetSpec) -> str:
    fields = {**spec._asdict(), "format": [spec.format.modality, *spec.format.identity()]}
    for name in ("group", "drawn"):  # data without them keeps its digest
        if fields[name] is None:
            del fields[name]
    return digest([CACHE_VERSION, folder.identity(), fields])


def _read_split(folder: Path, name: str, facts: dict[str, Any]) -> Split:
    inputs = np.load(folder / f"{name}.npy", mmap_mode="c")  # torch has no read-only tensors
    return Split(inputs, facts["labels"], facts["client_ids"], facts["rows"], facts.get("groups"))


def _decode(folder: Folder, spec: DatasetSpec, target: Path, content_digest: str) -> None:
    """Write the arrays of train and test, and, last, the file that marks them as complete."""
    what = MEDIA[spec.format.modality].what
    splits_of, total = folder.splits(spec.input, spec.label)
    if "train" not in splits_of:
        raise InputError(
            f"data.path: no train split in {folder.path}, only {', '.join(splits_of)}; rename one to train"
        )
    remove(target / FACTS_FILE, target)
    target.mkdir(mode=0o700, exist_ok=True)
    used = ("train", *(() if spec.drawn else _test_splits(splits_of, spec)[:1]))
    notes = [
        f"split {name} is not used" if _has_labels(split, spec) else f"{what} of {name} have no labels"
        for name, split in splits_of.items()
        if name not in used
    ]
    with progress.bar("decode", total, what) as advance:
        rows = {
            split: _decode_split(folder, splits_of[name], name, spec, target / f"{split}.npy", advance)
            for split, name in zip(("train", "test"), used, strict=False)
        }
    names = rows["train"].classes or in_natural_order(set(rows["train"].labels))
    splits = {split: _facts(decoded, names) for split, decoded in rows.items()}
    if len(set(splits["train"]["labels"])) < 2:
        raise InputError("data.label: all examples of train are of one class; name a column with several")
    if spec.drawn:
        tested, kept = _draw_from_clients(rows["train"].client_ids, spec.drawn)
        splits = _set_apart(target, splits["train"], tested, spec.format, kept)
        if not kept.all():
            notes.append(f"{(~kept).sum()} {what} of clients with fewer than {spec.drawn.least} are left out")
        share = (
            f"{100 * spec.drawn.share:g} % of the {'clients' if spec.drawn.by == 'clients' else 'samples'}"
        )
        each = " of each client" if spec.drawn.by == "samples" else ""
        notes.append(f"{share}{each}, drawn at random, are the test set")
    elif "test" not in splits:
        tested, which = _choose_test(rows["train"], splits["train"]["labels"], spec)
        splits = _set_apart(target, splits["train"], tested, spec.format)
        notes.append(f"there is no test split; {which} is the test set")
    elif both := set(splits["train"]["groups"] or ()) & set(splits["test"]["groups"] or ()):
        inputs = np.load(target / "train.npy", mmap_mode="r")
        kept = np.flatnonzero([group not in both for group in splits["train"]["groups"]])
        count = len(inputs) - len(kept)
        splits["train"] = _write_rows(inputs, splits["train"], kept, target / "train.npy", spec.format)
        notes.append(f"{count} {what} of train share {spec.group} with the test set and are left out")
    untrained = sorted({*splits["test"]["labels"]} - {*splits["train"]["labels"]})
    if untrained:
        raise InputError(
            "data.label: train has no example of classes of the test set"
            f" ({first_few([names[number] for number in untrained])}); add some, or remove these classes"
            " from the test set"
        )
    for split, facts in splits.items():
        path = target / f"{split}.npy"
        path.chmod(0o600)  # the data is private
        facts["sha256"] = sha256(path)
    if _content_digest(Folder(folder.path, folder.medium, levels=spec.levels), spec) != content_digest:
        raise InputError(f"data.path: the files in {folder.path} changed while they were read; run again")
    dark = _darkness(target / "train.npy", spec)
    warnings = [*folder.warnings, *([dark] if dark else [])]
    write_facts(target, {"names": list(names), "splits": splits, "notes": notes, "warnings": warnings})


class _Rows(NamedTuple):
    """The decoded rows of a split.

    Attributes:
        split: The name of the split in the data.
        labels: The class name of each example that is kept.
        client_ids: The client id of each example; None if the data has no such column.
        apart: Whether each example belongs to the test set if there is no test split; see `DatasetSpec`.
        rows: The row of each example in the files of the split.
        classes: The names of all classes in the order of the split, if it has one.
        left_out: The rows (or files) that are not kept, by the reason.
        groups: The group of each example; None if the data has no such column.
    """

    split: str
    labels: list[str]
    client_ids: list[str | None] | None
    apart: list[bool]
    rows: list[int]
    classes: list[str]
    left_out: dict[str, list[Any]]
    groups: list[str] | None = None


def _test_splits(splits_of: Mapping[str, Rows], spec: DatasetSpec) -> list[str]:
    """Return the splits that can be the test set; without one, it is a part of the split train."""
    return [name for name in TEST_SPLITS if name in splits_of and _has_labels(splits_of[name], spec)]


def _has_labels(rows: Rows, spec: DatasetSpec) -> bool:
    return any(name in rows.columns for name in spec.label)


def _decode_split(
    folder: Folder, source: Rows, split: str, spec: DatasetSpec, path: Path, advance: progress.Advance
) -> _Rows:
    """Decode a split into a .npy file."""
    known, medium = source.columns, MEDIA[spec.format.modality]
    input_column = folder.column(known, spec.input, "input")
    label_column = folder.column(known, spec.label, "label")
    id_column = spec.client_id if spec.client_id in known else None
    apart_column, apart_value = spec.apart if spec.apart and spec.apart[0] in known else (None, "")
    group_column = spec.group if spec.group in known else None
    columns = [
        *joined_columns(input_column),
        label_column,
        *filter(None, [id_column, apart_column, group_column]),
    ]
    labels: list[str] = []
    client_ids: list[str | None] = []
    apart: list[bool] = []
    rows: list[int] = []
    groups: list[str] = []
    unreadable, unlabelled, excluded, without_id = list[Any](), list[Any](), list[Any](), list[Any]()
    damaged: dict[str | None, Any] = {}
    ownerless: dict[str, Any] = {}
    row = 0
    with replacing(path) as temporary, ThreadPoolExecutor() as pool, temporary.open("wb") as file:
        _write_header(file, 0, spec.format)
        for batch in source.batches(columns, label_column):
            cells = [folder.content(cell) for cell in joined_cells(batch, input_column)]
            tasks = (cells[first : first + DECODE_ROWS] for first in range(0, len(cells), DECODE_ROWS))
            arrays = itertools.chain.from_iterable(pool.map(partial(_encode_cells, spec.format), tasks))
            batch_ids = _texts(batch[id_column], id_column, "client_id") if id_column else [""] * len(cells)
            batch_apart = (
                [cell_text(cell) == apart_value for cell in batch[apart_column]]
                if apart_column
                else [False] * len(cells)
            )
            batch_groups = (
                _texts(batch[group_column], group_column, "group") if group_column else [""] * len(cells)
            )
            for cell, array, label, client_id, is_apart, group in zip(
                cells, arrays, batch[label_column], batch_ids, batch_apart, batch_groups, strict=True
            ):
                if array is None:
                    unreadable.append(folder.file_of(cell) or row)
                    damaged.setdefault(label, unreadable[-1])
                elif label is None:
                    unlabelled.append(folder.file_of(cell) or row)
                elif label in spec.without:
                    excluded.append(folder.file_of(cell) or row)
                elif client_id is None and split == "train":  # test sets need no client ids
                    without_id.append(folder.file_of(cell) or row)
                    ownerless.setdefault(label, without_id[-1])
                else:
                    file.write(array.tobytes())
                    labels.append(label)
                    client_ids.append(client_id)
                    apart.append(is_apart)
                    rows.append(row)
                    groups.append(f"row {row} of {split}" if group is None else group)
                row += 1
            advance(len(cells))
            if len(unreadable) == row >= HOPELESS_ROWS:
                break  # another column holds the content
        if not labels:
            where = f"split {split} of {folder.path}"
            if without_id:
                raise InputError(
                    f"data.client_id: column {id_column!r} of {where} is empty; fill it, or remove it"
                )
            if unlabelled:
                raise InputError(
                    f"data.label: column {label_column!r} of {where} is empty; name another column"
                )
            if any(isinstance(name, str) for name in unreadable):
                raise InputError(
                    f"data.path: none of the {row} files of {where} can be read as {medium.what} (such as"
                    f" {unreadable[0]}); replace them"
                )
            raise InputError(
                f"data.input: none of the {row} cells of column {input_column!r} can be read as"
                f" {medium.what} in {where}; name another column"
            )
        for label in damaged.keys() - {None, *labels, *spec.without}:
            raise InputError(
                f"data.path: none of the {medium.what} of class {label!r} in split {split} of {folder.path}"
                f" can be read (such as {'row ' if isinstance(damaged[label], int) else ''}{damaged[label]});"
                " replace them, or remove the class"
            )
        for label in ownerless.keys() - {*labels}:
            raise InputError(
                f"data.client_id: none of the {medium.what} of class {label!r} in split {split} of"
                f" {folder.path} has a value in column {id_column!r} (such as"
                f" {'row ' if isinstance(ownerless[label], int) else ''}{ownerless[label]}); fill it, or"
                " remove the class"
            )
        file.seek(0)
        _write_header(file, len(labels), spec.format)
    left_out = {
        "cannot be read": unreadable,
        "have no label": unlabelled,
        "are of excluded classes": excluded,
        f"have no {id_column}": without_id,
    }
    classes = source.classes(label_column)
    return _Rows(
        split,
        labels,
        client_ids if id_column else None,
        apart,
        rows,
        classes,
        left_out,
        groups if group_column else None,
    )


def _texts(cells: Sequence[Any], column: str, field: str) -> list[str | None]:
    """Return the values of cells as texts; None for empty ones.

    Raises:
        InputError: A cell holds several values.
    """
    for cell in cells:
        if isinstance(cell, list | dict | bytes):
            raise InputError(
                f"data.{field}: column {column!r} holds {type(cell).__name__} values, but an example has one;"
                " name another column"
            )
    return [cell_text(cell) for cell in cells]


def _write_header(file: BinaryIO, rows: int, encoding: InputFormat) -> None:
    """Write the header of a .npy file; its length does not depend on the number of rows."""
    dtype = np.lib.format.dtype_to_descr(encoding.dtype())
    header = {"descr": dtype, "fortran_order": False, "shape": (rows, *encoding.shape())}
    np.lib.format.write_array_header_1_0(file, header)


def _encode_cells(encoding: InputFormat, cells: Sequence[Any]) -> list[np.ndarray | None]:
    """Return the array of each cell; None for a cell that cannot be read."""
    read, arrays = MEDIA[encoding.modality].read, list[np.ndarray | None]()
    for cell in cells:
        try:
            arrays.append(encoding.encode(read(cell)))
        except InputError:  # a library is not installed, or the tokenizer is unsuitable
            raise
        except Exception:  # decoders raise many types on damaged files
            arrays.append(None)
    return arrays


def _facts(rows: _Rows, names: Sequence[str]) -> dict[str, Any]:
    """Return the facts about a split that the cache stores, with labels as indices into the names."""
    index = {name: number for number, name in enumerate(names)}
    for label in rows.labels:
        if label not in index:
            raise InputError(
                f"data.label: split {rows.split} has the label {label!r}, which is none of the {len(names)}"
                f" classes ({first_few(names)}); correct it, or name another column"
            )
    labels = [index[label] for label in rows.labels]
    return {
        "labels": labels,
        "client_ids": rows.client_ids,
        "rows": rows.rows,
        "groups": rows.groups,
        "left_out": rows.left_out,
    }


def _choose_test(train: _Rows, labels: Sequence[int], spec: DatasetSpec) -> tuple[np.ndarray, str]:
    """Choose the examples of the training set that become the test set, and describe the choice."""
    if any(train.apart) and not all(train.apart):
        return np.asarray(train.apart), " ".join(spec.apart or ())
    if train.groups is not None:
        grouped = _draw_fifth_of_groups(labels, train.groups, spec.group or "")
        return grouped, f"a fifth of each class, by whole {spec.group}, drawn at random,"
    reason = f"{' '.join(spec.apart)} does not divide it, so " if spec.apart else ""
    return _draw_fifth(np.asarray(labels)), f"{reason}a fifth of each class, drawn at random,"


def _set_apart(
    folder: Path,
    train: dict[str, Any],
    tested: np.ndarray,
    encoding: InputFormat,
    kept: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """Divide the training set into train and test, and return the facts about both.

    Args:
        folder: The folder of the arrays.
        train: The facts about the whole training set.
        tested: For each example, whether it belongs to the test set, bool [n].
        encoding: The format of the arrays.
        kept: For each example, whether it belongs to either set, bool [n]; None for all.
    """
    trained = ~tested if kept is None else kept & ~tested
    inputs = np.load(folder / "train.npy", mmap_mode="r")  # stays readable when train.npy is replaced
    return {
        split: {
            **_write_rows(inputs, train, np.flatnonzero(chosen), folder / f"{split}.npy", encoding),
            **({} if split == "train" else {"left_out": {}}),
        }
        for split, chosen in (("test", tested), ("train", trained))
    }


def _write_rows(
    inputs: np.ndarray, facts: dict[str, Any], rows: np.ndarray, path: Path, encoding: InputFormat
) -> dict[str, Any]:
    """Write some rows of a split into a .npy file, and return the facts about them."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        _write_header(file, len(rows), encoding)
        for first in range(0, len(rows), BATCH_ROWS):
            # not through a memory map, which a full disk ends with a signal instead of an error
            file.write(inputs[rows[first : first + BATCH_ROWS]].tobytes())
    chosen = {
        name: [facts[name][row] for row in rows] if facts[name] else None
        for name in ("labels", "client_ids", "rows", "groups")
    }
    return {**facts, **chosen}


def _draw_from_clients(
    client_ids: Sequence[str | None] | None, drawn: DrawnTest
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a test set from the clients.

    Returns:
        For each example, whether it was drawn, and whether its client has enough samples.
    """
    if client_ids is None:
        raise InputError(
            f"data.test_from: {drawn.by}, but the data names no clients; name their column as data.client_id"
        )
    _, owner, sizes = np.unique([name or "" for name in client_ids], return_inverse=True, return_counts=True)
    rng, tested = np.random.default_rng(0), np.zeros(len(owner), dtype=bool)
    large = np.flatnonzero(sizes >= drawn.least)
    if drawn.by == "clients":
        kept = int((1 - drawn.share) * len(large) + 1e-9)
        tested = np.isin(owner, rng.permutation(large)[kept:])
    else:
        rows_of = np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])
        for client in large:
            kept = max(1, int((1 - drawn.share) * sizes[client] + 1e-9))
            tested[rng.permutation(rows_of[client])[kept:]] = True
    if not tested.any() or tested.all():
        raise InputError(
            f"data.test_share: {drawn.share:g} of {len(large)} clients with {drawn.least} samples or more"
            " leaves the training or the test set empty; change it"
        )
    return tested, np.isin(owner, large)


def _draw_fifth_of_groups(labels: Sequence[int], groups: Sequence[str], column: str) -> np.ndarray:
    """Draw groups that hold a fifth of each class, and return for each example whether it was drawn.

    A group belongs to the class of most of its examples.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    by_class: dict[int, list[str]] = {}
    for group, rows in members.items():
        counts = Counter(labels[row] for row in rows)
        by_class.setdefault(max(counts, key=lambda label: (counts[label], -label)), []).append(group)
    rng, tested = np.random.default_rng(0), np.zeros(len(labels), dtype=bool)
    for label in sorted(by_class):
        names = by_class[label]
        if len(names) < 2:
            raise InputError(
                f"data.group: a class has a single {column}, {names[0]!r}, and cannot be divided into train"
                " and test; add a test split"
            )
        wanted = sum(len(members[name]) for name in names) / 5
        count = 0
        for number in rng.permutation(len(names))[1:]:  # one stays in train
            if count >= wanted:
                break
            tested[members[names[number]]] = True
            count += len(members[names[number]])
    return tested


def _draw_fifth(labels: np.ndarray) -> np.ndarray:
    """Draw a fifth of each class at random, and return for each example whether it was drawn."""
    from sklearn.model_selection import train_test_split

    if np.bincount(labels)[labels].min() < 2:
        raise InputError(
            "data.path: there is no test split, and a class with a single example cannot be divided into"
            " train and test; add a test split"
        )
    size = max(len(np.unique(labels)), round(len(labels) / 5))
    rows = np.arange(len(labels))
    _, tested = train_test_split(rows, test_size=size, stratify=labels, random_state=0)
    return np.isin(rows, tested)


def _left_out(split: str, facts: dict[str, Any], what: str) -> list[str]:
    """Describe the examples of a split that are left out, by reason."""
    return [
        f"{len(rows)} {what} of {split} {reason} and are left out:"
        f" {'' if isinstance(rows[0], str) else 'rows '}{first_few(rows)}"
        for reason, rows in facts["left_out"].items()
        if rows
    ]


DARK = 32
"""The brightest pixel of a set of images, of 255, below which they may hold fewer bits than they claim."""


def _darkness(path: Path, spec: DatasetSpec) -> str | None:
    """Say that images are nearly black, as those of 12 bits in files of 16 are; None if they are not."""
    if spec.format.modality != "image":
        return None
    brightest = int(np.load(path, mmap_mode="r").max())
    if brightest >= DARK:
        return None
    return f"images are nearly black: the brightest pixel is {brightest} of 255; scale the files' values"
