"""Errors that a user can act on."""

from __future__ import annotations

import difflib

LONGEST_REASON = 300
"""The most characters that a message shows of another one."""

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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened; the name of its type if it is empty."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} ..."
