"""What the stages do with data that is stored as bytes."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.opened import open_run

from genfl import config
from genfl.experiment.context import RunContext, initial_key
from genfl.stages.base import identity
from genfl.stages.federate import setting

CONFIG = """
name: bytes
seeds: [0]
data: {name: images, size: [4, 4], partition: {kind: iid, clients: 3}}
model: {name: mlp, width: 8}
pretrain: {epochs: 1, batch_size: 4}
federate: {rounds: 1, clients_per_round: 2, engine: sequential, local: {steps: 1, batch_size: 4, lr: 0.01}}
methods:
  private: {algorithm: fedavg}
  mixed: {algorithm: fedavg, data: mixed}
  generated: {algorithm: fedavg, data: generated}
  shared: {algorithm: feddf}
  centralised: {algorithm: centralised}
"""
NAMES = ["black", "white"]


def draw(folder, per_class=15, seed=0):
    """Writes noise that is dark or bright."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(NAMES):
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        for n in range(per_class):
            pixels = rng.integers(100, size=(4, 4, 3), dtype=np.uint8) + np.uint8(150 * number)
            Image.fromarray(pixels).save(folder / "train" / name / f"{n}.bmp")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run before its stages pretrain and federate, with synthetic data as the generate stage reads it."""
    folder = draw(tmp_path / "own")
    run = open_run(config.parse(CONFIG, [f"data.path={folder}"]), tmp_path / "run")
    for stage in ("labels", "generate", "pretrain"):
        run.record(stage, {"found": NAMES})
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (12, 3, 4, 4), generator=rng, dtype=torch.uint8)
    synthetic = x, torch.arange(12) % 2
    monkeypatch.setattr("genfl.stages.generate.read_synthetic", lambda folder, data, labels: synthetic)
    monkeypatch.setattr(
        setting, "read_weights", lambda folder, task, seed, source: task.init(initial_key(seed))
    )
    return run


@pytest.fixture
def seen(monkeypatch):
    """What models are given: the ranges and types of their inputs."""
    seen = []

    def watch(task):
        def loss(params, buffers, batch, key):
            seen.append(batch["x"])
            return task.loss(params, buffers, batch, key)

        def forward(weights, x):
            seen.append(x)
            return task.forward(weights, x)

        return task._replace(loss=loss, forward=forward)

    classify = RunContext.classify
    monkeypatch.setattr(RunContext, "classify", lambda *args: watch(classify(*args)))
    return seen


def of_normal_range(seen):
    floats = all(x.is_floating_point() and x.abs().max() <= 1 for x in seen)
    return floats and min(x.min() for x in seen) < 0


def test_models_are_never_given_bytes(run, seen):
    run.execute("federate")
    assert of_normal_range(seen)


def test_pretraining_is_not_given_bytes(run, seen):
    run.execute("pretrain")
    assert of_normal_range(seen)


def test_private_and_generated_examples_are_stored_and_given_alike(run):
    x, y = run.data.train.x[:6], torch.tensor([0, 1] * 3)
    for name in ("private", "generated", "mixed"):
        data = run.training_data(name, 0, (x, y))
        parts = data.x.parts if name == "mixed" else [data.x]
        assert {part.dtype for part in parts} == {torch.uint8}
        found = data.batch(0, torch.arange(2))["x"]
        assert of_normal_range([found])
        assert torch.allclose(found, (torch.cat(list(parts))[data.rows[:2]] / 255 - 0.5) / 0.5, atol=1e-6)


def test_stages_depend_on_the_content_of_the_data_and_not_on_its_place(run, tmp_path):
    def inputs(folder):
        moved = open_run(config.parse(CONFIG, [f"data.path={folder}"]), run.folder)
        return [identity(moved.step(stage).inputs) for stage in ("labels", "pretrain", "federate")]

    before = inputs(tmp_path / "own")
    shutil.copytree(tmp_path / "own", tmp_path / "elsewhere")
    assert inputs(tmp_path / "elsewhere") == before
    draw(tmp_path / "own", seed=1)
    labels, pretrain, federate = inputs(tmp_path / "own")
    assert labels != before[0]
    assert pretrain == before[1], "it reads generated samples in the format of the private ones"
    assert federate != before[2]
