"""Messages of a secure sum as Flower's records: those of all phases but the one that carries the uploads."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from flwr.app import ConfigRecord, RecordDict

from genfl.engines.flower.records import (
    ABOUT,
    ACTIONS,
    FORMAT,
    KEY_AGREEMENT,
    RefusedMessage,
    about_of,
    check_answers,
    field,
    int_field,
    short,
)
from genfl.errors import on_one_line

SUM_MESSAGE = "query.sum"
"""The message type in Flower."""

SumPhase = Literal["keys", "shares", "confirm", "reveal", "draw", "join"]
"""What a client is asked for. In a sum: ``keys``, ``shares``, its masked upload, ``confirm``, ``reveal``. For
a key of the group: ``keys``, ``draw``, ``join``."""

_PHASES: tuple[SumPhase, ...] = get_args(SumPhase)

_ACTIONS = (*ACTIONS, KEY_AGREEMENT)


class SumRequest(NamedTuple):
    """A message of the server in a secure sum, to one client.

    Attributes:
        run: The federation.
        action: What the sum is for; see `genfl.engines.flower.wire.ACTIONS`.
        round: The round, from 1.
        client: The client's number.
        phase: What the client is asked for.
        payload: The message, as bytes.
    """

    run: str
    action: str
    round: int
    client: int
    phase: SumPhase
    payload: bytes


class SumReply(NamedTuple):
    """A client's answer to a `SumRequest`.

    Attributes:
        payload: Its message, as bytes; empty if it refused.
        refused: Why it refused; empty if it did not.
    """

    payload: bytes
    refused: str = ""


class SumName(NamedTuple):
    """What a sum is for. It is a part of the sum's session, which all of its clients sign.

    Attributes:
        run: The federation.
        action: What clients are asked to do.
        round: The round, from 1.
        content: The digest of all that they are asked; see `genfl.engines.flower.wire.content_digest`. So no
            client adds zeros because it alone was asked for something else.
    """

    run: str
    action: str
    round: int
    content: str

    def session(self, nonce: str) -> bytes:
        """Return a name that no other sum has."""
        return "/".join([*map(str, self), nonce]).encode()

    @classmethod
    def of(cls, session: bytes) -> SumName:
        """Return what a sum of this session is for.

        Raises:
            RefusedMessage: It is no session of a federation.
        """
        match session.decode(errors="replace").split("/"):
            case [run, action, number, content, _] if action in _ACTIONS and number.isdecimal():
                return cls(run, action, int(number), content)
        raise RefusedMessage("sum: its session is none of a federation")


def sum_request_records(request: SumRequest) -> RecordDict:
    """Return a request as new records."""
    return RecordDict({ABOUT: ConfigRecord({"format": FORMAT, **request._asdict()})})


def read_sum_request(records: RecordDict) -> SumRequest:
    """Return the request of records.

    Raises:
        RefusedMessage: They hold none.
    """
    about = about_of(records)
    action, phase = field(about, "action", str), field(about, "phase", str)
    if action not in _ACTIONS:
        raise RefusedMessage(f"action: there is no {short(action)!r}")
    if phase not in _PHASES:
        raise RefusedMessage(f"phase: there is no {short(phase)!r}")
    return SumRequest(
        field(about, "run", str),
        action,
        int_field(about, "round", 1),
        int_field(about, "client"),
        phase,
        field(about, "payload", bytes),
    )


def sum_reply_records(request: SumRequest | None, reply: SumReply) -> RecordDict:
    """Return a reply as new records.

    Args:
        request: The request; None if it could not be read.
        reply: The reply.
    """
    asked = {} if request is None else request._asdict()
    return RecordDict({ABOUT: ConfigRecord({**asked, "format": FORMAT, **reply._asdict()})})


def read_sum_reply(records: RecordDict, request: SumRequest) -> bytes:
    """Return the message of a reply.

    Args:
        records: The records.
        request: The request that it answers.

    Raises:
        RefusedMessage: They hold no reply, one to another request, or a refusal.
    """
    about = about_of(records)
    if refused := field(about, "refused", str):
        raise RefusedMessage(on_one_line(refused, 300))
    check_answers(about, request, ("run", "action", "round", "client", "phase"))
    return field(about, "payload", bytes)
