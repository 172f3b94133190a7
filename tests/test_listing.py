"""`genfl runs`: what lies below a folder, from a few files of each run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from support.small_runs import SMALL_RUN

from genfl import config, pipeline
from genfl.errors import InputError
from genfl.experiment import records
from genfl.experiment.listing import list_runs, record_is_done

CONTENT = {**SMALL_RUN, "methods": {"fedavg": {"algorithm": "fedavg"}, "alone": {"algorithm": "local"}}}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("listing") / "done"
    pipeline.execute(config.validate(CONTENT), folder)
    return folder


@pytest.fixture
def runs(done, tmp_path):
    """Runs in every state, a sweep, and folders that hold something else."""
    folder = tmp_path / "runs"
    for name in ("run 10", "run 9", "deep/er/run", "sweep/a=1", "sweep/a=2", "cut", "no record", "at work"):
        shutil.copytree(done, folder / name)
    (folder / "sweep" / ".genfl-sweep").touch()
    (folder / "cut" / "summary.json").write_text('{"name": "sma')
    (folder / "no record" / "stages" / "federate.json").unlink()
    for name in ("at work", "sweep/a=2"):
        (folder / name / "summary.json").unlink()
        record = folder / name / "stages" / "federate.json"
        records.write_record(record, {"stage": "federate", "digest": "x", "output": "", "done": False})
    pipeline.execute(config.validate(CONTENT), folder / "begun", until="labels")
    (folder / "empty").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "config.yaml").write_text("mine: 1")
    (folder / "link").symlink_to(done)
    return folder


def test_every_run_is_listed_with_its_state(runs):
    entries = {entry.path: entry for entry in list_runs(runs)}
    assert {path: (entry.kind, entry.state, entry.where) for path, entry in entries.items()} == {
        "at work": ("run", "unfinished", "at federate"),
        "begun": ("run", "unfinished", "after labels"),
        "cut": ("run", "damaged", "summary.json"),
        "deep/er/run": ("run", "done", ""),
        "no record": ("run", "damaged", "stages/federate.json"),
        "run 9": ("run", "done", ""),
        "run 10": ("run", "done", ""),
        "sweep": ("sweep", "unfinished", "1 of 2 runs"),
    }
    assert list(entries).index("run 9") + 1 == list(entries).index("run 10"), "in natural order"
    assert [(entry.path, entry.state) for entry in entries["sweep"].runs] == [
        ("sweep/a=1", "done"),
        ("sweep/a=2", "unfinished"),
    ]


def test_figures_are_those_of_the_summary(runs, done):
    entry = next(entry for entry in list_runs(runs) if entry.path == "run 9")
    summary = json.loads((done / "summary.json").read_text())
    accuracy = summary["methods"]["fedavg"]["accuracy"]
    assert entry.best == ("fedavg", accuracy["mean"], accuracy["std"]), "references do not compete"
    assert (entry.name, entry.seeds) == ("small", 2)
    assert entry.seconds == summary["cost"]["training"]["seconds"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", entry.date)
    begun = next(entry for entry in list_runs(runs) if entry.path == "begun")
    assert (begun.name, begun.seeds, begun.best, begun.seconds) == ("small", 2, None, None)
    assert list_runs(done)[0].path == "."


def test_dates_are_those_of_the_last_file(runs):
    os.utime(runs / "run 9" / "summary.json", (0, 86400 * 365.25 * 30))
    entry = next(entry for entry in list_runs(runs) if entry.path == "run 9")
    assert entry.date.startswith("2000-01-01") or entry.date.startswith("1999-12-31")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        '{"name": 1}',
        '{"methods": {"a": {}}, "stages": {}, "name": "x", "seeds": []}',
        "\udcff",
    ],
)
def test_any_damage_of_a_summary_is_told(runs, content):
    (runs / "run 9" / "summary.json").write_bytes(content.encode(errors="surrogateescape"))
    entry = next(entry for entry in list_runs(runs) if entry.path == "run 9")
    assert (entry.state, entry.where) == ("damaged", "summary.json")


def test_a_record_is_judged_by_both_ends(done, tmp_path):
    record = done / "stages" / "federate.json"
    assert record_is_done(record) is True
    assert record.stat().st_size > 2048, "not all of it is read"
    content = record.read_text()
    for damaged in (content[:-40], content[2000:], "", "{}"):
        (tmp_path / "x.json").write_text(damaged)
        assert record_is_done(tmp_path / "x.json") is None
    assert record_is_done(tmp_path / "absent.json") is None
    records.write_record(tmp_path / "x.json", {"stage": "a", "digest": "b", "output": "", "done": False})
    assert record_is_done(tmp_path / "x.json") is False


def test_a_folder_that_is_absent_is_one_line(tmp_path):
    with pytest.raises(
        InputError, match=r"absent: there is no such folder; name the one that holds your runs$"
    ):
        list_runs(tmp_path / "absent")


@pytest.mark.slow
def test_the_command_lists_without_slow_imports(runs):
    code = """
import sys
import genfl.cli

sys.argv = ["genfl", "runs", *sys.argv[1:]]
try:
    genfl.cli.main()
except SystemExit as end:
    assert end.code == 0
slow = ("torch", "numpy", "pydantic", "sklearn", "datasets", "pandas", "yaml", "scipy", "matplotlib")
print([m for m in slow if m in sys.modules])
"""

    def shown(*args):
        command = [sys.executable, "-c", code, *map(str, args)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=runs.parent)
        *lines, slow = output.stdout.splitlines()
        assert slow == "[]"
        return lines

    lines = shown()  # below runs/
    assert lines[0].split()[:4] == ["run", "state", "date", "name"]
    assert len(lines) == 1 + 8
    assert any("damaged summary.json" in line for line in lines)
    assert len(shown("runs/sweep")) == 1 + 2
    entries = json.loads("\n".join(shown("runs", "--json")))
    assert [entry["state"] for entry in entries].count("damaged") == 2
    assert entries[-1]["runs"][0]["best"]["method"] == "fedavg"
    assert shown("runs/empty") == ["There are no runs in runs/empty. `genfl demo` makes one."]


def test_a_listing_does_not_depend_on_the_size_of_records(done, tmp_path):
    """Records of large runs have megabytes."""
    large = tmp_path / "large.json"
    record = records.read_record(done / "stages" / "federate.json")
    records.write_record(large, {**record, "result": {"rows": list(range(150_000))}})
    assert large.stat().st_size > 1_000_000
    for name, source in (("small", done / "stages" / "federate.json"), ("big", large)):
        for number in range(50):
            target = tmp_path / name / str(number)
            (target / "stages").mkdir(parents=True)
            for file in (".genfl", "config.yaml", "summary.json", "stages/labels.json", "stages/audit.json"):
                os.link(done / file, target / file)
            os.link(done / "stages" / "report.json", target / "stages" / "report.json")
            os.link(source, target / "stages" / "federate.json")

    def cpu(folder):
        times = []
        for _ in range(5):
            began = time.process_time()
            entries = list_runs(folder)
            times.append(time.process_time() - began)
            assert [entry.state for entry in entries] == ["done"] * 50
        return min(times)

    # reading one of the large records takes as long as listing all fifty runs
    assert cpu(tmp_path / "big") < 2 * cpu(tmp_path / "small")
