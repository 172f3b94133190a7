"""Errors that a user can act on."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Callable
from pathlib import Path

LONGEST_REASON = 300
"""The most characters that a message shows of another one."""

LONGEST_LINE = 600
"""The largest number of characters in a line of a message."""

RENAMED = {"key": "client_id"}
"""Config fields that had another name before, by their old name."""


class GenflError(Exception):
    """A failure that the user did not cause; the command ends with exit code 1.

    No line of the message is longer than `LONGEST_LINE`.
    """

    def __str__(self) -> str:
        return "\n".join(shorten(line, LONGEST_LINE) for line in super().__str__().splitlines())


class InputError(GenflError, ValueError):
    """A wrong input; the command ends with exit code 2.

    The message has one line for each problem, which names the field and the fix.
    """


def shorten(text: str, limit: int) -> str:
    """Return a text with at most `limit` characters; the middle of a longer one is left out."""
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def on_one_line(value: object, limit: int = 80) -> str:
    """Return a value as a short text without line breaks or control characters, for a message.

    Args:
        value: The value.
        limit: The largest number of characters.
    """
    text = shorten(str(value), limit)
    return text if text.isprintable() else repr(text)[1:-1]


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


def without_secrets(text: str) -> str:
    """Return a text without the user names, passwords and queries of the addresses in it.

    Args:
        text: The text, or a single address.
    """
    return re.sub(r"\S*[@?]\S*", lambda word: _bare(word[0]), text)


def _bare(address: str) -> str:
    before, mark, rest = address.partition("://") if "://" in address else ("", "", address)
    rest, _, query = rest.partition("?")
    if "@" in query:  # this may be the end of a password with a question mark
        rest = ""
    elif not rest.startswith("/"):
        rest = rest.rpartition("@")[2]
    return before + mark + rest


def first_line(error: BaseException, clean: Callable[[str], str] = str) -> str:
    """Return the first line of an error's message, shortened; the name of its type if it is empty.

    Args:
        error: The error.
        clean: What the message goes through before it is shortened.
    """
    line = (clean(str(error)).strip().splitlines() or [type(error).__name__])[0]
    return shorten(line, LONGEST_REASON)


def cause(error: BaseException) -> str:
    """Return one line that says what failed, and where in code that is not a library's.

    Args:
        error: An error of a user's own method, model or data, or of a library below it.
    """
    if isinstance(error, GenflError):
        return str(error)
    name = type(error).__name__
    line = f"{name}: {first_line(error)}" if str(error).strip() else name
    package = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not {"site-packages", "dist-packages"} & set(Path(frame.filename).parts) and not (
            frame.filename.startswith((package, "<frozen"))
        ):
            return f"{line} (in {frame.name}, {Path(frame.filename).name}:{frame.lineno})"
    return line
