"""What a federation's folder says of it, while it works and afterwards. This module imports nothing slow."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from genfl.errors import GenflError, InputError, on_one_line
from genfl.experiment.records import StageStatus, read_record, record_file
from genfl.journal import JOURNAL, JournalReader
from genfl.live.folders import CONFIG, HOME, KEYS, MEMBERS, OUTCOME, PEERS, PROCESSES, RUN, SERVING
from genfl.live.keys import server_keys
from genfl.live.processes import flower_environment, processes_run, run_to_end, runs
from genfl.live.superlink import CONNECTION, supernode_command
from genfl.storage import read_json
from genfl.tracking.metrics_file import METRICS_FILE, read_events

FEDERATIONS = Path("federations")
"""Where the commands put federations, if they are not told another folder."""

SILENT = 300.0
"""Seconds without an event after which a server that waits for clients is no longer healthy."""

_ASKING = {"sent", "waiting", "answered", "unanswered", "refused"}
"""The events after which the server waits for clients, and so says at least `waiting` each minute."""

_LIFE = {"client_online", "client_offline", "answered"}
"""The events that say that a client was there."""


@dataclass
class ClientFigures:
    """What the journal says of a client.

    Attributes:
        online: Whether it is online; None if nobody looks.
        seen: When it was there last, as in the journal.
        answered: When it answered last.
        received: The bytes of the messages that it was sent.
        sent: The bytes of its replies.
        rounds: For each federation and round of a training: why it was left out, None if it counted.
    """

    online: bool | None = None
    seen: str | None = None
    answered: str | None = None
    received: int = 0
    sent: int = 0
    rounds: dict[tuple[str, int], str | None] = field(default_factory=dict)

    @property
    def left_out(self) -> list[str]:
        """Why it was left out of rounds, the last one at the end."""
        return [why for why in self.rounds.values() if why is not None]

    def take(self, event: dict[str, Any]) -> None:
        """Take an event of this client."""
        name, size = event["event"], event.get("bytes", 0)
        if name in _LIFE:
            self.seen = event["time"]
        match name:
            case "client_online" | "client_offline":
                self.online = name == "client_online"
            case "sent":
                self.received += size
            case "answered":
                self.sent += size
                self.answered = event["time"]
            case "counted" | "left_out" if event.get("action") == "train":
                key = (event["run"], event["round"])
                self.rounds.pop(key, None)  # a resume may redo a round; the order is that of the events
                self.rounds[key] = event.get("reason")


class MethodProgress(NamedTuple):
    """How far the training of a method is.

    Attributes:
        method: The method.
        seed: The seed.
        round: The last finished round; 0 before the first.
        accuracy: The accuracy of the last test, in [0, 1]; None before the first.
    """

    method: str
    seed: int
    round: int
    accuracy: float | None


class FederationOverview:
    """What the files of a server's folder say. `update` reads what is new in the journal.

    Args:
        folder: The server's folder; see `server_folder`.

    Attributes:
        clients: The figures of each client, by its number.
        last: The last event; None before the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reader = JournalReader(folder / JOURNAL)
        self.last: dict[str, Any] | None = None
        self._last_of_server: dict[str, Any] | None = None
        self._now: dict[str, Any] = {}
        self.clients = [ClientFigures() for _ in self.keys()]

    def update(self) -> None:
        """Take the events since the last call."""
        for _ in range(len(self.clients), len(self.keys())):
            self.clients.append(ClientFigures())
        for event in self._reader.new():
            self.last, name, client = event, event["event"], event.get("client")
            if name in ("federation_started", "federation_resumed", "federation_ended"):
                for each in self.clients:
                    each.online = None if name == "federation_ended" else False
            if "method" in event:
                self._now = {key: event.get(key) for key in ("method", "round")}
            if name not in ("client_online", "client_offline", "node_started", "node_ended"):
                self._last_of_server = event
            if isinstance(client, int) and 0 <= client < len(self.clients):
                self.clients[client].take(event)

    def keys(self) -> list[str]:
        """Return the public keys of the clients' nodes, in the order of their numbers."""
        file = self.folder / PEERS
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    @property
    def state(self) -> str:
        """What the federation does.

        It is ``starting``, ``running``, ``done``, ``failed`` or ``interrupted``.
        """
        serving, outcome = _read(self.folder / SERVING), _read(self.folder / OUTCOME)
        if outcome is None and serving is not None and runs(*serving):
            return "running"
        if outcome is not None:
            return "failed" if outcome["code"] else "done"
        if serving is None and any(
            processes_run(folder / PROCESSES) for folder in (self.folder, self.folder.parent)
        ):
            return "starting"
        return "interrupted"

    @property
    def error(self) -> str | None:
        """Why it failed; None if it did not."""
        outcome = _read(self.folder / OUTCOME)
        return None if outcome is None else outcome["error"]

    @property
    def online(self) -> int | None:
        """How many clients are online, as the server saw it last; None if it does not look."""
        known = [client.online for client in self.clients]
        return None if None in known or not known else sum(map(bool, known))

    def problem(self) -> str | None:
        """Return why the federation is not healthy; None if it is."""
        if self.state != "running":
            return f"the federation is {self.state}"
        if self._last_of_server is not None and self._last_of_server["event"] in _ASKING:
            age = seconds_since(self._last_of_server["time"])
            if age > SILENT:
                return f"no event for {age:.0f} s"
        return None

    def health(self) -> dict[str, Any]:
        """Return what the health endpoint says, as plain values."""
        return {
            "state": self.state,
            "problem": self.problem(),
            "method": self._now.get("method"),
            "round": self._now.get("round"),
            "clients": len(self.clients),
            "online": self.online,
            "last_event": self.last,
        }

    def stages(self) -> list[StageStatus]:
        """Return the status of the stages that have begun, and of ``federate``."""
        lines = [line for line in self._metrics() if line["event"] == "stage"]
        state, rows = self.state, []
        for name in dict.fromkeys([*(line["stage"] for line in lines), "federate"]):
            file = record_file(self.folder / RUN, name)
            record = read_record(file) if file.exists() else None
            if record is not None and record["done"]:
                rows.append(StageStatus(name, "done", record["seconds"], ""))
            elif any(line["stage"] == name for line in lines):
                rows.append(StageStatus(name, "running" if state == "running" else "partial", None, ""))
            else:
                rows.append(StageStatus(name, "missing", None, ""))
        return rows

    def methods(self) -> list[MethodProgress]:
        """Return how far each training is, in the order in which they began."""
        rows: dict[tuple[str, int], MethodProgress] = {}
        for line in self._metrics():
            if line["event"] == "round":
                key = (line["method"], line["seed"])
                before = rows[key].accuracy if key in rows else None
                rows[key] = MethodProgress(*key, line["round"], line.get("accuracy", before))
        return list(rows.values())

    def rounds(self) -> int | None:
        """Return the number of rounds in the server's config; None before it has one."""
        import yaml

        if not (self.folder / CONFIG).exists():
            return None
        content = yaml.safe_load((self.folder / CONFIG).read_text(encoding="utf-8"))
        return int(content["federate"]["rounds"])

    def _metrics(self) -> list[dict[str, Any]]:
        file = self.folder / RUN / METRICS_FILE
        return read_events(file) if file.exists() else []


class NodeRow(NamedTuple):
    """A client in the list of nodes.

    Attributes:
        client: Its number.
        key: The fingerprint of its public key, as ``ssh-keygen -l`` shows it.
        node: ``online``, ``offline``, ``registered`` (it was never there) or ``unknown``.
        since: Since when; of a node that is unknown, when it was there last. None if never.
        rounds: The rounds in which its upload counted.
        left_out: The rounds in which it did not.
        reason: Why, the last time; None if it always counted.
        sent: The bytes that it sent.
        received: The bytes that it was sent.
        answered: When it answered last; None if never.
    """

    client: int
    key: str
    node: str
    since: str | None
    rounds: int
    left_out: int
    reason: str | None
    sent: int
    received: int
    answered: str | None


def node_rows(overview: FederationOverview) -> list[NodeRow]:
    """Return a row for each client of a federation.

    Args:
        overview: The federation.
    """
    overview.update()
    nodes, listed = _read(overview.folder / MEMBERS) or [], _flowers_list(overview.folder)
    rows = []
    for number, (key, client) in enumerate(zip(overview.keys(), overview.clients, strict=True)):
        node, since = listed.get(nodes[number] if number < len(nodes) else -1, ("unknown", client.seen))
        if node == "offline":  # Flower notes no time if a node just vanished
            since = since or client.seen
        left_out = client.left_out
        rows.append(
            NodeRow(
                number,
                key_fingerprint(key),
                node,
                since,
                len(client.rounds) - len(left_out),
                len(left_out),
                left_out[-1] if left_out else None,
                client.sent,
                client.received,
                client.answered,
            )
        )
    return rows


def _flowers_list(folder: Path) -> dict[int, tuple[str, str | None]]:
    """Return the state of each node and its time, by the node's id; nothing if the SuperLink does not run."""
    if not _superlink_listens(folder / HOME / "config.toml"):
        return {}
    home = (folder / HOME).resolve()
    try:
        listed = supernode_command(
            lambda command: run_to_end(command, flower_environment(home), timeout=60.0), "list"
        )
    except GenflError:  # another program listens on the port of a SuperLink that has ended
        return {}
    nodes: dict[int, tuple[str, str | None]] = {}
    for node in listed["nodes"]:
        time = node.get(f"{node['status']}-at")
        since = None if time in (None, "N/A") else datetime.fromisoformat(time).isoformat()
        nodes[int(node["node-id"])] = (node["status"], since)
    return nodes


def _superlink_listens(file: Path) -> bool:
    import tomllib

    try:
        address = tomllib.loads(file.read_text(encoding="utf-8"))["superlink"][CONNECTION]["address"]
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=2.0):
            return True
    except (OSError, ValueError, LookupError):
        return False


def key_fingerprint(public_key: str) -> str:
    """Return the fingerprint of a public key in the format of OpenSSH, as ``ssh-keygen -l`` shows it."""
    content = base64.b64decode(public_key.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def server_folder(folder: Path) -> Path | None:
    """Return the folder of a federation's server; None if a folder is no federation's.

    Args:
        folder: The folder of the server, or one that holds it as ``server``.
    """
    for path in (folder, folder / "server"):
        files = [path / MEMBERS], [path / JOURNAL, server_keys(path / KEYS).certificate]
        if any(all(map(os.path.isfile, each)) for each in files):  # a name may be too long
            return path
    return None


def find_server(folder: Path | None) -> Path:
    """Return the folder of a federation's server.

    Args:
        folder: See `server_folder`; None for the only federation in `FEDERATIONS`.

    Raises:
        InputError: It is no federation's, or there is not exactly one.
    """
    if folder is not None:
        server = server_folder(folder)
        if server is None:
            name = on_one_line(folder, 200)
            raise InputError(f"DIR: {name} holds no federation; name a folder of genfl deploy or server")
        return server
    below = sorted(path for path in FEDERATIONS.glob("*") if server_folder(path) is not None)
    if len(below) != 1:
        names = ", ".join(on_one_line(path) for path in below[:3])
        what = (
            f"{len(below)} federations ({names}{', …' if len(below) > 3 else ''})"
            if below
            else "no federation"
        )
        raise InputError(f"DIR: {FEDERATIONS} holds {what}; name a folder")
    return find_server(below[0])


def seconds_since(time: str) -> float:
    """Return how long ago a time of the journal was."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())


def _read(file: Path) -> Any:
    """Return the content of a JSON file; None if there is none, as another process may delete it."""
    try:
        return read_json(file) if file.exists() else None
    except GenflError:
        return None
