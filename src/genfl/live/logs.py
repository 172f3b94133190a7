"""The logs of a federation: for people and for programs, a file each for the server and for each client."""

from __future__ import annotations

import logging
from pathlib import Path

from genfl import journal


def log_to(file: Path) -> None:
    """Append the library's log to a file, besides what receives it already. Once for each file.

    Args:
        file: The file; its folder exists. If it is new, only this user can read it.
    """
    logger = logging.getLogger("genfl")
    logger.setLevel(logging.INFO)
    _append(logger, file, logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))


def journal_to(file: Path) -> None:
    """Append the events of this process to a journal, as `log_to` does with the log.

    A line that a full disk cut off is ended, so that it spoils no other.
    """
    if file.exists() and file.stat().st_size:
        with file.open("rb") as content:
            content.seek(-1, 2)
            ended = content.read() == b"\n"
        if not ended:
            with file.open("ab") as content:
                content.write(b"\n")
    _append(journal.log, file, journal.JournalFormatter())


def _append(logger: logging.Logger, file: Path, formatter: logging.Formatter) -> None:
    if any(getattr(handler, "baseFilename", None) == str(file.absolute()) for handler in logger.handlers):
        return
    file.touch(mode=0o600)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(formatter)
    logger.addHandler(handler)
