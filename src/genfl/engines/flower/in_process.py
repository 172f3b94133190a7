"""Flower without a network: a Grid that calls the ClientApp in this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from genfl.algorithms.base import ClientProgram
from genfl.engines.flower.member import SumMember
from genfl.engines.flower.node import build_client_app
from genfl.engines.flower.secure import SumRules
from genfl.engines.flower.server import FlowerEngine, RemoteClients, RunName
from genfl.engines.flower.wire import Request
from genfl.engines.flower.work import NodeWork
from genfl.engines.protocol import ClientTask, DataView, ReducerFactory, RoundResult
from genfl.engines.reducers import PlainReducer
from genfl.errors import first_line
from genfl.privacy.secure_sum import NodeSigner, NodeVerifier
from genfl.privacy.secure_sum.fixed_point import SumRange
from genfl.storage import remove
from genfl.trees import Tree

_FIRST_NODE = 1000
"""The id of the first node. Flower's ids are not the numbers of clients."""


class InProcessGrid(Grid):
    """A Grid that runs a ClientApp for each message at once, in this process.

    Flower's own simulation needs Ray, which starts servers and takes 10 s. Replies are kept until they are
    pulled, as on a SuperLink. A client that raises answers with an error, as in Flower.

    Args:
        app: The ClientApp of all nodes.
        clients: The number of clients.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        # Flower sets these in each of its processes. Messages cannot be made without them.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.app = app
        self.contexts = {
            _FIRST_NODE + client: Context(1, _FIRST_NODE + client, {"client": client}, RecordDict(), {})
            for client in range(clients)
        }
        self._replies: dict[str, Message] = {}
        self._sent = itertools.count(1)

    @property
    def run(self) -> Run:
        """Run information. There is none without a SuperLink."""
        raise NotImplementedError("a Grid in one process has no run of Flower's")

    def set_run(self, run: Run) -> None:
        """Set the run, which changes nothing."""

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message; see Flower's `Grid.create_message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes, in the order of client numbers."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages, and keep the replies."""
        identifiers = []
        for message in messages:
            identifier = str(next(self._sent))
            message.metadata.__dict__["_message_id"] = identifier  # as the SuperLink does
            reply = self.deliver(message)
            if reply is not None:
                self._replies[identifier] = reply
            identifiers.append(identifier)
        return identifiers

    def deliver(self, message: Message) -> Message | None:
        """Return the reply of the node that a message is sent to; None if it does not answer."""
        copied = Message(_copy(message.content), metadata=message.metadata)  # type: ignore[call-overload]
        try:
            return self.app(copied, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            return Message(
                Error(code=2, reason=f"{type(error).__name__}: {first_line(error)}"), reply_to=copied
            )

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to messages, each once."""
        return [self._replies.pop(each) for each in list(message_ids) if each in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages and return the replies."""
        return self.pull_messages(self.push_messages(messages))


def _copy(records: RecordDict) -> RecordDict:
    """Return new records with the same content: a real message shares nothing with what was sent."""
    copies: dict[str, Any] = {}
    for name, record in records.items():
        kind: Any = type(record)
        copies[name] = kind(dict(record))
    return RecordDict(copies)


def _client_of(context: Context) -> int:
    return int(context.node_config["client"])


class _LocalSite(NamedTuple):
    """A client whose program and data are in this process."""

    engine: InProcessFlower
    client: int

    @property
    def folder(self) -> Path:
        return self.engine.folder / f"client-{self.client}"

    def work(self, request: Request) -> NodeWork:
        assert self.engine.program is not None
        rules = self.engine.clients.sums
        numbers = None if rules is None else rules.numbers_of(request.action)
        return NodeWork(self.engine.program, self.engine.data, self.client, range=numbers)


class InProcessFlower(FlowerEngine):
    """The engine over Flower with all clients in this process: for tests, and to try a config out.

    Args:
        data: What the clients hold.
        count: The number of clients.
        folder: Where the name of the federation and the clients' folders are.
        initial: The memory of a client that never took part.
        quorum: The fewest clients of a cohort that must answer.
        deadline: Seconds that the server waits for a cohort.
        checkpoint_every: Rounds between the server's checkpoints.
        action: What clients are asked to do.
        reducer: Makes what adds up the uploads of a round.
        grid: The kind of Grid.
        secure: The numbers and the threshold of secure sums; None for uploads in the clear.
    """

    def __init__(
        self,
        data: DataView,
        count: int,
        folder: Path,
        initial: Tree | None = None,
        *,
        quorum: int = 1,
        deadline: float = 60.0,
        checkpoint_every: int = 1,
        action: str = "train",
        reducer: ReducerFactory = PlainReducer,
        grid: type[InProcessGrid] = InProcessGrid,
        secure: tuple[SumRange, int | None] | None = None,
    ) -> None:
        self.data = data
        self.folder = folder
        self.program: ClientProgram | None = None
        self._keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(count if secure else 0)]
        rules: SumRules | None = None
        if secure is not None:
            rules = SumRules({n: NodeVerifier(key.public_key()) for n, key in enumerate(self._keys)}, *secure)
        opened = grid(build_client_app(self._site, self._member), count)
        clients = RemoteClients(
            opened,
            opened.get_node_ids(),
            RunName(folder / "run.json"),
            data.client_info(0),
            quorum,
            deadline,
            checkpoint_every,
            pause=0.01,
            patience=0.01,
            sums=rules,
        )
        super().__init__(clients, action, initial, reducer=reducer)

    def _site(self, context: Context) -> _LocalSite:
        return _LocalSite(self, _client_of(context))

    def _member(self, context: Context) -> SumMember | None:
        rules, client = self.clients.sums, _client_of(context)
        if rules is None:
            return None
        return SumMember(self._site(context).folder, client, NodeSigner(self._keys[client]), rules.verifiers)

    def census(self, program: ClientProgram) -> Tree:
        """Begin a federation; see `FlowerEngine.census`. What clients kept of an earlier one is deleted."""
        for folder in self.folder.glob("client-*"):
            remove(folder, self.folder)
        return super().census(program)

    def perform(self, action: str, program: ClientProgram, tasks: Sequence[ClientTask]) -> RoundResult:
        """Ask each client for its part of an action; see `FlowerEngine.perform`."""
        self.program = program
        return super().perform(action, program, tasks)
