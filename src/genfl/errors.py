"""Errors that a user can act on."""

from __future__ import annotations

import difflib


class GenflError(Exception):
    """Something failed that the user did not cause; the command ends with exit code 1."""


class InputError(GenflError, ValueError):
    """A wrong input. Its message is one line a problem, naming the field and the fix; exit code 2."""


def suggest(given: str, known: list[str]) -> str:
    """Says which of the known names may have been meant, or which there are."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there are no keys to set here"
