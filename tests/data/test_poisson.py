"""Poisson sampling: batches to which every sample belongs independently."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from genfl.data.plans import PADDING, Batches, PoissonSampling, Schedule
from genfl.rng import Key


def batches(rate, steps=5, free=(), epochs=1, key=0):
    schedule = Schedule(1, 1, 4, steps, epochs, poisson=PoissonSampling(rate, free))
    return schedule.batches(Key(key))


@given(st.floats(0.01, 1), st.integers(0, 200), st.integers(1, 20), st.integers(0, 2**32))
def test_batches_are_distinct_rows_padded_to_one_size(rate, samples, steps, seed):
    drawn = batches(rate, steps, key=seed).draw([samples])
    assert len(drawn) == steps
    assert len({len(rows) for rows in drawn}) == 1
    assert len(drawn[0]) % PADDING == 0
    assert len(drawn[0]) >= PADDING
    for rows in drawn:
        real = rows[rows >= 0]
        assert rows.dtype == torch.int64
        assert (rows[len(real) :] == -1).all(), "padding is at the end"
        assert len(real.unique()) == len(real)
        assert (real < samples).all()


def test_every_sample_is_drawn_independently_with_the_rate():
    rate, samples, steps = 0.2, 40, 4000
    drawn = batches(rate, steps).draw([samples])
    member = torch.zeros(steps, samples)
    for step, rows in enumerate(drawn):
        member[step, rows[rows >= 0]] = 1
    counts = member.sum(0).numpy()
    spread = ((counts - rate * steps) ** 2).sum() / (steps * rate * (1 - rate))
    assert stats.chi2.sf(spread, samples) > 1e-3
    together = (member.T @ member / steps).fill_diagonal_(rate**2)
    assert float((together - rate**2).abs().max()) < 5 * math.sqrt(rate**2 * (1 - rate**2) / steps)
    sizes = member.sum(1).numpy()
    assert sizes.var() == pytest.approx(samples * rate * (1 - rate), rel=0.1), "sizes vary as a binomial"


def test_a_rate_of_one_draws_all():
    (rows,) = batches(1.0, 1).draw([11])
    assert rows.tolist() == [*range(11), -1, -1, -1, -1, -1]


def test_marks_tell_private_free_and_padding_apart():
    plan = PoissonSampling(0.5, free=(1,))
    marks = plan.marks(torch.tensor([0, 2, 3, 6, -1]), [3, 5])
    assert marks["protected"].tolist() == [1, 1, 0, 0, 0]
    assert marks["free"].tolist() == [0, 0, 1, 1, 0]
    assert float(marks["expected"]) == 4


def test_epochs_are_steps_of_so_many_samples_on_average():
    plan = batches(0.3, None, epochs=2)
    assert plan.length([10]) == len(plan.draw([10])) == 7
    assert plan.samples([10]) == 21
    assert isinstance(plan, Batches)


def test_draws_differ_between_clients_and_rounds():
    one, other = batches(0.5, 3, key=0).draw([30]), batches(0.5, 3, key=1).draw([30])
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
