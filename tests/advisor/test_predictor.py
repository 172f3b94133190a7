"""Predictions from a table of full runs."""

from dataclasses import replace

import numpy as np
import pytest

from genfl.advisor.evidence import PilotEvidence, Probe
from genfl.advisor.pilot import Plan
from genfl.advisor.predictor import (
    FullRun,
    Numbers,
    accuracy_of,
    fit,
    log_odds,
    more_samples,
    predictor_for,
    slope,
    training_table,
)
from genfl.results.names import ALONE, ARMS, TARGETS, WITHOUT


def evidence_with(level=0.5, rise=0.0, rounds=10, planned_rounds=100, probe=0.5, labels=2):
    """The evidence of a pilot whose methods differ by ``rise`` between their first and last rounds."""
    curve = [(0, 0.1), (rounds // 2, level - rise), (rounds, level)]
    return PilotEvidence(
        labels=[f"label {n}" for n in range(labels)],
        samples=[10] * labels,
        clients=4,
        cohort=2,
        held=0.5,
        plan=Plan(20, 200, rounds, planned_rounds),
        probes=[Probe(10, probe, [probe] * labels), Probe(20, probe, [probe] * labels)],
        distances=[1.0] * labels,
        curves=dict.fromkeys(ARMS, curve),
        diversity=dict.fromkeys(ARMS, 0.6),
    )


def row(data, evidence, **accuracy):
    return FullRun(data, data, evidence, dict.fromkeys(TARGETS, 0.6) | accuracy)


def test_log_odds_and_accuracy_are_inverse_and_bounded():
    assert accuracy_of(log_odds(0.3)) == pytest.approx(0.3)
    assert accuracy_of(log_odds(0.0)) == pytest.approx(0.01)
    assert accuracy_of(log_odds(1.0)) == pytest.approx(0.99)


def test_the_slope_is_that_of_log_odds_in_the_logarithm_of_rounds():
    curve = [(0, 0.1), *((t, accuracy_of(0.7 * np.log(t) - 1)) for t in (1, 2, 4, 8))]
    evidence = evidence_with()
    evidence.curves[WITHOUT] = curve
    assert slope(evidence, WITHOUT) == pytest.approx(0.7)


def test_weights_are_those_of_the_law_that_made_the_table():
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(200):
        numbers = Numbers(rng.normal(), {"one": rng.normal(), "other": 10 * rng.normal()})
        true = numbers.start + 0.5 * numbers.values["one"] - 0.03 * numbers.values["other"]
        examples.append((numbers, true))
    found = fit(examples).weights
    assert found == pytest.approx({"one": 0.5, "other": -0.03}, rel=0.02)
    assert fit([(Numbers(1.0, {"one": 0.0}), 3.0)]).weights == {"one": 0.0}, "there is no constant"


def test_where_nothing_differs_and_nothing_grows_no_gain_is_predicted():
    rows = [row(data, evidence_with(level=0.3 + 0.05 * n)) for n, data in enumerate("abcd")]
    assert [gain.value for gain in predictor_for(rows).gains(evidence_with()).values()] == [0.0] * 3


def test_a_data_sets_own_rows_never_count():
    rows = [row(data, evidence_with(level=0.3 + 0.05 * n)) for n, data in enumerate("abcd")]
    lie = [row("own", evidence_with(), **dict.fromkeys(TARGETS, 0.99))] * 5
    evidence = evidence_with()
    assert predictor_for([*rows, *lie], "own").predict(evidence) == predictor_for(rows).predict(evidence)
    assert predictor_for([*rows, *lie], None).predict(evidence) != predictor_for(rows).predict(evidence)
    with pytest.raises(ValueError, match="2 are needed"):
        predictor_for(rows[:2], "a")


def test_intervals_hold_the_value_and_widen_with_the_errors():
    calm = [row(data, evidence_with()) for data in "abcdef"]
    wild = [
        row(data, evidence_with(), **dict.fromkeys(TARGETS, 0.2 + 0.1 * n)) for n, data in enumerate("abcdef")
    ]
    narrow, wide = (predictor_for(rows).predict(evidence_with())[WITHOUT] for rows in (calm, wild))
    for prediction in (narrow, wide):
        assert prediction.low <= prediction.value <= prediction.high
    assert wide.high - wide.low > narrow.high - narrow.low + 0.1


def test_gains_are_surer_than_their_two_accuracies():
    """Errors of the same sign in both methods leave their difference alone."""
    rows = [
        row(data, evidence_with(), **dict.fromkeys(TARGETS, 0.3 + 0.08 * n))
        for n, data in enumerate("abcdef")
    ]
    found = predictor_for(rows)
    accuracy, gain = found.predict(evidence_with())["gptfl"], found.gains(evidence_with())["gptfl"]
    assert gain.high - gain.low < 0.1 * (accuracy.high - accuracy.low)


def test_without_a_federation_other_numbers_count():
    rows = [row(data, evidence_with(level=0.3 + 0.05 * n)) for n, data in enumerate("abcd")]
    found = predictor_for(rows, federation=False)
    bare = evidence_with()
    bare.curves.clear()
    assert set(found.predict(bare)) == set(TARGETS)
    assert set(found.fits[WITHOUT].weights) == {"unknown", "held"}


def test_who_knows_less_has_wider_intervals():
    table = training_table()
    widths = {}
    for federation in (True, False):
        found = [
            predictor_for(table, row.data, federation=federation).gains(
                row.evidence if federation else replace(row.evidence, curves={}, diversity={})
            )
            for row in table
        ]
        widths[federation] = float(
            np.mean([gain.high - gain.low for gains in found for gain in gains.values()])
        )
    assert widths[False] > widths[True]


def test_each_doubling_of_the_samples_adds_less():
    evidence = evidence_with()
    evidence = replace(evidence, probes=[Probe(10, 0.5, []), Probe(20, accuracy_of(0.4), [])])
    assert more_samples(evidence.with_volume(20)) == 0
    assert more_samples(evidence.with_volume(40)) == pytest.approx(0.4 * 0.8)
    assert more_samples(evidence.with_volume(80)) == pytest.approx(0.4 * (0.8 + 0.64))
    worse = replace(evidence, probes=[Probe(10, 0.5, []), Probe(20, 0.4, [])])
    assert more_samples(worse.with_volume(80)) == 0, "more samples do no harm to a model of them alone"


def test_evidence_survives_json():
    evidence = evidence_with()
    assert PilotEvidence.from_dict(evidence.to_dict()) == evidence


def test_the_table_that_comes_with_genfl_is_sound():
    table = training_table()
    assert len({row.setting for row in table}) == len(table) >= 20
    assert len({row.data for row in table}) >= 6
    for one in table:
        assert set(one.accuracy) == {ALONE, *ARMS}
        assert all(0 <= value <= 1 for value in one.accuracy.values())
        assert set(one.evidence.curves) == set(ARMS)
