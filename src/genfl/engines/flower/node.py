"""The client's side: one ClientApp for every algorithm."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from genfl import trees
from genfl.algorithms.base import ClientProgram
from genfl.engines.flower.node_memory import NodeMemory
from genfl.engines.flower.wire import (
    ACTIONS,
    RefusedMessage,
    Reply,
    Request,
    read_request,
    reply_records,
)
from genfl.engines.per_client import PerClientRunner
from genfl.engines.protocol import ClientTask, DataView, ResultTemplates
from genfl.errors import first_line
from genfl.threads import one_thread
from genfl.trees import Tree

log = logging.getLogger(__name__)


class NodeWork(NamedTuple):
    """What a node needs to answer a request.

    Attributes:
        program: The program that the request asks for.
        data: The client's data.
        client: The client's number in these data, which may hold this client alone.
        fast: Whether steps may be recorded and replayed.
    """

    program: ClientProgram
    data: DataView
    client: int
    fast: bool = False


class Site(Protocol):
    """A client as Flower's messages find it: its data, and its folder on its own disk.

    Attributes:
        folder: Where its memories are kept.
    """

    @property
    def folder(self) -> Path:
        """The client's folder."""
        ...

    def work(self, request: Request) -> NodeWork:
        """Return what the node needs to answer a request.

        Raises:
            RefusedMessage: The client does not allow it. The text is sent to the server.
            Exception: It cannot. The text stays in the client's log.
        """
        ...


def build_client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """Return the ClientApp that answers all requests of a federation.

    Args:
        site_of: ``(context) -> site`` of the node that a message reaches.
    """
    app = ClientApp()
    decorators = {"query": app.query, "train": app.train, "evaluate": app.evaluate}

    def handle(message: Message, context: Context) -> Message:
        return Message(reply_records(_answer(message, context, site_of)), reply_to=message)

    for message_type in ACTIONS.values():
        category, action = message_type.split(".")
        decorators[category](action)(handle)
    return app


def _answer(message: Message, context: Context, site_of: Callable[[Context], Site]) -> Reply:
    """Return the reply to a message. An error is no reason to say nothing: the server would wait."""
    try:
        request = read_request(message.content)
        if message.metadata.message_type != ACTIONS[request.action]:
            raise RefusedMessage(f"action: {request.action} in a message of {message.metadata.message_type}")
    except RefusedMessage as error:
        log.error("a message was refused: %s", error)
        return Reply("", "", 0, 0, None, str(error))
    answer = Reply(request.run, request.action, request.round, request.client, None)
    try:
        site = site_of(context)
        work = site.work(request)
        if request.batches is not None:
            samples = request.batches.samples(work.data.part_sizes(work.client))
            answer = answer._replace(samples=samples)
        upload = _upload(request, site, work)
        log.info("%s of round %d: answered", request.action, request.round)
        return answer._replace(upload=upload)
    except RefusedMessage as error:
        log.error("%s of round %d was refused: %s", request.action, request.round, error)
        return answer._replace(refused=str(error))
    except Exception as error:  # its text may name private data, so it stays here
        log.exception("%s of round %d failed", request.action, request.round)
        kind = type(error).__name__
        log.error("%s of round %d failed: %s: %s", request.action, request.round, kind, first_line(error))
        return answer._replace(refused=f"it failed with {kind}; the client's log says why")


def _upload(request: Request, site: Site, work: NodeWork) -> Tree:
    """Run the client's work, keep its memory on its disk, and return what it sends.

    Raises:
        RefusedMessage: The request must not be acted on, or the upload must not be sent.
    """
    keeps = request.action == "train"
    memory = NodeMemory(site.folder, request.run) if keeps else None
    before = memory.before(request) if memory else {}
    task = ClientTask(work.client, request.message, before, request.batches, request.key, request.round)
    runner = PerClientRunner(work.data, accelerated=work.fast)
    with one_thread():
        (results,) = runner(work.program, [task], ResultTemplates(work.program, work.data))
    if why := results.refused.get(work.client):
        raise RefusedMessage(f"upload: {why}")
    upload, after = trees.apart(results.upload, 1)[0], trees.apart(results.memory, 1)[0]
    if memory:
        memory.after(request, after)
    return upload
