"""Behaviour of the command line that Python users can switch on: log lines, and threads that wait idly."""

from __future__ import annotations

import logging
import os
import sys

log = logging.getLogger(__name__)


def configure(*, logs: bool = True, idle_threads: bool = True) -> None:
    """Make a Python session behave as the command line does.

    ``import genfl`` does nothing of this. Progress bars are an argument of the functions that show them.

    Args:
        logs: Whether to write genfl's log, from level INFO, to standard error.
        idle_threads: Whether threads that wait should sleep, not spin. Spinning threads slow a run down as
            soon as other programs use the cores. It has an effect only before torch is imported, and a
            warning says so if it comes too late.
    """
    if logs:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger = logging.getLogger("genfl")
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
    if idle_threads and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        if "torch" in sys.modules:
            log.warning("configure: torch is imported already; call it first for idle threads")
