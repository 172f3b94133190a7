"""Marks that say which values an option may have. Here, they only describe."""

from __future__ import annotations

from typing import NamedTuple


class Ge(NamedTuple):
    """At least this value."""

    least: float


class Lt(NamedTuple):
    """Less than this value."""

    limit: float


class MultipleOf(NamedTuple):
    """A multiple of this value."""

    factor: float
