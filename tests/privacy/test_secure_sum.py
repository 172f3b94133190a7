from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from genfl.privacy.secure_sum import SecureSum

dtypes = st.sampled_from([np.uint32, np.uint64])
ids = st.lists(st.integers(0, 10**6), min_size=2, max_size=9, unique=True).map(tuple)


def uniformity(values):
    """p-value of a chi-square test that the bytes are uniform."""
    return stats.chisquare(np.bincount(np.frombuffer(values.tobytes(), np.uint8), minlength=256)).pvalue


def zeros(dtype=np.uint32, size=2**14):
    return np.zeros(size, dtype)


# --- the sum


@pytest.mark.slow
@given(st.data(), ids, st.integers(0, 2**200), st.sampled_from([None, 2, 4]), dtypes)
def test_secure_sum_is_exact(data, clients, seed, degree, dtype):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    values = {client: data.draw(hnp.arrays(dtype, shape)) for client in clients}
    before = {client: value.copy() for client, value in values.items()}
    secure = SecureSum(clients, seed, "round 1", degree)
    total = secure.add({client: secure.mask(client, values[client]) for client in reversed(clients)})
    modulus = 2 ** (8 * np.dtype(dtype).itemsize)
    expected = sum(value.astype(object) for value in values.values()) % modulus
    assert total.dtype == dtype
    assert total.shape == shape
    assert (total.astype(object) == expected).all()
    assert all((values[client] == before[client]).all() for client in clients)


@pytest.mark.parametrize(
    ("n", "degree"), [(100, None), (101, None), (300, None), (300, 2), (42, 40), (41, 40)]
)
def test_secure_sum_of_many_clients_is_exact(n, degree):
    secure = SecureSum(tuple(range(n)), 3, "round 1", degree)
    rng = np.random.default_rng(0)
    values = rng.integers(2**64, size=(n, 5), dtype=np.uint64)
    masked = {client: secure.mask(client, values[client]) for client in range(n)}
    assert (secure.add(masked) == values.sum(axis=0, dtype=np.uint64)).all()


def test_secure_sum_accepts_numpy_ids():
    plain, numpy = SecureSum((1, 2, 3), 3, "a"), SecureSum(tuple(np.array([1, 2, 3])), 3, "a")
    values = zeros(size=4)
    for client in (1, 2, 3):
        assert (plain.mask(client, values) == numpy.mask(np.int64(client), values)).all()


# --- what the uploads hide


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize(("n", "degree"), [(2, None), (5, None), (8, 2), (120, None)])
def test_mask_of_zeros_looks_uniform(n, degree, dtype):
    secure = SecureSum(tuple(range(n)), 5, "round 1", degree)
    p = [uniformity(secure.mask(client, zeros(dtype))) for client in secure.clients]
    assert min(p) > 1e-3 / n


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_mask_hides_the_values(dtype):
    secure, again = (SecureSum((1, 2, 3), 5, context) for context in ("round 1", "round 2"))
    values = np.arange(2**14, dtype=dtype)
    plain, other = secure.mask(2, zeros(dtype)), again.mask(2, values)
    assert stats.ks_2samp(plain, other).pvalue > 1e-3
    table = [np.bincount(np.frombuffer(x.tobytes(), np.uint8), minlength=256) for x in (plain, other)]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    assert stats.spearmanr(values, other).pvalue > 1e-3


@pytest.mark.parametrize(("clients", "degree"), [((0, 1, 2, 3, 4), None), ((7, 3, 9, 1, 5, 2), 2)])
def test_partial_sum_of_uploads_looks_uniform(clients, degree):
    secure = SecureSum(clients, 5, "round 1", degree)
    masked = {client: secure.mask(client, zeros()) for client in clients}
    groups = [group for size in range(1, len(clients)) for group in combinations(clients, size)]
    p = [uniformity(np.sum([masked[c] for c in group], axis=0, dtype=np.uint32)) for group in groups]
    assert min(p) > 1e-3 / len(groups)
    assert not secure.add(masked).any()


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(SecureSum((1, 2, 3), 5, "round 2"), id="context"),
        pytest.param(SecureSum((1, 2, 3), 6, "round 1"), id="seed"),
    ],
)
def test_mask_depends_on_context_and_seed(other):
    secure = SecureSum((1, 2, 3), 5, "round 1")
    for client in (1, 2, 3):
        assert uniformity(secure.mask(client, zeros()) - other.mask(client, zeros())) > 1e-3


def test_mask_depends_on_shape_and_dtype():
    secure = SecureSum((1, 2), 5, "round 1")
    short = secure.mask(1, zeros())
    assert uniformity(short - secure.mask(1, zeros(size=2**15))[: short.size]) > 1e-3
    assert uniformity(short - secure.mask(1, zeros(np.uint64)).view(np.uint32)[: short.size]) > 1e-3


def test_mask_is_reproducible():
    first, second = (SecureSum((1, 2), 5, "round 1").mask(1, zeros(size=8)) for _ in range(2))
    assert (first == second).all()


def test_secure_sum_repr_hides_the_seed():
    assert "987654321" not in repr(SecureSum((1, 2), 987654321, "round 1"))


# --- who shares masks with whom


@pytest.mark.parametrize(
    ("n", "degree", "expected"),
    [
        (2, None, 1),
        (100, None, 99),
        (101, None, 40),
        (5000, None, 40),
        (50, 6, 6),
        (8, 6, 6),
        (7, 6, 6),
        (4, 6, 3),
    ],
)
def test_neighbours_are_symmetric_and_as_many_as_asked(n, degree, expected):
    clients = tuple(range(0, 3 * n, 3))
    secure = SecureSum(clients, 5, "round 1", degree)
    links = {client: set(secure.neighbours(client)) for client in clients}
    assert all(len(links[client]) == expected and client not in links[client] for client in clients)
    assert all(client in links[other] for client in clients for other in links[client])
    # Connected: no group of clients has a readable sum of its own.
    reached, frontier = set(), {clients[0]}
    while frontier:
        reached |= frontier
        frontier = set().union(*(links[client] for client in frontier)) - reached
    assert reached == set(clients)


def test_ring_order_follows_the_seed():
    clients = tuple(range(200))
    rings = (
        SecureSum(clients, 1, "a", 2),
        SecureSum(clients[::-1], 1, "a", 2),
        SecureSum(clients, 2, "a", 2),
    )
    first, reordered, reseeded = ([ring.neighbours(client) for client in clients] for ring in rings)
    assert first == reordered
    assert first != reseeded
    # In a random ring a client is next to the following id with probability 2 / 199.
    assert sum(client + 1 in first[client] for client in range(199)) < 12


# --- what is refused


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (((), 0, "a"), "at least 2 clients, not 0"),
        (((1,), 0, "a"), "at least 2 clients, not 1"),
        (((1, 2, 1), 0, "a"), "distinct"),
        (((1, -2), 0, "a"), ">= 0"),
        (((1, 2), -1, "a"), "seed"),
        (((1, 2), 0, "a", 3), "degree must be even and at least 2, not 3"),
        (((1, 2), 0, "a", 0), "degree"),
        (((1, 2), 0, "a", -2), "degree"),
    ],
)
def test_secure_sum_rejects_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        SecureSum(*parameters)


def test_secure_sum_rejects_an_unknown_client():
    secure = SecureSum((1, 2), 0, "a")
    with pytest.raises(ValueError, match="client 3 does not take part"):
        secure.mask(3, zeros())
    with pytest.raises(ValueError, match="client 3 does not take part"):
        secure.add({1: zeros(), 2: zeros(), 3: zeros()})


def test_secure_sum_rejects_missing_uploads():
    with pytest.raises(ValueError, match="2 uploads are missing, client 4's among them"):
        SecureSum((1, 7, 4), 0, "a").add({1: zeros()})


@pytest.mark.parametrize("other", [zeros(size=3), zeros(np.uint64, 4), np.zeros((2, 2), np.uint32)])
def test_secure_sum_rejects_unequal_uploads(other):
    with pytest.raises(ValueError, match="client 2 uploaded"):
        SecureSum((1, 2), 0, "a").add({1: zeros(size=4), 2: other})


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.float64])
def test_secure_sum_rejects_other_dtypes(dtype):
    secure = SecureSum((1, 2), 0, "a")
    with pytest.raises(ValueError, match="uint32 or uint64 values, not"):
        secure.mask(1, zeros(dtype))
    with pytest.raises(ValueError, match="uint32 or uint64 values, not"):
        secure.add({1: zeros(dtype), 2: zeros(dtype)})
