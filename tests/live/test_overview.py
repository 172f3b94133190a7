"""`genfl status`, `genfl nodes` and the health endpoint of a federation: while it works, and afterwards."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_ssh_public_key, ssh_key_fingerprint
from support.command import run_command
from support.sites import prepare, serve_in_process

pytest.importorskip("flwr")

from genfl import config
from genfl.engines.flower.in_process import InProcessGrid
from genfl.errors import InputError
from genfl.journal import JOURNAL, JournalReader
from genfl.live.folders import CONFIG, OUTCOME, PEERS, SERVING
from genfl.live.health import answering_health
from genfl.live.keys import make_node_keys, make_server_keys
from genfl.live.link import KEYS, LOOPBACK, Server
from genfl.live.overview import (
    SILENT,
    ClientFigures,
    FederationOverview,
    key_fingerprint,
    node_rows,
    server_folder,
)
from genfl.live.processes import Processes, free_ports, start_of

HOLDER = """
import sys, time
from pathlib import Path
from genfl.live.health import answering_health
from genfl.live.processes import Processes

folder = Path(sys.argv[1])
with Processes(folder / "processes") as processes, answering_health(folder, int(sys.argv[2])):
    child = processes.start("sleep", ["sleep", "600"], folder / "log", folder)
    print(child.pid, flush=True)
    time.sleep(600)
"""

SLOW = """
import sys
import genfl.cli

sys.argv = ["genfl", *sys.argv[1:]]
try:
    genfl.cli.main()
except SystemExit as end:
    assert end.code == 0
print([m for m in ("torch", "numpy", "pydantic", "flwr", "pandas") if m in sys.modules])
"""


def events_of(folder):
    return list(JournalReader(folder / JOURNAL).new())


def overview_of(folder):
    overview = FederationOverview(folder)
    overview.update()
    return overview


def ask(port, path="/health"):
    """The status and the JSON of an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None if path != "/health" else json.loads(error.read())


def listening():
    """The addresses on which this process listens, as address and port in hexadecimal."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the folder itself is closed by now
            names.append(str(entry.readlink()))
    sockets = {match[1] for name in names if (match := re.fullmatch(r"socket:\[(\d+)\]", name))}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {fields[1] for fields in rows if fields[3] == "0A" and fields[9] in sockets}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What is seen of a federation in its second round, and afterwards."""
    folder, looks = tmp_path_factory.mktemp("seen"), []
    (port,) = free_ports(1)

    class SeenGrid(InProcessGrid):
        def deliver(self, message):
            about = message.metadata
            if (about.dst_node_id, about.message_type, about.group_id) == (1000, "train.train", "2"):
                overview = overview_of(folder / "server")
                looks.append((overview.state, overview.stages(), overview.methods(), ask(port)))
            return super().deliver(message)

    server = prepare(folder, "methods={plain: {algorithm: fedavg}}")
    with answering_health(server, port):
        before = ask(port)
        serve_in_process(folder, SeenGrid)
        after = ask(port)
    return server, before, looks, after


def test_progress_of_a_federation_at_work(seen):
    _, _, ((state, stages, methods, _),), _ = seen
    assert state == "running"
    assert [(row.name, row.state) for row in stages[-1:]] == [("federate", "running")]
    assert {row.state for row in stages[:-1]} == {"done"}
    assert [(row.method, row.seed, row.round) for row in methods] == [("plain", 0, 1)]


def test_health_answers_200_while_the_server_works(seen):
    _, before, ((_, _, _, during),), after = seen
    assert before[0] == 503
    assert before[1]["problem"] == "the federation is interrupted"  # nothing has begun
    status, health = during
    assert status == 200
    expected = {"state": "running", "problem": None, "method": "plain", "round": 2, "clients": 2, "online": 2}
    assert {name: health[name] for name in expected} == expected
    assert health["last_event"]["event"] == "sent"
    assert set(health) == {*expected, "last_event"}
    assert (after[0], after[1]["problem"]) == (503, "the federation is done")


def test_status_of_a_finished_federation(served):
    for folder in (served.folder, served.folder / "server"):
        status = json.loads(run_command("status", folder, "--json")[0])
        assert (status["state"], status["error"], status["clients"], status["online"]) == (
            "done",
            None,
            2,
            None,
        )
        assert [row["name"] for row in status["stages"]] == ["labels", "federate", "report"]
        assert {row["state"] for row in status["stages"]} == {"done"}
        for row in status["methods"]:
            trace = served.folder / "server/run/federate" / row["method"] / "seed-0/trace.json"
            accuracy = json.loads(trace.read_text())["evaluations"][-1]["accuracy"]
            assert (row["seed"], row["round"], row["rounds"], row["accuracy"]) == (0, 2, 2, accuracy)
        assert [row["method"] for row in status["methods"]] == ["plain", "memory"]
        assert status["last_event"]["event"] == "federation_ended"
    printed = run_command("status", served.folder)[0]
    assert printed.splitlines()[0] == f"{served.folder / 'server'}: done"
    assert re.search(r"^plain +0 +2 +\d+\.\d%", printed, re.MULTILINE)
    assert "last event: federation_ended, 2" in printed


def test_nodes_of_a_finished_federation(served):
    server = served.folder / "server"
    rows = [row._asdict() for row in node_rows(overview_of(server))]
    assert json.loads(run_command("nodes", served.folder, "--json")[0]) == rows
    for number, row in enumerate(rows):
        events = [event for event in events_of(server) if event.get("client") == number]
        public = load_ssh_public_key((server / PEERS).read_bytes().splitlines()[number])
        assert row["client"] == number
        digest = base64.b64encode(ssh_key_fingerprint(public, hashes.SHA256())).decode()
        assert row["key"] == f"SHA256:{digest}".rstrip("=")
        assert row["node"] == "unknown"  # no SuperLink runs
        answers = [event for event in events if event["event"] == "answered"]
        assert row["since"] == row["answered"] == answers[-1]["time"]
        assert row["sent"] == sum(event["bytes"] for event in answers)
        assert row["received"] == sum(event["bytes"] for event in events if event["event"] == "sent")
    assert [(row["rounds"], row["left_out"]) for row in rows] == [(4, 0), (2, 2)]
    assert [row["reason"] for row in rows] == [None, "its node failed: no memory"]
    printed = run_command("nodes", served.folder)[0].splitlines()
    assert printed[2].startswith(f"1       {rows[1]['key'][:17]}  unknown  {rows[1]['since'][:10]} ")


@pytest.mark.slow
def test_status_and_nodes_import_nothing_slow(served, tmp_path):
    for args in (["status"], ["status", "--json"], ["nodes"]):
        command = [sys.executable, "-c", SLOW, args[0], str(served.folder), *args[1:]]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_a_federation_that_ended_says_how(served, tmp_path):
    server = shutil.copytree(served.folder / "server", tmp_path / "server")
    (server / OUTCOME).write_text(json.dumps({"error": "labels: client 1 is missing", "code": 1}))
    overview = overview_of(server)
    assert (overview.state, overview.error) == ("failed", "labels: client 1 is missing")
    (server / OUTCOME).unlink()
    (server / SERVING).write_text(json.dumps([os.getpid(), "1"]))  # an earlier process with this id
    assert overview_of(server).state == "interrupted"
    assert overview_of(server).problem() == "the federation is interrupted"
    (server / SERVING).unlink()
    with Processes(tmp_path / "processes") as processes:
        processes.start("sleep", ["sleep", "600"], tmp_path / "log", tmp_path)
        assert overview_of(server).state == "starting"
    assert overview_of(server).state == "interrupted"


def test_silence_is_a_problem_where_the_server_waits(served, tmp_path):
    server = shutil.copytree(served.folder / "server", tmp_path / "server")
    (server / OUTCOME).unlink()
    (server / SERVING).write_text(json.dumps([os.getpid(), start_of(os.getpid())]))
    now = datetime.now(UTC)

    def problem(*events):
        lines = [
            json.dumps({"time": (now - timedelta(seconds=age)).isoformat(), "event": name, "client": 0})
            for name, age in events
        ]
        (server / JOURNAL).write_text("\n".join(lines) + "\n")
        return overview_of(server).problem()

    assert problem(("sent", SILENT - 60)) is None
    assert problem(("sent", SILENT + 60)).startswith("no event for 36")
    assert problem(("sent", SILENT + 60), ("client_offline", 1)).startswith("no event for 36")
    assert problem(("sent", SILENT + 60), ("waiting", 1)) is None
    assert problem(("counted", SILENT + 3600)) is None  # the server computes, and nobody knows how long


def test_health_listens_on_loopback_alone(served):
    if not Path("/proc/net/tcp").exists():
        pytest.skip("open ports are read from /proc")
    (port,) = free_ports(1)
    before = listening()
    with answering_health(served.folder / "server", port):
        assert listening() - before == {f"0100007F:{port:04X}"}
        assert ask(port, "/")[0] == 404
        with (
            pytest.raises(
                InputError, match=rf"--health: 127.0.0.1:{port} cannot be used \(.*name another port"
            ),
            answering_health(served.folder / "server", port),
        ):
            pass
        with socket.create_connection(("127.0.0.1", port)):  # says nothing
            assert ask(port)[0] == 503
    assert listening() == before
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port))


def test_health_ends_with_a_command_that_is_killed(tmp_path):
    """Also where processes that it started outlive it."""
    (port,) = free_ports(1)
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        child = int(holder.stdout.readline())
        try:
            assert ask(port)[0] == 503
            holder.kill()
            holder.wait()
            assert start_of(child)
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", port))
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_round_that_a_resume_repeats_counts_once():
    client = ClientFigures()
    for name, number in (("counted", 1), ("left_out", 2), ("counted", 3), ("left_out", 3), ("counted", 2)):
        event = {"event": name, "action": "train", "run": "a", "round": number}
        client.take(event | ({"reason": f"late in {number}"} if name == "left_out" else {}))
    assert len(client.rounds) == 3
    assert client.left_out == ["late in 3"]


def test_nodes_takes_the_only_federation(served, tmp_path):
    def nodes(code, *args):
        return run_command("nodes", *args, code=code, cwd=tmp_path)

    assert nodes(2)[1] == "error: DIR: federations holds no federation; name a folder\n"
    (tmp_path / "federations" / "else").mkdir(parents=True)
    shutil.copytree(served.folder, tmp_path / "federations" / "one")
    assert nodes(0)[0].splitlines()[1].startswith("0 ")
    shutil.copytree(served.folder, tmp_path / "federations" / "two")
    assert "holds 2 federations (federations/one, federations/two); name a folder" in nodes(2)[1]
    assert server_folder(served.folder / "client-0") is None
    assert nodes(2, tmp_path)[1].startswith(f"error: DIR: {tmp_path} holds no federation; name")


def test_a_fingerprint_is_that_of_openssh(tmp_path):
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    public = make_node_keys(tmp_path).public
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", public], capture_output=True, text=True, check=True
    ).stdout
    assert shown.split()[1] == key_fingerprint(public.read_text())


@pytest.mark.slow
def test_nodes_are_those_of_the_superlink(tmp_path):
    """Registered nodes that were never there; then a SuperLink that has ended."""
    folder = tmp_path / "server"
    make_server_keys(folder / KEYS, [LOOPBACK])
    public = [make_node_keys(tmp_path / name).public for name in ("a", "b")]
    settings = config.parse(
        "name: listed\ndata: {name: digits, partition: {kind: iid, clients: 2}}\ngenerator: none\n"
        "model: {name: mlp}\nfederate: {clients_per_round: 2}\nmethods: {plain: {algorithm: fedavg}}\n"
    )
    (port,) = free_ports(1)
    with Processes(tmp_path / "processes") as processes:
        server = Server(settings, folder, processes, LOOPBACK, port)
        server.start()
        server.register(public)
        (folder / CONFIG).write_text(config.dump(settings))
        rows = node_rows(FederationOverview(folder))
        assert [(row.node, row.since) for row in rows] == [("registered", None)] * 2
        assert overview_of(folder).state == "starting"
    assert {row.node for row in node_rows(FederationOverview(folder))} == {"unknown"}
