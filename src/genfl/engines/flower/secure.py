"""The server's side of secure sums over Flower: it carries the messages, and learns the sum alone."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import RecordDict

from genfl.engines.flower.exchange import GridExchange
from genfl.engines.flower.records import ACTIONS, KEY_AGREEMENT, RefusedMessage
from genfl.engines.flower.sum_messages import (
    SUM_MESSAGE,
    SumName,
    SumPhase,
    SumRequest,
    read_sum_reply,
    sum_request_records,
)
from genfl.engines.flower.wire import Request, read_reply
from genfl.engines.flower.work import in_sum
from genfl.errors import GenflError, first_line
from genfl.journal import about, tell
from genfl.privacy.secure_sum import (
    Advertisement,
    ClientMessage,
    Confirmation,
    Delivery,
    MaskedInput,
    Reveal,
    SealedShares,
    SecureSumError,
    Segment,
    ServerMessage,
    ServerState,
    SumParameters,
    Verifier,
    default_threshold,
    end_phase,
    from_bytes,
    open_sum,
    receive,
    to_bytes,
    unmask,
)
from genfl.privacy.secure_sum.fixed_point import SumRange
from genfl.privacy.secure_sum.uploads import UploadCodec
from genfl.privacy.sum_settings import COUNT_NUMBERS
from genfl.storage import load_tensors, read_json, remove, save_tensors, write_json
from genfl.trees import Tree

log = logging.getLogger(__name__)

_PHASES: tuple[tuple[SumPhase | None, type[ClientMessage]], ...] = (
    ("keys", Advertisement),
    ("shares", SealedShares),
    (None, MaskedInput),  # it comes as the reply to the action itself
    ("confirm", Confirmation),
    ("reveal", Reveal),
)
"""What clients are asked for, and what they answer."""


class SumRules(NamedTuple):
    """How the clients of a federation add their uploads up.

    Attributes:
        verifiers: The public keys of all clients' nodes, by number.
        numbers: Which numbers a sum of uploads carries.
        threshold: The fewest clients whose sum may be opened, more than half of a cohort; None for the
            default.
    """

    verifiers: Mapping[int, Verifier]
    numbers: SumRange
    threshold: int | None = None

    def numbers_of(self, action: str) -> SumRange:
        """Return which numbers a sum of an action carries."""
        return self.numbers if action == "train" else COUNT_NUMBERS

    def least(self, clients: int) -> int:
        """Return the fewest clients of a cohort whose sum may be opened."""
        return default_threshold(clients) if self.threshold is None else min(self.threshold, clients)


class OpenedSum(NamedTuple):
    """The result of a secure sum.

    Attributes:
        upload: The sum of uploads.
        samples: How many samples its clients trained on together.
        clients: The clients in it.
        left_out: Why others are not, by client.
        uplink_bytes: For each name of the upload, the bytes that all of its clients sent.
    """

    upload: Tree
    samples: int
    clients: list[int]
    left_out: dict[int, str]
    uplink_bytes: dict[str, int]


class SumFailed(GenflError):
    """A sum that was not opened.

    Attributes:
        left: How many clients were left.
        left_out: Why others were not, by client.
    """

    def __init__(self, why: str, left: int, left_out: dict[int, str]) -> None:
        super().__init__(why)
        self.left = left
        self.left_out = left_out


def add_securely(
    exchange: GridExchange,
    rules: SumRules,
    requests: Mapping[int, Request],
    like: Tree,
    threshold: int,
    records_of: Callable[[Request], RecordDict],
    only: Collection[int] | None = None,
    on_opening: Callable[[tuple[int, ...]], None] = lambda clients: None,
) -> OpenedSum:
    """Ask clients for their parts of an action, and return the sum of their uploads.

    Args:
        exchange: What carries the messages.
        rules: How uploads are added.
        requests: The requests, by client.
        like: An upload with the right structure, shapes and dtypes.
        threshold: The fewest clients whose sum is opened.
        records_of: Returns a request as records.
        only: The clients of which alone a sum of this round can be opened; None if it can be of any.
        on_opening: Called with the clients in the sum, before they are asked for what opens it.

    Raises:
        SumFailed: Too few clients are left.
    """
    members = tuple(sorted(requests))
    first = requests[members[0]]
    numbers = rules.numbers_of(first.action)
    codec = UploadCodec(in_sum(like, 0), len(members), numbers)
    session = first.sum_name.session(secrets.token_hex(8))
    state = open_sum(SumParameters(session, members, threshold, codec.segments))
    taking = members if only is None else tuple(sorted(only))
    messages: dict[int, ServerMessage] = dict.fromkeys(taking, state.parameters)
    left_out: dict[int, str] = dict.fromkeys(set(members) - set(taking), "a sum without it was being opened")
    packed: dict[int, bytes] = {}  # most clients are sent one and the same message
    begin = time.monotonic()
    try:
        for phase, expected in _PHASES:
            asked: dict[int, Request | SumRequest] = {}
            for client, message in messages.items():
                if id(message) not in packed:
                    packed[id(message)] = to_bytes(message)
                asked[client] = _asked(phase, requests[client], packed[id(message)])

            take = _Receiver(state, asked, expected, rules.verifiers, left_out)
            records = {client: _records(request, records_of) for client, request in asked.items()}
            message_type = SUM_MESSAGE if phase else ACTIONS[first.action]
            with about(phase=phase or "upload"):
                left_out |= exchange(records, message_type, str(first.round), take)
            state = take.state
            if phase == "reveal":
                break
            state, messages = end_phase(state)
            packed = {}
            if phase is None and only is not None and {*messages} != {*only}:
                raise SecureSumError("set", "a client of the sum that was being opened is missing")
            if phase == "confirm" and state.survivors is not None:
                on_opening(state.survivors.clients)
        sums = unmask(state)
    except SecureSumError as error:
        tell("sum_failed", clients=len(state.answers), reason=error.reason)
        raise SumFailed(error.reason, len(state.answers), left_out) from error
    assert state.survivors is not None  # of an opened sum
    clients = list(state.survivors.clients)
    tell("sum_opened", clients=len(clients), seconds=time.monotonic() - begin)
    total = codec.decode(sums)
    plain = UploadCodec(like, len(members), numbers)
    return OpenedSum(
        total["upload"],
        max(0, int(total["samples"])),
        clients,
        {client: why for client, why in left_out.items() if client not in clients},
        {name: len(clients) * plain.nbytes(name) for name in like},
    )


def agree_on_key(exchange: GridExchange, rules: SumRules, run: str, clients: Collection[int]) -> None:
    """Let all clients agree on a key that the server does not learn.

    Args:
        exchange: What carries the messages.
        rules: Whose clients they are.
        run: The federation.
        clients: All clients.

    Raises:
        SumFailed: One of them is missing, or a message is none of the protocol's.
    """
    members = tuple(sorted(clients))
    session = SumName(run, KEY_AGREEMENT, 1, "").session(secrets.token_hex(8))
    state = open_sum(SumParameters(session, members, len(members), (Segment(32, 0),)))
    left_out: dict[int, str] = {}

    def ask(phase: SumPhase, payloads: Mapping[int, bytes]) -> dict[int, bytes]:
        asked = {c: SumRequest(run, KEY_AGREEMENT, 1, c, phase, payload) for c, payload in payloads.items()}
        answers: dict[int, bytes] = {}

        def take(client: int, content: RecordDict) -> None:
            try:
                answers[client] = read_sum_reply(content, asked[client])
            except RefusedMessage as error:
                left_out[client] = str(error)

        records = {client: sum_request_records(request) for client, request in asked.items()}
        with about(run=run, action=KEY_AGREEMENT, round=1, phase=phase):
            left_out.update(exchange(records, SUM_MESSAGE, "1", take))
        if left_out:
            raise SumFailed("a client is missing", len(answers), left_out)
        return answers

    try:
        for answer in ask("keys", dict.fromkeys(members, to_bytes(state.parameters))).values():
            state = receive(state, from_bytes(answer, Advertisement), rules.verifiers)
        state, rosters = end_phase(state)
        drawn = ask("draw", {client: to_bytes(roster) for client, roster in rosters.items()})
        first = from_bytes(drawn[members[0]], SealedShares)
    except SecureSumError as error:
        raise SumFailed(error.reason, 0, left_out) from error
    sealed = dict(first.shares)
    digest = state.parameters.digest
    boxes = {c: ((members[0], sealed[c]),) if c in sealed else () for c in members}
    ask("join", {c: to_bytes(Delivery(digest, c, box)) for c, box in boxes.items()})


class _Receiver:
    """Takes the answers of a phase as they arrive, so that no two uploads are held at once.

    Args:
        state: The sum.
        asked: What clients were asked.
        expected: The class of their messages.
        verifiers: The public keys of clients' nodes.
        left_out: Where the reasons are put why an answer does not count, by client.
    """

    def __init__(
        self,
        state: ServerState,
        asked: Mapping[int, Request | SumRequest],
        expected: type[ClientMessage],
        verifiers: Mapping[int, Verifier],
        left_out: dict[int, str],
    ) -> None:
        self.state = state
        self.asked, self.expected, self.verifiers, self.left_out = asked, expected, verifiers, left_out

    def __call__(self, client: int, content: RecordDict) -> None:
        try:
            answer = from_bytes(_answered(content, self.asked[client]), self.expected)
            if answer.client != client:
                raise RefusedMessage(f"client: the message of {answer.client} came from {client}")
            self.state = receive(self.state, answer, self.verifiers)
        except (RefusedMessage, SecureSumError) as error:
            self.left_out[client] = str(error)
            tell("refused", client=client, reason=str(error))


def _asked(phase: SumPhase | None, request: Request, message: bytes) -> Request | SumRequest:
    if phase is None:
        return request._replace(delivery=message)
    return SumRequest(request.run, request.action, request.round, request.client, phase, message)


def _records(request: Request | SumRequest, records_of: Callable[[Request], RecordDict]) -> RecordDict:
    return records_of(request) if isinstance(request, Request) else sum_request_records(request)


def _answered(content: RecordDict, request: Request | SumRequest) -> bytes:
    if isinstance(request, SumRequest):
        return read_sum_reply(content, request)
    reply = read_reply(content, request)
    if reply.refused or reply.masked is None:
        raise RefusedMessage(reply.refused or "the upload is not masked")
    return reply.masked


class OpenedSums:
    """The sums of rounds that the server's checkpoint does not hold yet: opened ones, and those being opened.

    After an interruption, the server must not ask other clients for these rounds: the difference of two sums
    would tell single uploads, and so clients refuse.

    Args:
        folder: Where they are kept.
        run: The federation.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        self.run = run

    def load(self, round_number: int, asked: list[int]) -> OpenedSum | None:
        """Return the opened sum of a round; None if there is none, or it is damaged.

        Args:
            round_number: The round.
            asked: The clients of its cohort.
        """
        file = self._opened(round_number)
        if not file.exists():
            return None
        try:
            tree, about = load_tensors(file)
        except GenflError as error:
            log.warning("%s; round %d is done again, of the same clients", first_line(error), round_number)
            return None
        if (about["run"], about["asked"]) != (self.run, asked):
            return None
        left_out = {int(client): why for client, why in about["left_out"].items()}
        return OpenedSum(tree["upload"], about["samples"], about["clients"], left_out, about["uplink_bytes"])

    def save(self, round_number: int, asked: list[int], opened: OpenedSum) -> None:
        """Store the opened sum of a round; see `load`."""
        about: dict[str, Any] = {"run": self.run, "asked": asked, **opened._asdict()}
        save_tensors(self._opened(round_number), {"upload": about.pop("upload")}, about)

    def clients_of(self, round_number: int) -> list[int] | None:
        """Return the clients of whom alone a sum of a round can be opened; None if it can be of any."""
        file = self._opening(round_number)
        if not file.exists():
            return None
        about = read_json(file)
        return list(about["clients"]) if about["run"] == self.run else None

    def begin(self, round_number: int, clients: tuple[int, ...]) -> None:
        """Store the clients of the sum of a round, before they are asked for what opens it."""
        write_json(self._opening(round_number), {"run": self.run, "clients": clients})

    def forget(self, finished: int) -> None:
        """Delete what is known of rounds that the server's checkpoint holds.

        Args:
            finished: The last of these rounds.
        """
        for file in self.folder.glob("open*-*.*"):
            if int(file.stem.partition("-")[2]) <= finished:
                remove(file, self.folder)

    def _opened(self, round_number: int) -> Path:
        return self.folder / f"opened-{round_number}.safetensors"

    def _opening(self, round_number: int) -> Path:
        return self.folder / f"opening-{round_number}.json"
