"""The figures of a sweep: those of each of its runs."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from genfl.results.schema import MethodResult, ResultModel

SWEEP_SUMMARY = "sweep.json"
"""The file in a sweep's folder that holds a `PointResult` for each finished run."""


class PointResult(ResultModel):
    """The figures of one run of a grid."""

    settings: dict[str, Any] = Field(description="The value of each field of the grid.")
    run: str = Field(description="Name of the run's folder, below the folder of the sweep.")
    methods: dict[str, MethodResult] = Field(description="The figures of each method, as in summary.json.")


def setting_text(value: Any) -> str:
    """Return the value of a grid's field as text: a text as it is, everything else as JSON."""
    if isinstance(value, str):
        return value
    # YAML has values without a JSON form, such as dates; the schema rejects them with the field's name
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
