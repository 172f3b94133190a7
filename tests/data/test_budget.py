"""How generated content is divided over clients and classes."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from genfl.data.budget import BudgetKind, budget, guided

KINDS = get_args(BudgetKind)
COUNTS = arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 400))


@given(kind=st.sampled_from(KINDS), samples=st.integers(0, 20_000), own=COUNTS)
def test_the_sum_is_exact_and_nothing_is_negative(kind, samples, own):
    given_out = budget(kind, samples, own)
    assert given_out.shape == own.shape
    assert given_out.sum() == samples
    assert given_out.min() >= 0


@given(samples=st.integers(0, 20_000), own=COUNTS)
def test_equal_is_m_over_k_c_up_to_rounding(samples, own):
    clients, classes = own.shape
    found = budget("equal", samples, own)
    assert np.abs(found - samples / (clients * classes)).max() < 2  # rounded for clients, then for classes
    assert np.ptp(found.sum(1)) <= 1
    assert np.ptp(found, axis=1).max() <= 1


@given(samples=st.integers(0, 20_000), own=COUNTS)
def test_inverse_is_its_closed_form_up_to_rounding(samples, own):
    sizes = own.sum(1)
    missing = sizes.max() - sizes
    share = missing / missing.sum() if missing.any() else np.full(len(own), 1 / len(own))
    found = budget("inverse", samples, own)
    assert np.abs(found.sum(1) - samples * share).max() < 1
    assert np.ptp(found, axis=1).max() <= 1


def test_inverse_gives_the_largest_client_nothing():
    own = np.array([[50, 50], [10, 10], [0, 20]])
    assert budget("inverse", 160, own).tolist() == [[0, 0], [40, 40], [40, 40]]


@given(samples=st.integers(0, 20_000), own=COUNTS)
def test_water_filling_levels_what_is_lowest(samples, own):
    clients, _ = own.shape
    found = budget("water_filling", samples, own)
    assert np.ptp(found.sum(1)) <= 1
    assert np.abs(found.sum(1) - samples / clients).max() < 1
    for before, poured in zip(own, found, strict=True):
        after = before + poured
        wet = poured > 0
        if wet.any():
            assert np.ptp(after[wet]) <= 1  # a level
            assert after[~wet].min(initial=after[wet].max()) >= after[wet].max() - 1  # nobody below it is dry


def test_water_filling_by_hand():
    own = np.array([[10, 4, 0], [0, 0, 0]])
    # 8 samples: class 2 rises to 4 for four of them, then classes 1 and 2 to 6 for the other four
    assert budget("water_filling", 16, own).tolist() == [[0, 2, 6], [3, 2, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_over_goes_to_different_classes(kind):
    """Not all of it to class 0, which would shift the labels of the whole federation."""
    found = budget(kind, 15, np.full((5, 10), 7))
    assert np.ptp(found.sum(0)) <= 1


def test_mixed_guidance_gives_real_examples_the_larger_half():
    shares, counts = np.array([[1, 2, 3, 0, 5, 7]]), np.array([[9, 1, 4, 2, 0, 3]])
    by_prompt, by_example = guided("mixed", shares, counts)
    assert by_example.tolist() == [[1, 1, 2, 0, 0, 4]]
    assert by_prompt.tolist() == [[0, 1, 1, 0, 5, 3]]
