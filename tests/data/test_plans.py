import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from genfl.data.plans import Batches, plan
from genfl.rng import Key

sizes = st.integers(1, 50)


@given(sizes, sizes, st.integers(1, 30), st.integers(0, 2**32))
def test_steps_are_full_batches_of_distinct_rows(samples, batch_size, steps, seed):
    rows = plan(samples, batch_size, steps, 1, np.random.default_rng(seed))
    assert len(rows) == steps
    for batch in rows:
        assert batch.dtype == torch.int64
        assert len(batch) == min(samples, batch_size) == len(set(batch.tolist()))
        assert batch.min() >= 0
        assert batch.max() < samples


@given(sizes, sizes, st.integers(1, 4), st.integers(0, 2**32))
def test_an_epoch_is_one_pass_without_repetition(samples, batch_size, epochs, seed):
    rows = plan(samples, batch_size, None, epochs, np.random.default_rng(seed))
    a_pass = samples // min(samples, batch_size)
    assert len(rows) == epochs * a_pass
    for epoch in range(epochs):
        used = torch.cat(rows[epoch * a_pass : (epoch + 1) * a_pass]).tolist()
        assert len(used) == len(set(used))


def test_passes_are_shuffled_anew():
    rows = plan(32, 32, 3, 1, np.random.default_rng(0))
    assert len({tuple(batch.tolist()) for batch in rows}) == 3


def test_no_data_no_steps():
    assert plan(0, 8, 5, 1, np.random.default_rng(0)) == []


part_counts = st.lists(st.integers(0, 30), min_size=1, max_size=3)
orders = st.sampled_from([None, (0, 1), (1, 0)])


@given(part_counts, sizes, st.none() | st.integers(1, 20), st.integers(1, 3), orders)
def test_counted_samples_are_those_that_are_drawn(parts, batch_size, steps, epochs, order):
    batches = Batches(batch_size, steps, epochs, Key(0), order)
    drawn = batches.draw(parts)
    assert batches.samples(parts) == sum(map(len, drawn))
    assert batches.length(parts) == len(drawn)
