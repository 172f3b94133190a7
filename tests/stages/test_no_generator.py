"""A config without a generator: methods compared as they are, with nothing generated."""

from __future__ import annotations

import json
import shutil

import pytest
from support.parameters import mostly_slow

from genfl import config, pipeline
from genfl.errors import InputError
from genfl.experiment.context import RunContext

CONFIG = """
name: baselines
seeds: [0, 1]
data:
  name: digits
  partition: {kind: dirichlet, alpha: 0.1, clients: 8}
prompts: {per_label: 4, block_size: 20, guidance_scale: 2.0}
generator: GENERATOR
model: {name: cnn}
pretrain: {epochs: 1}
federate:
  rounds: 4
  clients_per_round: 4
  local: {steps: 2, batch_size: 16, lr: 0.05}
  evaluate_every: 2
  heterogeneity: true
methods:
  fedavg: {algorithm: fedavg}
  scaffold: {algorithm: scaffold}
  together: {algorithm: centralised}
"""


def settings(generator="none", *overrides):
    return config.parse(CONFIG.replace("GENERATOR", generator), overrides)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("none") / "run"
    return folder, pipeline.execute(settings(), folder)


@pytest.mark.slow
def test_nothing_is_generated(done):
    folder, summary = done
    assert list(summary["stages"]) == ["labels", "audit", "federate", "report"]
    assert (summary["generator"], summary["synthetic"]) == ("none", None)
    assert list(summary["methods"]) == ["fedavg", "scaffold", "together"]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "stages",
        "labels",
        "audit",
        "federate",
        "report",
    }
    assert [(row.name, row.state) for row in pipeline.run_status(folder)] == [
        ("labels", "done"),
        ("audit", "done"),
        ("federate", "done"),
        ("report", "done"),
    ]
    assert json.loads((folder / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_the_page_speaks_of_no_generator(done):
    folder, _ = done
    page = (folder / "report" / "index.html").read_text()
    shown = page[page.index("<body>") : page.index("The resolved config")]
    assert "Without a generator, " in shown
    for word in ("synthetic", "Pre-training", "pretrained generator", "Generation made"):
        assert word not in shown, word
    assert 'href="#pretraining"' not in shown
    assert "Test accuracy of local models before they are averaged" in shown, "measured without one, too"


@pytest.mark.slow
def test_methods_do_what_they_do_beside_a_generator(done, tmp_path):
    _, summary = done
    beside = pipeline.execute(settings("{kind: image, steps: 2}"), tmp_path / "run")
    for name, method in summary["methods"].items():
        assert beside["methods"][name]["curve"] == method["curve"]
        assert beside["methods"][name]["recall"] == method["recall"]
    assert "synthetic_only" in beside["methods"]

    without = pipeline.execute(settings(), tmp_path / "run", update=True)
    assert without["methods"] == summary["methods"], "and what the folder still has of one is not read"


@pytest.mark.parametrize(
    "change",
    mostly_slow(
        [
            "model=mlp",
            "model={name: cnn, width: 4}",
            "precision=bf16",
            "seeds=[0]",
            "data.partition.alpha=0.2",
            "federate.local.lr=0.01",
            "methods.scaffold={algorithm: fedprox}",
        ],
        "model=mlp",
        "federate.local.lr=0.01",
    ),
)
def test_another_config_is_not_up_to_date(change):
    context = RunContext()
    before, after = (
        {
            stage.name: digest
            for stage, _, digest in pipeline.digests(
                pipeline.checked(settings("none", *overrides), context), context
            )
        }
        for overrides in ((), (change,))
    )
    assert before["federate"] != after["federate"]


@pytest.mark.slow
def test_another_model_in_the_same_folder_is_trained(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    changed = pipeline.execute(settings("none", "model=mlp"), tmp_path / "run", update=True)
    assert not changed["stages"]["federate"]["skipped"]
    alone = pipeline.execute(settings("none", "model=mlp"), tmp_path / "alone", others=[done[0]])
    assert alone["methods"] == changed["methods"] != done[1]["methods"]


def test_an_existing_model_is_looked_for_before_any_work(tmp_path):
    starts = ["pretrain={init: nowhere.safetensors}", "methods.early={algorithm: fedavg, start: init}"]
    with pytest.raises(InputError, match=r"pretrain\.init: .*nowhere\.safetensors"):
        pipeline.execute(settings("none", *starts), tmp_path / "run")
    assert not (tmp_path / "run" / "federate").exists()


@pytest.mark.parametrize("generator", ["null", "none", "{kind: none}", '"none"'])
def test_all_ways_to_write_it(generator):
    assert not settings(generator).generates
    assert settings(generator) == settings()


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("{algorithm: fedavg, start: pretrained}", "start"),
        ("{algorithm: fedavg, data: mixed}", "data"),
        ("{algorithm: feddf}", "algorithm"),
        ("{algorithm: generator}", "algorithm"),
    ],
)
def test_what_needs_generated_data_is_refused(method, field):
    message = rf"methods\.x\.{field}: it needs generated data, but generator is none; name a generator"
    with pytest.raises(InputError, match=message):
        settings("none", f"methods.x={method}")


@pytest.mark.parametrize("stage", ["prompts", "generate", "pretrain"])
def test_there_is_no_stage_to_stop_at(stage, tmp_path):
    with pytest.raises(InputError, match=f"--until: this config does not need {stage}; "):
        pipeline.execute(settings(), tmp_path / "run", until=stage)
    assert not (tmp_path / "run").exists()


def test_a_name_alone_is_a_kind():
    with pytest.raises(InputError, match=r"generator\.kind: there is no 'non'; did you mean 'none'\?"):
        settings("non")


def test_an_unknown_kind_is_told_of_none():
    with pytest.raises(InputError, match=r"generator\.kind: there is no 'video'; known: .*none"):
        settings("{kind: video}")
