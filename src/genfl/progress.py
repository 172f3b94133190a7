"""Progress with rate and time left: a bar on a terminal, elsewhere one log line a minute."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from genfl.metering import tick

log = logging.getLogger(__name__)

LOG_INTERVAL = 60.0
"""Seconds between two log lines."""

enabled: ContextVar[bool] = ContextVar("enabled", default=True)
"""Whether progress is shown in this context; ``--json`` sets it to False."""

Advance = Callable[[int], None]
"""Reports the number of units that were just finished."""


@contextlib.contextmanager
def bar(what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show progress while the block runs.

    Args:
        what: The words in front of the bar.
        total: The number of units that fill the bar.
        unit: The name of the units, in the plural: ``samples``.
        done: Units that an earlier, interrupted run finished.

    Yields:
        A function to call with the number of units just finished.
    """
    with _shown(what, total, unit, done) as advance:

        def finished(amount: int) -> None:
            advance(amount)
            tick()

        yield finished


@contextlib.contextmanager
def _shown(what: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    """Yield what shows progress; see `bar`."""
    if not enabled.get():
        yield lambda amount: None
        return
    if not sys.stderr.isatty():
        yield _log_lines(what, total, unit, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    # rich estimates the rate from this period only, so it must be longer than the time between two units
    with Progress(
        *columns, console=Console(stderr=True), transient=True, speed_estimate_period=3600
    ) as progress:
        task = progress.add_task(what, total=total, completed=done, rate="")
        progress.advance(task, 0)  # starts the clock of the rate

        def advance(amount: int) -> None:
            progress.advance(task, amount)
            speed = progress.tasks[0].speed
            if speed is not None:
                progress.update(task, rate=f"{speed:.3g}/s")

        yield advance


def _log_lines(what: str, total: int, unit: str, done: int) -> Advance:
    """Return a function that logs a line when `LOG_INTERVAL` seconds have passed since the last one."""
    logged_at, logged_count, count = time.monotonic(), done, done

    def advance(amount: int) -> None:
        nonlocal logged_at, logged_count, count
        count += amount
        seconds = time.monotonic() - logged_at
        if seconds < LOG_INTERVAL or count in (logged_count, total):
            return
        # the rate since the last line: units of an earlier run are reported at the start, all at once
        speed = (count - logged_count) / seconds
        logged_at, logged_count = logged_at + seconds, count
        minutes = max(1, round((total - count) / speed / 60))
        log.info("%s: %d of %d %s, %.3g/s, %d min left", what, count, total, unit, speed, minutes)

    return advance
