"""The command line, run as a user runs it."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command import Command
from support.command import run_command as genfl

SMALL = [
    "seeds=[0]",
    "prompts.per_label=5",
    "prompts.block_size=10",
    "generator.steps=1",
    "pretrain.epochs=2",
    "federate.rounds=2",
    "federate.evaluate_every=1",
]
EXAMPLE = str(Path(__file__).parents[1] / "examples" / "digits.yaml")


def started(*args):
    """Runs the command in a process that imports on its own; returns its standard output and error."""
    done = subprocess.run([sys.executable, "-m", "genfl", *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_stable_diffusion):
    """A small finished run, made with a tiny random generator."""
    out = tmp_path_factory.mktemp("cli") / "run"
    settings = [*SMALL, f"generator.model={tiny_stable_diffusion}"]
    return out, settings, *started("run", EXAMPLE, *settings, "--out", out)


def test_version_help_and_completion():
    import genfl as package

    assert started("--version")[0] == f"genfl {package.__version__}\n"
    text, _ = started("--help")
    for command in ("demo", "run", "status", "list", "schema"):
        assert command in text
    assert "--seeds" in started("demo", "--help")[0]
    assert "federate.rounds=20" in started("run", "--help")[0]
    assert (
        "_GENFL_COMPLETE" in started("--show-completion", "bash")[0]
        or "complete" in started("--show-completion", "bash")[0]
    )


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("run", ["CONFIG.yaml The config file. [required]", "[default: report]"]),
        ("list", ["The catalogue to list. [required]"]),
        ("status", ["DIR Folder of a run, a sweep or a federation. [required]"]),
        ("schema", ["The document to describe. [default: config]"]),
    ],
)
def test_help_describes_arguments(command, lines):
    text = " ".join(started(command, "--help")[0].split())
    for line in lines:
        assert line in text
    assert "\\[" not in text


def test_a_run_can_stop_after_every_stage():
    from genfl import cli, pipeline

    assert [until.value for until in cli.Until] == [stage.name for stage in pipeline.STAGES]


def test_help_imports_nothing_heavy():
    code = """
import sys
import genfl.cli

sys.argv = ["genfl", "--help"]
try:
    genfl.cli.main()
except SystemExit:
    pass
print([m for m in ("torch", "numpy", "pydantic", "datasets", "diffusers", "yaml") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture(scope="module")
def algorithms():
    return json.loads(genfl("list", "algorithms", "--json")[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "keys"),
    [
        ("algorithms", {"name", "paper", "sees", "secure_sum", "uplink", "downlink", "memory", "needs"}),
        ("models", {"name", "parameters", "modality"}),
        ("datasets", {"name", "modality", "summary", "hub", "metric", "verified"}),
        ("generators", {"name", "modality", "models"}),
    ],
)
def test_lists_as_table_and_json(what, keys, algorithms):
    rows = algorithms if what == "algorithms" else json.loads(genfl("list", what, "--json")[0])
    assert rows
    assert all(set(row) == keys for row in rows)
    table = genfl("list", what)[0]
    assert all(row["name"] in table for row in rows)


@pytest.mark.slow
def test_the_listed_costs_are_those_of_the_algorithms(algorithms):
    rows = {row["name"]: row for row in algorithms}
    costs = {name: (r["sees"], r["uplink"], r["downlink"], r["memory"]) for name, r in rows.items()}
    assert costs["fedadam"] == ("sum", 1, 1, 0)
    assert costs["scaffold"] == ("sum", 2, 2, 1)


@pytest.mark.slow
def test_the_schema_is_json_schema_and_knows_the_algorithms():
    schema = json.loads(genfl("schema")[0])
    assert schema["additionalProperties"] is False
    assert "lr" in schema["$defs"]["Algorithm_fedadam"]["properties"]


@pytest.mark.slow
def test_a_run_ends_with_verdict_table_and_report(finished):
    out, _, stdout, stderr = finished
    assert "fedavg" in stdout
    assert "gptfl" in stdout
    assert f"Report: {out / 'report' / 'index.html'}" in stdout
    assert (out / "report" / "index.html").stat().st_size > 10_000
    assert "Traceback" not in stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["schema"] == 8
    assert list(summary["methods"]) == ["synthetic_only", "fedavg", "gptfl"]
    assert [row[0] for row in summary["methods"]["fedavg"]["curve"]] == [0, 1, 2]
    # one method starts from the generated data, the other does not
    starts = {name: method["curve"][0][1] for name, method in summary["methods"].items()}
    assert starts["gptfl"] == starts["synthetic_only"]
    models = [out / "federate" / name / "seed-0" / "model.safetensors" for name in ("fedavg", "gptfl")]
    assert models[0].read_bytes() != models[1].read_bytes()
    assert not any(stage["skipped"] for stage in summary["stages"].values())


@pytest.mark.slow
def test_the_models_are_ordinary_safetensors_state_dicts(finished):
    from safetensors.torch import load_file

    from genfl.data.sources import DATASETS
    from genfl.models import CNN

    out, *_ = finished
    model = CNN((1, 8, 8), 10).eval()
    model.load_state_dict(load_file(out / "federate" / "gptfl" / "seed-0" / "model.safetensors"))
    found = json.loads((out / "labels" / "labels.json").read_text())["found"]
    test = DATASETS["digits"].load().test
    right = [found[guess] == name for guess, name in zip(model(test.x).argmax(1), test.labels, strict=True)]
    summary = json.loads((out / "summary.json").read_text())
    assert sum(right) / len(right) == pytest.approx(summary["methods"]["gptfl"]["curve"][-1][1])


@pytest.mark.slow
def test_a_second_run_skips_every_stage_and_prints_json(finished):
    out, settings, *_ = finished
    before = json.loads((out / "summary.json").read_text())
    stdout, stderr = genfl("run", EXAMPLE, *settings, "--out", out, "--json")
    summary = json.loads(stdout)
    assert all(stage["skipped"] for stage in summary["stages"].values())
    assert stderr.count("up to date") == 7
    assert summary["methods"] == before["methods"]


@pytest.mark.slow
def test_status_of_a_finished_and_of_a_stopped_run(finished, tmp_path):
    out, settings, *_ = finished
    rows = json.loads(genfl("status", out, "--json")[0])
    assert [row["name"] for row in rows] == [
        "labels",
        "prompts",
        "generate",
        "audit",
        "pretrain",
        "federate",
        "report",
    ]
    assert {row["state"] for row in rows} == {"done"}
    stdout, _ = genfl(
        "run", EXAMPLE, *settings, "--until", "prompts", "--out", tmp_path / "stopped", "--json"
    )
    assert [row["state"] for row in json.loads(stdout)["stages"]] == ["done", "done"] + ["missing"] * 5
    assert "missing" in genfl("status", tmp_path / "stopped")[0]


@pytest.mark.slow
def test_status_of_a_finished_run_reads_its_records_alone(finished, tmp_path):
    """Neither the private data nor torch is needed, nor the folder in which the run was started."""
    import shutil

    source, *_ = finished
    sweep = tmp_path / "sweep"
    shutil.copytree(source, sweep / "one")
    config_file = sweep / "one" / "config.yaml"
    config_file.write_text(config_file.read_text().replace("name: digits", "name: images\n  path: absent", 1))
    (sweep / ".genfl-sweep").touch()
    code = """
import sys
import genfl.cli

sys.argv = ["genfl", "status", *sys.argv[1:]]
try:
    genfl.cli.main()
except SystemExit as end:
    assert end.code == 0
slow = ("torch", "numpy", "pydantic", "sklearn", "datasets", "pandas", "yaml")
print([m for m in slow if m in sys.modules])
"""

    def shown(*args):
        command = [sys.executable, "-c", code, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        *lines, slow = done.stdout.splitlines()
        assert slow == "[]"
        return "\n".join(lines)

    rows = json.loads(shown(sweep / "one", "--json"))
    assert [row["name"] for row in rows][-2:] == ["federate", "report"]
    assert {row["state"] for row in rows} == {"done"}
    assert all(row["seconds"] >= 0 for row in rows)
    assert shown(sweep).splitlines()[-1].split() == ["one", "done"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["record", "file", "summary"])
def test_a_run_that_lacks_something_is_not_finished(finished, tmp_path, damage):
    import shutil

    from genfl.experiment import records

    source, *_ = finished
    out = tmp_path / "run"
    shutil.copytree(source, out)
    assert len(records.finished_status(out)) == 7
    if damage == "record":
        file = out / "stages" / "pretrain.json"
        file.write_text(file.read_text().replace('"seconds": ', '"seconds": 1'))
    elif damage == "file":
        (out / "synthetic" / "manifest.json").unlink()
    else:
        (out / "summary.json").write_text("{")
    assert records.finished_status(out) is None


def test_folders_of_stages_are_those_of_the_pipeline():
    from genfl import pipeline
    from genfl.experiment.records import STAGE_FOLDERS

    assert all(stage.folder == STAGE_FOLDERS.get(stage.name, stage.name) for stage in pipeline.STAGES)


@pytest.mark.slow
def test_a_run_that_is_run_again_has_no_summary_until_it_ends(finished, tmp_path):
    import shutil

    from genfl import config, pipeline

    source, *_ = finished
    out = tmp_path / "run"
    shutil.copytree(source, out)
    settings = config.load(out / "config.yaml")
    pipeline.execute(settings, out, until="labels")
    assert (out / "summary.json").exists(), "all was up to date"
    (out / "stages" / "labels.json").unlink()
    pipeline.execute(settings, out, until="labels")
    assert not (out / "summary.json").exists()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "config.yaml: not YAML: "),
        ("name: 2026-02-30", "2026-02-30 is no valid timestamp, line 1"),
        ("a: &a [*a]", "an alias stands for what it is a part of, line 1"),
        ("- 1", "config.yaml: a config is a mapping of keys to values"),
        ("federate: 3", "config.yaml: name: required, but missing"),
    ],
)
def test_a_damaged_config_of_a_run_is_named(content, line, tmp_path):
    from genfl import pipeline
    from genfl.errors import InputError

    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError) as caught:
        pipeline.run_status(tmp_path)
    assert line in str(caught.value)
    assert all(text.startswith(f"{tmp_path / 'config.yaml'}: ") for text in str(caught.value).splitlines())


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
def test_a_full_disk_is_named(tmp_path):
    from genfl.errors import GenflError
    from genfl.pipeline import explaining_full_disk

    line = "no space left in {}; make room, and run the same command again to resume"
    with (
        pytest.raises(GenflError) as caught,
        explaining_full_disk(tmp_path),
        Path("/dev/full").open("w") as file,
    ):
        file.write("x")
    assert str(caught.value) == line.format(tmp_path)
    with pytest.raises(GenflError) as caught, explaining_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "cache" / "file"))
    assert str(caught.value) == line.format(tmp_path / "cache")
    with pytest.raises(GenflError) as caught, explaining_full_disk(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # as of libraries in Rust
    assert str(caught.value) == line.format(tmp_path)
    with pytest.raises(FileNotFoundError), explaining_full_disk(tmp_path):
        (tmp_path / "absent").read_text()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
def test_closed_streams_are_no_failure(tmp_path):
    command = f'exec "{sys.executable}" -m genfl run "$@" <&- >&- 2>&-'
    settings = ["generator=none", "prompts={}", "methods={a: {algorithm: fedavg}}", "--until", "labels"]
    args = [EXAMPLE, *settings, "--out", str(tmp_path / "run")]
    subprocess.run(["sh", "-c", command, "genfl", *args], check=True)
    assert (tmp_path / "run" / "labels" / "labels.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("refused", ["--out", "status", "data.path", "config"])
def test_names_too_long_are_bad_input(refused, tmp_path):
    long = "x" * 300
    data = f"data={{name: images, path: {long}, size: [8, 8], channels: 3}}"
    args = {
        "--out": ["run", EXAMPLE, "--out", long],
        "status": ["status", long],
        "data.path": ["run", EXAMPLE, data],
        "config": ["run", long],
    }
    _, stderr = genfl(*args[refused], code=2, cwd=tmp_path)
    (line,) = (line for line in stderr.splitlines() if line.startswith("error: "))
    assert len(line) < 700
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_folder_of_another_config_is_refused_updated_or_replaced(finished, tmp_path):
    import shutil

    source, settings, *_ = finished
    out = tmp_path / "run"
    shutil.copytree(source, out)
    other = [*settings, "federate.rounds=3"]
    _, stderr = genfl("run", EXAMPLE, *other, "--out", out, code=2)
    assert stderr.strip() == (
        f"error: --out: {out} holds a run of another config (federate.rounds: was 2, is now 3); choose"
        " another folder, --update to redo the stages that depend on the changes, or --fresh to start over"
    )
    summary = json.loads(genfl("run", EXAMPLE, *other, "--out", out, "--update", "--json")[0])
    skipped = {name: stage["skipped"] for name, stage in summary["stages"].items()}
    assert skipped == {
        "labels": True,
        "prompts": True,
        "generate": True,
        "audit": True,
        "pretrain": True,
        "federate": False,
        "report": False,
    }
    assert [row[0] for row in summary["methods"]["fedavg"]["curve"]] == [0, 1, 2, 3]
    stdout, _ = genfl("run", EXAMPLE, *settings, "--out", out, "--fresh", "--until", "labels", "--json")
    assert [row["state"] for row in json.loads(stdout)["stages"]] == ["done"] + ["missing"] * 6


BAD_INPUT = {
    "unknown key": (["federate.round=3"], "federate.round: unknown key; did you mean 'rounds'?"),
    "wrong type": (["federate.rounds=many"], "federate.rounds: should be a valid integer"),
    "alpha": (["data.partition.alpha=0"], "data.partition.alpha: should be greater than 0, not 0"),
    "cohort": (["federate.clients_per_round=21"], "federate.clients_per_round: 21 clients a round, but"),
    "model id": (
        ["generator.model=genfl-tests/absent"],
        "generator.model: 'genfl-tests/absent' is not 'miniature'",
    ),
    "model name": (["model.name=vgg1900"], "model.name: there is no 'vgg1900'"),
    "device": (["generator.device=cuda:7"], "generator.device: 'cuda:7', but torch sees no GPU"),
    "label": (["labels.max_bytes=4"], "over labels.max_bytes = 4"),
    "template": (["prompts.template=seven"], "prompts.template: 'seven' must name {label}"),
    "split": (["data.partition.min_size=400"], "lower data.partition.clients or min_size"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_clear_line_and_exit_code_2(name, tmp_path):
    overrides, line = BAD_INPUT[name]
    _, stderr = genfl("run", EXAMPLE, *overrides, "--out", tmp_path / "run", code=2)
    errors = [text for text in stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1
    assert line in errors[0]
    assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model id", "template", "split", "label", "device"])
def test_what_can_be_checked_is_checked_before_any_work(name, tmp_path):
    genfl("run", EXAMPLE, *BAD_INPUT[name][0], "--out", tmp_path / "run", code=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_bad_files_and_folders(tmp_path):
    assert "there is no file" in genfl("run", tmp_path / "absent.yaml", code=2)[1]
    (tmp_path / "bad.yaml").write_text("name: [")
    assert "not YAML" in genfl("run", tmp_path / "bad.yaml", code=2)[1]
    assert "holds no run" in genfl("status", tmp_path, code=2)[1]
    assert "holds no run" in genfl("run", EXAMPLE, "--out", tmp_path, code=2)[1]
    assert "is a file" in genfl("run", EXAMPLE, "--out", tmp_path / "bad.yaml", code=2)[1]
    assert "cannot be used" in genfl("run", EXAMPLE, "--out", tmp_path / "bad.yaml" / "x", code=2)[1]
    assert (tmp_path / "bad.yaml").read_text() == "name: ["
    genfl("run", EXAMPLE, "--out", tmp_path, "--fresh", code=2)  # --fresh deletes runs, nothing else
    assert (tmp_path / "bad.yaml").exists()
    genfl("run", code=2)
    genfl("nonsense", code=2)


@pytest.mark.slow
def test_a_traceback_only_with_debug(tmp_path):
    _, quiet = genfl("run", tmp_path / "absent.yaml", code=2)
    _, loud = genfl("run", tmp_path / "absent.yaml", "--debug", code=2)
    assert "Traceback" not in quiet
    assert "Traceback" in loud


@pytest.mark.slow
@pytest.mark.parametrize("how", ["{", "edited"])
def test_a_record_that_is_not_as_it_was_written_is_not_believed(finished, tmp_path, how):
    import shutil

    source, settings, *_ = finished
    out = tmp_path / "run"
    shutil.copytree(source, out)
    record = out / "stages" / "federate.json"
    record.write_text("{" if how == "{" else record.read_text().replace('"accuracy": 0.', '"accuracy": 0.9'))
    before = json.loads((out / "summary.json").read_text())["methods"]
    stdout, stderr = genfl("run", EXAMPLE, *settings, "--out", out, "--json")
    assert f"{record} is damaged" in stderr
    summary = json.loads(stdout)
    assert not summary["stages"]["federate"]["skipped"]
    assert summary["stages"]["pretrain"]["skipped"]
    assert summary["methods"] == before


@pytest.mark.slow
def test_fresh_and_update_touch_nothing_that_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text("title: a site of mine")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "annotations.csv").write_text("precious")
    for option in ("--fresh", "--update"):
        _, stderr = genfl("run", EXAMPLE, "--out", tmp_path, option, code=2)
        assert "holds no run" in stderr
    assert (tmp_path / "labels" / "annotations.csv").read_text() == "precious"
    assert (tmp_path / "config.yaml").read_text() == "title: a site of mine"


@pytest.mark.slow
def test_fresh_leaves_files_that_the_run_did_not_write(finished, tmp_path):
    import shutil

    source, settings, *_ = finished
    out = tmp_path / "run"
    shutil.copytree(source, out)
    (out / "notes.txt").write_text("mine")
    genfl("run", EXAMPLE, *settings, "--out", out, "--fresh", "--until", "labels")
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "federate").exists()


@pytest.mark.slow
def test_a_folder_with_nothing_but_the_beginnings_of_a_run_can_be_used(finished, tmp_path):
    """As a kill -9 in the first milliseconds leaves it."""
    _, settings, *_ = finished
    (tmp_path / ".lock").touch()
    (tmp_path / "..genfl.tmp").touch()
    genfl("run", EXAMPLE, *settings, "--out", tmp_path, "--until", "labels")


@pytest.mark.slow
def test_a_failure_that_is_not_the_users_is_exit_code_1(finished, tmp_path):
    import shutil

    source, settings, *_ = finished
    out = tmp_path / "run"
    shutil.copytree(source, out)
    (out / "stages" / "report.json").unlink()
    (out / "stages" / "report.json").mkdir()  # a folder in the way of a file
    _, stderr = genfl("run", EXAMPLE, *settings, "--out", out, code=1)
    assert stderr.splitlines()[-1].startswith("failed: IsADirectoryError")
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_two_processes_do_not_share_a_folder(finished):
    from filelock import FileLock

    out, settings, *_ = finished
    with FileLock(out / ".lock"):
        for options in ([], ["--fresh"], ["--update", "federate.rounds=3"]):
            _, stderr = genfl("run", EXAMPLE, *settings, "--out", out, *options, code=2)
            assert "another process is using" in stderr
    assert "rounds: 2" in (out / "config.yaml").read_text()
    assert (out / "summary.json").exists()


def _without_times(out):
    summary = json.loads((out / "summary.json").read_text())
    del summary["stages"], summary["cost"]
    del summary["synthetic"]["seconds"], summary["synthetic"]["samples_per_second"]
    return summary


def _shards(out):
    return {path.name: path.read_bytes() for path in (out / "synthetic" / "data").iterdir()}


def _wait_for(condition, process, limit=300):
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() - began < limit
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_in_the_middle_of_every_stage_it_ends_as_if_it_had_not_been(tmp_path, tiny_stable_diffusion):
    """kill -9 during generate, pretrain and federate of one run; then the same command again."""
    settings = [
        *SMALL,
        f"generator.model={tiny_stable_diffusion}",
        "prompts.per_label=12",
        "pretrain.epochs=12",
        "pretrain.patience=12",
        "federate.rounds=18",
        "federate.checkpoint_every=3",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    genfl("run", EXAMPLE, *settings, "--out", whole)
    conditions = {
        "generate": lambda: len(list((killed / "synthetic" / "data").glob("train-*.parquet"))) >= 3,
        "pretrain": lambda: (killed / "pretrain" / "seed-0" / "checkpoint.safetensors").exists(),
        "federate": lambda: (killed / "federate" / "gptfl" / "seed-0" / "checkpoint.safetensors").exists(),
    }
    for stage, reached in conditions.items():
        process = Command("run", EXAMPLE, *settings, "--out", killed)
        _wait_for(reached, process)
        process.kill()
        states = {row["name"]: row for row in json.loads(genfl("status", killed, "--json")[0])}
        assert states[stage]["state"] == "partial", f"{stage} was over before the kill"
        if stage != "pretrain":
            done, _, total, _ = states[stage]["progress"].split()
            assert 0 < int(done) < int(total)
    genfl("run", EXAMPLE, *settings, "--out", killed)
    assert _without_times(killed) == _without_times(whole)
    assert _shards(killed) == _shards(whole)
    for model in ("pretrain/seed-0", "federate/fedavg/seed-0", "federate/gptfl/seed-0"):
        file = Path(model) / "model.safetensors"
        assert (killed / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
def test_a_flipped_byte_in_a_finished_shard_is_named_and_made_again(finished, tmp_path):
    import shutil

    source, settings, *_ = finished
    out = tmp_path / "run"
    shutil.copytree(source, out)
    shard = out / "synthetic" / "data" / "train-00002-of-00005.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    stdout, stderr = genfl("run", EXAMPLE, *settings, "--out", out, "--json")
    assert f"{shard} is damaged" in stderr
    skipped = {name: stage["skipped"] for name, stage in json.loads(stdout)["stages"].items()}
    assert not skipped.pop("generate")
    assert all(skipped.values())
    assert _shards(out) == _shards(source)


@pytest.mark.slow
def test_no_progress_bar_where_there_is_no_terminal(finished):
    *_, stdout, stderr = finished
    assert "\x1b[" not in stdout + stderr
    assert "it/s" not in stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal needs POSIX")
def test_a_progress_bar_on_a_terminal(tmp_path, tiny_stable_diffusion):
    import pty

    parent, child = pty.openpty()
    settings = [*SMALL, f"generator.model={tiny_stable_diffusion}"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "genfl",
            "run",
            EXAMPLE,
            *settings,
            "--out",
            str(tmp_path / "run"),
            "--until",
            "generate",
        ],
        stderr=child,
        stdout=subprocess.DEVNULL,
    )
    os.close(child)
    seen = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert process.wait() == 0
    os.close(parent)
    assert b"samples" in seen
    assert b"/s" in seen


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_says_how_to_go_on(tmp_path, tiny_stable_diffusion, times):
    import signal

    settings = [*SMALL, f"generator.model={tiny_stable_diffusion}", "prompts.per_label=200"]
    command = [sys.executable, "-m", "genfl", "run", EXAMPLE, *settings, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    _wait_for((tmp_path / "run" / "synthetic" / "manifest.json").exists, process)
    began = time.monotonic()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, stderr = process.communicate()
    assert time.monotonic() - began < 2
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "interrupted; run the same command again to resume"
    assert json.loads(genfl("status", tmp_path / "run", "--json")[0])[2]["state"] == "partial"
