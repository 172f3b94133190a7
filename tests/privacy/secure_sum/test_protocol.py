"""The protocol's sums are exact whoever drops out and when, and its transcripts say no more than the sum."""

import itertools

import numpy as np
import pytest
from scipy import stats

from genfl.privacy import secure_sum as ss
from genfl.privacy.secure_sum.client import Circle
from genfl.privacy.secure_sum.masking import own_masks
from genfl.privacy.secure_sum.shamir import split

from .helpers import PHASES, Federation, entropy, parameters, plain_sum, words


def same(a, b):
    return [x.dtype for x in a] == [y.dtype for y in b] and all(map(np.array_equal, a, b))


# --- exact sums


@pytest.mark.parametrize(
    ("n", "neighbours"),
    [(2, 100), (3, 100), (7, 100), (12, 100), (7, 2), (30, 8)]
    + [pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((200, 4), (102, 100), (200, 100))],
)
def test_sum_is_exact(n, neighbours):
    agreed = parameters(range(5, 5 + 3 * n, 3), neighbours=neighbours)
    assert same(Federation(agreed, wire=n <= 12).run(), plain_sum(agreed.clients, agreed))


@pytest.mark.parametrize(("n", "neighbours"), [(40, 10), (30, 20)])
def test_sum_is_exact_with_dropouts_in_a_sparse_graph(n, neighbours):
    agreed = parameters(n, neighbours=neighbours)
    drops = {2: 0, 8: 1, 11: 2, 17: 2, 21: 3, 25: 4}
    inside = [client for client in agreed.clients if drops.get(client, PHASES) >= 3]
    assert same(Federation(agreed, wire=False).run(drops), plain_sum(inside, agreed))


@pytest.mark.parametrize(
    "n", [2, 3, 4, pytest.param(5, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)]
)
def test_every_pattern_of_dropouts(n):
    """Each client sends its first 0 to 5 messages. The sum is exact, or too few clients are left.

    States are values, so all patterns with the same beginning go on from the same states.
    """
    agreed = parameters(n, segments=((32, 1), (64, 1)))
    start = Federation(agreed, wire=False)
    expected = {
        group: plain_sum(group, agreed)
        for size in range(agreed.threshold, n + 1)
        for group in itertools.combinations(agreed.clients, size)
    }
    patterns = 0

    def explore(phase, server, states, inbox):
        nonlocal patterns
        start.states = dict(states)
        replies = {client: start.answer(client, message) for client, message in inbox.items()}
        states = start.states
        for size in range(len(inbox) + 1):
            for group in itertools.combinations(inbox, size):
                after = server
                for client in group:
                    after = ss.receive(after, replies[client], start.verifiers)
                assert after.waiting == tuple(client for client in inbox if client not in group)
                finish = ss.unmask if phase == PHASES - 1 else ss.end_phase
                if size < agreed.threshold:
                    with pytest.raises(ss.SecureSumError) as refused:
                        finish(after)
                    assert refused.value.code == "threshold"
                    patterns += (PHASES - phase) ** size  # whatever they do later
                elif phase == PHASES - 1:
                    assert same(finish(after), expected[after.survivors.clients])
                    patterns += 1
                else:
                    server_after, messages = finish(after)
                    explore(phase + 1, server_after, states, messages)

    explore(0, start.server, {}, start.inbox)
    assert patterns == (PHASES + 1) ** n


def test_all_messages_take_few_bytes_beside_the_words():
    agreed = parameters(10, segments=((32, 100_000),))
    federation = Federation(agreed)
    federation.run({3: 2})
    sent = {
        client: sum(len(ss.to_bytes(replies[client])) for replies in federation.sent if client in replies)
        for client in agreed.clients
    }
    assert max(sent.values()) < agreed.nbytes + 3_000


# --- uploads look random


def p_uniform(vector):
    """The p-value of a chi-square test that the bytes are uniform."""
    return stats.chisquare(np.bincount(vector.view(np.uint8), minlength=256)).pvalue


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("n", "neighbours"), [(2, 100), (5, 100), (9, 2)])
def test_masked_inputs_look_uniform(n, neighbours, bits):
    """So do sums of any group but all, up to the largest with a neighbour outside."""
    agreed = parameters(n, segments=((bits, 2**14),), neighbours=neighbours)
    federation = Federation(agreed, wire=False)
    federation.run()
    masked = {client: reply.vectors[0] for client, reply in federation.sent[2].items()}
    unmasked = {client: masked[client] - words(client, agreed)[0] for client in masked}
    groups = [[c] for c in masked] + [list(masked)[:k] for k in range(2, n + 1)]
    p = [p_uniform(np.sum([masked[c] for c in group], axis=0, dtype=f"uint{bits}")) for group in groups]
    p += [p_uniform(mask) for mask in unmasked.values()]
    p += [p_uniform(a - b) for a, b in itertools.combinations(unmasked.values(), 2)]
    p += [stats.spearmanr(words(c, agreed)[0], masked[c]).pvalue for c in masked]
    assert min(p) > 1e-3 / len(p)


def test_segments_do_not_share_a_mask():
    agreed = parameters(3, segments=((32, 2**14), (32, 2**14)))
    federation = Federation(agreed, wire=False)
    federation.run()
    first, second = (
        vector - plain for vector, plain in zip(federation.sent[2][1].vectors, words(1, agreed), strict=True)
    )
    assert p_uniform(first - second) > 1e-3


def test_two_sums_do_not_share_a_mask():
    """Not even if a client's randomness is the same."""
    masks = []
    for session in (b"run/1", b"run/2"):
        agreed = parameters(3, segments=((32, 2**14),), session=session)
        federation = Federation(agreed, wire=False)
        federation.run()
        masks.append(federation.sent[2][1].vectors[0] - words(1, agreed)[0])
    assert p_uniform(masks[0] - masks[1]) > 1e-3


# --- what a transcript determines: a rank argument over a small field


PRIME = 31


class Knowledge:
    """Linear equations between named unknowns over a small field, in reduced row echelon form."""

    def __init__(self):
        self.rows = {}  # leading unknown -> {unknown: coefficient}

    def reduce(self, row):
        row = {name: value % PRIME for name, value in row.items() if value % PRIME}
        for leading, known in self.rows.items():
            if leading in row:
                row = self.minus(row, known, row[leading])
        return row

    @staticmethod
    def minus(row, other, factor):
        names = row.keys() | other.keys()
        new = {name: (row.get(name, 0) - factor * other.get(name, 0)) % PRIME for name in names}
        return {name: value for name, value in new.items() if value}

    def learn(self, row):
        row = self.reduce(row)
        if row:
            leading = min(row)
            inverse = pow(row[leading], -1, PRIME)
            row = {name: value * inverse % PRIME for name, value in row.items()}
            self.rows = {
                name: self.minus(known, row, known.get(leading, 0)) for name, known in self.rows.items()
            }
            self.rows[leading] = row

    def determines(self, row):
        return not self.reduce(row)


def transcript(federation, colluders, open_also=()):
    """What a server and colluders know: unknowns are values, masks, secrets, and coefficients of shares.

    A mask is an independent unknown, until the secret that it comes from is determined.

    Args:
        open_also: Kinds and owners of secrets whose shares all honest clients reveal besides.
    """
    knows = Knowledge()
    circle = Circle(federation.parameters, federation.states_roster)
    ring, threshold = circle.ring, circle.share_threshold
    survivors = federation.server.survivors.clients

    def share(kind, owner, holder):
        """The share as a combination of the secret and of the coefficients of the polynomial."""
        names = [(kind, owner)] + [(f"{kind} coefficient", owner, k) for k in range(1, threshold)]
        units = [[int(k == j) for j in range(threshold)] for k in range(threshold)]
        values = [split(unit[0], [holder + 1], unit[1:], PRIME)[0] for unit in units]
        return dict(zip(names, values, strict=True))

    for client, message in federation.sent[2].items():  # masked words
        others = [c for c in ring.neighbours(client) if c in federation.server.sharers]
        adds, subtracts = own_masks(client, b"self", {other: b"%d" % other for other in others})
        row = {("value", client): 1}
        for keys, sign in ((adds, 1), (subtracts, -1)):
            for key in keys:
                ends = ("self mask", client) if key == b"self" else ("pair mask", *sorted((client, int(key))))
                row[ends] = sign
        knows.learn(row)
        assert message.client == client
    for holder, message in federation.sent[4].items():  # shares that were revealed
        for kind, shares in (("seed", message.self_shares), ("mask key", message.key_shares)):
            for owner, _ in shares:
                knows.learn(share(kind, owner, holder))
        for kind, owner in open_also:
            knows.learn(share(kind, owner, holder))
    for colluder in colluders:
        for name in ("value", "seed", "mask key"):
            knows.learn({(name, colluder): 1})
        for owner in (colluder, *ring.neighbours(colluder)):
            knows.learn(share("seed", owner, colluder))
            knows.learn(share("mask key", owner, colluder))
    for client in circle.keys:  # the masks of secrets that are determined
        if knows.determines({("seed", client): 1}):
            knows.learn({("self mask", client): 1})
        if knows.determines({("mask key", client): 1}):
            for other in ring.neighbours(client):
                knows.learn({("pair mask", *sorted((client, other))): 1})
    return knows, survivors


def federation_of(n, threshold, drops):
    federation = Federation(parameters(n, threshold, segments=((32, 1),)), wire=False)
    federation.run(drops)
    federation.states_roster = ss.Roster(
        federation.parameters.digest, tuple(federation.sent[0][c] for c in sorted(federation.sent[0]))
    )
    return federation


def determined(knows, clients):
    """The combinations of clients' values with coefficients 0 and 1 that are determined."""
    groups = itertools.chain(*(itertools.combinations(clients, k) for k in range(1, len(clients) + 1)))
    return [group for group in groups if knows.determines({("value", client): 1 for client in group})]


@pytest.mark.parametrize(
    ("n", "threshold", "drops"),
    [
        (4, 3, {}),
        (5, 3, {}),
        (5, 3, {0: 2}),
        (5, 3, {0: 2, 4: 3}),
        (5, 3, {1: 1, 2: 4}),
        (5, 4, {3: 2}),
        (6, 4, {0: 2, 5: 2}),
        (6, 5, {}),
    ],
)
def test_transcript_and_colluders_determine_only_the_sum_of_the_others(n, threshold, drops):
    federation = federation_of(n, threshold, drops)
    for colluders in itertools.combinations(range(n), threshold - 1):
        knows, survivors = transcript(federation, colluders)
        uploaded = [client for client in federation.sent[2] if client not in colluders]
        honest = [client for client in survivors if client not in colluders]
        assert determined(knows, uploaded) == [tuple(honest)]


def test_as_many_colluders_as_the_threshold_determine_every_value():
    """So the argument can fail: it is the threshold that protects."""
    federation = federation_of(5, 3, {})
    knows, _ = transcript(federation, (0, 1, 2))
    assert determined(knows, [3, 4]) == [(3,), (4,), (3, 4)]


def test_both_masks_of_one_client_determine_its_value():
    """This is what clients refuse; see test_refusals."""
    federation = federation_of(5, 3, {})
    knows, _ = transcript(federation, ())
    assert determined(knows, range(5)) == [(0, 1, 2, 3, 4)]
    knows, _ = transcript(federation, (), open_also=[("mask key", 2)])
    assert (2,) in determined(knows, range(5))


def test_a_late_upload_stays_masked():
    """A client that uploads after the set was fixed is not opened, though its pairwise masks are."""
    federation = federation_of(5, 3, {1: 2})
    late = federation.states[1]
    assert late.phase == "delivery"
    knows, _ = transcript(federation, (3, 4))
    knows.learn(
        {("value", 1): 1, ("self mask", 1): 1, **{("pair mask", *sorted((1, c))): 1 for c in (0, 2, 3, 4)}}
    )
    assert not knows.determines({("value", 1): 1})


@pytest.mark.parametrize(
    ("threshold", "opened", "lost"), [(ss.default_threshold(1000), -83, -29), (501, -32, -80)]
)
def test_neighbours_suffice_for_a_thousand_clients(threshold, opened, lost):
    """The probabilities of docs/security.md: a fifth colludes, or a tenth drops out, all at random."""
    agreed = parameters(1000, threshold)
    needed = Circle(agreed, ss.Roster(agreed.digest, ())).share_threshold
    colluders = stats.hypergeom.sf(needed - 1, 999, 200, agreed.neighbours)
    holders_left = stats.hypergeom.cdf(needed - 2, 999, 900, agreed.neighbours)
    assert 1000 * colluders < 2.0**opened
    assert 1000 * holders_left < 2.0**lost


def test_secrets_do_not_show():
    agreed = parameters(2)
    state, _ = ss.advertise(agreed, 0, entropy(0), Federation(agreed).signers[0])
    assert entropy(0).hex() not in repr(state)
    assert str(entropy(0)) not in repr(state)
