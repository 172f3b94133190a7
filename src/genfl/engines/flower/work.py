"""A client's part of an action: it runs the algorithm's program on its data, and sends the upload."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from flwr.app import Message, RecordDict

from genfl import trees
from genfl.algorithms.base import ClientProgram
from genfl.engines.flower.member import NO_PEERS, SumMember
from genfl.engines.flower.node_memory import NodeMemory
from genfl.engines.flower.records import ACTIONS, RefusedMessage, RefusedUpload, tell_answer
from genfl.engines.flower.wire import Reply, Request, read_request, reply_records
from genfl.engines.per_client import PerClientRunner
from genfl.engines.protocol import ClientTask, DataView, ResultTemplates
from genfl.errors import first_line
from genfl.journal import about
from genfl.privacy.secure_sum import SecureSumError, SumParameters
from genfl.privacy.secure_sum.encoding import Vector
from genfl.privacy.secure_sum.fixed_point import SumRange
from genfl.privacy.secure_sum.uploads import UploadCodec
from genfl.threads import one_thread
from genfl.trees import Tree

log = logging.getLogger(__name__)

CANNOT = "upload: it cannot be in the sum; the client's log says why"
"""What a server of secure sums learns of an upload that is refused."""


class NodeWork(NamedTuple):
    """What a node needs to answer a request.

    Attributes:
        program: The program that the request asks for.
        data: The client's data.
        client: The client's number in these data, which may hold this client alone.
        fast: Whether steps may be recorded and replayed.
        range: The numbers of a secure sum; None if the upload is sent in the clear.
        check_sum: Refuses the parameters of a secure sum that the client does not allow.
    """

    program: ClientProgram
    data: DataView
    client: int
    fast: bool = False
    range: SumRange | None = None
    check_sum: Callable[[SumParameters], None] = lambda parameters: None


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


def answer(
    message: Message, site_of: Callable[[], Site], member_of: Callable[[], SumMember | None]
) -> RecordDict:
    """Return the reply to a request. An error is no reason to say nothing: the server would wait.

    Args:
        message: The message with the request.
        site_of: Returns the site of the node that the message reached.
        member_of: Returns the node as a member of secure sums; None if it takes part in none.
    """
    begin = time.monotonic()
    try:
        request = read_request(message.content)
        if message.metadata.message_type != ACTIONS[request.action]:
            raise RefusedMessage(f"action: {request.action} in a message of {message.metadata.message_type}")
    except RefusedMessage as error:
        log.error("a message was refused: %s", error)
        return reply_records(Reply("", "", 0, 0, None, str(error)))
    reply = _answer(request, site_of, member_of)
    records = reply_records(reply)
    run, action, number, client, *_ = request
    method, phase = request.settings.get("method"), None if request.delivery is None else "upload"
    with about(
        run=run, action=action, round=number, client=client, phase=phase, method=method and str(method)
    ):
        tell_answer(reply.refused, records, time.monotonic() - begin)
    return records


def _answer(
    request: Request, site_of: Callable[[], Site], member_of: Callable[[], SumMember | None]
) -> Reply:
    answered = Reply(request.run, request.action, request.round, request.client, None)
    secretly = request.delivery is not None
    try:
        site = site_of()
        if request.delivery is not None:
            answered = answered._replace(masked=_masked(request, request.delivery, site, member_of()))
        else:
            work = site.work(request)
            if work.range is not None:
                raise RefusedMessage("federate.secure: the server asks for an upload in the clear")
            answered = answered._replace(samples=_samples(request, work))  # also if the upload is refused
            answered = answered._replace(upload=_upload(request, site, work))
        log.info("%s of round %d: answered", request.action, request.round)
        return answered
    except RefusedMessage as error:
        log.error("%s of round %d was refused: %s", request.action, request.round, error)
        return answered._replace(
            refused=CANNOT if secretly and isinstance(error, RefusedUpload) else str(error)
        )
    except Exception as error:  # its text may name private data, so it stays here
        log.exception("%s of round %d failed", request.action, request.round)
        kind = type(error).__name__
        log.error("%s of round %d failed: %s: %s", request.action, request.round, kind, first_line(error))
        return answered._replace(
            refused=CANNOT if secretly else f"it failed with {kind}; the client's log says why"
        )


def _masked(request: Request, delivery: bytes, site: Site, member: SumMember | None) -> bytes:
    """Run the client's work, and return its message of the secure sum.

    Raises:
        RefusedMessage: The request must not be acted on, or the upload must not be sent.
    """
    if member is None:
        raise RefusedMessage(NO_PEERS)

    def words_of(parameters: SumParameters) -> Sequence[Vector]:
        work = site.work(request)
        if work.range is None:
            raise RefusedMessage(
                "federate.secure: the server asks for a secure sum, but its config sets none"
            )
        work.check_sum(parameters)
        summed = in_sum(_upload(request, site, work), _samples(request, work))
        try:
            return UploadCodec(summed, len(parameters.clients), work.range).encode(summed)
        except SecureSumError as error:
            raise RefusedUpload(f"{error.reason} (federate.secure.limit)") from None

    return member.mask(request.sum_name, delivery, words_of)


def _samples(request: Request, work: NodeWork) -> int:
    """Return how many samples the client trains on, with repetitions."""
    if request.batches is None:
        return 0
    return request.batches.samples(work.data.part_sizes(work.client))


def in_sum(upload: Tree, samples: int) -> Tree:
    """Return all that a client adds to a secure sum: its upload, and how many samples it trained on."""
    return {"upload": upload, "samples": torch.tensor([samples])}


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
        raise RefusedUpload(f"upload: {why}")
    upload, after = trees.apart(results.upload, 1)[0], trees.apart(results.memory, 1)[0]
    if memory:
        memory.after(request, after)
    return upload
