"""Real data sets, where there is a copy of them beside the repository."""

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from support.command import run_command

from genfl import config
from genfl.data.recipes import RECIPES
from genfl.data.sources import DATASETS
from genfl.experiment.context import RunContext

from .helpers import find

pytestmark = pytest.mark.slow  # tens of thousands of images are decoded first

REPOSITORY = Path(__file__).parents[2]
SETS = [
    pytest.param("cifar10", "cifar10", 50_000, 5_000, (3, 32, 32), id="cifar10"),
    pytest.param("mnist", "mnist", 60_000, 10_000, (1, 28, 28), id="mnist"),
    pytest.param("eurosat", "eurosat_rgb", 6_000, 2_000, (3, 64, 64), id="eurosat"),
    pytest.param("pacs", "pacs64", 7_993, 1_998, (3, 64, 64), id="pacs"),
]


def table(folder, split):
    return pyarrow.parquet.read_table(next(find(folder).glob(f"data/{split}-*.parquet")))


def class_names(read):
    content = json.loads(read.schema.metadata[b"huggingface"])
    return content["info"]["features"]["label"]["names"]


@pytest.mark.parametrize(("name", "folder", "train", "test", "shape"), SETS)
def test_pixels_and_labels_are_those_of_the_files(real, name, folder, train, test, shape):
    data = real(name, folder)
    assert (len(data.train.x), len(data.train.labels)) == (train, train)
    assert (len(data.test.x), len(data.test.labels)) == (test, test)
    assert data.shape == shape
    for split, examples in (("train", data.train), ("test", data.test)):
        assert examples.x.dtype == torch.uint8
        read = table(folder, split)
        own = class_names(read)
        words = [RECIPES[name].words.get(label, label) for label in own]
        assert [words.index(label) for label in examples.labels] == read["label"].to_pylist()
        mode = "L" if shape[0] == 1 else "RGB"
        for row in np.random.default_rng(0).integers(len(read), size=40).tolist():
            image = Image.open(io.BytesIO(read["image"][row].as_py()["bytes"])).convert(mode)
            assert data.decode(examples.x[row]).tobytes() == image.tobytes()
            assert data.decode(examples.x[row]).size == image.size
            assert torch.equal(data.encode(image), examples.x[row])


@pytest.mark.parametrize(("name", "folder", "train", "test", "shape"), SETS)
def test_models_are_given_standard_inputs_that_turn_back_into_the_pixels(
    real, name, folder, train, test, shape
):
    data = real(name, folder)
    x = data.prepare(data.train.x[:6000])
    assert x.dtype == torch.float32
    assert x.mean((0, 2, 3)).abs().max() < 0.03
    assert (x.std((0, 2, 3)) - 1).abs().max() < 0.05
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (RECIPES[name].format.mean, RECIPES[name].format.std)
    )
    assert torch.equal((255 * (x * std + mean)).round().to(torch.uint8), data.train.x[:6000])


def test_words_stand_for_codes(real):
    assert set(real("mnist", "mnist").train.labels) >= {"zero", "five", "nine"}
    assert "annual crop" in set(real("eurosat", "eurosat_rgb").train.labels)


def test_the_first_reading_is_fast_and_the_second_far_faster(cache):
    path = str(find("mnist"))
    began = time.perf_counter()
    DATASETS["mnist"].load(path=path)
    first, began = time.perf_counter() - began, time.perf_counter()
    DATASETS["mnist"].load(path=path)
    second = time.perf_counter() - began
    assert first < 40
    assert second < min(2, first / 3)


def test_clients_are_the_four_domains_of_pacs(real, session_cache):
    data = real("pacs", "pacs64")
    content = {
        "name": "pacs",
        "data": {
            "name": "pacs",
            "path": str(find("pacs64")),
            "partition": {"kind": "natural", "clients": 4},
        },
        "model": {"name": "cnn"},
        "federate": {"clients_per_round": 2},
        "methods": {"fedavg": {"algorithm": "fedavg"}},
    }
    split = RunContext().client_rows(config.validate(content).data, 0)
    held = [{data.train.client_ids[row] for row in rows} for rows in split]
    assert held == [{"art_painting"}, {"cartoon"}, {"photo"}, {"sketch"}]
    assert sorted(np.concatenate(split).tolist()) == list(range(7_993))


def test_generated_cifar_has_no_test_split_so_a_fifth_of_each_class_is_set_apart(real):
    data = real("cifar10", "cifake_sd14")
    assert (len(data.train.x), len(data.test.x)) == (24_000, 6_000)
    assert {data.test.labels.count(label) for label in set(data.test.labels)} == {600}


def test_the_command_discovers_the_labels_of_mnist(tmp_path, session_cache, monkeypatch):
    path = os.path.relpath(find("mnist"), REPOSITORY)
    monkeypatch.setenv("GENFL_CACHE", str(session_cache))
    settings = ["data.name=mnist", f"data.path={path}", "seeds=[0]"]
    command = ["run", "examples/digits.yaml", *settings, "--until", "labels", "--out", tmp_path / "run"]
    run_command(*command, cwd=REPOSITORY)
    found = json.loads((tmp_path / "run" / "labels" / "labels.json").read_text())["found"]
    assert sorted(found) == sorted(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
