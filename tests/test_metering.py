"""What work costs, by the machine's own counters and by files laid out as Linux's powercap."""

import json
import time

import pytest
import torch

from genfl import config, pipeline, progress
from genfl.experiment.folder import Shard
from genfl.experiment.records import read_record
from genfl.metering import Meter, Rapl, add_costs, metered
from genfl.results.schema import Summary


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
    }
    cost = Meter(earlier, lambda cost: None, powercap=counters(tmp_path)).cost()
    assert 10 <= cost["seconds"] < 11
    assert cost["devices"][0] == "an older processor"
    assert (cost["gpu_seconds"], cost["peak_memory"], cost["peak_gpu_memory"]) == (20, 10**15, 4)
    assert (cost["joules"], cost["counters"]) == (3.0, ["nvml", "rapl"])
    unmeasured = add_costs([earlier, {**earlier, "joules": None}])
    assert (unmeasured["seconds"], unmeasured["joules"]) == (20, None), "a part is not the whole"


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
    gain = 100 * (summary.methods["warm"].accuracy.mean - summary.methods["plain"].accuracy.mean)
    assert ("warm" in account.per_point) == (gain > 0)
    if gain > 0:
        assert account.per_point["warm"].generation_seconds == pytest.approx(work / gain, rel=1e-3)
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "not measured" in page or "rapl" in account.training.counters
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
