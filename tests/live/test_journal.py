"""The journal of a federation: what it says, whole lines after a kill, and that nothing private is in it."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime

import pytest
from support.sites import own_logs, prepare, serve_in_process

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, RecordDict

from genfl.engines.flower import exchange
from genfl.engines.flower.in_process import InProcessGrid
from genfl.engines.flower.node import build_client_app
from genfl.engines.flower.work import CANNOT
from genfl.journal import EVENTS, JOURNAL, LONGEST_TEXT, EventFields, JournalReader, about, tell
from genfl.live.logs import journal_to
from genfl.live.watch import watching

pytestmark = pytest.mark.slow

ENDLESS = """
import sys
from pathlib import Path
from genfl.journal import tell
from genfl.live.logs import journal_to

journal_to(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    tell("answered", round=number, reason="x" * 300)
"""


def events_of(folder):
    return list(JournalReader(folder / JOURNAL).new())


def counted(events, *names):
    return Counter(tuple(event.get(name) for name in names) for event in events)


def test_the_server_says_what_happened(served):
    folder, begin, end = served
    events = events_of(folder / "server")
    times = [datetime.fromisoformat(event["time"]) for event in events]
    assert all(time.utcoffset().total_seconds() == 0 for time in times)
    assert begin <= times[0] <= times[-1] <= end
    assert times == sorted(times)
    assert {event["event"] for event in events} <= set(EVENTS)
    assert {name for event in events for name in event} <= {"time", "event", *EventFields.__annotations__}
    assert events[0]["event"] == "federation_started"
    assert events[-1] == {"time": events[-1]["time"], "event": "federation_ended"}
    online = [event["client"] for event in events if event["event"] == "client_online"]
    assert online == [0, 1]

    trained = [event for event in events if event.get("action") == "train"]
    assert counted(trained, "event", "client") == {
        ("sent", 0): 4,
        ("sent", 1): 4,
        ("answered", 0): 4,
        ("answered", 1): 2,
        ("unanswered", 1): 2,
        ("counted", 0): 4,
        ("counted", 1): 2,
        ("left_out", 1): 2,
    }
    assert len({(event["run"], event["method"], event["seed"]) for event in trained}) == 2
    left_out = [event for event in trained if event["event"] == "left_out"]
    assert [(event["method"], event["round"]) for event in left_out] == [("plain", 2), ("memory", 2)]
    assert {event["reason"] for event in left_out} == {"its node failed: no memory"}
    ends = [event for event in events if event["event"] in ("round_finished", "checkpoint_written")]
    each = [("round_finished", 1), ("round_finished", 2), ("checkpoint_written", 2)]  # the last round has one
    assert [(event["method"], event["event"], event["round"]) for event in ends] == [
        (method, *end) for method in ("plain", "memory") for end in each
    ]
    rounds = [event["seconds"] for event in ends if event["event"] == "round_finished"]
    assert 0 < sum(rounds) < (times[-1] - times[0]).total_seconds()


def test_sizes_are_those_of_the_tensors(served):
    """A message has the model, and an upload its change and a weight."""
    folder = served.folder
    events = [event for event in events_of(folder / "server") if event.get("method") == "plain"]
    trace = json.loads((folder / "server/run/federate/plain/seed-0/trace.json").read_text())
    first = trace["rounds"][0]
    for name, figure in (("sent", "downlink_bytes"), ("answered", "uplink_bytes")):
        sizes = [
            e["bytes"] for e in events if e["event"] == name and e["action"] == "train" and e["round"] == 1
        ]
        tensors = first[figure] / 2
        assert len(sizes) == 2
        assert all(tensors <= size < tensors + 6000 for size in sizes)  # the config, and headers of arrays


def test_a_client_says_what_it_answered(served):
    folder = served.folder
    for client, rounds in ((0, [1, 2, 1, 2]), (1, [1, 1])):
        events = events_of(folder / f"client-{client}")
        assert {event["event"] for event in events} == {"answered"}
        assert {event["client"] for event in events} == {client}
        assert [event["round"] for event in events if event["action"] == "train"] == rounds
        server = [
            e for e in events_of(folder / "server") if e["event"] == "answered" and e["client"] == client
        ]
        assert [event["bytes"] for event in events] == [event["bytes"] for event in server]


def test_a_resume_is_told(served, tmp_path):
    folder = shutil.copytree(served.folder, tmp_path / "copy")
    before = len(events_of(folder / "server"))
    serve_in_process(folder)
    events = events_of(folder / "server")[before:]
    assert events[0]["event"] == "federation_resumed"
    assert events[-1]["event"] == "federation_ended"
    assert not [event for event in events if event.get("action") == "train"]  # it had its models


def test_an_error_of_a_client_stays_there(tmp_path):
    """In a secure sum, the server does not learn its type either. Both journals say what it learned."""
    prepare(tmp_path, "federate.secure={threshold: 2}", "methods={plain: {algorithm: fedavg}}")
    secret = tmp_path / "client-1" / "data" / "train" / "mouse"
    for image in secret.iterdir():
        image.write_bytes(b"private")
    from genfl.live import context

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context.RemoteContext.__init__, "__defaults__", ((), 0.01))
        serve_in_process(tmp_path)
    server, client = events_of(tmp_path / "server"), events_of(tmp_path / "client-1")
    refused = [event for event in client if event["event"] == "refused"]
    assert {(event["action"], event["phase"]) for event in refused} == {("labels", "upload")}
    (reason,) = {event["reason"] for event in refused}
    assert reason == CANNOT
    assert reason in {event.get("reason") for event in server if event["event"] == "refused"}
    assert server[-1]["event"] == "federation_ended"
    assert "labels: every client is needed" in server[-1]["reason"]
    for folder in ("server", "client-1"):
        assert "mouse" not in (tmp_path / folder / JOURNAL).read_text()
    assert "mouse" in (tmp_path / "client-1" / "client.log").read_text()


def test_phases_of_a_secure_sum(tmp_path):
    prepare(tmp_path, "federate.secure=true", "federate.rounds=1", "methods={plain: {algorithm: fedavg}}")
    serve_in_process(tmp_path)
    events = events_of(tmp_path / "server")
    phases = ["keys", "shares", "upload", "confirm", "reveal"]
    for client in (0, 1):
        own = [e for e in events if e.get("client") == client and e.get("action") == "train"]
        assert [e["phase"] for e in own if e["event"] == "answered"] == phases
        answers = [e for e in events_of(tmp_path / f"client-{client}") if e["action"] == "train"]
        assert [(e["event"], e["phase"]) for e in answers] == [("answered", phase) for phase in phases]
        assert answers[2]["method"] == "plain"
    opened = [event for event in events if event["event"] == "sum_opened"]
    assert [(event["action"], event["clients"]) for event in opened] == [
        ("labels", 2),
        ("census", 2),
        ("train", 2),
    ]


def test_clients_that_come_and_go(tmp_path):
    """Looks that fail, as while the SuperLink is away, change nothing."""
    looks = iter([set(), {7}, {7, 9}, None, {7}, {7, 9}])
    over = threading.Event()

    class ChangingGrid(InProcessGrid):
        def get_node_ids(self):
            nodes = next(looks, over)
            if nodes is over:
                over.set()
            return sorted({7, 9} if nodes is over else nodes)  # sorting None fails

    with own_logs():
        journal_to(tmp_path / JOURNAL)
        with watching(ChangingGrid(build_client_app(lambda context: None), 0), [7, 9], seconds=0.001):
            assert over.wait(60)
    events = [(event["event"], event["client"]) for event in events_of(tmp_path)]
    online, offline = "client_online", "client_offline"
    assert events == [(online, 0), (online, 1), (offline, 1), (online, 1)]


def test_a_server_that_waits_says_so(tmp_path, monkeypatch):
    class SilentGrid(InProcessGrid):
        def deliver(self, message):
            return None

    monkeypatch.setattr(exchange, "WAITING", 0.02)
    grid = SilentGrid(build_client_app(lambda context: None), 2)
    records = {number: RecordDict({"about": ConfigRecord({"a": "four", "b": b"six"})}) for number in range(3)}
    with own_logs():
        journal_to(tmp_path / JOURNAL)
        ask = exchange.GridExchange(grid, [*grid.get_node_ids(), 77], deadline=0.2, pause=0.001)
        silent = ask(records, "train.train", "1", lambda client, content: None)
    events = events_of(tmp_path)
    kinds = [event["event"] for event in events]
    assert kinds[:3] == ["sent", "sent", "waiting"]
    assert kinds[-3:] == ["unanswered"] * 3
    assert {event["bytes"] for event in events[:2]} == {len("four") + len(b"six")}
    waits = [event for event in events if event["event"] == "waiting"]
    assert {event["clients"] for event in waits} == {2}
    assert 2 <= len(waits) <= 10
    assert waits[0]["seconds"] >= 0.02
    assert {event["client"]: event["reason"] for event in events[-3:]} == silent


def test_lines_are_whole_after_a_kill(tmp_path):
    file = tmp_path / JOURNAL
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(file)])
        size = file.stat().st_size if file.exists() else 0
        while not file.exists() or file.stat().st_size < size + 200_000:
            time.sleep(0.001)
        process.kill()
        process.wait()
    lines = file.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert all(json.loads(line)["event"] == "answered" for line in lines)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    file = tmp_path / JOURNAL
    with own_logs():
        journal_to(file)
        tell("waiting", clients=2)
    with file.open("ab") as content:
        content.write(b'{"time": "2026-')
    with own_logs():
        journal_to(file)
        tell("waiting", clients=1)
    assert [event["clients"] for event in JournalReader(file).new()] == [2, 1]


def test_texts_are_bounded_and_on_one_line(tmp_path):
    with own_logs():
        journal_to(tmp_path / JOURNAL)
        with about(run="a" * 10_000, round=3, seed=None), about(client=1):
            tell("left_out", reason="line\n" * 10_000 + "\u2028é")
    (line,) = (tmp_path / JOURNAL).read_bytes().splitlines()
    assert line.isascii()
    event = json.loads(line)
    assert list(event) == ["time", "event", "run", "round", "client", "reason"]
    assert len(line) < 5 * LONGEST_TEXT


def test_reader_gives_each_line_once(tmp_path):
    file = tmp_path / JOURNAL
    reader = JournalReader(file)
    assert list(reader.new()) == []
    line = b'{"time": "2026-11-30T10:00:00.000+00:00", "event": "waiting", "clients": %d}\n'
    file.write_bytes(line % 1 + b"damaged\n[1]\n" + (line % 2)[:20])
    assert [event["clients"] for event in reader.new()] == [1]
    file.write_bytes(line % 1 + b"damaged\n[1]\n" + line % 2 + line % 3)
    assert [event["clients"] for event in reader.new()] == [2, 3]
    assert list(reader.new()) == []
    file.write_bytes(line % 4)  # another journal
    assert [event["clients"] for event in reader.new()] == [4]


def test_nothing_is_written_without_a_journal(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    tell("waiting", clients=2)
    assert (capfd.readouterr(), list(tmp_path.iterdir())) == (("", ""), [])
