"""The figures of a run and what is said of them, against sums done by hand."""

import csv
import io
import math

import pytest

from genfl import config
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run
from genfl.report import tables, text
from genfl.results.summarise import environment, summarise
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


UPSTREAM = {
    "labels": {"found": ["a", "b"], "cells": 4, "bytes_per_client": 100, "attempts": 1, "holders": {"a": 1}},
    "prompts": {},
    "generate": {
        "samples": 4,
        "removed": 0,
        "duplicates": 0,
        "near_duplicates": 0,
        "bytes": 1000,
        "seconds": 2.0,
        "samples_per_second": 2.0,
        "labels": {},
    },
    "pretrain": {},
}
"""The results of the stages before `federate`."""


def record(run, results):
    """Writes the records of finished stages that took 0, 1, 2, ... seconds."""
    for seconds, (stage, result) in enumerate(results.items()):
        content = {"stage": stage, "digest": "", "done": True, "seconds": seconds, "files": {}, "sha256": ""}
        write_json(run.record(stage), {**content, "environment": environment(), "result": result})


def summarised(folder, traces, target=0.79):
    run = Run(config.parse(CONFIG.format(seeds=[int(seed) for seed in traces], target=target)), folder)
    results = {
        **UPSTREAM,
        "federate": {
            "methods": {
                "synthetic_only": {seed: trace([0.25], 0, 0, []) for seed in traces},
                "fedavg": traces,
            }
        },
    }
    record(run, results)
    return summarise(run, RunContext(), {name: name == "labels" for name in results})


@pytest.fixture
def two_seeds(tmp_path):
    traces = {
        "3": trace(FIRST, 10, 20, [0.5, 0.6] + 10 * [1.0], refused=1),
        "5": trace(SECOND, 30, 40, [0.7, None] + 10 * [1.0], refused=2),
    }
    return summarised(tmp_path, traces)


def test_accuracy_is_the_mean_of_the_last_five_evaluations(two_seeds):
    method = two_seeds.methods["fedavg"]
    accuracy, f1 = method.accuracy, method.macro_f1
    assert accuracy.per_seed == pytest.approx([0.7, 0.8])
    assert accuracy.mean == pytest.approx(0.75)
    assert accuracy.std == pytest.approx(math.sqrt(0.05**2 + 0.05**2))  # over n - 1 = 1
    assert f1.mean == pytest.approx(0.65)


def test_a_short_run_does_not_count_the_model_before_the_first_round(tmp_path):
    short = summarised(tmp_path, {"0": trace([0.0, 0.4, 0.6], 1, 1, 4 * [1.0])}).methods
    assert short["fedavg"].accuracy.mean == pytest.approx(0.5)
    assert short["synthetic_only"].accuracy.mean == 0.25


def test_the_target_is_reached_when_the_mean_over_seeds_is_there(two_seeds):
    # means: 0.1, 0.3, 0.6, 0.7, 0.8; the second seed alone would be there after 6 rounds
    method = two_seeds.methods["fedavg"]
    assert method.rounds_to_target == 8
    assert method.rounds_to_target_per_seed == [10, 6]
    assert method.bytes_to_target == (8 * (10 + 20) + 8 * (30 + 40)) / 2
    assert (method.uplink_bytes_per_round, method.downlink_bytes_per_round) == (20, 30)


def test_curves_and_refusals(two_seeds):
    method = two_seeds.methods["fedavg"]
    assert [point[0] for point in method.curve] == [0, 2, 4, 6, 8, 10, 12]
    assert method.curve[1] == pytest.approx([2, 0.3, math.sqrt(0.02)])
    assert method.diversity[0] == pytest.approx([1, 0.6, math.sqrt(0.02)])
    assert [point[0] for point in method.diversity] == [1, *range(3, 13)]  # one seed has no round 2
    assert (method.refused_uploads, method.uploads) == (3, 2 * 12 * 10)
    assert method.untrained_seeds == []


def test_a_seed_without_a_counted_upload_is_untrained(tmp_path):
    lost = trace(FIRST, 0, 20, 12 * [1.0])
    for row in lost["rounds"]:
        row["refused"] = 10  # the whole cohort
    summary = summarised(tmp_path, {"3": trace(FIRST, 10, 20, 12 * [1.0], refused=9), "5": lost})
    method = summary.methods["fedavg"]
    assert (method.untrained_seeds, method.refused_uploads) == ([5], 9 + 120)
    alone = summary.methods["synthetic_only"]
    assert (alone.untrained_seeds, alone.uploads) == ([], 0)


def test_a_single_seed_has_no_deviation(tmp_path):
    summary = summarised(tmp_path, {"0": trace(FIRST, 1, 1, 12 * [1.0])})
    method = summary.methods["fedavg"]
    assert (method.accuracy.mean, method.accuracy.std) == (pytest.approx(0.7), None)
    assert method.accuracy.per_seed == [pytest.approx(0.7)]
    assert {point.std for point in method.curve} == {0.0}


def test_calibration_is_of_the_same_evaluations_as_accuracy_and_recall_is_of_the_last(two_seeds):
    method = two_seeds.methods["fedavg"]
    assert method.calibration_error.per_seed == pytest.approx([0.07, 0.08])
    assert method.recall == [pytest.approx((0.9 + 0.8) / 4), None]
    header, alone, fedavg = tables.recall_csv(two_seeds).splitlines()
    assert header == "method,a,b"
    assert alone == "synthetic_only,0.125,"
    assert fedavg.split(",")[0::2] == ["fedavg", ""]


def test_a_method_that_diverged_has_no_calibration(tmp_path):
    broken = trace(FIRST, 1, 1, 12 * [1.0])
    broken["evaluations"][-1]["calibration_error"] = None
    summary = summarised(tmp_path, {"0": trace(FIRST, 1, 1, 12 * [1.0]), "1": broken})
    assert summary.methods["fedavg"].calibration_error is None
    assert summary.methods["fedavg"].accuracy.mean == pytest.approx(0.7)
    row = list(csv.DictReader(io.StringIO(tables.methods_csv(summary))))[1]
    assert row["refused_uploads"] == "0"
    empty = [name for name, cell in row.items() if name.startswith(("calibration", "client", "worst"))]
    assert len(empty) == 6
    assert {row[name] for name in empty} == {""}
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
    alone, method = summary.methods.values()
    assert alone.clients is None
    clients = method.clients
    assert (clients.tested, clients.samples) == ([5, 4], [50, 40])
    assert clients.accuracy.per_seed == [0.7, 0.8]
    assert clients.worst.mean == pytest.approx(0.2)
    assert clients.worst.std == pytest.approx(math.sqrt(0.02))
    assert clients.quantiles[1] == pytest.approx([0.5, 0.7, math.sqrt(0.02)])
    header, rows = text.methods_table(summary)
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
    assert two_seeds.methods["fedavg"].clients is None
    assert "worst client" not in text.methods_table(two_seeds)[0]
    assert "Worst" not in tables.methods_tex(two_seeds)


def test_a_target_out_of_reach_and_one_reached_at_once(tmp_path):
    far = summarised(tmp_path, {"0": trace(FIRST, 1, 1, 12 * [1.0])}, target=0.95).methods["fedavg"]
    assert (far.rounds_to_target, far.bytes_to_target) == (None, None)
    near = summarised(tmp_path, {"0": trace(FIRST, 1, 1, 12 * [1.0])}, target=0.05).methods["fedavg"]
    assert (near.rounds_to_target, near.bytes_to_target) == (0, 0)


def test_stages_say_their_time_and_whether_they_were_skipped(two_seeds):
    assert {name: (time.seconds, time.skipped) for name, time in two_seeds.stages.items()} == {
        "labels": (0.0, True),
        "prompts": (1.0, False),
        "generate": (2.0, False),
        "pretrain": (3.0, False),
        "federate": (4.0, False),
    }


REFERENCES = """
  central: {algorithm: centralised}
  central_mixed: {algorithm: centralised, data: mixed}
  central_made: {algorithm: centralised, data: generated}
  reader: {algorithm: {name: generator, samples: 3}}
  fedavg: {algorithm: fedavg}
  fedgc: {algorithm: fedavg, data: mixed, content: {by: server}}
  shared: {algorithm: feddf_logits}
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
        **UPSTREAM,
        "federate": {"methods": traces},
    }
    record(run, records)
    summary = summarise(run, RunContext(), dict.fromkeys(records, False))
    methods = summary.methods
    federated, alone = (
        ["fedavg", "fedgc", "shared"],
        ["central", "central_mixed", "central_made", "reader", "local"],
    )
    assert list(methods) == ["synthetic_only", *federated, *alone]
    assert [name for name in methods if methods[name].reference] == ["synthetic_only", *alone]
    uses = ["synthetic_only", "fedgc", "shared", "central_mixed", "central_made", "reader"]
    assert [name for name in methods if methods[name].uses_generator] == uses
    assert methods["local"].diversity == []
    # 100 bytes of each client for the labels; then 4 samples of 64 numbers, with labels of a byte, or all
    # 4 without labels to each of 20
    setup = {name: methods[name].setup_bytes for name in federated}
    assert setup == {"fedavg": 0, "fedgc": 2000 + 4 * 257, "shared": 2000 + 20 * 4 * 256}
    assert methods["reader"].rounds_to_target == 0
    rows = {row[0]: row[1:] for row in text.methods_table(summary)[1]}
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
    methods = summarised(tmp_path, {"0": trace(FIRST, 1, 1, 12 * [1.0])}, target=0.2).methods
    assert (methods["fedavg"].setup_bytes, methods["fedavg"].bytes_to_target) == (0, 4)
    assert (methods["synthetic_only"].setup_bytes, methods["synthetic_only"].bytes_to_target) == (
        2000,
        2000,
    )


def compared(folder, report, **methods):
    """The summary of a config with `report`, of methods (config, traces) beside a generator of 0.25."""
    written = "".join(f"\n  {name}: {method}" for name, (method, _) in methods.items())
    content = CONFIG.format(seeds=[0], target=report).replace("{fedavg: {algorithm: fedavg}}", written)
    run = Run(config.parse(content), folder)
    traces = {name: {"0": rounds} for name, (_, rounds) in methods.items()}
    traces |= {"synthetic_only": {"0": trace([0.25], 0, 0, [])}}
    records = {**UPSTREAM, "federate": {"methods": traces}}
    record(run, records)
    return summarise(run, RunContext(), dict.fromkeys(records, False))


def trained_on(samples, **about):
    """A trace of twelve rounds in which clients train on so many samples each round."""
    rounds = trace(**about, diversity=12 * [1.0])
    return {**rounds, "rounds": [{**row, "samples": samples} for row in rounds["rounds"]]}


def costs(folder, report="0.79", fedavg_bytes=100):
    return compared(
        folder,
        report,
        fedavg=("{algorithm: fedavg}", trained_on(200, accuracies=FIRST, up=fedavg_bytes, down=fedavg_bytes)),
        fedgc=(
            "{algorithm: fedavg, data: mixed, content: {by: server}}",
            {**trained_on(260, accuracies=SECOND, up=100, down=100), "content": 2},
        ),
        gptfl=(
            "{algorithm: fedavg, start: pretrained}",
            trained_on(200, accuracies=[0.25, 0.3, 0.5, 0.5, 0.6, 0.6, 0.6], up=100, down=100),
        ),
    )


def test_accuracy_at_equal_bytes_by_hand(tmp_path):
    """FedAvg needs 2,400 bytes for its 12 rounds; FedGC sends 2,514 before the first one."""
    summary = costs(tmp_path, fedavg_bytes=200)
    methods = summary.methods
    assert [methods[name].total_bytes for name in ("fedavg", "fedgc", "gptfl")] == [4800, 4914, 4400]
    assert summary.byte_budget == 4400, "the least of all"
    assert methods["gptfl"].equal_bytes.accuracy == methods["gptfl"].accuracy
    # 2,514 (two digits of 257 bytes) + 200 a round: nine rounds, evaluated until the eighth: 4,114 bytes
    equal = methods["fedgc"].equal_bytes
    assert (equal.rounds, equal.bytes) == (8, 4114)
    assert equal.accuracy.mean == pytest.approx((0.4 + 0.7 + 0.8 + 0.9) / 4)
    # 400 a round: eleven rounds, evaluated until the tenth, and the last five of those
    equal = methods["fedavg"].equal_bytes
    assert (equal.rounds, equal.bytes) == (10, 4000)
    assert equal.accuracy.mean == pytest.approx((0.2 + 0.5 + 0.6 + 0.7 + 0.8) / 5)
    assert methods["synthetic_only"].equal_bytes is None


def test_a_budget_below_the_setup_compares_nothing(tmp_path):
    summary = costs(tmp_path, "0.79, byte_budget: 2400")
    assert summary.byte_budget == 2400
    assert summary.methods["fedgc"].equal_bytes is None
    assert summary.methods["fedavg"].equal_bytes.rounds == 12
    start = costs(tmp_path / "less", "0.79, byte_budget: 2100").methods["gptfl"].equal_bytes
    assert (start.rounds, start.bytes, start.accuracy.mean) == (0, 2000, 0.25)
    header, rows = text.costs_table(summary)
    assert header[2] == "accuracy with 2 kB, %"
    assert [row[2] for row in rows] == ["70.0 (round 12)", "setup needs more", "30.0 (round 2)"]


def test_extra_cost_is_beyond_the_same_algorithm_without_the_generator(tmp_path):
    methods = costs(tmp_path).methods
    assert methods["fedavg"].extra_cost is methods["synthetic_only"].extra_cost is None
    extra = methods["fedgc"].extra_cost
    assert extra.baseline == "fedavg"
    assert extra.bytes == pytest.approx(2514 / 2400)
    assert extra.samples == pytest.approx(0.3)
    assert methods["gptfl"].extra_cost.samples == 0
    old = summarised(tmp_path / "old", {"0": trace(FIRST, 1, 1, 12 * [1.0])}).methods["fedavg"]
    assert old.extra_cost is None, "rounds of earlier versions have no samples"


def test_the_delta_metric_is_the_gain_over_generated_data_alone(tmp_path):
    methods = costs(tmp_path).methods
    # GPT-FL, Table 4: the last five evaluations, minus 0.25 of the model they began with
    assert methods["gptfl"].delta.per_seed == pytest.approx([(0.5 + 0.5 + 0.6 + 0.6 + 0.6) / 5 - 0.25])
    assert methods["fedavg"].delta is methods["fedgc"].delta is methods["synthetic_only"].delta is None


def test_several_targets_are_in_every_table(tmp_path):
    summary = costs(tmp_path, "[0.79, 0.5, 0.99]")
    assert (summary.target_accuracy, summary.targets) == (0.79, [0.79, 0.5, 0.99])
    method = summary.methods["fedavg"]
    assert [(t.accuracy, t.rounds, t.bytes) for t in method.targets] == [
        (0.79, 10, 2000),
        (0.5, 4, 800),
        (0.99, None, None),
    ]
    assert (method.rounds_to_target, method.bytes_to_target) == (10, 2000), "the first target's"
    written = {row["method"]: row for row in csv.DictReader(io.StringIO(tables.methods_csv(summary)))}
    assert written["fedavg"]["rounds_to_0.5"] == "4"
    assert written["fedavg"]["bytes_to_0.99"] == ""
    assert float(written["gptfl"]["delta"]) == pytest.approx(0.31)
    header, rows = text.costs_table(summary)
    assert header[-4:] == ("rounds to 50 %", "MB to 50 %", "rounds to 99 %", "MB to 99 %")
    assert rows[0][-4:] == ("4", "0.0008", "never", "never")
    assert rows[2][5] == "+31.0 points"


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("1.5", "report.target_accuracy: should be less than 1, not 1.5"),
        ("[0.5, high]", "report.target_accuracy.1: should be a valid number, not 'high'"),
        ("[]", "report.target_accuracy: value should have at least 1 item, not 0"),
        ("[0.5, 0.5]", "report.target_accuracy: 0.5 is given twice; name each accuracy once"),
    ],
)
def test_a_wrong_target_is_one_line(target, line):
    with pytest.raises(InputError) as error:
        config.parse(CONFIG.format(seeds=[0], target=target))
    assert str(error.value) == line


def test_a_single_target_is_written_as_a_number():
    read = config.parse(CONFIG.format(seeds=[0], target=0.8))
    assert "target_accuracy: 0.8\n" in config.dump(read)
    several = config.parse(CONFIG.format(seeds=[0], target=[0.8, 0.9]))
    assert config.parse(config.dump(several)) == several


@pytest.mark.parametrize(
    ("secure", "bits", "step", "limit"),
    [
        # 64 bits: a tenth of 2^63 is above 2^59, so 2^20 may be multiplied by 2^39
        ("true", 64, 2.0**-39, 2.0**20),
        # 32 bits: a tenth of 2^31 is 214,748,364, and 100 · 2^21 is 209,715,200
        ("{limit: 100, precision: 1.0e-06}", 32, 2.0**-21, 100.0),
    ],
)
def test_the_error_of_secure_sums_is_half_a_step_for_each_client(tmp_path, secure, bits, step, limit):
    written = CONFIG.format(seeds=[0], target=0.5) + f"federate: {{secure: {secure}}}\n"
    run = Run(config.parse(written), tmp_path)
    traces = {"0": trace(FIRST, 7 * 1000, 20, 12 * [1.0])}
    for row in traces["0"]["rounds"]:
        row["refused"] = 3  # of 10: what 7 clients sent counts
    methods = {"synthetic_only": {"0": trace([0.25], 0, 0, [])}, "fedavg": traces}
    record(run, {**UPSTREAM, "federate": {"methods": methods}})
    summary = summarise(run, RunContext(), dict.fromkeys([*UPSTREAM, "federate"], False))
    numbers = summary.secure_sums
    assert (numbers.bits, numbers.step, numbers.error) == (bits, step, 10 * step / 2)
    assert (numbers.clients, numbers.threshold, numbers.limit) == (10, 7, limit)
    assert summary.methods["fedavg"].masked_upload_bytes == 1000
    assert summary.methods["synthetic_only"].masked_upload_bytes is None


def test_a_run_without_secure_sums_says_nothing_of_them(two_seeds):
    assert two_seeds.secure_sums is None
    assert two_seeds.methods["fedavg"].masked_upload_bytes is None
