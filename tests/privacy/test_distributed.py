"""Noise that clients add: the bound after rounding, the noise of every quorum, and what ε it has."""

import itertools
import math

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genfl import trees
from genfl.engines.reducers import PlainReducer, QuorumReducer
from genfl.errors import InputError
from genfl.privacy.dp import distributed
from genfl.privacy.dp.accounting import NoisedSums, epsilon_of
from genfl.privacy.dp.distributed import ClientShare, Words, excess, square_bound
from genfl.rng import Key

SIZES = st.sampled_from([1, 3, 50, 3000])


def upload_of(words, seed, norm, kind):
    """An upload of a norm: normal numbers, equal ones that lie between two units, or a single one."""
    rng = np.random.default_rng(seed)
    numbers = {
        "normal": rng.normal(size=words.size),
        "equal": np.full(words.size, 1.0),
        "single": np.eye(1, words.size, seed % words.size)[0],
    }[kind]
    numbers = torch.from_numpy(numbers * norm * (1 - 1e-12) / np.linalg.norm(numbers))
    return {"delta": {"w": numbers[:1], "b": numbers[1:]}}


def silent(words, dither):
    """What a client without noise drew."""
    noise = torch.zeros(words.size + (words.count is not None), dtype=torch.int32)
    return ClientShare(noise, torch.full((words.size,), dither))


@settings(deadline=None, max_examples=100)
@given(
    cohort=st.sampled_from([2, 100, 30_000, 300_000]),
    size=SIZES,
    count=st.sampled_from([None, 0.3]),
    norm=st.floats(1e-6, 1e6),
    dither=st.floats(0, 1, exclude_max=True, width=32),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["normal", "equal", "single"]),
    within=st.booleans(),
)
def test_rounded_upload_never_exceeds_the_bound(cohort, size, count, norm, dither, seed, kind, within):
    """With one dither for all numbers, which makes uploads as long as rounding can."""
    words = Words(0.0, cohort, 2, size, count)
    upload = upload_of(words, seed, norm, kind)
    counted = None if count is None else torch.tensor(within)
    encoded = words.encode(upload, counted, norm, silent(words, dither))
    square = int(encoded.long().square().sum())
    assert square <= words.longest + words.centred**2
    numbers = torch.cat(trees.leaves(upload)) * (words.length / norm)
    assert (encoded[:size] - numbers).abs().max() < 1, "every number is one of its two neighbours"
    if count is not None:
        assert int(encoded[-1]) == (words.centred if within else -words.centred)


def test_uploads_that_rounding_makes_too_long_are_cut():
    words = Words(0.0, 300_000, 2, 3000)
    upload = upload_of(words, 0, 1.0, "equal")
    encoded = words.encode(upload, None, 1.0, silent(words, 0.999))
    exact = torch.cat(trees.leaves(upload)) * words.length
    assert torch.equal(encoded, exact.trunc().to(torch.int32))
    assert int(exact.ceil().square().sum()) > words.longest, "rounding up would break the bound"


def test_bound_is_that_of_the_paper():
    """Its Algorithm 1 with β = 2^-64, written out for one vector."""
    ln = 64 * math.log(2)
    assert square_bound(1000, 400) == 10**6 + math.floor(100 + math.sqrt(2 * ln) * (1000 + 10))


def test_rounding_is_unbiased():
    words = Words(0.0, 300_000, 2, 40)
    upload = upload_of(words, 3, 1.0, "normal")
    exact = torch.cat(trees.leaves(upload)) * words.length
    encoded = torch.stack([words.encode(upload, None, 1.0, words.draw(Key(seed))) for seed in range(1000)])
    fraction = exact - exact.floor()
    error = (encoded.double().mean(0) - exact) / (fraction * (1 - fraction) / 1000).sqrt()
    assert stats.chi2(40).cdf(error.square().sum()) == pytest.approx(0.5, abs=0.4999)


@pytest.mark.parametrize("count", [None, 0.4])
def test_sum_without_noise_is_that_of_the_uploads(count):
    words = Words(0.0, 6, 4, 50, count)
    uploads = [upload_of(words, seed, 0.7, "normal") for seed in range(6)]
    inside = [seed % 3 > 0 for seed in range(6)] if count else [None] * 6
    encoded = [
        words.encode(upload, None if one is None else torch.tensor(one), 0.7, words.draw(Key(seed)))
        for seed, (upload, one) in enumerate(zip(uploads, inside, strict=True))
    ]
    like = trees.map(lambda leaf: leaf.float(), uploads[0])
    sums, within = words.decode(sum(encoded), 0.7, like)
    unit = 0.7 / words.length
    for total, exact in zip(trees.leaves(sums), trees.leaves(trees.add(*uploads)), strict=True):
        assert total.dtype == torch.float32
        assert (total - exact).abs().max() < 6 * unit + 1e-7
    assert within is None if count is None else within == sum(inside) - 3


# --- the noise


def totals(words, clients, reducer, seed=0):
    """What the sum of some clients' uploads is, if all of them upload zeros."""
    zeros = {"delta": torch.zeros(words.size)}
    for client in clients:
        within = torch.tensor(True) if words.count is not None else None
        encoded = words.encode(zeros, within, 1.0, words.draw(Key(seed).fold(client)))
        reducer.add([client], {"words": encoded[None]})
    return reducer.aggregate()


def test_any_quorum_adds_the_noise_that_is_claimed():
    """Every subset of three of five clients, by the reducer of a secure sum."""
    z, cohort, quorum, size = 0.8, 5, 3, 4000
    words = Words(z, cohort, quorum, size, 0.25)
    for clients in itertools.combinations(range(cohort), quorum):
        reducer = QuorumReducer({"words": "sum"}, "words", quorum, Key(9))
        total = totals(words, clients, reducer)["words"]
        sums, count = words.decode(total, 1.0, {"delta": torch.zeros(size, dtype=torch.float64)})
        # the guarantee: z times the norm of an upload with its count
        claimed = z * math.hypot(1, 0.25)
        statistic = (sums["delta"] / claimed).square().sum()
        assert 1e-5 < stats.chi2(size).cdf(statistic) < 1 - 1e-5
        assert abs(count - quorum / 2) < 6 * claimed / 0.5
    everyone = QuorumReducer({"words": "sum"}, "words", quorum, Key(9))
    sums, _ = words.decode(totals(words, range(cohort), everyone)["words"], 1.0, {"delta": torch.zeros(size)})
    more = claimed * math.sqrt(cohort / quorum)
    assert 1e-5 < stats.chi2(size).cdf((sums["delta"].double() / more).square().sum()) < 1 - 1e-5


def test_fewer_than_a_quorum_have_no_sum(caplog):
    words = Words(0.8, 5, 3, 10)
    for clients in ((), (1,), (1, 4)):
        reducer = QuorumReducer({"words": "sum", "seen": "each"}, "words", 3, Key(9))
        assert totals(words, clients, reducer) is None
    assert "2 clients finished, and the quorum is 3: the round is skipped" in caplog.text


def test_masks_change_no_bit():
    words = Words(0.8, 5, 3, 1000)
    plain = totals(words, range(4), PlainReducer({"words": "sum"}))["words"]
    for seed in (1, 2):
        secure = totals(words, range(4), QuorumReducer({"words": "sum"}, "words", 3, Key(seed)))["words"]
        assert torch.equal(plain, secure.view(torch.int32))


def test_sums_wrap_where_words_are_full():
    """The sum is modulo 2^32, with masks and without."""
    full = [torch.tensor([2**31 - 1, 5], dtype=torch.int32), torch.tensor([2, -9], dtype=torch.int32)]
    for reducer in (
        PlainReducer({"words": "sum"}),
        QuorumReducer({"words": "sum"}, "words", 2, Key(0)),
    ):
        for client, numbers in enumerate(full):
            reducer.add([client], {"words": numbers[None]})
        assert reducer.aggregate()["words"].view(torch.int32).tolist() == [-(2**31) + 1, -4]


@pytest.mark.parametrize("z", [0.0, 1e-3, 0.5, 1.0, 30.0])
@pytest.mark.parametrize("cohort", [2, 30, 1000, 100_000])
@pytest.mark.parametrize("size", [10, 10**6, 10**8])
def test_sums_stay_in_range_or_the_noise_is_refused(z, cohort, size):
    """20 standard deviations of the noise of all clients fit, on top of the largest sum of uploads."""
    quorum = max(2, cohort // 2)
    try:
        words = Words(z, cohort, quorum, size, 0.1)
    except InputError as error:
        assert "too small" in str(error)
        assert z == 1e-3 or size == 10**8 or cohort == 100_000
        return
    largest = cohort * max(math.sqrt(words.longest), words.centred)
    assert largest + 20 * math.sqrt(cohort * words.variance) < 2**31
    assert words.length <= math.sqrt(words.longest) <= 1.02 * words.length
    assert words.variance < 2**56


@settings(deadline=None, max_examples=60)
@given(
    z=st.floats(0.05, 20),
    cohort=st.integers(2, 2000),
    share=st.floats(0.01, 1),
    size=st.integers(1, 10**7),
    count=st.sampled_from([None, 0.2, 3.0]),
    steps=st.integers(1, 200),
)
def test_epsilon_is_that_of_the_theorem(z, cohort, share, size, count, steps):
    """The bound of the paper for the noise of a quorum, by dp-accounting: as stated, and never above it."""
    words = Words(z, cohort, max(2, int(share * cohort)), size, count)
    sensitivity = words.longest + words.centred**2
    rho = sensitivity / (2 * words.quorum * words.variance)
    xi = excess(words.variance, cohort) * (size + (count is not None))
    accountant = rdp.RdpAccountant().compose(dp_accounting.ZCDpEvent(rho, xi), steps)
    bound = accountant.get_epsilon(1e-5)
    stated = epsilon_of((NoisedSums(z, 1.0, steps),), 1e-5, "rdp")
    assert bound <= stated <= bound * (1 + 1e-6)
    gaussian = rdp.RdpAccountant().compose(dp_accounting.GaussianDpEvent(z), steps)
    assert stated == gaussian.get_epsilon(1e-5)


def test_excess_is_the_sum_of_the_paper():
    """τ, written out for three clients with σ² = 1."""
    assert excess(1, 1) == 0
    assert excess(1, 3) == pytest.approx(10 * (math.exp(-(math.pi**2)) + math.exp(-4 / 3 * math.pi**2)))


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((1.0, 1, 1, 5), "distributed needs 2 clients in a round; raise clients_per_round"),
        ((1.0, 5, 1, 5), "quorum: 1, but a round has 5 clients; give a number from 2 to 5"),
        ((1.0, 5, 6, 5), "quorum: 6, but a round has 5 clients; give a number from 2 to 5"),
        ((1e6, 5, 5, 10**6), "noise: distributed, but words of 32 bits are too small for 5 clients"),
        ((1e-3, 10**6, 10**6, 5), "too small for 1000000 clients and a noise multiplier of 0.001"),
    ],
)
def test_what_does_not_fit_is_refused(numbers, match):
    with pytest.raises(InputError, match=match) as error:
        Words(*numbers)
    assert "\n" not in str(error.value)


def test_share_is_drawn_once_for_each_stream():
    words = Words(1.0, 5, 3, 100)
    one, again, other = words.draw(Key(1)), words.draw(Key(1)), words.draw(Key(2))
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one.noise, other.noise)
    assert not torch.equal(one.dither, other.dither)
    assert 8 * one.noise.element_size() == distributed.WORD_BITS
