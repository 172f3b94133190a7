"""What clients and the server of a secure sum refuse, by the stable name of the reason."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from genfl.privacy import secure_sum as ss
from genfl.privacy.secure_sum import client as client_module

from .helpers import Federation, SharedKey, entropy, parameters, plain_sum, words

LOW_ORDER = (1).to_bytes(32, "little")


@contextmanager
def refuses(code, match=None):
    """Expect a refusal with this code, and a bounded message on one line."""
    with pytest.raises(ss.SecureSumError, match=match) as refused:
        yield
    assert refused.value.code == code, refused.value
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 200


def reached(phases, n=4, wire=False, **options):
    """A federation after some phases: the server's next messages are in the inbox."""
    federation = Federation(parameters(n, **options), wire=wire)
    for _ in range(phases):
        federation.phase()
        federation.end()
    return federation


@pytest.fixture
def another():
    """Another round of the same clients."""
    return lambda phases: reached(phases, session=b"run/2")


def signed_again(advertisement, **changes):
    changed = replace(advertisement, **changes)
    return replace(changed, signature=SharedKey(changed.client).sign(changed.signed))


# --- parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session": b""}, "session"),
        ({"session": bytes(256)}, "session"),
        ({"clients": (1,)}, "2 to"),
        ({"clients": (1, 1, 2)}, "rising"),
        ({"clients": (2, 1, 3)}, "rising"),
        ({"clients": (1, 2, 2**64)}, "2\\^64"),
        ({"clients": (-1, 2, 3)}, "2\\^64"),
        ({"threshold": 2}, "threshold is 2; of 4 clients it must be 3 to 4"),
        ({"threshold": 5}, "threshold is 5"),
        ({"segments": ()}, "segments"),
        ({"segments": (ss.Segment(16, 3),)}, "segments"),
        ({"segments": (ss.Segment(32, -1),)}, "segments"),
        ({"neighbours": 3}, "neighbours"),
        ({"neighbours": 0}, "neighbours"),
    ],
)
def test_unsafe_parameters(changes, message):
    """Half of the clients as a threshold would let a server open both masks, with the help of each half."""
    with refuses("parameters", message):
        replace(parameters(4), **changes)


def test_parameters_from_bytes_are_checked():
    data = ss.to_bytes(parameters(4))
    at = data.index(b"run/1") + 5 + 4 + 4 * 8
    assert data[at] == 3
    with refuses("parameters"):
        ss.from_bytes(data[:at] + b"\x02" + data[at + 1 :], ss.SumParameters)


def test_default_threshold_is_two_thirds():
    assert [ss.default_threshold(n) for n in (2, 3, 4, 6, 10, 100)] == [2, 3, 3, 5, 7, 67]


# --- a client


def test_client_refuses_a_sum_of_others():
    with refuses("client"):
        ss.advertise(parameters(4), 4, entropy(4), SharedKey(4))
    with pytest.raises(ValueError, match="32 random bytes, not 16"):
        ss.advertise(parameters(4), 1, bytes(16), SharedKey(1))


@pytest.mark.parametrize(
    ("code", "alter"),
    [
        ("signature", lambda a: [replace(a[0], mask_key=a[1].mask_key), *a[1:]]),
        ("signature", lambda a: [replace(a[0], channel_key=a[1].mask_key), *a[1:]]),
        ("signature", lambda a: [replace(a[0], commitment=bytes(32)), *a[1:]]),
        ("signature", lambda a: [replace(a[0], signature=a[1].signature), *a[1:]]),
        ("signature", lambda a: [replace(a[0], signature=b""), *a[1:]]),
        ("another_sum", lambda a: [signed_again(a[0], digest=bytes(32)), *a[1:]]),
        ("client", lambda a: [*a, signed_again(a[0], client=9)]),
        ("key", lambda a: [signed_again(a[0], mask_key=a[2].mask_key), *a[1:]]),
        ("key", lambda a: [signed_again(a[0], channel_key=a[0].mask_key), *a[1:]]),
        ("key", lambda a: [signed_again(a[0], channel_key=LOW_ORDER), *a[1:]]),
        ("set", lambda a: [a[0], signed_again(a[1], mask_key=bytes(range(32))), *a[2:]]),
        ("set", lambda a: [a[0], *a[2:]]),
        ("set", lambda a: [a[1], a[0], *a[2:]]),
        ("set", lambda a: [a[0], *a]),
        ("threshold", lambda a: a[:2]),
        ("threshold", lambda a: []),
    ],
)
def test_client_refuses_a_roster(code, alter):
    federation = reached(1)
    roster = federation.inbox[1]
    roster = replace(roster, advertisements=tuple(alter(list(roster.advertisements))))
    with refuses(code):
        ss.share_keys(federation.states[1], roster, federation.verifiers)


def test_client_refuses_a_roster_of_another_round(another):
    with refuses("another_sum"):
        ss.share_keys(reached(1).states[1], another(1).inbox[1], reached(0).verifiers)


def test_client_refuses_shares_of_a_client_that_was_shown_other_keys():
    """Shares are bound to all keys, so they open only for clients that were shown the same roster."""
    federation = reached(1)
    everybody = federation.inbox[1]
    fewer = replace(everybody, advertisements=everybody.advertisements[:3])
    _, sealed = ss.share_keys(federation.states[0], everybody, federation.verifiers)
    _, others = ss.share_keys(federation.states[2], fewer, federation.verifiers)
    state, _ = ss.share_keys(federation.states[1], fewer, federation.verifiers)
    shares = ((0, dict(sealed.shares)[1]), (2, dict(others.shares)[1]))
    delivery = ss.Delivery(federation.parameters.digest, 1, shares)
    with refuses("share"):
        ss.mask_input(state, delivery, words(1, federation.parameters))
    _, same = ss.share_keys(federation.states[0], fewer, federation.verifiers)
    good = replace(delivery, shares=((0, dict(same.shares)[1]), shares[1]))
    assert ss.mask_input(state, good, words(1, federation.parameters))[0].phase == "survivors"


def test_client_refuses_keys_of_an_unknown_node():
    federation = reached(1)
    verifiers = {client: key for client, key in federation.verifiers.items() if client != 3}
    with refuses("signature"):
        ss.share_keys(federation.states[1], federation.inbox[1], verifiers)


def test_client_refuses_a_low_order_mask_key(monkeypatch):
    """A neighbour that advertises one would make the mask that they share known to all."""
    honest = client_module._advertisement

    def dishonest(state):
        advertisement = honest(state)
        return replace(advertisement, mask_key=LOW_ORDER) if state.client == 3 else advertisement

    monkeypatch.setattr(client_module, "_advertisement", dishonest)
    federation = reached(2)
    with refuses("key", "low order"):
        ss.mask_input(federation.states[1], federation.inbox[1], words(1, federation.parameters))


def delivery_of(federation, client, alter):
    delivery = federation.inbox[client]
    return replace(delivery, shares=tuple(alter(list(delivery.shares))))


@pytest.mark.parametrize(
    ("code", "alter"),
    [
        ("share", lambda s: [(s[0][0], s[1][1]), *s[1:]]),  # from another sender
        ("share", lambda s: [(s[0][0], s[0][1][:-1] + bytes([s[0][1][-1] ^ 1])), *s[1:]]),
        ("share", lambda s: [(s[0][0], bytes([s[0][1][0] ^ 1]) + s[0][1][1:]), *s[1:]]),
        ("set", lambda s: [*s, (9, s[0][1])]),
        ("set", lambda s: [s[0], *s]),
        ("set", lambda s: s[::-1]),
        ("set", lambda s: [(1, s[0][1]), *s[1:]]),  # from itself
        ("threshold", lambda s: s[:1]),
    ],
)
def test_client_refuses_shares(code, alter):
    federation = reached(2)
    with refuses(code):
        ss.mask_input(
            federation.states[1], delivery_of(federation, 1, alter), words(1, federation.parameters)
        )


def test_client_refuses_shares_of_another_round_or_client(another):
    federation, other = reached(2), another(2)
    values = words(1, federation.parameters)
    with refuses("another_sum"):
        ss.mask_input(federation.states[1], other.inbox[1], values)
    with refuses("share"):  # renamed
        renamed = replace(other.inbox[1], digest=federation.parameters.digest)
        ss.mask_input(federation.states[1], renamed, values)
    with refuses("client"):
        ss.mask_input(federation.states[1], federation.inbox[2], values)
    with refuses("share"):  # what client 0 sent to client 2
        first, *rest = federation.inbox[1].shares
        swapped = ((0, dict(federation.inbox[2].shares)[0]), *rest)
        assert first[0] == 0
        ss.mask_input(federation.states[1], replace(federation.inbox[1], shares=swapped), values)


@pytest.mark.parametrize(
    "alter",
    [
        lambda w: (w[0][:-1], w[1]),
        lambda w: (w[0].reshape(1, -1), w[1]),
        lambda w: (w[0].astype(np.uint64), w[1]),
        lambda w: (w[0].astype(np.int32), w[1]),
        lambda w: (w[0].astype(np.float32), w[1]),
        lambda w: w[:1],
        lambda w: (*w, w[0]),
        lambda w: w[::-1],
    ],
)
def test_words_of_other_shapes_are_refused(alter):
    federation = reached(2)
    wrong = alter(words(1, federation.parameters))
    with refuses("shape"):
        ss.mask_input(federation.states[1], federation.inbox[1], wrong)
    if all(w.dtype in (np.uint32, np.uint64) and w.ndim == 1 for w in wrong):
        upload = ss.from_bytes(
            ss.to_bytes(ss.MaskedInput(federation.parameters.digest, 1, wrong)), ss.MaskedInput
        )
        with refuses("shape"):
            ss.receive(federation.server, upload, federation.verifiers)


@pytest.mark.parametrize(
    ("code", "clients"),
    [
        ("threshold", (0, 1)),
        ("threshold", ()),
        ("set", (0, 2, 3)),  # without client 1 itself
        ("set", (0, 1, 2, 3, 9)),
        ("set", (1, 0, 2, 3)),
        ("set", (0, 1, 1, 2)),
    ],
)
def test_client_refuses_survivors(code, clients):
    federation = reached(3)
    survivors = replace(federation.inbox[1], clients=clients)
    with refuses(code):
        ss.confirm(federation.states[1], survivors, federation.signers[1])


def test_client_refuses_a_survivor_whose_shares_it_never_got():
    federation = reached(1)
    federation.phase(silent=[3])
    federation.end()
    federation.phase()
    federation.end()
    survivors = replace(federation.inbox[1], clients=(0, 1, 2, 3))
    with refuses("set"):
        ss.confirm(federation.states[1], survivors, federation.signers[1])


def test_client_refuses_to_open_both_masks_of_a_client():
    """A server that shows a second set, to learn the other mask of a client, gets no second signature."""
    federation = reached(3)
    first = replace(federation.inbox[1], clients=(0, 1, 2))
    second = replace(federation.inbox[1], clients=(0, 1, 3))
    state, _ = ss.confirm(federation.states[1], first, federation.signers[1])
    with refuses("phase"):
        ss.confirm(state, second, federation.signers[1])
    # one reveal never holds shares of both masks of one owner, and there is no second one
    federation = reached(4, n=5)
    state, reveal = ss.reveal(federation.states[1], federation.inbox[1], federation.verifiers)
    assert not {owner for owner, _ in reveal.self_shares} & {owner for owner, _ in reveal.key_shares}
    with refuses("phase"):
        ss.reveal(state, federation.inbox[1], federation.verifiers)


def test_client_refuses_a_server_that_shows_different_sets():
    """Clients 0, 1 and 2 see one set, and the rest another: neither gets enough signatures of its own."""
    federation = reached(3, n=6, threshold=4)
    signatures = {}
    for client in range(6):
        clients = (0, 1, 2, 3, 4) if client < 3 else (0, 1, 2, 3, 4, 5)
        survivors = replace(federation.inbox[client], clients=clients)
        federation.states[client], signatures[client] = ss.confirm(
            federation.states[client], survivors, federation.signers[client]
        )
    digest = federation.parameters.digest
    everything = ss.Confirmations(digest, tuple(signatures.values()))
    own = ss.Confirmations(digest, tuple(signatures[client] for client in (3, 4, 5)))
    with refuses("signature"):
        ss.reveal(federation.states[3], everything, federation.verifiers)
    with refuses("threshold"):
        ss.reveal(federation.states[3], own, federation.verifiers)


@pytest.mark.parametrize(
    ("code", "alter"),
    [
        ("threshold", lambda c: c[:2]),
        ("set", lambda c: [c[0], c[0], *c[1:]]),
        ("set", lambda c: c[::-1]),
        ("set", lambda c: [*c, replace(c[0], client=9)]),
        ("signature", lambda c: [replace(c[0], signature=c[1].signature), *c[1:]]),
        ("signature", lambda c: [replace(c[0], signature=b""), *c[1:]]),
        ("another_sum", lambda c: [replace(c[0], digest=bytes(32)), *c[1:]]),
    ],
)
def test_client_refuses_confirmations(code, alter):
    federation = reached(4)
    confirmations = federation.inbox[1]
    confirmations = replace(confirmations, confirmations=tuple(alter(list(confirmations.confirmations))))
    with refuses(code):
        ss.reveal(federation.states[1], confirmations, federation.verifiers)


def test_client_refuses_confirmations_of_another_round(another):
    federation, other = reached(4), another(4)
    with refuses("another_sum"):
        ss.reveal(federation.states[1], other.inbox[1], federation.verifiers)
    renamed = replace(
        other.inbox[1],
        digest=federation.parameters.digest,
        confirmations=tuple(
            replace(c, digest=federation.parameters.digest) for c in other.inbox[1].confirmations
        ),
    )
    with refuses("signature"):
        ss.reveal(federation.states[1], renamed, federation.verifiers)


def test_client_refuses_messages_that_are_not_due():
    federation = reached(2)
    state, verifiers = federation.states[1], federation.verifiers
    roster = ss.Roster(federation.parameters.digest, ())
    with refuses("phase"):
        ss.share_keys(state, roster, verifiers)
    with refuses("phase"):
        ss.confirm(state, ss.Survivors(federation.parameters.digest, (0, 1, 2)), federation.signers[1])
    with refuses("phase"):
        ss.reveal(state, ss.Confirmations(federation.parameters.digest, ()), verifiers)
    after, _ = ss.mask_input(state, federation.inbox[1], words(1, federation.parameters))
    with refuses("phase"):
        ss.mask_input(after, federation.inbox[1], words(1, federation.parameters))


def test_a_finished_client_keeps_no_secrets():
    federation = reached(4)
    state, _ = ss.reveal(federation.states[1], federation.inbox[1], federation.verifiers)
    assert state.phase == "finished"
    assert entropy(1) not in ss.state_to_bytes(state)
    assert entropy(1) in ss.state_to_bytes(federation.states[1])


# --- the server


def reply(federation, client):
    return federation.answer(client, federation.inbox[client])


@pytest.mark.parametrize("phase", range(5))
def test_server_refuses_messages_of_others_again_or_of_another_round(phase, another):
    federation, other = reached(phase), another(phase)
    message = reply(federation, 1)
    with refuses("another_sum"):
        ss.receive(federation.server, reply(other, 1), federation.verifiers)
    with refuses("client"):
        ss.receive(federation.server, replace(message, client=9), federation.verifiers)
    once = ss.receive(federation.server, message, federation.verifiers)
    with refuses("client"):
        ss.receive(once, message, federation.verifiers)
    early = reached((phase + 1) % 5)
    with refuses("phase"):
        ss.receive(federation.server, reply(early, 1), federation.verifiers)


def test_server_refuses_a_client_that_dropped_out():
    federation = reached(1)
    federation.phase(silent=[3])
    federation.end()
    message = replace(reply(federation, 1), client=3)
    with refuses("client"):
        ss.receive(federation.server, message, federation.verifiers)


@pytest.mark.parametrize("phase", [0, 3])
def test_server_refuses_wrong_signatures(phase):
    federation = reached(phase)
    message = replace(reply(federation, 1), signature=reply(federation, 0).signature)
    with refuses("signature"):
        ss.receive(federation.server, message, federation.verifiers)


def test_server_refuses_a_client_whose_keys_are_the_same():
    """Passed on, they would make every other client refuse the roster."""
    federation = reached(0)
    message = reply(federation, 1)
    with refuses("key", "client 1 advertises the same key twice"):
        same = signed_again(message, channel_key=message.mask_key)
        ss.receive(federation.server, same, federation.verifiers)


@pytest.mark.parametrize("alter", [lambda s: s[1:], lambda s: s[::-1], lambda s: (*s, (9, s[0][1]))])
def test_server_refuses_shares_for_other_clients(alter):
    federation = reached(1)
    message = reply(federation, 1)
    with refuses("set"):
        ss.receive(federation.server, replace(message, shares=alter(message.shares)), federation.verifiers)


@pytest.mark.parametrize("name", ["self_shares", "key_shares"])
@pytest.mark.parametrize(
    "alter", [lambda s: s[1:], lambda s: s[::-1], lambda s: (*s, (9, 1)), lambda s: s * 2]
)
def test_server_refuses_shares_of_other_owners(name, alter):
    federation = reached(2, n=6, threshold=4)
    federation.phase(silent=[4, 5])
    federation.end()
    federation.phase()
    federation.end()
    message = reply(federation, 1)
    with refuses("set"):
        wrong = replace(message, **{name: alter(getattr(message, name))})
        ss.receive(federation.server, wrong, federation.verifiers)


@pytest.mark.parametrize("name", ["self_shares", "key_shares"])
@pytest.mark.parametrize("change", [lambda s: s ^ 2**99, lambda s: 0, lambda s: 2**256 + 297])
def test_server_notices_a_wrong_share(name, change):
    """A client that lies about a share spoils the sum, and the sum does not pass for the right one."""
    federation = reached(2)
    federation.phase(silent=[3])
    federation.end()
    federation.phase()
    federation.end()

    def alter(client, message):
        if client != 1:
            return message
        (owner, share), *rest = getattr(message, name)
        return replace(message, **{name: ((owner, change(share)), *rest)})

    with refuses("share"):
        federation.phase(alter=alter)
        ss.unmask(federation.server)


def test_server_has_no_result_before_the_end():
    federation = reached(3)
    with refuses("phase"):
        ss.unmask(federation.server)
    federation = reached(4)
    federation.phase()
    with refuses("phase"):
        ss.end_phase(federation.server)


def test_server_goes_on_after_a_refusal():
    """A refused message leaves the state as it was: the client may send a good one."""
    federation = reached(0)
    message = reply(federation, 1)
    with refuses("signature"):
        ss.receive(federation.server, replace(message, signature=b"x"), federation.verifiers)
    assert federation.server.waiting == (0, 1, 2, 3)
    assert ss.receive(federation.server, message, federation.verifiers).waiting == (0, 2, 3)


# --- real signatures


def test_a_sum_with_the_keys_of_nodes():
    keys = {client: ec.generate_private_key(ec.SECP384R1()) for client in range(3)}
    signers = {client: ss.NodeSigner(key) for client, key in keys.items()}
    federation = Federation(parameters(3), signers)
    federation.verifiers = {client: ss.NodeVerifier(key.public_key()) for client, key in keys.items()}
    total = federation.run({2: 2})
    expected = plain_sum((0, 1), federation.parameters)
    assert all(map(np.array_equal, total, expected))
    impostor = Federation(parameters(3), signers)
    impostor.verifiers = {**federation.verifiers, 1: federation.verifiers[0]}
    with refuses("signature"):
        impostor.run()
