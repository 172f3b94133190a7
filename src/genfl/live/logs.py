"""The logs of a federation: a file for the server, and one for each client."""

from __future__ import annotations

import logging
from pathlib import Path


def log_to(file: Path) -> None:
    """Append the library's log to a file, besides what receives it already. Once for each file.

    Args:
        file: The file; its folder exists. If it is new, only this user can read it.
    """
    logger = logging.getLogger("genfl")
    logger.setLevel(logging.INFO)
    if any(getattr(handler, "baseFilename", None) == str(file.absolute()) for handler in logger.handlers):
        return
    file.touch(mode=0o600)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
