"""Compute figures of buffered linear Toeplitz matrices with jax-privacy, and compare them with pinned ones.

jax-privacy never runs with genfl. `make oracle` installs it in an environment of its own, and runs this
script there. `tests/privacy/test_toeplitz.py` compares genfl with the pinned figures.

For each setting (rounds, least separation), jax-privacy 2.0.0 finds the matrix with the least mean squared
error. The file holds its parameters, squared sensitivity, and mean squared error of prefix sums.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

from jax_privacy.matrix_factorization import buffered_toeplitz, toeplitz  # noqa: E402

PINNED = Path(__file__).parents[1] / "tests" / "privacy" / "jax_privacy.json"

SETTINGS = [(50, 50), (50, 10), (100, 10), (200, 20)]
"""Rounds, and the least number of rounds from one participation of a client to its next."""

TOLERANCE = 1e-4
"""The largest relative difference of a figure that two machines may have."""


def figures(rounds: int, separation: int) -> dict[str, Any]:
    """Return the figures of one setting."""
    most = -(-rounds // separation)
    matrix = buffered_toeplitz.optimize(
        n=rounds, min_sep=separation, max_participations=most, error="mean", max_buffers=4
    )
    squared = toeplitz.minsep_sensitivity_squared(
        matrix.toeplitz_coefs(rounds), min_sep=separation, max_participations=most
    )
    error = toeplitz.per_query_error(noising_coef=matrix.inverse().toeplitz_coefs(rounds)).mean()
    return {
        "rounds": rounds,
        "separation": separation,
        "decays": matrix.buf_decay.tolist(),
        "scales": matrix.output_scale.tolist(),
        "squared_sensitivity": float(squared),
        "error": float(error),
    }


def main() -> int:
    """Compare with the pinned figures, or write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the figures in place of comparing them")
    if parser.parse_args().write:
        computed = [figures(*setting) for setting in SETTINGS]
        content = {"jax-privacy": version("jax-privacy"), "figures": computed}
        PINNED.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return 0
    pinned, wrong = json.loads(PINNED.read_text(encoding="utf-8"))["figures"], 0
    print("rounds  separation  figure               pinned        computed")
    for old in pinned:
        new = figures(old["rounds"], old["separation"])
        for name in ("squared_sensitivity", "error"):
            close = abs(new[name] - old[name]) <= TOLERANCE * old[name]
            wrong += not close
            mark = "" if close else "  differs"
            head = f"{old['rounds']:6}  {old['separation']:10}  {name:19}"
            print(f"{head}  {old[name]:12.6f}  {new[name]:12.6f}{mark}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
