"""Differential privacy of runs: what is refused, what is recorded, and what stays bit-identical."""

import json
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from support.methods import few_steps
from support.small_runs import SMALL_RUN

import genfl
from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.config.privacy import Privacy
from genfl.data.clients import ClientData
from genfl.data.plans import PoissonSampling, Schedule
from genfl.engines.in_process import sequential
from genfl.errors import InputError
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN, MLP
from genfl.privacy.dp.accounting import NoisedSums, epsilon_of
from genfl.references import FederationPlan
from genfl.rng import Key
from genfl.simulation import cohort, federate
from genfl.stages.federate.protection import Protection, protect, protected, sample_problem

SAMPLE = {"unit": "sample", "epsilon": 8, "accountant": "rdp"}


def config(methods=None, privacy=SAMPLE, **changes):
    methods = methods or {"fedavg": {"algorithm": "fedavg"}}
    return {**SMALL_RUN, "seeds": [0], "methods": methods, "privacy": privacy, **changes}


def sizes(*counts, **parts):
    ends = torch.tensor(counts).cumsum(0)
    rows = [torch.arange(end - size, end).numpy() for size, end in zip(counts, ends.tolist(), strict=True)]
    total = int(ends[-1])
    return ClientData(torch.zeros(total, 2), torch.zeros(total, dtype=torch.long), rows, 2)


# --- what a protection counts


@pytest.mark.slow
def test_steps_of_the_most_exposed_client_are_counted():
    plan = Schedule(rounds=20, clients_per_round=2, batch_size=4, local_steps=3)
    clients, key = sizes(10, 20, 30), Key(5)
    privacy = Privacy(unit="sample", noise_multiplier=1.1, delta=1e-4, accountant="rdp")
    federation, protection = protect(privacy, FederationPlan(clients, plan, key))
    counts = [0, 0, 0]
    for number in range(1, 21):
        for client in cohort(3, 2, key.fold("cohort", number)):
            counts[client] += 1
    assert protection.sampling_rate == federation.schedule.poisson.rate == 4 / 20, "of the mean client"
    assert protection.releases(20) == (NoisedSums(1.1, 0.2, 3 * max(counts)),)
    assert protection.epsilon(20) == epsilon_of(protection.releases(20), 1e-4, "rdp")
    spent = [protection.epsilon(rounds) for rounds in range(21)]
    assert spent[0] == 0
    assert spent == sorted(spent), "it never falls, whenever a run is resumed"


@pytest.mark.slow
def test_noise_is_calibrated_to_epsilon():
    plan = Schedule(rounds=10, clients_per_round=2, batch_size=4, local_epochs=2)
    privacy = Privacy(unit="sample", epsilon=3.0, accountant="rdp")
    _, protection = protect(privacy, FederationPlan(sizes(40, 40, 40), plan, Key(0)))
    assert protection.steps_per_round == 20, "two passes over ten batches"
    assert protection.delta == pytest.approx(120**-1.1)
    assert protection.neighbours == "zero out", "the size of a step depends on how many samples a client has"
    assert 2.99 < protection.epsilon(10) <= 3.0


def test_generated_samples_are_free_or_protected():
    plan = Schedule(rounds=3, clients_per_round=2, batch_size=4, local_steps=1)
    private = sizes(10, 10)
    x, y = torch.zeros(20, 2), torch.zeros(20, dtype=torch.long)
    rows = [torch.arange(10).numpy(), torch.arange(10, 20).numpy()]
    mixed = private.with_part("generated", x, y, rows)
    for generated, free in (("free", (1,)), ("protected", ())):
        privacy = Privacy(unit="sample", noise_multiplier=1.0, generated=generated)
        federation, protection = protect(privacy, FederationPlan(mixed, plan, Key(0)))
        assert protection.free == federation.schedule.poisson.free == free
        assert protection.sampling_rate == 4 / 20, "of private and generated samples together"
        assert protection.delta == pytest.approx(20**-1.1), "of private samples alone"
    alone = ClientData(x, y, rows, 2, name="generated")
    free = Privacy(unit="sample", noise_multiplier=1.0)
    assert protect(free, FederationPlan(alone, plan, Key(0)))[1] is None, "nothing private is read"


# --- runs


@pytest.mark.slow
def test_run_records_what_it_spent_and_stays_below_epsilon(tmp_path):
    methods = {"fedavg": {"algorithm": "fedavg"}, "together": {"algorithm": "centralised"}}
    result = genfl.run(config(methods), out=tmp_path / "run")
    methods = json.loads((result.folder / "stages" / "federate.json").read_text())["result"]["methods"]
    assert "privacy" not in methods["together"]["0"], "references are not federated"
    spent = methods["fedavg"]["0"]["privacy"]
    assert spent["unit"] == "sample"
    assert 7.9 < spent["epsilon"] <= 8
    assert spent["epsilon"] == epsilon_of(
        (NoisedSums(spent["noise_multiplier"], spent["sampling_rate"], spent["steps"]),),
        spent["delta"],
        "rdp",
    )


def weights(result, method="fedavg"):
    return result.model(method, seed=0).state_dict()


@pytest.mark.slow
def test_noise_is_repeated_only_where_it_is_asked_for(tmp_path):
    repeatable, secret = SAMPLE | {"repeatable": True}, SAMPLE
    runs = {
        name: weights(genfl.run(config(privacy=privacy), out=tmp_path / name))
        for name, privacy in {
            "plain": None,
            "one": repeatable,
            "two": repeatable,
            "three": secret,
            "four": secret,
        }.items()
    }
    assert all(torch.equal(runs["one"][name], runs["two"][name]) for name in runs["plain"])
    for one, other in (("plain", "one"), ("one", "three"), ("three", "four")):
        assert not any(torch.equal(runs[one][name], runs[other][name]) for name in runs["plain"])


@pytest.mark.slow
def test_the_secret_of_the_noise_is_readable_by_its_owner_alone_and_in_no_other_file(tmp_path):
    result = genfl.run(config(), out=tmp_path / "run")
    file = result.folder / "federate" / "noise.key"
    secret = file.read_text()
    assert len(bytes.fromhex(secret)) == 32
    assert file.stat().st_mode & 0o777 == 0o600
    genfl.run(config(), out=tmp_path / "run")
    assert file.read_text() == secret, "a resumed run uses it again"
    result.export(tmp_path / "model", method="fedavg", seed=0)
    for path in tmp_path.rglob("*"):
        assert path == file or path.is_dir() or secret.encode() not in path.read_bytes(), path


REFUSED = {
    "fedsam": "takes 2 gradients",
    "feddecorr": "compares the samples of a batch",
    "feddf": "sees the uploads of single clients",
    "fedet": "sees the uploads of single clients",
    "fedftg": "sees the uploads of single clients",
}


@pytest.fixture(scope="module")
def setting():
    task = classification(lambda: CNN((1, 8, 8), 3, width=4), (1, 8, 8))
    shared = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    tasks = {str(width): classification(partial(MLP, (1, 8, 8), 3, width), (1, 8, 8)) for width in (4, 6)}
    resources = {"cohort": 2, "rounds": 50, "shared": shared, "unlabelled": shared, "client_tasks": tasks}
    return task, resources


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_method_is_protected_or_refused(name, setting):
    task, resources = setting

    def build(local):
        return ALGORITHMS[name].build(task, local, resources, **few_steps(name))

    problem = sample_problem(build, LocalSGD(0.1), task)
    if name in REFUSED:
        assert REFUSED[name] in problem
        return
    assert problem is None
    local = protected(LocalSGD(0.1), task, Protection("sample", 0.5, 1.0, 0.5, 2, (1,), 1e-3, "rdp"))
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    clients = ClientData(x, torch.arange(20) % 3, [np.arange(10), np.arange(10, 20)], 3)
    plan = Schedule(1, 2, 4, 2, poisson=PoissonSampling(0.5))
    trace = federate(
        build(local), task.init(Key(0)), clients, sequential(clients), plan, Key(1), lambda weights: {}
    )
    assert trace.rounds[0]["refused"] == 0
    assert trees.is_finite(trace.weights)


def test_method_that_uploads_what_it_remembers_of_examples_is_refused(setting):
    """Its first upload reads no example. The second one has the mean of those of the first round."""
    task, resources = setting

    def build(local):
        algorithm = ALGORITHMS["fedavg"].build(task, local, resources)
        client = algorithm.client

        def start(message, memory, client_info, key):
            return {**client.start(message, memory["inner"], client_info, key), "seen": memory["seen"]}

        def step(carry, batch, key):
            inner = {name: part for name, part in carry.items() if name not in ("seen", "new")}
            return {**client.step(inner, batch, key), "seen": carry["seen"], "new": batch["x"].mean()}

        def finish(carry):
            upload, memory = client.finish(carry)
            params = trees.map(lambda leaf: leaf + carry["seen"], upload["delta"]["params"])
            upload = {**upload, "delta": {**upload["delta"], "params": params}}
            return upload, {"inner": memory, "seen": carry.get("new", carry["seen"])}

        return algorithm._replace(
            client=client._replace(start=start, step=step, finish=finish),
            memory=lambda weights: {"inner": algorithm.memory(weights), "seen": torch.zeros(())},
        )

    assert "read their examples outside of SGD" in str(sample_problem(build, LocalSGD(0.1), task))


def test_scaffolds_second_gradient_is_refused(tmp_path):
    methods = {"mine": {"algorithm": {"name": "scaffold", "option": "I"}}}
    with pytest.raises(InputError, match=r"^methods\.mine\.algorithm: DP-SGD cannot protect it: it takes 2"):
        genfl.run(config(methods), out=tmp_path / "run")


def test_batch_norm_is_refused(tmp_path):
    model = {"name": "cnn", "norm": "batch"}
    with pytest.raises(InputError, match=r"^privacy: the batch norm of model cnn .* set model\.norm"):
        genfl.run(config(model=model), out=tmp_path / "run")


def test_a_missing_library_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"^privacy: .* needs dp-accounting; install it with pip install"):
        genfl.run(config(), out=tmp_path / "run")
    assert not (tmp_path / "run" / "stages" / "labels.json").exists()


BAD = {
    "epsilon zero": ({"epsilon": 0}, r"privacy\.epsilon"),
    "epsilon negative": ({"epsilon": -1}, r"privacy\.epsilon"),
    "epsilon nan": ({"epsilon": math.nan}, r"privacy\.epsilon"),
    "epsilon infinite": ({"epsilon": math.inf}, r"privacy\.epsilon"),
    "delta nan": ({"delta": math.nan}, r"privacy\.delta"),
    "delta one": ({"delta": 1.0}, r"privacy\.delta"),
    "norm infinite": ({"max_grad_norm": math.inf}, r"privacy\.max_grad_norm"),
    "norm zero": ({"max_grad_norm": 0}, r"privacy\.max_grad_norm"),
    "both": ({"noise_multiplier": 1.0}, "set epsilon or noise_multiplier: both are set"),
    "neither": ({"epsilon": None}, "set epsilon or noise_multiplier: neither is set"),
    "next to no noise": ({"epsilon": None, "noise_multiplier": 1e-9}, "must be 0, or at least 0.001"),
    "too much noise": ({"epsilon": None, "noise_multiplier": 1e200}, r"privacy\.noise_multiplier"),
    "epsilon out of reach": ({"epsilon": 1e-9, "delta": 1e-12}, r"privacy\.epsilon: no noise up to"),
    "norm of the other unit": ({"max_update_norm": 1.0}, "max_update_norm does not apply"),
    "unknown unit": ({"unit": "client"}, r"privacy\.unit"),
}


@pytest.mark.parametrize(("change", "line"), BAD.values(), ids=BAD.keys())
def test_impossible_values_are_refused_in_one_line(change, line, tmp_path):
    with pytest.raises(InputError, match=line) as error:
        genfl.run(config(privacy=SAMPLE | change), out=tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"precision": "bf16"}, "precision: bf16 has no gradients of single samples"),
        ({"methods": {"m": {"algorithm": "fedavg", "data": "p2g"}}}, r"methods\.m\.data: p2g trains on one"),
        (
            {
                "methods": {
                    "m": {
                        "algorithm": "fedavg",
                        "data": "mixed",
                        "content": {"samples": 10, "guidance": "real"},
                    }
                }
            },
            r"methods\.m\.content\.guidance: real derives samples from private",
        ),
        (
            {
                "methods": {
                    "m": {"algorithm": "fedavg", "data": "mixed", "content": {"filter": {"share": 0.5}}}
                }
            },
            r"methods\.m\.content\.filter: privacy draws from all samples",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, line, tmp_path):
    changes = {"generator": {"kind": "image"}, "federate": {"local": {"steps": 4}}, **changes}
    with pytest.raises(InputError, match=line):
        genfl.run(config(**changes), out=tmp_path / "run")
