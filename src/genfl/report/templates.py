"""The templates of the pages."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jinja2

from genfl.report import text
from genfl.report.style import COLOURS, MARKERS


@cache
def page_template(name: str) -> jinja2.Template:
    """Return a template of this folder, with the filters and the colours that pages share."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": text.percent,
        "mean_std": text.mean_std,
        "duration": text.duration,
        "size": text.byte_size,
        "megabytes": text.megabytes,
        "count": text.count,
        "energy": text.energy,
    }
    environment.globals |= {"colours": COLOURS, "markers": MARKERS}
    return environment.get_template(name)
