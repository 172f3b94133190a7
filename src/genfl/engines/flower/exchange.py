"""Messages to clients over Flower's Grid, and their replies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from genfl.engines.flower.records import content_bytes
from genfl.errors import on_one_line
from genfl.journal import tell

WAITING = 60.0
"""Seconds after which the journal says again that the server waits."""


_EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""The errors by which a SuperLink answers when the time of a message is over. They have other causes, too."""


class GridExchange(NamedTuple):
    """What carries messages to clients.

    Attributes:
        grid: Flower's Grid.
        nodes: The node of each client, by its number.
        deadline: Seconds that the server waits for replies.
        pause: Seconds between two looks for replies, at most.
    """

    grid: Grid
    nodes: Sequence[int]
    deadline: float = math.inf
    pause: float = 1.0

    def __call__(
        self,
        records: Mapping[int, RecordDict],
        message_type: str,
        group: str,
        take: Callable[[int, RecordDict], None],
    ) -> dict[int, str]:
        """Send each client a message, and wait for the replies.

        Args:
            records: The content of the messages, by client.
            message_type: The message type in Flower.
            group: The name of the group of messages in Flower.
            take: ``(client, content)`` takes a reply when it arrives.

        Returns:
            Why others did not reply, by client.
        """
        silent: dict[int, str] = {}
        ttl = self.deadline if math.isfinite(self.deadline) else None
        created = time.monotonic()  # a SuperLink counts the time of a message from here
        late = f"it did not answer within {self.deadline:g} s (federate.deadline)"
        online = set(self.grid.get_node_ids())
        messages, sent = [], []
        for client, content in records.items():
            node = self.nodes[client]
            if node not in online:
                silent[client] = "it is offline"
                continue
            messages.append(Message(content, node, message_type, ttl=ttl, group_id=group))
            sent.append(client)
            tell("sent", client=client, bytes=content_bytes(content))
        begin = told = time.monotonic()
        end = begin + self.deadline
        waiting: dict[str, int] = {}
        for identifier, client in zip(self.grid.push_messages(messages), sent, strict=True):
            if identifier is None:
                silent[client] = "its message was not taken"
            else:
                waiting[identifier] = client
        del messages
        pause = min(0.02, self.pause)
        while waiting:
            for message in self.grid.pull_messages(list(waiting)):
                answered = waiting.pop(message.metadata.reply_to_message_id, None)
                if answered is None:
                    continue
                if message.has_error():
                    over = time.monotonic() >= created + self.deadline and message.error.code in _EXPIRED
                    why = f"its node failed: {on_one_line(message.error.reason, 120)}"
                    silent[answered] = late if over else why
                else:
                    size, seconds = content_bytes(message.content), time.monotonic() - begin
                    tell("answered", client=answered, bytes=size, seconds=seconds)
                    take(answered, message.content)
            if waiting and time.monotonic() >= end:
                break
            if waiting and time.monotonic() >= told + WAITING:
                told = time.monotonic()
                tell("waiting", clients=len(waiting), seconds=told - begin)
            if waiting:
                time.sleep(min(pause, max(0.0, end - time.monotonic())))
                pause = min(2 * pause, self.pause)
        for client in waiting.values():
            silent[client] = late
        for client, why in silent.items():
            tell("unanswered", client=client, reason=why)
        return silent
