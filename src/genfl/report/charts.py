"""Charts of a page, and the same charts as files of their own."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from genfl.report.style import COLOURS, INK, MARKERS, SURFACE, Colour

LETTER = 6.5
"""About the width of a letter in a chart, in units of about one pixel."""

KEY_HEIGHT, KEY_WIDTH, MARGIN = 18.0, 28.0, 10.0
"""The size of a legend's line and of its key, and the space at the sides, in the same units."""

_LIGHT = {f"var(--{colour.name})": colour.light for colour in COLOURS}
_FONT = "font-family: 'DejaVu Sans', Arial, Helvetica, sans-serif"


class LegendKey(NamedTuple):
    """An entry of a legend.

    Attributes:
        label: What the line stands for.
        colour: Its colour.
        marker: Its marker, a key of `MARKERS`; empty for none.
        dashes: Its dashes, as in SVG; empty for a solid line.
    """

    label: str
    colour: Colour
    marker: str = ""
    dashes: str = ""


class Chart(Markup):
    """A chart as inline SVG, which takes its colours and its font from the page around it.

    Attributes:
        name: Its name, unique on the page.
        alt: What it shows, in words.
        size: Its width and height.
        keys: Its legend. The page has one legend for several charts; a file has its own.
    """

    name: str
    alt: str
    size: tuple[int, int]
    keys: tuple[LegendKey, ...]

    @classmethod
    def of(
        cls, svg: str, name: str, alt: str, size: tuple[int, int], keys: Sequence[LegendKey] = ()
    ) -> Chart:
        """Return a chart.

        Args:
            svg: The inline SVG, escaped.
            name: See the class; so are the others.
            alt: What it shows.
            size: Its size.
            keys: Its legend.
        """
        chart = cls(svg)
        chart.name, chart.alt, chart.size, chart.keys = name, alt, size, tuple(keys)
        return chart


def charts_in(value: Any) -> Iterator[Chart]:
    """Yield the charts in nested mappings, lists and tuples, in order."""
    if isinstance(value, Chart):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from charts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from charts_in(item)


def svg_file(chart: Chart) -> str:
    """Return a chart as an SVG file that needs no page: colours of the light page, a font, and a legend.

    Args:
        chart: The chart.
    """
    root = ET.fromstring(chart)
    width, height = map(float, chart.size)
    keys, bottom = _legend(chart.keys, width, height)
    for element in root.iter():
        for name in ("style", "fill", "stroke"):
            if value := element.get(name):
                element.set(name, re.sub(r"var\(--[\w-]+\)", lambda match: _LIGHT[match[0]], value))
        if reference := element.attrib.pop("href", None):
            element.set("xlink:href", reference)  # older programs know no other form
    whole = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "xmlns:xlink": "http://www.w3.org/1999/xlink",
            "width": f"{width:g}",
            "height": f"{bottom:g}",
            "viewBox": f"0 0 {width:g} {bottom:g}",
            "style": _FONT,
            "role": "img",
        },
    )
    ET.SubElement(whole, "title").text = chart.alt
    ET.SubElement(whole, "rect", {"width": "100%", "height": "100%", "fill": SURFACE.light})
    whole.extend(root)
    whole.append(keys)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(whole, encoding="unicode")}\n'


def _legend(keys: Sequence[LegendKey], width: float, top: float) -> tuple[ET.Element, float]:
    """Return the legend below a chart, and where it ends."""
    group = ET.Element("g", {"style": f"font-size: 10px; fill: {INK.light}"})
    x, y = MARGIN, top
    for key in keys:
        needed = KEY_WIDTH + LETTER * len(key.label)
        if x > MARGIN and x + needed > width - MARGIN:
            x, y = MARGIN, y + KEY_HEIGHT
        entry = ET.SubElement(group, "g", {"transform": f"translate({x:g} {y:g})"})
        dashes = {"stroke-dasharray": key.dashes} if key.dashes else {}
        line = {"d": "M0 5h22", "stroke": key.colour.light, "stroke-width": "1.8", **dashes}
        ET.SubElement(entry, "path", line)
        if key.marker:
            ET.SubElement(entry, "path", {"d": MARKERS[key.marker], "fill": key.colour.light})
        ET.SubElement(entry, "text", {"x": f"{KEY_WIDTH:g}", "y": "8.5"}).text = key.label
        x += needed + 2 * MARGIN
    return group, (y + KEY_HEIGHT if keys else top)
