"""How long `genfl --help` takes, against importing the two libraries any such command needs.

Runs the two in turn, so that a machine's drift hits both, and prints medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    """Return the wall time of a process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print the medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    repetitions = parser.parse_args().repetitions
    help_ = [sys.executable, "-m", "genfl", "--help"]
    floor = [sys.executable, "-c", "import typer, rich"]
    pairs = [(seconds(help_), seconds(floor)) for _ in range(repetitions + 1)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"genfl --help {ours:.3f} s, import typer, rich {theirs:.3f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
