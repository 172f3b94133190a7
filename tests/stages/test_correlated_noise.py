"""Noise that is correlated over rounds, in protections and in whole runs."""

import json
import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp

from genfl import config, pipeline
from genfl.config.privacy import Privacy
from genfl.data.plans import Schedule
from genfl.errors import InputError
from genfl.privacy.dp.toeplitz import BufferedToeplitz
from genfl.privacy.ledger import ZEROED_OUT
from genfl.report.releases import privacy_section
from genfl.results.schema import Summary
from genfl.rng import Key
from genfl.stages.federate.protection import Correlation, protect_users

CONFIG = """
name: correlated
seeds: [0]
data: {name: digits, partition: {kind: iid, clients: 20}}
generator: none
model: {name: mlp, width: 4}
federate: {rounds: 8, clients_per_round: 5, local: {steps: 1, batch_size: 8}, engine: sequential}
privacy: {unit: user, epsilon: 4, cohorts: cyclic, mechanism: blt, repeatable: true, accountant: rdp}
methods:
  fedavg: {algorithm: {name: fedavg, weighting: uniform}}
"""
BLT = {"unit": "user", "mechanism": "blt", "accountant": "rdp"}


def protection(rounds=40, clients=12, size=3, seed=4, **settings):
    privacy = Privacy(**BLT | {"cohorts": "cyclic", "noise_multiplier": 6.0} | settings)
    return protect_users(privacy, clients, Schedule(rounds, size, 4), Key(seed))[1]


def gaussian(noise_multiplier, delta, accountant=rdp.RdpAccountant):
    return accountant().compose(dp_accounting.GaussianDpEvent(noise_multiplier)).get_epsilon(delta)


@pytest.mark.slow
@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_epsilon_without_correlation_is_that_of_independent_noise(accountant):
    """The matrix of ones on the diagonal moves as √(rounds of the busiest client)."""
    independent = protection(mechanism="gaussian", cohorts="fixed", accountant=accountant)
    taken = ((1, 2, 7, 9), (3,), tuple(range(2, 40, 4)))
    unit = BufferedToeplitz((), ())
    for rounds in (1, 9, 40):
        most = [sum(number <= rounds for number in one) for one in taken]
        assert unit.sensitivities(40, taken)[rounds - 1] == pytest.approx(math.sqrt(max(most)))
    sensitivities = tuple(math.sqrt(most) for most in independent.participations)
    correlated = protection(cohorts="fixed", accountant=accountant)
    same = correlated.__class__(**{**correlated.__dict__, "correlation": Correlation(unit, sensitivities, 1)})
    for rounds in (0, 1, 9, 40):
        assert same.epsilon(rounds) == pytest.approx(independent.epsilon(rounds), rel=2e-3)


@pytest.mark.slow
def test_epsilon_is_that_of_one_gaussian_release():
    for accountant, kind in (("rdp", rdp.RdpAccountant), ("pld", pld.PLDAccountant)):
        one = protection(accountant=accountant)
        for rounds in (1, 7, 40):
            sensitivity = one.correlation.sensitivities[rounds - 1]
            assert one.epsilon(rounds) == gaussian(6.0 / sensitivity, one.delta, kind)
        figures = one.figures(7)
        assert (figures["steps"], figures["min_separation"], figures["mechanism"]) == (2, 4, "blt")
        assert figures["sensitivity"] == one.correlation.sensitivities[6]


def test_epsilon_gives_the_least_noise():
    one = protection(noise_multiplier=None, epsilon=3.0)
    assert 2.99 < one.epsilon(40) <= 3
    assert one.epsilon(39) < one.epsilon(40)
    assert one.noise_multiplier > 1


@pytest.mark.slow
def test_turns_make_epsilon_independent_of_the_seed():
    """Clients take turns four rounds apart, ten times in 40 rounds, in whichever order."""
    epsilons = {protection(seed=seed).epsilon(40) for seed in range(4)}
    assert len(epsilons) == 1
    assert protection().participations[-1] == 10
    assert len({protection(seed=seed, cohorts="fixed").epsilon(40) for seed in range(4)}) > 1


def test_correlation_lowers_the_noise_of_the_model_at_the_same_epsilon():
    """Variance of the noise of all prefix sums, from the noise multipliers that ε 8 needs."""
    for cohorts in ("cyclic", "fixed"):
        settings = {"noise_multiplier": None, "epsilon": 8.0, "cohorts": cohorts}
        blt, independent = protection(**settings), protection(mechanism="gaussian", **settings)
        left = blt.noise_multiplier**2 * blt.correlation.matrix.error(40)
        assert left < 0.75 * independent.noise_multiplier**2 * 20.5


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"unit": "sample"}, "mechanism: blt does not apply to unit sample"),
        ({"unit": "user"}, "they are poisson; set cohorts to cyclic or fixed"),
        ({"unit": "user", "cohorts": "poisson"}, "they are poisson; set cohorts to cyclic or fixed"),
        (
            {"unit": "user", "cohorts": "fixed", "target_quantile": 0.5},
            "mechanism: blt needs one norm for all rounds, and target_quantile 0.5 changes it",
        ),
    ],
)
def test_what_correlated_noise_does_not_go_with_is_refused(settings, match):
    with pytest.raises(InputError, match=match) as error:
        config.parse(CONFIG, [f"privacy={json.dumps(settings | {'epsilon': 8, 'mechanism': 'blt'})}"])
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_run_states_what_correlated_noise_costs(tmp_path):
    pipeline.execute(config.parse(CONFIG), tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "stages" / "federate.json").read_text())["result"]["methods"]
    privacy = recorded["fedavg"]["0"]["privacy"]
    assert (privacy["steps"], privacy["min_separation"], privacy["neighbours"]) == (2, 4, "zero out")
    matrix = BufferedToeplitz(tuple(privacy["decays"]), tuple(privacy["scales"]))
    assert privacy["sensitivity"] == matrix.sensitivities(8, ((1, 5),))[-1]
    epsilon = gaussian(privacy["noise_multiplier"] / privacy["sensitivity"], privacy["delta"])
    assert privacy["epsilon"] == epsilon == pytest.approx(4, abs=0.01)
    summary = Summary.read(tmp_path / "run" / "summary.json").privacy
    assert summary.guarantees["fedavg"].epsilon == epsilon
    rows = {row.name: row for row in summary.releases}
    noise = rows["training"].noise
    assert (noise.sensitivity, noise.min_separation) == (privacy["sensitivity"], 4)
    assert noise.neighbours == ZEROED_OUT
    assert "sizes of cohorts" not in rows
    shown = [row.protection for row in privacy_section(summary)["rows"]]
    assert any("noise, correlated over rounds, for each client" in text for text in shown)
