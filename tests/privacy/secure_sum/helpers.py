"""Clients and a server of a secure sum, whose messages travel as bytes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping

import numpy as np

from genfl.privacy import secure_sum as ss

PHASES = 5
"""Messages that each client sends; a client that drops at phase k sends the first k."""


class SharedKey:
    """Signs by HMAC with a key that all know: fast, for tests that are not about signatures."""

    def __init__(self, client: int) -> None:
        self.key = client.to_bytes(8, "little")

    def sign(self, message: bytes) -> bytes:
        return hmac.digest(self.key, message, "sha256")

    def verify(self, signature: bytes, message: bytes) -> bool:
        return hmac.compare_digest(self.sign(message), signature)


def parameters(clients, threshold=None, segments=((32, 3), (64, 2)), session=b"run/1", **options):
    clients = tuple(range(clients)) if isinstance(clients, int) else tuple(clients)
    threshold = threshold or len(clients) // 2 + 1
    segments = tuple(ss.Segment(*segment) for segment in segments)
    return ss.SumParameters(session, clients, threshold, segments, **options)


def words(client: int, sum_parameters) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(client)
    return tuple(rng.integers(0, 2**s.bits, s.size, dtype=f"uint{s.bits}") for s in sum_parameters.segments)


def plain_sum(clients: Collection[int], sum_parameters) -> tuple[np.ndarray, ...]:
    """The sum by big integers."""
    each = [words(client, sum_parameters) for client in clients]
    return tuple(
        np.array([int(v) % 2**s.bits for v in sum(w[k].astype(object) for w in each)], f"uint{s.bits}")
        for k, s in enumerate(sum_parameters.segments)
    )


def entropy(client: int, salt: bytes = b"") -> bytes:
    return hashlib.sha256(b"%d" % client + salt).digest()


class Federation:
    """Runs a sum phase by phase.

    Attributes:
        states: Client -> its state.
        inbox: Client -> the server's last message, as bytes.
        sent: All messages of clients, as bytes, in the order of phases.
    """

    def __init__(self, sum_parameters, signers=None, wire: bool = True) -> None:
        self.parameters = sum_parameters
        self.signers: Mapping = signers or {client: SharedKey(client) for client in sum_parameters.clients}
        self.verifiers: Mapping = self.signers
        self.server = ss.open_sum(sum_parameters)
        self.states: dict = {}
        self.inbox: dict = dict.fromkeys(sum_parameters.clients, sum_parameters)
        self.wire = wire
        self.words = lambda client: words(client, sum_parameters)
        self.sent: list[dict] = []

    def answer(self, client: int, message):
        """A client's answer to a message of the server."""
        if self.wire:
            message = ss.from_bytes(ss.to_bytes(message), type(message))
        match message:
            case ss.SumParameters():
                step = ss.advertise(message, client, entropy(client), self.signers[client])
            case ss.Roster():
                step = ss.share_keys(self.states[client], message, self.verifiers)
            case ss.Delivery():
                step = ss.mask_input(self.states[client], message, self.words(client))
            case ss.Survivors():
                step = ss.confirm(self.states[client], message, self.signers[client])
            case ss.Confirmations():
                step = ss.reveal(self.states[client], message, self.verifiers)
        state, reply = step
        self.states[client] = ss.state_from_bytes(ss.state_to_bytes(state)) if self.wire else state
        return ss.from_bytes(ss.to_bytes(reply), type(reply)) if self.wire else reply

    def phase(self, silent: Collection[int] = (), alter: Callable | None = None) -> None:
        """Let all clients answer that are not silent, and hand their answers to the server."""
        replies = {c: self.answer(c, m) for c, m in self.inbox.items() if c not in silent}
        self.sent.append(replies)
        for client, reply in replies.items():
            self.server = ss.receive(self.server, alter(client, reply) if alter else reply, self.verifiers)

    def end(self) -> None:
        self.server, self.inbox = ss.end_phase(self.server)

    def run(self, drops: Mapping[int, int] | None = None) -> tuple[np.ndarray, ...]:
        """Run all phases; `drops` says after how many messages a client drops out."""
        drops = drops or {}
        for phase in range(PHASES):
            self.phase([client for client, count in drops.items() if count <= phase])
            if phase < PHASES - 1:
                self.end()
        return ss.unmask(self.server)
