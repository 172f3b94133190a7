"""Licences of generators, for data cards and reports."""

from __future__ import annotations

from genfl.data.cards import CARD, licence_line
from genfl.hub import download_file
from genfl.model_folders import existing_path

UNKNOWN_LICENCE = "unknown"


def licence(model: str) -> str:
    """Return the licence of a model or data set, as its README says; "unknown" if it does not.

    Args:
        model: A folder, or a Hugging Face id. Of an id, the README is downloaded if it is not in the cache.
    """
    path = existing_path(model)
    try:
        readme = path / CARD if path else download_file(model, CARD)
    except Exception:  # the Hub's client and the libraries below it raise many types
        return UNKNOWN_LICENCE
    return licence_line(readme) or UNKNOWN_LICENCE
