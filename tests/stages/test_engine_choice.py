"""What the engine `auto` is in a whole run: told, kept in its folder, the same for all that is compared."""

import json
import logging
import shutil

import pytest
import torch

from genfl import config, pipeline
from genfl.engines import auto as choice
from genfl.stages.federate import engine_choice
from genfl.storage import load_tensors

CONFIG = """
name: engines
seeds: [0]
data: {name: digits, partition: PARTITION}
generator: none
model: {name: cnn, width: 8}
federate: {rounds: 2, clients_per_round: 10, local: {steps: 3}, evaluate_every: 2, engine: ENGINE}
methods:
  fedavg: {algorithm: fedavg}
  fedprox: {algorithm: fedprox}
  together: {algorithm: centralised}
"""
ALIKE = "{kind: iid, clients: 20}"
UNLIKE = "{kind: dirichlet, alpha: 0.05, clients: 20, min_size: 3}"


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(choice, "cores", lambda: 2)


@pytest.fixture
def execute(tmp_path, caplog):
    """``(folder, engine, partition) -> what was logged``."""

    def execute(folder, engine, partition, *overrides):
        caplog.clear()
        settings = config.parse(CONFIG.replace("PARTITION", partition).replace("ENGINE", engine), overrides)
        with caplog.at_level(logging.INFO, "genfl"):
            update = (tmp_path / folder).exists()
            pipeline.execute(settings, tmp_path / folder, update=update, until="federate")
        return caplog.text

    return execute


def model(folder, method):
    """The final model's numbers."""
    tensors, _ = load_tensors(folder / "federate" / method / "seed-0" / "model.safetensors")
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).tolist()


def made(folder):
    """When each method was last trained."""
    files = folder.glob("federate/*/seed-0/checkpoint.safetensors")
    return {path.parent.parent.name: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("partition", "same_as", "says"),
    [
        (ALIKE, "vectorized", "clients run in batches: they take the same steps, and a batch's forward"),
        (UNLIKE, "sequential", "clients run one by one: clients differ in the number of their steps"),
    ],
)
def test_auto_is_what_it_says_and_what_has_the_same_bits_is_not_trained_again(
    execute, tmp_path, partition, same_as, says
):
    batched = same_as == "vectorized"
    assert execute("auto", "auto", partition).count(says) == 1
    assert json.loads((tmp_path / "auto/federate/engine.json").read_text())["batched"] is batched
    execute("other", same_as, partition)
    for method in "fedavg", "fedprox":
        assert model(tmp_path / "auto", method) == model(tmp_path / "other", method)
    before = made(tmp_path / "auto")
    execute("auto", "parallel", partition)
    redone = {method for method, when in made(tmp_path / "auto").items() if when != before[method]}
    assert redone == ({"fedavg", "fedprox"} if batched else set())


@pytest.mark.slow
def test_what_was_found_stays_on_a_machine_with_more_cores(execute, tmp_path, monkeypatch):
    execute("run", "auto", ALIKE)
    before = made(tmp_path / "run")
    monkeypatch.setattr(choice, "cores", lambda: 64)
    log = execute("run", "auto", ALIKE, "federate.rounds=3")
    assert "in batches" in log
    assert made(tmp_path / "run") != before
    assert "one by one" in execute("another", "auto", ALIKE)


@pytest.mark.slow
def test_a_method_more_changes_nothing_for_the_others(execute, tmp_path, monkeypatch):
    execute("run", "auto", ALIKE)
    before = made(tmp_path / "run")
    monkeypatch.setattr(choice, "cores", lambda: 64)
    monkeypatch.setattr(engine_choice, "obstacle", lambda *_, fast: "it cannot")
    log = execute("run", "auto", ALIKE, "methods.moon={algorithm: moon}")
    assert "clients of moon run one by one: it cannot" in log
    after = made(tmp_path / "run")
    assert after.keys() - before.keys() == {"moon"}
    assert after.items() >= before.items()


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """A run that `auto` decided to do in batches."""
    folder = tmp_path_factory.mktemp("decided") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "cores", lambda: 2)
        settings = config.parse(CONFIG.replace("PARTITION", ALIKE).replace("ENGINE", "auto"))
        pipeline.execute(settings, folder, until="federate")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"digest": 1}'])
def test_a_damaged_decision_is_made_again(execute, decided, tmp_path, content):
    shutil.copytree(decided, tmp_path / "run")
    (tmp_path / "run/federate/engine.json").write_text(content)
    assert "in batches" in execute("run", "auto", ALIKE, "federate.rounds=3")
    assert json.loads((tmp_path / "run/federate/engine.json").read_text())["batched"]


@pytest.mark.slow
def test_local_models_that_are_measured_come_one_by_one(execute):
    measured = execute("measured", "auto", ALIKE, "federate.heterogeneity=true")
    assert "one by one: local models are measured as well" in measured
