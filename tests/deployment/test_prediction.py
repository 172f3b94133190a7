"""Predictions for many files: streamed, in order, with what cannot be read named."""

from __future__ import annotations

import csv
import itertools
import json
import tracemalloc

import pytest
from PIL import Image
from support.small_runs import image_folder, image_run, small_run, text_file

from genfl.deployment.labelled import DataColumns
from genfl.deployment.prediction import (
    Prediction,
    Unreadable,
    find_inputs,
    predictions,
    readable_predictions,
    write_predictions,
)
from genfl.errors import InputError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The model of a run on images."""
    folder = tmp_path_factory.mktemp("predicted")
    return image_run(image_folder(folder / "private", 12), folder / "run").model("fedavg")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A run on texts."""
    folder = tmp_path_factory.mktemp("texts")
    data = {"name": "texts", "path": str(text_file(folder / "private" / "train.csv", 15)), "length": 8}
    return small_run(data, {"name": "lstm", "width": 4, "embedding": 4}, folder / "run")


def test_folders_are_walked_and_order_is_kept(images, tmp_path):
    folder = image_folder(tmp_path / "some", 3)
    (folder / "notes.md").write_text("Notes")
    inputs = find_inputs([folder / "light" / "001.png", folder], "image", ("image",))
    assert inputs.total == 10
    rows = list(predictions(images, inputs.items, 2))
    assert [row.input for row in rows[:2]] == [
        str(folder / "light" / "001.png"),
        str(folder / "dark" / "000.png"),
    ]
    assert rows[0] == next(row for row in rows[1:] if row.input == rows[0].input)
    assert rows == images.predict([row.input for row in rows], top=2)


def test_unreadable_files_are_named_and_others_predicted(images, tmp_path):
    folder = image_folder(tmp_path / "some", 1)
    (folder / "dark" / "broken.png").write_bytes(b"no image")
    failed: list[Unreadable] = []
    rows = list(readable_predictions(images, find_inputs([folder], "image", ("image",)), 1, failed))
    assert len(rows) == 3
    assert [item.input for item in failed] == [str(folder / "dark" / "broken.png")]
    assert "\n" not in failed[0].reason
    only = find_inputs([folder / "dark" / "broken.png"], "image", ("image",))
    with pytest.raises(InputError, match=r"^files: none of the 1 inputs can be read \(such as .*broken.png"):
        list(readable_predictions(images, only, 1, []))


def test_nothing_is_written_if_nothing_can_be_read(images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    inputs = find_inputs([tmp_path / "broken.png"], "image", ("image",))
    with pytest.raises(InputError):
        write_predictions(tmp_path / "out.csv", readable_predictions(images, inputs, 1, []), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.png"]


def test_predictions_as_csv_and_json(images, tmp_path):
    folder = image_folder(tmp_path / "some", 2)
    expected = images.predict(sorted(folder.rglob("*.png")), top=2)
    for name in ("out.csv", "out.json"):
        inputs = find_inputs([folder], "image", ("image",))
        write_predictions(tmp_path / name, readable_predictions(images, inputs, 2, []), 2)
    content = json.loads((tmp_path / "out.json").read_text())
    assert [Prediction.model_validate(row) for row in content] == expected
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["input", "label_1", "probability_1", "label_2", "probability_2"]
    assert [row["label_2"] for row in rows] == [row.labels[1] for row in expected]
    assert [float(row["probability_1"]) for row in rows] == [row.probability for row in expected]
    with pytest.raises(InputError, match=r"^out: .*out.txt does not end in .csv or .json"):
        write_predictions(tmp_path / "out.txt", expected, 2)


@pytest.mark.slow
def test_texts_from_files_and_tables(texts, tmp_path):
    lines = ["good good film", "the film is bad"]
    (tmp_path / "one.txt").write_text(lines[0])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "only.csv").write_text("review\n" + "\n".join(lines) + "\n")
    columns = DataColumns.of_run(texts.folder, "text").inputs
    inputs = find_inputs([tmp_path], "text", columns)
    assert inputs.total == 5
    model = texts.model("fedavg")
    rows = {row.input.removeprefix(f"{tmp_path}/"): row for row in predictions(model, inputs.items, 2)}
    assert set(rows) == {"one.txt", "rows.jsonl:1", "rows.jsonl:2", "only.csv:1", "only.csv:2"}
    first = [rows[name].probabilities for name in ("one.txt", "rows.jsonl:1", "only.csv:1")]
    assert first[1:] == [pytest.approx(first[0], abs=1e-6)] * 2
    assert model.predict(lines, top=2)[1].labels == rows["only.csv:2"].labels
    (tmp_path / "wide.csv").write_text("review,stars\ngood,5\n")
    with pytest.raises(InputError, match=r"^input: no column 'text' in .*its columns are: review, stars"):
        find_inputs([tmp_path], "text", columns)
    named = find_inputs([tmp_path / "wide.csv"], "text", ("review",), exact=True)
    assert next(named.items)[1] == "good"


def test_a_table_names_no_file_of_this_machine(images, tmp_path):
    """Only files that the user named are opened; a cell may name any file."""
    import pyarrow
    import pyarrow.parquet

    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    table = pyarrow.table({"image": [str(tmp_path / "secret.png")]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    inputs = find_inputs([tmp_path / "rows.parquet"], "image", ("image",))
    rows = list(predictions(images, inputs.items, 1))
    assert isinstance(rows[0], Unreadable)


def test_paths_that_hold_nothing_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, line in (
        ("empty", r"^files: no Parquet files and no files of images in"),
        ("absent", r"^files: .*absent does not exist; correct it"),
    ):
        with pytest.raises(InputError, match=line) as raised:
            find_inputs([tmp_path / name], "image", ("image",))
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(images):
    """Only a batch of inputs is held, however many follow."""
    image = Image.new("RGB", (64, 64))

    def peak(number: int) -> int:
        items = ((str(n), image) for n in range(number))
        tracemalloc.start()
        count = sum(1 for _ in predictions(images, items, 1))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == number
        return most

    peak(300)
    assert peak(3000) < 1.5 * peak(600)


def test_inputs_are_read_a_batch_at_a_time(images):
    read = itertools.count()

    def items():
        while True:
            next(read)
            yield "image", Image.new("RGB", (8, 8))

    stream = predictions(images, items(), 1)
    next(stream)
    assert next(read) <= 256
