"""A finished federation, for all tests that look at what it left. Those that change it copy its folder."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from support.sites import prepare, serve_in_process


class Served(NamedTuple):
    """The folder of a federation, and when it began and ended."""

    folder: Path
    begin: datetime
    end: datetime


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """Two methods with uploads in the clear. Client 1 fails in round 2 of each."""
    pytest.importorskip("flwr")
    from flwr.app import Error, Message

    from genfl.engines.flower.in_process import InProcessGrid

    class FailingGrid(InProcessGrid):
        def deliver(self, message):
            about = message.metadata
            if (about.dst_node_id, about.message_type, about.group_id) == (1001, "train.train", "2"):
                return Message(Error(code=2, reason="no memory"), reply_to=message)
            return super().deliver(message)

    folder = tmp_path_factory.mktemp("served")
    prepare(folder, "federate.quorum=1")
    begin = datetime.now(UTC)
    serve_in_process(folder, FailingGrid)
    return Served(folder, begin, datetime.now(UTC))
