"""The client's side: one ClientApp for every algorithm.

Flower starts a process for each message. So what takes long to import is imported for those messages alone
that need it: the phases of a secure sum need no model and no data.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from genfl.engines.flower.member import NO_PEERS, SumMember
from genfl.engines.flower.records import ACTIONS, RefusedMessage, tell_answer
from genfl.engines.flower.sum_messages import (
    SUM_MESSAGE,
    SumReply,
    SumRequest,
    read_sum_request,
    sum_reply_records,
)
from genfl.errors import first_line
from genfl.journal import about

if TYPE_CHECKING:
    from genfl.engines.flower.work import Site

log = logging.getLogger(__name__)


def no_member(context: Context) -> SumMember | None:
    """Return None: the client takes part in no secure sum."""
    return None


def build_client_app(
    site_of: Callable[[Context], Site], member_of: Callable[[Context], SumMember | None] = no_member
) -> ClientApp:
    """Return the ClientApp that answers all requests of a federation.

    Args:
        site_of: ``(context) -> site`` of the node that a message reaches.
        member_of: ``(context) -> member`` of secure sums; None if the node takes part in none.
    """
    app = ClientApp()
    decorators = {"query": app.query, "train": app.train, "evaluate": app.evaluate}

    def handle(message: Message, context: Context) -> Message:
        from genfl.engines.flower.work import answer

        records = answer(message, lambda: site_of(context), lambda: member_of(context))
        return Message(records, reply_to=message)

    def handle_sum(message: Message, context: Context) -> Message:
        begin = time.monotonic()
        request, reply = _answer_sum(message, lambda: member_of(context))
        records = sum_reply_records(request, reply)
        if request is not None:
            run, action, number, client, phase, _ = request
            with about(run=run, action=action, round=number, client=client, phase=phase):
                tell_answer(reply.refused, records, time.monotonic() - begin)
        return Message(records, reply_to=message)

    handlers = dict.fromkeys(ACTIONS.values(), handle) | {SUM_MESSAGE: handle_sum}
    for message_type, handler in handlers.items():
        category, action = message_type.split(".")
        decorators[category](action)(handler)
    return app


def _answer_sum(
    message: Message, member_of: Callable[[], SumMember | None]
) -> tuple[SumRequest | None, SumReply]:
    """Return a request of a secure sum, and the reply to it."""
    request: SumRequest | None = None
    try:
        request = read_sum_request(message.content)
        member = member_of()
        if member is None:
            raise RefusedMessage(NO_PEERS)
        payload = member.answer(request)
        log.info("secure sum of round %d, %s: answered", request.round, request.phase)
        return request, SumReply(payload)
    except RefusedMessage as error:
        what = "a message" if request is None else f"secure sum of round {request.round}, {request.phase}"
        log.error("%s: refused: %s", what, error)
        return request, SumReply(b"", str(error))
    except Exception as error:  # its text may name private data, so it stays here
        log.exception("a secure sum failed")
        log.error("a secure sum failed: %s: %s", type(error).__name__, first_line(error))
        return request, SumReply(b"", f"it failed with {type(error).__name__}; the client's log says why")
