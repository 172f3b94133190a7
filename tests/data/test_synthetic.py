import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from genfl.data.media import MEDIA
from genfl.data.samples import Prompt, Sample
from genfl.data.synthetic import SyntheticData
from genfl.errors import GenflError
from genfl.storage import digest, remove


def _samples(shard):
    return [
        Sample(
            Prompt(label, f"a {label}", 1.5 + shard, 10 * shard + n),
            Image.fromarray(np.full((4, 4, 3), 50 * shard + n, np.uint8)),
        )
        for n, label in enumerate(["cat", "dog", "cat"])
    ]


@pytest.fixture
def data(tmp_path):
    data = SyntheticData(tmp_path / "synthetic", ["cat", "dog"], shards=3)
    for shard in range(3):
        data.write(shard, _samples(shard), "a generator", seconds=0.5)
    data.write_card("Cats and dogs", {"generator": "a generator"})
    return data


def test_hugging_face_datasets_opens_the_folder(data, tmp_path):
    loaded = datasets.load_dataset(str(data.folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(loaded) == 9
    row = loaded[4]
    assert loaded.features["label"].names == ["cat", "dog"]
    assert row["image"].getpixel((0, 0)) == (51, 51, 51)
    assert (row["label"], row["prompt"], row["guidance_scale"], row["seed"]) == (1, "a dog", 2.5, 11)
    assert (row["generator"], row["guided"]) == ("a generator", False)


def test_two_sets_and_one_made_anew_are_not_taken_for_each_other_by_the_cache(data, tmp_path):
    def rows(folder):
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
        return [row["seed"] for row in loaded]

    def make(folder, shards):
        made = SyntheticData(folder, ["cat", "dog"], len(shards))
        for number, shard in enumerate(shards):
            made.write(number, _samples(shard), "a generator", seconds=0.5)
        made.write_card("Cats and dogs", {"generator": "a generator"})

    other = tmp_path / "other" / "synthetic"
    make(other, [4])
    assert (len(rows(data.folder)), rows(other)) == (9, [40, 41, 42])
    shutil.rmtree(other)
    make(other, [3])
    assert rows(other) == [30, 31, 32]


def test_it_reads_back_what_was_written(data):
    images, labels = SyntheticData.open(data.folder).read(MEDIA["image"].read)
    assert labels == ["cat", "dog", "cat"] * 3
    assert [image.getpixel((0, 0))[0] for image in images] == [0, 1, 2, 50, 51, 52, 100, 101, 102]


def test_the_same_samples_give_the_same_bytes(data, tmp_path):
    again = SyntheticData(tmp_path / "again", ["cat", "dog"], shards=3)
    for shard in (2, 0, 1):
        again.write(shard, _samples(shard), "a generator", seconds=9.0)
    for shard in data.finished().values():
        assert (data.folder / shard.file).read_bytes() == (again.folder / shard.file).read_bytes()


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_flipped_byte_is_named_and_only_that_shard_is_missing(data, position, caplog):
    path = data.folder / data.finished()[1].file
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert list(data.damaged()) == [1]
    assert data.missing() == [1]
    assert path.name in caplog.text
    with pytest.raises(GenflError, match="generate stage again"):
        data.read(MEDIA["image"].read)
    data.write(1, _samples(1), "a generator", seconds=0.5)
    assert data.missing() == []


def _written(data):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in data.folder.rglob("*.parquet")}


def test_a_shard_that_the_manifest_does_not_list_counts(tmp_path):
    """As after a kill between writing a shard and listing it."""
    data = SyntheticData(tmp_path, ["cat", "dog"], shards=2)
    data.write(0, _samples(0), "a generator", seconds=0.5)
    listed = data.manifest.read_bytes()
    data.write(1, _samples(1), "a generator", seconds=0.5)
    data.manifest.write_bytes(listed)
    assert list(data.finished()) == [0]
    assert data.repair() == []
    assert [shard.seconds for shard in data.finished().values()] == [0.5, None]


def _flip(manifest):
    content = bytearray(manifest.read_bytes())
    content[len(content) // 2] ^= 1
    manifest.write_bytes(content)


def _edit(manifest):
    content = json.loads(manifest.read_text())
    content["shards"]["0"] |= {"rows": 30, "removed": {"cat": {"blank": 7}}}
    manifest.write_text(json.dumps(content))


def _name_outside(manifest):
    content = json.loads(manifest.read_text())
    content["shards"]["0"]["file"] = "../../elsewhere"
    del content["sha256"]
    manifest.write_text(json.dumps({**content, "sha256": digest(content)}))


@pytest.mark.parametrize(
    "harm",
    [
        _flip,
        _edit,
        _name_outside,
        *[lambda path, text=text: path.write_text(text) for text in ("", "{}", "[]", "{")],
    ],
)
def test_a_damaged_manifest_is_named_and_made_again_from_the_shards(tmp_path, harm, caplog):
    data = SyntheticData(tmp_path, ["cat", "dog"], shards=4)
    data.write(0, _samples(0), "a generator", seconds=0.5, removed={"dog": {"blank": 2}})
    data.write(2, [], "a generator", seconds=0.5, removed={"cat": {"blank": 3}})
    before, listed = _written(data), data.finished()
    harm(data.manifest)
    again = SyntheticData.open(tmp_path)
    assert again.label_names == ["cat", "dog"]
    assert again.repair() == [1, 3]
    assert f"{data.manifest} is damaged" in caplog.text
    assert again.finished() == {n: shard._replace(seconds=None) for n, shard in listed.items()}
    assert again.removed() == {"dog": {"blank": 2}, "cat": {"blank": 3}}
    assert _written(data) == before
    caplog.clear()
    assert again.repair() == [1, 3]
    assert caplog.text == ""


def test_a_deleted_manifest_loses_no_shard(data):
    before = _written(data)
    data.manifest.unlink()
    assert data.missing() == data.repair() == []
    assert _written(data) == before
    assert len(SyntheticData.open(data.folder).read(lambda cell: cell)[0]) == 9


def test_shards_of_other_samples_do_not_count_and_are_deleted(data):
    other = SyntheticData(data.folder, ["cat", "dog"], shards=3, digest="another")
    assert other.finished() == {}
    assert other.missing() == [0, 1, 2]
    assert len(_written(data)) == 3, "reading deletes nothing"
    data.manifest.unlink()  # the shards themselves say what they belong to
    assert other.repair() == [0, 1, 2]
    assert _written(data) == {}
    with pytest.raises(GenflError, match="no intact generated samples"):
        SyntheticData.open(data.folder)


@pytest.mark.parametrize("position", [4, 200, -300, -9, -1])
def test_a_damaged_shard_is_noticed_without_a_manifest(data, position):
    path = data.folder / data.finished()[1].file
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    data.manifest.unlink()
    assert data.missing() == [1]
    path.write_bytes(content[:50])
    assert data.repair() == [1]
    assert not path.exists()


def test_what_was_left_out_adds_up_over_shards(tmp_path):
    data = SyntheticData(tmp_path, ["cat", "dog"], shards=3)
    removed = ({"cat": {"blank": 2}}, {"cat": {"blank": 1, "not finite": 1}, "dog": {"blank": 1}}, {})
    for shard, left_out in enumerate(removed):
        data.write(shard, _samples(shard), "a generator", seconds=0.5, removed=left_out)
    assert data.removed() == {"cat": {"blank": 3, "not finite": 1}, "dog": {"blank": 1}}
    assert [shard.generated for shard in data.finished().values()] == [5, 6, 3]


def test_a_shard_without_samples_counts_as_finished(data):
    remove(data.folder / data.finished()[1].file, data.folder)
    data.write(1, [], "a generator", seconds=0.5, removed={"cat": {"blank": 3}})
    assert data.missing() == []
    assert [path.name for path in data.files()] == [
        "train-00000-of-00003.parquet",
        "train-00002-of-00003.parquet",
    ]
    pixels, _ = data.read(lambda cell: MEDIA["image"].read(cell).getpixel((0, 0))[0])
    assert pixels == [0, 1, 2, 100, 101, 102]


def test_only_what_is_missing_here_and_intact_there_is_adopted(data, tmp_path):
    here = SyntheticData(tmp_path / "here", ["cat", "dog"], shards=3)
    here.write(0, _samples(0), "a generator", seconds=9.0)
    damaged = data.folder / data.finished()[2].file
    damaged.write_bytes(b"")
    assert here.adopt(data.folder) == 2
    assert {number: shard.seconds for number, shard in here.finished().items()} == {0: 9.0, 1: 0.5}
    assert here.missing() == [2]
    assert here.files()[1].samefile(data.files()[1])
    assert SyntheticData(tmp_path / "nothing", ["cat", "dog"], shards=3).adopt(here.folder) == 2
    assert here.missing() == [2]
    assert here.adopt(tmp_path / "absent") == 0


def test_the_card_says_what_it_is(data):
    card = (data.folder / "README.md").read_text()
    assert card.startswith("---\ntags:")
    assert "configs" not in card
    assert "9 samples of 2 classes (cat, dog)" in card


def test_what_nobody_knows_is_null(tmp_path):
    data = SyntheticData(tmp_path / "synthetic", ["cat", "dog"], shards=1)
    data.write(0, _samples(0), "a folder", seconds=0.5, prompted=False)
    rows = datasets.load_dataset(str(data.folder), split="train", cache_dir=str(tmp_path / "cache"))
    known = rows.remove_columns("image")[0]
    unknown = dict.fromkeys(["prompt", "guidance_scale", "seed", "guided"])
    assert known == {"label": 0, "generator": "a folder", **unknown}


def test_an_image_of_a_mode_that_png_has_not_is_written_as_rgb():
    cell = MEDIA["image"].write(Image.new("CMYK", (2, 2), (0, 255, 255, 0)))
    image = MEDIA["image"].read(cell)
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 0, 0))
