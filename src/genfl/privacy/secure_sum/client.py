"""A client of a secure sum: a state for each sum, and one pure function for each message of the server.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
Figure 4, with the signatures and the consistency check of its version for active servers.

Replace a state by the one that a function returns before the message leaves the client, also on disk. Two
answers from one state could tell the server more than the sum.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from genfl.privacy.secure_sum.encoding import (
    ByteReader,
    Vector,
    choice,
    fields_of,
    fixed_bytes,
    integer,
    optional,
)
from genfl.privacy.secure_sum.masking import (
    Ring,
    apply_masks,
    own_masks,
    pair_mask_key,
    self_mask_key,
)
from genfl.privacy.secure_sum.messages import (
    PARAMETERS_CODEC,
    ROSTER_CODEC,
    SHARE_BYTES,
    SHARES_CODEC,
    SURVIVORS_CODEC,
    Advertisement,
    Confirmation,
    Confirmations,
    Delivery,
    MaskedInput,
    Reveal,
    Roster,
    SealedShares,
    SumParameters,
    Survivors,
)
from genfl.privacy.secure_sum.primitives import (
    SecureSumError,
    Signer,
    Verifier,
    agree,
    derive,
    keystream,
    public_key,
    seal,
    unseal,
)
from genfl.privacy.secure_sum.shamir import SHARE_PRIME, split

ClientPhase = Literal["roster", "delivery", "survivors", "confirmations", "finished"]
"""The message of the server that a client waits for."""

_PHASES: tuple[ClientPhase, ...] = ("roster", "delivery", "survivors", "confirmations", "finished")
_NONCE = bytes(12)  # each key seals one message only
_SHARES = b"genfl shares"
_COEFFICIENT_BYTES = 48  # 16 more than the prime's: reduced, they are uniform up to 2^-127


@dataclass(frozen=True)
class ClientState:
    """What a client knows of a sum. **It is secret**: whoever reads it can unmask the client.

    Attributes:
        parameters: The sum.
        client: The client's id.
        phase: The message of the server that is due.
        entropy: 32 random bytes, from which all secrets of this sum follow.
        roster: The keys of all clients, from phase ``delivery`` on.
        key_shares: ``(owner, share)`` of mask keys, from phase ``survivors`` on.
        self_shares: ``(owner, share)`` of seeds of self masks, from phase ``survivors`` on.
        survivors: The clients in the sum, from phase ``confirmations`` on.
    """

    parameters: SumParameters
    client: int
    phase: ClientPhase
    entropy: bytes
    roster: Roster | None = None
    key_shares: tuple[tuple[int, int], ...] = ()
    self_shares: tuple[tuple[int, int], ...] = ()
    survivors: Survivors | None = None

    def __repr__(self) -> str:
        """Return a text without secrets."""
        return f"ClientState(client={self.client}, phase={self.phase!r})"


def advertise(
    parameters: SumParameters, client: int, entropy: bytes, signer: Signer
) -> tuple[ClientState, Advertisement]:
    """Answer the parameters of a sum with public keys.

    Args:
        parameters: What the server asks for. The caller checks that it has not seen the session before.
        client: The client's id.
        entropy: 32 random bytes, as from ``secrets.token_bytes(32)``: never the same for two sums.
        signer: Signs as the client's node.

    Raises:
        SecureSumError: ``client``: the client does not take part.
        ValueError: There are not 32 bytes of entropy.
    """
    if client not in parameters.members:
        raise SecureSumError("client", f"client {client} does not take part in this sum")
    if len(entropy) != 32:
        raise ValueError(f"a secure sum takes 32 random bytes, not {len(entropy)}")
    state = ClientState(parameters, client, "roster", entropy)
    unsigned = _advertisement(state)
    return state, replace(unsigned, signature=signer.sign(unsigned.signed))


def share_keys(
    state: ClientState, roster: Roster, verifiers: Mapping[int, Verifier]
) -> tuple[ClientState, SealedShares]:
    """Answer the keys of all clients with shares of one's own secrets.

    Args:
        state: Of phase ``roster``.
        roster: From the server.
        verifiers: Client -> its node's public key, from a source that the server does not control.

    Raises:
        SecureSumError: ``threshold``: too few clients; ``set``: the roster is out of order, or this client's
            keys are not in it as they were sent; ``client``: one of it does not belong to the sum;
            ``signature``: one is wrong; ``key``: two clients have the same key, or one is of low order;
            ``phase`` or ``another_sum``: the message is not due.
    """
    check_roster(state, roster, verifiers)
    parameters = state.parameters
    state = replace(state, phase="delivery", roster=roster)
    circle = Circle(parameters, roster)
    shares = _own_shares(state, circle)
    sealed = []
    for other in circle.ring.neighbours(state.client):
        plain = b"".join(share.to_bytes(SHARE_BYTES, "little") for share in shares[other])
        key = pair_channel(state, state.client, other, _SHARES)
        sealed.append((other, seal(key, _NONCE, plain, circle.digest)))
    return state, SealedShares(parameters.digest, state.client, tuple(sealed))


def mask_input(
    state: ClientState, delivery: Delivery, vectors: Sequence[Vector]
) -> tuple[ClientState, MaskedInput]:
    """Answer the shares of one's neighbours with one's masked words.

    Args:
        state: Of phase ``delivery``.
        delivery: From the server.
        vectors: What the client adds: its segments' words. They are not changed.

    Raises:
        SecureSumError: ``share``: one was altered, is of another sum, or for another client; ``set``: a
            sender is no neighbour, or is there twice; ``threshold``: too few are there; ``shape``: the words
            are not those of the segments; ``phase`` or ``another_sum``: the message is not due.
    """
    circle = _circle(state, "delivery", delivery.digest)
    parameters, me = state.parameters, state.client
    parameters.check_vectors(vectors)
    if delivery.client != me:
        raise SecureSumError("client", f"shares for client {delivery.client} came to client {me}")
    senders = [sender for sender, _ in delivery.shares]
    if senders != sorted(set(senders)) or not set(senders) <= set(circle.ring.neighbours(me)):
        raise SecureSumError("set", "shares came from clients that are no neighbours, or twice from one")
    if len(senders) + 1 < circle.share_threshold:
        raise SecureSumError("threshold", f"only {len(senders)} neighbours shared their keys")
    mine = _own_shares(state, circle)[me]
    held = {me: mine}
    for sender, sealed in delivery.shares:
        try:
            plain = unseal(pair_channel(state, sender, me, _SHARES), _NONCE, sealed, circle.digest)
        except SecureSumError as error:
            raise SecureSumError(error.code, f"{error.reason}: that of client {sender}") from error
        held[sender] = (
            int.from_bytes(plain[:SHARE_BYTES], "little"),
            int.from_bytes(plain[SHARE_BYTES:], "little"),
        )
    pair_keys = {
        sender: pair_mask_key(agree(_mask_private(state), circle.keys[sender].mask_key), parameters.digest)
        for sender in senders
    }
    self_key = self_mask_key(_self_seed(state), parameters.digest)
    masked = apply_masks(vectors, *own_masks(me, self_key, pair_keys))
    state = replace(
        state,
        phase="survivors",
        key_shares=tuple((owner, share[0]) for owner, share in sorted(held.items())),
        self_shares=tuple((owner, share[1]) for owner, share in sorted(held.items())),
    )
    return state, MaskedInput(parameters.digest, me, masked)


def confirm(state: ClientState, survivors: Survivors, signer: Signer) -> tuple[ClientState, Confirmation]:
    """Answer the set of clients in the sum with a signature of it. A client signs one set only.

    Args:
        state: Of phase ``survivors``.
        survivors: From the server.
        signer: Signs as the client's node.

    Raises:
        SecureSumError: ``threshold``: the sum would be of too few clients; ``set``: this client is missing,
            or a client is there that did not share its keys; ``phase``: the server shows a second set, or the
            message is not due for another reason; ``another_sum``: it is not of this sum.
    """
    circle = _circle(state, "survivors", survivors.digest)
    _check_ids(state.parameters, survivors.clients)
    if state.client not in survivors.clients:
        raise SecureSumError("set", "the server left this client out of the sum, though it sent its words")
    strangers = set(survivors.clients) - circle.keys.keys()
    holders = {owner for owner, _ in state.key_shares}
    strangers |= (set(circle.ring.neighbours(state.client)) & set(survivors.clients)) - holders
    if strangers:
        raise SecureSumError("set", f"client {min(strangers)} is in the sum, but did not share its keys")
    state = replace(state, phase="confirmations", survivors=survivors)
    signature = signer.sign(confirmed(circle, survivors))
    return state, Confirmation(state.parameters.digest, state.client, signature)


def reveal(
    state: ClientState, confirmations: Confirmations, verifiers: Mapping[int, Verifier]
) -> tuple[ClientState, Reveal]:
    """Answer enough signatures of the same set with the shares that open the sum.

    Args:
        state: Of phase ``confirmations``.
        confirmations: From the server.
        verifiers: As for `share_keys`.

    Raises:
        SecureSumError: ``threshold``: too few clients signed; ``signature``: one signed another set, or not
            at all; ``set``: one that is not in the sum signed, or one signed twice; ``phase`` or
            ``another_sum``: the message is not due.
    """
    circle = _circle(state, "confirmations", confirmations.digest)
    survivors = state.survivors
    assert survivors is not None  # of this phase
    signers = [confirmation.client for confirmation in confirmations.confirmations]
    _check_ids(state.parameters, signers)
    if not set(signers) <= set(survivors.clients):
        raise SecureSumError("set", "a client that is not in the sum signed it")
    for confirmation in confirmations.confirmations:
        check_confirmation(circle, survivors, confirmation, verifiers)
    inside = set(survivors.clients)
    message = Reveal(
        state.parameters.digest,
        state.client,
        self_shares=tuple((owner, share) for owner, share in state.self_shares if owner in inside),
        key_shares=tuple((owner, share) for owner, share in state.key_shares if owner not in inside),
    )
    finished = ClientState(state.parameters, state.client, "finished", bytes(32))  # no secrets are left
    return finished, message


def check_roster(state: ClientState, roster: Roster, verifiers: Mapping[int, Verifier]) -> None:
    """Check the keys of all clients, when they are due.

    Raises:
        SecureSumError: See `share_keys`.
    """
    check_due(state, "roster", roster.digest)
    ids = [advertisement.client for advertisement in roster.advertisements]
    _check_ids(state.parameters, ids)
    mine = _advertisement(state)
    for advertisement in roster.advertisements:
        check_advertisement(state.parameters, advertisement, verifiers)
        if advertisement.client == state.client and advertisement.signed != mine.signed:
            raise SecureSumError("set", "the server shows others keys that this client did not send")
    if state.client not in ids:
        raise SecureSumError("set", "the server left this client out of the roster")
    keys = [key for a in roster.advertisements for key in (a.channel_key, a.mask_key)]
    if len(set(keys)) < len(keys):
        raise SecureSumError("key", "two clients advertise the same key")


class Circle:
    """Who knows whom in a sum: it follows from the parameters and the roster.

    Args:
        parameters: The sum.
        roster: The keys of all clients that take part.

    Attributes:
        digest: 32 bytes that stand for both; what shares and signatures are bound to.
        keys: Client -> its keys.
        ring: The clients with whom each one shares masks and secrets.
        share_threshold: The fewest shares that give a secret: the part of all holders (the neighbours and the
            owner) that the sum's threshold is of all clients.
    """

    def __init__(self, parameters: SumParameters, roster: Roster) -> None:
        self.digest = roster.fingerprint
        self.keys = roster.keys
        self.ring = Ring(self.keys.keys(), self.digest, parameters.neighbours)
        holders = min(len(parameters.clients), parameters.neighbours + 1)
        self.share_threshold = holders * (parameters.threshold - 1) // len(parameters.clients) + 1


def check_advertisement(
    parameters: SumParameters, advertisement: Advertisement, verifiers: Mapping[int, Verifier]
) -> None:
    """Check a client's keys and their signature.

    Raises:
        SecureSumError: ``another_sum``, ``client``, ``signature``, or ``key``: both keys are the same.
    """
    check_sender(parameters, advertisement.digest, advertisement.client)
    if advertisement.channel_key == advertisement.mask_key:
        raise SecureSumError("key", f"client {advertisement.client} advertises the same key twice")
    _verify(advertisement.client, advertisement.signature, advertisement.signed, verifiers)


def check_confirmation(
    circle: Circle, survivors: Survivors, confirmation: Confirmation, verifiers: Mapping[int, Verifier]
) -> None:
    """Check that a client signed the roster and the survivors.

    Raises:
        SecureSumError: ``another_sum`` or ``signature``.
    """
    if confirmation.digest != survivors.digest:
        raise SecureSumError("another_sum", "a signature is of another sum")
    _verify(confirmation.client, confirmation.signature, confirmed(circle, survivors), verifiers)


def check_sender(parameters: SumParameters, digest: bytes, client: int) -> None:
    """Check that a message is of a sum, and from a client of it.

    Raises:
        SecureSumError: ``another_sum`` or ``client``.
    """
    if digest != parameters.digest:
        raise SecureSumError("another_sum", "a message belongs to another sum, or to another round")
    if client not in parameters.members:
        raise SecureSumError("client", f"client {client} does not take part in this sum")


def confirmed(circle: Circle, survivors: Survivors) -> bytes:
    """Return the bytes that a client signs to confirm the set of clients in the sum."""
    return b"genfl secure sum survivors" + circle.digest + survivors.fingerprint


def state_to_bytes(state: ClientState) -> bytes:
    """Return the bytes of a state, for a file that only the client can read."""
    return b"".join([_STATE_MAGIC, *_STATE.write(state)])


def state_from_bytes(data: bytes) -> ClientState:
    """Return the state that `state_to_bytes` wrote.

    Raises:
        SecureSumError: ``encoding``: the bytes are no state.
    """
    reader = ByteReader(data)
    if bytes(reader.take(len(_STATE_MAGIC))) != _STATE_MAGIC:
        raise SecureSumError("encoding", "these bytes are no state of a client, or one of another version")
    state = _STATE.read(reader)
    if reader.rest:
        raise SecureSumError("encoding", f"a state has {len(reader.rest)} bytes too many")
    return state


_STATE_MAGIC = b"genfl secure sum state 1"
_STATE = fields_of(
    ClientState,
    parameters=PARAMETERS_CODEC,
    client=integer(8),
    phase=choice(_PHASES),
    entropy=fixed_bytes(32),
    roster=optional(ROSTER_CODEC),
    key_shares=SHARES_CODEC,
    self_shares=SHARES_CODEC,
    survivors=optional(SURVIVORS_CODEC),
)


def check_due(state: ClientState, phase: ClientPhase, digest: bytes) -> None:
    """Refuse a message of another sum, and one that is not due.

    Raises:
        SecureSumError: ``another_sum`` or ``phase``.
    """
    if digest != state.parameters.digest:
        raise SecureSumError("another_sum", "a message belongs to another sum, or to another round")
    if state.phase != phase:
        raise SecureSumError("phase", f"the server sent its {phase} when its {state.phase} were due")


def _circle(state: ClientState, phase: ClientPhase, digest: bytes) -> Circle:
    """Return who knows whom, after `check_due`."""
    check_due(state, phase, digest)
    assert state.roster is not None  # of every phase but the first
    return Circle(state.parameters, state.roster)


def _check_ids(parameters: SumParameters, ids: Sequence[int]) -> None:
    """Refuse clients that are too few, out of order or there twice."""
    if any(a >= b for a, b in itertools.pairwise(ids)):
        raise SecureSumError("set", "the server names clients twice, or out of order")
    if len(ids) < parameters.threshold:
        raise SecureSumError(
            "threshold", f"{len(ids)} clients are left, and the sum needs {parameters.threshold}"
        )


def _verify(client: int, signature: bytes, message: bytes, verifiers: Mapping[int, Verifier]) -> None:
    verifier = verifiers.get(client)
    if verifier is None:
        raise SecureSumError("signature", f"the public key of client {client}'s node is not known")
    if not verifier.verify(signature, message):
        raise SecureSumError("signature", f"the signature is not that of client {client}")


def _advertisement(state: ClientState) -> Advertisement:
    """Return the client's keys, not signed."""
    return Advertisement(
        state.parameters.digest,
        state.client,
        channel_key=public_key(_channel_private(state)),
        mask_key=public_key(_mask_private(state)),
        commitment=commitment(_self_seed(state)),
        signature=b"",
    )


def commitment(seed: bytes) -> bytes:
    """Return what a client publishes of its self mask's seed: it hides the seed, and fits no other."""
    return hashlib.sha256(b"genfl self mask commitment" + seed).digest()


def _channel_private(state: ClientState) -> bytes:
    return derive(state.entropy, b"genfl channel key")


def _mask_private(state: ClientState) -> bytes:
    return derive(state.entropy, b"genfl mask key")


def _self_seed(state: ClientState) -> bytes:
    return derive(state.entropy, b"genfl self mask seed")


def _own_shares(state: ClientState, circle: Circle) -> dict[int, tuple[int, int]]:
    """Return each holder's shares of the client's mask key and of its self mask's seed."""
    holders = (state.client, *circle.ring.neighbours(state.client))
    points = [holder + 1 for holder in holders]
    key = derive(state.entropy, b"genfl coefficients" + circle.digest, 16)
    size = _COEFFICIENT_BYTES
    stream = keystream(key).update(bytes(2 * (circle.share_threshold - 1) * size))
    numbers = [
        int.from_bytes(stream[at : at + size], "little") % SHARE_PRIME for at in range(0, len(stream), size)
    ]
    half = len(numbers) // 2
    mask_key, seed = (
        int.from_bytes(secret, "little") for secret in (_mask_private(state), _self_seed(state))
    )
    shares = zip(split(mask_key, points, numbers[:half]), split(seed, points, numbers[half:]), strict=True)
    return dict(zip(holders, shares, strict=True))


def pair_channel(state: ClientState, sender: int, recipient: int, label: bytes) -> bytes:
    """Return the key of the one message of a kind that a client sends to another.

    Args:
        state: Of one of the two, with the keys of all clients.
        sender: Who seals the message.
        recipient: Who opens it.
        label: The kind of message.
    """
    assert state.roster is not None  # of every phase but the first
    other = recipient if sender == state.client else sender
    public = state.roster.keys[other].channel_key
    ends = sender.to_bytes(8, "little") + recipient.to_bytes(8, "little")
    return derive(agree(_channel_private(state), public), label + state.roster.fingerprint + ends)
