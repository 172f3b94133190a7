"""What a client keeps of federations on its own disk: it is listed, and deleted if its owner says so."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from genfl.engines.flower.member import FORGOTTEN
from genfl.errors import InputError, on_one_line
from genfl.journal import JOURNAL, JournalReader
from genfl.live.folders import MEMORY, PROCESSES
from genfl.live.processes import processes_run
from genfl.storage import locked, remove

SHORTEST_NAME = 8
"""The fewest characters by which a federation may be named."""


class KeptFederation(NamedTuple):
    """What a client keeps of one federation: of one method and seed, or of label discovery.

    Attributes:
        name: The name of the federation, which the server gave it.
        purpose: The method, or ``label names``; None if the client's journal does not say.
        round: The last round in which the client answered; 0 before the first.
        answered: When it answered last, as in its journal; None if that does not say.
        bytes: The size on the disk.
    """

    name: str
    purpose: str | None
    round: int
    answered: str | None
    bytes: int


def kept_federations(folder: Path) -> list[KeptFederation]:
    """Return what a client keeps of each federation, that of the last answer at the end.

    Args:
        folder: The client's folder.

    Raises:
        InputError: It is no folder of a client.
    """
    if not (folder / "node.key").exists():
        raise InputError(f"{on_one_line(folder, 200)}: there is no node.key; name the folder of a client")
    last: dict[str, dict[str, Any]] = {}
    purposes: dict[str, str] = {}
    for event in JournalReader(folder / JOURNAL).new():
        if event["event"] != "answered" or "run" not in event:
            continue
        name, action = event["run"], event.get("action")
        last[name] = event
        if event.get("method"):
            purposes[name] = event["method"]
        elif action not in ("census", "train"):
            purposes[name] = "label names"
    kept = []
    for place in (folder / MEMORY).glob("*/"):
        if re.fullmatch(r"[0-9a-f]{8,64}", place.name):
            event = last.get(place.name, {})
            number = event.get("round", 0) if event.get("action") == "train" else 0
            size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
            kept.append(KeptFederation(place.name, purposes.get(place.name), number, event.get("time"), size))
    return sorted(kept, key=lambda one: (one.answered or "", one.name))


def forget_federations(folder: Path, names: Sequence[str]) -> None:
    """Delete what a client keeps of federations. From then on, the client refuses their messages.

    Else it would take part in them without the record of which secure sums it opened.

    Args:
        folder: The client's folder.
        names: The names of the federations, or their beginnings.

    Raises:
        InputError: The client runs, or a name is not that of one federation. Nothing is deleted then.
    """
    known = [kept.name for kept in kept_federations(folder)]
    found = [_named(name, known) for name in names]
    place = on_one_line(folder, 200)
    in_use = InputError(f"--forget: a process uses {place}; end genfl client or genfl deploy there first")
    folder = folder.resolve()
    if any(processes_run(parent / PROCESSES) for parent in (folder, folder.parent)):
        raise in_use
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".lock"))
        except filelock.Timeout:
            raise in_use from None
        for name in found:
            memory = folder / MEMORY
            (memory / f"{name}{FORGOTTEN}").touch(mode=0o600)  # first, in case this ends in between
            remove(memory / name, memory)


def _named(name: str, known: Sequence[str]) -> str:
    """Return the only federation whose name begins so."""
    found = [each for each in known if each.startswith(name)]
    if len(name) < SHORTEST_NAME or len(found) != 1:
        raise InputError(
            f"--forget: {on_one_line(name, 80)!r} names {len(found)} of the {len(known)} federations that are"
            f" kept; give {SHORTEST_NAME} or more characters of one name"
        )
    return found[0]
