"""The sentences and numbers of a report, against sentences written by hand."""

import numpy as np
import pytest
from scipy.special import stdtrit
from support.summaries import compared, method

from genfl.report import text
from genfl.results.schema import Figure, Summary

END = " The generated data alone gives 80.0 %; generating 2,000 samples took 5 min 05 s."


@pytest.mark.parametrize(
    ("warm", "cold", "sentence"),
    [
        (
            ([0.95, 0.96, 0.97], 1),
            ([0.91, 0.92, 0.92], 25),
            "The generator helps: gptfl ends at 96.0 %, fedavg at 91.7 %"
            " (+4.3 points, better in 3 of 3 seeds); it is at 90 % after 1 round, fedavg after 25 rounds.",
        ),
        (
            ([0.99, 0.98, 0.99, 0.93], 0),
            ([0.90, 0.90, 0.90, 0.94], None),
            "The generator helps in some seeds only: gptfl ends at 97.2 %, fedavg at 91.0 %"
            " (+6.2 points, better in 3 of 4 seeds); it is at 90 % before any round, fedavg never.",
        ),
        (
            ([0.99, 0.93], 20),
            ([0.90, 0.94], 20),
            "The generator makes no clear difference: gptfl ends at 96.0 %, fedavg at 92.0 %"
            " (+4.0 points, better in 1 of 2 seeds; up to 31.6 either way may be chance);"
            " both are at 90 % after 20 rounds.",
        ),
        (
            ([0.9004, 0.9004], 0),
            ([0.8998, 0.8998], None),
            "With the generator training is faster but ends no higher: gptfl ends at 90.0 %, fedavg at 90.0 %"
            " (no difference, better in 2 of 2 seeds; up to 0.1 either way may be chance);"
            " it is at 90 % before any round, fedavg never.",
        ),
        (
            ([0.75], None),
            ([0.80], None),
            "The generator does not help: gptfl ends at 75.0 %, fedavg at 80.0 % (−5.0 points, in one seed);"
            " neither reaches 90 %.",
        ),
        (
            ([0.85], None),
            ([0.91], 20),
            "The generator does not help: gptfl ends at 85.0 %, fedavg at 91.0 % (−6.0 points, in one seed);"
            " it never reaches 90 %, fedavg does after 20 rounds.",
        ),
        (
            ([0.95], 20),
            ([0.95], 20),
            "The generator makes no clear difference: gptfl ends at 95.0 %, fedavg at 95.0 %"
            " (no difference, in one seed); both are at 90 % after 20 rounds.",
        ),
        (
            ([0.95], 5),
            ([0.95], 20),
            "The generator makes no clear difference: gptfl ends at 95.0 %, fedavg at 95.0 %"
            " (no difference, in one seed); it is at 90 % after 5 rounds, fedavg after 20 rounds.",
        ),
        (
            ([0.93, 0.93], 5),
            ([0.95, 0.95], 20),
            "With the generator training is faster but ends lower: gptfl ends at 93.0 %, fedavg at 95.0 %"
            " (−2.0 points, better in 0 of 2 seeds); it is at 90 % after 5 rounds, fedavg after 20 rounds.",
        ),
        (
            ([0.95, 0.95], 25),
            ([0.95, 0.95], 30),
            "The generator makes no clear difference: gptfl ends at 95.0 %, fedavg at 95.0 %"
            " (no difference, better in 0 of 2 seeds); it is at 90 % after 25 rounds, fedavg after 30 rounds"
            " (evaluated every 5 rounds).",
        ),
        (
            ([0.9907, 0.9907], 20),
            ([0.9746, 0.9746], 20),
            "The generator helps: gptfl ends at 99.1 %, fedavg at 97.5 % (+1.6 points, better in 2 of 2"
            " seeds); both are at 90 % after 20 rounds.",
        ),
    ],
)
def test_verdict_of_two_methods(warm, cold, sentence):
    summary = compared(fedavg=method(*cold, 0.1), gptfl=method(*warm, 0.8))
    lowered = sum(warm[0]) / len(warm[0]) < 0.8
    warning = " gptfl ends below its warm start (80.0 %): fine-tuning lowered it." if lowered else ""
    assert text.verdict(summary) == sentence + END + warning


def test_the_verdict_says_when_there_is_one_seed_and_when_uploads_were_refused():
    summary = compared(fedavg=method([0.90], 20, 0.1), gptfl=method([0.95], 5, 0.8, refused_uploads=7))
    verdict = text.verdict(summary)
    assert verdict.startswith("The generator helps in the one seed tried: ")
    assert verdict.endswith(" Of these methods 7 of 48 uploads were refused." + END)


REFUSED = {"refused_uploads": 24, "untrained_seeds": [0]}
"""What makes a method's final model its initial one."""


def test_nothing_was_learned_where_all_uploads_were_refused():
    fedavg, gptfl = method([0.078], None, 0.1, **REFUSED), method([0.136], None, 0.8, **REFUSED)
    said = (
        "No method learned anything. fedavg and gptfl learned nothing: 24 of 24 uploads of each were refused,"
        " as they were not finite; lower federate.local.lr."
    )
    assert text.verdict(compared(fedavg=fedavg, gptfl=gptfl)) == said + END
    assert text.verdict(compared(generator="none", fedavg=fedavg)) == (
        "No method learned anything. fedavg learned nothing: 24 of 24 uploads were refused, as they were not"
        " finite; lower federate.local.lr."
    )


def test_a_method_that_learned_nothing_is_not_compared():
    """Neither is it the baseline that the generator beats."""
    methods = {"fedavg": method([0.1], None, 0.1, **REFUSED), "gptfl": method([0.95], 5, 0.8)}
    assert text.contest(compared(**methods)) == ("gptfl", None)
    assert text.verdict(compared(**methods)) == (
        "gptfl ends at 95.0 %; no trained method has the same algorithm without the generator to compare"
        " with. fedavg learned nothing: 24 of 24 uploads were refused, as they were not finite; lower"
        " federate.local.lr." + END
    )
    some = {"refused_uploads": 13, "untrained_seeds": [1]}
    methods["fedavg"] = method([0.9, 0.1], None, 0.1, **some)
    summary = compared(**methods).model_copy(update={"seeds": [0, 1]})
    assert text.contest(summary) == ("gptfl", None)
    assert "fedavg learned nothing in seed 1: 12 of 12 uploads were refused" in text.verdict(summary)
    methods["prox"] = method([0.8], None, 0.1, algorithm={"name": "fedprox"})
    verdict = text.verdict(compared(generator="none", fedavg=methods["fedavg"], prox=methods["prox"]))
    assert verdict.startswith(
        "Without a generator, prox ends at 80.0 % and never reaches 90 %. fedavg learned"
    )


@pytest.mark.parametrize(
    ("warm", "cold", "faster"),
    [
        ([5, 5], [20, 20], True),
        ([5], [20], False),  # a single seed
        ([5, 20, 20], [20, 20, 20], False),  # one of three
        ([5, 5, 20], [20, 20, 20], True),  # most of them
        ([5, 5], [10, 10], False),  # as far apart as two evaluations
        ([25, 25], [None, None], True),
        ([30, 30], [None, None], False),  # the other may reach it at the next evaluation
        ([None, None], [None, None], False),
        ([20, 20], [5, 5], False),
    ],
)
def test_a_lead_is_longer_than_evaluations_are_apart(warm, cold, faster):
    methods = [
        method([0.9] * len(rounds), rounds[0], 0.8, rounds_to_target_per_seed=rounds)
        for rounds in (warm, cold)
    ]
    assert text.is_faster(*methods) == faster


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_chance_is_taken_for_help_in_one_case_of_twenty(seeds):
    rng = np.random.default_rng(seeds)
    summary, cases = compared(test_samples=10**9), 2000
    helped = 0
    for gain in rng.normal(0, 0.02, (cases, seeds)):
        warm, cold = method(list(0.8 + gain), None, 0.8), method([0.8] * seeds, None, 0.1)
        helped += text.exceeds(100 * gain.mean(), text.least_clear_gain(summary, warm, cold))
    # SMALLEST_DIFFERENCE counts little against seeds that differ by 2 points
    assert 0.05 - 4 * (0.05 * 0.95 / cases) ** 0.5 < helped / cases < 0.05 + 4 * (0.05 * 0.95 / cases) ** 0.5


def with_accuracies(summary, accuracies):
    """The summary with other accuracies of its federated methods, [methods, seeds]."""
    methods = dict(summary.methods)
    for name, per_seed in zip(summary.federated, accuracies, strict=True):
        std = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None
        figure = Figure.model_construct(mean=float(per_seed.mean()), std=std, per_seed=list(per_seed))
        methods[name] = methods[name].model_copy(update={"accuracy": figure})
    return summary.model_copy(update={"methods": methods})


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [1, 3, 9, 19])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_verdict_claims_help_by_chance_in_one_case_of_twenty(pairs, seeds):
    """Under the null, all methods have the same accuracy, and the best of several pairs is picked."""
    rng, cases = np.random.default_rng([pairs, seeds]), 2000
    examples = 10**6 if seeds > 1 else 1000
    spread = 0.02 if seeds > 1 else (0.8 * 0.2 / examples) ** 0.5
    methods = {
        f"{start}{pair}": method([0.8] * seeds, None, start, algorithm={"name": f"a{pair}"})
        for pair in range(pairs)
        for start in (0.1, 0.8)
    }
    summary = compared(examples, **methods)
    claims = 0
    for _ in range(cases):
        drawn = with_accuracies(summary, 0.8 + rng.normal(0, spread, (2 * pairs, seeds)))
        claims += text.verdict(drawn).startswith("The generator helps")
    assert claims / cases <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("methods", [2, 4])
def test_a_verdict_without_generator_names_a_winner_by_chance_in_one_case_of_twenty(methods):
    rng, cases, claims = np.random.default_rng(methods), 2000, 0
    names = [f"m{number}" for number in range(methods)]
    summary = compared(10**6, "none", **{name: method([0.8] * 3, None, 0.1) for name in names})
    for _ in range(cases):
        drawn = with_accuracies(summary, 0.8 + rng.normal(0, 0.02, (methods, 3)))
        claims += "the most accurate of" in text.verdict(drawn)
    assert claims / cases <= 0.06


def test_a_named_pair_is_compared_and_tested_alone():
    methods = {
        "fedavg": method([0.80, 0.81, 0.80], None, 0.1),
        "gptfl": method([0.84, 0.86, 0.85], None, 0.8),
        "better": method([0.88, 0.87, 0.90], None, 0.8, data="mixed"),
        "more": method([0.70, 0.71, 0.70], None, 0.8, data="p2g"),
    }
    chosen, named = compared(**methods), compared(compare=("gptfl", "fedavg"), **methods)
    assert (text.contest(chosen), text.comparisons(chosen)) == (("better", "fedavg"), 3)
    assert (text.contest(named), text.comparisons(named)) == (("gptfl", "fedavg"), 1)
    gap = [text.least_clear_gain(summary, methods["gptfl"], methods["fedavg"]) for summary in (named, chosen)]
    assert gap[1] / gap[0] == pytest.approx(stdtrit(2, 1 - 0.05 / 3) / stdtrit(2, 0.95))
    assert text.verdict(named).startswith("The generator helps: gptfl ends at 85.0 %")


def test_a_verdict_warns_where_federation_makes_it_worse():
    fallen = compared(fedavg=method([0.70], None, 0.1), gptfl=method([0.75], None, 0.8))
    verdict = text.verdict(fallen)
    assert " gptfl ends below its warm start (80.0 %): fine-tuning lowered it." in verdict
    assert verdict.endswith(" No federated method is as accurate as the generated data alone.")
    risen = text.verdict(compared(fedavg=method([0.70], None, 0.1), gptfl=method([0.85], None, 0.8)))
    assert "below" not in risen
    assert "No federated" not in risen


@pytest.mark.parametrize(("right", "examples"), [(900, 1000), (330, 360)])
def test_one_test_example_is_no_difference(right, examples):
    cold, warm = (
        method([count / examples] * 3, 20, start) for count, start in ((right, 0.1), (right + 1, 0.8))
    )
    summary = compared(examples, fedavg=cold, gptfl=warm)
    assert text.verdict(summary).startswith("The generator makes no clear difference: ")
    summary = compared(examples, fedavg=cold, gptfl=method([(right + 2) / examples] * 3, 20, 0.8))
    assert text.verdict(summary).startswith("The generator helps: ")


def test_a_difference_in_one_seed_is_measured_by_the_test_set():
    for examples, opening in ((360, "makes no clear difference"), (10_000, "helps in the one seed tried")):
        summary = compared(examples, fedavg=method([0.95], 20, 0.1), gptfl=method([0.96], 20, 0.8))
        assert text.verdict(summary).startswith(f"The generator {opening}: ")


def test_files_that_were_there_already_took_no_time_to_make():
    summary = compared(generator="files", fedavg=method([0.90], 20, 0.1))
    assert text.verdict(summary).endswith(" gives 80.0 %; its 2,000 samples existed before the run.")


def test_verdict_without_a_generator():
    fedavg = method([0.90], None, 0.1)
    scaffold = method([0.93], 5, 0.1, algorithm={"name": "scaffold"})
    best = method([0.99], 5, 0.1, algorithm={"name": "centralised"}, reference=True)
    summary = compared(generator="none", fedavg=fedavg, scaffold=scaffold, best=best)
    assert text.verdict(summary) == (
        "Without a generator, the most accurate of 2 methods is scaffold: it ends at 93.0 % and is at 90 %"
        " after 5 rounds; fedavg follows at 90.0 % (+3.0 points, in one seed)."
    )
    summary = compared(
        generator="none",
        fedavg=method([0.92], None, 0.1, refused_uploads=3),
        scaffold=scaffold.model_copy(update={"existing_model": True}),
        best=best,
    )
    assert text.verdict(summary) == (
        "Without a generator, none of 2 methods is clearly the most accurate: scaffold ends at 93.0 % and is"
        " at 90 % after 5 rounds, fedavg ends at 92.0 % (+1.0 points, in one seed; up to 2.3 either way may"
        " be chance for the best of 2 pairs). Of these, only scaffold started from an existing model. Of"
        " these methods 3 of 48 uploads were refused."
    )
    summary = compared(generator="none", fedavg=fedavg, best=best)
    assert text.verdict(summary) == "Without a generator, fedavg ends at 90.0 % and never reaches 90 %."


def test_verdict_of_a_single_method():
    assert text.verdict(compared(fedavg=method([0.9], 5, 0.1))) == (
        "fedavg ends at 90.0 %; no method has the same algorithm with the generator to compare with." + END
    )
    assert text.verdict(compared(gptfl=method([0.9], 5, 0.8))) == (
        "gptfl ends at 90.0 %; no method has the same algorithm without the generator to compare with." + END
    )


def test_the_verdict_compares_what_differs_in_the_generator_alone():
    adam = {"algorithm": {"name": "fedadam"}}
    methods = {
        "fedadam": method([0.97], 5, 0.1, **adam),
        "fedavg": method([0.90], 5, 0.1),
        "warm_adam": method([0.95], 5, 0.8, **adam),
        "warm": method([0.93], 5, 0.8),
        "warmer": method([0.94], 5, 0.8),
    }
    summary = compared(**methods)
    assert text.contest(summary) == ("warm_adam", "fedadam")
    assert "does not help" in text.verdict(summary)
    del methods["fedadam"]
    assert text.contest(compared(**methods)) == ("warmer", "fedavg")
    del methods["fedavg"]
    assert text.contest(compared(**methods)) == ("warm_adam", None)


def test_references_neither_win_nor_are_the_baseline():
    alone = {"algorithm": {"name": "local"}, "reference": True}
    central = {"algorithm": {"name": "centralised"}, "reference": True}
    methods = {
        "local": method([0.99], 0, 0.1, **alone),
        "finetuned": method([0.99], 0, 0.8, **alone),
        "centralised": method([1.0], 0, 0.1, **central),
        "fedavg": method([0.90], 5, 0.1),
        "warm": method([0.93], 5, 0.8),
    }
    assert text.contest(compared(**methods)) == ("warm", "fedavg")
    del methods["warm"]
    assert text.contest(compared(**methods)) == (None, "fedavg")


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (120, "2 min 00 s"),
        (3599.6, "1 h 00 min"),
    ],
)
def test_duration(seconds, written):
    assert text.duration(seconds) == written


@pytest.mark.parametrize(
    ("number", "written"), [(0, "0 B"), (999, "999 B"), (1500, "2 kB"), (17_262_800, "17.3 MB")]
)
def test_size(number, written):
    assert text.byte_size(number) == written


@pytest.mark.parametrize(
    ("number", "written"), [(0, "0"), (12_000, "0.012"), (999_999, "1"), (17_262_800, "17.3")]
)
def test_megabytes(number, written):
    assert text.megabytes(number) == written


def test_percent_and_target():
    assert [text.percent(share) for share in (0, 0.05, 0.9996, 1)] == ["0 %", "5.0 %", "100.0 %", "100 %"]
    summary = compared(fedavg=method([0.9], None, 0.1)).model_copy(update={"target_accuracy": 0.29})
    assert text.target_percent(summary) == "29 %"


def overlap(near, others_near, examples=1000, others=1000):
    """The counts of one comparison."""
    counts = {"examples": examples, "others": others, "compared": others, "pairs": near}
    return {**counts, "near": near, "others_near": others_near}


@pytest.mark.parametrize(
    ("audit", "warning"),
    [
        ((0, 9, 99, 99), ""),
        (
            (12, 10, 0, 0),
            " Warning: the generated data has near-duplicates of 1.0 % of the test examples (12 samples), so"
            " what it gives is overestimated; set audit.overlap to drop.",
        ),
        ((0, 0, 100, 0), " Warning: 10.0 % of the test examples have a near-duplicate in the training data."),
        (
            (0, 0, 0, 100),
            " Warning: 10.0 % of the generated samples are near-duplicates of private examples.",
        ),
    ],
)
def test_a_verdict_warns_of_near_duplicates(audit, warning):
    samples, tested, trained, private = audit
    found = {
        "generated_test": overlap(samples, tested),
        "test_train": overlap(trained, trained),
        "generated_train": overlap(private, private),
        "dropped": 0,
    }
    figures = {"fedavg": method([0.7], None, 0.1), "gptfl": method([0.9], 1, 0.8)}
    plain = text.verdict(compared(**figures))
    audited = compared(**figures).to_dict() | {"audit": found}
    assert text.verdict(Summary.parse(audited)) == plain + warning
    dropped = audited | {"audit": found | {"dropped": 12}}
    if samples:
        assert "these 12 samples were dropped before training." in text.verdict(Summary.parse(dropped))


def test_a_verdict_warns_of_near_duplicates_in_public_data():
    figures = {"fedavg": method([0.7], None, 0.1), "gptfl": method([0.9], 1, 0.8)}
    plain, none = compared(**figures), overlap(0, 0)
    audit = {"test_train": none, "generated_test": none, "generated_train": none, "dropped": 0}
    for few, many, warning in (
        ({"public_test": overlap(9, 9)}, {"public_test": overlap(12, 10)}, "near-duplicates of 1.0 % of the"),
        (
            {"public_train": overlap(99, 99)},
            {"public_train": overlap(100, 1)},
            "10.0 % of the public samples",
        ),
    ):
        clean, copied = (
            text.verdict(Summary.parse(plain.to_dict() | {"audit": audit | counts})) for counts in (few, many)
        )
        assert clean == text.verdict(plain)
        assert copied.startswith(f"{clean} Warning: ")
        assert warning in copied
