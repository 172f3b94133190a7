"""The look of a method: one colour and one marker, in every chart, table and legend of a report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from genfl.results.names import SYNTHETIC_ONLY


class Colour(NamedTuple):
    """A colour of the page: its CSS variable, and its values on light and dark backgrounds."""

    name: str
    light: str
    dark: str


class Look(NamedTuple):
    """The colour and the marker of a method.

    Attributes:
        colour: The colour.
        marker: The marker, a key of `MARKERS`; empty for none.
    """

    colour: Colour
    marker: str


INK = Colour("ink", "#1b1d22", "#e9ebef")
MUTED = Colour("muted", "#565c67", "#a8afbb")
LINE = Colour("line", "#d5d9e0", "#3a3f49")
PAGE = Colour("page", "#f5f6f8", "#121418")
SURFACE = Colour("surface", "#ffffff", "#1b1e24")
SYNTHETIC = Colour("synthetic", "#6b7280", "#9aa3b2")
"""The colour of models trained on generated data alone."""

ACCENT = Colour("accent", "#0f7c8a", "#4fc4d6")
"""The colour of everything that belongs to no method."""

# Chosen for a contrast of at least 3:1 with the background. Colours of similar hue differ in lightness, for
# readers who do not tell red from green. Markers help where colours alone are too many to tell apart.
SERIES = (
    Colour("series-0", "#2168c8", "#5b9bf5"),
    Colour("series-1", "#b83f06", "#ffa060"),
    Colour("series-2", "#23a06c", "#8ff0cf"),
    Colour("series-3", "#85195a", "#e0558f"),
    Colour("series-4", "#27246e", "#8a6cff"),
    Colour("series-5", "#9c9110", "#f0e04a"),
)
REST = Look(Colour("rest", "#c6cbd4", "#4b515d"), "")
"""The look of the methods that are not told apart."""

COLOURS = (INK, MUTED, LINE, PAGE, SURFACE, SYNTHETIC, ACCENT, REST.colour, *SERIES)

MARKERS: Mapping[str, str] = MappingProxyType(
    {
        "o": "M8 5a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
        "s": "M8.2 2.2h5.6v5.6h-5.6z",
        "^": "M11 1.2l3.7 7h-7.4z",
        "D": "M11 1l4 4l-4 4l-4 -4z",
        "v": "M11 8.8l3.7 -7h-7.4z",
    }
)
"""Matplotlib's name of each marker, and its outline in a legend key of 22 by 10 units."""

MOST_DRAWN = 8
"""Methods in colour, at most; more curves and bands would only hide each other."""


def looks(methods: Iterable[str], drawn: Collection[str]) -> dict[str, Look]:
    """Return the look of each method: one of its own for those drawn in colour, `REST` for the others.

    Six colours and five markers have no common factor, so thirty methods look different.

    Args:
        methods: The names of all methods.
        drawn: The names of those that are drawn in colour.
    """
    markers = tuple(MARKERS)
    result: dict[str, Look] = {}
    for name in methods:
        if name == SYNTHETIC_ONLY:
            result[name] = Look(SYNTHETIC, "D")
        elif name in drawn:
            index = sum(other in drawn for other in result)
            result[name] = Look(SERIES[index % len(SERIES)], markers[index % len(markers)])
        else:
            result[name] = REST
    return result
