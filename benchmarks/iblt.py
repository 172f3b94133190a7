"""How long encoding and decoding label tables takes, and how often decoding fails.

Run ``python benchmarks/iblt.py``; ``--trials 10000`` gives the figures of ``docs/results/iblt.md``.
"""

import argparse
import random
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from genfl.labels.iblt import IBLT, TableTooSmall

POOL = [f"label {index:05d}" for index in range(20_000)]
SIZES = ((10, 8.0), (100, 3.0), (1_000, 1.4))
CLIENTS = 3


def seconds(action: Callable[[], object], repeats: int = 7) -> float:
    """Median wall-clock time of an action in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return median(times)


def failures(labels: int, cells_per_label: float, hashes: int, trials: int) -> int:
    """How many of ``trials`` tables cannot be decoded; trial t draws its names and its table with seed t."""
    failed = 0
    for trial in range(trials):
        names = random.Random(trial).sample(POOL, labels)
        table = IBLT(round(cells_per_label * labels), hashes, seed=trial)
        try:
            decoded = table.decode(table.encode(names) * np.uint32(CLIENTS), CLIENTS)
        except TableTooSmall:
            failed += 1
        else:
            assert decoded == dict.fromkeys(sorted(names), CLIENTS)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=500, help="tables per failure rate (default 500)")
    trials: int = parser.parse_args().trials

    print("| labels | cells | table | encode | decode |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for labels, cells_per_label in (*SIZES, (10_000, 1.4)):
        table, names = IBLT(round(cells_per_label * labels)), POOL[:labels]
        total = table.encode(names)
        encode, decode = seconds(lambda: table.encode(names)), seconds(lambda: table.decode(total, 1))  # noqa: B023
        print(
            f"| {labels:,} | {table.cells:,} | {table.nbytes / 1e3:,.0f} kB "
            f"| {encode * 1e3:.1f} ms | {decode * 1e3:.1f} ms |"
        )

    print(f"\nFailures in {trials:,} trials:\n")
    print("| labels | cells per label | 4 hashes | 3 hashes |")
    print("| ---: | ---: | ---: | ---: |")
    for labels, cells_per_label in SIZES:
        four, three = (failures(labels, cells_per_label, hashes, trials) for hashes in (4, 3))
        print(f"| {labels:,} | {cells_per_label:g} | {four:,} | {three:,} |", flush=True)


if __name__ == "__main__":
    main()
