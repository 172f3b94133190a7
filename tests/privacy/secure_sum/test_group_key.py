"""A key of all clients: the same for all, of the first, and refused where a server interferes."""

import dataclasses
import os

import pytest

from genfl.privacy import secure_sum as ss
from genfl.privacy.secure_sum.group_key import open_group_key, share_group_key

from . import helpers

CLIENTS = (2, 5, 9)
PARAMETERS = ss.SumParameters(b"group", CLIENTS, 3, (ss.Segment(32, 0),))


class Group:
    """The clients of a group, up to the message that brings the key."""

    def __init__(self):
        signers = {client: helpers.SharedKey(client) for client in CLIENTS}
        self.verifiers = signers
        self.states, server = {}, ss.open_sum(PARAMETERS)
        for client in CLIENTS:
            self.states[client], message = ss.advertise(PARAMETERS, client, os.urandom(32), signers[client])
            server = ss.receive(server, message, self.verifiers)
        _, self.rosters = ss.end_phase(server)

    def draw(self):
        sealed = {}
        for client in CLIENTS:
            self.states[client], message = share_group_key(
                self.states[client], self.rosters[client], self.verifiers
            )
            message = ss.from_bytes(ss.to_bytes(message), ss.SealedShares)
            if message.shares:
                assert client == CLIENTS[0]
                sealed = dict(message.shares)
        return sealed

    def open(self, client, *shares):
        return open_group_key(self.states[client], ss.Delivery(PARAMETERS.digest, client, shares))


def test_all_clients_have_the_key_and_each_group_another():
    keys = []
    for _ in range(2):
        group = Group()
        sealed = group.draw()
        assert set(sealed) == {5, 9}
        opened = {group.open(2), *(group.open(client, (2, sealed[client])) for client in (5, 9))}
        assert len(opened) == 1
        keys += opened
        assert not any(key in text for key in keys for text in sealed.values())
    assert len(set(keys)) == 2
    assert {len(key) for key in keys} == {32}


def test_what_a_server_changes_is_refused():
    group = Group()
    with pytest.raises(ss.SecureSumError) as refused:
        group.open(5)
    assert refused.value.code == "phase"  # the keys of all clients come first
    sealed = group.draw()
    altered = bytes([sealed[5][0] ^ 1]) + sealed[5][1:]
    for shares, code in (
        (((2, altered),), "share"),
        (((2, sealed[9]),), "share"),
        (((9, sealed[5]),), "set"),
        ((), "set"),
    ):
        with pytest.raises(ss.SecureSumError) as refused:
            group.open(5, *shares)
        assert refused.value.code == code


def test_keys_that_are_not_of_the_nodes_are_refused():
    group = Group()
    roster = group.rosters[5]
    first, *others = roster.advertisements
    changed = dataclasses.replace(first, channel_key=os.urandom(32))
    for wrong in ((changed, *others), tuple(others)):
        with pytest.raises(ss.SecureSumError) as refused:
            share_group_key(group.states[5], ss.Roster(roster.digest, wrong), group.verifiers)
        assert refused.value.code in ("signature", "threshold")
