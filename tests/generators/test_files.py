import numpy as np
import pytest
import yaml
from PIL import Image

from genfl import config, pipeline
from genfl.errors import InputError
from genfl.generators.base import Prompt
from genfl.generators.files import Files, fingerprint
from genfl.run import Run, data_set
from genfl.stages import generate


def draw(folder, label, number, size=4):
    """Writes an image whose pixels say which it is."""
    (folder / label).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), number, np.uint8)).save(folder / label / f"{number}.png")


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


def test_every_sample_is_taken_once_in_a_drawn_order_whatever_the_blocks(folder):
    files = Files(str(folder), "image")
    cats = [value(sample) for sample in files.generate(ask("black cat", 6))]
    assert sorted(cats) == list(range(6))
    assert cats != sorted(cats)
    mixed = [*ask("dog", 2), *ask("black cat", 3, first=3), *ask("dog", 4, first=2)]
    found = [value(sample) for sample in Files(str(folder), "image").generate(mixed)]
    assert found[2:5] == cats[3:]
    assert sorted(found[:2] + found[5:]) == [100 + n for n in range(6)]


def test_words_stand_for_the_folders_own_names(folder):
    files = Files(str(folder), "image", words={"dog": "hound"})
    (sample,) = files.generate(ask("hound", 1))
    assert value(sample) >= 100
    with pytest.raises(
        InputError, match=r"generator.path: made has no 'dog'; its labels are: black cat, hound"
    ):
        list(files.generate(ask("dog", 1)))


def test_it_says_which_label_has_too_few(folder, caplog):
    (folder / "dog" / "103.png").write_bytes(b"not an image")
    files = Files(str(folder), "image")
    assert "1 images of" in caplog.text
    assert "cannot be read and are left out" in caplog.text
    files.check(["dog", "black cat"], 5)
    with pytest.raises(InputError, match=r"prompts.per_label: 6, but made has 5 of 'dog'; lower it"):
        files.check(["dog", "black cat"], 6)


def test_the_fingerprint_follows_the_content_not_the_place(folder, tmp_path):
    before = fingerprint(str(folder), "image")
    moved = folder.rename(tmp_path / "elsewhere")
    assert fingerprint(str(moved), "image") == before
    draw(moved, "dog", 7)
    fingerprint.cache_clear()
    assert fingerprint(str(moved), "image") != before


def test_what_is_not_there_is_named(tmp_path, folder):
    with pytest.raises(InputError, match=r"generator.path: .*absent does not exist"):
        Files(str(tmp_path / "absent"), "image")
    with pytest.raises(InputError, match=r"generator.label: no column 'class' in"):
        Files(str(folder), "image", label="class")


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
def test_the_pipeline_takes_them_as_synthetic_data(tmp_path):
    run = Run(settings(tmp_path), tmp_path / "run")
    pipeline.execute(run.config, run.folder, until="generate")
    x, y = generate.read(run)
    assert run.labels == ["black cat", "dog"]
    assert y.bincount().tolist() == [5, 5]
    assert ((x[:, 0, 0, 0] >= 100) == (y == 1)).all()
    assert x.shape == (10, *data_set(run.config.data).shape)
    assert len(x.unique(dim=0)) == 10


@pytest.mark.usefixtures("folder")
def test_too_few_are_refused_before_any_work(tmp_path):
    wanted = settings(tmp_path, prompts={"style": "label", "per_label": 7})
    with pytest.raises(InputError, match=r"prompts.per_label: 7, but made has 6 of 'black cat'; lower it"):
        pipeline.execute(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()
