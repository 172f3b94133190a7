"""Measure how a round's time grows with the cohort, the model and the local steps, as log-log slopes.

SCAFFOLD with a checkpoint every round on the engine ``sequential``, so that what clients remember and what is
written count as well. Sizes alternate, each for a few rounds at a time; medians over all rounds. A slope is
that of the least-squares line through logarithms; the steepest is that between two neighbouring sizes.
CPU time is what a busy machine disturbs least; slopes are of both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from genfl.algorithms.scaffold import scaffold
from genfl.data.clients import ClientData, Ranges
from genfl.data.plans import Schedule
from genfl.engines.in_process import sequential
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import MLP
from genfl.rng import Key
from genfl.simulation import federate

SHAPE, CLASSES, BATCH, SAMPLES = (1, 8, 8), 10, 8, 16


def rounds(cohort: int, width: int, steps: int, number: int) -> np.ndarray:
    """Return wall-clock and CPU seconds of each of a federation's rounds, [number, 2]."""
    clients = 2 * cohort
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(clients * SAMPLES, *SHAPE, generator=rng)
    y = torch.randint(CLASSES, (len(x),), generator=rng)
    data = ClientData(x, y, Ranges(np.arange(1, clients + 1) * SAMPLES), CLASSES)
    task = classification(partial(MLP, SHAPE, CLASSES, width), SHAPE)
    times: list[tuple[float, float]] = []

    def clock(rounds: int = 0) -> None:
        times.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        federate(
            scaffold(task, LocalSGD(0.01)),
            task.init(Key(0)),
            data,
            sequential(data),
            Schedule(1 + number, cohort, BATCH, steps, evaluate_every=10**9),
            Key(0),
            lambda weights: {},
            checkpoint=Path(folder) / "checkpoint.safetensors",
            on_round=clock,
        )
    return np.diff(times, axis=0)  # the clock starts after the first round


def parameters(width: int) -> int:
    """Return how many parameters the model of a width has."""
    return sum(p.numel() for p in MLP(SHAPE, CLASSES, width).parameters())


def main() -> None:
    """Print times and slopes, and write a plot for each sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a folder for the plots; none without it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=2)
    chosen = parser.parse_args()
    widths = {parameters(width): width for width in (133, 1_333, 13_333, 133_333)}
    sweeps = {
        "cohort": {n: partial(rounds, n, 64, 1) for n in (1, 10, 100, 300, 1000)},
        "parameters": {n: partial(rounds, 2, width, 1) for n, width in widths.items()},
        "local steps": {n: partial(rounds, 2, 64, n) for n in (1, 10, 100, 300, 1000)},
    }
    for name, sweep in sweeps.items():
        sizes = list(sweep)
        measured: dict[int, list[np.ndarray]] = {size: [] for size in sizes}
        for _ in range(chosen.repetitions):
            for size in sizes:
                measured[size].append(sweep[size](chosen.rounds))
        medians = np.array([np.median(np.concatenate(measured[size]), axis=0) for size in sizes])
        print(f"{name}: " + ", ".join(f"{size:,}" for size in sizes))
        for column, kind in enumerate(("wall", "CPU")):
            print(f"  seconds a round, {kind}: " + ", ".join(f"{value:.4f}" for value in medians[:, column]))
            logs = np.log(sizes), np.log(medians[:, column])
            slope = np.polyfit(*logs, 1)[0]
            steepest = np.max(np.diff(logs[1]) / np.diff(logs[0]))
            print(f"  slope {slope:.2f}, steepest {steepest:.2f}")
        if chosen.out:
            plot(chosen.out / f"{name.replace(' ', '-')}.svg", name, sizes, medians)


def plot(path: Path, name: str, sizes: list[int], medians: np.ndarray) -> None:
    """Draw the medians on logarithmic axes, beside a line of slope 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for column, kind in enumerate(("wall", "CPU")):
        axes.loglog(sizes, medians[:, column], "o-", label=kind)
    axes.loglog(sizes, medians[-1, 1] * np.array(sizes) / sizes[-1], "k:", label="linear")
    axes.set(xlabel=name, ylabel="seconds a round")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
