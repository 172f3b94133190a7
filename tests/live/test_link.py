"""A server that waits for its app, and that registers nodes: what happens when something was killed."""

import json
import os
import subprocess
import sys

import pytest
from support.sites import own_logs

pytest.importorskip("flwr")

from genfl import config
from genfl.errors import GenflError
from genfl.journal import JOURNAL, JournalReader
from genfl.live import link
from genfl.live.folders import MEMBERS, OUTCOME, REGISTERED, SERVING
from genfl.live.keys import make_node_keys, make_server_keys
from genfl.live.link import KEYS, LOOPBACK, Client, Server, SuperNode
from genfl.live.logs import journal_to
from genfl.live.processes import Processes, free_ports, start_of

CONFIG = """
name: link
data: {name: digits, partition: {kind: iid, clients: 2}}
generator: none
model: {name: mlp}
federate: {clients_per_round: 2}
methods: {plain: {algorithm: fedavg}}
"""


@pytest.fixture
def server(tmp_path):
    make_server_keys(tmp_path / "server" / KEYS, [LOOPBACK])
    with Processes(tmp_path / "mark") as processes:
        (port,) = free_ports(1)
        yield Server(config.parse(CONFIG), tmp_path / "server", processes, LOOPBACK, port)


def test_an_app_that_died_is_named(server):
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as app:
        (server.folder / SERVING).write_text(json.dumps([app.pid, start_of(app.pid)]))
        with pytest.raises(GenflError, match=r"has not ended after 0\.5 s"):  # it lives
            server.wait(0.5)
        app.kill()
    with pytest.raises(GenflError) as failed:
        server.wait(60)
    log = server.folder / "server.log"
    message = f"the server's app ended without a result; see {log} and superlink.log beside it"
    assert str(failed.value) == message
    (server.folder / OUTCOME).write_text(json.dumps({"error": None, "code": 0, "result": {"labels": {}}}))
    assert server.wait(60) == {"labels": {}}  # it ended after its work


def test_an_app_that_does_not_begin_is_named(server, monkeypatch):
    monkeypatch.setattr(link, "BEGINNING", 0.1)
    with pytest.raises(GenflError, match=r"app has not begun after 0\.1 s; see .*/superlink\.log"):
        server.wait(60)
    (server.folder / SERVING).write_text(json.dumps([os.getpid(), start_of(os.getpid())]))
    with pytest.raises(GenflError, match=r"has not ended after 0\.5 s"):
        server.wait(0.5)


def test_an_end_that_the_app_cannot_tell_is_told(server):
    """Nor is one told twice that the app has told."""
    (server.folder / SERVING).write_text(json.dumps([os.getpid(), "1"]))
    with own_logs():
        journal_to(server.folder / JOURNAL)
        with pytest.raises(GenflError) as failed:
            server.wait(60)
        (server.folder / OUTCOME).write_text(json.dumps({"error": "labels: missing", "code": 1}))
        with pytest.raises(GenflError, match="labels: missing"):
            server.wait(60)
    (event,) = JournalReader(server.folder / JOURNAL).new()
    assert (event["event"], event["reason"]) == ("federation_ended", str(failed.value))


def test_a_supernode_that_ends_is_told(server, tmp_path):
    make_node_keys(tmp_path / "client")
    (port,) = free_ports(1)
    client = Client(tmp_path / "client", tmp_path, f"{LOOPBACK}:{port}", server.keys.authority)
    file = tmp_path / "client" / JOURNAL
    with own_logs():
        journal_to(file)
        node = SuperNode(client, "the SuperNode", server.processes)
        server.processes.running["the SuperNode"].kill()
        server.processes.running["the SuperNode"].wait()
        node.look_after()
    events = [(event["event"], event.get("reason")) for event in JournalReader(file).new()]
    assert events == [("node_started", None), ("node_ended", "code -9")]


@pytest.mark.slow
def test_a_node_whose_id_was_not_recorded_keeps_it(server, tmp_path):
    """Killed between Flower's registration and the record of it."""
    public = [make_node_keys(tmp_path / name).public for name in ("a", "b")]
    server.start()
    server.register(public)
    members, record = (server.folder / MEMBERS).read_text(), server.folder / REGISTERED
    first, _ = known = json.loads(record.read_text())
    record.write_text(json.dumps({first: known[first]}))
    server.register(public)
    assert (server.folder / MEMBERS).read_text() == members
    assert json.loads(record.read_text()) == known
    record.write_text("{}")
    with pytest.raises(GenflError, match=r"2 of its nodes are not recorded; delete flower\.db"):
        server.register(public)
