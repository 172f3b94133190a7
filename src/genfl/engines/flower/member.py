"""A client as a member of secure sums. Its secrets of a sum are in one file, until the sum is open.

Nothing here takes long to import: Flower starts a process for each message.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from genfl.engines.flower.records import KEY_AGREEMENT, NEEDS_ALL, RefusedMessage
from genfl.engines.flower.sum_messages import SumName, SumRequest
from genfl.privacy.secure_sum import (
    ClientState,
    Confirmations,
    Delivery,
    Roster,
    SecureSumError,
    Signer,
    SumParameters,
    Survivors,
    Verifier,
    advertise,
    confirm,
    from_bytes,
    mask_input,
    reveal,
    share_keys,
    state_from_bytes,
    state_to_bytes,
    to_bytes,
)
from genfl.privacy.secure_sum.encoding import Vector
from genfl.privacy.secure_sum.group_key import open_group_key, share_group_key
from genfl.privacy.secure_sum.messages import DEFAULT_NEIGHBOURS
from genfl.storage import digest, locked, read_json, remove, write_private

STATE = "sum.state"
"""The file with the secrets of the sum that is under way."""

GROUP_KEY = "group.key"
"""The file with the key of all clients of a federation, which the server does not have."""

OPENED = "opened.json"
"""The file that says what was opened, by action and round: a digest of the clients and of the content."""

FORGOTTEN = ".forgotten"
"""The end of the name of a file that says that the client forgot a federation. It is empty."""

_LOCK = ".lock"

LOCK_SECONDS = 60.0
"""Seconds to wait for another process of the client."""

NO_PEERS = "federate.secure: this client does not know the other clients' keys; start it with --peers"


def run_folder(folder: Path, run: str) -> Path:
    """Return a client's folder for one federation.

    Raises:
        RefusedMessage: The name of the federation is none, or the client was told to forget it.
    """
    if not re.fullmatch(r"[0-9a-f]{8,64}", run):
        raise RefusedMessage("run: it is no name of a federation")
    if (folder / f"{run}{FORGOTTEN}").exists():
        raise RefusedMessage("run: this client was told to forget this federation; start a new one")
    return folder / run


@dataclass(frozen=True)
class SumMember:
    """A client as it takes part in secure sums.

    A sum that begins replaces one that did not end. Its secrets are new, so nothing links the two. For one
    round, the client opens sums of one set of clients and one content alone: the difference of two sums would
    tell the uploads of single clients.

    Flower answers several messages at once, each in a process. So a state is read, used and replaced under a
    lock.

    Attributes:
        folder: The client's folder.
        number: The client's number.
        signer: Signs as the client's node.
        peers: The public keys of all clients' nodes by number. They come from a source that the server does
            not control.
    """

    folder: Path
    number: int
    signer: Signer
    peers: Mapping[int, Verifier]

    def answer(self, request: SumRequest) -> bytes:
        """Return the client's message for a phase; its state is on the disk before.

        Raises:
            RefusedMessage: The request must not be acted on.
        """
        folder = run_folder(self.folder, request.run)
        try:
            with _held(folder):
                if request.phase == "keys":
                    return self._advertise(folder, request)
                state = _state(folder)
                name = SumName.of(state.parameters.session)
                if name[:3] != (request.run, request.action, request.round):
                    raise RefusedMessage("sum: the one that is under way is of another round")
                if (request.action == KEY_AGREEMENT) != (request.phase in ("draw", "join")):
                    raise RefusedMessage(f"phase: {request.phase} is none of {request.action}")
                match request.phase:
                    case "draw" | "shares":
                        share = share_group_key if request.phase == "draw" else share_keys
                        state, message = share(state, from_bytes(request.payload, Roster), self.peers)
                        _keep(folder, state)
                        return to_bytes(message)
                    case "join":
                        key = open_group_key(state, from_bytes(request.payload, Delivery))
                        write_private(folder / GROUP_KEY, key)
                        remove(folder / STATE, folder)
                        return b""
                    case "confirm":
                        survivors = from_bytes(request.payload, Survivors)
                        _check_opened(folder, name, survivors)
                        state, confirmation = confirm(state, survivors, self.signer)
                        _keep(folder, state)
                        return to_bytes(confirmation)
                    case "reveal":
                        return self._reveal(folder, state, name, request.payload)
        except SecureSumError as error:
            hint = "; compare --peers with the server's --node" if error.code == "signature" else ""
            raise RefusedMessage(f"{error}{hint}") from error

    def mask(
        self, name: SumName, delivery: bytes, words_of: Callable[[SumParameters], Sequence[Vector]]
    ) -> bytes:
        """Return the message with the client's masked upload; its state is on the disk before.

        Args:
            name: What the client is asked for.
            delivery: The server's message.
            words_of: ``(parameters of the sum) -> words`` that the client adds. It refuses a sum that the
                client does not allow.

        Raises:
            RefusedMessage: The request must not be acted on.
        """
        folder = run_folder(self.folder, name.run)
        try:
            with _held(folder):
                state = _state(folder)
                if SumName.of(state.parameters.session) != name:
                    raise RefusedMessage("sum: the one that is under way is of something else")
                if state.phase != "delivery":
                    raise RefusedMessage("sum: the client's upload is not due")
            vectors = words_of(state.parameters)
            with _held(folder):
                if _state(folder) != state:
                    raise RefusedMessage("sum: the client's state has changed since it began to work")
                state, message = mask_input(state, from_bytes(delivery, Delivery), vectors)
                _keep(folder, state)
        except SecureSumError as error:
            raise RefusedMessage(str(error)) from error
        return to_bytes(message)

    def _advertise(self, folder: Path, request: SumRequest) -> bytes:
        if request.client != self.number:
            raise RefusedMessage(
                f"client: the server calls this client {request.client}, and its own key is number"
                f" {self.number} of --peers; give the server the nodes in the order of that file"
            )
        parameters = from_bytes(request.payload, SumParameters)
        if SumName.of(parameters.session)[:3] != (request.run, request.action, request.round):
            raise RefusedMessage("sum: its name is that of another round")
        if parameters.neighbours != DEFAULT_NEIGHBOURS:
            raise RefusedMessage(f"sum: {parameters.neighbours} neighbours, but it is {DEFAULT_NEIGHBOURS}")
        clients, least = len(parameters.clients), parameters.threshold
        if request.action in NEEDS_ALL and not len(self.peers) == clients == least:
            raise RefusedMessage(
                f"sum: {request.action} takes all {len(self.peers)} clients of --peers, but the server asks"
                f" for {least} of {clients}"
            )
        state, message = advertise(parameters, self.number, secrets.token_bytes(32), self.signer)
        _keep(folder, state)
        return to_bytes(message)

    def _reveal(self, folder: Path, state: ClientState, name: SumName, payload: bytes) -> bytes:
        survivors = state.survivors
        state, message = reveal(state, from_bytes(payload, Confirmations), self.peers)
        assert survivors is not None  # else `reveal` was not due
        _check_opened(folder, name, survivors)
        opened = {**_opened(folder), _entry(name): _what(name, survivors)}
        write_private(folder / OPENED, json.dumps(opened).encode())
        remove(folder / STATE, folder)
        return to_bytes(message)


def _held(folder: Path) -> AbstractContextManager[None]:
    """Lock a client's folder of a federation."""
    folder.mkdir(parents=True, exist_ok=True)
    return locked(folder / _LOCK, LOCK_SECONDS)


def _state(folder: Path) -> ClientState:
    """Return the state of the sum that is under way."""
    try:
        return state_from_bytes((folder / STATE).read_bytes())
    except FileNotFoundError:
        raise RefusedMessage("sum: none is under way at this client") from None


def _keep(folder: Path, state: ClientState) -> None:
    write_private(folder / STATE, state_to_bytes(state))


def _opened(folder: Path) -> dict[str, str]:
    file = folder / OPENED
    return dict(read_json(file)) if file.exists() else {}


def _check_opened(folder: Path, name: SumName, survivors: Survivors) -> None:
    """Refuse a second sum of a round that is of other clients, or of something else.

    Raises:
        RefusedMessage: It is.
    """
    if _opened(folder).get(_entry(name)) not in (None, _what(name, survivors)):
        raise RefusedMessage(
            f"sum: round {name.round} was opened already, with other clients or another config; the"
            " difference would tell the uploads of single clients"
        )


def _entry(name: SumName) -> str:
    return f"{name.action}/{name.round}"


def _what(name: SumName, survivors: Survivors) -> str:
    return digest([name.content, survivors.clients])
