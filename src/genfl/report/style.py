"""How a method looks: one colour and one marker, the same in every chart, table and legend of a report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from genfl.results.names import SYNTHETIC_ONLY


class Colour(NamedTuple):
    """A colour of the page: its CSS variable, and its values on light and dark ground."""

    name: str
    light: str
    dark: str


class Look(NamedTuple):
    """How a method is drawn.

    Attributes:
        colour: Its colour.
        marker: Its marker, a key of `MARKERS`; empty for none.
    """

    colour: Colour
    marker: str


INK = Colour("ink", "#1b1d22", "#e9ebef")
MUTED = Colour("muted", "#565c67", "#a8afbb")
LINE = Colour("line", "#d5d9e0", "#3a3f49")
PAGE = Colour("page", "#f5f6f8", "#121418")
SURFACE = Colour("surface", "#ffffff", "#1b1e24")
SYNTHETIC = Colour("synthetic", "#6b7280", "#9aa3b2")
"""Of what was learnt from generated data alone."""

ACCENT = Colour("accent", "#0f7c8a", "#4fc4d6")
"""Of what belongs to no method."""

# Chosen for contrast with the ground (3:1 at least) and to stay apart, by lightness where not by hue, for
# readers who do not see red or green. As colours alone do not carry beyond a few, markers go with them.
SERIES = (
    Colour("series-0", "#2168c8", "#5b9bf5"),
    Colour("series-1", "#b83f06", "#ffa060"),
    Colour("series-2", "#23a06c", "#8ff0cf"),
    Colour("series-3", "#85195a", "#e0558f"),
    Colour("series-4", "#27246e", "#8a6cff"),
    Colour("series-5", "#9c9110", "#f0e04a"),
)
REST = Look(Colour("rest", "#c6cbd4", "#4b515d"), "")
"""How methods look that are there to be seen together, not one by one."""

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
"""With more methods than this in colour, curves and their bands would only hide each other."""


def looks(methods: Iterable[str], drawn: Collection[str]) -> dict[str, Look]:
    """Gives each method its look: one of its own to those drawn, by their order, and `REST` to the others.

    Six colours and five markers have no common factor: thirty methods look different.
    """
    markers = tuple(MARKERS)
    found: dict[str, Look] = {}
    for name in methods:
        if name == SYNTHETIC_ONLY:
            found[name] = Look(SYNTHETIC, "D")
        elif name in drawn:
            place = sum(name in drawn for name in found)
            found[name] = Look(SERIES[place % len(SERIES)], markers[place % len(markers)])
        else:
            found[name] = REST
    return found
