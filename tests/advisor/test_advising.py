"""An advice from end to end, with a real pilot and the run after it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest
import yaml
from support.command import run_command

import genfl
from genfl.errors import InputError
from genfl.experiment.folder import pilot_folder
from genfl.results.advice import Advice

CONTENT = {
    "name": "small",
    "seeds": [0],
    "data": {"name": "digits", "partition": {"clients": 4, "alpha": 1.0}},
    "prompts": {"style": "label", "per_label": 8, "block_size": 20},
    "generator": {"kind": "image", "steps": 1},
    "model": "mlp",
    "pretrain": {"epochs": 2},
    "federate": {"rounds": 6, "clients_per_round": 2, "local": {"steps": 2}},
    "methods": {"fedavg": {"algorithm": "fedavg"}, "gptfl": {"algorithm": "fedavg", "start": "pretrained"}},
}


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    """An advice, and the folder of the run that it is about."""
    run = tmp_path_factory.mktemp("advice") / "small"
    return genfl.advise(CONTENT, run=run, per_label=4, rounds=3), run


def without_times(advice):
    content = advice.to_dict()
    del content["cost"]
    return content


def test_an_advice_says_what_the_pilot_was_and_what_it_predicts(advised):
    advice, _ = advised
    assert (advice.per_label, advice.planned_per_label, advice.rounds, advice.planned_rounds) == (4, 8, 3, 6)
    assert list(advice.methods) == ["gptfl", "fedgc", "both"]
    for likely in (advice.without, advice.alone, *(method.accuracy for method in advice.methods.values())):
        assert 0 <= likely.low <= likely.value <= likely.high <= 1
    for method in advice.methods.values():
        assert -1 <= method.gain.low <= method.gain.value <= method.gain.high <= 1
        assert (method.direction == "helps") == (method.gain.value > 0.02)
        assert (method.direction == "hurts") == (method.gain.value < -0.02)
    assert sum(label.weak for label in advice.labels) == 3
    assert [volume.per_label for volume in advice.volumes] == [4, 8, 16]
    assert advice.table_data >= 3


def test_weak_labels_have_the_lowest_recalls(advised):
    advice, _ = advised
    recalls = {
        label: sum(probe["recall"][n] for probe in advice.evidence["probes"][-2:])
        for n, label in enumerate(advice.evidence["labels"])
    }
    weak = [recalls[label.label] for label in advice.labels if label.weak]
    assert max(weak) <= min(recalls[label.label] for label in advice.labels if not label.weak)


def test_the_files_say_the_same(advised):
    advice, run = advised
    folder = run.with_name("small.advice")
    assert Advice.model_validate(json.loads((folder / "advice.json").read_text())) == advice
    page = (folder / "index.html").read_text()
    for label in advice.labels:
        assert f">{label.label}<" in page
    assert page.count("data:image/png") >= 40, "four samples of each of ten labels"
    assert re.search(r"What was learned of private data", page)


def test_what_clients_tell_is_listed(advised):
    advice, _ = advised
    told = {row.what: row for row in advice.learned}
    assert told["the label names"].mechanism == "secure_sum"
    sums = [row for what, row in told.items() if what.startswith("for each label")]
    assert [(row.recipient, row.mechanism) for row in sums] == [("sum", "exact")] * 2


def test_an_advice_is_the_same_again_and_trains_nothing_anew(advised, tmp_path):
    advice, run = advised
    pilot = pilot_folder(run)
    before = {path: path.stat().st_mtime_ns for path in pilot.rglob("*.safetensors")}
    assert without_times(genfl.advise(CONTENT, run=run, per_label=4, rounds=3)) == without_times(advice)
    assert {path: path.stat().st_mtime_ns for path in pilot.rglob("*.safetensors")} == before
    elsewhere = genfl.advise(CONTENT, run=tmp_path / "small", per_label=4, rounds=3)
    assert without_times(elsewhere) == without_times(advice)


def test_the_run_takes_over_the_samples_of_the_pilot(advised, tmp_path):
    """Two of four blocks: the same files, with the same bits as without a pilot."""
    _, run = advised
    after = genfl.run(CONTENT, out=run)
    alone = genfl.run(CONTENT, out=tmp_path / "alone")
    files = sorted((after.folder / "synthetic" / "data").glob("*.parquet"))
    assert len(files) == 4
    of_pilot = {path.stat().st_ino for path in (pilot_folder(run) / "synthetic" / "data").glob("*.parquet")}
    assert [path.stat().st_ino in of_pilot for path in files] == [True, True, False, False]
    for path in files:
        others = alone.folder / "synthetic" / "data" / path.name
        assert pyarrow.parquet.read_table(path).equals(pyarrow.parquet.read_table(others))
    assert after.summary.methods["gptfl"].accuracy == alone.summary.methods["gptfl"].accuracy


def test_an_owner_of_data_can_do_without_a_federation(tmp_path):
    bare = genfl.advise(CONTENT, run=tmp_path / "small", per_label=4, federation=False)
    assert (bare.rounds, bare.curves, bare.cost.training_seconds) == (0, {}, None)
    assert bare.best is None or bare.methods[bare.best].certain
    assert not (pilot_folder(tmp_path / "small") / "federate").exists(), "nothing was trained on private data"
    assert not any(row.what.startswith("changes of the model") for row in bare.learned)


def test_mistakes_are_one_line(advised, tmp_path):
    _, run = advised
    with pytest.raises(InputError, match=r"^per_label: 2"):
        genfl.advise(CONTENT, run=tmp_path / "x", per_label=2)
    with pytest.raises(InputError, match=r"^generator: none"):
        genfl.advise(
            {**CONTENT, "generator": "none", "methods": {"fedavg": {"algorithm": "fedavg"}}},
            run=tmp_path / "x",
        )
    with pytest.raises(InputError, match=r"^out: .* is in the folder of a run"):
        genfl.advise(CONTENT, run=run, out=run / "advice")
    assert not (tmp_path / "x").exists()


def test_a_language_model_that_does_not_answer_is_named(tmp_path):
    content = {
        **CONTENT,
        "prompts": {
            "style": "llm",
            "per_label": 8,
            "llm": {"model": "x", "base_url": "http://127.0.0.1:9/v1", "timeout": 1, "attempts": 1},
        },
    }
    with pytest.raises(genfl.GenflError, match=r"127\.0\.0\.1:9"):
        genfl.advise(content, run=tmp_path / "small", per_label=4, rounds=3)


def content_of_images(tmp_path, labels):
    """A config of three clients with images of their own, and images that were made before."""
    from PIL import Image

    def write(folder, number, value):
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.new("L", (8, 8), value)
        image.putpixel((number, number), 255 - value)
        image.save(folder / f"{number}.png")

    for label, value in labels.items():
        for number in range(8):
            write(tmp_path / "made" / label, number, value + 20)
            for client in ("ann", "bob", "cid"):
                write(tmp_path / "data" / ("test" if number > 5 else "train") / client / label, number, value)
    data = {
        "name": "images",
        "path": str(tmp_path / "data"),
        "size": [8, 8],
        "channels": 1,
        "folders": "split/client/class",
        "partition": {"kind": "natural"},
    }
    return {**CONTENT, "data": data, "generator": {"kind": "files", "path": str(tmp_path / "made")}}


def test_natural_clients_and_a_files_generator(tmp_path):
    content = content_of_images(tmp_path, {"dark": 30, "light": 200})
    advice = genfl.advise(content, run=tmp_path / "small", per_label=4, rounds=3)
    assert [label.label for label in advice.labels] == ["dark", "light"]
    assert advice.evidence["clients"] == 3


def test_a_single_class_is_one_line(tmp_path):
    content = content_of_images(tmp_path, {"dark": 30})
    with pytest.raises(InputError, match=r"^data\.label: all examples of train are of one class"):
        genfl.advise(content, run=tmp_path / "small", per_label=4, rounds=3)


def test_the_command_prints_the_verdict_and_the_page(advised, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONTENT))
    printed, _ = run_command("advise", "small.yaml", "--per-label", "4", "--rounds", "3")
    assert printed.startswith("The generator ")
    for about in ("GPT-FL: ", "FedGC: ", "Weak labels: ", "Cost: generation ", "Page: "):
        assert about in printed
    as_json, _ = run_command("advise", "small.yaml", "--per-label", "4", "--rounds", "3", "--json")
    content = Advice.model_validate(json.loads(as_json))
    assert without_times(content) == without_times(advised[0])


@pytest.mark.slow
def test_a_killed_advice_resumes_with_the_same_figures(advised, tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONTENT))
    command = [sys.executable, "-m", "genfl", "advise", "small.yaml", "--per-label", "4", "--rounds", "3"]
    folder = tmp_path / "runs" / "small.advice"
    for wanted in ("pilot/synthetic/data/*.parquet", "probes/probe-*.safetensors"):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 120
        while not list(folder.glob(wanted)) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    resumed = Advice.model_validate(json.loads((folder / "advice.json").read_text()))
    assert without_times(resumed) == without_times(advised[0])
