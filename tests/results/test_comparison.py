"""Runs side by side: what each method is compared with, and what makes runs hard to compare."""

from pathlib import Path

import pytest
from support.summaries import compared, method

from genfl.errors import InputError
from genfl.results.comparison import ComparedRun, compare_runs

DATA = {"name": "digits", "partition": {"clients": 10}}


def run(name, config=None, seeds=(0, 1, 2), methods=None, **changes):
    """A run without a generator; each method is given by its accuracies."""
    methods = methods or {"fedavg": [0.90, 0.92, 0.91]}
    summary = compared(
        generator="none", **{label: method(values, 10, 0.1) for label, values in methods.items()}
    )
    summary = summary.model_copy(update={"seeds": list(seeds), **changes})
    return ComparedRun(name, Path("runs") / name, summary, {"data": DATA, **(config or {})})


def by_name(comparison):
    return {row.name: row for row in comparison.rows}


BASE = run("base", methods={"fedavg": [0.90, 0.92, 0.91], "prox": [0.80, 0.82, 0.81]})
BETTER = run("better", methods={"fedavg": [0.95, 0.96, 0.955], "new": [0.80, 0.82, 0.81]})


def test_methods_are_compared_with_those_of_the_first_run():
    rows = by_name(compare_runs([BASE, BETTER]))
    assert list(rows) == ["base:fedavg", "base:prox", "better:fedavg", "better:new"]
    assert [row.finding for row in rows.values()] == [
        "baseline",
        "baseline",
        "higher",
        "no method of this name",
    ]
    assert rows["better:fedavg"].against == "base:fedavg"
    assert rows["better:fedavg"].difference.points == pytest.approx(4.5)
    assert rows["better:fedavg"].difference.test == "paired"
    assert rows["better:new"].against is None


def test_a_method_named_as_baseline_is_that_of_the_same_run():
    rows = by_name(compare_runs([BASE, BETTER], "fedavg"))
    assert {name: row.against for name, row in rows.items()} == {
        "base:fedavg": "base:fedavg",
        "base:prox": "base:fedavg",
        "better:fedavg": "better:fedavg",
        "better:new": "better:fedavg",
    }
    assert rows["better:new"].finding == rows["base:prox"].finding == "lower"
    # the second run has no prox of its own
    rows = by_name(compare_runs([BASE, BETTER], "prox"))
    assert rows["better:new"].against == rows["base:fedavg"].against == "base:prox"


def test_a_run_and_method_named_as_baseline_is_that_of_all():
    rows = by_name(compare_runs([BASE, BETTER], "better:new"))
    assert {row.against for row in rows.values()} == {"better:new"}
    assert [name for name, row in rows.items() if row.finding == "baseline"] == ["better:new"]
    assert rows["base:prox"].finding == "no clear difference"


@pytest.mark.parametrize(
    ("baseline", "hint"), [("fedavgg", "'fedavg'"), ("bas:prox", "'base:prox'"), ("zzz", "fedavg, prox, new")]
)
def test_an_unknown_baseline_is_one_line(baseline, hint):
    with pytest.raises(InputError) as caught:
        compare_runs([BASE, BETTER], baseline)
    message = str(caught.value)
    assert message.startswith(f"--baseline: there is no '{baseline}'; ")
    assert hint in message
    assert "\n" not in message


def test_seeds_are_paired_only_where_splits_are_the_same():
    other_split = {"data": {**DATA, "partition": {"clients": 20}}}
    cases = {
        "the same": (run("x", {"federate": {"rounds": 5}}), "paired"),
        "another split": (run("x", other_split), "welch"),
        "other seeds": (run("x", seeds=(3, 4, 5)), "welch"),
        "other examples": (run("x", test_digest="another"), "welch"),
    }
    for name, (other, test) in cases.items():
        assert compare_runs([BASE, other]).rows[-1].difference.test == test, name


def test_runs_of_other_data_are_told_and_not_judged():
    labels = BASE.summary.labels.model_copy(update={"found": ["cat", "dog"]})
    for other, word in (
        (run("x", test_samples=500), "tested on 500 examples and base on 1,000"),
        (run("x", labels=labels), "x has other labels than base (cat, dog)"),
    ):
        comparison = compare_runs([BASE, other])
        assert comparison.rows[-1].difference is None
        assert comparison.rows[-1].finding == "other test data: no statement"
        assert len(comparison.warnings) == 1
        assert word in comparison.warnings[0]
        assert "do not compare" in comparison.warnings[0]


def test_the_order_of_labels_does_not_matter():
    one, other = (
        run(name, labels=BASE.summary.labels.model_copy(update={"found": found}))
        for name, found in (("one", ["cat", "dog"]), ("other", ["dog", "cat"]))
    )
    assert compare_runs([one, other]).warnings == ()


def test_what_makes_figures_hard_to_compare_is_told():
    short = method([0.9] * 3, 1, 0.1, curve=[[0, 0.1, 0.0], [1, 0.9, 0.0]])
    others = {
        "target": run("x", target_accuracy=0.8),
        "digest": run("x", test_digest="another"),
        "evaluations": run("x").summary.model_copy(update={"methods": {"fedavg": short}}),
    }
    others["evaluations"] = run("x")._replace(summary=others["evaluations"])
    words = {
        "target": "The target of x is 80 %, and that of base 90 %",
        "digest": "x has other test inputs than base",
        "evaluations": "An accuracy of x is the mean of its last 1, and of base of its last 5 evaluations.",
    }
    for name, other in others.items():
        comparison = compare_runs([BASE, other])
        assert [words[name] in warning for warning in comparison.warnings] == [True], name
        assert comparison.rows[-1].difference is not None
    assert compare_runs([BASE, BETTER]).warnings == ()


def test_a_star_holds_for_all_lines_together():
    """One line of p = 0.009 is a finding by itself; among ten, it would have to be below 0.005."""
    drifting = run("drifting", methods={"fedavg": [0.910, 0.932, 0.924]})
    alone = compare_runs([BASE, drifting]).rows[-1]
    assert alone.difference.clear
    assert 0.005 < alone.difference.p_value < 0.05
    assert alone.holds
    crowd = [run(f"same{n}", methods={"fedavg": [0.91, 0.91 + n / 1000, 0.91]}) for n in range(9)]
    among = by_name(compare_runs([BASE, drifting, *crowd]))["drifting:fedavg"]
    assert among.difference == alone.difference
    assert not among.holds


def test_only_the_settings_that_differ_are_listed():
    one = run("one", {"seeds": [0], "federate": {"rounds": 5, "lr": 0.1}})
    two = run("two", {"seeds": [0], "federate": {"rounds": 9, "lr": 0.1}, "public": {"path": "x"}})
    three = run("three", {"seeds": [0], "federate": {"rounds": 5, "lr": 0.1}})
    comparison = compare_runs([one, two, three])
    assert list(comparison.settings) == ["federate.rounds", "public"]
    assert comparison.settings["federate.rounds"] == [5, 9, 5]
    assert comparison.to_dict()["settings"] == {
        "federate.rounds": {"one": 5, "two": 9, "three": 5},
        "public": {"two": {"path": "x"}},
    }


def test_table_has_a_row_for_each_method_of_each_run():
    table = compare_runs([BASE, run("single", seeds=(0,), methods={"fedavg": [0.9]})]).table()
    assert list(table.index) == [("base", "fedavg"), ("base", "prox"), ("single", "fedavg")]
    assert table.loc[("single", "fedavg"), "finding"] == "one seed: no statement"
    assert table["low"].isna().all()
    assert table.loc[("base", "fedavg"), "mean"] == pytest.approx(0.91)
    assert table["rounds"].tolist() == [10.0, 10.0, 10.0]
