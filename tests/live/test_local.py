"""A federation of real processes on this machine: TLS, known nodes, and the models of a simulation."""

import re
import threading
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from genfl import config, pipeline
from genfl.live import local
from genfl.live.processes import Processes

CONFIG = """
name: deployed
seeds: [0]
data: {name: digits, partition: {kind: dirichlet, alpha: 0.5, clients: 2, samples: 200}}
generator: none
model: {name: mlp, width: 8}
federate: {rounds: 2, clients_per_round: 2, evaluate_every: 2, engine: sequential, local: {steps: 3}}
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


def test_real_processes_train_the_models_of_sequential(tmp_path, monkeypatch):
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
    result = local.deploy_local(config.parse(CONFIG), tmp_path / "real", 2, seconds=600)

    pipeline.execute(config.parse(CONFIG), tmp_path / "simulated", until="federate")
    name = Path("federate", "memory", "seed-0", "model.safetensors")
    real = (tmp_path / "real" / "server" / "run" / name).read_bytes()
    assert real == (tmp_path / "simulated" / name).read_bytes()
    assert len(result["labels"]) == 10
    (trace,) = result["methods"]["memory"].values()
    assert [row["refused"] for row in trace["rounds"]] == [0, 0]

    assert watches[0].addresses == {"0100007F"}  # 127.0.0.1, and no other
    assert len(watches[0].seen) >= 5  # the SuperLink, two SuperNodes, and what they start
    assert not [process for process in watches[0].seen if Path(f"/proc/{process}").exists()]
    files = {path.name for path in (tmp_path / "real" / "server").rglob("*")}
    assert "examples.safetensors" not in files  # the server's folder has no private data
