"""The journal of a federation: each event as one line of JSON, for programs that watch it.

Code that knows of an event calls `tell`. The lines go where `genfl.live.logs.journal_to` sends them. In
simulations, they go nowhere. This module imports nothing slow.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args

from genfl.errors import on_one_line

JOURNAL = "events.jsonl"
"""The file in the folder of a server, and in that of a client."""

EventName = Literal[
    "federation_started",
    "federation_resumed",
    "federation_ended",
    "node_started",
    "node_ended",
    "client_online",
    "client_offline",
    "sent",
    "waiting",
    "answered",
    "unanswered",
    "refused",
    "sum_opened",
    "sum_failed",
    "counted",
    "left_out",
    "round_finished",
    "checkpoint_written",
]

EVENTS: tuple[EventName, ...] = get_args(EventName)
"""All events; see the guide to real federations."""

LONGEST_TEXT = 300
"""The most characters of a text in a line, so that a line is written at once."""

log = logging.getLogger(__name__)
log.propagate = False  # the other logs are for people
log.setLevel(logging.INFO)
log.addHandler(logging.NullHandler())


class EventFields(TypedDict, total=False):
    """What a line says besides its time and its event. A field that is None is left out.

    Attributes:
        run: The name of the federation of one method and seed.
        method: The method.
        seed: The seed.
        action: What clients are asked for, such as ``labels``, ``census`` or ``train``.
        round: The round, from 1.
        client: The client's number.
        phase: The phase of a secure sum.
        clients: How many clients are waited for, or are in a sum.
        seconds: How long it took.
        bytes: The size of a message.
        reason: Why it happened. Nothing private is in it.
    """

    run: str | None
    method: str | None
    seed: int | None
    action: str | None
    round: int | None
    client: int | None
    phase: str | None
    clients: int | None
    seconds: float | None
    bytes: int | None
    reason: str | None


_about: ContextVar[EventFields] = ContextVar("about", default={})  # noqa: B039  (it is never changed)


@contextlib.contextmanager
def about(**fields: Unpack[EventFields]) -> Iterator[None]:
    """Add fields to all events that the block tells."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def tell(event: EventName, **fields: Unpack[EventFields]) -> None:
    """Tell an event, with the fields of the blocks around it; see `about`."""
    log.info(event, extra={"fields": {**_about.get(), **fields}})


class JournalFormatter(logging.Formatter):
    """Writes an event as one line of strict JSON, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of an event."""
        fields: EventFields = record.__dict__["fields"]
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        known = {name: fields.get(name) for name in EventFields.__annotations__}
        content = {name: _plain(value) for name, value in known.items() if value is not None}
        return json.dumps({"time": time, "event": record.getMessage(), **content}, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, str):
        return on_one_line(value, LONGEST_TEXT)
    return round(value, 3) if isinstance(value, float) else value


class JournalReader:
    """Reads a journal as it grows.

    Args:
        file: The journal. It may be missing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the events since the last call. Lines that are damaged or not complete are left out.

        A journal that became shorter was replaced, and is read from its beginning.
        """
        if not self._file.exists():
            return
        with self._file.open("rb") as lines:
            if self._file.stat().st_size < self._read:
                self._read = 0
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and {"time", "event"} <= event.keys():
                        yield event
