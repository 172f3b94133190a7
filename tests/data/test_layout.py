"""Which files of a folder are read, and that none is passed over without a word."""

import gzip
import io
import itertools
import json
import os
import random
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from genfl.data import folders
from genfl.data.decode import DatasetSpec, load_folder
from genfl.data.folders import Folder
from genfl.data.formats import PixelFormat
from genfl.data.media import MEDIA
from genfl.data.sounds import LogMelFormat
from genfl.data.sources import DATASETS
from genfl.data.texts import TokenFormat
from genfl.errors import InputError
from genfl.natural_order import in_natural_order

from .helpers import png, tables, tone, wav

COUNTER = iter(range(10**9))


@pytest.fixture
def folder(tmp_path):
    """A folder of data, beside the cache."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def picture(path, **options):
    """Writes an image that no other test writes; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(COUNTER)
    pixels = np.full((4, 6, 3), 90, np.uint8)
    pixels[0, 0] = (number % 256, number // 256 % 256, 7)
    Image.fromarray(pixels).save(path, **options)
    return path


def pictures(folder, *paths, count=6):
    for path in paths:
        for number in range(count):
            picture(folder / path / f"{number}.png")
    return folder


def images(folder, **options):
    return DATASETS["images"].load(path=str(folder), **{"size": (4, 6), **options})


def rejected(read, *parts):
    with pytest.raises(InputError) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line


def counts(examples):
    return {label: examples.labels.count(label) for label in dict.fromkeys(sorted(examples.labels))}


# --- which files are examples


def test_linked_folders_and_files_are_read(tmp_path):
    pictures(tmp_path / "elsewhere", "birds")
    pictures(tmp_path / "d", "cat", "dog")
    (tmp_path / "d" / "bird").symlink_to(tmp_path / "elsewhere" / "birds")
    (tmp_path / "d" / "cat" / "linked.png").symlink_to(picture(tmp_path / "elsewhere" / "one.png"))
    data = images(tmp_path / "d")
    assert len(data.train.labels) + len(data.test.labels) == 19
    before = data.digest
    picture(tmp_path / "elsewhere" / "birds" / "more.png")
    assert images(tmp_path / "d").digest != before, "the digest covers what links lead to"


def test_links_that_lead_nowhere_or_back_are_rejected(tmp_path):
    pictures(tmp_path / "d", "cat", "dog")
    (tmp_path / "d" / "bird").symlink_to(tmp_path / "gone")
    rejected(lambda: images(tmp_path / "d"), "data.path: ", "bird cannot be read", "No such file")
    (tmp_path / "d" / "bird").unlink()
    (tmp_path / "d" / "dog" / "again").symlink_to(tmp_path / "d")
    rejected(lambda: images(tmp_path / "d"), "again leads to a folder that holds it")


def test_pipes_are_counted_and_not_opened(tmp_path):
    pictures(tmp_path / "d", "cat", "dog")
    os.mkfifo(tmp_path / "d" / "dog" / "pipe.png")
    assert images(tmp_path / "d").notes[-1] == "1 file not read (not images): dog/pipe.png"


@pytest.mark.parametrize("suffix", [".avif", ".qoi", ".PNG", ".tmp", ""])
def test_images_of_any_suffix_are_read(tmp_path, suffix):
    pictures(tmp_path / "d", "cat", "dog")
    kind = {"": "PNG", ".tmp": "WEBP"}.get(suffix)
    for number in range(6):
        path = tmp_path / "d" / "bird" / f"{number}{suffix}"
        picture(path, **({"format": kind} if kind else {}))
    data = images(tmp_path / "d")
    assert counts(data.train)["bird"] + counts(data.test)["bird"] == 6


@pytest.mark.parametrize("suffix", ["aif", "aiff", "au", "WAV", ""])
def test_sounds_of_any_suffix_are_read(folder, suffix):
    for label in ("low", "high"):
        for number in range(3):
            path = folder / label / (f"{number}.{suffix}" if suffix else f"{number}")
            path.parent.mkdir(exist_ok=True)
            kind = {"aif": "AIFF", "": "FLAC"}.get(suffix, suffix.upper())
            soundfile.write(path, tone(200 + next(COUNTER)), 16_000, format=kind)
    data = DATASETS["sounds"].load(path=str(folder), seconds=1.0)
    assert len(data.train.labels) + len(data.test.labels) == 6


def test_texts_may_be_files_in_class_folders(folder):
    for split in ("train", "test"):
        for label in ("pos", "neg"):
            for number in range(3):
                path = folder / split / label / f"{number}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{label} {split} film {number}")
    (folder / "train" / "notes.txt").write_text("nothing")
    data = DATASETS["texts"].load(path=str(folder), length=4)
    assert (counts(data.train), counts(data.test)) == ({"neg": 3, "pos": 3}, {"neg": 3, "pos": 3})
    assert data.train.x[0].tolist() == TokenFormat(4).encode("neg train film 0").tolist()
    assert any("have no label" in note and "train/notes.txt" in note for note in data.notes)


def test_a_class_without_a_readable_file_is_rejected_by_name(tmp_path):
    pictures(tmp_path / "d", "cat", "dog")
    (tmp_path / "d" / "bird").mkdir()
    rejected(lambda: images(tmp_path / "d"), "data.path: ", "bird", "holds no images")
    (tmp_path / "d" / "bird" / "film.mp4").write_bytes(b"no image")
    rejected(lambda: images(tmp_path / "d"), "bird", "holds no images", "film.mp4")
    (tmp_path / "d" / "bird" / "film.mp4").rename(tmp_path / "d" / "bird" / "cut.png")
    rejected(lambda: images(tmp_path / "d"), "none of the images of class 'bird'", "bird/cut.png")


def test_unread_files_are_in_the_notes(tmp_path):
    pictures(tmp_path / "d", "cat", "dog")
    (tmp_path / "d" / "LICENSE").write_text("free")
    (tmp_path / "d" / "README.md").write_text("# Animals")
    (tmp_path / "d" / ".DS_Store").write_text("")
    (tmp_path / "d" / "cat" / "list.txt").write_text("")
    picture(tmp_path / "d" / "stray.png")
    notes = images(tmp_path / "d").notes
    assert "1 images of train have no label and are left out: stray.png" in notes
    assert "1 file not read (beside the images): LICENSE" in notes
    assert "1 file not read (not images): cat/list.txt" in notes
    assert sum("not read" in note for note in notes) == 2
    assert "there is no test split; a fifth of each class, drawn at random, is the test set" in notes


def test_files_without_examples_do_not_change_the_digest(tmp_path):
    pictures(tmp_path / "d", "cat", "dog")
    before = images(tmp_path / "d").digest
    (tmp_path / "d" / "LICENSE").write_text("free")
    (tmp_path / "d" / os.fsdecode(b"gr\xf6\xdfe.txt")).write_text("bytes that are not UTF-8")
    assert images(tmp_path / "d").digest == before


def test_names_that_are_not_utf8_are_read_or_rejected(tmp_path):
    pictures(tmp_path / "d", "cat", "dog")
    (tmp_path / "d" / "cat" / "0.png").rename(tmp_path / "d" / "cat" / os.fsdecode(b"caf\xe9.png"))
    data = images(tmp_path / "d")
    assert len(data.train.labels) + len(data.test.labels) == 12
    pictures(tmp_path / "d", os.fsdecode(b"caf\xe9"))
    rejected(lambda: images(tmp_path / "d"), "data.path: ", r"caf\xe9", "not UTF-8; rename it")


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_unreadable_folders_are_rejected_and_files_left_out():
    top = Path(tempfile.mkdtemp())  # that another user may enter, which pytest's folders forbid
    try:
        top.chmod(0o755)
        pictures(top / "d", "cat", "dog")
        one = top / "d" / "cat" / "0.png"
        one.chmod(0)
        folder = Folder(top / "d", MEDIA["image"])
        with as_nobody():
            (empty,) = [name for name, checksum in folder.checksums() if not checksum]
        assert empty == "cat/0.png"
        one.chmod(0o644)
        (top / "d" / "dog").chmod(0)
        with as_nobody():
            rejected(lambda: Folder(top / "d", MEDIA["image"]).layout.files, "dog cannot be read", "denied")
    finally:
        (top / "d" / "dog").chmod(0o755)
        shutil.rmtree(top)


class as_nobody:
    """Runs a block without root's right to read everything."""

    def __enter__(self):
        self.user = os.geteuid()
        if self.user == 0:
            os.seteuid(65_534)

    def __exit__(self, *_):
        os.seteuid(self.user)


# --- what folders mean


def test_splits_may_lie_in_class_folders(folder):
    pictures(folder, "cat/train", "dog/train", count=6)
    pictures(folder, "cat/test", "dog/test", count=2)
    data = images(folder)
    assert (counts(data.train), counts(data.test)) == ({"cat": 6, "dog": 6}, {"cat": 2, "dog": 2})


def test_splits_that_are_read_as_one_are_noted(folder, tmp_path):
    pictures(folder, "train/cat", "train/dog", "test/cat", "test/dog", "eval/cat", "eval/dog")
    data = images(folder)
    assert len(data.test.labels) == 24
    assert "eval and test are read as one split, test" in data.notes
    rows = tables(tmp_path / "t", "csv", train=ROWS, test=ROWS[:4], evaluation=ROWS[4:])
    assert "evaluation and test are read as one split, test" in texts(rows).notes
    parts = tables(tmp_path / "parts", "csv", train_1=ROWS, train_2=ROWS, test=ROWS[:4])
    assert not [note for note in texts(parts).notes if "one split" in note], "parts of a split are one"


def test_ambiguous_folders_are_read_as_the_config_says(folder):
    pictures(folder, "north/cat", "north/dog", "south/cat", "south/dog", count=5)
    rejected(lambda: images(folder), "data.folders", "class/*, */class or client/class")
    assert {*images(folder, folders="class/*").train.labels} == {"north", "south"}
    assert {*images(folder, folders="class/**").train.labels} == {"north", "south"}
    assert {*images(folder, folders="*/class").train.labels} == {"cat", "dog"}
    clients = images(folder, folders="client/class").train
    assert {*clients.client_ids} == {"north", "south"}
    assert {*clients.labels} == {"cat", "dog"}


def test_clients_of_folders_keep_their_splits(folder):
    pictures(folder, "c0/train/cat", "c0/train/dog", "c1/train/cat", "c1/train/dog", count=6)
    pictures(folder, "c0/test/cat", "c1/test/dog", count=2)
    rejected(lambda: images(folder), "client/split/class")
    data = images(folder, folders="client/split/class")
    assert (len(data.train.labels), len(data.test.labels)) == (24, 4)
    assert {*data.train.client_ids} == {"c0", "c1"}


def test_a_deeper_folder_is_rejected_by_name(folder):
    pictures(folder, "cat", "dog")
    pictures(folder, "dog/more", count=1)
    rejected(lambda: images(folder), "dog/more/0.png", "lies deeper", "as in class/**")
    assert counts(images(folder, folders="class/**").train) == {"cat": 5, "dog": 5}


def test_a_split_without_labels_is_not_the_test_set(folder):
    pictures(folder, "train/cat", "train/dog", "valid/cat", "valid/dog", count=3)
    pictures(folder, "test", count=90)
    data = images(folder)
    assert (len(data.train.labels), len(data.test.labels)) == (6, 6)
    assert "images of test have no labels" in data.notes


def test_metadata_gives_labels_and_clients(folder):
    for split, count in (("train", 8), ("test", 2)):
        rows = []
        for number in range(count):
            picture(folder / split / "files" / f"{number}.png")
            rows.append(
                {"file_name": f"files/{number}.png", "label": "ab"[number % 2], "hospital": f"h{number % 3}"}
            )
        pd.DataFrame(rows).to_csv(folder / split / "metadata.csv", index=False)
    data = images(folder, client_id="hospital")
    assert (data.train.labels, data.train.client_ids) == (list("abababab"), [f"h{n % 3}" for n in range(8)])
    assert data.test.labels == ["a", "b"]
    picture(folder / "train" / "files" / "unlisted.png")
    assert any("train/files/unlisted.png" in note for note in images(folder, client_id="hospital").notes)
    (folder / "train" / "metadata.csv").write_text("name,label\n0.png,a\n")
    rejected(lambda: images(folder), "metadata.csv", "no column file_name")


def test_metadata_beside_class_folders_adds_clients(folder):
    pictures(folder, "cat", "dog")
    rows = [
        {"file_name": f"{label}/{n}.png", "who": f"w{n % 2}"} for label in ("cat", "dog") for n in range(6)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = images(folder, client_id="who").train
    assert {*data.labels} == {"cat", "dog"}
    assert {*data.client_ids} == {"w0", "w1"}


# --- labels


def test_labels_that_look_alike_are_one_class(tmp_path):
    rows = [
        {"text": f"t{n}", "label": ["happy", "happy ", "caf\u00e9", "cafe\u0301"][n % 4]} for n in range(16)
    ]
    data = DATASETS["texts"].load(path=str(tables(tmp_path / "d", "jsonl", train=rows, test=rows[:4])))
    assert counts(data.train) == {"caf\u00e9": 8, "happy": 8}


@pytest.mark.parametrize(("name", "word"), [("_silence_", "silence"), ("_", "_"), ("sea__lion", "sea lion")])
def test_labels_in_words_have_no_outer_blanks(tmp_path, name, word):
    pictures(tmp_path, name, "other")
    assert word in images(tmp_path).train.labels


def test_labels_hold_no_control_characters(tmp_path):
    rows = [{"text": f"t{n}", "label": ["ok", "bell\x07"][n % 2]} for n in range(10)]
    rejected(
        lambda: texts(tables(tmp_path / "d", "jsonl", train=rows)), "data.label: ", r"'bell\x07'", "rename it"
    )


def test_classes_have_their_natural_order():
    assert in_natural_order(["10", "2", "a10", "a9", "1"]) == ["1", "2", "10", "a9", "a10"]


# --- the content of files


def test_an_image_with_odd_metadata_is_read_and_turned(folder):
    pictures(folder, "cat", "dog")
    # tag 0x0112 turns it, and 0x011A is a resolution as text, which Pillow cannot write back
    entries = struct.pack("<HHHIHHHHIII", 2, 0x0112, 3, 1, 6, 0, 0x011A, 2, 12, 38, 0)
    content = b"Exif\0\0II*\0\x08\0\0\0" + entries + b"seventy-two\0"
    image = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    image.paste("white", (0, 0, 20, 40))
    image.save(folder / "cat" / "odd.jpg", exif=content, quality=95)
    turned = MEDIA["image"].read(folder / "cat" / "odd.jpg")
    assert turned.size == (40, 60)
    assert np.asarray(turned)[:15].min() > 200
    data = images(folder)
    assert len(data.train.labels) + len(data.test.labels) == 13


@pytest.mark.parametrize("kind", ["tiff", "big-endian tiff", "png", "pgm"])
def test_greys_of_sixteen_bits_are_one_kind_of_image(tmp_path, kind):
    grey = (np.arange(24, dtype=np.uint16).reshape(4, 6) * 2_600) + 7
    path = tmp_path / f"deep.{kind.split()[-1]}"
    if kind == "big-endian tiff":
        Image.frombytes("I;16B", (6, 4), grey.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(grey).save(path)
    image = MEDIA["image"].read(path)
    assert image.mode == "I;16"
    assert np.array_equal(np.asarray(image), grey)
    again = MEDIA["image"].read(MEDIA["image"].write(image))
    assert np.array_equal(np.asarray(again), grey)
    assert np.array_equal(PixelFormat((4, 6), 1, (0.5,), (0.5,)).encode(image)[0], grey >> 8)


def test_images_that_are_nearly_black_are_noted(folder):
    for label in ("a", "b"):
        for number in range(4):
            path = folder / label / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 6), 4_000 + number, np.uint16)).save(path)  # 12 bits in 16
    assert any("nearly black: the brightest pixel is 15 of 255" in note for note in images(folder).notes)


@pytest.mark.parametrize("name", ["{out}/photo.png", "../out/photo.png", "inner/../../out/photo.png"])
def test_a_table_names_no_file_outside_its_folder(tmp_path, name):
    picture(tmp_path / "out" / "photo.png")
    cells = [
        {"image": {"bytes": png(np.full((4, 6, 3), n, np.uint8)), "path": None}, "label": "ab"[n % 2]}
        for n in range(40, 60)
    ]
    cells[4]["image"] = {"bytes": None, "path": name.replace("{out}", str(tmp_path / "out"))}
    (tmp_path / "d" / "inner").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(cells), tmp_path / "d" / "train.parquet")
    data = images(tmp_path / "d")
    assert len(data.train.labels) + len(data.test.labels) == 19
    assert "1 images of train cannot be read and are left out: rows 4" in data.notes
    cells[4]["image"]["path"] = "inner/photo.png"
    shutil.copy(tmp_path / "out" / "photo.png", tmp_path / "d" / "inner")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(cells), tmp_path / "d" / "train.parquet")
    inside = images(tmp_path / "d")
    assert len(inside.train.labels) + len(inside.test.labels) == 20
    picture(tmp_path / "d" / "inner" / "photo.png")
    assert images(tmp_path / "d").digest != inside.digest


# --- data cards


def texts(folder, **options):
    return DATASETS["texts"].load(path=str(folder), length=4, **options)


ROWS = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(10)]


@pytest.mark.parametrize(
    "readme",
    [
        b"\xfc is Latin-1",
        b"---\nA rule.\n",
        b"---\na: b: c\n---\n",
        b"---\n---\n",
        b"---\n\tx\n---\n",
        b"---\n- a\n---\n",
    ],
)
def test_a_readme_without_metadata_says_nothing(tmp_path, readme):
    folder = tables(tmp_path / "d", "csv", train=ROWS)
    (folder / "README.md").write_bytes(readme)
    assert len(texts(folder).train.labels) == 8


@pytest.mark.parametrize(
    "name", ["../secret.csv", "/etc/passwd", "~/x.csv", "http://127.0.0.1:9/x.csv", "a/../../x.csv"]
)
def test_a_data_card_names_no_file_outside_its_folder(tmp_path, name):
    folder = tables(tmp_path / "d", "csv", train=ROWS)
    (tmp_path / "secret.csv").write_text("text,label\nmine,a\n")
    (folder / "README.md").write_text(
        f"---\nconfigs: [{{config_name: default, data_files: '{name}'}}]\n---\n"
    )
    rejected(lambda: texts(folder), "data.path: ", name, "not in the folder")


def test_a_data_card_with_several_data_sets_needs_a_default(tmp_path):
    folder = tables(tmp_path / "d", "csv", small=ROWS[:6], large=ROWS)
    configs = [{"config_name": name, "data_files": f"{name}.csv"} for name in ("small", "large")]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    rejected(lambda: texts(folder), "2 data sets (small, large)", "default: true")
    configs[1]["default"] = True
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    data = texts(folder)
    assert len(data.train.labels) + len(data.test.labels) == 10
    assert "1 file not read (not named by README.md): small.csv" in data.notes


def test_a_data_card_of_aliases_ends_at_once(tmp_path):
    folder = tables(tmp_path / "d", "csv", train=ROWS)
    bomb = "a: &a [x, x]\n" + "".join(
        f"{n}: &{n} [{', '.join([f'*{o}'] * 9)}]\n" for o, n in itertools.pairwise("abcdefghi")
    )
    (folder / "README.md").write_text(f"---\n{bomb}---\n")
    assert len(texts(folder).train.labels) == 8


# --- tables and what lies beside them


@pytest.mark.parametrize(
    ("files", "outcome"),
    [
        ({"data.csv": "CSV", "labels.json": '{"0": "a"}'}, 10),
        ({"data.jsonl": "JSONL", "labels.json": "{}"}, 10),
        ({"TRAIN.CSV": "CSV"}, 10),
        ({"data.tsv": "TSV"}, 10),
        ({"train.csv": "CSV", "test.csv.gz": "CSV"}, 20),
        ({"train.csv": "CSV", "test.tsv": "TSV"}, 20),
        ({"train.csv": "CSV", "test.csv": ""}, "test.csv is empty"),
        ({"train.csv": "CSV", "test.csv": "text,label\n"}, "test.csv is empty"),
        ({"train.csv": "CSV", "test.csv": "text\nx\n"}, 10),
        ({"train.csv": "CSV", "more.csv": "CSV"}, "more.csv would not be read"),
        ({"a.csv": "CSV", "b.csv": "text,topic\nx,y\n"}, "b.csv has the columns text, topic"),
    ],
)
def test_tables_are_read_or_rejected_by_name(folder, files, outcome):
    frame = pd.DataFrame(ROWS)
    contents = {
        "CSV": frame.to_csv(index=False),
        "TSV": frame.to_csv(index=False, sep="\t"),
        "JSONL": frame.to_json(orient="records", lines=True),
    }
    for name, content in files.items():
        text = contents.get(content, content).encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    if isinstance(outcome, str):
        rejected(lambda: texts(folder), "data.path: ", outcome)
        return
    data = texts(folder)
    assert len(data.train.labels) + len(data.test.labels) == outcome


def test_caches_in_a_saved_data_set_are_not_read(tmp_path):
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "d")
    (data,) = (tmp_path / "d" / "train").glob("data-*.arrow")
    shutil.copy(data, data.with_name("cache-0123.arrow"))
    read = texts(tmp_path / "d")
    assert len(read.train.labels) + len(read.test.labels) == 10


# --- every file of any tree

FOLDERS = ["cat", "dog", "train", "test", "Cat ", ".git", "__MACOSX", "d\u00f6g", os.fsdecode(b"\xe9")]


def some_png(rng):
    return png(np.full((4, 6, 3), rng.randrange(64, 256), np.uint8))


def some_avif(rng):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (rng.randrange(64, 256), 90, 90)).save(buffer, "AVIF")
    return buffer.getvalue()


def some_csv(rng):
    return b"text,label\n" + b"".join(
        b"t%d,%c\n" % (rng.randrange(99), 97 + n % 2) for n in range(rng.randrange(5))
    )


def some_json(rng):
    return json.dumps(
        rng.choice([[{"text": "a", "label": "b"}], {"0": "a"}, [], {"text": ["x"], "label": ["y"]}])
    ).encode()


def some_parquet(rng):
    buffer = io.BytesIO()
    pd.DataFrame([{"text": "x", "label": "a"}] * rng.randrange(3), columns=["text", "label"]).to_parquet(
        buffer
    )
    return buffer.getvalue()


KINDS = {
    "image": {
        "a.png": some_png,
        "b.PNG": some_png,
        "c": some_png,
        "d.avif": some_avif,
        ".hidden.png": some_png,
        "damaged.png": lambda rng: b"no image",
        "notes.txt": lambda rng: b"words",
        "Thumbs.db": lambda rng: b"\xd0\xcf",
    },
    "audio": {
        "a.wav": lambda rng: wav(tone(rng.randrange(200, 900), 0.3)),
        "b.aif": lambda rng: sound(rng, "AIFF"),
        "c": lambda rng: sound(rng, "FLAC"),
        "damaged.wav": lambda rng: b"RIFF",
        "list.txt": lambda rng: b"words",
    },
    "text": {
        "a.csv": some_csv,
        "b.tsv": lambda rng: some_csv(rng).replace(b",", b"\t"),
        "train.csv": some_csv,
        "test.csv.gz": lambda rng: gzip.compress(some_csv(rng)),
        "labels.json": some_json,
        "c.parquet": some_parquet,
        "d.jsonl": lambda rng: b'{"text": "x", "label": "a"}\n' * rng.randrange(3),
        "e.txt": lambda rng: b"words",
    },
}
FORMATS = {
    "image": PixelFormat((4, 6), 3, (0.5,), (0.5,)),
    "audio": LogMelFormat(0.3),
    "text": TokenFormat(4),
}


def sound(rng, kind):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(rng.randrange(200, 900), 0.3), 16_000, format=kind)
    return buffer.getvalue()


def grow(rng, folder, kinds, depth, outside):
    """Writes a random tree below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in rng.sample(sorted(kinds), rng.randrange(len(kinds) + 1) if depth else rng.randrange(3)):
        (folder / name).write_bytes(kinds[name](rng))
    for name in rng.sample(FOLDERS, rng.randrange(4) if depth < 3 else 0):
        if rng.random() < 0.15:
            (folder / name).symlink_to(rng.choice([outside / "tree", outside / "gone", folder]))
        else:
            grow(rng, folder / name, kinds, depth + 1, outside)


def tidy(rng, folder, modality, outside):
    """Writes a tree of two classes with a few odd files, which can be read in most cases."""
    kinds = KINDS[modality]
    odd = [name for name in kinds if name.startswith((".hidden", "damaged", "notes", "list", "Thumbs", "e."))]
    splits = rng.choice([[""], ["train", "test"]])
    for split, label in itertools.product(splits, ["cat", "dog"]):
        inner = folder / split if modality == "text" else folder / split / label
        inner.mkdir(parents=True, exist_ok=True)
        good = next(iter(kinds))
        for number in range(4):
            content = kinds[good](rng) if modality != "text" else b"text,label\nx,a\ny,b\nz,a\nw,b\n"
            (inner / f"{label}{number}{Path(good).suffix}").write_bytes(content)
        for name in rng.sample(odd, rng.randrange(len(odd) + 1)):
            (inner / name).write_bytes(kinds[name](rng))
        if rng.random() < 0.2:
            (inner / rng.choice([f".{label}", f"{label}.tmp"])).symlink_to(outside / "tree")


def every_file(folder):
    """Yields the names of all files below a folder, as far as links that do not lead back."""
    for path, inner, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        inner[:] = [name for name in inner if not real.startswith(os.path.realpath(Path(path, name)))]
        for name in files:
            yield os.path.relpath(Path(path, name), folder)


def shown(name):
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_every_file_of_a_tree_is_read_counted_or_rejected_by_name(modality, tmp_path, monkeypatch):
    outcomes = {"read": 0, "rejected": 0}
    spec = DatasetSpec((MEDIA[modality].column,), ("label",), None, FORMATS[modality])
    outside = tmp_path / "outside"
    grow(random.Random(1), outside / "tree", KINDS[modality], 3, outside)

    @settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def check(seed):
        folder = tmp_path / str(next(COUNTER))
        rng = random.Random(seed)
        if seed % 2:
            grow(rng, folder, KINDS[modality], 0, outside)
        else:
            tidy(rng, folder, modality, outside)
        names = {shown(name) for name in every_file(folder)}
        try:
            decoded = load_folder(folder, spec)
        except InputError as error:
            outcomes["rejected"] += 1
            line = str(error)
            assert line.startswith("data."), line
            assert len(line) < 1_000
            return
        finally:
            for path in folder.rglob("*"):
                assert path.lstat(), "nothing was deleted"
        outcomes["read"] += 1
        layout = Folder(folder, MEDIA[modality]).layout
        unread = {name for some in layout.unread().values() for name in some}
        read = {entry.file.name for entry in layout.entries()} | {file.name for file in layout.metadata()}
        assert not read & unread
        missing = {
            name for name in names - read - unread if not any(name.startswith(f"{top}/") for top in unread)
        }
        assert not missing
        if modality != "text":  # each file is an example, or counted
            counted = sum(int(note.split()[0]) for note in decoded.notes if "are left out" in note)
            assert len(decoded.train.labels) + len(decoded.test.labels) + counted == len(read)
        shutil.rmtree(folder)

    check()
    assert min(outcomes.values()) >= 50, outcomes


# --- what a review found


def test_a_data_card_may_name_a_folder_alone(tmp_path):
    folder = tables(tmp_path / "d", "csv", old=ROWS)
    tables(folder / "data", "csv", train=ROWS, test=ROWS[:4])
    configs = [{"config_name": "default", "data_dir": "data"}]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    data = texts(folder)
    assert (len(data.train.labels), len(data.test.labels)) == (10, 4)
    assert "1 file not read (not named by README.md): old.csv" in data.notes


@pytest.mark.parametrize("option", [{"sep": r"\s+"}, {"sep": 1}, {"header": None}, {"quotechar": "'"}])
def test_options_of_a_data_card_that_cannot_be_followed_are_rejected(tmp_path, option):
    folder = tables(tmp_path / "d", "csv", train=ROWS)
    configs = [{"config_name": "default", "data_files": "train.csv", **option}]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    rejected(lambda: texts(folder), "data.path: ", "README.md sets")


def test_a_data_card_of_images_leaves_classes_to_folders(folder):
    pictures(folder, "north/cat", "north/dog", "south/cat", "south/dog")
    configs = [{"config_name": "default", "data_files": [{"split": "training", "path": "**/*.png"}]}]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    data = images(folder, folders="client/class").train
    assert ({*data.labels}, {*data.client_ids}) == ({"cat", "dog"}, {"north", "south"})


def test_shards_of_an_earlier_save_are_not_read(tmp_path):
    import datasets

    whole = datasets.Dataset.from_list([{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(20)])
    whole.save_to_disk(tmp_path / "d", num_shards=4)
    whole.save_to_disk(tmp_path / "d", num_shards=2)
    data = texts(tmp_path / "d")
    assert len(data.train.labels) + len(data.test.labels) == 20
    next((tmp_path / "d").glob("data-00000-of-00002.arrow")).unlink()
    rejected(lambda: texts(tmp_path / "d"), "data-00000-of-00002.arrow, which is missing")


def test_data_that_changes_while_it_is_read_is_not_cached(tmp_path, monkeypatch):
    folder = tables(tmp_path / "d", "csv", train=ROWS)
    content = (folder / "train.csv").read_bytes()
    batches = folders.TableRows.batches

    def changing(self, *args):
        (folder / "train.csv").write_text("text,label\nx,a\ny,b\nz,a\nw,b\n")
        yield from batches(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(folders.TableRows, "batches", changing)
        rejected(lambda: texts(folder), "changed while they were read; run again")
    (folder / "train.csv").write_bytes(content)
    assert len(texts(folder).train.labels) == 8


@pytest.mark.parametrize(
    ("files", "outcome"),
    [
        ({"train-00000-of-00002.csv": "CSV", "train-00001-of-00002.csv": "Text,Label\nx,a\n"}, "Text, Label"),
        ({"train.csv": "CSV", "train_0.json": '{"text": "x", "label": "a"}'}, 11),
        ({"train.csv": "text,label,label\nx,a,b\n"}, "the column 'label' twice"),
        ({"train.csv": "text,label\rx,a\ry,b\r"}, "line 1 of"),
        ({"a.csv": "text,label\nx,a\n", "b.csv": "text,topic\nx,a\n"}, "b.csv has the columns"),
    ],
)
def test_no_row_of_a_table_is_lost_in_silence(tmp_path, files, outcome):
    for name, content in files.items():
        text = pd.DataFrame(ROWS).to_csv(index=False) if content == "CSV" else content
        (tmp_path / name).write_bytes(text.encode())
    if isinstance(outcome, str):
        rejected(lambda: texts(tmp_path), "data.path: ", outcome)
    else:
        data = texts(tmp_path)
        assert len(data.train.labels) + len(data.test.labels) == outcome


def test_columns_of_metadata_do_not_replace_the_files(folder):
    pictures(folder, "cat", "dog")
    names = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(6)]
    rows = [{"file_name": name, "image": "cat/0.png", "label": n % 2} for n, name in enumerate(names)]
    pd.DataFrame([*rows, {"file_name": "gone.png", "label": 0}]).to_csv(folder / "metadata.csv", index=False)
    info = "{features: [{name: label, dtype: {class_label: {names: {'0': even, '1': odd}}}}]}"
    (folder / "README.md").write_text(f"---\ndataset_info: {info}\n---\n")
    data = images(folder)
    assert {*data.train.labels} == {"even", "odd"}
    assert len({x.numpy().tobytes() for x in [*data.train.x, *data.test.x]}) == 12
    assert any("names 1 files that are not there: gone.png" in note for note in data.notes)
    pd.DataFrame([*rows, rows[0]]).to_csv(folder / "metadata.csv", index=False)
    rejected(lambda: images(folder), "describes cat/0.png twice")


def test_a_class_of_hidden_files_alone_is_rejected(folder):
    pictures(folder, "cat", "dog")
    (folder / "bird").mkdir()
    (folder / "bird" / ".DS_Store").write_text("")
    rejected(lambda: images(folder), "folder bird", "holds no images")


def test_a_table_names_no_hidden_file(folder):
    picture(folder / ".imgs" / "0.png")
    cells = [{"image": png(np.full((4, 6, 3), n, np.uint8)), "label": "ab"[n % 2]} for n in range(40, 60)]
    table = pyarrow.Table.from_pylist(
        [{"image": {"bytes": c["image"], "path": ".imgs/0.png"}, "label": c["label"]} for c in cells]
        + [{"image": {"bytes": None, "path": ".imgs/0.png"}, "label": "a"}]
    )
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    assert "1 images of train cannot be read and are left out: rows 20" in images(folder).notes


def test_odd_bytes_in_names_and_labels_end_in_a_note(folder):
    pictures(folder, "cat", "dog")
    (folder / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    assert any(r"cat/caf\xe9.png" in note for note in images(folder).notes)
    (folder.parent / "t").mkdir()
    rows = [{"text": f"t{n}", "label": ["a\ud800", "b"][n % 2]} for n in range(10)]
    (folder.parent / "t" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert {*texts(folder.parent / "t").train.labels} == {"a?", "b"}


def test_a_long_column_without_images_is_given_up_soon(folder):
    table = pyarrow.table({"image": pyarrow.array(["x"] * 200_000), "label": pyarrow.array([1] * 200_000)})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    rejected(lambda: images(folder), "data.input: none of the 10112 cells of column 'image'")


def test_base64_in_a_column_of_images_is_no_path(folder):
    rows = [{"image": "iVBORw0KGgo" * 999, "label": "ab"[n % 2]} for n in range(4)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    rejected(lambda: images(folder), "data.input: none of the 4 cells")
