"""metrics.jsonl: what it holds, what repairs it, and that nothing of it stops a run."""

import json
import math
import random

import pytest

from genfl.tracking.events import Events, Follower, rows_of
from genfl.tracking.metrics_file import MetricsFile, read_events
from genfl.tracking.series import Series

ONE, OTHER = Series("round", "fedavg", 0), Series("round", 'gpt\u2028fl "x"', 1)
ROWS = [{"round": n, "uplink_bytes": 10 * n, "accuracy": n / 7} for n in range(8)]


def rounds(path, series=ONE):
    """The rows of a series in the file, in its order, without what every line has."""
    return [
        {name: value for name, value in event.items() if name not in (*series.about, "time")}
        for event in read_events(path)
        if Series.of(event) == series
    ]


def intact(path):
    """Whether every line is strict JSON and complete."""
    content = path.read_bytes()
    for line in content.decode().split("\n")[:-1]:
        json.loads(line, parse_constant=lambda constant: pytest.fail(constant))
    return content.endswith(b"\n") or not content


def test_a_line_a_row_and_each_is_on_the_disk_at_once(tmp_path):
    file = MetricsFile(tmp_path / "m.jsonl")
    for number, row in enumerate(ROWS, 1):
        file.row(ONE, row)
        assert len(read_events(tmp_path / "m.jsonl")) == number
    file.row(OTHER, {"round": 1, "loss": math.nan, "gap": math.inf, "recall": [1, 2]})
    assert rounds(tmp_path / "m.jsonl") == ROWS
    assert rounds(tmp_path / "m.jsonl", OTHER) == [{"round": 1, "loss": None, "gap": None}]
    assert intact(tmp_path / "m.jsonl")
    assert all(event["time"].endswith("+00:00") for event in read_events(tmp_path / "m.jsonl"))


def test_rounds_after_the_checkpoint_go_and_missing_ones_come_back(tmp_path):
    path = tmp_path / "m.jsonl"
    file = MetricsFile(path)
    for row in ROWS[:3] + ROWS[4:7]:
        file.row(ONE, row)
    file.row(OTHER, ROWS[0])
    file.stage("federate", "started", None)
    before = {event["round"]: event["time"] for event in read_events(path) if Series.of(event) == ONE}
    MetricsFile(path).history(ONE, ROWS[:5])
    assert rounds(path) == ROWS[:5]
    after = {event["round"]: event["time"] for event in read_events(path) if Series.of(event) == ONE}
    assert {n: after[n] for n in (0, 1, 2, 4)} == {n: before[n] for n in (0, 1, 2, 4)}, "it stays as it is"
    assert after[3] >= before[6]
    assert rounds(path, OTHER) == [ROWS[0]]


def test_what_agrees_is_not_written_again(tmp_path):
    path = tmp_path / "m.jsonl"
    file = MetricsFile(path)
    for row in ROWS:
        file.row(ONE, row)
    before = (path.stat().st_ino, path.read_bytes())
    for again in (file, MetricsFile(path)):
        again.history(ONE, ROWS)
        again.keep("round", {ONE})
    assert (path.stat().st_ino, path.read_bytes()) == before


def test_values_of_changed_inputs_and_deleted_methods_go(tmp_path):
    path = tmp_path / "m.jsonl"
    file, epochs = MetricsFile(path), Series("epoch", "generated", 0)
    file.history(ONE, ROWS)
    file.history(OTHER, ROWS)
    file.history(epochs, [{"epoch": 1, "loss": 2.0}])
    file = MetricsFile(path)
    file.keep("round", {ONE})
    assert (rounds(path, OTHER), rounds(path)) == ([], ROWS)
    changed = [{**row, "accuracy": 0.5} for row in ROWS]
    file.history(ONE, changed)
    assert rounds(path) == changed
    assert rounds(path, epochs) == [{"epoch": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    "tail",
    [
        *(b'{"event": "round", "meth', b"\xff\xfe\x00\n", b"[1]\n", b"{}\n", b"[" * 100_000 + b"\n", b"\n\n"),
        *(b'{"event": "round", "method": [1], "seed": 0}\n', b'{"event": "stage", "x": NaN}\n'),
        b'{"event": "rund", "method": "fedavg"}\n',
        b'{"event": "round", "method": "fedavg", "seed": 0, "round": 9, "loss": 1e999}\n',
    ],
    ids=["torn", "bytes", "list", "empty", "deep", "blank", "unhashable", "nan", "unknown", "too large"],
)
def test_damaged_lines_are_dropped(tmp_path, tail, caplog):
    path = tmp_path / "m.jsonl"
    MetricsFile(path).history(ONE, ROWS)
    path.write_bytes(path.read_bytes() + tail)
    file = MetricsFile(path)
    assert "damaged lines are dropped" in caplog.text
    assert (intact(path), rounds(path)) == (True, ROWS)
    file.row(ONE, {"round": 8})
    assert rounds(path) == [*ROWS, {"round": 8}]


def test_a_file_cut_anywhere_is_as_it_was_after_its_history(tmp_path):
    path, draw = tmp_path / "m.jsonl", random.Random(0)
    for _ in range(40):
        path.unlink(missing_ok=True)
        file = MetricsFile(path)
        for row in ROWS:
            file.row(ONE, row)
        content = path.read_bytes()
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + content[at + draw.randrange(30) :])
        MetricsFile(path).history(ONE, ROWS)
        assert (intact(path), rounds(path)) == (True, ROWS)


def test_a_file_that_cannot_be_written_warns_once(tmp_path, caplog):
    (tmp_path / "m.jsonl").mkdir()
    file = MetricsFile(tmp_path / "m.jsonl")
    file.history(ONE, ROWS)
    file.row(ONE, {"round": 9})
    file.history(ONE, ROWS[:2])
    file.keep("round", ())
    file.stage("federate", "finished", 1.0)
    assert caplog.text.count("the run goes on without it") == 1


def test_a_follower_tells_each_row_once(tmp_path):
    path = tmp_path / "m.jsonl"
    follow = Follower(Events(MetricsFile(path)), ONE)
    for number in (3, 3, 5, 8):
        follow(ROWS[:number])
    assert rounds(path) == ROWS


def test_a_row_has_the_scores_of_an_evaluated_round():
    evaluations = [{"round": n, "accuracy": n / 10, "recall": [1.0]} for n in (0, 2)]
    worked = [{"round": n, "uplink_bytes": n} for n in (1, 2)]
    assert rows_of({"evaluations": evaluations, "rounds": worked}) == [
        {"round": 0, "accuracy": 0.0},
        {"round": 1, "uplink_bytes": 1},
        {"round": 2, "uplink_bytes": 2, "accuracy": 0.2},
    ]
