"""The generate stage: what is left out, what it says of itself, shards, and kills."""

import json
import shutil
from pathlib import Path

import datasets
import filelock
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import yaml
from PIL import Image
from support.opened import open_run
from support.parameters import mostly_slow

from genfl import config, pipeline, storage
from genfl.errors import InputError
from genfl.experiment import records
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run, Shard, shard_folders
from genfl.stages import prompts
from genfl.storage import digest, read_json, sha256
from genfl.threads import on_threads

CONTENT = {
    "name": "made",
    "seeds": [0],
    "data": {"name": "images", "size": [8, 8], "partition": {"kind": "iid", "clients": 2}},
    "prompts": {"style": "label", "per_label": 6, "block_size": 2},
    "generator": {"kind": "files"},
    "model": {"name": "mlp", "width": 8},
    "pretrain": {"epochs": 1, "batch_size": 4},
    "federate": {"rounds": 1, "clients_per_round": 2, "engine": "sequential", "local": {"steps": 1}},
    "methods": {"fedavg": {"algorithm": "fedavg"}, "gptfl": {"algorithm": "fedavg", "start": "pretrained"}},
}
LABELS = ["black", "white"]
UNITS = len(LABELS) * CONTENT["prompts"]["per_label"]


def draw(folder, per_class, seed):
    """Writes noise that is dark or bright."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(LABELS):
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        for n in range(per_class):
            pixels = rng.integers(100, size=(8, 8, 3), dtype=np.uint8) + np.uint8(150 * number)
            Image.fromarray(pixels).save(folder / "train" / name / f"{n}.bmp")
    return folder


def blank(folder, label, *numbers):
    for n in numbers:
        Image.new("RGB", (8, 8), (n, n, n)).save(folder / "train" / label / f"{n}.bmp")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder with six samples of each label."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "own", 6, seed=0)
    return draw(tmp_path / "made", 6, seed=1)


def parse(made, *overrides):
    own = made.parent / "own"
    return config.parse(yaml.safe_dump(CONTENT), [f"data.path={own}", f"generator.path={made}", *overrides])


def execute(made, folder, *overrides, until="generate", **options):
    wanted = parse(made, *overrides)
    pipeline.execute(wanted, folder, until=until, **options)
    return open_run(wanted, folder)


def reopen(run):
    """Leaves a finished stage as a kill after its last block would."""
    started = {"stage": "generate", "digest": run.run.digest("generate"), "done": False}
    records.write_record(run.run.record("generate"), started)


def synthetic(folder, lost=(0,)):
    """Returns the bytes of all files of a data set, and its manifest without times, threads and checksum.

    The times of one of these numbers of shards are lost.
    """
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in (folder / "synthetic").rglob("*")
        if path.is_file()
    }
    manifest = json.loads(files.pop("synthetic/manifest.json"))
    del manifest["sha256"]
    measured = [(shard.pop("seconds"), shard.pop("threads")) for shard in manifest["shards"].values()]
    assert measured.count((None, None)) in lost
    assert all(seconds >= 0 and threads >= 1 for seconds, threads in measured if seconds is not None)
    return files, manifest


@pytest.mark.slow
def test_what_is_broken_is_left_out_and_counted_wherever_the_data_set_is_described(made, tmp_path, caplog):
    blank(made, "black", 1, 2, 3)
    run = execute(made, tmp_path / "run", until="report")
    result = run.result("generate")
    assert (result["samples"], result["removed"]) == (UNITS - 3, 3)
    assert result["labels"]["black"]["removed"] == {"blank": 3}
    assert result["labels"]["white"]["removed"] == {}
    assert read_json(tmp_path / "run" / "summary.json")["synthetic"] == result
    shards = read_json(tmp_path / "run" / "synthetic" / "manifest.json")["shards"].values()
    assert sum(shard["removed"].get("black", {}).get("blank", 0) for shard in shards) == 3
    assert sum(shard["rows"] for shard in shards) == UNITS - 3
    card = (tmp_path / "run" / "synthetic" / "README.md").read_text()
    assert f"{UNITS - 3} samples of 2 classes" in card
    assert "- left out: black: 3 blank\n" in card
    assert "- licence of the generator: unknown\n" in card
    assert "samples of 'black' are left out: 3 blank" in caplog.text
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "<td>3 blank</td>" in page
    assert "licence of the generator" in page
    x, y = run.synthetic()
    assert y.bincount().tolist() == [3, 6]
    assert len(x) == UNITS - 3
    rows = datasets.load_dataset(
        str(tmp_path / "run" / "synthetic"), split="train", cache_dir=str(tmp_path / "datasets")
    )
    assert rows["label"] == y.tolist()


def test_a_label_of_which_nothing_is_left_is_named_once_everything_is_made(made, tmp_path):
    blank(made, "white", *range(6))
    for _ in range(2):  # the second time from what is there
        with pytest.raises(
            InputError, match=r"^generator: no sample of the label 'white' is usable .*6 blank"
        ):
            execute(made, tmp_path / "run")
        made_at = [path.stat().st_mtime_ns for path in (tmp_path / "run" / "synthetic").rglob("*.parquet")]
        assert len(set(made_at)) == len(made_at) == 6
    assert {row.name: row.state for row in pipeline.run_status(tmp_path / "run")}["generate"] == "partial"


@pytest.mark.slow
def test_a_block_of_which_nothing_is_left_is_not_made_again(made, tmp_path):
    blank(made, "black", 3)
    run = execute(made, tmp_path / "run", "prompts.block_size=1")
    manifest = read_json(tmp_path / "run" / "synthetic" / "manifest.json")
    (shard,) = [shard for shard in manifest["shards"].values() if not shard["rows"]]
    assert (shard["file"].partition("/")[0], shard["removed"]) == ("empty", {"black": {"blank": 1}})
    assert len(list((tmp_path / "run" / "synthetic" / "data").iterdir())) == UNITS - 1
    rows = datasets.load_dataset(
        str(tmp_path / "run" / "synthetic"), split="train", cache_dir=str(tmp_path / "datasets")
    )
    assert len(rows) == len(run.synthetic()[0]) == UNITS - 1
    before = (tmp_path / "run" / "synthetic" / "manifest.json").read_bytes()
    reopen(run)
    assert run.progress("generate")[:2] == (UNITS, UNITS)
    execute(made, tmp_path / "run", "prompts.block_size=1")
    assert (tmp_path / "run" / "synthetic" / "manifest.json").read_bytes() == before, "the times, too"


def test_silent_clips_are_left_out(made, tmp_path):
    rng = np.random.default_rng(0)
    for place in ("own", "made"):
        for label in ("yes", "no"):
            (tmp_path / "clips" / place / "train" / label).mkdir(parents=True)
            for n in range(4):
                loud = 0 if (place, label, n) == ("made", "no", 1) else 0.5
                file = tmp_path / "clips" / place / "train" / label / f"{n}.wav"
                soundfile.write(file, loud * rng.uniform(-1, 1, 8_000), 16_000)
    content = CONTENT | {
        "data": {"name": "sounds", "path": str(tmp_path / "clips" / "own"), "seconds": 0.5},
        "generator": {"kind": "files", "path": str(tmp_path / "clips" / "made")},
        "prompts": {"per_label": 4},
    }
    content["data"]["partition"] = CONTENT["data"]["partition"]
    settings = config.validate(content)
    pipeline.execute(settings, tmp_path / "run", until="generate")
    run = open_run(settings, tmp_path / "run")
    assert run.result("generate")["labels"]["no"]["removed"] == {"silent": 1}
    assert len(run.synthetic()[0]) == 7


def test_repetitions_are_counted_and_kept(made, tmp_path):
    shutil.copy(made / "train" / "black" / "0.bmp", made / "train" / "black" / "1.bmp")
    with Image.open(made / "train" / "white" / "0.bmp") as image:
        image.save(made / "train" / "white" / "1.bmp.jpg", quality=90)
    run = execute(made, tmp_path / "run", "prompts.per_label=6")
    result = run.result("generate")
    assert result["samples"] == UNITS
    assert (result["duplicates"], result["labels"]["black"]["duplicates"]) == (1, 1)
    assert result["near_duplicates"] >= 1
    assert "- exact duplicates: 1\n" in (tmp_path / "run" / "synthetic" / "README.md").read_text()


def test_the_cost_counts_the_seconds_of_all_shards_and_the_bytes_of_all_files(made, tmp_path):
    run = execute(made, tmp_path / "run")
    manifest, result = tmp_path / "run" / "synthetic" / "manifest.json", run.result("generate")
    content = read_json(manifest)
    for shard in content["shards"].values():
        shard["seconds"] = 2.0  # as if it had taken long, in several starts
    del content["sha256"]
    manifest.write_text(json.dumps({**content, "sha256": digest(content)}))
    reopen(run)
    again = execute(made, tmp_path / "run").result("generate")
    assert again["seconds"] == 12.0
    assert again["samples_per_second"] == UNITS / 12
    files = list((tmp_path / "run" / "synthetic" / "data").iterdir())
    assert again["bytes"] == result["bytes"] == sum(file.stat().st_size for file in files)


@pytest.fixture
def whole(made, tmp_path):
    return synthetic(execute(made, tmp_path / "whole").folder)


def half_made(made, folder):
    """Leaves a run as a kill after three of six blocks would; returns the blocks and their times."""
    run = execute(made, folder)
    reopen(run)
    blocks = sorted((folder / "synthetic" / "data").iterdir())
    for block in blocks[3:]:
        block.unlink()
    (folder / "synthetic" / "README.md").unlink()
    return {block: block.stat().st_mtime_ns for block in blocks[:3]}


def harm_manifest(run):
    file = run / "synthetic" / "manifest.json"
    file.write_text(file.read_text().replace('"rows": 2', '"rows": 30', 1))


HARM = {
    "manifest edited": harm_manifest,
    "manifest emptied": lambda run: (run / "synthetic" / "manifest.json").write_text("{}"),
    "manifest deleted": lambda run: (run / "synthetic" / "manifest.json").unlink(),
    "record deleted": lambda run: (run / "stages" / "generate.json").unlink(),
    "record damaged": lambda run: (run / "stages" / "generate.json").write_text("{"),
}


@pytest.mark.parametrize("harm", mostly_slow(HARM, "record deleted", "manifest edited"))
def test_intact_blocks_are_never_made_again(made, tmp_path, whole, harm, caplog):
    blocks = half_made(made, tmp_path / "run")
    HARM[harm](tmp_path / "run")
    run = execute(made, tmp_path / "run")
    assert {block: block.stat().st_mtime_ns for block in blocks} == blocks
    assert synthetic(run.folder, lost=[3 if harm.startswith("manifest") else 0]) == whole
    result = run.result("generate")
    assert (result["samples"], result["removed"]) == (UNITS, 0)
    assert f"{UNITS} samples of 2 classes" in (run.folder / "synthetic" / "README.md").read_text()
    assert ("manifest.json is damaged" in caplog.text) == (harm in ("manifest edited", "manifest emptied"))


def test_a_file_with_another_content_is_made_again(made, tmp_path, caplog):
    """Its name alone does not count."""
    run = execute(made, tmp_path / "run")
    before = (run.folder / "prompts" / prompts.PROMPTS_FILE).read_bytes()
    (run.folder / "prompts" / prompts.PROMPTS_FILE).write_bytes(before.replace(b"black", b"green"))
    block = next((run.folder / "synthetic" / "data").iterdir())
    content = block.read_bytes()
    block.write_bytes(content + b" ")
    execute(made, tmp_path / "run")
    assert (run.folder / "prompts" / prompts.PROMPTS_FILE).read_bytes() == before
    assert block.read_bytes() == content
    assert f"{prompts.PROMPTS_FILE} is damaged and will be regenerated" in caplog.text
    assert f"{block.name} is damaged and will be regenerated" in caplog.text


def test_a_record_that_names_files_outside_deletes_none(made, tmp_path, caplog):
    run = execute(made, tmp_path / "run")
    (tmp_path / "mine.txt").write_text("mine")
    record = run.run.record("prompts")
    content = {name: value for name, value in read_json(record).items() if name != "sha256"}
    records.write_record(record, content | {"files": {"../../mine.txt": "0" * 64}})
    execute(made, tmp_path / "run")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert f"{record} is damaged" in caplog.text


@pytest.mark.parametrize(
    "name", ["synthetic", "synthetic/data", "stages", "federate/other", "answers", ".lock"]
)
def test_links_in_a_run_are_refused_and_nothing_behind_them_is_touched(made, tmp_path, name):
    execute(made, tmp_path / "run", until="labels")
    mine = tmp_path / "mine" / "seed-9"
    mine.mkdir(parents=True)
    (mine / "precious.txt").write_text("mine")
    link = tmp_path / "run" / name
    if link.exists():
        storage.remove(link, tmp_path / "run")
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(mine / "precious.txt" if name == ".lock" else mine.parent)
    for options in ({}, {"fresh": True}):
        with pytest.raises(
            InputError, match=rf"^--out: {link} is a link, and genfl writes nothing outside of "
        ):
            execute(made, tmp_path / "run", **options)
    assert [path.name for path in mine.parent.rglob("*")] == ["seed-9", "precious.txt"]
    assert (mine / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_set_is_resumed_on_the_threads_it_began_with(made, tmp_path, threads):
    with on_threads(threads):
        half_made(made, tmp_path / "run")
    with on_threads(3 - threads):
        execute(made, tmp_path / "run")
    manifest = read_json(tmp_path / "run" / "synthetic" / "manifest.json")
    assert [shard["threads"] for shard in manifest["shards"].values()] == [threads] * 6


# --- shards


@pytest.mark.parametrize(
    "order",
    mostly_slow([["0/2", "1/2"], ["1/2", "0/2"], ["2/3", "0/3", "1/3"], ["0/1"], ["6/7"]], ["1/2", "0/2"]),
)
def test_shards_make_the_data_set_that_one_process_makes(made, tmp_path, whole, order):
    for shard in map(Shard.parse, order):
        execute(made, tmp_path / "run", shard=shard)
    assert not (tmp_path / "run").exists()
    run = execute(made, tmp_path / "run")
    assert synthetic(run.folder) == whole
    taken = [file.stat().st_nlink > 1 for file in (run.folder / "synthetic" / "data").iterdir()]
    assert len(taken) == 6
    assert all(taken) == (order != ["6/7"]), "nothing was made twice"
    first = {name: figure for name, figure in run.result("generate").items() if "second" not in name}
    other = Run(run.config, tmp_path / "whole").result("generate")
    assert first == {name: other[name] for name in first}


@pytest.mark.slow
def test_what_a_shard_lacks_or_has_damaged_is_made_again(made, tmp_path, whole, caplog):
    for shard in (Shard(0, 2), Shard(1, 2)):
        execute(made, tmp_path / "run", shard=shard)
    folder = Shard(0, 2).folder(tmp_path / "run")
    assert [path.name for path in shard_folders(tmp_path / "run")] == ["run.shard-0-of-2", "run.shard-1-of-2"]
    damaged, absent, *_ = sorted((folder / "synthetic" / "data").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    absent.unlink()
    assert synthetic(execute(made, tmp_path / "run").folder) == whole
    assert f"{damaged} is damaged, and is not used" in caplog.text


def test_a_shard_goes_on_and_is_never_taken_for_the_whole(made, tmp_path):
    shard, folder = Shard(0, 2), Shard(0, 2).folder(tmp_path / "run")
    execute(made, tmp_path / "run", shard=shard)
    (lost, *others) = sorted((folder / "synthetic" / "data").iterdir())
    before = {path: path.stat().st_mtime_ns for path in others}
    content = lost.read_bytes()
    lost.unlink()
    execute(made, tmp_path / "run", shard=shard)
    assert lost.read_bytes() == content
    assert before == {path: path.stat().st_mtime_ns for path in others}
    rows = {row.name: (row.state, row.progress) for row in pipeline.run_status(folder)}
    assert rows["generate"] == ("partial", "6 of 12 samples")
    assert rows["prompts"][0] == "done"


BROKEN = {
    "no prompts": lambda folder: (folder / "prompts" / "prompts.jsonl").unlink(),
    "half of the prompts": lambda folder: (folder / "prompts" / "prompts.jsonl").write_text('{"a":'),
    "no record": lambda folder: (folder / "stages" / "generate.json").unlink(),
    "an empty record": lambda folder: (folder / "stages" / "generate.json").write_text(""),
    "an empty manifest": lambda folder: (folder / "synthetic" / "manifest.json").write_text(""),
}


@pytest.mark.parametrize("harm", mostly_slow(BROKEN, "no record"))
def test_a_damaged_shard_never_stops_a_run(made, tmp_path, whole, harm):
    folder = Shard(0, 2).folder(tmp_path / "run")
    execute(made, tmp_path / "run", shard=Shard(0, 2))
    BROKEN[harm](folder)
    run = execute(made, tmp_path / "run")
    assert synthetic(run.folder, lost=[3 if harm == "an empty manifest" else 0]) == whole
    linked = [file.stat().st_nlink > 1 for file in sorted((run.folder / "synthetic" / "data").iterdir())]
    assert linked == [True, False] * 3, "its intact blocks are used"


@pytest.mark.slow
def test_a_shard_without_any_intact_block_is_named(made, tmp_path, whole, caplog):
    execute(made, tmp_path / "run", shard=Shard(0, 2))
    folder = Shard(0, 2).folder(tmp_path / "run") / "synthetic"
    for block in (folder / "data").iterdir():
        block.write_bytes(b"half")
    assert synthetic(execute(made, tmp_path / "run").folder) == whole
    assert f"no samples of {folder} are used" in caplog.text


@pytest.mark.slow
def test_shards_of_another_config_or_of_other_prompts_are_left_alone(made, tmp_path, whole, caplog):
    execute(made, tmp_path / "run", "prompts.guidance_scale=2.0", shard=Shard(0, 2))
    execute(made, tmp_path / "elsewhere", shard=Shard(1, 2))
    moved = Shard(1, 2).folder(tmp_path / "elsewhere").rename(Shard(1, 2).folder(tmp_path / "run"))
    assert synthetic(execute(made, tmp_path / "run").folder) == whole
    assert f"no samples of {Shard(0, 2).folder(tmp_path / 'run')}/synthetic are used" in caplog.text
    assert f"no samples of {moved}" not in caplog.text
    shutil.rmtree(tmp_path / "run" / "synthetic")
    shutil.rmtree(moved / "synthetic")
    caplog.clear()
    # as if a language model had been asked again
    file, record = moved / "prompts" / prompts.PROMPTS_FILE, moved / "stages" / "prompts.json"
    file.write_text(file.read_text().replace('"seed": ', '"seed": 1'))
    content = {name: value for name, value in read_json(record).items() if name != "sha256"}
    records.write_record(record, {**content, "files": {file.name: sha256(file)}})
    execute(made, tmp_path / "run", shard=Shard(1, 2))
    assert synthetic(execute(made, tmp_path / "run").folder) == whole
    assert f"no samples of {moved}/synthetic are used: they are damaged, or of another" in caplog.text


def test_a_shard_takes_over_the_prompts_that_there_are(made, tmp_path, caplog):
    caplog.set_level("INFO", "genfl")
    execute(made, tmp_path / "run", until="prompts")
    execute(made, tmp_path / "run", shard=Shard(0, 2))
    assert f"prompts: taken over from {tmp_path / 'run'}" in caplog.text
    caplog.clear()
    execute(made, tmp_path / "run", shard=Shard(1, 2))
    assert "prompts: taken over from" in caplog.text


@pytest.mark.slow
def test_folders_at_work_are_not_joined(made, tmp_path):
    execute(made, tmp_path / "run", shard=Shard(0, 2))
    busy = Shard(0, 2).folder(tmp_path / "run")
    with filelock.FileLock(busy / pipeline.LOCK):
        for options in ({}, {"shard": Shard(0, 2)}):
            with pytest.raises(InputError, match=rf"^--out: another process is using {busy}; "):
                execute(made, tmp_path / "run", **options)
        execute(made, tmp_path / "run", shard=Shard(1, 2))
    (tmp_path / "run.shard-mine").mkdir()
    (tmp_path / "run.shard-mine" / "notes.txt").write_text("mine")
    execute(made, tmp_path / "run")
    assert (tmp_path / "run.shard-mine" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_shard_of_a_run_in_the_working_folder_is_beside_it(made, tmp_path, monkeypatch, whole):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    execute(made, Path(), shard=Shard(1, 2))
    assert (tmp_path / "run.shard-1-of-2" / "synthetic").is_dir()
    execute(made, Path())
    assert synthetic(tmp_path / "run") == whole


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "1/2/3", "a/b", "0/0", "", "½/2", "1/ 2"])
def test_a_shard_that_cannot_be_is_refused(text):
    with pytest.raises(InputError, match=r"^--shard: .* is not a shard; use I/N, "):
        Shard.parse(text)


def files_of(run):
    return sorted((run.folder / "synthetic" / "data").glob("*.parquet"))


@pytest.mark.parametrize("where", ["the same run", "another run"])
def test_more_samples_per_label_take_over_the_blocks_that_exist(made, tmp_path, caplog, where):
    """Four samples of each label are four blocks, six are six: the first four depend on nothing else."""
    caplog.set_level("INFO")
    fewer = execute(made, tmp_path / "run", "prompts.per_label=4")
    before = {path.name[:11]: (path.stat().st_ino, path.read_bytes()) for path in files_of(fewer)}
    if where == "the same run":
        more = execute(made, tmp_path / "run", update=True)
    else:
        more = execute(made, tmp_path / "more", others=[tmp_path / "run"])
        assert "4 of 6 blocks are taken over" in caplog.text
    files = files_of(more)
    assert len(before) == 4
    assert len(files) == 6
    for path in files[:4]:
        assert (path.stat().st_ino, path.read_bytes()) == before[path.name[:11]]
    alone = execute(made, tmp_path / "alone")
    for path, other in zip(files, files_of(alone), strict=True):
        assert pyarrow.parquet.read_table(path).equals(pyarrow.parquet.read_table(other))


def test_fewer_samples_per_label_keep_their_blocks(made, tmp_path):
    more = execute(made, tmp_path / "run")
    kept = [path.read_bytes() for path in files_of(more)[:4]]
    fewer = execute(made, tmp_path / "run", "prompts.per_label=4", update=True)
    assert [path.read_bytes() for path in files_of(fewer)] == kept
    (fewer.folder / "synthetic" / "manifest.json").unlink()
    assert len(files_of(execute(made, tmp_path / "run", "prompts.per_label=4"))) == 4


def test_only_generating_is_shared(made, tmp_path):
    with pytest.raises(InputError, match=r"^--shard: .*add --until generate$"):
        execute(made, tmp_path / "run", until="report", shard=Shard(0, 2))
    assert list(tmp_path.glob("run*")) == []


@pytest.mark.slow
def test_the_size_of_blocks_decides_what_is_made_and_the_device_number_does_not(made):
    def digest(*overrides):
        wanted = config.parse(
            yaml.safe_dump(CONTENT | {"data": {"name": "digits"}, "generator": {"kind": "image"}}), overrides
        )
        digests = pipeline.digests(wanted, RunContext())
        return next(digest for stage, _, digest in digests if stage.name == "generate")

    assert digest() != digest("prompts.block_size=3")
    assert (
        digest("generator.device=cuda:0")
        == digest("generator.device=cuda:3")
        != digest("generator.device=cpu")
    )


# --- kills


def image_content(folder):
    return {
        "data": {"name": "digits", "partition": {"clients": 4, "alpha": 1.0}},
        "generator": {"kind": "image", "steps": 2},
        "prompts": {"style": "label", "per_label": 20, "block_size": 5},
    }


def speech_content(folder):
    rng = np.random.default_rng(0)
    for label in ("yes", "no"):
        (folder / "words" / "train" / label).mkdir(parents=True)
        for n in range(6):
            file = folder / "words" / "train" / label / f"{n}.wav"
            soundfile.write(file, rng.uniform(-1, 1, 8_000), 16_000)
    data = {"name": "sounds", "path": str(folder / "words"), "seconds": 0.5}
    return {
        "data": data | {"partition": CONTENT["data"]["partition"]},
        "generator": {"kind": "speech"},
        "model": "fedaudio",
        "prompts": {"per_label": 60, "block_size": 2},
    }


def files_content(folder):
    return {
        "data": CONTENT["data"] | {"path": str(draw(folder / "own", 6, seed=0))},
        "generator": {"kind": "files", "path": str(draw(folder / "made", 80, seed=1))},
        "prompts": {"style": "label", "per_label": 80, "block_size": 1},
    }


GENERATORS = {"image": image_content, "speech": speech_content, "files": files_content}


def finish(folder, name, **options):
    """Goes on with a run, or begins it; returns its data set."""
    pipeline.execute(config.load(folder / "c.yaml"), folder / name, until="generate", **options)
    killed_before_listing = 1  # such a block is kept, but its time is not known
    return None if "shard" in options else synthetic(folder / name, lost=(0, killed_before_listing))


def write_config(folder, kind):
    (folder / "c.yaml").write_text(yaml.safe_dump(CONTENT | GENERATORS[kind](folder)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", GENERATORS)
def test_killed_while_generating_it_ends_with_the_same_data_set(tmp_path, monkeypatch, generating, kind):
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    write_config(tmp_path, kind)
    generating(tmp_path / "c.yaml", tmp_path / "killed").kill()
    assert finish(tmp_path, "killed") == finish(tmp_path, "whole")


@pytest.mark.slow
def test_shards_in_processes_of_which_one_is_killed(tmp_path, monkeypatch, generating):
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    write_config(tmp_path, "files")
    whole, part = (generating(tmp_path / "c.yaml", tmp_path / "run", Shard(n, 2)) for n in (0, 1))
    part.kill()
    assert "shard 0/2 is done, 80 of 160 blocks" in whole.ended()
    finish(tmp_path, "run", shard=Shard(1, 2))
    assert finish(tmp_path, "run") == finish(tmp_path, "whole")
