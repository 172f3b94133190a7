"""Privacy of users in whole runs: ε, resumes, noise of its own for each trial, and what is refused."""

import json
import time

import dp_accounting
import pytest
import torch
from dp_accounting import rdp
from support.command import Command, run_command
from support.parameters import mostly_slow

import genfl
from genfl import config, pipeline
from genfl.algorithms import ALGORITHMS, Algorithm
from genfl.algorithms.fedavg import fedavg
from genfl.errors import InputError
from genfl.learning.local import LocalHook, LocalSGD
from genfl.learning.task import Task
from genfl.privacy.dp.user import CLIP_NORM, NOISED_COSINE, SIGNAL_TO_NOISE
from genfl.stages.base import identity
from genfl.stages.federate.inputs import TrialInputs
from genfl.storage import load_tensors

CONFIG = """
name: users
seeds: [0]
data: {name: digits, partition: {kind: iid, clients: 100}}
generator: none
model: {name: mlp, width: 8}
federate: {rounds: 6, clients_per_round: 20, local: {steps: 2, batch_size: 8}, engine: sequential}
privacy: {unit: user, epsilon: 8, accountant: rdp, repeatable: true}
methods:
  fedavg: {algorithm: {name: fedavg, weighting: uniform}}
  same: {algorithm: [{name: fedavg, weighting: uniform}, {name: fedprox, mu: 0.0}]}
  scaffold: {algorithm: scaffold}
"""
DELTA = 100**-1.1


def execute(folder, *overrides):
    pipeline.execute(config.parse(CONFIG, overrides), folder, until="federate")
    methods = json.loads((folder / "stages" / "federate.json").read_text())["result"]["methods"]
    return {name: traces["0"] for name, traces in methods.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("users") / "run"
    return folder, execute(folder)


def model(folder, method):
    tensors, _ = load_tensors(folder / "federate" / method / "seed-0" / "model.safetensors")
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


@pytest.mark.slow
def test_epsilon_of_a_run_is_that_of_its_rounds(run):
    _, results = run
    for trace in results.values():
        privacy = trace["privacy"]
        assert (privacy["unit"], privacy["sampling_rate"], privacy["steps"]) == ("user", 0.2, 6)
        assert privacy["delta"] == pytest.approx(DELTA)
        assert privacy["neighbours"] == "add or remove"
        assert privacy["exact_census"] == []
        gaussian = dp_accounting.GaussianDpEvent(privacy["noise_multiplier"])
        accountant = rdp.RdpAccountant().compose(dp_accounting.PoissonSampledDpEvent(0.2, gaussian), 6)
        assert privacy["epsilon"] == accountant.get_epsilon(DELTA)
        assert 7.9 < privacy["epsilon"] <= 8


@pytest.mark.slow
def test_rounds_tell_what_noise_leaves(run):
    folder, results = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name, trace in results.items():
        rows = [line for line in lines if line.get("method") == name and line.get("round")]
        assert [row[SIGNAL_TO_NOISE] for row in rows] == [row[SIGNAL_TO_NOISE] for row in trace["rounds"]]
        assert all(row[SIGNAL_TO_NOISE] > 0 and -1 < row[NOISED_COSINE] < 1 for row in trace["rounds"])
        assert sum(row[NOISED_COSINE] for row in trace["rounds"]) > 0, "something is left"
        sizes = [row["clients"] for row in trace["rounds"]]
        assert len(set(sizes)) > 1
    assert sizes == [row["clients"] for row in results["fedavg"]["rounds"]], "methods have the same cohorts"


@pytest.mark.slow
def test_methods_share_no_noise(run):
    """FedProx with μ = 0 is FedAvg. Only their noise differs."""
    folder, results = run
    one, other = model(folder, "fedavg"), model(folder, "same")
    assert not torch.equal(one, other)
    first = [results[name]["rounds"][0] for name in ("fedavg", "same")]
    assert first[0]["diversity"] == first[1]["diversity"], "the first uploads are the same"
    assert first[0][NOISED_COSINE] != first[1][NOISED_COSINE]


@pytest.mark.slow
def test_engines_agree(run, tmp_path):
    folder, _ = run
    for engine in ("parallel", "vectorized"):
        execute(tmp_path / engine, f"federate.engine={engine}", "methods={scaffold: {algorithm: scaffold}}")
    one = model(folder, "scaffold")
    assert torch.equal(one, model(tmp_path / "parallel", "scaffold"))
    torch.testing.assert_close(one, model(tmp_path / "vectorized", "scaffold"), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_killed_run_ends_bit_identical(tmp_path):
    file = tmp_path / "users.yaml"
    file.write_text(CONFIG)
    changes = [
        "federate.rounds=40",
        "methods={scaffold: {algorithm: scaffold}}",
        "privacy.target_quantile=0.5",
        "privacy.noise_multiplier=0.4",
    ]
    changes += ["privacy.epsilon=null", "federate.checkpoint_every=2", "federate.evaluate_every=20"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = Command("run", file, *changes, "--out", killed, "--until", "federate")
    checkpoint = killed / "federate" / "scaffold" / "seed-0" / "checkpoint.safetensors"
    limit = time.monotonic() + 300
    while not checkpoint.exists():
        assert process.poll() is None, process.ended().stderr
        assert time.monotonic() < limit
        time.sleep(0.001)
    process.kill()
    _, meta = load_tensors(checkpoint)
    assert 0 < len(meta["rounds"]) < 40, "it was over before the kill"
    for folder in (killed, whole):
        run_command("run", file, *changes, "--out", folder, "--until", "federate")
    assert torch.equal(model(whole, "scaffold"), model(killed, "scaffold"))
    traces = [(folder / "federate/scaffold/seed-0/trace.json").read_text() for folder in (whole, killed)]
    assert traces[0] == traces[1]
    rounds = json.loads(traces[0])["rounds"]
    assert len({row[CLIP_NORM] for row in rounds}) == 40, "the norm follows the clients"


@pytest.mark.slow
def test_exact_sums_of_a_census_are_recorded(tmp_path):
    gen = "methods={fedgen: {algorithm: {name: fedgen, weighting: uniform, generator_steps: 1}}}"
    results = execute(tmp_path / "run", gen, "federate.rounds=1", "privacy.target_quantile=0.5")
    privacy = results["fedgen"]["privacy"]
    assert privacy["exact_census"] == ["label_counts"]
    assert privacy["target_quantile"] == 0.5


@pytest.mark.slow
def test_fixed_cohorts_cost_the_rounds_of_the_busiest_client(tmp_path):
    results = execute(tmp_path / "run", "privacy.cohorts=fixed", "methods={scaffold: {algorithm: scaffold}}")
    privacy = results["scaffold"]["privacy"]
    assert privacy["sampling_rate"] == 1
    assert 2 <= privacy["steps"] <= 6
    assert privacy["neighbours"] == "zero out"
    assert "clients" not in results["scaffold"]["rounds"][0]
    gaussian = dp_accounting.GaussianDpEvent(privacy["noise_multiplier"])
    accountant = rdp.RdpAccountant().compose(gaussian, privacy["steps"])
    assert privacy["epsilon"] == accountant.get_epsilon(DELTA) <= 8


BLT = "cohorts: cyclic, mechanism: blt"
SHARED = "privacy={unit: user, epsilon: 8, noise: distributed, quorum: 16, repeatable: true}"


@pytest.mark.slow
def test_clients_add_the_noise_and_the_record_says_so(tmp_path, caplog):
    caplog.set_level("INFO")
    results = execute(tmp_path / "run", SHARED, "methods={scaffold: {algorithm: scaffold}}")
    privacy = results["scaffold"]["privacy"]
    assert (privacy["quorum"], privacy["cohort"]) == (16, 20)
    assert (privacy["accountant"], privacy["sampling_rate"], privacy["neighbours"]) == ("rdp", 1, "zero out")
    gaussian = dp_accounting.GaussianDpEvent(privacy["noise_multiplier"])
    accountant = rdp.RdpAccountant().compose(gaussian, privacy["steps"])
    assert privacy["epsilon"] == accountant.get_epsilon(DELTA) <= 8
    assert "clients add it, enough if 16 of 20 finish, and 1.12 times as much if all do" in caplog.text
    rounds = results["scaffold"]["rounds"]
    assert all(row[SIGNAL_TO_NOISE] >= 0 and 0 <= row[NOISED_COSINE] < 1 for row in rounds)
    weights = load_tensors(tmp_path / "run" / "federate/scaffold/seed-0/model.safetensors")[0]
    numbers = 2 * sum(tensor.numel() for tensor in weights.values())  # model and control
    assert {row["uplink_bytes"] for row in rounds} == {20 * 4 * numbers}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    mostly_slow(["cohorts: fixed", "cohorts: fixed, target_quantile: 0.5", "noise: distributed", BLT], BLT),
    ids=["plain", "adaptive", "distributed", "blt"],
)
def test_a_strict_run_lets_no_algorithm_of_ones_own_observe(settings, tmp_path, forget):
    @genfl.register("observed")
    def observed(task: Task, local: LocalSGD, *hooks: LocalHook) -> Algorithm:
        plain = fedavg(task, local, *hooks, weighting="uniform")
        return plain._replace(observe=lambda state, aggregate, key: {"clients_seen": aggregate["clients"]})

    assert ALGORITHMS["observed"].kind is Algorithm
    strict = "strict: true, public: [labels, sizes, test]"
    results = execute(
        tmp_path / "run",
        f"privacy={{unit: user, noise_multiplier: 0.5, {strict}, {settings}}}",
        "methods={own: {algorithm: observed}}",
        "federate.rounds=1",
        "audit.overlap=ignore",
        "report.real_examples=false",
    )
    (row,) = results["own"]["rounds"]
    assert row.keys() == {"round", "uplink_bytes", "downlink_bytes", "refused", "samples"}


@pytest.mark.slow
def test_runs_with_noise_of_clients_repeat(tmp_path):
    """Their masks differ, and change nothing. The engine does not matter, either."""
    methods = "methods={scaffold: {algorithm: scaffold}}"
    one, other = tmp_path / "one", tmp_path / "other"
    assert execute(one, SHARED, methods) == execute(other, SHARED, methods, "federate.engine=parallel")
    assert torch.equal(model(one, "scaffold"), model(other, "scaffold"))


def test_digests_of_trials_do_not_know_of_defaults():
    """So runs from before there were other kinds of noise keep their noise and their results."""

    def counted(section):
        settings = config.parse(CONFIG, [f"privacy={section}"])
        inputs = TrialInputs(
            [], None, None, "fp32", "cpu", None, [], settings.federate, "exact", None, [], 0, settings.privacy
        )
        return identity(inputs)["privacy"]

    later = {"noise", "quorum", "mechanism"}
    assert later & counted("{unit: user, epsilon: 8, noise: central, mechanism: gaussian}").keys() == set()
    assert counted("{unit: user, epsilon: 8, cohorts: fixed, mechanism: blt}")["mechanism"] == "blt"
    shared = counted("{unit: user, epsilon: 8, noise: distributed}")
    assert shared["noise"] == "distributed"
    assert "quorum" not in shared
    assert counted("{unit: user, epsilon: 8, noise: distributed, quorum: 5}")["quorum"] == 5


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{unit: sample, epsilon: 8, noise: distributed}", "noise distributed does not apply to unit sample"),
        (
            "{unit: user, epsilon: 8, noise: distributed, cohorts: poisson}",
            "cohorts: poisson does not go with",
        ),
        ("{unit: user, epsilon: 8, noise: distributed, accountant: pld}", "accountant: pld has no bound"),
        ("{unit: user, epsilon: 8, quorum: 4}", "quorum applies to noise distributed alone"),
        ("{unit: user, epsilon: 8, noise: distributed, quorum: 1}", r"privacy\.quorum: .*2, not 1"),
        ("{unit: user, epsilon: 8, noise: distributed, quorum: .nan}", r"privacy\.quorum"),
        ("{unit: user, epsilon: 8, noise: both}", r"privacy\.noise: should be 'central' or 'distributed'"),
    ],
)
def test_noise_of_clients_is_refused_where_it_does_not_apply(section, message):
    with pytest.raises(InputError, match=message) as error:
        config.parse(CONFIG, [f"privacy={section}"])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "privacy.quorum=21",
            r"^privacy\.quorum: 21, but a round has 20 clients; give a number from 2 to 20",
        ),
        ("federate.clients_per_round=1", r"^privacy\.noise: distributed needs 2 clients in a round"),
        (
            "privacy={unit: user, noise_multiplier: 1.0e+6, noise: distributed}",
            r"^privacy\.noise: distributed, but words of 32 bits are too small",
        ),
        ("methods={m: {algorithm: fedavg}}", r"^methods\.m\.algorithm: fedavg: .*set weighting: uniform"),
        ("privacy.target_quantile=0.5", r"^privacy\.target_quantile: .*there are 20; raise"),
    ],
)
def test_noise_of_clients_that_does_not_fit_is_refused(tmp_path, change, message):
    settings = config.parse(CONFIG, [SHARED, "privacy.epsilon=0.5", change])
    with pytest.raises(InputError, match=message) as error:
        pipeline.execute(settings, tmp_path / "run", until="federate")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "federate").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("methods={m: {algorithm: fedavg}}", r"^methods\.m\.algorithm: fedavg: .*set weighting: uniform"),
        ("methods={m: {algorithm: fedprox}}", r"^methods\.m\.algorithm: fedprox: .*set weighting: uniform"),
        ("methods={m: {algorithm: fednova}}", r"^methods\.m\.algorithm: fednova: .*equal weights"),
        ("methods={m: {algorithm: fedftg}}", r"^methods\.m\.algorithm: fedftg: its server sees"),
        ("model={name: cnn, norm: batch}", r"running statistics.*model\.norm: group"),
        ("privacy.target_quantile=0.5", r"^privacy\.target_quantile: .*more than \d.* there are 5; raise"),
    ],
)
def test_config_that_cannot_be_protected_is_refused(tmp_path, change, message):
    more = ["federate.clients_per_round=5", "privacy.epsilon=1"] if "quantile" in change else []
    with pytest.raises(InputError, match=message) as error:
        pipeline.execute(config.parse(CONFIG, [change, *more]), tmp_path / "run", until="federate")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "federate").exists()


@pytest.mark.parametrize("field", ["cohorts: fixed", "target_quantile: 0.5"])
def test_fields_of_users_do_not_apply_to_samples(field):
    name = field.split(":")[0]
    with pytest.raises(InputError, match=f"privacy.*{name} does not apply to unit sample; leave it out"):
        config.parse(CONFIG, [f"privacy={{unit: sample, epsilon: 8, {field}}}"])


@pytest.mark.parametrize("value", ["0", "1", ".nan", ".inf", "-0.5"])
def test_target_quantile_out_of_range_is_refused(value):
    with pytest.raises(InputError, match=r"privacy\.target_quantile"):
        config.parse(CONFIG, [f"privacy={{unit: user, epsilon: 8, target_quantile: {value}}}"])
