"""The commands `genfl evaluate` and `genfl predict`."""

from __future__ import annotations

import contextvars
import json
import logging
import shutil
from functools import partial

import pytest
from support.command import run_command
from support.small_runs import image_folder, image_run
from typer.testing import CliRunner

from genfl.cli import app
from genfl.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on images, and a held-out folder beside it."""
    folder = tmp_path_factory.mktemp("commands")
    image_folder(folder / "held", 4, seed=3)
    return image_run(image_folder(folder / "private", 12), folder / "run")


@pytest.fixture(autouse=True)
def own_log():
    """Take back the handlers that commands give the library's log."""
    log = logging.getLogger("genfl")
    handlers, level = log.handlers, log.level
    yield
    log.handlers, log.level = handlers, level


def genfl(*args, error=False):
    """Run the command in this process; return its standard output and error, or the message it ends with."""
    invoke = partial(CliRunner().invoke, app, [*map(str, args)])
    done = contextvars.copy_context().run(invoke)
    if error:
        assert isinstance(done.exception, InputError), done.output
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_evaluate_prints_tables_and_json(run, tmp_path):
    held_out = run.folder.parent / "held"
    expected = run.evaluate(held_out)
    text, _ = genfl("evaluate", run.folder, "--data", held_out, "--out", tmp_path / "out")
    assert "Method: fedavg, the federated method of the best mean accuracy in the run" in text
    assert f"{100 * expected.accuracy.mean:.1f}" in text
    assert (tmp_path / "out" / "index.html").is_file()
    text, _ = genfl("evaluate", run.folder, "--data", held_out, "--method", "fedavg", "--json")
    assert json.loads(text) == {**expected.to_dict(), "chosen": False}


def test_predict_prints_a_table_and_names_what_is_unreadable(run, tmp_path):
    held_out = run.folder.parent / "held"
    (tmp_path / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out.csv"
    text, errors = genfl("predict", run.folder, held_out, tmp_path / "broken.png", "--out", out)
    assert out.read_text().count("\n") == 13
    assert str(out) in text
    named = [line for line in errors.splitlines() if line.startswith("not read: ")]
    assert len(named) == 1
    assert "broken.png" in named[0]
    assert errors.splitlines()[-1] == "1 input could not be read"
    text, _ = genfl("predict", run.folder, held_out / "dark", "--top", "1", "--json")
    assert [len(row["labels"]) for row in json.loads(text)] == [1] * 4
    for name in ("rows.csv", "rows.json"):
        both, _ = genfl(
            "predict", run.folder, held_out / "dark", "--top", "1", "--json", "--out", tmp_path / name
        )
        assert json.loads(both) == json.loads(text)
    assert (tmp_path / "rows.json").read_text() == both
    text, _ = genfl("predict", run.folder, held_out / "dark", "--top", "2")
    assert text.splitlines()[0].split() == ["input", "label_1", "probability_1", "label_2", "probability_2"]
    assert len(text.splitlines()) == 5


def test_mistakes_name_options_on_one_line(run, tmp_path):
    held_out = run.folder.parent / "held"
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for args, start in (
        (("evaluate", run.folder, "--data", held_out, "--method", "x"), "--method: there is no 'x'"),
        (("evaluate", run.folder, "--data", tmp_path / "empty"), "--data: no Parquet files"),
        (("evaluate", tmp_path, "--data", held_out), "RUN: "),
        (("predict", run.folder, tmp_path / "broken.png"), "FILES: none of the 1 inputs can be read"),
        (("predict", run.folder, held_out, "--out", tmp_path / "x.txt"), "--out: "),
    ):
        message = genfl(*args, error=True)
        assert message.startswith(start)
        assert len(message.splitlines()) == 1


def test_predict_overwrites_no_input_and_no_file_of_a_run(run, tmp_path):
    folder = image_folder(tmp_path / "some", 1)
    inside = folder / "dark" / "old.csv"
    inside.write_text("mine")
    table = tmp_path / "new.csv"
    table.write_text("image\nx\n")
    (tmp_path / "link.csv").symlink_to(table)
    summary = (run.folder / "summary.json").read_bytes()
    for files, out, reason in (
        ([folder, table], table, "is an input"),
        ([table], tmp_path / "some" / ".." / "new.csv", "is an input"),
        ([table], tmp_path / "link.csv", "is an input"),
        ([tmp_path / "link.csv"], table, "is an input"),
        ([tmp_path / "link.csv"], tmp_path / "link.csv", "is an input"),
        ([folder], inside, "is a file in the input"),
        ([folder], run.folder / "summary.json", "is in the folder of a run"),
        ([folder], run.folder / "federate" / "new.csv", "is in the folder of a run"),
    ):
        message = genfl("predict", tmp_path, *files, "--out", out, error=True)  # before the run is read
        assert message.startswith("--out: ")
        assert f" {reason}" in message
        assert len(message.splitlines()) == 1
    assert inside.read_text() == "mine"
    assert table.read_text() == "image\nx\n"
    assert (tmp_path / "link.csv").is_symlink()
    assert (run.folder / "summary.json").read_bytes() == summary
    genfl("predict", run.folder, folder, "--out", folder / "new.csv")  # a new file hurts nothing
    assert (folder / "new.csv").is_file()


def test_targets_that_cannot_be_written_are_one_line(run, tmp_path):
    """Each is named before any work: the folder of the run is none."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    below, long = tmp_path / "file" / "x.csv", tmp_path / f"{'x' * 300}.csv"
    for args, reason in (
        (("predict", tmp_path, tmp_path, "--out", below), "cannot be written (Not a directory)"),
        (("predict", tmp_path, tmp_path, "--out", tmp_path / "folder.csv"), "is a folder; name a file"),
        (("predict", tmp_path, tmp_path, "--out", long), "cannot be written (File name too long)"),
        (("init", "--out", below), "cannot be written ("),
        (("init", "--out", long), "cannot be written ("),
    ):
        message = genfl(*args, error=True)
        assert message.startswith("--out: ")
        assert reason in message
        assert len(message.splitlines()) == 1
    assert (tmp_path / "file").read_bytes() == b""


def test_names_of_classes_do_nothing_to_the_terminal(run, tmp_path):
    """A model of others may name its classes as it likes."""
    shutil.copytree(run.folder, tmp_path / "run")
    file = tmp_path / "run" / "federate" / "fedavg" / "seed-0" / "model.json"
    content = json.loads(file.read_text())
    assert content["label_names"] == ["dark", "light", "middle"]
    content["label_names"] = ["\x1b]0;title\x07dark", "[bold]light", "line\nbreak"]
    file.write_text(json.dumps(content))
    held_out = image_folder(tmp_path / "held", 1)
    (held_out / "middle").rename(held_out / "[bold]light")
    predicted, _ = genfl("predict", tmp_path / "run", held_out)
    evaluated, _ = genfl("evaluate", tmp_path / "run", "--data", held_out)
    for text in (predicted, evaluated):
        assert text.replace("\n", "").isprintable()
        assert r"\x1b]0;title\x07dark" in text
        assert "[bold]light" in text
        assert r"line\nbreak" in text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    summary["methods"]["\x1b[31mred"] = summary["methods"]["fedavg"]
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    assert genfl("predict", tmp_path / "run", held_out, "--method", "zzz", error=True).isprintable()


@pytest.mark.slow
def test_exit_code_2_only_if_nothing_can_be_read(run, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    run_command("predict", run.folder, tmp_path / "broken.png", code=2)
    run_command("predict", run.folder, tmp_path / "broken.png", run.folder.parent / "held")
