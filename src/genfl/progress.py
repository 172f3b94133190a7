"""Progress bars with rate and time left: on a terminal only, never in machine-readable output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar

enabled: ContextVar[bool] = ContextVar("enabled", default=True)
"""Set to False to silence every bar of this context, as ``--json`` does."""

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
    if not (enabled.get() and sys.stderr.isatty()):
        yield lambda amount: None
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
