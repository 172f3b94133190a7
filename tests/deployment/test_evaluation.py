"""Evaluations equal a plain PyTorch loop, and say what they left out."""

from __future__ import annotations

import csv
import json
import shutil
import wave

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score
from support.small_runs import image_folder, image_run, small_run, sound_folder, text_file

import genfl
from genfl.data.media import Clip
from genfl.data.sounds import LogMelFormat
from genfl.data.texts import TokenFormat
from genfl.errors import InputError
from genfl.models import MODELS


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A run of two seeds on images, and a held-out folder."""
    folder = tmp_path_factory.mktemp("images")
    private, held_out = image_folder(folder / "private", 12), image_folder(folder / "held", 11, seed=7)
    methods = {"fedavg": {"algorithm": "fedavg"}, "prox": {"algorithm": {"name": "fedprox", "mu": 1.0}}}
    return image_run(private, folder / "run", seeds=[0, 1], methods=methods), held_out


def plain_scores(folder, built, x, y):
    """Accuracy, macro F1, recall, calibration error and confusion by sklearn and numpy, one input a time."""
    built.load_state_dict(load_file(folder / "model.safetensors"))
    built.eval()
    with torch.no_grad():
        rows = [built(torch.as_tensor(row, dtype=torch.float32)[None])[0].softmax(0).numpy() for row in x]
    shares = np.stack(rows)
    predicted, confidence = shares.argmax(1), shares.max(1)
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs((predicted == y)[inside].mean() - confidence[inside].mean())
    labels = range(shares.shape[1])
    return {
        "accuracy": accuracy_score(y, predicted),
        "macro_f1": f1_score(y, predicted, average="macro"),
        "recall": recall_score(y, predicted, average=None, labels=labels, zero_division=0),
        "calibration_error": error,
        "confusion": confusion_matrix(y, predicted, labels=labels).tolist(),
    }


def assert_equals(seed, expected):
    assert seed.confusion == expected["confusion"]
    assert seed.recall == pytest.approx(expected["recall"], abs=1e-4)
    for name in ("accuracy", "macro_f1", "calibration_error"):
        assert getattr(seed, name) == pytest.approx(expected[name], abs=1e-4), name


def test_images_equal_a_plain_loop(images):
    run, held_out = images
    evaluation = run.evaluate(held_out, method="fedavg")
    names = sorted(path.name for path in held_out.iterdir())
    x, y = [], []
    for number, name in enumerate(names):
        for path in sorted((held_out / name).iterdir()):
            pixels = Image.open(path).convert("RGB").resize((8, 8), Image.Resampling.BICUBIC)
            x.append((np.asarray(pixels, dtype=np.float64).transpose(2, 0, 1) / 255 - 0.5) / 0.5)
            y.append(number)
    assert evaluation.examples == len(y) == 33
    assert evaluation.label_names == names
    assert [seed.seed for seed in evaluation.seeds] == [0, 1]
    expected = []
    for seed in evaluation.seeds:
        folder = run.folder / "federate" / "fedavg" / f"seed-{seed.seed}"
        expected.append(plain_scores(folder, MODELS["mlp"].build((3, 8, 8), 3, width=8), x, np.array(y)))
        assert_equals(seed, expected[-1])
    assert {seed.accuracy for seed in evaluation.seeds} != {1.0}, "else little is tested"
    accuracies = [scores["accuracy"] for scores in expected]
    assert evaluation.accuracy.mean == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert evaluation.accuracy.std == pytest.approx(np.std(accuracies, ddof=1), abs=1e-12)
    for number, scores in enumerate(evaluation.classes):
        assert scores.recall == pytest.approx(np.mean([e["recall"][number] for e in expected]))
        assert scores.examples == 11


@pytest.mark.slow
def test_sounds_equal_a_plain_loop(tmp_path):
    pytest.importorskip("soundfile")
    private, held_out = sound_folder(tmp_path / "private", 8), sound_folder(tmp_path / "held", 9, seed=3)
    data = {"name": "sounds", "path": str(private), "seconds": 0.4}
    run = small_run(data, {"name": "fedaudio", "width": 8}, tmp_path / "run")
    x, y = [], []
    for number, name in enumerate(("high", "low")):
        for path in sorted((held_out / name).iterdir()):
            with wave.open(str(path)) as file:
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
            x.append(LogMelFormat(0.4).encode(Clip(samples.astype(np.float32), 16_000)))
            y.append(number)
    built = MODELS["fedaudio"].build((41, 128), 2, width=8)
    expected = plain_scores(run.folder / "federate" / "fedavg" / "seed-0", built, x, np.array(y))
    evaluation = run.evaluate(held_out)
    assert evaluation.chosen
    assert evaluation.method == "fedavg"
    assert_equals(evaluation.seeds[0], expected)


@pytest.mark.slow
def test_texts_equal_a_plain_loop(tmp_path):
    private = text_file(tmp_path / "private" / "train.csv", 15)
    held_out = text_file(tmp_path / "held" / "test.csv", 14, seed=5)
    data = {"name": "texts", "path": str(private), "length": 8, "client_id": "user"}
    model = {"name": "lstm", "width": 4, "embedding": 4}
    run = small_run(data, model, tmp_path / "run")
    with (held_out / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    x = [TokenFormat(8).encode(row["text"]) for row in rows]
    y = np.array([["negative", "positive"].index(row["label"]) for row in rows])
    built = MODELS["lstm"].build((8,), 2, width=4, embedding=4)
    folder = run.folder / "federate" / "fedavg" / "seed-0"
    evaluation = run.evaluate(held_out)
    assert_equals(evaluation.seeds[0], plain_scores(folder, built, x, y))
    assert evaluation.split == "test"
    assert evaluation.clients.column == "user"
    assert evaluation.clients.count == 3
    users = [row["user"] for row in rows]
    with torch.no_grad():
        predicted = built(torch.tensor(np.stack(x), dtype=torch.float32)).argmax(1).numpy()
    hits = {user: (predicted == y)[[u == user for u in users]].mean() for user in set(users)}
    assert evaluation.clients.worst.accuracy == pytest.approx(min(hits.values()))
    assert hits[evaluation.clients.worst.name] == min(hits.values())


@pytest.mark.slow
def test_the_runs_own_test_set_gives_the_runs_figure(tmp_path):
    """A folder with a test split: the run and the evaluation read the same examples."""
    for split, each in (("train", 10), ("test", 9)):
        image_folder(tmp_path / "data" / split, each, seed=each)
    run = image_run(tmp_path / "data", tmp_path / "run")
    figures = run.model("fedavg").description.figures
    seed = run.evaluate(tmp_path / "data").seeds[0]
    for name in ("accuracy", "macro_f1", "calibration_error", "loss", "recall"):
        assert getattr(seed, name) == getattr(figures, name), name
    on_train = run.evaluate(tmp_path / "data", split="train")
    assert (on_train.split, on_train.examples) == ("train", 30)


def test_unknown_labels_and_unreadable_files_are_counted(images, tmp_path):
    run, held_out = images
    shutil.copytree(held_out, tmp_path / "data")
    before = run.evaluate(tmp_path / "data", method="fedavg", seed=0)
    shutil.copytree(held_out / "dark", tmp_path / "data" / "red")
    (tmp_path / "data" / "light" / "broken.png").write_bytes(b"no image")
    after = run.evaluate(tmp_path / "data", method="fedavg", seed=0)
    assert after.unknown_labels == {"red": 11}
    assert after.unreadable == 1
    assert "light/broken.png" in after.unreadable_names[0]
    assert after.seeds == before.seeds


@pytest.mark.slow
def test_a_folder_with_a_single_split_or_levels_of_the_run(tmp_path):
    """The run's folders are split/client/class; the held-out folder lacks the outer ones."""
    for split in ("train", "test"):
        image_folder(tmp_path / "private" / split, 12, clients=2)
    data = {"name": "images", "path": str(tmp_path / "private"), "size": [8, 8]}
    run = small_run({**data, "folders": "split/client/class"}, {"name": "mlp", "width": 8}, tmp_path / "run")
    classes = run.evaluate(image_folder(tmp_path / "classes", 4, seed=9))
    assert classes.clients is None
    clients = run.evaluate(image_folder(tmp_path / "clients", 4, seed=9, clients=2))
    assert clients.clients.column == "client"
    assert {group.name for group in clients.clients.listed} == {"client-0", "client-1"}
    image_folder(tmp_path / "one" / "validation", 4, seed=9, clients=2)
    single = run.evaluate(tmp_path / "one")
    assert single.split == "validation"
    assert classes.seeds == clients.seeds == single.seeds


@pytest.mark.slow
def test_groups_of_the_data(tmp_path):
    private = text_file(tmp_path / "private" / "train.csv", 15)
    data = {"name": "texts", "path": str(private), "length": 8, "group": "user"}
    run = small_run(data, {"name": "lstm", "width": 4, "embedding": 4}, tmp_path / "run")
    held_out = run.evaluate(text_file(tmp_path / "held" / "data.csv", 6, seed=2))
    assert held_out.groups.column == "user"
    accuracies = [group.accuracy for group in held_out.groups.listed]
    assert accuracies == sorted(accuracies)
    assert held_out.groups.worst == held_out.groups.listed[0]
    total = sum(g.accuracy * g.examples for g in held_out.groups.listed)
    assert total / held_out.examples == pytest.approx(held_out.accuracy.mean)


def test_evaluation_overwrites_nothing_else(images, tmp_path):
    run, held_out = images
    page = (run.folder / "report" / "index.html").read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    (tmp_path / "file").touch()
    run.evaluate(held_out, method="fedavg", seed=0, out=tmp_path / "linked")
    (tmp_path / "linked" / "evaluation.csv").unlink()
    (tmp_path / "linked" / "evaluation.csv").symlink_to(tmp_path / "mine" / "index.html")
    for out, reason in (
        (run.folder, "is not empty and holds no evaluation"),
        (run.folder / "report", "is in the folder of a run"),
        (run.folder / "new", "is in the folder of a run"),
        (tmp_path / "mine", "is not empty and holds no evaluation"),
        (tmp_path / "file", "is a file; name a folder"),
        (tmp_path / "file" / "below", r"cannot be written \(Not a directory\)"),
        (tmp_path / "linked", "is a link"),
    ):
        with pytest.raises(InputError, match=rf"^out: \S+ {reason}") as error:
            run.evaluate(tmp_path / "absent", out=out)  # before the data is read
        assert "\n" not in str(error.value)
    assert (run.folder / "report" / "index.html").read_bytes() == page
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for _ in range(2):  # a second evaluation replaces the first
        run.evaluate(held_out, method="fedavg", seed=0, out=tmp_path / "empty")
    assert (tmp_path / "empty" / "index.html").is_file()


def test_evaluation_writes_files_where_it_is_asked_to(images, tmp_path):
    run, held_out = images
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    evaluation = run.evaluate(held_out, out=tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    names = {path.name for path in (tmp_path / "out").iterdir()}
    results = {"evaluation.json", "evaluation.csv", "confusion.csv", "index.html"}
    assert names == results | {".genfl-evaluation", ".lock"}
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert type(evaluation).model_validate(content) == evaluation
    with (tmp_path / "out" / "confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["label", *evaluation.label_names]
    assert [[float(cell) for cell in row[1:]] for row in rows[1:]] == evaluation.confusion
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<svg") == 1
    assert f"{100 * evaluation.accuracy.mean:.1f}" in page


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"method": "fedavgg"}, "method: there is no 'fedavgg'; did you mean 'fedavg'"),
        ({"seed": 7}, "seed: there is no 7; known: 0, 1"),
        ({"split": "tests"}, "split: there is no 'tests' in"),
        ({"label": "species"}, "label: no column 'species' in"),
    ],
    ids=["method", "seed", "split", "label"],
)
def test_wrong_arguments_are_one_line(images, arguments, line):
    run, held_out = images
    with pytest.raises(InputError, match=line) as raised:
        run.evaluate(held_out, **arguments)
    assert len(str(raised.value).splitlines()) == 1


def test_data_that_cannot_be_used_is_one_line(images, tmp_path):
    run, held_out = images
    (tmp_path / "empty").mkdir()
    shutil.copytree(held_out / "dark", tmp_path / "others" / "red")
    for folder, line in (
        ("empty", r"^path: no Parquet files and no files of images in"),
        ("absent", r"^path: .*absent does not exist"),
        ("others", r"^label: the model knows none of the labels of .*\(red\), but dark, light, middle;"),
    ):
        with pytest.raises(InputError, match=line) as raised:
            run.evaluate(tmp_path / folder)
        assert len(str(raised.value).splitlines()) == 1


def test_a_folder_that_is_no_finished_run(images, tmp_path):
    run, _ = images
    with pytest.raises(InputError, match=r"^folder: .* holds no run, as it has no config\.yaml; name"):
        genfl.load_run(tmp_path)
    shutil.copy(run.folder / "config.yaml", tmp_path)
    with pytest.raises(
        InputError, match=r"is not finished, as it has no summary\.json; resume it with genfl"
    ):
        genfl.load_run(tmp_path)
