"""A federation of real processes on this machine: TLS, known nodes, and the models of a simulation."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.dropping import Dropping

pytest.importorskip("flwr")

from support.real_federation import Gate, online_since, process_of, supernode_of, wait_for

from genfl import config, pipeline
from genfl.engines.in_process import sequential
from genfl.experiment.context import RunContext
from genfl.live import local
from genfl.live.keys import make_node_keys, make_server_keys
from genfl.live.link import KEYS, LOOPBACK, Client, Server, SuperNode
from genfl.live.processes import Processes, free_ports
from genfl.live.server import for_machines
from genfl.live.site import EXAMPLES, write_examples
from genfl.storage import load_tensors

CONFIG = """
name: deployed
seeds: [0]
data: {name: digits, partition: {kind: dirichlet, alpha: 0.5, clients: 2, samples: 200}}
generator: none
model: {name: mlp, width: 8}
federate: {rounds: 2, clients_per_round: 2, evaluate_every: 2, checkpoint_every: 1,
  engine: sequential, local: {steps: 3}}
methods: {memory: {algorithm: scaffold}}
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="open ports are read from /proc"),
]


def listening(processes):
    """The addresses on which these processes listen, in hexadecimal, from the kernel's tables."""
    sockets = set()
    for process in processes:
        folder = Path(f"/proc/{process}/fd")
        try:
            names = [str(entry.readlink()) for entry in folder.iterdir()]
        except OSError:
            continue
        sockets |= {match[1] for name in names if (match := re.fullmatch(r"socket:\[(\d+)\]", name))}
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                addresses.add(fields[1].split(":")[0])
    return addresses


class Watch(threading.Thread):
    """Looks at the open ports of a federation while it works."""

    def __init__(self, processes):
        super().__init__(daemon=True)
        self.processes, self.addresses, self.seen, self.over = processes, set(), set(), threading.Event()

    def run(self):
        while not self.over.wait(0.5):
            ids = self.processes.ids()
            self.seen |= set(ids)
            self.addresses |= listening(ids)


def named_in_commands(text):
    """The ids of processes whose command lines hold a text."""
    ids = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in entry.read_bytes():
                ids.add(int(entry.parent.name))
    return ids


def holders(folder, contents):
    """The names of the files that hold one of these bytes."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        str(path.relative_to(folder))
        for path, content in files.items()
        if any(each in content for each in contents)
    }


EXAMPLE = Path(__file__).parents[2] / "examples" / "digits_deploy.yaml"


def test_real_processes_train_the_models_of_sequential(tmp_path, monkeypatch):
    """GPT-FL with secure sums of three clients, interrupted by Ctrl-C after a round, and started again."""
    folder = tmp_path / "real"
    command = [sys.executable, "-m", "genfl", "deploy", str(EXAMPLE), "--local", "3", "--out", str(folder)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoint = folder / "server" / "run" / "federate" / "gptfl" / "seed-0" / "checkpoint.safetensors"
    wait_for(lambda: checkpoint.exists() or first.poll() is not None)
    first.send_signal(signal.SIGINT)
    assert "interrupted; run the same command again to resume" in first.communicate(timeout=180)[1]
    wait_for(lambda: not named_in_commands(str(folder)))

    watches = []

    class Watched(Processes):
        def __enter__(self):
            watches.append(Watch(self))
            watches[0].start()
            return super().__enter__()

        def __exit__(self, *error):
            watches[0].over.set()
            watches[0].join()
            super().__exit__(*error)

    monkeypatch.setattr(local, "Processes", Watched)
    settings = config.load(EXAMPLE)
    result = local.deploy_local(settings, folder, 3, seconds=1800)
    assert re.search(r"resuming after round [1-4]", (folder / "server" / "server.log").read_text())

    pipeline.execute(settings, tmp_path / "simulated", until="federate")
    name = Path("federate", "gptfl", "seed-0", "model.safetensors")
    assert (folder / "server" / "run" / name).read_bytes() == (tmp_path / "simulated" / name).read_bytes()
    assert len(result["labels"]) == 10
    (trace,) = result["methods"]["gptfl"].values()
    assert [row["refused"] for row in trace["rounds"]] == [0] * 5
    assert trace["evaluations"][-1]["accuracy"] > trace["evaluations"][0]["accuracy"] + 0.1

    assert watches[0].addresses == {"0100007F"}  # 127.0.0.1, and no other
    assert len(watches[0].seen) >= 7  # the SuperLink, three SuperNodes, and what they start
    assert not named_in_commands(str(folder))
    assert not list(folder.rglob("sum.state"))
    for number in range(3):
        assert "train of round 5: answered" in (folder / f"client-{number}" / "client.log").read_text()
    examples = [load_tensors(folder / f"client-{number}" / "data" / EXAMPLES)[0]["x"] for number in range(3)]
    private = [row.numpy().tobytes() for rows in examples for row in rows]
    assert holders(folder / "client-2", private[-1:]) == {f"data/{EXAMPLES}"}  # so they can be recognised
    assert holders(folder / "server", private) == set()


def test_a_killed_client_is_left_out_and_comes_back_with_its_memory(tmp_path, monkeypatch):
    """SuperNode kill -9 while its app works: what it computed must not count, also for itself.

    The other client waits at its policy until the killed one is back.
    """
    changes = ["federate.rounds=6", "federate.deadline=900", "federate.local.steps=3000"]
    settings = config.parse(CONFIG, changes)
    folder, context = tmp_path / "server", RunContext()
    keys = make_server_keys(folder / KEYS, [LOOPBACK])
    (port,) = free_ports(1)
    folders = [tmp_path / "client-0", tmp_path / "client-1"]
    policy = tmp_path / "policy.yaml"
    policy.write_text("algorithms: [scaffold]\n")
    gate = Gate(policy)
    for own, rows in zip(folders, context.client_rows(settings.data, 0), strict=True):
        make_node_keys(own)
        write_examples(own / "data", context.data_set(settings.data), rows)
    with Processes(tmp_path / "processes") as processes:
        server = Server(for_machines(settings), folder, processes, LOOPBACK, port)
        server.start()
        server.register([own / "node.pub" for own in folders])
        for number, own in enumerate(folders):
            place = ["--data", own / "data", "--out", own, "--ca", keys.authority]
            command = [sys.executable, "-m", "genfl", "client", *place, "--server", f"{LOOPBACK}:{port}"]
            command += ["--policy", policy] if number == 0 else []
            processes.start(f"client {number}", [*map(str, command)], own / "command.log", own)
        server.submit()
        memory = folders[1] / "memory"
        # It has been told that round 1 is finished: it works on round 2.
        wait_for(lambda: "1\n" in map(Path.read_text, memory.glob("*/finished.json")), processes.check)
        gate.shut()
        os.kill(supernode_of(folders[1]), signal.SIGKILL)
        since = online_since(server)
        log = folder / "server.log"
        # The round may have to wait for client 0, so its outcome is looked at in the end.
        wait_for(lambda: len(online_since(server) - since) == 1, processes.check)
        wait_for(gate.reached, processes.check)
        gate.open()
        result = server.wait(1800)
    assert supernode_of(folders[0]) is None  # it ended with the command that started it
    (trace,) = result["methods"]["memory"].values()
    lost = [row["round"] for row in trace["rounds"] if row["refused"]]
    assert lost
    assert lost[-1] < 6  # it counted again, with its memory
    refused = rf"round {lost[0]}: the upload of client 1 was refused: (it did not answer|its node failed)"
    assert re.search(refused, log.read_text())

    @contextlib.contextmanager
    def dropping(kind, clients, cohort, device, fast, reducer):
        yield Dropping(sequential(clients, reducer), {(number, 1) for number in lost})

    monkeypatch.setattr("genfl.stages.federate.trial.engine", dropping)
    pipeline.execute(settings, tmp_path / "b", until="federate")
    name = Path("federate", "memory", "seed-0", "model.safetensors")
    assert (folder / "run" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_killed_superlink_loses_no_round_and_clients_come_back_by_themselves(tmp_path):
    """SuperLink kill -9 after a round. The command ends, and the same one resumes; clients are not told."""
    file, folder = tmp_path / "config.yaml", tmp_path / "server"
    file.write_text(CONFIG)
    settings, context = config.parse(CONFIG), RunContext()
    keys = make_server_keys(folder / KEYS, [LOOPBACK])
    (port,) = free_ports(1)
    folders = [tmp_path / "client-0", tmp_path / "client-1"]
    for own, rows in zip(folders, context.client_rows(settings.data, 0), strict=True):
        make_node_keys(own)
        write_examples(own / "data", context.data_set(settings.data), rows)
    genfl = [sys.executable, "-m", "genfl"]
    serve = [*genfl, "server", file, "--out", folder, "--port", port]
    serve += [word for own in folders for word in ("--node", own / "node.pub")]
    with Processes(tmp_path / "processes") as processes:
        for number, own in enumerate(folders):
            place = ["--data", own / "data", "--out", own, "--ca", keys.authority]
            command = [*genfl, "client", *place, "--server", f"{LOOPBACK}:{port}"]
            processes.start(f"client {number}", [*map(str, command)], own / "command.log", own)
        first = subprocess.Popen([*map(str, serve)], stderr=subprocess.PIPE, text=True)
        log = folder / "server.log"
        checkpoint = folder / "run" / "federate" / "memory" / "seed-0" / "checkpoint.safetensors"
        wait_for(lambda: checkpoint.exists() or first.poll() is not None, processes.check)
        os.kill(process_of("flower-superlink", folder / "flower.db"), signal.SIGKILL)
        errors = first.communicate(timeout=180)[1]
        assert first.returncode == 1
        assert re.search(r"SuperLink ended with code -9; see .*superlink\.log", errors)
        again = subprocess.run([*map(str, serve)], stderr=subprocess.PIPE, text=True, timeout=1800)
        assert again.returncode == 0, again.stderr
        processes.check()  # the commands of clients did not end
    assert "resuming after round 1" in log.read_text()
    pipeline.execute(settings, tmp_path / "simulated", until="federate")
    name = Path("federate", "memory", "seed-0", "model.safetensors")
    assert (folder / "run" / name).read_bytes() == (tmp_path / "simulated" / name).read_bytes()


def test_an_unknown_node_and_a_server_of_another_authority_are_refused(tmp_path):
    """The registered node connects. The others end, and the logs say why."""
    folder, stranger = tmp_path / "server", tmp_path / "other"
    keys, others = (make_server_keys(place / KEYS, [LOOPBACK]) for place in (folder, stranger))
    (port,) = free_ports(1)
    known, unknown, wary = (tmp_path / name for name in ("known", "unknown", "wary"))
    for own in (known, unknown, wary):
        make_node_keys(own)
    changes = ["data.partition.clients=2"]
    with Processes(tmp_path / "processes") as processes:
        server = Server(for_machines(config.parse(CONFIG, changes)), folder, processes, LOOPBACK, port)
        server.start()
        server.register([known / "node.pub", wary / "node.pub"])
        address = f"{LOOPBACK}:{port}"
        for own, authority in ((known, keys.authority), (unknown, keys.authority), (wary, others.authority)):
            SuperNode(Client(own, own / "data", address, authority), own.name, processes)
        wait_for(lambda: len(online_since(server)) == 1, processes.check)
        ended = processes.running["unknown"]
        wait_for(lambda: ended.poll() is not None)
        wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in (wary / "supernode.log").read_text(errors="replace"))
        assert processes.running["known"].poll() is None
        assert len(online_since(server)) == 1
    assert ended.returncode
