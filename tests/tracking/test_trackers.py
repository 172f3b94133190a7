"""Trackers with their real libraries: TensorBoard's reader, and MLflow's client against a server process."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.command import run_command

from genfl import config, pipeline
from genfl.config.tracking import Track
from genfl.errors import InputError
from genfl.tracking import background
from genfl.tracking.background import BackgroundTracker
from genfl.tracking.metrics_file import METRICS_FILE, read_events
from genfl.tracking.mlflow import MlflowRun
from genfl.tracking.opening import check_trackers, told_of
from genfl.tracking.series import Series

from .helpers import recorded, told, write_images

SERVER = Path(__file__).parents[1] / "support" / "mlflow_server.py"
ONE = Series("round", "plain", 0)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def flat(rows, kind):
    """The figures of some rows: (tag, step) -> value."""
    return {
        (tag, row[kind]): float(value)
        for row in rows
        for tag, value in row.items()
        if tag != kind and isinstance(value, int | float)
    }


# --- TensorBoard


def scalars(folder):
    """The values in event files, by their reader; fails if a step is there twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    values = [(tag, e.step, e.value) for tag in read.Tags()["scalars"] for e in read.Scalars(tag)]
    assert len({(tag, step) for tag, step, _ in values}) == len(values)
    return {(tag, step): value for tag, step, value in values}


def in_tensorboard(folder):
    return {
        path.relative_to(folder / "tensorboard").as_posix(): scalars(path)
        for path in {file.parent for file in (folder / "tensorboard").rglob("events.*")}
    }


def expected(folder):
    return {
        f"{'pretrain/' if name.kind == 'epoch' else ''}{name.name}/seed-{name.seed}": flat(rows, name.kind)
        for name, rows in recorded(folder).items()
    }


def agree(seen, wanted):
    assert seen.keys() == wanted.keys()
    for name, values in wanted.items():
        assert seen[name] == pytest.approx(values, rel=1e-6), name  # they are stored in single precision


@pytest.mark.slow
def test_tensorboard_has_each_figure_once(text, tmp_path):
    pytest.importorskip("tensorboard")
    folder, quick = tmp_path / "run", ("seeds=[0]", "federate.rounds=5")
    pipeline.execute(config.parse(text, quick), folder)
    with_board = config.parse(text, (*quick, "track.tensorboard=true"))
    summary = pipeline.execute(with_board, folder)  # a finished run is told, too
    assert all(stage["skipped"] for stage in summary["stages"].values())
    agree(in_tensorboard(folder), expected(folder))
    before = {file: file.stat().st_mtime_ns for file in (folder / "tensorboard").rglob("events.*")}
    pipeline.execute(with_board, folder)
    assert {file: file.stat().st_mtime_ns for file in (folder / "tensorboard").rglob("events.*")} == before
    # a trial whose last rounds are lost, as after a kill, is trained from its checkpoint
    changed = config.parse(
        text, (*quick, "track.tensorboard=true", "methods={plain: {algorithm: fedavg}}", "federate.rounds=6")
    )
    pipeline.execute(changed, folder, update=True)
    agree(in_tensorboard(folder), expected(folder))


# --- MLflow


class Server:
    """A process that speaks MLflow's REST."""

    def __init__(self, state):
        self.state = state
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), str(self.port), str(self.state)], stdout=subprocess.PIPE, text=True
        )
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def kill(self):
        self.process.kill()
        return self.process.communicate()[0]

    def runs(self):
        return list(json.loads(self.state.read_text())["runs"].values())

    def metrics(self, run):
        values = [(metric["key"], metric["step"], metric["value"]) for metric in run["metrics"]]
        assert len({(key, step) for key, step, _ in values}) == len(values), "a step is there twice"
        return {(key, step): value for key, step, value in values}


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("mlflow")
    server = Server(tmp_path / "state.json")
    yield server
    assert server.kill() == "", "no call that the server does not know"


def wanted(folder):
    """What MLflow should have of the rounds and epochs of a run."""
    return {
        (f"{'pretrain/' if name.kind == 'epoch' else ''}{name.name}/seed-{name.seed}/{tag}", step): value
        for name, rows in recorded(folder).items()
        for (tag, step), value in flat(rows, name.kind).items()
    }


def trained(server, run):
    return {key: value for key, value in server.metrics(run).items() if "/seed-" in key[0]}


@pytest.mark.slow
def test_mlflow_has_each_figure_once_and_no_path(text, server, tmp_path):
    folder = tmp_path / "run"
    settings = ("seeds=[0]", "federate.rounds=5", f"track.mlflow={{uri: '{server.url}', experiment: mine}}")
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW")}
    summary = pipeline.execute(config.parse(text, settings), folder)
    assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW")} == before
    pipeline.execute(config.parse(text, settings), folder)
    (run,) = server.runs()
    assert trained(server, run) == wanted(folder)
    assert server.metrics(run)["plain/accuracy_mean", 0] == summary["methods"]["plain"]["accuracy"]["mean"]
    assert run["info"]["status"] == "FINISHED"
    assert {p["key"]: p["value"] for p in run["params"]}["plain.algorithm"] == "fedavg weighting=samples"
    assert str(tmp_path.parent) not in server.state.read_text()
    more = config.parse(text, (*settings, "federate.local.lr=0.5"))
    pipeline.execute(more, folder, update=True)
    assert len(server.runs()) == 2, "other figures are another run"
    assert trained(server, server.runs()[1]) == wanted(folder)


@pytest.mark.slow
def test_a_row_that_waits_twice_is_sent_once(server, tmp_path):
    run = MlflowRun(tmp_path, server.url, "mine", "told", {}, "same")
    run.row(ONE, {"round": 1, "loss": 0.5})
    run.history(ONE, [{"round": 1, "loss": 0.5}, {"round": 2, "loss": 0.25}])
    run.flush()
    run.close()
    (stored,) = server.runs()
    assert server.metrics(stored) == {("plain/seed-0/loss", 1): 0.5, ("plain/seed-0/loss", 2): 0.25}


@pytest.mark.slow
def test_a_server_killed_in_the_middle_loses_nothing(text, server, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(background, "CLOSE_SECONDS", 3.0)
    settings = ("seeds=[0]", "federate.rounds=60", "federate.evaluate_every=1")
    plain = pipeline.execute(config.parse(text, settings), tmp_path / "plain")
    tracked = config.parse(text, (*settings, f"track.mlflow={{uri: '{server.url}'}}"))

    def kill_in_the_middle():
        while not server.state.exists() or not any(run["metrics"] for run in server.runs()):
            time.sleep(0.01)
        server.kill()

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    folder = tmp_path / "run"
    summary = pipeline.execute(tracked, folder)
    killer.join()
    for side in (plain, summary):
        del side["stages"], side["cost"]
        del side["synthetic"]["seconds"], side["synthetic"]["samples_per_second"]
    assert summary == plain
    assert caplog.text.count("the run goes on, and metrics.jsonl has all figures") == 1
    assert told(folder) == recorded(folder)
    (run,) = server.runs()
    assert len(trained(server, run)) < len(wanted(folder)), "it was over before the kill"
    server.start()
    pipeline.execute(tracked, folder)
    (run,) = server.runs()
    assert trained(server, run) == wanted(folder), "the same command sends what is missing"
    assert run["info"]["status"] == "FINISHED"


# --- what cannot work, and what is slow


def test_a_slow_tracker_does_not_slow_a_run(monkeypatch, caplog):
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(background, "MOST_WAITING", 50)
    released = threading.Event()

    class Stuck:
        def row(self, series, row):
            released.wait(30)

        finish = stage = history = keep = flush = close = lambda *about: None

    began = time.monotonic()
    tracker = BackgroundTracker("track.stuck", Stuck())
    for number in range(1000):
        tracker.row(ONE, {"round": number})
    tracker.finish(None, "finished")
    assert time.monotonic() - began < 5
    assert caplog.text.count("track.stuck") == 1
    released.set()


def test_a_tracker_that_raises_warns_once_and_gets_the_rest(caplog):
    rows = []

    class Broken:
        def row(self, series, row):
            rows.append(row["round"])
            raise RuntimeError("no room")

        finish = stage = history = keep = flush = close = lambda *about: None

    tracker = BackgroundTracker("track.broken", Broken())
    for number in range(5):
        tracker.row(ONE, {"round": number})
    tracker.finish(None, "finished")
    assert rows == [0, 1, 2, 3, 4]
    assert caplog.text.count("track.broken: RuntimeError: no room; the run goes on") == 1


def test_a_tracker_that_never_connects_holds_up_neither_start_nor_end(monkeypatch, caplog):
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.2)
    released = threading.Event()

    class Connecting:
        def flush(self):
            released.wait(30)

        finish = stage = history = keep = row = close = lambda *about: None

    began = time.monotonic()
    tracker = BackgroundTracker("track.connecting", Connecting())
    tracker.row(ONE, {"round": 1})
    tracker.finish(None, "finished")
    assert time.monotonic() - began < 5
    assert caplog.text.count("track.connecting: it was not done within 0.2 s") == 1
    released.set()


@pytest.mark.slow
def test_a_database_that_cannot_be_opened_does_not_delay_a_run(text, tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    settings, folder = tmp_path / "c.yaml", tmp_path / "run"
    settings.write_text(text)
    (tmp_path / "database").mkdir()  # MLflow tries ten times to open it as a file, and waits longer each time
    values = ("seeds=[0]", "federate.rounds=2", f"track.mlflow.uri='sqlite:///{tmp_path / 'database'}'")
    stdout, stderr = run_command("run", settings, *values, "--out", folder)
    events = read_events(folder / METRICS_FILE)
    first, last = (datetime.fromisoformat(events[n]["time"]) for n in (0, -1))
    lock = datetime.fromtimestamp((folder / "config.yaml").stat().st_mtime, UTC)
    assert (first - lock).total_seconds() < 15, "training did not wait"
    assert (last - first).total_seconds() < 60
    assert stderr.count("track.mlflow: it was not done within 10 s; the run goes on") == 1
    assert "retried" not in stderr + stdout


@pytest.mark.slow
def test_an_address_of_no_known_kind_is_a_warning(text, tmp_path, caplog):
    pytest.importorskip("mlflow")
    settings = ("seeds=[0]", "federate.rounds=1", "track.mlflow.uri='gopher://127.0.0.1'")
    assert pipeline.execute(config.parse(text, settings), tmp_path / "run") is not None
    assert caplog.text.count("track.mlflow: ") == 1


def test_what_is_missing_is_said_before_any_work(monkeypatch, text):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"track\.mlflow\.uri: not set; set it"):
        check_trackers(Track.model_validate({"mlflow": {}}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check_trackers(Track.model_validate({"mlflow": {}}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"track\.tensorboard: .* pip install 'genfl\[track\]'"):
        check_trackers(Track(tensorboard=True))


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:s3cret@127.0.0.1",
        "http://s3cret@127.0.0.1",
        "http://127.0.0.1/?token=s3cret",
        "http://me:s3cret@[::1",
        "postgresql://me:a/s3cret?@127.0.0.1/db",
        "me:s3cret@127.0.0.1",
    ],
)
def test_a_secret_in_the_address_is_refused_and_not_repeated(text, uri, caplog):
    with pytest.raises(InputError, match=r"track\.mlflow\.uri: it holds a user name, a pass") as refused:
        config.parse(text, [f"track.mlflow={{uri: '{uri}'}}"])
    assert len(str(refused.value).splitlines()) == 1
    assert "s3cret" not in str(refused.value)

    class Broken:
        def flush(self):
            raise RuntimeError(f"{'x' * 140} cannot reach '{uri}' (by {uri})")

        finish = stage = history = keep = row = close = lambda *about: None

    BackgroundTracker("track.broken", Broken()).finish(None, "finished")
    assert "cannot reach" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "sqlite:////data/me@home/m.db", "databricks://me"])
def test_an_address_without_secrets_is_taken(text, uri):
    assert config.parse(text, [f"track.mlflow={{uri: '{uri}'}}"]).track.mlflow.uri == uri


@pytest.mark.slow
def test_mlflow_shows_how_a_run_ended(text, server, tmp_path, monkeypatch):
    settings = ("seeds=[0]", "federate.rounds=2", f"track.mlflow={{uri: '{server.url}'}}")
    tracked, folder, stop = config.parse(text, settings), tmp_path / "run", RuntimeError("no more")

    def status(**options):
        pipeline.execute(tracked, folder, **options)
        (run,) = server.runs()
        return run["info"]["status"]

    def stopped(error):
        def settle(*about, **more):
            raise error

        with monkeypatch.context() as patched, pytest.raises(type(error)):
            patched.setattr(pipeline, "_settle", settle)
            status()
        (run,) = server.runs()
        return run["info"]["status"]

    assert status(until="generate") == "FINISHED"
    assert stopped(stop) == "FAILED"
    assert stopped(KeyboardInterrupt()) == "KILLED"
    assert status() == "FINISHED"


@pytest.mark.slow
def test_the_runs_folder_has_no_secret_of_the_address(server, tmp_path):
    def start():
        uri = server.url.replace("//", "//me:s3cret@")
        run = MlflowRun(tmp_path, uri, "mine", "told", {}, "same")
        run.flush()
        run.close()

    start()
    stored = tmp_path / "mlflow.json"
    assert "s3cret" not in stored.read_text()
    assert json.loads(stored.read_text())["uri"] == server.url
    stored.write_text(stored.read_text().replace("//", "//me:s3cret@"))  # as older versions wrote it
    start()
    assert len(server.runs()) == 1, "the run is continued"
    assert "s3cret" not in stored.read_text()


def test_trackers_are_told_no_path(text):
    told = told_of(config.parse(text))
    assert told["name"] == "told"
    assert not [value for value in told.values() if "/" in value]
