"""Data sets decoded once, into arrays that are memory-mapped from then on."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock

from genfl import progress
from genfl.data.folders import BATCH, Folder, first_line, said, some
from genfl.data.forms import Form
from genfl.data.media import MEDIA
from genfl.errors import GenflError, InputError
from genfl.storage import digest, read_json, replacing, sha256, write_json

log = logging.getLogger(__name__)

VERSION = 5
"""Of what the cache holds: a change of the code below that changes arrays raises it."""

TESTS = ("test", "validation")
"""Splits that serve as the test set, the first there is; without one, a fifth of each class of train."""

TASK = 16
"""Examples that a thread decodes at a time."""


class Wanted(NamedTuple):
    """What is taken of a data set, and in what form.

    Attributes:
        input: Names that the column of the examples may have.
        label: Names that the column of the classes may have.
        key: The column that says whose an example is, if there.
        form: What the examples are turned into.
        apart: Where there is no test split, the column and the value in it of the examples that are the test
            set: clips of one recording, for example, do not belong on both sides. None for a fifth of each
            class.
        without: The names of classes that are left out.
    """

    input: tuple[str, ...]
    label: tuple[str, ...]
    key: str | None
    form: Form
    apart: tuple[str, str] | None = None
    without: tuple[str, ...] = ()


class Split(NamedTuple):
    """A decoded split.

    Attributes:
        inputs: Of the form's shape and dtype, [n, ...], memory-mapped; a write to it reaches no file.
        labels: The class of each, a place in the names.
        keys: Whose each is, of train's always somebody's; None where the data does not say of any.
        rows: Where each is in the files, counted over the split that they have it in.
    """

    inputs: np.ndarray
    labels: list[int]
    keys: list[str] | None
    rows: list[int]


class Decoded(NamedTuple):
    """A decoded data set.

    Attributes:
        names: What the data calls its classes, in its order.
        train: The training set.
        test: The test set.
        digest: Of the files' content and what was wanted of it, wherever they are.
    """

    names: list[str]
    train: Split
    test: Split
    digest: str


def load(path: Path, wanted: Wanted) -> Decoded:
    """Reads a local data set, from the cache if it was read before.

    What cannot be read is left out, with a warning that counts it; so are examples of classes that are not
    wanted, and examples to train on that are nobody's where others are somebody's.

    Args:
        path: A folder with Parquet files in the Hugging Face layout, with one folder of image or sound files
            for each class, with CSV or JSONL tables of texts, or written by ``save_to_disk``.
        wanted: Columns and form.

    Raises:
        InputError: Any of it is not there or not as it must be.
    """
    medium = MEDIA[wanted.form.modality]
    folder = Folder(path, medium)
    form = [wanted.form.modality, *wanted.form.identity()]
    key = digest([VERSION, folder.identity(), {**wanted._asdict(), "form": form}])
    place = _cache() / key[:32]
    with FileLock(f"{place}.lock"):
        facts = _intact(place)
        if facts is None:
            try:
                _decode(folder, wanted, place)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
            facts = _intact(place)
    if facts is None:
        raise GenflError(f"{place} is damaged while it is written; is the disk in order?")
    for note in facts["notes"]:
        log.info("%s: %s", path, note)
    for name, split in facts["splits"].items():
        _warn_of_left_out(name, split, medium.what)
    train, test = (_split(place, name, facts["splits"][name]) for name in ("train", "test"))
    return Decoded(facts["names"], train, test, key)


def _split(place: Path, name: str, facts: dict[str, Any]) -> Split:
    inputs = np.load(place / f"{name}.npy", mmap_mode="c")  # torch has no read-only tensors
    return Split(inputs, facts["labels"], facts["keys"], facts["rows"])


def contents(path: Path, wanted: Wanted, rows: Sequence[int]) -> list[Any]:
    """Reads examples to train on as they are in their files: images, clips or texts.

    Args:
        path: As of `load`.
        wanted: As of `load`.
        rows: Where they are, as `Split.rows` says.
    """
    medium = MEDIA[wanted.form.modality]
    folder = Folder(path, medium)
    stream = folder.splits()[0]["train"]
    given = folder.column(stream.features, wanted.input, "input")
    cells = itertools.chain.from_iterable(batch[given] for batch in folder.batches(stream, [given]))
    asked = set(rows)
    found = {row: medium.read(cell) for row, cell in enumerate(cells) if row in asked}
    return [found[row] for row in rows]


def _cache() -> Path:
    place = Path(os.environ.get("GENFL_CACHE") or Path.home() / ".cache" / "genfl").expanduser() / "data"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"GENFL_CACHE: {place} cannot be made ({error.strerror}); name another folder"
        ) from error
    return place


def _intact(place: Path) -> dict[str, Any] | None:
    """Returns what the cache says of a data set; None where there is nothing, or nothing whole."""
    if not (place / "about.json").exists():
        return None
    try:
        about = read_json(place / "about.json")
        if about["digest"] != digest(about["facts"]):
            raise GenflError(f"{place / 'about.json'} has another checksum")
        facts: dict[str, Any] = about["facts"]
        for name, split in facts["splits"].items():
            if sha256(place / f"{name}.npy") != split["sha256"]:
                raise GenflError(f"{place / name}.npy has another checksum")
        return facts
    except (GenflError, OSError, LookupError, TypeError) as error:
        log.warning("the data is decoded again, because the cache is damaged: %s", first_line(error))
        return None


def _decode(folder: Folder, wanted: Wanted, place: Path) -> None:
    """Writes the arrays of train and test, and last what says that they are whole."""
    streams, total = folder.splits()
    if "train" not in streams:
        raise InputError(f"data.path: no train split in {folder.path}; there are: {', '.join(streams)}")
    (place / "about.json").unlink(missing_ok=True)
    used = ("train", *[name for name in TESTS if name in streams][:1])
    unused = [f"split {name} is not used" for name in streams if name not in used]
    with progress.bar("decode", total, MEDIA[wanted.form.modality].what) as advance:
        rows = {
            split: _write(folder, streams[name], name, wanted, place / f"{split}.npy", advance)
            for split, name in zip(("train", "test"), used, strict=False)
        }
    names = rows["train"].classes or sorted(set(rows["train"].labels))
    splits = {split: _facts(read, names) for split, read in rows.items()}
    if len(set(splits["train"]["labels"])) < 2:
        raise InputError("data.label: all examples of train are of one class; name a column with several")
    notes = unused
    if "test" not in splits:
        tested, which = _tested(rows["train"], splits["train"]["labels"], wanted)
        splits = _set_apart(place, splits["train"], tested)
        notes = [*unused, f"there is no test split; {which} is the test set"]
    untaught = sorted({*splits["test"]["labels"]} - {*splits["train"]["labels"]})
    if untaught:
        raise InputError(
            "data.label: train has no example of classes of the test set"
            f" ({some([names[number] for number in untaught])}); add some, or take these classes out of it"
        )
    for split, facts in splits.items():
        facts["sha256"] = sha256(place / f"{split}.npy")
    content = {"names": list(names), "splits": splits, "notes": notes}
    write_json(place / "about.json", {"digest": digest(content), "facts": content})


class _Rows(NamedTuple):
    """What was read of a split.

    Attributes:
        split: What the data calls it.
        labels: The class's name of each example that is kept.
        keys: Whose each is; None where the data does not say.
        apart: Whether each is of those that are to be the test set where there is no test split.
        rows: Where each is in the split's files.
        classes: The names of all classes in the split's order, if it has one.
        left_out: The rows that are not kept, or their files, by what they are or do.
    """

    split: str
    labels: list[str]
    keys: list[str | None] | None
    apart: list[bool]
    rows: list[int]
    classes: list[str]
    left_out: dict[str, list[Any]]


def _write(
    folder: Folder, stream: Any, split: str, wanted: Wanted, path: Path, advance: progress.Advance
) -> _Rows:
    """Decodes a split into a file."""
    features, medium = stream.features, MEDIA[wanted.form.modality]
    given = folder.column(features, wanted.input, "input")
    label = folder.column(features, wanted.label, "label")
    name = folder.namer(features, label)
    key = wanted.key if wanted.key in features else None
    column, value = wanted.apart if wanted.apart and wanted.apart[0] in features else (None, "")
    columns = [given, label, *filter(None, [key, column])]
    labels: list[str] = []
    keys: list[str | None] = []
    apart: list[bool] = []
    rows: list[int] = []
    unreadable, unlabelled, unwanted, nobodys = list[Any](), list[Any](), list[Any](), list[Any]()
    seen = 0
    with replacing(path) as temporary, ThreadPoolExecutor() as pool, temporary.open("wb") as file:
        _write_header(file, 0, wanted.form)
        for batch in folder.batches(stream, columns):
            cells = batch[given]
            tasks = (cells[first : first + TASK] for first in range(0, len(cells), TASK))
            arrays = itertools.chain.from_iterable(pool.map(partial(_arrays, wanted.form), tasks))
            named = map(name, batch[label])
            given_keys = batch[key] if key else [""] * len(cells)
            owners = [said(owner) for owner in given_keys]
            asked = [said(cell) == value for cell in batch[column]] if column else [False] * len(cells)
            for cell, array, called, owner, here in zip(cells, arrays, named, owners, asked, strict=True):
                if array is None:
                    unreadable.append(folder.place(cell) or seen)
                elif called is None:
                    unlabelled.append(folder.place(cell) or seen)
                elif called in wanted.without:
                    unwanted.append(folder.place(cell) or seen)
                elif owner is None and split == "train":  # of a test set, nobody asks whose it is
                    nobodys.append(folder.place(cell) or seen)
                else:
                    file.write(array.tobytes())
                    labels.append(called)
                    keys.append(owner)
                    apart.append(here)
                    rows.append(seen)
                seen += 1
            advance(len(cells))
        if not labels:
            where = f"split {split} of {folder.path}"
            if nobodys:
                raise InputError(f"data.key: column {key!r} of {where} is empty; fill it, or take it away")
            if unlabelled:
                raise InputError(f"data.label: column {label!r} of {where} is empty; name another column")
            raise InputError(
                f"data.input: none of the {seen} cells of column {given!r} can be read as {medium.what} in"
                f" {where}; name another column"
            )
        file.seek(0)
        _write_header(file, len(labels), wanted.form)
    left_out = {
        "cannot be read": unreadable,
        "have no label": unlabelled,
        "are of classes that are not wanted": unwanted,
        f"have no {key}": nobodys,
    }
    classes = getattr(features[label], "names", None) or []
    return _Rows(split, labels, keys if key else None, apart, rows, classes, left_out)


def _write_header(file: BinaryIO, rows: int, form: Form) -> None:
    """Writes the header of a .npy file, which is as long whatever the number of rows."""
    kind = np.lib.format.dtype_to_descr(form.dtype())
    header = {"descr": kind, "fortran_order": False, "shape": (rows, *form.shape())}
    np.lib.format.write_array_header_1_0(file, header)


def _arrays(form: Form, cells: Sequence[Any]) -> list[np.ndarray | None]:
    """Returns what is stored of each cell, None for one that cannot be read."""
    read, found = MEDIA[form.modality].read, list[np.ndarray | None]()
    for cell in cells:
        try:
            found.append(form.encode(read(cell)))
        except InputError:  # a library that is not installed
            raise
        except Exception:  # decoders raise what they like on damaged files
            found.append(None)
    return found


def _facts(rows: _Rows, names: Sequence[str]) -> dict[str, Any]:
    """Returns what the cache says of a split, with labels as places in the names."""
    place = {name: number for number, name in enumerate(names)}
    for label in rows.labels:
        if label not in place:
            raise InputError(
                f"data.label: split {rows.split} has the label {label!r}, which is none of the {len(names)}"
                f" classes ({some(names)}); correct it, or name another column"
            )
    labels = [place[label] for label in rows.labels]
    return {"labels": labels, "keys": rows.keys, "rows": rows.rows, "left_out": rows.left_out}


def _tested(train: _Rows, labels: Sequence[int], wanted: Wanted) -> tuple[np.ndarray, str]:
    """Chooses the examples of the training set that are the test set, and says which they are."""
    if any(train.apart) and not all(train.apart):
        return np.asarray(train.apart), " ".join(wanted.apart or ())
    else_what = f"{' '.join(wanted.apart)} does not divide it, so " if wanted.apart else ""
    return _fifth(np.asarray(labels)), f"{else_what}a fifth of each class, drawn at random,"


def _set_apart(place: Path, train: dict[str, Any], tested: np.ndarray) -> dict[str, dict[str, Any]]:
    """Divides the training set, and returns what the cache says of both parts.

    Args:
        place: Where the arrays are.
        train: What the cache says of the whole.
        tested: For each example, whether it is for the test set.
    """
    inputs = np.load(place / "train.npy", mmap_mode="r")  # of which nothing changes when its name goes on
    facts = {}
    for split, chosen in (("test", tested), ("train", ~tested)):
        rows = np.flatnonzero(chosen)
        with replacing(place / f"{split}.npy") as temporary:
            part = np.lib.format.open_memmap(temporary, "w+", inputs.dtype, (len(rows), *inputs.shape[1:]))
            for first in range(0, len(rows), BATCH):
                part[first : first + BATCH] = inputs[rows[first : first + BATCH]]
            part.flush()
        facts[split] = {
            "labels": [train["labels"][row] for row in rows],
            "keys": [train["keys"][row] for row in rows] if train["keys"] else None,
            "rows": [train["rows"][row] for row in rows],
            "left_out": train["left_out"] if split == "train" else {},
        }
    return facts


def _fifth(labels: np.ndarray) -> np.ndarray:
    """Returns for each example whether it is of the fifth of its class that is drawn at random."""
    from sklearn.model_selection import train_test_split

    if np.bincount(labels)[labels].min() < 2:
        raise InputError(
            "data.path: there is no test split, and none can be set apart because a class has a single"
            " example; add a folder test, or files named so"
        )
    size = max(len(np.unique(labels)), round(len(labels) / 5))
    rows = np.arange(len(labels))
    _, tested = train_test_split(rows, test_size=size, stratify=labels, random_state=0)
    return np.isin(rows, tested)


def _warn_of_left_out(split: str, facts: dict[str, Any], what: str) -> None:
    for why, rows in facts["left_out"].items():
        if rows:
            where = f"{'' if isinstance(rows[0], str) else 'rows '}{some(rows)}"
            log.warning("%d %s of %s %s and are left out: %s", len(rows), what, split, why, where)
