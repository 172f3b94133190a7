"""Names that results, stages and the report share."""

from __future__ import annotations

import re
from collections.abc import Iterable

from genfl.references import CENTRALISED, GENERATOR, LOCAL

__all__ = ["CENTRALISED", "GENERATOR", "LOCAL", "SUMMARY_FILE", "SYNTHETIC_ONLY", "in_natural_order"]

SYNTHETIC_ONLY = "synthetic_only"
"""The row of the pre-trained model before any round; it is in every comparison with a generator."""

SUMMARY_FILE = "summary.json"
"""The file in a run's folder that holds its `genfl.results.schema.Summary`."""


def in_natural_order(labels: Iterable[str]) -> list[str]:
    """Return labels in the order in which people list them: numbers in them by value, so 2 before 10.

    Args:
        labels: The names of the classes.
    """

    def parts(label: str) -> list[tuple[bool, int, str]]:
        pieces = re.split(r"([0-9]+)", label)
        return [(not piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]

    return sorted(labels, key=lambda label: (parts(label), label))
