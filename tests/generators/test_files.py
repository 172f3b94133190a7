import shutil
import unicodedata

import datasets
import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from genfl import config, pipeline
from genfl.data.samples import Prompt
from genfl.data.sources import DATASETS, read_dataset
from genfl.data.synthetic import SyntheticData
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run
from genfl.generators.files import Files, check_not_private, samples_fingerprint
from genfl.report.pictures import VIEWS
from genfl.results.examples import GeneratedExample
from genfl.stages import generate


def draw(folder, label, number, size=4):
    """Writes an image whose pixels say which it is."""
    (folder / label).mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size, 3), number, np.uint8)
    pixels[-1, -1] = 255  # a blank image is left out
    Image.fromarray(pixels).save(folder / label / f"{number}.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    for number in range(6):
        draw(tmp_path / "made", "black_cat", number)
        draw(tmp_path / "made", "dog", 100 + number)
    return tmp_path / "made"


def value(sample):
    return sample.content.convert("RGB").getpixel((0, 0))[0]


def ask(label, count, first=0):
    return [Prompt(label, label, 1.0, 7, nth) for nth in range(first, first + count)]


def test_files_use_each_sample_once_in_random_order(folder):
    files = Files(str(folder), "image")
    cats = [value(sample) for sample in files.generate(ask("black cat", 6))]
    assert sorted(cats) == list(range(6))
    assert cats != sorted(cats)
    mixed = [*ask("dog", 2), *ask("black cat", 3, first=3), *ask("dog", 4, first=2)]
    found = [value(sample) for sample in Files(str(folder), "image").generate(mixed)]
    assert found[2:5] == cats[3:]
    assert sorted(found[:2] + found[5:]) == [100 + n for n in range(6)]


def test_files_rename_labels_by_words(folder):
    files = Files(str(folder), "image", words={"dog": "hound"})
    (sample,) = files.generate(ask("hound", 1))
    assert value(sample) >= 100
    with pytest.raises(
        InputError,
        match=r"generator.path: made has no samples of 'dog'; .* one of its labels: black cat, hound$",
    ):
        list(files.generate(ask("dog", 1)))


def test_files_name_the_label_with_too_few_samples(folder, caplog):
    (folder / "dog" / "103.png").write_bytes(b"not an image")
    files = Files(str(folder), "image")
    files.check_labels(["dog", "black cat"], 6)  # what can be read is not known before it is
    with pytest.raises(InputError, match=r"prompts.per_label: 7, but made has 6 samples of 'dog'; lower it"):
        files.check_labels(["dog", "black cat"], 7)
    assert caplog.text == ""
    list(files.generate(ask("dog", 5)))
    assert "1 images of" in caplog.text
    assert "cannot be read and are left out: dog/103.png" in caplog.text
    with pytest.raises(InputError, match=r"prompts.per_label: 6, but made has 5 samples of 'dog'; lower it"):
        files.check_prompts([*ask("black cat", 6), *ask("dog", 6)])
    with pytest.raises(InputError, match=r"prompts.per_label: 6, but made has 5 samples of 'dog'; lower it"):
        list(files.generate(ask("dog", 6)))


def test_files_name_what_they_do_not_read(folder, caplog):
    (folder / "cat food").mkdir()
    (folder / "dog" / "notes.doc").write_bytes(b"not an image")
    (folder / "cat food" / "prices.doc").write_bytes(b"not an image")
    files = Files(str(folder), "image")
    files.check_labels(["dog"], 3)
    assert caplog.text == ""
    list(files.generate(ask("dog", 3)))
    assert "2 files not read (not images): cat food/prices.doc, dog/notes.doc" in caplog.text


def test_files_leave_out_what_cannot_be_encoded(folder, caplog):
    def encode(image):
        if image.size != (4, 4):
            raise ValueError("too small")

    draw(folder, "dog", 200, size=1)
    files = Files(str(folder), "image", encode=encode)
    assert len(list(files.generate(ask("dog", 6)))) == 6
    assert "1 images of" in caplog.text
    with pytest.raises(InputError, match=r"has 6 samples of 'dog'"):
        list(files.generate(ask("dog", 7)))


def test_files_reject_two_labels_of_one_name(folder):
    draw(folder, "black cat", 1)
    with pytest.raises(
        InputError, match=r"^generator.label: two labels of made are both called 'black cat'; rename"
    ):
        Files(str(folder), "image").check_labels(["dog"], 1)


def test_check_not_private_rejects_shared_files(folder, tmp_path):
    with pytest.raises(InputError, match=r"^generator.path: .* is the private data, whose "):
        check_not_private(str(folder), folder / ".." / "made", "image")
    other = tmp_path / "other"
    draw(other, "dog", 50)
    (folder / "LICENSE").write_text("free")
    shutil.copy(folder / "LICENSE", other)
    check_not_private(str(folder), other, "image")
    shutil.copy(folder / "dog" / "103.png", other / "dog" / "private.png")
    with pytest.raises(InputError, match=r"^generator.path: its file dog/103.png is also in data.path, "):
        check_not_private(str(folder), other, "image")


def test_check_not_private_ignores_description_files(tmp_path):
    for name, words in (("made", ["good", "bad"]), ("own", ["fine", "poor"])):
        rows = datasets.Dataset.from_dict({"text": words, "label": [0, 1]})
        datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / name)
    check_not_private(str(tmp_path / "made"), tmp_path / "own", "text")
    with pytest.raises(InputError, match=r"also in data.path"):
        check_not_private(str(tmp_path / "made" / "train"), tmp_path / "made", "text")


def test_samples_fingerprint_follows_the_content(folder, tmp_path):
    before = samples_fingerprint(str(folder), "image")
    moved = folder.rename(tmp_path / "elsewhere")
    assert samples_fingerprint(str(moved), "image") == before
    draw(moved, "dog", 7)
    assert samples_fingerprint(str(moved), "image") != before


def test_files_name_missing_folders_and_columns(tmp_path, folder):
    with pytest.raises(InputError, match=r"generator.path: .*absent does not exist"):
        Files(str(tmp_path / "absent"), "image")
    with pytest.raises(InputError, match=r"generator.label: no column 'class' in"):
        Files(str(folder), "image", label="class").check_labels(["dog"], 1)
    with pytest.raises(
        InputError, match=r"^generator.path: hf://datasets/genfl-tests/absent is not downloaded yet"
    ):
        Files("hf://datasets/genfl-tests/absent", "image")
    with pytest.raises(InputError, match=r"^generator.path: hospital/patients does not exist"):
        Files("hospital/patients", "image")  # a mistake, and nobody else's data set


def test_files_read_a_data_set_of_the_hub(folder, tmp_path, monkeypatch):
    """As the Hub's own client keeps it; here nothing can be downloaded."""
    commit = "0" * 40
    place = tmp_path / "hub" / "datasets--somebody--cats"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    files = Files("hf://datasets/somebody/cats", "image")
    assert files.id == "hf://datasets/somebody/cats"
    assert [value(sample) for sample in files.generate(ask("dog", 6))] == [
        value(sample) for sample in Files(str(folder), "image").generate(ask("dog", 6))
    ]
    assert samples_fingerprint("hf://datasets/somebody/cats", "image") == samples_fingerprint(
        str(folder), "image"
    )
    data = read_dataset("images", DATASETS["images"].recipe, path="hf://datasets/somebody/cats", size=(4, 4))
    assert len(data.train.labels) + len(data.test.labels) == 12


def synthetic(run):
    """Reads the synthetic data of a run as inputs and class indices."""
    data = RunContext().data_set(run.config.data)
    return generate.read_synthetic(run.folder / "synthetic", data, run.labels)


def settings(tmp_path, **changes):
    private = tmp_path / "private"
    for split, count in (("train", 8), ("test", 4)):
        for number in range(count):
            draw(private / split, "black_cat", number, size=8)
            draw(private / split, "dog", 100 + number, size=8)
    content = {
        "name": "files",
        "seeds": [0],
        "data": {"name": "images", "path": str(private), "size": [4, 4]},
        "prompts": {"style": "label", "per_label": 5, "block_size": 4},
        "generator": {"kind": "files", "path": str(tmp_path / "made")},
        "model": "mlp",
        "methods": {"a": {"algorithm": "fedavg"}},
    }
    content["data"]["partition"] = {"clients": 2, "kind": "iid"}
    content["federate"] = {"clients_per_round": 2}
    return config.parse(yaml.safe_dump(content | changes))


@pytest.mark.usefixtures("folder")
def test_files_run_writes_the_synthetic_data_set(tmp_path):
    run = Run(settings(tmp_path), tmp_path / "run")
    pipeline.execute(run.config, run.folder, until="generate")
    x, y = synthetic(run)
    assert run.labels == ["black cat", "dog"]
    assert y.bincount().tolist() == [5, 5]
    assert ((x[:, 0, 0, 0] >= 100) == (y == 1)).all()
    assert x.shape == (10, *RunContext().data_set(run.config.data).shape)
    assert len(x.unique(dim=0)) == 10
    card = (run.folder / "synthetic" / "README.md").read_text()
    assert "- taken from: made\n" in card
    assert str(tmp_path) not in card
    assert "- recorded from the world: not known" in card
    assert "guidance scales:" not in card
    rows = datasets.load_dataset(str(run.folder / "synthetic"), split="train")
    for column in ("prompt", "guidance_scale", "seed", "guided"):
        assert set(rows[column]) == {None}


@pytest.mark.usefixtures("folder")
def test_files_run_rejects_wrong_settings_first(tmp_path):
    filled = {"style": "fill", "template": "a {label}", "per_label": 5}
    with pytest.raises(InputError, match=r"^prompts.style: generator files uses no prompts; "):
        pipeline.execute(settings(tmp_path, prompts=filled), tmp_path / "run")
    private = {"kind": "files", "path": str(tmp_path / "private")}
    with pytest.raises(InputError, match=r"^generator.path: .* is the private data, "):
        pipeline.execute(settings(tmp_path, generator=private), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_files_run_leaves_out_clips_that_are_too_short(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("private", 6), ("clips", 2)):
        for label in ("yes", "no"):
            (tmp_path / name / "train" / label).mkdir(parents=True)
            for number in range(count + 1):
                samples = rng.uniform(-0.5, 0.5, 8_000 if number < count else 800)
                soundfile.write(tmp_path / name / "train" / label / f"{number}.wav", samples, 16_000)
    sounds = {
        "data": {
            "name": "sounds",
            "path": str(tmp_path / "private"),
            "seconds": 0.5,
            "partition": {"clients": 2, "kind": "iid"},
        },
        "generator": {"kind": "files", "path": str(tmp_path / "clips")},
        "model": "fedaudio",
    }
    many = settings(tmp_path / "images", prompts={"per_label": 3}, **sounds)
    with pytest.raises(InputError, match=r"^prompts.per_label: 3, but clips has 2 samples of "):
        pipeline.execute(many, tmp_path / "many")
    run = Run(settings(tmp_path / "images", prompts={"per_label": 2}, **sounds), tmp_path / "run")
    pipeline.execute(run.config, run.folder, until="generate")
    assert len(synthetic(run)[0]) == 4


def test_files_run_stops_if_nothing_is_usable(tmp_path, folder):
    for label in ("black_cat", "dog"):
        for number in range(6, 40):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / label / f"{number}.png")
        for number in (*range(6), *range(100, 106)):
            (folder / label / f"{number}.png").unlink(missing_ok=True)
    prompts = {"style": "label", "per_label": 30, "block_size": 4}
    run = Run(settings(tmp_path, prompts=prompts), tmp_path / "run")
    with pytest.raises(InputError, match=r"^generator: none of the first 12 samples is usable \(blank\); "):
        pipeline.execute(run.config, run.folder)
    # what was wrong may be outside of the config, so that nothing counts as made
    assert SyntheticData(run.folder / "synthetic", run.labels, 15).finished() == {}


def test_report_shows_samples_from_a_folder():
    for view in VIEWS.values():
        assert view.title(GeneratedExample(None, None, None, None)) == "taken from a folder"


@pytest.mark.usefixtures("folder")
def test_files_run_matches_labels_across_unicode_forms(tmp_path):
    wanted, name = settings(tmp_path), unicodedata.normalize("NFD", "Käse")
    (tmp_path / "made" / "dog").rename(tmp_path / "made" / name)
    for split in ("train", "test"):
        (tmp_path / "private" / split / "dog").rename(tmp_path / "private" / split / name)
    pipeline.execute(wanted, tmp_path / "run", until="generate")
    assert Run(wanted, tmp_path / "run").labels == ["Käse", "black cat"]


@pytest.mark.usefixtures("folder")
def test_files_run_rejects_too_few_samples_first(tmp_path):
    wanted = settings(tmp_path, prompts={"style": "label", "per_label": 7})
    with pytest.raises(
        InputError, match=r"prompts.per_label: 7, but made has 6 samples of 'black cat'; lower it"
    ):
        pipeline.execute(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()
