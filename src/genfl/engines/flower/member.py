"""A client as a member of secure sums. Its secrets of a sum are in one file, until the sum is open.

Nothing here takes long to import: Flower starts a process for each message.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from genfl.engines.flower.records import NEEDS_ALL, RefusedMessage
from genfl.engines.flower.sum_messages import SumRequest, sum_name
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
from genfl.storage import digest, read_json, remove, write_json, write_private

STATE = "sum.state"
"""The file with the secrets of the sum that is under way."""

OPENED = "opened.json"
"""The file that says of which clients a sum was opened, by action and round."""


NO_PEERS = "federate.secure: this client does not know the other clients' keys; start it with --peers"


def run_folder(folder: Path, run: str) -> Path:
    """Return a client's folder for one federation.

    Raises:
        RefusedMessage: The name of the federation is none.
    """
    if not re.fullmatch(r"[0-9a-f]{8,64}", run):
        raise RefusedMessage("run: it is no name of a federation")
    return folder / run


@dataclass(frozen=True)
class SumMember:
    """A client as it takes part in secure sums.

    A sum that begins replaces one that did not end. Its secrets are new, so nothing links the two. For one
    round, the client opens sums of one and the same set of clients alone: the difference of two sets would
    tell the uploads of single clients.

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
            match request.phase:
                case "keys":
                    return self._advertise(folder, request)
                case "shares":
                    state = self._state(folder, request.name)
                    roster = from_bytes(request.payload, Roster)
                    state, message = share_keys(state, roster, self.peers)
                    _keep(folder, state)
                    return to_bytes(message)
                case "confirm":
                    return self._confirm(folder, request)
                case "reveal":
                    return self._reveal(folder, request)
        except SecureSumError as error:
            raise RefusedMessage(str(error)) from error

    def mask(
        self,
        run: str,
        action: str,
        round_number: int,
        delivery: bytes,
        words_of: Callable[[SumParameters], Sequence[Vector]],
    ) -> bytes:
        """Return the message with the client's masked upload; its state is on the disk before.

        Args:
            run: The federation.
            action: What the sum is for.
            round_number: The round.
            delivery: The server's message.
            words_of: ``(parameters of the sum) -> words`` that the client adds. It refuses a sum that the
                client does not allow.

        Raises:
            RefusedMessage: The request must not be acted on.
        """
        folder = run_folder(self.folder, run)
        try:
            state = self._state(folder, sum_name(run, action, round_number))
            vectors = words_of(state.parameters)
            state, message = mask_input(state, from_bytes(delivery, Delivery), vectors)
        except SecureSumError as error:
            raise RefusedMessage(str(error)) from error
        _keep(folder, state)
        return to_bytes(message)

    def _advertise(self, folder: Path, request: SumRequest) -> bytes:
        if request.client != self.number:
            raise RefusedMessage(
                f"client: the server calls this client {request.client}, and its own key is number"
                f" {self.number} of --peers; give the server the nodes in the order of that file"
            )
        parameters = from_bytes(request.payload, SumParameters)
        if not parameters.session.startswith(request.name):
            raise RefusedMessage("sum: its name is that of another round")
        if (
            request.action in NEEDS_ALL
            and not len(self.peers) == len(parameters.clients) == parameters.threshold
        ):
            raise RefusedMessage(
                f"sum: {request.action} takes all {len(self.peers)} clients of --peers, but the server asks"
                f" for {parameters.threshold} of {len(parameters.clients)}"
            )
        state, message = advertise(parameters, self.number, secrets.token_bytes(32), self.signer)
        _keep(folder, state)
        return to_bytes(message)

    def _confirm(self, folder: Path, request: SumRequest) -> bytes:
        state, survivors = self._state(folder, request.name), from_bytes(request.payload, Survivors)
        opened = _opened(folder).get(_entry(request))
        if opened not in (None, digest(survivors.clients)):
            raise RefusedMessage(
                f"sum: round {request.round} was opened already, with other clients; the difference would"
                " tell the uploads of single clients"
            )
        state, message = confirm(state, survivors, self.signer)
        _keep(folder, state)
        return to_bytes(message)

    def _reveal(self, folder: Path, request: SumRequest) -> bytes:
        state = self._state(folder, request.name)
        survivors = state.survivors
        state, message = reveal(state, from_bytes(request.payload, Confirmations), self.peers)
        assert survivors is not None  # else `reveal` was not due
        write_json(folder / OPENED, {**_opened(folder), _entry(request): digest(survivors.clients)})
        remove(folder / STATE, folder)
        return to_bytes(message)

    def _state(self, folder: Path, name: bytes) -> ClientState:
        """Return the state of the sum that is under way."""
        try:
            state = state_from_bytes((folder / STATE).read_bytes())
        except FileNotFoundError:
            raise RefusedMessage("sum: none is under way at this client") from None
        if not state.parameters.session.startswith(name):
            raise RefusedMessage("sum: the one that is under way is of another round")
        return state


def _keep(folder: Path, state: ClientState) -> None:
    write_private(folder / STATE, state_to_bytes(state))


def _opened(folder: Path) -> dict[str, str]:
    file = folder / OPENED
    return dict(read_json(file)) if file.exists() else {}


def _entry(request: SumRequest) -> str:
    return f"{request.action}/{request.round}"
