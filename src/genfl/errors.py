"""Errors that a user can act on."""

from __future__ import annotations

import difflib
import traceback
from pathlib import Path

RENAMED = {"key": "client_id"}
"""Config fields that had another name before, by their old name."""


class GenflError(Exception):
    """A failure that the user did not cause; the command ends with exit code 1."""


class InputError(GenflError, ValueError):
    """A wrong input; the command ends with exit code 2.

    The message has one line for each problem, which names the field and the fix.
    """


def suggest(name: str, known: list[str]) -> str:
    """Return a hint for an unknown name: the known name that is closest, or all known names.

    Args:
        name: The name that is unknown.
        known: The names that would have been accepted.
    """
    if RENAMED.get(name) in known:
        return f"did you mean {RENAMED[name]!r}?"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there are no keys to set here"


def cause(error: BaseException) -> str:
    """Return one line that says what failed, and where in code that is not a library's.

    Args:
        error: An error of a user's own method, model or data, or of a library below it.
    """
    if isinstance(error, GenflError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    line = f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__
    package = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not {"site-packages", "dist-packages"} & set(Path(frame.filename).parts) and not (
            frame.filename.startswith((package, "<frozen"))
        ):
            return f"{line} (in {frame.name}, {Path(frame.filename).name}:{frame.lineno})"
    return line
