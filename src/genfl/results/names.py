"""Names that the stages, the results and the report share."""

from __future__ import annotations

SYNTHETIC_ONLY = "synthetic_only"
"""The pre-trained model as it is, before any round: a row of every comparison."""
