import csv
import json
import re
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from support.command import Command, run_command

import genfl
from genfl import config, grid, pipeline
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.storage import write_text

CONTENT = {
    "name": "small",
    "seeds": [0],
    "data": {"name": "digits", "partition": {"clients": 4, "alpha": 1.0}},
    "prompts": {"style": "label", "per_label": 2, "block_size": 10},
    "generator": {"kind": "image", "steps": 1},
    "model": "mlp",
    "pretrain": {"epochs": 1},
    "federate": {"rounds": 2, "clients_per_round": 2, "local": {"steps": 1}},
    "methods": {"fedavg": {"algorithm": "fedavg"}, "gptfl": {"algorithm": "fedavg", "start": "pretrained"}},
}


def grid_over(**fields):
    return {**CONTENT, "grid": {field.replace("__", "."): values for field, values in fields.items()}}


def test_a_grid_is_every_combination_the_last_field_fastest():
    points = grid.points(grid_over(federate__rounds=[1, 2], data__partition__alpha=[0.5, 5.0]))
    assert [tuple(point.settings.values()) for point in points] == [(1, 0.5), (1, 5.0), (2, 0.5), (2, 5.0)]
    assert [p.config.data.partition.alpha for p in points] == [0.5, 5.0, 0.5, 5.0]
    assert [p.config.federate.rounds for p in points] == [1, 1, 2, 2]
    assert points[0].name == "federate.rounds=1,data.partition.alpha=0.5"
    assert CONTENT["federate"]["rounds"] == 2, "the content is left as it was"


def test_a_field_may_lie_within_another_of_the_grid():
    points = grid.points(grid_over(model=[{"name": "cnn"}], model__width=[8, 16]))
    assert [point.config.model.width for point in points] == [8, 16]
    assert [point.settings for point in points] == [
        {"model": {"name": "cnn"}, "model.width": width} for width in (8, 16)
    ]


@pytest.mark.parametrize("algorithm", ["fedprox", {"name": "fedprox"}, ["fedprox"], [{"name": "fedprox"}]])
def test_an_algorithm_given_alone_is_the_first_of_a_list(algorithm):
    content = {**CONTENT, "methods": {"x": {"algorithm": algorithm}}}
    points = grid.points({**content, "grid": {"methods.x.algorithm.0.mu": [0.1, 0.2]}})
    assert [point.config.methods["x"].algorithm[0].mu for point in points] == [0.1, 0.2]


def test_values_that_do_not_fit_into_a_name_are_told_apart():
    paths = [f"{'long/' * 20}{end}" for end in ("a", "b")] + ["x/y", "x_y", "plain"]
    points = grid.points({**grid_over(data__path=paths), "data": {"name": "cifar10"}})
    assert len({point.name for point in points}) == len(paths)
    assert all("/" not in point.name and len(point.name) < 100 for point in points)
    assert points[-1].name == "data.path=plain"


def test_names_of_points_are_names_of_folders():
    values = ["b" * 50, "b" * 49 + "ü", "a\nb", "a\0b", "a/b", "ü" * 80, "ü" * 81]
    fields = [f"prompts.blanks.{letter * 30}" for letter in "abcde"] + ["prompts.blanks./tmp/x"]
    base = {**CONTENT, "prompts": {**CONTENT["prompts"], "style": "fill", "template": "{label}"}}
    points = grid.points({**base, "grid": {field: [[value] for value in values[:2]] for field in fields}})
    points += grid.points({**base, "grid": {"prompts.blanks.a": [[value] for value in values]}})
    names = [point.name for point in points]
    assert len(set(names)) == len(names) == 2**6 + len(values)
    assert max(len(name.encode()) for name in names) == 255
    assert not any(bad in name for name in names for bad in "/\n\0")
    assert names[0].startswith("prompts.blanks.aaaaaaaaaa")


def test_a_point_changes_nothing_that_others_share():
    text = f"""{yaml.safe_dump({name: value for name, value in CONTENT.items() if name != "methods"})}
methods:
  base: &m {{algorithm: fedavg}}
  warm: *m
grid: {{methods.warm.start: [random, pretrained]}}
"""
    methods = {"algorithm": "fedavg"}  # as Python shares it
    for content in (
        config.plain(text),
        {
            **CONTENT,
            "methods": {"base": methods, "warm": methods},
            "grid": {"methods.warm.start": ["pretrained"]},
        },
    ):
        last = grid.points(content)[-1].config.methods
        assert (last["base"].start, last["warm"].start) == ("random", "pretrained")


@pytest.mark.parametrize("name", ["../../x", "a/b", "/tmp/x", "..", "", "x" * 300, "a\nb"])
def test_a_sweep_writes_nothing_outside_runs(name, tmp_path, monkeypatch):
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    with pytest.raises(InputError, match=r"^name: becomes the name of a folder: "):
        genfl.sweep({**CONTENT, "name": name, "grid": {"name": ["a", "b"]}})
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (CONTENT, "grid: map fields to lists"),
        (
            grid_over(seeds=[[n] for n in range(200)], federate__rounds=list(range(1, 52))),
            "grid: it has 10200",
        ),
        (grid_over(federate__rounds="x" * 5000), "grid.federate.rounds: xxxx"),
        (grid_over(name=["../x"]), "name: becomes the name of a folder: no slash"),
        ({**CONTENT, "grid": {}}, "grid: map fields to lists"),
        (grid_over(federate__rounds=3), "grid.federate.rounds: 3 is not a list of values; use a list"),
        (grid_over(federate__rounds=[]), "grid.federate.rounds: [] is not a list of values"),
        (grid_over(federate__rounds=[1, 1]), "grid: a value appears twice"),
        (
            grid_over(federate__rouns=[1]),
            "federate.rouns: unknown key; did you mean 'rounds'? (in the grid at",
        ),
        (
            grid_over(federate__rounds=[1, 0]),
            "federate.rounds: should be greater than or equal to 1, not 0 (in the",
        ),
        (grid_over(name__x=[1]), "name.x: 'name' has no keys"),
        ({**CONTENT, "grid": {1: [2]}}, "grid.1: not a field; name one of the config"),
        ({**CONTENT, "grid": {"federate..rounds": [2]}}, "grid.federate..rounds: not a field"),
        (grid_over(model=["cnn", "lstm"]), "(in the grid at model=lstm)"),  # the images are no tokens
    ],
)
def test_mistakes_are_found_before_the_first_run(content, line, tmp_path):
    with pytest.raises(InputError) as caught:
        grid.run_sweep(content, tmp_path / "out")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_config_with_a_grid_is_no_single_run():
    with pytest.raises(InputError, match=r"grid: only `genfl sweep` runs a grid"):
        config.validate(grid_over(federate__rounds=[1]))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep by the command, over what the federate stage alone reads."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.yaml").write_text(yaml.safe_dump(grid_over(federate__clients_per_round=[1, 2])))
    command = ["sweep", "small.yaml", "--out", "out"]
    return folder, command, Command(*command, cwd=folder).ended()


@pytest.mark.slow
def test_stages_that_are_the_same_are_done_once(swept):
    folder, _, first = swept
    assert first.code == 0, first.stderr
    one, two = (folder / "out" / f"federate.clients_per_round={size}" for size in (1, 2))
    for stage in ("prompts", "generate", "pretrain"):
        assert f"{stage}: taken over from out/{one.name}" in first.stderr
    assert first.stderr.count("generate: running") == 1
    shard = "synthetic/data/train-00000-of-00002.parquet"
    assert (one / shard).samefile(two / shard)
    alone = pipeline.execute(config.load(two / "config.yaml"), folder / "alone")
    shared = json.loads((two / "summary.json").read_text())
    assert alone["methods"] == shared["methods"], "as if it had been run alone"


@pytest.mark.slow
def test_the_table_holds_every_run_and_method(swept):
    folder, _, first = swept
    rows = list(csv.DictReader((folder / "out" / "sweep.csv").open()))
    assert [(row["federate.clients_per_round"], row["method"]) for row in rows] == [
        (size, method) for size in ("1", "2") for method in ("synthetic_only", "fedavg", "gptfl")
    ]
    summary = json.loads((folder / "out" / "federate.clients_per_round=2" / "summary.json").read_text())
    assert float(rows[-1]["accuracy_mean"]) == summary["methods"]["gptfl"]["accuracy"]["mean"]
    assert {row["accuracy_std"] for row in rows} == {""}, "a single seed has no deviation"
    header, *lines = first.stdout.splitlines()
    assert header.split() == ["federate.clients_per_round", "synthetic_only", "fedavg", "gptfl"]
    assert [line.split()[0] for line in lines] == ["1", "2"]
    page = (folder / "out" / "index.html").read_text()
    assert "2 of 2 runs are finished" in page
    links = [unquote(link) for link in re.findall('<a href="([^"#]*)"', page)]
    assert len(links) == 3 * 2 + 3
    assert all((folder / "out" / link).is_file() for link in links)


@pytest.mark.slow
def test_again_nothing_is_done_again(swept):
    folder, command, _ = swept
    before = (folder / "out" / "sweep.csv").read_bytes()
    stdout, stderr = run_command(*command, "--json", cwd=folder)
    assert "running" not in stderr
    assert (folder / "out" / "sweep.csv").read_bytes() == before
    assert [result["settings"] for result in json.loads(stdout)] == [
        {"federate.clients_per_round": 1},
        {"federate.clients_per_round": 2},
    ]


@pytest.mark.slow
def test_status_says_how_far_each_run_is(swept, tmp_path):
    folder, _, _ = swept
    names = [f"federate.clients_per_round={size}" for size in (1, 2)]
    assert grid.sweep_status(folder / "out") == [(name, "done", "") for name in names]
    shown, _ = run_command("status", "out", cwd=folder)
    assert [line.split() for line in shown.splitlines()][1:] == [[name, "done"] for name in names]
    begun = tmp_path / "sweep" / names[0]
    begun.mkdir(parents=True)
    (begun / "config.yaml").write_text(config.dump(config.validate(CONTENT)))
    assert grid.sweep_status(tmp_path / "sweep") == [(names[0], "labels", "")]


@pytest.mark.slow
def test_no_stage_is_done_again_for_what_it_does_not_read(tmp_path):
    content = grid_over(report__target_accuracy=[0.05, 0.99])
    easy, hard = grid.run_sweep(content, tmp_path / "out")
    stages = json.loads((tmp_path / "out" / hard.run / "summary.json").read_text())["stages"]
    assert [name for name, stage in stages.items() if not stage["skipped"]] == ["report"]
    assert easy.methods["fedavg"].curve == hard.methods["fedavg"].curve
    assert (easy.methods["fedavg"].rounds_to_target, hard.methods["fedavg"].rounds_to_target) == (0, None)
    rows = [
        row for row in csv.DictReader((tmp_path / "out" / "sweep.csv").open()) if row["method"] == "fedavg"
    ]
    assert [row["rounds_to_0.05"] for row in rows] == ["0", ""], "of the run with this target"
    assert [row["bytes_to_0.99"] for row in rows] == ["", ""]
    assert [float(row["accuracy_at_equal_bytes"]) for row in rows] == 2 * [
        easy.methods["fedavg"].accuracy.mean
    ]
    assert rows[0]["total_bytes"] == rows[0]["equal_bytes"] == str(easy.methods["fedavg"].total_bytes)


@pytest.mark.slow
def test_a_method_without_generated_data_is_trained_at_one_point_alone(tmp_path, caplog):
    caplog.set_level("INFO", "genfl")
    content = grid_over(prompts__per_label=[2, 3]) | {"seeds": [0, 1]}
    one, other = grid.run_sweep(content, tmp_path / "out")
    taken = [line for line in caplog.text.splitlines() if "taken over from another run" in line]
    assert [line.rpartition(": ")[2] for line in taken] == [
        "fedavg/seed-0 is taken over from another run",
        "fedavg/seed-1 is taken over from another run",
    ]
    files = [
        tmp_path / "out" / run / "federate/fedavg/seed-1/checkpoint.safetensors"
        for run in (one.run, other.run)
    ]
    assert files[0].samefile(files[1])
    assert one.methods["fedavg"].curve == other.methods["fedavg"].curve
    alone = pipeline.execute(config.load(tmp_path / "out" / other.run / "config.yaml"), tmp_path / "alone")
    summary = json.loads((tmp_path / "out" / other.run / "summary.json").read_text())
    assert summary["methods"] == alone["methods"], "as if it had been run alone"


def test_a_point_that_is_a_link_is_refused(tmp_path):
    content = grid_over(report__target_accuracy=[0.5])
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "out" / "report.target_accuracy=0.5").symlink_to(tmp_path / "mine")
    (tmp_path / "out" / grid.SWEEP_MARKER).write_text("")
    with pytest.raises(InputError, match=r"^--out: .* is a link"):
        grid.run_sweep(content, tmp_path / "out")
    assert list((tmp_path / "mine").iterdir()) == []


def test_another_split_asks_for_the_same_generated_data(tmp_path):
    """Who holds which label does not change what is generated, nor what is made of it."""
    settings = [
        config.validate({**CONTENT, "data": {**CONTENT["data"], "partition": {"clients": 4, "alpha": a}}})
        for a in (0.1, 5.0)
    ]
    digests = [pipeline.digests(content, RunContext()) for content in settings]
    one, other = ({stage.name: digest for stage, _, digest in steps} for steps in digests)
    same = [name for name in one if one[name] == other[name]]
    assert same == ["prompts", "generate", "audit", "pretrain"]


@pytest.mark.slow
def test_fresh_deletes_the_runs_of_the_grid_and_nothing_else(swept, tmp_path):
    import shutil

    folder, command, _ = swept
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    (out / "notes.txt").write_text("mine")
    (out / "federate.clients_per_round=3").mkdir()
    before = (out / "sweep.csv").read_bytes()
    _, stderr = run_command(*command, "--fresh", cwd=tmp_path)
    assert stderr.count("generate: running") == 1
    assert stderr.count("federate: running") == 2
    assert (out / "sweep.csv").read_bytes() == before
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "federate.clients_per_round=3").exists()


@pytest.mark.parametrize("file", ["sweep.json", ".genfl"])
def test_a_folder_that_is_no_sweeps_is_left_alone(file, tmp_path):
    (tmp_path / file).write_text("mine")
    for fresh in (False, True):
        with pytest.raises(InputError, match=r"^--out: .* is not empty and holds no sweep; choose another"):
            grid.run_sweep(grid_over(federate__rounds=[1]), tmp_path, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_text() == "mine"


@pytest.mark.slow
def test_two_processes_do_not_share_a_sweep(swept):
    from filelock import FileLock

    folder, command, _ = swept
    with FileLock(folder / "out" / ".lock"):
        _, stderr = run_command(*command, code=2, cwd=folder)
    assert stderr == "error: --out: another process is using out; wait for it, or choose another folder\n"


@pytest.mark.slow
def test_the_folder_of_all_runs_needs_a_name(tmp_path):
    content = {name: value for name, value in grid_over(name=["a", "b"]).items() if name != "name"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    _, stderr = run_command("sweep", "small.yaml", code=2, cwd=tmp_path)
    assert stderr.startswith("error: name: missing, so the sweep has no folder")
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.slow
def test_where_files_cannot_be_linked_they_are_copied(swept, tmp_path):
    folder, _, _ = swept
    one = folder / "out" / "federate.clients_per_round=1"
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        run_folder = Path(elsewhere) / "run"
        pipeline.execute(config.load(one / "config.yaml"), run_folder, until="generate", others=[one])
        shards = [run / "synthetic" / "data" / "train-00000-of-00002.parquet" for run in (one, run_folder)]
        assert shards[0].read_bytes() == shards[1].read_bytes()
        assert not shards[0].samefile(shards[1])
        records = [(run / "stages" / "generate.json").read_bytes() for run in (one, run_folder)]
        assert records[0] == records[1], "taken over, not made again"


@pytest.mark.slow
def test_a_link_that_a_kill_left_is_not_written_through(swept, tmp_path):
    folder, _, _ = swept
    one = folder / "out" / "federate.clients_per_round=1"
    labels = one / "labels" / "labels.json"
    before = labels.read_bytes()
    (tmp_path / ".labels.json.tmp").hardlink_to(labels)
    write_text(tmp_path / "labels.json", "other")
    assert labels.read_bytes() == before


@pytest.mark.slow
def test_killed_while_it_generates_and_while_it_federates_it_ends_with_the_same_table(tmp_path):
    content = {
        **grid_over(prompts__per_label=[2, 40]),
        "federate": {**CONTENT["federate"], "rounds": 20, "checkpoint_every": 1},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    command = ["sweep", "small.yaml", "--out"]
    run_command(*command, "whole", cwd=tmp_path)
    killed = tmp_path / "killed" / "prompts.per_label=40"
    for part in ("synthetic/data/train-00001-of-*.parquet", "federate/fedavg/seed-0/checkpoint.safetensors"):
        process = Command(*command, "killed", cwd=tmp_path)
        began = time.monotonic()
        while not list(killed.glob(part)):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() - began < 300
            time.sleep(0.002)
        process.kill()
        assert not (killed / "summary.json").exists(), "it was over before the kill"
    _, stderr = run_command(*command, "killed", cwd=tmp_path)
    assert stderr.count("federate: running") == 1, "the first point was done"
    assert (tmp_path / "killed" / "sweep.csv").read_bytes() == (tmp_path / "whole" / "sweep.csv").read_bytes()


@pytest.mark.slow
def test_a_damaged_stage_is_not_taken_over(swept, tmp_path):
    folder, _, _ = swept
    one = folder / "out" / "federate.clients_per_round=1"
    shard = one / "synthetic" / "data" / "train-00000-of-00002.parquet"
    whole = shard.read_bytes()
    shard.unlink()  # the other run's link stays as it is
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    wanted = config.load(one / "config.yaml")
    pipeline.execute(wanted, tmp_path / "run", until="generate", others=[one])
    regenerated = tmp_path / "run" / "synthetic" / "data" / shard.name
    assert regenerated.read_bytes() == whole
    assert not regenerated.samefile(shard)


def test_a_mistake_for_a_later_stage_is_found_though_the_run_is_to_stop_before(tmp_path):
    content = {**CONTENT, "methods": {"a": {"algorithm": "fedet"}}}  # it needs client_models
    with pytest.raises(InputError, match=r"methods.a.algorithm: .*client_models"):
        pipeline.execute(config.validate(content), tmp_path / "run", until="labels")
    assert not (tmp_path / "run").exists()
