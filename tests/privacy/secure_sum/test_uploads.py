"""Uploads as fixed-point words: errors within the bound, and nothing out of range is clipped."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genfl import trees
from genfl.privacy.secure_sum import FixedPoint, SecureSumError
from genfl.privacy.secure_sum.fixed_point import SumRange
from genfl.privacy.secure_sum.uploads import UploadCodec

limits = st.floats(1e-6, 1e9)


@given(limits, st.integers(1, 5000), st.sampled_from([32, 64]), st.booleans(), st.integers(0, 2**32))
def test_sum_is_within_the_bound(limit, clients, bits, stochastic, seed):
    """Sums of as many clients as announced, with values up to the limit, do not wrap either."""
    numbers = FixedPoint(limit, clients, bits)
    rng = np.random.default_rng(seed)
    values = rng.uniform(-limit, limit, (min(clients, 7), 5))
    values[0, :2] = limit, -limit
    random = np.random.default_rng(1) if stochastic else None
    total = np.sum([numbers.encode(row, random) for row in values], axis=0, dtype=f"uint{bits}")
    exact = [math.fsum(column) for column in values.T]
    bound = numbers.error_bound(len(values), stochastic) + 2**-50 * len(values) * limit
    assert np.abs(numbers.decode(total) - exact).max() <= bound
    largest = np.full(1, limit) if clients < 2**20 else np.zeros(1)
    word = int(numbers.encode(largest, random).view(f"int{bits}")[0])
    assert clients * word < 2 ** (bits - 1)
    step_down = FixedPoint(limit, clients, bits).step / 2
    assert clients * math.ceil(limit / step_down) >= 2 ** (bits - 1) - clients  # no finer step would do


def test_stochastic_rounding_is_right_on_average():
    numbers = FixedPoint(2.0**20, 1, 32)
    value = 0.3 * numbers.step
    words = numbers.encode(np.full(100_000, value), np.random.default_rng(0))
    decoded = numbers.decode(words)
    assert set(decoded) == {0.0, numbers.step}
    assert decoded.mean() == pytest.approx(value, abs=4 * 0.5 * numbers.step / math.sqrt(100_000))
    assert not numbers.encode(np.full(3, value)).any()  # to the nearest


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("stochastic", [False, True])
def test_values_beyond_the_limit_are_refused_not_clipped(bits, stochastic):
    numbers = FixedPoint(8.0, 10, bits)
    random = np.random.default_rng(0) if stochastic else None
    assert numbers.decode(numbers.encode(np.array([8.0, -8.0]), random)).tolist() == [8.0, -8.0]
    for value in (math.nextafter(8.0, 9.0), -1000.0, 1e300, math.inf, -math.inf, math.nan):
        with pytest.raises(SecureSumError, match=r"beyond the limit of 8") as refused:
            numbers.encode(np.array([0.0, value]), random)
        assert refused.value.code == "range"


@pytest.mark.parametrize(
    ("limit", "clients", "precision", "bits"),
    [(8.0, 10, 2.0**-20, 32), (8.0, 10, 2.0**-24, 32), (8.0, 11, 2.0**-24, 32), (8.0, 20, 2.0**-24, 64),
     (8.0, 1000, 2.0**-20, 64), (2.0**20, 10, 2.0**-20, 64), (1.0, 100, 2.0**-20, 32)],
)  # fmt: skip
def test_shortest_words_that_give_the_precision(limit, clients, precision, bits):
    numbers = FixedPoint.fitting(limit, clients, precision)
    assert numbers.bits == bits
    assert numbers.step <= precision


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1, 32), "limit"),
        ((math.inf, 1, 32), "limit"),
        ((math.nan, 1, 32), "limit"),
        ((1e-300, 1, 64), "limit"),
        ((1.0, 0, 32), "clients"),
        ((1.0, 2**30, 32), "clients"),
        ((1.0, 1, 16), "32 or 64"),
    ],
)
def test_fixed_point_refuses_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        FixedPoint(*arguments)


def test_fitting_says_what_to_do():
    with pytest.raises(ValueError, match="needs a lower limit"):
        FixedPoint.fitting(1e9, 1000, 2.0**-40)


def upload(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        "delta": {
            "params": {"w": torch.randn(4, 3, generator=generator).to(dtype), "b": torch.randn(()).to(dtype)},
            "buffers": {},
        },
        "weight": torch.tensor(100.0 * seed),
        "labels": torch.randint(0, 1000, (5,), generator=generator),
        "table": torch.from_numpy(np.random.default_rng(seed).integers(0, 2**32, 6, dtype=np.uint32)),
        "empty": torch.zeros(0),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_trees_come_back_as_their_sum(dtype):
    uploads = [upload(seed, dtype) for seed in range(1, 6)]
    codec = UploadCodec(uploads[0], 5, SumRange(1024.0, 2.0**-17))
    assert [(segment.bits, segment.size) for segment in codec.segments] == [(32, 20), (64, 5)]
    words = [codec.encode(one) for one in uploads]
    total = codec.decode(
        [np.sum(vectors, axis=0, dtype=vectors[0].dtype) for vectors in zip(*words, strict=True)]
    )
    assert trees.mismatch(total, uploads[0]) is None
    exact = trees.add(*(trees.map(lambda leaf: leaf.double(), one) for one in uploads))
    for part in ("delta", "weight"):
        rounding = max(torch.finfo(leaf.dtype).eps for leaf in trees.leaves(total[part]))
        for leaf, expected in zip(trees.leaves(total[part]), trees.leaves(exact[part]), strict=True):
            bound = codec.fixed_point.error_bound(5) + rounding * expected.abs()
            assert ((leaf.double() - expected).abs() <= bound).all()
    assert torch.equal(total["labels"], sum(one["labels"] for one in uploads))
    wrapped = sum(one["table"].numpy().astype(object) for one in uploads) % 2**32
    assert total["table"].numpy().tolist() == wrapped.tolist()


def test_words_are_as_short_as_limit_and_precision_allow():
    short, default = (
        UploadCodec(upload(0), 10, numbers)
        for numbers in (SumRange(8.0, 2.0**-20), SumRange(2.0**20, 2.0**-20))
    )
    assert (short.fixed_point.bits, default.fixed_point.bits) == (32, 64)
    assert default.fixed_point.step <= 2.0**-20
    assert [codec.nbytes("delta") for codec in (short, default)] == [13 * 4, 13 * 8]
    assert [codec.nbytes("table") for codec in (short, default)] == [6 * 4, 6 * 4]
    with pytest.raises(ValueError, match=r"mask: .*not torch\.bool"):
        UploadCodec({"mask": torch.zeros(2, dtype=torch.bool)}, 10, SumRange(8.0, 0.1))


@pytest.mark.parametrize(
    ("code", "message", "change"),
    [
        ("range", "delta: a value of nan", {"delta": math.nan}),
        ("range", "delta: a value of inf", {"delta": math.inf}),
        ("range", "delta: a value of 129 is beyond the limit of 128", {"delta": 129.0}),
        ("shape", "structure", {"delta": None}),
        ("shape", "torch.int64|shape", {"weight": torch.zeros((), dtype=torch.int64)}),
        ("shape", "shape", {"weight": torch.zeros(2)}),
    ],
)
def test_bad_uploads_are_refused_by_name(code, message, change):
    good = upload(1)
    codec = UploadCodec(good, 5, SumRange(128.0, 2.0**-20))
    bad = dict(good)
    for part, value in change.items():
        if value is None:
            del bad[part]
        elif isinstance(value, float):
            bad[part] = trees.map(torch.clone, good[part])
            bad[part]["params"]["w"][1, 2] = value
        else:
            bad[part] = value
    with pytest.raises(SecureSumError, match=message) as refused:
        codec.encode(bad)
    assert refused.value.code == code
