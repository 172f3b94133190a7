"""Trackers on a thread of their own, so that a slow or broken one neither stops nor slows a run."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

from genfl.errors import first_line, without_secrets
from genfl.tracking.events import Tracker
from genfl.tracking.series import Ending, Kind, Row, Series

log = logging.getLogger(__name__)

MOST_WAITING = 10_000
"""Calls that may wait for a tracker. More are dropped; the next start of the run sends what is missing."""

RETRY_SECONDS = 10.0
"""Time between two attempts to send what could not be sent."""

CLOSE_SECONDS = 10.0
"""How long the end of a run waits for a tracker that has failed before, or has never worked."""

CATCH_UP_SECONDS = 60.0
"""How long the end of a run waits for a tracker that works, as it may have much to catch up on."""

REMEDY = "the run goes on, and metrics.jsonl has all figures; the same command sends what is missing"


class Sink(Tracker, Protocol):
    """A tracker that may hold back what it is told, and may raise anything."""

    def flush(self) -> None:
        """Connect first, then send what waits. After a failure it still waits, and this is called again."""

    def close(self) -> None:
        """Give up what is left. This is called at the end, on the thread of the run."""


class BackgroundTracker:
    """A tracker that works on a thread. The first failure is a warning; later ones are silent.

    Args:
        field: The field of the config that names it, for messages.
        tracker: The tracker.
    """

    def __init__(self, field: str, tracker: Sink) -> None:
        self._field, self._tracker, self._warned, self._works = field, tracker, False, False
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name=field, daemon=True)
        self._thread.start()

    def keep(self, kind: Kind, current: Collection[Series]) -> None:
        """See `genfl.tracking.events.Tracker.keep`."""
        series = set(current)
        self._put(lambda: self._tracker.keep(kind, series))

    def history(self, series: Series, rows: Sequence[Row]) -> None:
        """See `genfl.tracking.events.Tracker.history`."""
        so_far = list(rows)
        self._put(lambda: self._tracker.history(series, so_far))

    def row(self, series: Series, row: Row) -> None:
        """See `genfl.tracking.events.Tracker.row`."""
        self._put(lambda: self._tracker.row(series, row))

    def stage(self, name: str, state: Literal["started", "finished"], seconds: float | None) -> None:
        """See `genfl.tracking.events.Tracker.stage`."""
        self._put(lambda: self._tracker.stage(name, state, seconds))

    def finish(self, summary: Mapping[str, Any] | None, ending: Ending) -> None:
        """Send what waits, but wait no longer than `CLOSE_SECONDS` or `CATCH_UP_SECONDS`."""
        self._put(lambda: self._tracker.finish(summary, ending))
        self._put(None)
        self._ended.set()
        limit = CLOSE_SECONDS
        self._thread.join(limit)
        if self._works and not self._warned:
            limit = CATCH_UP_SECONDS
            self._thread.join(limit - CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"it was not done within {limit:g} s")
        self._tracker.close()

    def _put(self, call: Callable[[], None] | None) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._warn(f"{MOST_WAITING} figures wait for it, and more are dropped")

    def _work(self) -> None:
        """Connect, make the calls in order, and flush when none waits; after a failure, only now and then."""
        next_flush, working = self._flush(), True
        while working:
            try:
                call = self._calls.get(timeout=RETRY_SECONDS)
            except queue.Empty:
                working = not self._ended.is_set()  # the end itself may have found no room
            else:
                working = call is not None
                if call is not None:
                    self._try(call)
            if not working or (self._calls.empty() and time.monotonic() >= next_flush):
                next_flush = self._flush()

    def _flush(self) -> float:
        """Flush, and return the earliest time of the next flush."""
        if not self._try(self._tracker.flush):
            return time.monotonic() + RETRY_SECONDS
        self._works = True
        return 0.0

    def _try(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # a tracker can raise anything
            self._warn(f"{type(error).__name__}: {first_line(error, without_secrets)}")
            return False
        return True

    def _warn(self, why: str) -> None:
        if not self._warned:
            log.warning("%s: %s; %s", self._field, why, REMEDY)
        self._warned = True
