"""Discrete Laplace noise on counts of clients: its distribution, and what it bounds."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import dp_event, pld
from scipy import stats

from genfl import config
from genfl.errors import InputError
from genfl.privacy.dp.accounting import epsilon_of
from genfl.privacy.dp.counts import decay, noised_counts
from genfl.privacy.ledger import Noise, ledger, releases
from genfl.report.releases import privacy_line, privacy_section
from genfl.results.schema import PrivacyResult
from genfl.rng import Key

COUNTS = {f"name {number}": 50 for number in range(20)}
BASE = """
name: counts
data: {name: digits, partition: {kind: iid, clients: 50}}
generator: none
model: mlp
labels: {count_epsilon: 0.5}
federate: {rounds: 5, clients_per_round: 10}
methods: {fedavg: {algorithm: {name: fedavg, weighting: uniform}}}
"""
USER = "privacy={unit: user, epsilon: 4, cohorts: fixed}"
NOISE = Noise("user", "one uploads zeros", 2.0, 1.0, 1.0, 3, 1e-3, 2.5)


def draws(epsilon, times=1000):
    noised = [noised_counts(COUNTS, epsilon, Key(number)) for number in range(times)]
    return np.array([[one[name] - 50 for name in COUNTS] for one in noised])


@pytest.mark.parametrize("epsilon", [5.0, 40.0])
def test_noise_has_the_right_distribution(epsilon):
    """Its frequencies and its variance, 2p / (1 − p)² with p = exp(−ε / names)."""
    noise, p = draws(epsilon), math.exp(-decay(epsilon, len(COUNTS)))
    values = np.arange(-3, 4)
    expected = (1 - p) / (1 + p) * p ** np.abs(values) * noise.size
    seen = (noise.reshape(-1, 1) == values).sum(0)
    rest = noise.size - expected.sum()
    statistic = ((seen - expected) ** 2 / expected).sum() + (noise.size - seen.sum() - rest) ** 2 / rest
    assert stats.chi2(len(values)).cdf(statistic) < 0.9999
    variance = 2 * p / (1 - p) ** 2
    fourth = (2 * p * (1 + 10 * p + p**2)) / (1 - p) ** 4
    spread = math.sqrt((fourth - variance**2) / noise.size)
    assert abs((noise.astype(float) ** 2).mean() - variance) < 4.5 * spread
    off = np.corrcoef(noise.T) - np.eye(len(COUNTS))
    assert np.abs(off).max() < 4.5 / math.sqrt(len(noise))


@pytest.mark.parametrize("names", [1, 5, 20])
def test_epsilon_is_that_of_dp_accounting(names):
    """A client changes each count by 1 at most. The accountant needs a δ above 0."""
    event = dp_event.DiscreteLaplaceDpEvent(decay(0.5, names), 1)
    epsilon = pld.PLDAccountant().compose(event, names).get_epsilon(1e-10)
    assert epsilon == pytest.approx(0.5, rel=1e-2)
    assert epsilon < 0.5 + 1e-3


def test_no_result_is_likelier_than_epsilon_allows():
    """The worst client holds all names. Its effect is bounded count by count, and tight in the tails."""
    p = math.exp(-decay(0.5, 3))
    mass = {x: p ** abs(x) for x in range(-30, 31)}
    ratios = [
        math.log(mass[a] * mass[b] * mass[c] / (mass[a - 1] * mass[b - 1] * mass[c - 1]))
        for a in range(-5, 6)
        for b in range(-5, 6)
        for c in range(-5, 6)
    ]
    assert max(map(abs, ratios)) == pytest.approx(0.5)


def test_counts_do_not_depend_on_their_order():
    turned = dict(reversed(COUNTS.items()))
    assert noised_counts(COUNTS, 1.0, Key(3)) == noised_counts(turned, 1.0, Key(3))
    assert noised_counts(COUNTS, 1.0, Key(3)) != noised_counts(COUNTS, 1.0, Key(4))
    assert noised_counts({}, 1.0, Key(3)) == {}


def test_ledger_has_noised_counts_and_exact_names():
    rows = {row.name: row for row in releases(config.parse(BASE))}
    assert rows["label names"].outside
    assert (rows["label holders"].mechanism, rows["label holders"].epsilon) == ("discrete_laplace", 0.5)
    assert rows["label holders"].recipient == "readers"
    assert not rows["label holders"].outside
    assert rows["label holders before noise"].outside, "the server sees them as they are"
    shared = "privacy={unit: user, epsilon: 4, noise: distributed}"
    for privacy, outside in ((USER, False), (shared, True), ("privacy={unit: sample, epsilon: 4}", True)):
        (before,) = (
            row for row in releases(config.parse(BASE, [privacy])) if row.name == "label holders before noise"
        )
        assert before.outside is outside, "only if it adds the noise on sums, the server is trusted"
        assert before.recipient == "sum"
    exact = {row.name: row for row in releases(config.parse(BASE, ["labels.count_epsilon=null"]))}
    assert exact["label holders"].outside
    assert "set labels.count_epsilon" in exact["label holders"].fix


@pytest.mark.slow
def test_epsilon_of_counts_joins_that_of_training_users():
    settings = config.parse(BASE, [USER])
    (guarantee,) = ledger(settings, {"fedavg": NOISE}).guarantees.values()
    training = epsilon_of((NOISE.sums,), 1e-3, "pld")
    assert guarantee.epsilon == pytest.approx(training + 0.5)
    composed = pld.PLDAccountant().compose(dp_accounting.GaussianDpEvent(2.0), 3)
    composed.compose(dp_event.DiscreteLaplaceDpEvent(0.05, 1), 10)
    assert training < composed.get_epsilon(1e-3) < guarantee.epsilon, "the sum is a bound"
    assert "label holders" not in guarantee.outside
    assert "label names" in guarantee.outside


def test_epsilon_of_counts_stays_apart_from_training_on_samples():
    """A guarantee for samples says nothing of clients."""
    settings = config.parse(BASE, ["privacy={unit: sample, epsilon: 4}"])
    noise = NOISE._replace(unit="sample")
    (guarantee,) = ledger(settings, {"fedavg": noise}).guarantees.values()
    assert guarantee.epsilon == epsilon_of((noise.sums,), 1e-3, "pld")


def test_report_shows_the_epsilon_of_counts():
    settings = config.parse(BASE, [USER.replace("fixed", "fixed, public: [labels]")])
    result = PrivacyResult.of(ledger(settings, {"fedavg": NOISE}))
    assert any("labels/noise.key" in note for note in result.notes)
    (row,) = (row for row in privacy_section(result)["rows"] if "noise on numbers" in row.protection)
    assert row.epsilon == "0.5 at δ = 0"
    assert privacy_line(result).startswith("privacy: epsilon ")


@pytest.mark.parametrize("value", [0, -1, 1e-4, 101, ".nan", ".inf"])
def test_an_epsilon_out_of_range_is_refused(value):
    with pytest.raises(InputError, match=r"labels\.count_epsilon") as error:
        config.parse(BASE, [f"labels.count_epsilon={value}"])
    assert "\n" not in str(error.value)
