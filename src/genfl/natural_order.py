"""The order in which people list names."""

from __future__ import annotations

import re
from collections.abc import Iterable


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Return names in the order in which people list them: numbers in them by value, so 2 before 10.

    Args:
        names: The names, such as those of classes.
    """

    def parts(name: str) -> list[tuple[bool, int, str]]:
        pieces = re.split(r"([0-9]+)", name)
        return [(not piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]

    return sorted(names, key=lambda name: (parts(name), name))
