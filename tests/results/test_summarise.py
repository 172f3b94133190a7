"""The figures of a run and what is said of them, against sums done by hand."""

import csv
import io
import math

import numpy as np
import pytest

from genfl import config
from genfl.experiment.context import Context
from genfl.experiment.folder import Run
from genfl.report import tables, text
from genfl.results.summarise import summarise
from genfl.storage import write_json

CONFIG = """
name: by hand
seeds: {seeds}
data: {{name: digits}}
model: {{name: cnn}}
methods: {{fedavg: {{algorithm: fedavg}}}}
report: {{target_accuracy: {target}}}
"""
# Evaluated after every second of 12 rounds.
FIRST = [0.1, 0.2, 0.5, 0.6, 0.7, 0.8, 0.9]  # last five: 3.5 / 5 = 0.7
SECOND = [0.1, 0.4, 0.7, 0.8, 0.9, 0.8, 0.8]  # last five: 4.0 / 5 = 0.8


def trace(accuracies, up, down, diversity, refused=0, clients=None):
    evaluations = [
        {
            "round": 2 * n,
            "accuracy": value,
            "macro_f1": value - 0.1,
            "loss": 1.0,
            "calibration_error": value / 10,
            "recall": [value / 2, None],
        }
        for n, value in enumerate(accuracies)
    ]
    rounds = [
        {
            "round": n,
            "uplink_bytes": up,
            "downlink_bytes": down,
            "refused": refused * (n == 1),
            "diversity": value,
        }
        for n, value in enumerate(diversity, 1)
    ]
    return {"evaluations": evaluations, "rounds": rounds, "clients": clients}


def summarised(folder, traces, target=0.79):
    run = Run(config.parse(CONFIG.format(seeds=[int(seed) for seed in traces], target=target)), folder)
    results = {
        "labels": {"found": ["a", "b"], "bytes_per_client": 100},
        "generate": {"samples": 4, "bytes": 1000, "seconds": 2.0, "samples_per_second": 2.0},
        "federate": {
            "methods": {
                "synthetic_only": {seed: trace([0.25], 0, 0, []) for seed in traces},
                "fedavg": traces,
            }
        },
    }
    for seconds, (stage, result) in enumerate(results.items()):
        record = {"seconds": seconds, "environment": {"genfl": "0"}, "result": result}
        write_json(run.record(stage), record)
    return summarise(run, Context(), {"labels": True, "federate": False})


@pytest.fixture
def two_seeds(tmp_path):
    traces = {
        "3": trace(FIRST, 10, 20, [0.5, 0.6] + 10 * [1.0], refused=1),
        "5": trace(SECOND, 30, 40, [0.7, None] + 10 * [1.0], refused=2),
    }
    return summarised(tmp_path, traces)


def test_accuracy_is_the_mean_of_the_last_five_evaluations(two_seeds):
    accuracy, f1 = (two_seeds["methods"]["fedavg"][name] for name in ("accuracy", "macro_f1"))
    assert accuracy["per_seed"] == pytest.approx([0.7, 0.8])
    assert accuracy["mean"] == pytest.approx(0.75)
    assert accuracy["std"] == pytest.approx(math.sqrt(0.05**2 + 0.05**2))  # over n - 1 = 1
    assert f1["mean"] == pytest.approx(0.65)


def test_a_short_run_does_not_count_the_model_before_the_first_round(tmp_path):
    short = summarised(tmp_path, {"0": trace([0.0, 0.4, 0.6], 1, 1, 4 * [1.0])})["methods"]
    assert short["fedavg"]["accuracy"]["mean"] == pytest.approx(0.5)
    assert short["synthetic_only"]["accuracy"]["mean"] == 0.25


def test_the_target_is_reached_when_the_mean_over_seeds_is_there(two_seeds):
    # means: 0.1, 0.3, 0.6, 0.7, 0.8; the second seed alone would be there after 6 rounds
    method = two_seeds["methods"]["fedavg"]
    assert method["rounds_to_target"] == 8
    assert method["bytes_to_target"] == (8 * (10 + 20) + 8 * (30 + 40)) / 2
    assert (method["uplink_bytes_per_round"], method["downlink_bytes_per_round"]) == (20, 30)


def test_curves_and_refusals(two_seeds):
    method = two_seeds["methods"]["fedavg"]
    assert [point[0] for point in method["curve"]] == [0, 2, 4, 6, 8, 10, 12]
    assert method["curve"][1] == pytest.approx([2, 0.3, math.sqrt(0.02)])
    assert method["diversity"][0] == pytest.approx([1, 0.6, math.sqrt(0.02)])
    assert [point[0] for point in method["diversity"]] == [1, *range(3, 13)]  # one seed has no round 2
    assert method["refused_uploads"] == 3


def test_a_single_seed_has_no_deviation(tmp_path):
    summary = summarised(tmp_path, {"0": trace(FIRST, 1, 1, 12 * [1.0])})
    method = summary["methods"]["fedavg"]
    assert method["accuracy"] == {"mean": pytest.approx(0.7), "std": None, "per_seed": [pytest.approx(0.7)]}
    assert {point[2] for point in method["curve"]} == {0.0}


def test_calibration_is_of_the_same_evaluations_as_accuracy_and_recall_is_of_the_last(two_seeds):
    method = two_seeds["methods"]["fedavg"]
    assert method["calibration_error"]["per_seed"] == pytest.approx([0.07, 0.08])
    assert method["recall"] == [pytest.approx((0.9 + 0.8) / 4), None]
    header, alone, fedavg = tables.recall_csv(two_seeds).splitlines()
    assert header == "method,a,b"
    assert alone == "synthetic_only,0.125,"
    assert fedavg.split(",")[0::2] == ["fedavg", ""]


def test_a_method_that_diverged_has_no_calibration(tmp_path):
    broken = trace(FIRST, 1, 1, 12 * [1.0])
    broken["evaluations"][-1]["calibration_error"] = None
    summary = summarised(tmp_path, {"0": trace(FIRST, 1, 1, 12 * [1.0]), "1": broken})
    assert summary["methods"]["fedavg"]["calibration_error"] is None
    assert summary["methods"]["fedavg"]["accuracy"]["mean"] == pytest.approx(0.7)
    assert tables.methods_csv(summary).splitlines()[2].endswith(",0,,,,,,")
    assert tables.methods_tex(summary).count("& -- \\\\") == 1


def on_clients(accuracy, quantiles, clients=5):
    return {
        "clients": clients,
        "samples": 10 * clients,
        "accuracy": accuracy,
        "loss": None,
        "quantiles": quantiles,
    }


def test_figures_of_clients_are_means_over_seeds_and_in_every_table(tmp_path):
    traces = {
        "3": trace(FIRST, 1, 1, 12 * [1.0], clients=on_clients(0.7, [0.1, 0.6, 0.9])),
        "5": trace(SECOND, 1, 1, 12 * [1.0], clients=on_clients(0.8, [0.3, 0.8, 0.9], clients=4)),
    }
    summary = summarised(tmp_path, traces)
    alone, method = summary["methods"].values()
    assert alone["clients"] is None
    clients = method["clients"]
    assert (clients["tested"], clients["samples"]) == ([5, 4], [50, 40])
    assert clients["accuracy"]["per_seed"] == [0.7, 0.8]
    assert clients["worst"]["mean"] == pytest.approx(0.2)
    assert clients["worst"]["std"] == pytest.approx(math.sqrt(0.02))
    assert clients["quantiles"][1] == pytest.approx([0.5, 0.7, math.sqrt(0.02)])
    header, rows = text.table(summary)
    assert header[-2:] == ("on clients", "worst client")
    assert [row[-2:] for row in rows] == [("–", "–"), ("75.0 ± 7.1", "20.0 ± 14.1")]
    written = list(csv.DictReader(io.StringIO(tables.methods_csv(summary))))
    assert written[0]["worst_client_accuracy_mean"] == ""
    assert float(written[1]["client_accuracy_mean"]) == pytest.approx(0.75)
    assert float(written[1]["worst_client_accuracy_std"]) == pytest.approx(math.sqrt(0.02))
    lines = tables.methods_tex(summary).splitlines()
    columns = next(line for line in lines if "tabular}{" in line).split("{")[-1].count("r")
    assert {line.count(" & ") for line in lines if line.endswith("\\\\")} == {columns}
    assert lines[-4].endswith("7.5 $\\pm$ 0.7 & 75.0 $\\pm$ 7.1 & 20.0 $\\pm$ 14.1 \\\\")


def test_without_tests_on_clients_the_tables_do_not_mention_them(two_seeds):
    assert two_seeds["methods"]["fedavg"]["clients"] is None
    assert "worst client" not in text.table(two_seeds)[0]
    assert "Worst" not in tables.methods_tex(two_seeds)


def test_a_target_out_of_reach_and_one_reached_at_once(tmp_path):
    far = summarised(tmp_path, {"0": trace(FIRST, 1, 1, 12 * [1.0])}, target=0.95)["methods"]["fedavg"]
    assert (far["rounds_to_target"], far["bytes_to_target"]) == (None, None)
    near = summarised(tmp_path, {"0": trace(FIRST, 1, 1, 12 * [1.0])}, target=0.05)["methods"]["fedavg"]
    assert (near["rounds_to_target"], near["bytes_to_target"]) == (0, 0)


def test_stages_say_their_time_and_whether_they_were_skipped(two_seeds):
    assert two_seeds["stages"] == {
        "labels": {"seconds": 0, "skipped": True},
        "federate": {"seconds": 2, "skipped": False},
    }


# --- the verdict


def method(per_seed, rounds, start):
    return {
        "algorithm": {"name": "fedavg"},
        "data": "private",
        "reference": False,
        "uses_generator": start == 0.8,
        "accuracy": {"mean": sum(per_seed) / len(per_seed), "std": 0.0, "per_seed": per_seed},
        "rounds_to_target": rounds,
        "curve": [[0, start, 0.0], [5, 0.9, 0.0]],
    }


def said(**methods):
    alone = {"accuracy": {"mean": 0.8}, "curve": [[0, 0.8, 0.0]], "reference": True}
    return {
        "methods": {"synthetic_only": alone, **methods},
        "test_samples": 1000,
        "generator": "image",
        "synthetic": {"samples": 2000, "seconds": 305.2},
        "target_accuracy": 0.9,
    }


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
            " (+0.1 points, better in 2 of 2 seeds; up to 0.1 either way may be chance);"
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
            "With the generator training is faster but ends no higher: gptfl ends at 95.0 %, fedavg at 95.0 %"
            " (no difference, in one seed); it is at 90 % after 5 rounds, fedavg after 20 rounds.",
        ),
        (
            ([0.93], 5),
            ([0.95], 20),
            "With the generator training is faster but ends lower: gptfl ends at 93.0 %, fedavg at 95.0 %"
            " (−2.0 points, in one seed); it is at 90 % after 5 rounds, fedavg after 20 rounds.",
        ),
    ],
)
def test_verdict_of_two_methods(warm, cold, sentence):
    summary = said(fedavg=method(*cold, 0.1), gptfl=method(*warm, 0.8))
    assert text.verdict(summary) == sentence + END


def test_the_verdict_says_when_there_is_one_seed_and_when_uploads_were_refused():
    summary = said(fedavg=method([0.90], 20, 0.1), gptfl={**method([0.95], 5, 0.8), "refused_uploads": 7})
    verdict = text.verdict(summary)
    assert verdict.startswith("The generator helps in the one seed tried: ")
    assert verdict.endswith("Of these methods 7 uploads were refused.")


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_chance_is_taken_for_help_in_one_case_of_twenty(seeds):
    rng = np.random.default_rng(seeds)
    summary, cases = {"test_samples": 10**9}, 2000
    helped = 0
    for gain in rng.normal(0, 0.02, (cases, seeds)):
        warm, cold = method(list(0.8 + gain), None, 0.8), method([0.8] * seeds, None, 0.1)
        helped += text.exceeds(100 * gain.mean(), text.noise(summary, warm, cold))
    # SAME, below which the tables show no difference, counts little against seeds that differ by 2 points
    assert 0.05 - 4 * (0.05 * 0.95 / cases) ** 0.5 < helped / cases < 0.05 + 4 * (0.05 * 0.95 / cases) ** 0.5


@pytest.mark.parametrize(("right", "examples"), [(900, 1000), (330, 360)])
def test_one_test_example_is_no_difference(right, examples):
    cold, warm = (
        method([count / examples] * 3, 20, start) for count, start in ((right, 0.1), (right + 1, 0.8))
    )
    summary = {**said(fedavg=cold, gptfl=warm), "test_samples": examples}
    assert text.verdict(summary).startswith("The generator makes no clear difference: ")
    summary["methods"]["gptfl"] = method([(right + 2) / examples] * 3, 20, 0.8)
    assert text.verdict(summary).startswith("The generator helps: ")


def test_a_difference_in_one_seed_is_measured_by_the_test_set():
    for examples, opening in ((360, "makes no clear difference"), (10_000, "helps in the one seed tried")):
        summary = said(fedavg=method([0.95], 20, 0.1), gptfl=method([0.96], 20, 0.8))
        summary["test_samples"] = examples
        assert text.verdict(summary).startswith(f"The generator {opening}: ")


def test_files_that_were_there_already_took_no_time_to_make():
    summary = {**said(fedavg=method([0.90], 20, 0.1)), "generator": "files"}
    assert text.verdict(summary).endswith(" gives 80.0 %; its 2,000 samples were there already.")


def test_verdict_without_a_generator():
    alone = {"algorithm": {"name": "centralised"}, "reference": True}
    summary = said(
        fedavg=method([0.90], None, 0.1),
        scaffold={**method([0.93], 5, 0.1), "algorithm": {"name": "scaffold"}},
        best={**method([0.99], 5, 0.1), **alone},
    )
    del summary["methods"]["synthetic_only"]
    summary |= {"generator": "none", "synthetic": None}
    assert text.verdict(summary) == (
        "Without a generator, the most accurate of 2 methods is scaffold: it ends at 93.0 % and is at 90 %"
        " after 5 rounds; fedavg follows at 90.0 % (+3.0 points, in one seed)."
    )
    summary["methods"]["fedavg"] |= {"accuracy": method([0.92], None, 0.1)["accuracy"], "refused_uploads": 3}
    summary["methods"]["scaffold"]["existing_model"] = True
    assert text.verdict(summary) == (
        "Without a generator, none of 2 methods is clearly the most accurate: scaffold ends at 93.0 % and is"
        " at 90 % after 5 rounds, fedavg ends at 92.0 % (+1.0 points, in one seed; up to 1.9 either way may"
        " be chance). Of these, only scaffold began with an existing model. Of these methods 3 uploads were"
        " refused."
    )
    summary["methods"]["fedavg"] = method([0.90], None, 0.1)
    del summary["methods"]["scaffold"]
    assert text.verdict(summary) == "Without a generator, fedavg ends at 90.0 % and never reaches 90 %."


def test_verdict_of_a_single_method():
    assert text.verdict(said(fedavg=method([0.9], 5, 0.1))) == (
        "fedavg ends at 90.0 %; no method has the same algorithm with the generator to compare with." + END
    )
    assert text.verdict(said(gptfl=method([0.9], 5, 0.8))) == (
        "gptfl ends at 90.0 %; no method has the same algorithm without the generator to compare with." + END
    )


def test_the_verdict_compares_what_differs_in_the_generator_alone():
    adam = {"algorithm": {"name": "fedadam"}}
    summary = said(
        fedadam={**method([0.97], 5, 0.1), **adam},
        fedavg=method([0.90], 5, 0.1),
        warm_adam={**method([0.95], 5, 0.8), **adam},
        warm=method([0.93], 5, 0.8),
        warmer=method([0.94], 5, 0.8),
    )
    assert text.contest(summary) == ("warm_adam", "fedadam")
    assert "does not help" in text.verdict(summary)
    del summary["methods"]["fedadam"]
    assert text.contest(summary) == ("warmer", "fedavg")
    del summary["methods"]["fedavg"]
    assert text.contest(summary) == ("warm_adam", None)


def test_references_neither_win_nor_are_the_baseline():
    alone = {"algorithm": {"name": "local"}, "reference": True}
    central = {"algorithm": {"name": "centralised"}, "reference": True}
    summary = said(
        local={**method([0.99], 0, 0.1), **alone},
        finetuned={**method([0.99], 0, 0.8), **alone},
        centralised={**method([1.0], 0, 0.1), **central},
        fedavg=method([0.90], 5, 0.1),
        warm=method([0.93], 5, 0.8),
    )
    assert text.contest(summary) == ("warm", "fedavg")
    del summary["methods"]["warm"]
    assert text.contest(summary) == (None, "fedavg")


REFERENCES = """
  central: {algorithm: centralised}
  central_mixed: {algorithm: centralised, data: mixed}
  central_made: {algorithm: centralised, data: generated}
  reader: {algorithm: {name: generator, samples: 3}}
  fedavg: {algorithm: fedavg}
  fedgc: {algorithm: fedavg, data: mixed, content: {by: server}}
  shared: {algorithm: feddf}
  local: {algorithm: local}
"""


def test_references_come_last_and_are_marked_and_send_nothing(tmp_path):
    content = CONFIG.format(seeds=[0], target=0.79).replace("{fedavg: {algorithm: fedavg}}", REFERENCES)
    run = Run(config.parse(content), tmp_path)
    nothing = trace(FIRST, 0, 0, 12 * [None])
    once = {**trace([0.85], 0, 0, []), "rounds": []}
    traces = {name: {"0": nothing} for name in run.config.methods}
    traces |= {"fedavg": {"0": trace(FIRST, 1000, 2000, 12 * [1.0])}, "reader": {"0": once}}
    traces |= {"synthetic_only": {"0": once}, "fedgc": {"0": {**nothing, "content": 4}}}
    records = {
        "labels": {"found": ["a"], "bytes_per_client": 100},
        "generate": {"samples": 4, "bytes": 1000, "seconds": 2.0, "samples_per_second": 2.0},
        "federate": {"methods": traces},
    }
    for stage, result in records.items():
        write_json(run.record(stage), {"seconds": 1, "environment": {}, "result": result})
    summary = summarise(run, Context(), {})
    methods = summary["methods"]
    federated, alone = (
        ["fedavg", "fedgc", "shared"],
        ["central", "central_mixed", "central_made", "reader", "local"],
    )
    assert list(methods) == ["synthetic_only", *federated, *alone]
    assert [name for name in methods if methods[name]["reference"]] == ["synthetic_only", *alone]
    uses = ["synthetic_only", "fedgc", "shared", "central_mixed", "central_made", "reader"]
    assert [name for name in methods if methods[name]["uses_generator"]] == uses
    assert methods["local"]["diversity"] == []
    # 100 bytes of each client for the labels, then the shards: shared out, or whole to each of 20.
    setup = {name: methods[name]["setup_bytes"] for name in federated}
    assert setup == {"fedavg": 0, "fedgc": 2000 + 1000, "shared": 2000 + 20 * 1000}
    assert methods["reader"]["rounds_to_target"] == 0
    rows = {row[0]: row[1:] for row in text.table(summary)[1]}
    upper = "upper bound, not allowed in practice"
    assert list(rows) == [
        "synthetic_only",
        "fedavg",
        "fedgc",
        "shared",
        f"central ({upper})",
        f"central_mixed ({upper})",
        "central_made (reference)",
        "reader (reference)",
        "local (reference)",
    ]
    assert rows["local (reference)"] == ("70.0", "60.0", "10", "–", "–")
    assert rows["fedavg"] == ("70.0", "60.0", "10", "0.03", "3")
    csv_rows = tables.methods_csv(summary).splitlines()
    assert csv_rows[1].startswith("synthetic_only,,1,")
    assert csv_rows[5].startswith(f'central,"{upper}",1,')
    assert csv_rows[9].startswith("local,reference,1,0.7")
    assert f"central ({upper}) & 70.0 & 60.0 & 10 & -- & -- & -- " in tables.methods_tex(summary)


def test_finding_the_labels_is_paid_for_by_those_who_use_the_generator(tmp_path):
    """100 bytes for each of 20 clients."""
    methods = summarised(tmp_path, {"0": trace(FIRST, 1, 1, 12 * [1.0])}, target=0.2)["methods"]
    assert (methods["fedavg"]["setup_bytes"], methods["fedavg"]["bytes_to_target"]) == (0, 4)
    assert (methods["synthetic_only"]["setup_bytes"], methods["synthetic_only"]["bytes_to_target"]) == (
        2000,
        2000,
    )


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
    assert text.size(number) == written


@pytest.mark.parametrize(
    ("number", "written"), [(0, "0"), (12_000, "0.012"), (999_999, "1"), (17_262_800, "17.3")]
)
def test_megabytes(number, written):
    assert text.megabytes(number) == written


def test_percent_and_target():
    assert [text.percent(share) for share in (0, 0.05, 0.9996, 1)] == ["0 %", "5.0 %", "100.0 %", "100 %"]
    assert text.target({"target_accuracy": 0.29}) == "29 %"
