"""A key that the clients of a group share, and that the server which carries their messages does not learn.

The clients advertise keys as for a sum. The one with the lowest id draws the group's key, and seals it for
each of the others. A client that works for the server gives the key away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from genfl.privacy.secure_sum.client import ClientState, check_due, check_roster, pair_channel
from genfl.privacy.secure_sum.messages import SHARE_BYTES, Delivery, Roster, SealedShares
from genfl.privacy.secure_sum.primitives import SecureSumError, Verifier, derive, seal, unseal

GROUP_KEY_BYTES = 32
"""Bytes of a group's key."""

_NONCE = bytes(12)  # each key seals one message only
_LABEL = b"genfl group key"
_PADDING = bytes(2 * SHARE_BYTES - GROUP_KEY_BYTES)  # as long as the shares of a sum


def share_group_key(
    state: ClientState, roster: Roster, verifiers: Mapping[int, Verifier]
) -> tuple[ClientState, SealedShares]:
    """Answer the keys of all clients: with the group's key, if this client draws it, else with nothing.

    Args:
        state: Of phase ``roster``; see `genfl.privacy.secure_sum.client.advertise`.
        roster: From the server.
        verifiers: Client -> its node's public key, from a source that the server does not control.

    Raises:
        SecureSumError: As `genfl.privacy.secure_sum.client.share_keys`.
    """
    check_roster(state, roster, verifiers)
    state = replace(state, phase="delivery", roster=roster)
    ids = [advertisement.client for advertisement in roster.advertisements]
    sealed = []
    if state.client == ids[0]:
        for other in ids[1:]:
            key = pair_channel(state, state.client, other, _LABEL)
            sealed.append((other, seal(key, _NONCE, _own_key(state) + _PADDING, roster.fingerprint)))
    return state, SealedShares(state.parameters.digest, state.client, tuple(sealed))


def open_group_key(state: ClientState, delivery: Delivery) -> bytes:
    """Return the group's key.

    Args:
        state: Of phase ``delivery``.
        delivery: From the server; for the client that drew the key, without any.

    Raises:
        SecureSumError: ``share``: the key was altered, or is not for this client; ``set``: it is missing, or
            of another sender; ``phase`` or ``another_sum``: the message is not due.
    """
    check_due(state, "delivery", delivery.digest)
    assert state.roster is not None  # of this phase
    first = state.roster.advertisements[0].client
    if state.client == first:
        return _own_key(state)
    if [sender for sender, _ in delivery.shares] != [first]:
        raise SecureSumError("set", f"the group's key is to come from client {first}")
    key = pair_channel(state, first, state.client, _LABEL)
    return unseal(key, _NONCE, delivery.shares[0][1], state.roster.fingerprint)[:GROUP_KEY_BYTES]


def _own_key(state: ClientState) -> bytes:
    return derive(state.entropy, _LABEL)
