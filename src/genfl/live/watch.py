"""Which clients of a federation are online, told in the server's journal."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

from flwr.serverapp import Grid

from genfl.journal import tell

LOOK_EVERY = 15.0
"""Seconds between two looks at the nodes that are online."""


@contextlib.contextmanager
def watching(grid: Grid, nodes: Sequence[int], seconds: float = LOOK_EVERY) -> Iterator[None]:
    """Tell which clients come online or go offline while the block runs.

    Args:
        grid: Flower's Grid.
        nodes: The node of each client, by its number.
        seconds: The time between two looks.
    """
    over = threading.Event()
    online: set[int] = set()

    def watch() -> None:
        while True:
            with contextlib.suppress(Exception):  # the SuperLink may be away; others find that out
                _tell_changes(online, set(grid.get_node_ids()), nodes)
            if over.wait(seconds):
                return

    thread = threading.Thread(target=watch, name="genfl-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(seconds)


def _tell_changes(before: set[int], now: set[int], nodes: Sequence[int]) -> None:
    """Tell the changes of the nodes that are online, and note them in the set `before`."""
    for client, node in enumerate(nodes):
        if (node in now) != (node in before):
            tell("client_online" if node in now else "client_offline", client=client)
    before.clear()
    before.update(now)
