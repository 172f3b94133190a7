"""metrics.jsonl of whole runs: while they work, after kills, and after changes of the config."""

import json
import random
import time
from collections import Counter

import pytest
from support.command import Command, run_command

from genfl import config, pipeline
from genfl.tracking.events import rows_of
from genfl.tracking.metrics_file import METRICS_FILE, read_events
from genfl.tracking.series import Series

from .helpers import recorded, told, write_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    pipeline.execute(config.parse(text), folder)
    return folder


def test_a_line_for_each_round_method_and_epoch(finished):
    series = told(finished)
    assert series == recorded(finished)
    assert Counter(name.kind for name in series) == {"round": 5 * 2, "epoch": 2}
    trace = json.loads((finished / "federate" / "plain" / "seed-1" / "trace.json").read_text())
    assert series[Series("round", "plain", 1)] == rows_of(trace)
    assert [row["round"] for row in series[Series("round", "plain", 1)] if "accuracy" in row] == [0, 3, 6, 7]
    assert [row["round"] for row in series[Series("round", "synthetic_only", 0)]] == [0]
    assert len(series[Series("round", "alone", 0)]) == 8, "the mean over its clients, not a line for each"
    stages = [(e["stage"], e["state"]) for e in read_events(finished / METRICS_FILE) if e["event"] == "stage"]
    names = ["labels", "prompts", "generate", "audit", "pretrain", "federate", "report"]
    assert stages == [(name, state) for name in names for state in ("started", "finished")]


def test_a_run_that_is_up_to_date_leaves_it_and_restores_it(text, finished):
    path = finished / METRICS_FILE
    before = path.read_bytes()
    pipeline.execute(config.parse(text), finished)
    assert path.read_bytes() == before
    path.write_bytes(before[: len(before) // 2] + b"\xff{")
    pipeline.execute(config.parse(text), finished)
    assert told(finished) == recorded(finished)
    path.unlink()
    pipeline.execute(config.parse(text), finished)
    assert told(finished) == recorded(finished)
    path.unlink()
    path.mkdir()
    assert pipeline.execute(config.parse(text), finished) is not None, "it stops no run"
    path.rmdir()
    path.write_bytes(before)


@pytest.mark.slow
def test_it_follows_changes_of_the_config(text, tmp_path):
    quick = ("seeds=[0]", "pretrain.epochs=2", "federate.rounds=3")
    folder = tmp_path / "run"
    pipeline.execute(config.parse(text, quick), folder)
    first, lines = told(folder), (folder / METRICS_FILE).read_text().splitlines()
    more = config.parse(text, (*quick, "methods={plain: {algorithm: fedavg}, prox: {algorithm: fedprox}}"))
    pipeline.execute(more, folder, update=True)
    second = told(folder)
    assert second == recorded(folder)
    assert second[Series("round", "plain", 0)] == first[Series("round", "plain", 0)]
    assert {name.name for name in second} == {"plain", "prox", "synthetic_only", "generated"}
    kept = [line for line in lines if '"method": "plain"' in line]
    assert len(kept) == 4
    assert set(kept) < set((folder / METRICS_FILE).read_text().splitlines()), "it keeps its time"
    changed = config.parse(
        text, (*quick, "methods={plain: {algorithm: fedavg}}", "federate.local.lr=0.5", "generator=none")
    )
    pipeline.execute(changed, folder, update=True)
    third = told(folder)
    assert set(third) == {Series("round", "plain", 0)}
    assert third == {name: rows for name, rows in recorded(folder).items() if name.kind == "round"}
    assert third[Series("round", "plain", 0)] != first[Series("round", "plain", 0)]
    pipeline.execute(changed, folder, fresh=True)
    assert told(folder) == third
    stages = [event["stage"] for event in read_events(folder / METRICS_FILE) if event["event"] == "stage"]
    assert stages.count("federate") == 2, "a fresh run begins a fresh file"


def test_stages_taken_over_from_another_run_are_told(text, finished, tmp_path):
    pipeline.execute(config.parse(text), tmp_path / "run", others=[finished])
    assert told(tmp_path / "run") == recorded(tmp_path / "run") == recorded(finished)


@pytest.mark.slow
def test_killed_at_any_instant_it_has_each_round_once(text, tmp_path):
    """kill -9 at random instants, until the run is through."""
    settings, folder, draw = tmp_path / "c.yaml", tmp_path / "run", random.Random(23)
    settings.write_text(text.replace("rounds: 7", "rounds: 60").replace("[0, 1]", "[0]"))
    kills = 0
    while kills < 8:
        process = Command("run", settings, "--out", folder)
        path, before = folder / METRICS_FILE, len(read_events(folder / METRICS_FILE)) if kills else 0
        more, limit = draw.randrange(1, 40), time.monotonic() + 120
        while process.poll() is None and time.monotonic() < limit:
            if path.exists() and len(read_events(path)) >= before + more - 20 * (kills > 0):
                break
            time.sleep(draw.uniform(0, 0.02))
        process.kill()
        if process.poll() == 0:
            break
        kills += 1
    assert kills >= 2
    run_command("run", settings, "--out", folder)
    series = told(folder)
    assert series == recorded(folder)
    assert len(series[Series("round", "plain", 0)]) == 61
    whole = tmp_path / "whole"
    run_command("run", settings, "--out", whole)
    assert told(whole) == series
