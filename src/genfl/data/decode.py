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
from genfl.data.folders import Folder, first_line
from genfl.data.forms import Form
from genfl.data.media import MEDIA
from genfl.errors import GenflError, InputError
from genfl.storage import digest, read_json, replacing, sha256, write_json

log = logging.getLogger(__name__)

VERSION = 4
"""Of what the cache holds: a change of the code below that changes arrays raises it."""

TESTS = ("test", "validation")
"""Splits that serve as the test set, the first there is; without one, a fifth of each class of train."""

TASK = 64
"""Examples that a thread decodes at a time."""

SHOWN = 5


class Wanted(NamedTuple):
    """What is taken of a data set, and in what form.

    Attributes:
        input: Names that the column of the examples may have.
        label: Names that the column of the classes may have.
        key: The column that says whose an example is, if there.
        form: What the examples are turned into.
        test_key: Where there is no test split, whose examples are the test set: clips of one recording, for
            example, do not belong on both sides. None for a fifth of each class.
        without: The numbers of classes that are left out.
    """

    input: tuple[str, ...]
    label: tuple[str, ...]
    key: str | None
    form: Form
    test_key: str | None = None
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
    folder = Folder(path)
    medium = MEDIA[wanted.form.modality]
    form = [wanted.form.modality, *wanted.form.identity()]
    key = digest([VERSION, folder.identity(medium), {**wanted._asdict(), "form": form}])
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
    for name, split in facts["splits"].items():
        _warn_of_left_out(name, split, medium.what)
    train, test = (
        # "c": torch has no read-only tensors
        Split(np.load(place / f"{name}.npy", mmap_mode="c"), split["labels"], split["keys"], split["rows"])
        for name, split in facts["splits"].items()
    )
    return Decoded(facts["names"], train, test, key)


def contents(path: Path, wanted: Wanted, rows: Sequence[int]) -> list[Any]:
    """Reads examples to train on as they are in their files: images, clips or texts.

    Args:
        path: As of `load`.
        wanted: As of `load`.
        rows: Where they are, as `Split.rows` says.
    """
    folder, medium = Folder(path), MEDIA[wanted.form.modality]
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
    tests = [name for name in TESTS if name in streams]
    with progress.bar("decode", total, MEDIA[wanted.form.modality].what) as advance:
        rows = {
            split: _write(folder, streams[name], name, wanted, place / f"{split}.npy", advance)
            for split, name in zip(("train", "test"), ("train", *tests), strict=False)
        }
    names = rows["train"].classes or sorted({label for label in rows["train"].labels if label is not None})
    splits = {split: _facts(read, names) for split, read in rows.items()}
    if len(set(splits["train"]["labels"])) < 2:
        raise InputError("data.label: all examples of train are of one class; name a column with several")
    if "test" not in splits:
        splits["test"] = _set_apart(place, splits["train"], folder, wanted)
    untaught = sorted({*splits["test"]["labels"]} - {*splits["train"]["labels"]})
    if untaught:
        raise InputError(
            "data.label: train has no example of classes of the test set"
            f" ({_some([names[number] for number in untaught])}); add some, or take these classes out of it"
        )
    for split, facts in splits.items():
        facts["sha256"] = sha256(place / f"{split}.npy")
    content = {"names": list(names), "splits": splits}
    write_json(place / "about.json", {"digest": digest(content), "facts": content})


class _Rows(NamedTuple):
    """What was read of a split.

    Attributes:
        split: What the data calls it.
        labels: Of each example that is kept: a place in `classes`, or where there are none, a name.
        keys: Whose each is; None where the data does not say.
        rows: Where each is in the split's files.
        classes: What the split calls its classes, if it does; another split may number them differently.
        left_out: The rows that are not kept, by what they are or do.
    """

    split: str
    labels: list[Any]
    keys: list[str | None] | None
    rows: list[int]
    classes: list[str]
    left_out: dict[str, list[int]]


def _write(
    folder: Folder, stream: Any, split: str, wanted: Wanted, path: Path, advance: progress.Advance
) -> _Rows:
    """Decodes a split into a file."""
    features, medium = stream.features, MEDIA[wanted.form.modality]
    given = folder.column(features, wanted.input, "input")
    label = folder.column(features, wanted.label, "label")
    folder.check_names(label)
    key = wanted.key if wanted.key in features else None
    columns = [given, label, *([key] if key else [])]
    labels: list[Any] = []
    keys: list[str | None] = []
    rows: list[int] = []
    unreadable, unwanted, nobodys = list[int](), list[int](), list[int]()
    seen = 0
    with replacing(path) as temporary, ThreadPoolExecutor() as pool, temporary.open("wb") as file:
        _write_header(file, 0, wanted.form)
        for batch in folder.batches(stream, columns):
            start = seen
            cells = batch[given]
            tasks = (cells[first : first + TASK] for first in range(0, len(cells), TASK))
            good = []
            arrays = itertools.chain.from_iterable(pool.map(partial(_arrays, wanted.form), tasks))
            given_keys = batch[key] if key else [""] * len(cells)
            owners = [None if owner is None else str(owner) for owner in given_keys]
            for array, value, owner in zip(arrays, batch[label], owners, strict=True):
                if array is None:
                    unreadable.append(seen)
                elif str(value) in wanted.without:
                    unwanted.append(seen)
                elif owner is None and split == "train":  # of a test set, nobody asks whose it is
                    nobodys.append(seen)
                else:
                    good.append(seen - start)
                    file.write(array.tobytes())
                seen += 1
            labels += map(batch[label].__getitem__, good)
            keys += map(owners.__getitem__, good)
            rows += [start + place for place in good]
            advance(len(cells))
        if nobodys and not labels:
            raise InputError(f"data.key: column {key!r} of {folder.path} is empty; fill it, or take it away")
        if not labels:
            raise InputError(
                f"data.input: none of the {seen} cells of column {given!r} can be read as {medium.what}"
                f" in split {split} of {folder.path}; name another column"
            )
        file.seek(0)
        _write_header(file, len(labels), wanted.form)
    classes = getattr(features[label], "names", None) or []
    if not classes:
        labels = [value if value is None else str(value) for value in labels]
    left_out = {
        "cannot be read": unreadable,
        "are of classes that are not wanted": unwanted,
        f"have no {key}": nobodys,
    }
    return _Rows(split, labels, keys if key else None, rows, classes, left_out)


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


def _facts(rows: _Rows, names: Sequence[Any]) -> dict[str, Any]:
    """Returns what the cache says of a split, with labels as places in the names."""
    place = {name: number for number, name in enumerate(names)}
    called = dict(enumerate(rows.classes)) if rows.classes else {name: name for name in rows.labels}
    for value in rows.labels:
        if called.get(value) not in place:
            raise InputError(
                f"data.label: split {rows.split} has the label {called.get(value, value)!r}, which is none of"
                f" the {len(names)} classes ({_some(names)}); correct it, or name another column"
            )
    labels = [place[called[value]] for value in rows.labels]
    return {"labels": labels, "keys": rows.keys, "rows": rows.rows, "left_out": rows.left_out}


def _set_apart(place: Path, train: dict[str, Any], folder: Folder, wanted: Wanted) -> dict[str, Any]:
    """Makes a part of the training set the test set, and returns what the cache says of it."""
    labels, keys = np.asarray(train["labels"]), train["keys"]
    theirs = np.asarray(keys) == wanted.test_key if keys and wanted.test_key else np.zeros(0, bool)
    if theirs.any() and not theirs.all():
        log.info("no test split in %s: %s %s is the test set", folder.path, wanted.key, wanted.test_key)
        kept, tested = np.flatnonzero(~theirs), np.flatnonzero(theirs)
    else:
        log.info("no test split in %s: a fifth of each class is the test set", folder.path)
        kept, tested = _fifth(labels)
    inputs = np.load(place / "train.npy", mmap_mode="r")
    facts = {}
    for split, rows in (("test", np.sort(tested)), ("train", np.sort(kept))):
        with replacing(place / f"{split}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, inputs[rows])
        chosen = [keys[row] for row in rows] if keys else None
        places = [train["rows"][row] for row in rows]
        facts[split] = {"labels": labels[rows].tolist(), "keys": chosen, "rows": places, "left_out": {}}
    train |= {**facts["train"], "left_out": train["left_out"]}
    return facts["test"]


def _fifth(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into four fifths and one of each class."""
    from sklearn.model_selection import train_test_split

    if np.bincount(labels)[labels].min() < 2:
        raise InputError(
            "data.path: there is no test split, and none can be set apart because a class has a single"
            " example; add a folder test, or files named so"
        )
    size = max(len(np.unique(labels)), round(len(labels) / 5))
    kept, tested = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=0)
    return kept, tested


def _warn_of_left_out(split: str, facts: dict[str, Any], what: str) -> None:
    for why, rows in facts["left_out"].items():
        if rows:
            log.warning("%d %s of %s %s and are left out: rows %s", len(rows), what, split, why, _some(rows))


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")
