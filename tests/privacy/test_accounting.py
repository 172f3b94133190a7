"""ε against dp-accounting itself, Opacus, and known values."""

import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from genfl.privacy.dp.accounting import NoisedSums, compose, default_delta, epsilon_of, noise_for


@pytest.mark.slow
@pytest.mark.parametrize(
    ("release", "delta", "accountant", "epsilon", "digits"),
    [
        (NoisedSums(1.5, 0.04, 2250), 1e-5, "rdp", 7.32911, 3),
        (NoisedSums(1.5, 0.04, 2250), 1e-5, "pld", 6.7774, 2),  # from PRV, which bounds its error at 0.01
        (NoisedSums(4.530877117, 1, 1), 1e-6, "rdp", 1.0, 6),
        (NoisedSums(2 * math.sqrt(2), 1, 5), 1e-5, "pld", 3.34, 2),
    ],
)
def test_epsilon_known_values(release, delta, accountant, epsilon, digits):
    assert epsilon_of((release,), delta, accountant) == pytest.approx(epsilon, abs=0.51 * 10**-digits * 2)


GRID = {
    "noise_multiplier": st.floats(1, 5),
    "rate": st.floats(0.001, 0.1),
    "steps": st.integers(1, 3000),
    "delta": st.sampled_from([1e-4, 1e-5, 1e-6]),
}


def sampled(noise_multiplier, rate):
    """Google's event for a noised sum over a Poisson sample."""
    return dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise_multiplier))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(**GRID)
def test_epsilon_equals_dp_accounting(noise_multiplier, rate, steps, delta):
    ours = epsilon_of((NoisedSums(noise_multiplier, rate, steps),), delta, "rdp")
    theirs = rdp.RdpAccountant().compose(sampled(noise_multiplier, rate), steps)
    assert ours == theirs.get_epsilon(delta)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(**GRID)
def test_epsilon_equals_opacus(noise_multiplier, rate, steps, delta):
    from opacus.accountants import RDPAccountant  # its import takes seconds, and every worker collects

    ours = epsilon_of((NoisedSums(noise_multiplier, rate, steps),), delta, "rdp")
    # Above, dp-accounting leaves out small orders whose series does not converge. Its ε is then larger.
    assume(ours < 5)
    opacus = RDPAccountant()
    opacus.history = [(noise_multiplier, rate, steps)]
    orders = rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS  # its own orders are fewer
    assert ours == pytest.approx(opacus.get_epsilon(delta, alphas=orders), rel=1e-3, abs=1e-3)


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(**GRID)
def test_epsilon_pld_equals_dp_accounting_and_bounds_opacus(noise_multiplier, rate, steps, delta):
    from opacus.accountants import PRVAccountant

    ours = epsilon_of((NoisedSums(noise_multiplier, rate, steps),), delta, "pld")
    theirs = pld.PLDAccountant().compose(sampled(noise_multiplier, rate), steps)
    assert ours == theirs.get_epsilon(delta)
    opacus = PRVAccountant()
    opacus.history = [(noise_multiplier, rate, steps)]
    assert ours == pytest.approx(opacus.get_epsilon(delta, eps_error=0.01), abs=0.02)


def test_epsilon_without_noise_is_infinite_and_of_nothing_is_zero():
    assert epsilon_of((NoisedSums(0, 0.1, 1),), 1e-5, "pld") == math.inf
    assert epsilon_of((), 1e-5, "pld") == epsilon_of((NoisedSums(0, 0.1, 0),), 1e-5, "pld") == 0


@pytest.mark.parametrize(
    ("accountant", "epsilon"), [("rdp", 0.5), ("rdp", 8.0), pytest.param("pld", 2.0, marks=pytest.mark.slow)]
)
def test_noise_for_is_the_least_that_reaches_epsilon(accountant, epsilon):
    noise = noise_for(epsilon, 1e-5, 0.05, 400, accountant)
    assert epsilon_of((NoisedSums(noise, 0.05, 400),), 1e-5, accountant) <= epsilon
    assert epsilon_of((NoisedSums(noise * 0.998, 0.05, 400),), 1e-5, accountant) > epsilon


def test_compose_joins_equal_releases():
    first, other = NoisedSums(1, 0.1, 2), NoisedSums(2, 0.1, 1)
    assert compose([first, other, first]) == (NoisedSums(1, 0.1, 4), other)


def test_default_delta_is_below_one_over_n():
    assert default_delta(100) == pytest.approx(1 / 100**1.1)
