"""Federations of real processes on this machine, and what happens to their processes."""

import contextlib
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from genfl.journal import JOURNAL, JournalReader
from genfl.live.folders import PEERS
from genfl.live.keys import node_keys
from genfl.live.link import CONNECTION, KEYS, LOOPBACK, NODE_LOG, Client, Server, SuperNode
from genfl.live.local import prepare_parties
from genfl.live.processes import free_ports, start_of
from genfl.live.server import for_machines


def wait_for(condition, check=lambda: None, seconds=1200):
    """Waits until a condition holds, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        check()
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


def process_of(program, file):
    """The id of the process of a program that has a file on its command line; None without one."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if str(file).encode() in words and words[1].endswith(program.encode()):
                return int(entry.parent.name)
    return None


def supernode_of(folder):
    """The id of the SuperNode whose key is in a folder; None if it does not run."""
    return process_of("flower-supernode", folder / "node.key")


def processes_below(process):
    """The ids of a process and of all that it started, in turn."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rsplit(")", 1)[1].split()[1])
    ids = [process]
    for parent in ids:  # it grows
        ids += [child for child, its in parents.items() if its == parent]
    return ids


def online_since(server):
    """When the nodes that are online came online, from Flower's list."""
    command = ["flwr", "supernode", "list", CONNECTION, "--format", "json"]
    text = server.processes.run(command, server.home)
    nodes = json.loads(text[text.index("{") : text.rindex("}") + 1])["nodes"]
    return {node["online-at"] for node in nodes if node["status"] == "online"}


class Gate:
    """A file that a client's process reads before it works. While the gate is shut, the process waits there.

    Args:
        file: The file. A named pipe takes its place.
    """

    def __init__(self, file):
        self.file = file
        self.text = file.read_text()
        self._reached = None

    def shut(self):
        pipe = self.file.with_name(f"{self.file.name}.pipe")
        os.mkfifo(pipe)
        pipe.replace(self.file)

    def reached(self):
        """Whether a process waits. It goes on when the gate opens."""
        if self._reached is None:
            with contextlib.suppress(OSError):
                self._reached = os.open(self.file, os.O_WRONLY | os.O_NONBLOCK)
        return self._reached is not None

    def open(self):
        plain = self.file.with_name(f"{self.file.name}.plain")
        plain.write_text(self.text)
        plain.replace(self.file)
        if self._reached is not None:
            with contextlib.suppress(BrokenPipeError), os.fdopen(self._reached, "w") as file:
                file.write(self.text)
        self._reached = None


class RealFederation:
    """A server and its clients, each in processes of its own.

    Args:
        config: The config.
        folder: Where the folders of all parties are.
        processes: What runs the processes.
    """

    def __init__(self, config, folder, processes):
        count, secure = config.data.partition.clients, config.federate.secure is not None
        self.folder, self.processes = folder / "server", processes
        self.clients = [folder / f"client-{number}" for number in range(count)]
        prepare_parties(config, self.folder / KEYS, self.clients)
        self.gates = []
        (port,) = free_ports(1)
        self.server = Server(for_machines(config), self.folder, processes, LOOPBACK, port)
        self.server.start()
        self.server.register([node_keys(client).public for client in self.clients])
        self.nodes, address = [], f"{LOOPBACK}:{port}"
        for number, own in enumerate(self.clients):
            (folder / f"policy-{number}.yaml").write_text("{}\n")
            client = Client(
                own,
                own / "data",
                address,
                self.server.keys.authority,
                policy=None if secure else folder / f"policy-{number}.yaml",
                peers=own / PEERS if secure else None,
                number=number,
            )
            self.gates.append(Gate(client.peers or client.policy))
            self.nodes.append(SuperNode(client, f"client {number}", processes))
        self._pool = ThreadPoolExecutor(1)
        self._result = None

    def begin(self, seconds=1800):
        """Starts the server's app, or starts it again. SuperNodes that end are started again meanwhile."""
        self.server.submit()
        self._result = self._pool.submit(self.server.wait, seconds, self.nodes)

    def result(self):
        return self._result.result()

    def check(self):
        """Raises the error of a federation that failed."""
        if self._result.done():
            self._result.result()

    def wait_for(self, condition):
        return wait_for(condition, self.check)

    def events(self, whose=None):
        """The events of the server, or of a client."""
        folder = self.folder if whose is None else self.clients[whose]
        return list(JournalReader(folder / JOURNAL).new())

    def wait_for_event(self, whose=None, /, **fields):
        """Waits for an event of the server, or of a client, with these fields."""

        def told():
            events = self.events(whose)
            return any(all(event.get(name) == value for name, value in fields.items()) for event in events)

        self.wait_for(told)

    def wait_until_back(self, client, connections=2):
        """Waits until a client's SuperNode has connected so many times."""
        log = self.clients[client] / NODE_LOG
        self.wait_for(lambda: log.read_text(errors="replace").count("SuperNode ID:") >= connections)

    def signal(self, client, number):
        """Sends a signal to all processes of a client, as a power cut does, or a machine that sleeps."""
        for process in processes_below(supernode_of(self.clients[client])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def shut_down(self, client):
        """Ends a client as a machine that is switched off: its SuperNode leaves, and the rest is killed."""
        node, *others = processes_below(supernode_of(self.clients[client]))
        os.kill(node, signal.SIGTERM)
        for process in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.wait_for(lambda: start_of(node) == "")
