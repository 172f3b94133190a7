"""The server of a secure sum: a state for each sum, and pure functions that answer clients.

The caller keeps the time: it hands over messages as they come, and ends a phase when all clients have
answered, or when it waits no longer. Clients that have not answered by then have dropped out. If too few are
left, the sum fails, and nothing but masked words was seen: another sum with fresh keys can be tried.

Source: Bonawitz et al. 2017, Figure 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from genfl.privacy.secure_sum.client import (
    Circle,
    check_advertisement,
    check_confirmation,
    check_sender,
    commitment,
)
from genfl.privacy.secure_sum.encoding import Vector
from genfl.privacy.secure_sum.masking import apply_masks, pair_mask_key, self_mask_key
from genfl.privacy.secure_sum.messages import (
    Advertisement,
    ClientMessage,
    Confirmation,
    Confirmations,
    Delivery,
    MaskedInput,
    Reveal,
    Roster,
    SealedShares,
    ServerMessage,
    SumParameters,
    Survivors,
)
from genfl.privacy.secure_sum.primitives import SecureSumError, Verifier, agree, public_key
from genfl.privacy.secure_sum.shamir import SHARE_PRIME, recover

MOST_SUBSETS = 500
"""How many subsets of the shares of a secret are tried, if all of them do not give it."""

ServerPhase = Literal["advertisements", "shares", "inputs", "confirmations", "reveals"]
"""The messages of clients that a server waits for."""

_DUE: dict[ServerPhase, type] = {
    "advertisements": Advertisement,
    "shares": SealedShares,
    "inputs": MaskedInput,
    "confirmations": Confirmation,
    "reveals": Reveal,
}


@dataclass(frozen=True)
class ServerState:
    """What a server knows of a sum. Nothing in it is secret from the server.

    Attributes:
        parameters: The sum.
        phase: The messages that are due.
        expected: The clients that may send one.
        answers: The messages of this phase, by client; of `MaskedInput`, without the words.
        circle: The keys of all clients, and who knows whom, from phase ``shares`` on.
        sharers: The clients that shared their secrets, from phase ``inputs`` on.
        total: The sum of masked words, from phase ``inputs`` on.
        survivors: The clients in the sum, from phase ``confirmations`` on.
    """

    parameters: SumParameters
    phase: ServerPhase
    expected: tuple[int, ...]
    answers: Mapping[int, ClientMessage]
    circle: Circle | None = None
    sharers: tuple[int, ...] = ()
    total: tuple[Vector, ...] = ()
    survivors: Survivors | None = None

    @property
    def waiting(self) -> tuple[int, ...]:
        """The clients that have not answered in this phase."""
        return tuple(client for client in self.expected if client not in self.answers)


def open_sum(parameters: SumParameters) -> ServerState:
    """Return the state of a sum that begins; the parameters are sent to all its clients."""
    return ServerState(parameters, "advertisements", parameters.clients, {})


def receive(state: ServerState, message: ClientMessage, verifiers: Mapping[int, Verifier]) -> ServerState:
    """Take a client's message.

    An error leaves the state as it was. The client that sent the message has dropped out, unless it sends a
    good one in time.

    Args:
        state: The sum.
        message: From a client whose connection is authenticated.
        verifiers: Client -> its node's public key.

    Raises:
        SecureSumError: ``another_sum``; ``client``: it does not take part, dropped out earlier, or sent a
            message already; ``phase``; ``signature``; ``shape``: words of other dtypes or sizes; ``set``:
            shares for the wrong clients, or of the wrong owners.
    """
    parameters, client = state.parameters, message.client
    check_sender(parameters, message.digest, client)
    due = _DUE[state.phase]
    if type(message) is not due:
        raise SecureSumError(
            "phase", f"client {client} sent its {type(message).__name__}; {due.__name__} is due"
        )
    if client not in state.expected:
        raise SecureSumError("client", f"client {client} dropped out of this sum")
    if client in state.answers:
        raise SecureSumError("client", f"client {client} sent its {due.__name__} twice")
    total = state.total
    match message:
        case Advertisement():
            check_advertisement(parameters, message, verifiers)
        case SealedShares():
            _check_owners(client, message.shares, _circle(state).ring.neighbours(client))
        case MaskedInput():
            parameters.check_vectors(message.vectors)
            total = tuple(np.add(a, b) for a, b in zip(total, message.vectors, strict=True))
            message = replace(message, vectors=())
        case Confirmation():
            assert state.survivors is not None
            check_confirmation(_circle(state), state.survivors, message, verifiers)
        case Reveal():
            alive, dropped = _owners(state, client)
            _check_owners(client, message.self_shares, alive)
            _check_owners(client, message.key_shares, dropped)
            if any(share >= SHARE_PRIME for _, share in (*message.self_shares, *message.key_shares)):
                raise SecureSumError("share", f"a share of client {client} is out of range")
    return replace(state, answers={**state.answers, client: message}, total=total)


def end_phase(state: ServerState) -> tuple[ServerState, dict[int, ServerMessage]]:
    """End a phase, and return the message for each client that is left.

    Raises:
        SecureSumError: ``threshold``: too few clients are left; ``phase``: the last phase ends with `unmask`.
    """
    parameters, left = state.parameters, tuple(sorted(state.answers))
    _check_left(parameters, left)
    answers = [state.answers[client] for client in left]
    digest = parameters.digest
    messages: dict[int, ServerMessage]
    match state.phase:
        case "advertisements":
            roster = Roster(digest, tuple(a for a in answers if isinstance(a, Advertisement)))
            state = replace(state, phase="shares", circle=Circle(parameters, roster))
            messages = dict.fromkeys(left, roster)
        case "shares":
            inboxes: dict[int, list[tuple[int, bytes]]] = {client: [] for client in left}
            for answer in answers:
                assert isinstance(answer, SealedShares)
                for recipient, sealed in answer.shares:
                    if recipient in inboxes:
                        inboxes[recipient].append((answer.client, sealed))
            zero = tuple(np.zeros(s.size, f"uint{s.bits}") for s in parameters.segments)
            state = replace(state, phase="inputs", sharers=left, total=zero)
            messages = {client: Delivery(digest, client, tuple(box)) for client, box in inboxes.items()}
        case "inputs":
            survivors = Survivors(digest, left)
            state = replace(state, phase="confirmations", survivors=survivors)
            messages = dict.fromkeys(left, survivors)
        case "confirmations":
            signed = Confirmations(digest, tuple(a for a in answers if isinstance(a, Confirmation)))
            state = replace(state, phase="reveals")
            messages = dict.fromkeys(left, signed)
        case "reveals":
            raise SecureSumError("phase", "the last phase of a sum ends with its result")
    return replace(state, expected=left, answers={}), messages


def unmask(state: ServerState) -> tuple[Vector, ...]:
    """Return the sum of the survivors' words, modulo the size of each segment's words.

    Args:
        state: Of phase ``reveals``, with the answers of enough clients.

    Raises:
        SecureSumError: ``threshold``: too few clients answered; ``share``: the shares of a secret are not
            those that its owner shared; ``phase``: the sum is not there yet.
    """
    if state.phase != "reveals" or state.survivors is None:
        raise SecureSumError("phase", f"a sum has no result while its {state.phase} are due")
    _check_left(state.parameters, tuple(state.answers))
    digest, circle = state.parameters.digest, _circle(state)
    self_shares: dict[int, dict[int, int]] = {client: {} for client in state.survivors.clients}
    dropped = sorted(set(state.sharers) - set(state.survivors.clients))
    key_shares: dict[int, dict[int, int]] = {client: {} for client in dropped}
    for client, answer in sorted(state.answers.items()):
        assert isinstance(answer, Reveal)
        for shares, revealed in ((self_shares, answer.self_shares), (key_shares, answer.key_shares)):
            for owner, share in revealed:
                shares[owner][client + 1] = share
    adds: list[bytes] = []
    subtracts: list[bytes] = []
    for owner, shares_of_seed in self_shares.items():
        published = circle.keys[owner].commitment
        seed = _secret(owner, shares_of_seed, circle.share_threshold, commitment, published)
        if seed is None:
            raise SecureSumError("share", f"the shares of client {owner}'s self mask do not fit it")
        subtracts.append(self_mask_key(seed, digest))
    for owner, shares_of_key in key_shares.items():
        neighbours = [n for n in circle.ring.neighbours(owner) if n in self_shares]
        if not neighbours:
            continue
        published = circle.keys[owner].mask_key
        private = _secret(owner, shares_of_key, circle.share_threshold, public_key, published)
        if private is None:
            raise SecureSumError("share", f"the shares of client {owner}'s mask key do not fit it")
        for other in neighbours:
            key = pair_mask_key(agree(private, circle.keys[other].mask_key), digest)
            (subtracts if other < owner else adds).append(key)
    return apply_masks(state.total, adds, subtracts)


def _circle(state: ServerState) -> Circle:
    assert state.circle is not None  # of every phase but the first
    return state.circle


def _secret(
    owner: int,
    shares: Mapping[int, int],
    threshold: int,
    publish: Callable[[bytes], bytes],
    published: bytes,
) -> bytes | None:
    """Return the secret of a client; None if no shares give it.

    So many shares as the threshold give the secret. If some of them are false, others are tried.

    Args:
        owner: The client.
        shares: Point -> share.
        threshold: The fewest shares that give the secret.
        publish: Returns what a client publishes of such a secret.
        published: What this client published.
    """
    if len(shares) < threshold:
        raise SecureSumError(
            "threshold", f"{len(shares)} shares of client {owner} are left, and {threshold} are needed"
        )
    chosen = itertools.combinations(shares, threshold)
    for points in itertools.chain([tuple(shares)], itertools.islice(chosen, MOST_SUBSETS)):
        number = recover({point: shares[point] for point in points})
        if number < 2**256 and publish(secret := number.to_bytes(32, "little")) == published:
            return secret
    return None


def _owners(state: ServerState, client: int) -> tuple[list[int], list[int]]:
    """Return the survivors and the dropped clients whose shares a client holds."""
    assert state.survivors is not None
    holds = {client, *_circle(state).ring.neighbours(client)} & set(state.sharers)
    alive = set(state.survivors.clients)
    return sorted(holds & alive), sorted(holds - alive)


def _check_owners(client: int, shares: Sequence[tuple[int, object]], expected: Sequence[int]) -> None:
    if [owner for owner, _ in shares] != list(expected):
        raise SecureSumError("set", f"client {client} sent shares of other clients than it should")


def _check_left(parameters: SumParameters, clients: Sequence[int]) -> None:
    if len(clients) < parameters.threshold:
        raise SecureSumError(
            "threshold",
            f"{len(clients)} of {len(parameters.clients)} clients are left, and the sum needs"
            f" {parameters.threshold}",
        )
