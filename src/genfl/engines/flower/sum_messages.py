"""Messages of a secure sum as Flower's records: those of all phases but the one that carries the uploads."""

from __future__ import annotations

from typing import Literal, NamedTuple

from flwr.app import ConfigRecord, RecordDict

from genfl.engines.flower.records import (
    ABOUT,
    FORMAT,
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

SumPhase = Literal["keys", "shares", "confirm", "reveal"]
"""What a client is asked for, in the order of the protocol. Its masked upload comes after ``shares``."""

_PHASES: dict[str, SumPhase] = {
    "keys": "keys",
    "shares": "shares",
    "confirm": "confirm",
    "reveal": "reveal",
}


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

    @property
    def name(self) -> bytes:
        """What the names of sums for this round begin with, so that a client knows what a sum is for."""
        return sum_name(self.run, self.action, self.round)


class SumReply(NamedTuple):
    """A client's answer to a `SumRequest`.

    Attributes:
        payload: Its message, as bytes; empty if it refused.
        refused: Why it refused; empty if it did not.
    """

    payload: bytes
    refused: str = ""


def sum_name(run: str, action: str, round_number: int) -> bytes:
    """Return what the names of all sums for one action in one round begin with."""
    return f"{run}/{action}/{round_number}/".encode()


def sum_request_records(request: SumRequest) -> RecordDict:
    """Return a request as new records."""
    return RecordDict({ABOUT: ConfigRecord({"format": FORMAT, **request._asdict()})})


def read_sum_request(records: RecordDict) -> SumRequest:
    """Return the request of records.

    Raises:
        RefusedMessage: They hold none.
    """
    about = about_of(records)
    phase = field(about, "phase", str)
    if phase not in _PHASES:
        raise RefusedMessage(f"phase: there is no {short(phase)!r}")
    return SumRequest(
        field(about, "run", str),
        field(about, "action", str),
        int_field(about, "round", 1),
        int_field(about, "client"),
        _PHASES[phase],
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
