"""The processes of a server and of a client: Flower's SuperLink and SuperNode, with safe settings."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import genfl
from genfl import config as configs
from genfl.config import Config
from genfl.errors import GenflError, InputError, on_one_line
from genfl.journal import JOURNAL, tell
from genfl.live.folders import (
    CONFIG,
    HOME,
    KEYS,
    LOG,
    MEMBERS,
    OUTCOME,
    PEERS,
    PROCESSES,
    REGISTERED,
    SERVING,
)
from genfl.live.health import answering_health
from genfl.live.keys import make_member, node_keys, server_keys
from genfl.live.limits import problem_of
from genfl.live.logs import journal_to
from genfl.live.policy import read_policy
from genfl.live.processes import Processes, free_ports, runs, wait_for_port
from genfl.live.server import for_machines
from genfl.live.superlink import CONNECTION, supernode_command
from genfl.storage import read_json, remove, write_json, write_text

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

YEAR = 366 * 86400.0

POLL = 0.3
"""Seconds between two looks at a running federation."""

BEGINNING = 900.0
"""Seconds in which the app must begin to serve, after Flower took it."""

SUPERLINK_LOG = "superlink.log"

NODE_LOG = "supernode.log"

STEADY, RESTART, MOST_FAILURES = 60.0, 10.0, 20
"""Seconds after which a SuperNode runs well, seconds before it is started again, and how often in a row."""


class Server:
    """The server of a federation: a SuperLink, and the app that runs the pipeline.

    Args:
        config: The config.
        folder: Its folder, with its keys.
        processes: What runs the processes.
        host: The address on which the SuperLink listens.
        port: Its port.
    """

    def __init__(self, config: Config, folder: Path, processes: Processes, host: str, port: int) -> None:
        self.config = config
        self.folder = folder.resolve()
        self.processes = processes
        self.host, self.port = host, port
        self.keys = server_keys(self.folder / KEYS)
        for path in (self.keys.certificate, self.keys.key, self.keys.authority):
            if not path.exists():
                raise InputError(
                    f"--out: there is no {path}; run: genfl keys server --host HOST --out {path.parent}"
                )
        self.home = self.folder / HOME

    def start(self) -> None:
        """Start the SuperLink, with TLS and authenticated nodes."""
        journal_to(self.folder / JOURNAL)
        address = LOOPBACK if self.host == "0.0.0.0" else self.host
        write_text(
            self.home / "config.toml",
            f"[superlink.{CONNECTION}]\naddress = {json.dumps(f'{address}:{self.port}')}\n"
            f"root-certificates = {json.dumps(str(self.keys.authority))}\n",
        )
        command = ["flower-superlink", "--host", self.host, "--port", str(self.port)]
        command += ["--ssl-certfile", str(self.keys.certificate), "--ssl-keyfile", str(self.keys.key)]
        command += ["--ssl-ca-certfile", str(self.keys.authority), "--enable-supernode-auth"]
        command += ["--database", str(self.folder / "flower.db"), "--disable-runtime-dependency-installation"]
        self.processes.start("SuperLink", command, self.folder / SUPERLINK_LOG, self.home)
        wait_for_port(self.port, self.processes, address)

    def register(self, public_keys: Sequence[Path]) -> None:
        """Register the clients' nodes, in the order of client numbers. Those that are known stay.

        Args:
            public_keys: Files with their public keys.

        Raises:
            InputError: A file is no public key, or two are the same.
        """
        file = self.folder / REGISTERED
        known: dict[str, int] = read_json(file) if file.exists() else {}
        keys = [_public_key(path) for path in public_keys]
        if len(set(keys)) < len(keys):
            raise InputError("--node: two clients have the same key; give each its own")
        for key, path in zip(keys, public_keys, strict=True):
            if key not in known:
                known[key] = self._register(path, set(known.values()))
                write_json(file, known)
        write_text(self.folder / PEERS, "".join(f"{key}\n" for key in keys))
        write_json(self.folder / MEMBERS, [known[key] for key in keys])

    def _register(self, public_key: Path, recorded: set[int]) -> int:
        """Register one node, and return its id.

        If Flower knows the key already, a process was killed before it recorded the id. Flower's list shows
        no keys, so it is the only id that is not recorded.
        """
        try:
            return int(self._flwr("register", str(public_key))["node-id"])
        except GenflError as error:
            if "already in use" not in str(error):
                raise
        unknown = {
            int(node["node-id"]) for node in self._flwr("list")["nodes"] if node["status"] != "unregistered"
        } - recorded
        if len(unknown) != 1:
            raise GenflError(
                f"{on_one_line(public_key, 200)}: Flower knows this key, but {len(unknown)} of its nodes are"
                f" not recorded; delete flower.db and {REGISTERED} in {self.folder} to register all again"
            )
        return unknown.pop()

    def _flwr(self, action: str, *arguments: str) -> dict[str, Any]:
        """Return what a command for Flower's SuperNodes prints; see `supernode_command`."""
        return supernode_command(lambda command: self.processes.run(command, self.home), action, *arguments)

    def submit(self) -> None:
        """Start the app that runs the pipeline, or resumes it."""
        write_text(self.folder / CONFIG, configs.dump(self.config))
        for name in (OUTCOME, SERVING):
            remove(self.folder / name, self.folder)
        app = self.folder / "app"
        components = ("genfl.live.apps:server_app", "genfl.live.apps:client_app")
        about = ("genfl-federation", genfl.__version__, "A federation of genfl")
        write_text(app / "pyproject.toml", flower_project(*about, components, {"folder": ""}))
        setting = f"folder={json.dumps(str(self.folder))}"
        self.processes.run(["flwr", "run", str(app), CONNECTION, "--run-config", setting], self.home)

    def wait(self, seconds: float, nodes: Sequence[SuperNode] = ()) -> dict[str, Any]:
        """Wait for the end of the federation, and tell what the server logs.

        Args:
            seconds: The longest time that it may take.
            nodes: SuperNodes on this machine, to look after.

        Returns:
            The results; see `genfl.live.server.results_of`.

        Raises:
            InputError: The config cannot be run.
            GenflError: The federation failed, its app has ended or does not begin, or it takes longer.
        """
        try:
            return self._wait(seconds, nodes)
        except BaseException as error:
            if not (self.folder / OUTCOME).exists():  # else the app has told its end
                tell("federation_ended", reason=str(error) or "interrupted")
            raise

    def _wait(self, seconds: float, nodes: Sequence[SuperNode]) -> dict[str, Any]:
        outcome, log_file = self.folder / OUTCOME, self.folder / LOG
        told = log_file.stat().st_size if log_file.exists() else 0
        begin = time.monotonic()
        end = begin + seconds
        while not outcome.exists():
            self.processes.check()
            self._check_app(time.monotonic() - begin)
            if time.monotonic() > end:
                raise GenflError(f"the federation has not ended after {seconds:g} s; see {log_file}")
            for node in nodes:
                node.look_after()
            told = _tell(log_file, told)
            time.sleep(POLL)
        _tell(log_file, told)
        result: dict[str, Any] = read_json(outcome)
        if result["code"]:
            raise (InputError if result["code"] == 2 else GenflError)(result["error"])
        return dict(result["result"])

    def _check_app(self, waited: float) -> None:
        """Check that the app serves, or that it may still begin after a wait of so many seconds."""
        serving = self.folder / SERVING
        if not serving.exists():
            if waited > BEGINNING:
                why = f"has not begun after {BEGINNING:g} s"
                raise GenflError(f"the server's app {why}; see {self.folder / SUPERLINK_LOG}")
        elif not runs(*read_json(serving)) and not (self.folder / OUTCOME).exists():
            log_file = self.folder / LOG
            raise GenflError(
                f"the server's app ended without a result; see {log_file} and {SUPERLINK_LOG} beside it"
            )


class Client(NamedTuple):
    """A client of a federation: a SuperNode, and what it gives the app that answers.

    Attributes:
        folder: Its folder, with its keys and its memories.
        data: The folder of its data.
        server: The address of the server, ``HOST:PORT``.
        authority: The certificate of the server's authority.
        policy: The file with what it allows; None allows everything.
        peers: The file with the public keys of all clients' nodes; None to take part in no secure sum.
        number: Its number, if it is known.
    """

    folder: Path
    data: Path
    server: str
    authority: Path
    policy: Path | None = None
    peers: Path | None = None
    number: int | None = None

    def command(self) -> list[str]:
        """Return the command that starts the SuperNode.

        Raises:
            InputError: A file is missing, or a path cannot be given to Flower.
        """
        key = node_keys(self.folder).key
        if not key.exists():
            raise InputError(f"--out: there is no {key}; run: genfl keys node --out {self.folder}")
        if not self.authority.exists():
            raise InputError(f"--ca: there is no {self.authority}; copy ca.pem from the server's keys")
        if not re.fullmatch(r"[^\s/]+:\d+", self.server):
            raise InputError(f"--server: {on_one_line(self.server)!r} is no address; give HOST:PORT")
        settings = {"folder": self.folder.resolve(), "data": self.data.resolve()}
        if self.policy is not None:
            settings["policy"] = self.policy.resolve()
        if self.peers is None and read_policy(self.policy).secure:
            raise InputError(
                f"--policy: {self.policy} allows secure sums alone, and these need --peers; name the file"
                " with the public keys of all clients"
            )
        if self.peers is not None:
            make_member(self.folder, self.peers, self.folder)
            settings["peers"] = self.peers.resolve()
        for path in settings.values():
            if '"' in str(path):
                raise InputError(f"{on_one_line(path)}: Flower takes no path with quotes; rename it")
        (port,) = free_ports(1)
        command = ["flower-supernode", "--superlink", self.server, "--root-certificates", str(self.authority)]
        command += ["--auth-supernode-private-key", str(key)]
        command += ["--node-config", " ".join(f'{each}="{path}"' for each, path in settings.items())]
        command += ["--host", LOOPBACK, "--port", str(port)]
        return command


class SuperNode:
    """The SuperNode of a client, which is started again when it ends.

    The SuperLink refuses a SuperNode for about a minute after its predecessor was killed, because it still
    counts that one as online.

    Args:
        client: The client.
        name: What messages call it.
        processes: What runs the processes.

    Raises:
        InputError: A file of the client is missing.
    """

    def __init__(self, client: Client, name: str, processes: Processes) -> None:
        self._client, self._name, self._processes = client, name, processes
        self._failures = 0
        self._again = 0.0
        self._start()

    def _start(self) -> None:
        folder = self._client.folder.resolve()
        command = self._client.command()
        self._processes.start(self._name, command, folder / NODE_LOG, folder / HOME, may_end=True)
        self._began = time.monotonic()
        tell("node_started", client=self._client.number)

    def look_after(self) -> None:
        """Start the SuperNode again if it has ended, after a pause.

        Raises:
            GenflError: It ended many times in a row.
        """
        code, now = self._processes.running[self._name].poll(), time.monotonic()
        if code is None:
            self._again = 0.0
        elif not self._again:
            self._failures = self._failures + 1 if now - self._began < STEADY else 1
            why = f"{self._name} ended with code {code}; see {self._client.folder / NODE_LOG}"
            tell("node_ended", client=self._client.number, reason=f"code {code}")
            if self._failures > MOST_FAILURES:
                raise GenflError(
                    f"{why}; the server does not know this node's key, has another authority, or is not there"
                )
            log.warning("%s; starting it again", why)
            self._again = now + RESTART
        elif now > self._again:
            self._start()


def flower_project(
    name: str, version: str, description: str, components: tuple[str, str], settings: Mapping[str, str | int]
) -> str:
    """Return the ``pyproject.toml`` of a Flower app. It names code that is installed on each machine.

    Args:
        name: The app's name.
        version: Its version.
        description: What it is.
        components: The apps of the server and of a client, as ``module:attribute``.
        settings: The settings that a run may give, with their defaults.
    """
    server, client = components
    return _PROJECT.format(
        *map(json.dumps, (name, version, description, server, client)),
        "".join(f"{setting} = {json.dumps(value)}\n" for setting, value in settings.items()),
    )


_PROJECT = """[project]
name = {}
version = {}
description = {}
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "genfl"
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = {}
clientapp = {}

[tool.flwr.app.config]
{}"""


def run_server(
    config: Config,
    folder: Path,
    public_keys: Sequence[Path],
    host: str,
    port: int,
    seconds: float = YEAR,
    health: int | None = None,
) -> dict[str, Any]:
    """Run a federation with clients on other machines, or resume it.

    Args:
        config: The config.
        folder: The server's folder, with its keys.
        public_keys: Files with the clients' public keys, in the order of their numbers.
        host: The address on which to listen.
        port: The port.
        seconds: The longest time that the federation may take.
        health: The port of the health endpoint; None for no endpoint.

    Returns:
        The label names with their holders, and for each method the evaluations and rounds.

    Raises:
        InputError: The config cannot be run so, a key is missing, or a port is in use.
        GenflError: The federation failed.
    """
    if problem := problem_of(config):
        raise InputError(problem)
    if config.data.partition.known != len(public_keys):
        raise InputError(
            f"data.partition.clients: {config.data.partition.known}, but --node names {len(public_keys)}"
            " clients; set it to their number"
        )
    with contextlib.ExitStack() as opened:
        processes = opened.enter_context(Processes(folder.resolve() / PROCESSES))
        if health is not None:
            opened.enter_context(answering_health(folder.resolve(), health))
        server = Server(for_machines(config), folder, processes, host, port)
        server.start()
        server.register(public_keys)
        log.info("listening on %s:%d; waiting for %d clients", host, port, len(public_keys))
        server.submit()
        return server.wait(seconds)


def answer_server(client: Client) -> None:
    """Run a client until this process is told to end. A SuperNode that ends is started again.

    Args:
        client: The client.

    Raises:
        InputError: A file of it is missing.
        GenflError: Its SuperNode ended many times in a row.
    """
    read_policy(client.policy)
    with Processes(client.folder.resolve() / PROCESSES) as processes:
        journal_to(client.folder.resolve() / JOURNAL)
        node = SuperNode(client, "the SuperNode", processes)
        log.info("answering %s with the data in %s; Ctrl-C ends it", client.server, client.data)
        while True:
            node.look_after()
            time.sleep(POLL)


def _public_key(path: Path) -> str:
    """Return the key in a file, without its comment."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"--node: {path} cannot be read; name a client's node.pub") from None
    if len(words) < 2 or not words[0].startswith("ecdsa-"):
        raise InputError(f"--node: {path} is no public key of a node; name a client's node.pub")
    return " ".join(words[:2])


def _tell(file: Path, told: int) -> int:
    """Log the new lines of a log file. Return how many bytes of it have been told."""
    if not file.exists():
        return told
    with file.open("rb") as lines:
        lines.seek(told)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            told += len(line)
            log.info("server: %s", line.decode(errors="replace").rstrip())
    return told
