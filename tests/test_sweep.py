import csv
import json
import subprocess
import sys

import pytest
import yaml

from genfl import config, pipeline, sweep
from genfl.errors import InputError

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


def grid(**fields):
    return {**CONTENT, "grid": {field.replace("__", "."): values for field, values in fields.items()}}


def test_a_grid_is_every_combination_the_last_field_fastest():
    found = sweep.points(grid(federate__rounds=[1, 2], data__partition__alpha=[0.5, 5.0]))
    assert [tuple(point.settings.values()) for point in found] == [(1, 0.5), (1, 5.0), (2, 0.5), (2, 5.0)]
    assert [p.config.data.partition.alpha for p in found] == [0.5, 5.0, 0.5, 5.0]
    assert [p.config.federate.rounds for p in found] == [1, 1, 2, 2]
    assert found[0].name == "federate.rounds=1,data.partition.alpha=0.5"
    assert CONTENT["federate"]["rounds"] == 2, "the content is left as it was"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (CONTENT, "grid: name fields"),
        ({**CONTENT, "grid": {}}, "grid: name fields"),
        (grid(federate__rounds=3), "grid.federate.rounds: give a list of values, not 3"),
        (grid(federate__rounds=[]), "grid.federate.rounds: give a list"),
        (grid(federate__rounds=[1, 1]), "grid: a value is given twice"),
        (grid(federate__rouns=[1]), "federate.rouns: unknown key; did you mean 'rounds'? (in the grid at"),
        (
            grid(federate__rounds=[1, 0]),
            "federate.rounds: should be greater than or equal to 1, not 0 (in the",
        ),
        (grid(name__x=[1]), "name.x: 'name' holds no keys"),
    ],
)
def test_mistakes_are_found_before_the_first_run(content, line, tmp_path):
    with pytest.raises(InputError) as caught:
        sweep.sweep(content, tmp_path / "out")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_config_with_a_grid_is_no_single_run():
    with pytest.raises(InputError, match=r"grid: many runs in one config are for `genfl sweep`"):
        config.validate(grid(federate__rounds=[1]))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep by the command, over what the federate stage alone reads."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.yaml").write_text(yaml.safe_dump(grid(federate__clients_per_round=[1, 2])))
    command = [sys.executable, "-m", "genfl", "sweep", "small.yaml", "--out", "out"]
    first = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return folder, command, first


def test_stages_that_are_the_same_are_done_once(swept):
    folder, _, first = swept
    assert first.returncode == 0, first.stderr
    one, two = (folder / "out" / f"federate.clients_per_round={size}" for size in (1, 2))
    for stage in ("prompts", "generate", "pretrain"):
        assert f"{stage}: taken over from out/{one.name}" in first.stderr
    assert first.stderr.count("generate: running") == 1
    shard = "synthetic/data/train-00000-of-00002.parquet"
    assert (one / shard).samefile(two / shard)
    alone = pipeline.execute(config.load(two / "config.yaml"), folder / "alone")
    shared = json.loads((two / "summary.json").read_text())
    assert alone["methods"] == shared["methods"], "as if it had been run alone"


def test_the_table_holds_every_run_and_method(swept):
    folder, _, first = swept
    rows = list(csv.DictReader((folder / "out" / "sweep.csv").open()))
    assert [(row["federate.clients_per_round"], row["method"]) for row in rows] == [
        (size, method) for size in ("1", "2") for method in ("synthetic_only", "fedavg", "gptfl")
    ]
    summary = json.loads((folder / "out" / "federate.clients_per_round=2" / "summary.json").read_text())
    assert float(rows[-1]["accuracy_mean"]) == summary["methods"]["gptfl"]["accuracy"]["mean"]
    header, *lines = first.stdout.splitlines()
    assert header.split() == ["federate.clients_per_round", "synthetic_only", "fedavg", "gptfl"]
    assert [line.split()[0] for line in lines] == ["1", "2"]


def test_again_nothing_is_done_again(swept):
    folder, command, _ = swept
    before = (folder / "out" / "sweep.csv").read_bytes()
    again = subprocess.run([*command, "--json"], cwd=folder, capture_output=True, text=True)
    assert "running" not in again.stderr
    assert (folder / "out" / "sweep.csv").read_bytes() == before
    assert [result["settings"] for result in json.loads(again.stdout)] == [
        {"federate.clients_per_round": 1},
        {"federate.clients_per_round": 2},
    ]


def test_a_damaged_stage_is_not_taken_over(swept, tmp_path):
    folder, _, _ = swept
    one = folder / "out" / "federate.clients_per_round=1"
    shard = one / "synthetic" / "data" / "train-00000-of-00002.parquet"
    whole = shard.read_bytes()
    shard.unlink()  # the other run's link stays as it is
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    wanted = config.load(one / "config.yaml")
    pipeline.execute(wanted, tmp_path / "run", until="generate", others=[one])
    made = tmp_path / "run" / "synthetic" / "data" / shard.name
    assert made.read_bytes() == whole, "made again"
    assert not made.samefile(shard)
