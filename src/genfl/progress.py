"""Progress with rate and time left: a bar on a terminal, elsewhere a line a minute in the log."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two lines of the log."""

enabled: ContextVar[bool] = ContextVar("enabled", default=True)
"""Set to False to silence all progress of this context, as ``--json`` does."""

Advance = Callable[[int], None]


@contextlib.contextmanager
def bar(what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Shows a bar while the block runs.

    Args:
        what: The words in front of the bar.
        total: How many units make it full.
        unit: What is counted, in the plural: ``samples``.
        done: Units finished before, by an earlier run that was interrupted.

    Yields:
        A function to call with the number of units just finished.
    """
    if not enabled.get():
        yield lambda amount: None
        return
    if not sys.stderr.isatty():
        yield _lines(what, total, unit, done)
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
    # rich forgets what is older: the time between two units must be shorter for there to be a rate
    with Progress(
        *columns, console=Console(stderr=True), transient=True, speed_estimate_period=3600
    ) as progress:
        task = progress.add_task(what, total=total, completed=done, rate="")
        progress.advance(task, 0)  # the rate counts from here

        def advance(amount: int) -> None:
            progress.advance(task, amount)
            speed = progress.tasks[0].speed
            if speed is not None:
                progress.update(task, rate=f"{speed:.3g}/s")

        yield advance


def _lines(what: str, total: int, unit: str, done: int) -> Advance:
    """Returns what logs a line when `EVERY` seconds are over since the last."""
    told, then, now = time.monotonic(), done, done

    def advance(amount: int) -> None:
        nonlocal told, then, now
        now += amount
        seconds = time.monotonic() - told
        if seconds < EVERY or now in (then, total):
            return
        speed = (now - then) / seconds  # of late: what an earlier run did comes in the beginning, all at once
        told, then = told + seconds, now
        minutes = max(1, round((total - now) / speed / 60))
        log.info("%s: %d of %d %s, %.3g/s, %d min left", what, now, total, unit, speed, minutes)

    return advance
