"""Rounds of real processes: genfl's engine over Flower beside Flower's bare messages, on 127.0.0.1.

``python benchmarks/flower_messages.py [--size MILLIONS] [--rounds N] [--repeats N]``

Three apps send each client the same vector and get one back, over one SuperLink with TLS and two SuperNodes:

* ``numpy``: a Flower app that adds 1 with NumPy, and imports nothing else;
* ``torch``: the same with torch, which every app that trains a model imports;
* ``genfl``: `FlowerEngine` and genfl's ClientApp, with a program that adds 1.

Flower starts a process for each message, so most of a small round is its start. The apps take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from genfl.config import parse
from genfl.live.keys import make_node_keys, make_server_keys
from genfl.live.link import CONNECTION, KEYS, LOOPBACK, Client, Server, SuperNode, flower_project
from genfl.live.processes import Processes, free_ports
from genfl.live.server import MEMBERS, for_machines

CONFIG = """
name: messages
data: {name: digits, partition: {clients: 2}}
generator: none
model: {name: mlp}
federate: {rounds: 1, clients_per_round: 2}
methods: {plain: {algorithm: fedavg}}
"""

SETTINGS: dict[str, str | int] = {"out": "", "members": "", "size": 0, "rounds": 0}
"""The settings of an app."""

SERVER = """
import json, time
from pathlib import Path
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
import numpy as np

server = ServerApp()
client = ClientApp()

@server.main()
def main(grid, context):
    settings = context.run_config
    members = json.loads(settings["members"])
    round_of = prepare(grid, members, int(settings["size"]), Path(settings["out"]).parent)
    seconds = []
    for number in range(1, int(settings["rounds"]) + 1):
        begin = time.monotonic()
        round_of(number)
        seconds.append(time.monotonic() - begin)
    Path(settings["out"]).write_text(json.dumps(seconds))
"""

BARE = """
def prepare(grid, members, size, folder):
    vector = np.zeros(size, np.float32)

    def round_of(number):
        sent = lambda: RecordDict({"x": ArrayRecord({"x": Array(vector)})})
        messages = [Message(sent(), member, "train", group_id=str(number)) for member in members]
        waiting, pause = set(grid.push_messages(messages)), 0.02
        while waiting:
            for reply in grid.pull_messages(list(waiting)):
                assert not reply.has_error(), reply.error
                waiting.discard(reply.metadata.reply_to_message_id)
            if waiting:
                time.sleep(pause)
                pause = min(2 * pause, 1.0)  # as genfl's engine

    return round_of

@client.train()
def train(message, context):
    x = message.content["x"]["x"].numpy()
    return Message(RecordDict({"x": ArrayRecord({"x": Array(ADD)})}), reply_to=message)
"""

GENFL = """
def program():
    from genfl.algorithms.base import ClientProgram
    return ClientProgram(
        lambda message, memory, info, key: message,
        lambda carry, batch, key: carry,
        lambda carry: ({"x": carry["x"] + 1}, {}),
        {"x": "sum"},
    )

def prepare(grid, members, size, folder):
    import torch
    from genfl.engines.flower.server import FlowerEngine, RemoteClients, RunName
    from genfl.engines.protocol import ClientTask
    from genfl.rng import Key

    run = RunName(folder / "run.json")
    run.begin()
    engine = FlowerEngine(RemoteClients(grid, members, run, {}))
    message = {"x": torch.zeros(size)}
    ours = program()

    def round_of(number):
        tasks = [ClientTask(k, message, {}, None, Key(k), number) for k in range(len(members))]
        assert not engine.run(ours, tasks).refused

    return round_of

def site_of(context):
    from genfl.engines.flower.work import NodeWork
    from genfl.engines.protocol import InfoOnly

    class Site:
        folder = Path(str(context.node_config["folder"])) / "memory"

        def work(self, request):
            return NodeWork(program(), InfoOnly([{}] * 2), request.client)

    return Site()

from genfl.engines.flower.node import build_client_app
client = build_client_app(site_of)
"""

APPS = {
    "numpy": SERVER + BARE.replace("ADD", "x + 1"),
    "torch": "import torch\n" + SERVER + BARE.replace("ADD", "(torch.from_numpy(x.copy()) + 1).numpy()"),
    "genfl": SERVER + GENFL,
}


def measure(folder: Path, size: int, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of rounds of each app, without the first of each run.

    Args:
        folder: Where everything is kept.
        size: Numbers in the vector.
        rounds: Rounds of a run, the first included.
        repeats: Runs of each app.
    """
    make_server_keys(folder / "server" / KEYS, [LOOPBACK])
    clients = [folder / "client-0", folder / "client-1"]
    for client in clients:
        make_node_keys(client)
    for name, code in APPS.items():
        app = folder / name
        app.mkdir()
        components = (f"messages_{name}:server", f"messages_{name}:client")
        project = flower_project(f"messages-{name}", "1.0.0", "A benchmark", components, SETTINGS)
        (app / "pyproject.toml").write_text(project)
        (app / f"messages_{name}.py").write_text(code)
    seconds: dict[str, list[float]] = {name: [] for name in APPS}
    (port,) = free_ports(1)
    with Processes(folder / "processes") as processes:
        server = Server(for_machines(parse(CONFIG)), folder / "server", processes, LOOPBACK, port)
        server.start()
        server.register([client / "node.pub" for client in clients])
        members = (server.folder / MEMBERS).read_text()
        for client in clients:
            SuperNode(
                Client(client, client, f"{LOOPBACK}:{port}", server.keys.authority), client.name, processes
            )
        for number in range(repeats):
            for name in APPS:
                out = folder / f"{name}-{number}.json"
                settings = {"out": str(out), "members": json.dumps(json.loads(members))}
                given = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
                command = ["flwr", "run", str(folder / name), CONNECTION, "--stream", "--run-config"]
                processes.run([*command, f"{given} size={size} rounds={rounds}"], server.home)
                seconds[name] += json.loads(out.read_text())[1:]
    return seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=float, default=1.0, help="millions of numbers in the vector")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of a run; the first is left out")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each app")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), round(chosen.size * 1e6), chosen.rounds, chosen.repeats)
    least = statistics.median(seconds["torch"])
    print(f"{'app':8} {'median round':>14} {'range':>16} {'of torch':>9}")
    for name, rows in seconds.items():
        median = statistics.median(rows)
        extent = f"{min(rows):.1f} to {max(rows):.1f} s"
        print(f"{name:8} {median:12.2f} s {extent:>16} {median / least:9.2f}")


if __name__ == "__main__":
    main()
