"""Names that results, stages and the report share."""

from __future__ import annotations

from genfl.experiment.records import SUMMARY_FILE
from genfl.references import CENTRALISED, GENERATOR, LOCAL

__all__ = ["CENTRALISED", "GENERATOR", "LOCAL", "SUMMARY_FILE", "SYNTHETIC_ONLY"]

SYNTHETIC_ONLY = "synthetic_only"
"""The row of the pre-trained model before any round; it is in every comparison with a generator."""

INFERENCE = "inference"
"""The part of a stage's result that is a measured cost. It goes to the cost of the stage's record."""

WITHOUT, GPTFL, FEDGC, BOTH = "without", "gptfl", "fedgc", "both"
"""The methods of a pilot: without the generator, a warm start, generated content in clients, and both."""

ARMS = (WITHOUT, GPTFL, FEDGC, BOTH)

ALONE = "alone"
"""The target that is trained on generated samples alone."""

TARGETS = (ALONE, *ARMS)
