"""Runs with public data beside the private data, or instead of generated data."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.opened import open_run

from genfl import config, pipeline
from genfl.algorithms import dsfl
from genfl.data.partition import subset
from genfl.data.plans import Schedule
from genfl.engines.in_process import sequential
from genfl.errors import InputError
from genfl.experiment.context import RunContext, class_indices, initial_key
from genfl.learning.augment import Augment
from genfl.learning.evaluate import evaluate
from genfl.learning.local import LocalSGD
from genfl.learning.pretrain import Recipe, train_with_holdout
from genfl.rng import Key
from genfl.simulation import federate
from genfl.storage import load_tensors

CONFIG = """
name: public
seeds: [0]
data: {name: digits, partition: {kind: dirichlet, alpha: 0.5, clients: 6, samples: 900}}
generator: none
model: {name: mlp, width: 16}
client_models: [{name: mlp, width: 8}]
pretrain: {epochs: 2}
public: {samples: 300}
federate: {rounds: 2, clients_per_round: 3, local: {steps: 2, lr: 0.05}, evaluate_every: 1}
methods:
  fedavg: {algorithm: fedavg}
  warm: {algorithm: fedavg, start: pretrained, source: public}
  mixed: {algorithm: fedavg, data: mixed, source: public, content: {samples: 120}}
  shared: {algorithm: {name: dsfl, steps: 2, lr: 0.1}, source: public}
  server: {algorithm: {name: fedet, steps: 2}, source: public}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("public") / "run"
    return folder, pipeline.execute(config.parse(CONFIG), folder)


@pytest.fixture(scope="module")
def setting():
    settings, context = config.parse(CONFIG), RunContext()
    data = context.data_set(settings.data)
    labels = sorted(set(data.train.labels))
    public = context.public(settings.public, settings.data, distinct=False)
    task = context.classify(settings.data, settings.model, len(labels), "fp32")
    return settings, context, data, labels, public, task


def test_public_data_is_disjoint_from_the_clients(setting):
    _, _, data, _, public, _ = setting
    held = {data.train.x[row].numpy().tobytes() for row in subset(data.train.labels, 900)}
    assert len(public.x) == 300
    assert not held & {x.numpy().tobytes() for x in public.x}


@pytest.mark.slow
def test_only_what_is_needed_runs_and_is_reported(done):
    folder, summary = done
    assert list(summary["stages"]) == ["labels", "audit", "pretrain", "federate", "report"]
    assert [path.name for path in (folder / "pretrain").iterdir()] == ["public-seed-0"]
    sources = {name: method["source"] for name, method in summary["methods"].items()}
    assert sources == dict.fromkeys(["warm", "mixed", "shared", "server"], "public") | {"fedavg": None}
    assert not any(method["uses_generator"] for method in summary["methods"].values())
    discovery = summary["labels"]["bytes_per_client"] * 6
    setup = {name: method["setup_bytes"] for name, method in summary["methods"].items()}
    assert setup == {"fedavg": 0, "warm": discovery, "mixed": discovery, "shared": 0, "server": 0}
    assert summary["methods"]["mixed"]["generated_samples"] == 120
    page = (folder / "report" / "index.html").read_text()
    shown = page[page.index("<body>") : page.index("The resolved config")]
    for words in ("from the public data", "private and public data mixed", "dsfl, on public data, from"):
        assert words in shown, words
    assert "generated data, " not in shown, "no row of traffic of generated data"
    assert json.loads((folder / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_the_warm_start_is_trained_on_the_public_examples_alone(done, setting):
    folder, _ = done
    settings, _, data, labels, public, task = setting
    x, y = public.matched(labels)
    recipe = Recipe(**settings.pretrain.model_dump(exclude={"init", "augment"}), augment=Augment())
    trained = train_with_holdout(task, task.init(initial_key(0)), x, y, recipe, Key(0).fold("pretrain"))
    tensors, _ = load_tensors(folder / "pretrain" / "public-seed-0" / "model.safetensors")
    for name, tensor in task.state_dict(trained.weights).items():
        assert torch.equal(tensor, tensors[name])
    scores = evaluate(task, trained.weights, data.test.x, class_indices(data.test, labels))
    first = json.loads((folder / "federate" / "warm" / "seed-0" / "trace.json").read_text())["evaluations"][0]
    assert first["accuracy"] == scores["accuracy"]


@pytest.mark.slow
def test_clients_share_the_public_inputs(done, setting):
    """DS-FL in a run has the bits of DS-FL by hand on the same inputs."""
    folder, _ = done
    settings, context, data, labels, public, task = setting
    algorithm = dsfl(task, LocalSGD(0.05), shared=public.unlabelled(data), steps=2, lr=0.1)
    clients = context.private_data(settings.data, labels, 0)
    schedule = Schedule(2, 3, 32, local_steps=2, evaluate_every=1)
    key, start = Key(0).fold("federate"), task.init(initial_key(0))
    trace = federate(algorithm, start, clients, sequential(clients), schedule, key, lambda weights: {})
    tensors, _ = load_tensors(folder / "federate" / "shared" / "seed-0" / "model.safetensors")
    for name, tensor in task.state_dict(trace.weights).items():
        torch.testing.assert_close(tensors[name], tensor)


def test_client_models_count_for_the_methods_that_use_them(tmp_path):
    methods = (
        "methods.alike={algorithm: feddf, source: public}",
        "methods.differ={algorithm: {name: feddf, heterogeneous: true}, source: public}",
    )
    changes = ("client_models=[{name: mlp, width: 16}]", "client_models=[{name: mlp, width: 9}]")
    runs = [open_run(config.parse(CONFIG, [*methods, change]), tmp_path) for change in changes]
    runs[0].record("labels", {"found": [str(digit) for digit in range(10)]})
    same = {
        name: len({run.trial_digest(name, 0) for run in runs}) == 1
        for name in ("fedavg", "shared", "alike", "differ", "server")
    }
    assert same == {"fedavg": True, "shared": True, "alike": True, "differ": False, "server": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["public=null"], "methods.warm.source: public, but there is no section public"),
        (["public.labelled=false"], "methods.warm.start: it needs labels, but public.labelled is false"),
        (["public.labelled=false"], "methods.mixed.data: it needs labels, but public.labelled is false"),
        (["methods.fedavg.source=public"], "methods.fedavg.source: public, but the method takes no data"),
        (["methods={fedavg: {algorithm: fedavg}}"], "public: no method takes public data"),
        (["methods.mixed.content={samples: 9, guidance: real}"], "methods.mixed.content.guidance: real, but"),
        (["methods.mixed.content={by: server}"], "methods.mixed.content.by: server, but clients have public"),
        (["methods.warm.source=generated"], "methods.warm.start: it needs generated data, but generator is"),
        (["data.partition.samples=null"], "public.path: required, as the clients hold all"),
        (["public.name=digits"], "public.name: the same data as the private data"),
        (["public.name=digit"], "public.name: there is no 'digit'"),
        (["public.name=ag_news"], "public.name: ag_news is text, but digits is image"),
        (["public.path=somewhere", "public.name=images"], "public.path: digits has no format"),
        (["public.label=x"], "public.label: it needs a path"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(change, message):
    with pytest.raises(InputError, match=rf"(?m)^{message}"):
        config.parse(CONFIG, change)


def test_public_samples_are_checked_before_any_work():
    for change, message in {
        "public.samples=900": r"^public\.samples: 900, but there are \d+ public samples",
        "methods.mixed.content.samples=3000": r"^methods\.mixed\.content\.samples: .* public samples of",
    }.items():
        with pytest.raises(InputError, match=message):
            pipeline.checked(config.parse(CONFIG, [change]), RunContext())


# --- public data in a folder, beside generated data


def draw(folder, seed, names=("black", "white")):
    """Writes noise that is dark or bright."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(names):
        (folder / "train" / name).mkdir(parents=True)
        for n in range(10):
            pixels = rng.integers(100, size=(4, 4, 3), dtype=np.uint8) + np.uint8(150 * (number % 2))
            Image.fromarray(pixels).save(folder / "train" / name / f"{n}.bmp")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(("private", "generated", "public")):
        draw(tmp_path / name, seed, ("black", "white", "red")[: 2 + (name == "public")])
    return tmp_path


def both(folders, *changes):
    return config.parse(
        f"""
name: both
seeds: [0]
data: {{name: images, path: {folders / "private"}, size: [4, 4], partition: {{kind: iid, clients: 3}}}}
generator: {{kind: files, path: {folders / "generated"}}}
prompts: {{per_label: 8}}
public: {{path: {folders / "public"}}}
model: {{name: mlp, width: 4}}
pretrain: {{epochs: 1}}
federate: {{rounds: 1, clients_per_round: 2, local: {{steps: 1}}}}
methods:
  fedavg: {{algorithm: fedavg}}
  gptfl: {{algorithm: fedavg, start: pretrained}}
  warm: {{algorithm: fedavg, start: pretrained, source: public}}
  shared: {{algorithm: dsfl, source: public}}
  generated: {{algorithm: dsfl}}
""",
        changes,
    )


@pytest.mark.slow
def test_one_config_compares_public_with_generated_data(folders, caplog):
    """As Table 2 of GPT-FL does."""
    with caplog.at_level(logging.INFO):
        summary = pipeline.execute(both(folders), folders / "run")
    assert "10 of 30 public samples have labels that no client has (red)" in caplog.text
    assert {path.name for path in (folders / "run" / "pretrain").iterdir()} == {"seed-0", "public-seed-0"}
    sources = {name: method["source"] for name, method in summary["methods"].items()}
    assert sources == {
        "synthetic_only": "generated",
        "fedavg": None,
        "gptfl": "generated",
        "warm": "public",
        "shared": "public",
        "generated": "generated",
    }
    methods = summary["methods"]
    answers = {name: methods[name]["uplink_bytes_per_round"] / 2 - 4 for name in ("shared", "generated")}
    assert answers == {"shared": 30 * 2 * 4, "generated": 16 * 2 * 4}, (
        "all public rows, whatever their labels"
    )
    assert methods["shared"]["setup_bytes"] == 0, "clients have public data themselves"
    discovery, pixels = 3 * summary["labels"]["bytes_per_client"], 4 * 4 * 3
    assert methods["generated"]["setup_bytes"] == discovery + 3 * 16 * pixels, "16 samples for three clients"
    page = (folders / "run" / "report" / "index.html").read_text()
    assert "10 of 30 public samples have labels that no client has (red)" in page


def test_private_data_is_not_public(folders):
    link = folders / "link"
    link.symlink_to(folders / "private")
    shutil.copytree(folders / "private", folders / "copy")
    for path, what in {
        folders / "private": "the same",
        link: r"\S+ is the",
        folders / "copy": r"\S+ is a copy",
    }.items():
        with pytest.raises(InputError, match=rf"(?m)^public\.path: {what}"):
            pipeline.checked(both(folders, f"public.path={path}"), RunContext())


def test_no_held_back_example_of_a_client_is_public(folders):
    for n in range(6):
        copied = folders / "public" / "train" / "black" / f"x{n}.bmp"
        shutil.copy(folders / "private" / "train" / "black" / f"{n}.bmp", copied)
    settings, context = both(folders), RunContext()
    testing = both(folders, "data.partition.test=0.5")
    assert len(context.public(settings.public, settings.data, distinct=False).x) == 36 - 2, (
        "two are test examples"
    )
    public = context.public(testing.public, testing.data, distinct=False)
    assert len(public.x) == 36 - 6
    data, (_, held_back) = context.data_set(testing.data), context.train_test_rows(testing.data, 0)
    tests = {data.train.x[row].numpy().tobytes() for rows in held_back for row in rows}
    assert not tests & {x.numpy().tobytes() for x in public.x}
    assert context.public_digest(testing.public, testing.data, distinct=False) == public.digest
    assert context.public_digest(settings.public, settings.data, distinct=False) != public.digest


def test_unknown_labels_and_columns_are_named(folders):
    draw(folders / "strange", 7, ("blue", "green"))
    with pytest.raises(
        InputError, match=r"^public\.label: no client has any of its 2 labels \(blue, green\)"
    ):
        pipeline.checked(both(folders, f"public.path={folders / 'strange'}"), RunContext())
    unlabelled = both(
        folders,
        f"public={{path: {folders / 'strange'}, labelled: false}}",
        "methods={fedavg: {algorithm: fedavg}, shared: {algorithm: dsfl, source: public}}",
    )
    pipeline.checked(unlabelled, RunContext())
    with pytest.raises(InputError, match=r"^public\.path: "):
        pipeline.checked(both(folders, f"public.path={folders / 'absent'}"), RunContext())


@pytest.mark.slow
def test_the_example_of_the_paper_s_table_runs_in_small(tmp_path):
    """Every method of examples/public_data.yaml, on digits, with the miniature's images as generated data."""
    settings = config.load(
        Path(__file__).parents[2] / "examples" / "public_data.yaml",
        [
            "seeds=[0]",
            "data={name: digits, partition: {alpha: 0.5, clients: 6, samples: 900}}",
            "public.samples=100",
            "prompts={per_label: 4}",
            "generator={kind: image, model: miniature, steps: 2}",
            "pretrain={epochs: 1}",
            "federate={rounds: 2, clients_per_round: 3, local: {steps: 1}, evaluate_every: 1}",
            "methods.public_content.content.samples=60",
        ],
    )
    methods = pipeline.execute(settings, tmp_path / "run")["methods"]
    assert {name for name, method in methods.items() if method["source"] == "public"} == {
        "feddf",
        "dsfl",
        "fedet",
        "public_start",
        "public_content",
    }
    model = methods["fedavg"]["uplink_bytes_per_round"]
    assert methods["feddf"]["uplink_bytes_per_round"] == model
    assert methods["fedet"]["uplink_bytes_per_round"] < model
    assert methods["dsfl"]["uplink_bytes_per_round"] == 3 * 4 * (100 * 10 + 1)
