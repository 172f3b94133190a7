"""A whole run whose clients hold samples back, against the models and rows it leaves."""

import json
import shutil

import numpy as np
import pytest
import torch
from support.opened import open_run

from genfl import config, pipeline
from genfl.data.sources import DATASETS, DataEntry, DataSet, LabelledExamples, digits, to_image
from genfl.learning.evaluate import evaluate
from genfl.learning.task import from_state_dict
from genfl.rng import Key
from genfl.storage import load_tensors

pytestmark = pytest.mark.slow

CONFIG = """
name: on clients
seeds: [0, 1]
data: {{name: written, partition: {{kind: natural, min_size: 3, test: 0.3}}}}
prompts: {{style: label, per_label: 2}}
generator: {{kind: files, path: {samples}}}
model: {{name: mlp, width: 8}}
pretrain: {{epochs: 1}}
federate: {{rounds: 4, clients_per_round: 2, local: {{steps: 2}}, evaluate_every: 2, engine: sequential}}
methods:
  fedavg: {{algorithm: fedavg}}
  alone: {{algorithm: local}}
  together: {{algorithm: centralised}}
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A config of digits that people wrote: the first a single one, the second two, and so on."""
    data, samples = digits(), tmp_path_factory.mktemp("samples")
    owners = [f"p{k:03}" for k in range(10) for _ in range(k + 1)]
    owners += ["rest"] * (len(data.train.labels) - len(owners))
    train = LabelledExamples(data.train.x, data.train.labels, owners)
    DATASETS["written"] = DataEntry(lambda: DataSet(train, *data[1:]), "image", "")
    for label in set(train.labels):
        (samples / label).mkdir()
        for number, row in enumerate([r for r, name in enumerate(train.labels) if name == label][:2]):
            to_image(train.x[row]).save(samples / label / f"{number}.png")
    yield CONFIG.format(samples=samples)
    del DATASETS["written"]


@pytest.fixture(scope="module")
def done(content, tmp_path_factory):
    """The run, and its summary."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    summary = pipeline.execute(config.parse(content), folder)
    return open_run(config.load(folder / "config.yaml"), folder), summary


def final(run, *place):
    tensors, _ = load_tensors(run.folder.joinpath(*place, "model.safetensors"))
    return from_state_dict(tensors, like=run.task.init(Key(0)))


@pytest.mark.slow
def test_the_global_model_is_tested_on_what_clients_held_back(done):
    run, summary = done
    for name, place in (
        ("fedavg", ("federate", "fedavg")),
        ("together", ("federate", "together")),
        ("synthetic_only", ("pretrain",)),
    ):
        for number, seed in enumerate(run.config.seeds):
            testing, data = run.held_back(seed)
            model = final(run, *place, f"seed-{seed}")
            rows = data.rows
            pooled = evaluate(run.task, model, data.prepare(data.x[rows]), data.y[rows])
            found = summary["methods"][name]["clients"]
            assert found["accuracy"]["per_seed"][number] == pytest.approx(pooled["accuracy"], abs=1e-12)
            assert (found["tested"][number], found["samples"][number]) == (len(testing), len(rows))


def test_a_client_alone_tests_its_own_model(done):
    run, summary = done
    testing, data = run.held_back(0)
    accuracies = []
    for number, client in enumerate(testing):
        model = final(run, "federate", "alone", f"seed-0-client-{client}")
        batch = data.batch(number, torch.arange(data.samples(number)))
        accuracies.append(evaluate(run.task, model, **batch)["accuracy"])
    found = summary["methods"]["alone"]["clients"]
    assert found["worst"]["per_seed"][0] == min(accuracies)
    weights = [data.samples(number) for number in range(len(testing))]
    assert found["accuracy"]["per_seed"][0] == pytest.approx(np.average(accuracies, weights=weights))


def test_what_is_held_back_is_nobodys_training_data(done):
    run, _ = done
    assert run.config.data.partition.clients == 9, "p000 and p001 have too few"
    for seed in run.config.seeds:
        testing, data = run.held_back(seed)
        trained = run.private(seed)
        assert len(trained) == 9
        assert not set(data.rows.tolist()) & set(trained.rows.tolist())
        assert len(data.rows) + len(trained.rows) == 1437 - 1 - 2
        assert testing == list(range(1, 9)), "of three samples none is held back"


def test_the_figures_are_in_every_file(done):
    run, summary = done
    assert len(summary["methods"]["fedavg"]["recall"]) == 10
    assert json.loads((run.folder / "summary.json").read_text()) == summary
    page = (run.folder / "report" / "index.html").read_text()
    assert "Tested are 8 clients" in page
    assert (run.folder / "report" / "recall.csv").read_text().startswith("method,")
    trace = json.loads((run.folder / "federate" / "fedavg" / "seed-0" / "trace.json").read_text())
    assert "clients" not in trace["evaluations"][0], "nothing in it grows with the number of clients"


def without_times(summary):
    return {**summary, "stages": None, "cost": None, "synthetic": None}


@pytest.mark.slow
def test_an_interrupted_run_ends_the_same_and_a_finished_one_is_left_alone(done, content, tmp_path):
    run, summary = done
    shutil.copytree(run.folder, tmp_path / "run")
    for name in ("federate", "report"):
        (tmp_path / "run" / "stages" / f"{name}.json").unlink()
    shutil.rmtree(tmp_path / "run" / "federate" / "alone" / "seed-1-client-4")
    shutil.rmtree(tmp_path / "run" / "federate" / "fedavg" / "seed-0")
    again = pipeline.execute(config.parse(content), tmp_path / "run")
    assert without_times(again) == without_times(summary)
    third = pipeline.execute(config.parse(content), tmp_path / "run")
    assert all(stage["skipped"] for stage in third["stages"].values())
    assert {row.state for row in pipeline.run_status(tmp_path / "run")} == {"done"}


@pytest.mark.slow
def test_another_share_does_not_ask_for_other_generated_data(done, content, tmp_path):
    run, _ = done
    shutil.copytree(run.folder, tmp_path / "run")
    summary = pipeline.execute(
        config.parse(content, ["data.partition.test=0"]), tmp_path / "run", update=True
    )
    skipped = [name for name, stage in summary["stages"].items() if stage["skipped"]]
    assert skipped == ["labels", "prompts", "generate", "audit", "pretrain"]
    assert {method["clients"] for method in summary["methods"].values()} == {None}
