"""Catalogues: the entries that a config can name, as rows for tables and JSON."""

from __future__ import annotations

from typing import Any

import torch

from genfl.algorithms import ALGORITHMS, profile
from genfl.data.sources import DATASETS
from genfl.generators.registry import GENERATORS
from genfl.models import MODELS


def algorithms() -> list[dict[str, Any]]:
    """Return the algorithms: papers, what the server sees, and costs as multiples of the model's size."""
    rows = []
    for name, entry in ALGORITHMS.items():
        rows.append({"name": name, "paper": entry.paper, **profile(entry)._asdict()})
    return rows


def models() -> list[dict[str, Any]]:
    """Return the models, with their number of parameters for a reference input."""
    rows = []
    for name, entry in MODELS.items():
        with torch.device("meta"):  # allocates no memory
            model = entry.build(entry.shape, entry.classes)
        parameters = sum(p.numel() for p in model.parameters())
        rows.append({"name": name, "parameters": parameters, "modality": entry.modality})
    return rows


def datasets() -> list[dict[str, Any]]:
    """Return the data sets: Hub ids, the usual metric, and whether genfl was tested on a real copy."""
    return [
        {
            "name": name,
            "modality": entry.modality,
            "summary": entry.summary,
            "hub": entry.recipe.hub if entry.recipe else None,
            "metric": entry.metric,
            "verified": entry.recipe.verified if entry.recipe else True,
        }
        for name, entry in DATASETS.items()
    ]


def generators() -> list[dict[str, Any]]:
    """Return the kinds of generators, with the models that each can load."""
    return [
        {"name": name, "modality": ", ".join(entry.modalities), "models": entry.models}
        for name, entry in GENERATORS.items()
    ]
