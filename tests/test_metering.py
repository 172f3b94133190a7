"""What work costs, by the machine's own counters and by files laid out as Linux's powercap."""

import json
import re
import time

import pytest
import torch
from support.opened import open_run

from genfl import config, pipeline, progress
from genfl.data.sources import digits
from genfl.experiment.folder import Shard
from genfl.experiment.records import read_record
from genfl.metering import Meter, Rapl, add_costs, metered
from genfl.report.text import energy
from genfl.results.schema import StageRecord, Summary
from genfl.results.summarise import cost_account


def counters(folder, **microjoules):
    """A powercap folder: two packages, their cores, and the platform, which counts both once more."""
    for zone, name in {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
    }.items():
        (folder / zone).mkdir(parents=True, exist_ok=True)
        (folder / zone / "name").write_text(f"{name}\n")
        (folder / zone / "max_energy_range_uj").write_text("262143328850\n")
        key = name.replace("-", "_")
        (folder / zone / "energy_uj").write_text(f"{microjoules.get(key, 5)}\n")
    return folder


def test_energy_is_that_of_the_packages(tmp_path):
    rapl = Rapl(counters(tmp_path, package_0=1_000_000, package_1=2_000_000))
    assert rapl
    counters(tmp_path, package_0=4_000_000, package_1=2_500_000, core=9_000_000, psys=9_000_000)
    assert rapl.spent() == 3.5
    assert rapl.spent() == 0


def test_a_counter_that_starts_over_is_read_across_its_end(tmp_path):
    rapl = Rapl(counters(tmp_path, package_0=262_143_328_850 - 2_000_000))
    counters(tmp_path, package_0=3_000_000)
    assert rapl.spent() == 5.0


def test_without_a_counter_energy_is_not_measured(tmp_path):
    assert not Rapl(tmp_path / "nowhere")
    (counters(tmp_path) / "intel-rapl:0" / "energy_uj").unlink()
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert not Rapl(tmp_path)
    assert Meter(None, lambda cost: None, powercap=tmp_path).cost()["joules"] is None


def test_a_meter_measures_time_memory_and_energy(tmp_path):
    meter = Meter(None, lambda cost: None, powercap=counters(tmp_path, package_0=0))
    held = torch.ones(150_000_000 // 4)  # 150 MB
    before = meter.cost()["peak_memory"]
    assert before > held.nbytes
    counters(tmp_path, package_0=7_000_000)
    del held
    time.sleep(0.05)
    cost = meter.cost()
    assert 0.05 <= cost["seconds"] < 60
    assert cost["peak_memory"] >= before, "the peak stays"
    assert (cost["joules"], cost["counters"]) == (7.0, ["rapl"])
    if not torch.cuda.is_available():
        assert (cost["gpu_seconds"], cost["peak_gpu_memory"]) == (0, None)
        assert len(cost["devices"]) == 1


def test_a_later_start_adds_to_an_earlier_one(tmp_path):
    earlier = {
        "seconds": 10.0,
        "devices": ["an older processor"],
        "gpu_seconds": 20.0,
        "peak_memory": 10**15,
        "peak_gpu_memory": 4,
        "joules": 3.0,
        "counters": ["nvml"],
        "energy": {"nvml": 3.0},
    }
    cost = Meter(earlier, lambda cost: None, powercap=counters(tmp_path)).cost()
    assert 10 <= cost["seconds"] < 11
    assert cost["devices"][0] == "an older processor"
    assert (cost["gpu_seconds"], cost["peak_memory"], cost["peak_gpu_memory"]) == (20, 10**15, 4)
    assert (cost["joules"], cost["counters"]) == (3.0, ["nvml"]), "a part of rapl's is not the whole"
    unmeasured = add_costs([earlier, {**earlier, "joules": None, "counters": [], "energy": {}}])
    assert (unmeasured["seconds"], unmeasured["joules"]) == (20, None), "a part is not the whole"


def work(gpu_seconds, **energy):
    joules = sum(energy.values()) if energy else None
    nothing = {"seconds": 1.0, "devices": [], "peak_memory": None, "peak_gpu_memory": None}
    return {
        **nothing,
        "gpu_seconds": gpu_seconds,
        "joules": joules,
        "counters": [*energy],
        "energy": energy,
    }


@pytest.mark.parametrize(
    ("costs", "energy"),
    [
        ([work(0), work(9, nvml=30.0)], {"nvml": 30.0}),  # the first used no GPU
        ([work(0, rapl=1.0), work(9, nvml=30.0, rapl=2.0)], {"nvml": 30.0, "rapl": 3.0}),
        ([work(0), work(9, nvml=30.0, rapl=2.0)], {"nvml": 30.0}),
        ([work(9), work(9, nvml=30.0)], {}),
        ([work(9, rapl=1.0), work(9, nvml=30.0, rapl=2.0)], {"rapl": 3.0}),
        ([work(0), work(0)], {}),
    ],
)
def test_energy_is_added_by_the_counters_that_all_work_has(costs, energy):
    total = add_costs(costs)
    assert total["energy"] == energy
    assert total["counters"] == list(energy)
    assert total["joules"] == (sum(energy.values()) if energy else None)


def test_progress_saves_the_cost_so_that_a_kill_loses_little(tmp_path, monkeypatch):
    monkeypatch.setattr("genfl.metering.SAVE_INTERVAL", 0.0)
    saved = []
    meter = Meter(None, saved.append, powercap=tmp_path)
    with pytest.raises(KeyboardInterrupt), metered(meter):
        with progress.bar("work", 2, "units") as advance:
            advance(1)
            advance(1)
        assert len(saved) == 2
        raise KeyboardInterrupt
    assert len(saved) == 3
    with progress.bar("work", 1, "units") as advance:
        advance(1)
    assert len(saved) == 3, "no meter is on after the block"


CONFIG = """
name: metered
seeds: [0]
data: {name: digits, partition: {kind: dirichlet, alpha: 1.0, clients: 4, min_size: 5}}
prompts: {style: label, per_label: 4, block_size: 4}
generator: {steps: 1}
model: {name: mlp, width: 16}
pretrain: {epochs: 1}
federate: {rounds: 2, clients_per_round: 2, local: {steps: 2, batch_size: 8}, evaluate_every: 1}
methods:
  plain: {algorithm: fedavg}
  warm: {algorithm: fedavg, start: pretrained}
"""


def energy_cell(page, what):
    """Returns the energy in the report's row of some work."""
    row = page[page.index(f'<th scope="row">{what}</th>') :].partition("</tr>")[0]
    return re.findall("<td>(.*?)</td>", row)[4]


PLAIN = """
name: metered
seeds: [0]
data: {name: digits, partition: {kind: iid, clients: 3}}
generator: none
audit: {overlap: ignore}
model: {name: mlp, width: 4}
federate: {rounds: 1, clients_per_round: 2, engine: sequential, local: {steps: 1}}
methods: {plain: {algorithm: fedavg}}
"""


@pytest.mark.slow
def test_the_cost_of_kept_trials_counts_and_of_those_taken_over_is_not_known(tmp_path):
    pipeline.execute(config.parse(PLAIN), tmp_path / "run", until="federate")
    record = tmp_path / "run" / "stages" / "federate.json"
    content = read_record(record)
    content.pop("sha256", None)
    pipeline.write_record(record, {**content, "cost": {**content["cost"], "seconds": 1000.0}})
    more = config.parse(PLAIN, ["methods.more={algorithm: fedprox}"])
    other = Summary.parse(pipeline.execute(more, tmp_path / "other", others=[tmp_path / "run"]))
    assert not other.stages["federate"].cost.complete
    assert other.cost.training is None
    assert other.cost.inference.seconds_per_1000 > 0
    page = (tmp_path / "other" / "report" / "index.html").read_text()
    assert energy_cell(page, "training") == "not measured"
    pipeline.execute(more, tmp_path / "run", until="federate", update=True)
    updated = StageRecord.read(record)
    assert 1000 < cost_account({"federate": updated}, {}).training.seconds < 1100
    # as if an earlier version, without counters, had run it
    content.pop("cost")
    pipeline.write_record(record, content)
    pipeline.execute(more, tmp_path / "run", until="federate")
    again = StageRecord.read(record)
    assert again.digest == updated.digest
    assert cost_account({"federate": again}, {}).training is None


def test_the_first_batch_of_predictions_is_not_timed(tmp_path):
    run = open_run(config.parse(PLAIN), tmp_path)
    run.record("labels", {"found": sorted(digits().label_order)})
    predict, slow = run.setting._scored.forward, [0.4]

    def forward(weights, x):
        time.sleep(slow.pop() if slow else 0)
        return predict(weights, x)

    run.setting._scored = run.setting._scored._replace(forward=forward)
    assert run.setting.inference_cost()["seconds_per_1000"] < 1000 * 0.4 / 200


@pytest.mark.slow
def test_a_run_says_what_it_cost_and_adds_up_its_starts(tmp_path):
    settings = config.parse(CONFIG)
    summary = Summary.parse(pipeline.execute(settings, tmp_path / "run"))
    account = summary.cost
    stages = {name: stage.cost for name, stage in summary.stages.items()}
    work = stages["generate"].seconds + stages["prompts"].seconds
    assert account.generation.seconds == pytest.approx(work, abs=1e-3)
    assert account.training.peak_memory > 50e6
    assert account.inference.parameters == 64 * 16 + 16 + 16 * 10 + 10
    assert account.inference.seconds_per_1000 > 0
    records = {name: StageRecord.read(tmp_path / "run" / "stages" / f"{name}.json") for name in stages}
    for gain in (0.05, -0.05):
        accuracy = summary.methods["plain"].accuracy
        better = accuracy.model_copy(update={"mean": accuracy.mean + gain})
        methods = summary.methods | {"warm": summary.methods["warm"].model_copy(update={"accuracy": better})}
        per_point = cost_account(records, methods).per_point
        if gain < 0:
            assert per_point == {}
        else:
            assert per_point["warm"].points == pytest.approx(5)
            assert per_point["warm"].generation_seconds == pytest.approx(work / 5, rel=1e-3)
    training = sum(stages[name].seconds for name in ("audit", "pretrain", "federate"))
    assert account.training.seconds == pytest.approx(training, abs=1e-3)
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert energy_cell(page, "training") == (
        "not measured"
        if account.training.joules is None
        else f"{energy(account.training.joules)} ({', '.join(account.training.counters)})"
    )
    # as if it had been killed when it had cost 1,000 seconds
    record = tmp_path / "run" / "stages" / "federate.json"
    content = read_record(record)
    about = {name: content[name] for name in ("stage", "digest", "output")}
    cost = {name: value for name, value in content["cost"].items() if name != "inference"}
    pipeline.write_record(record, {**about, "done": False, "cost": {**cost, "seconds": 1000.0}})
    again = Summary.parse(pipeline.execute(settings, tmp_path / "run"))
    assert 1000 < again.stages["federate"].cost.seconds < 1100
    assert again.methods == summary.methods
    before = json.loads(record.read_text())
    pipeline.execute(settings, tmp_path / "run")
    assert json.loads(record.read_text()) == before, "nothing is added where nothing runs"


@pytest.mark.slow
def test_the_generator_as_a_classifier_is_timed(tmp_path):
    overrides = ["methods.reader={algorithm: {name: generator, samples: 1}}"]
    summary = Summary.parse(pipeline.execute(config.parse(CONFIG, overrides), tmp_path / "run"))
    inference = summary.cost.inference
    # text encoder, VAE and U-Net, by the headers of their files
    assert inference.generator_parameters == 112_000 + 865_755 + 2_214_152
    assert inference.generator_seconds_per_1000 > inference.seconds_per_1000


@pytest.mark.slow
def test_the_cost_of_shards_is_a_part_of_the_run(tmp_path):
    settings = config.parse(CONFIG)
    for number in (0, 1):
        pipeline.execute(settings, tmp_path / "run", until="generate", shard=Shard(number, 2))
    shards = [Shard(number, 2).folder(tmp_path / "run") for number in (0, 1)]
    spent = [read_record(folder / "stages" / "generate.json")["cost"]["seconds"] for folder in shards]
    assert min(spent) > 0
    for _ in range(2):  # the second time, nothing is left to do
        summary = Summary.parse(pipeline.execute(settings, tmp_path / "run"))
        cost = summary.stages["generate"].cost
        assert sum(spent) < cost.seconds < sum(spent) + 60
        assert cost.seconds == pytest.approx(sum(spent) + summary.stages["generate"].seconds, abs=0.1)
