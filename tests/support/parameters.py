"""Parameters of which a few are enough while one works."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Returns parameters for all values; all but those of `fast` are marked slow."""
    values = list(values)
    assert all(value in values for value in fast), "every fast one exists"
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
