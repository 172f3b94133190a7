"""Compare a federation of a million clients with one of a thousand: same model, cohort and local work.

SCAFFOLD, 100 clients a round, 20 samples a client in memory-mapped files (``--folder``, 1.4 GB; made once).
Each federation runs in a process of its own, so that its peak memory is its own, and keeps a checkpoint
every round. Federations of both sizes alternate, and medians over rounds are printed. CPU time is that of
the main process: all of the work with the engine ``sequential``, and what a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (1_000, 1_000_000)
SAMPLES, COHORT, BATCH, STEPS, LR, CLASSES, SHAPE = 20, 100, 10, 4, 0.05, 10, (1, 8, 8)


def make(folder: Path) -> None:
    """Write random images and labels for the most clients."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shapes = {"x": (*SHAPE,), "y": ()}
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        if path.exists():
            continue
        rows = max(SIZES) * SAMPLES
        dtype, high = (np.uint8, 256) if name == "x" else (np.int64, CLASSES)
        temporary = folder / f".{name}.npy"
        file = np.lib.format.open_memmap(temporary, "w+", dtype, (rows, *shape))
        for part in np.array_split(np.arange(rows), 100):
            file[part[0] : part[-1] + 1] = rng.integers(high, size=(len(part), *shape), dtype=dtype)
        file.flush()
        temporary.rename(path)


def most_resident(process: int | str) -> int:
    """Return the bytes that a process had in memory at most, pages of files and shared ones included."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def federation(folder: Path, clients: int, width: int, rounds: int, engine_name: str) -> dict[str, float]:
    """Run one federation; returns seconds and bytes."""
    began = time.perf_counter()
    import numpy as np
    import torch

    from genfl.algorithms.scaffold import scaffold
    from genfl.data.clients import ClientData, Ranges
    from genfl.data.plans import Schedule
    from genfl.engines.auto import engine
    from genfl.learning.local import LocalSGD
    from genfl.learning.task import classification
    from genfl.models import CNN
    from genfl.rng import Key
    from genfl.simulation import federate

    x, y = (torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="r+")) for name in ("x", "y"))
    ends = np.arange(1, clients + 1) * SAMPLES
    data = ClientData(x, y, Ranges(ends), CLASSES, lambda x: x.float() / 255)
    task = classification(lambda: CNN(SHAPE, CLASSES, width=width), SHAPE)
    weights = task.init(Key(0))
    finished: list[tuple[float, float]] = []
    ready = 0.0

    def clock(rounds: int = 0) -> None:
        finished.append((time.perf_counter(), time.process_time()))

    def evaluate(weights: object) -> dict[str, float]:
        nonlocal ready
        ready = ready or time.perf_counter() - began
        return {}

    with tempfile.TemporaryDirectory(dir=folder) as kept, engine(engine_name, data, COHORT) as run:
        clock()
        federate(
            scaffold(task, LocalSGD(LR)),
            weights,
            data,
            run,
            Schedule(rounds, COHORT, BATCH, local_steps=STEPS, evaluate_every=10**9),
            Key(0),
            evaluate,
            checkpoint=Path(kept) / "checkpoint.safetensors",
            on_round=clock,
        )
        files = sum(path.stat().st_size for path in Path(kept).rglob("*.safetensors"))
        workers = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        resident = [most_resident(process) for process in ("self", *workers)]
    wall, cpu = np.median(np.diff(finished, axis=0)[3:], axis=0)  # the first rounds fork the workers
    return {
        "parameters": sum(p.numel() for p in weights["params"].values()),
        "start": ready,
        "round": float(wall),
        "cpu": float(cpu),
        "resident": resident[0],
        "all": sum(resident),
        "files": files,
    }


def main() -> None:
    """Print a row for each size, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "genfl-scale")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--engine", default="sequential", choices=["auto", "parallel", "sequential"])
    parser.add_argument("--clients", type=int, help="one federation of so many, as JSON")
    chosen = parser.parse_args()
    if chosen.clients:
        result = federation(chosen.folder, chosen.clients, chosen.width, chosen.rounds, chosen.engine)
        print(json.dumps(result))
        return
    make(chosen.folder)
    runs: dict[int, list[dict[str, float]]] = {clients: [] for clients in SIZES}
    for _ in range(chosen.repetitions):
        for clients in SIZES:
            command = [sys.executable, __file__, *sys.argv[1:], "--clients", str(clients)]
            environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            runs[clients].append(json.loads(done.stdout))
    print(f"{runs[SIZES[0]][0]['parameters']:,} parameters, {os.getloadavg()[0]:.1f} processes wanted a core")
    for clients, rows in runs.items():
        middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        print(
            f"{clients:9,} clients: ready in {middle['start']:.1f} s; a round {middle['round']:.3f} s,"
            f" {middle['cpu']:.3f} s of CPU; resident {middle['resident'] / 2**20:.0f} MiB, with workers"
            f" {middle['all'] / 2**20:.0f} MiB; {middle['files'] / 2**20:.0f} MiB of files"
        )
    for name in ("round", "cpu"):
        ratios = [many[name] / few[name] for few, many in zip(*runs.values(), strict=True)]
        print(f"{name}, many over few:", ", ".join(f"{ratio:.2f}" for ratio in ratios))
    print(f"genfl scale_round_ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
