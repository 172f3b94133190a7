"""The description of a model: it holds all that its file must, and gives the format back bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from genfl.data.formats import GreyFormat, PixelFormat
from genfl.data.media import Clip
from genfl.data.recipes import RECIPES
from genfl.data.sounds import LogMelFormat
from genfl.data.sources import DATASETS
from genfl.data.texts import TokenFormat, train_tokenizer
from genfl.deployment.description import (
    TOKENIZER_FILE,
    Architecture,
    ModelDescription,
    OwnInput,
    TokenInput,
    describe_input,
    figures_of,
    input_format,
)
from genfl.errors import InputError
from genfl.models import MODELS

RNG = np.random.default_rng(0)
IMAGE = Image.fromarray(RNG.integers(0, 256, (11, 9, 3), dtype=np.uint8))
CLIP = Clip(RNG.normal(size=9000).astype(np.float32), 16_000)


def describe(**changes) -> ModelDescription:
    values = {
        "method": "gptfl",
        "seed": 0,
        "rounds": 2,
        "model": Architecture(name="cnn", options={"width": 8, "norm": "group"}, own=False),
        "shape": [1, 8, 8],
        "precision": "fp32",
        "modality": "image",
        "input": describe_input("digits", GreyFormat((8, 8))),
        "label_names": ["one", "two", "three"],
        "figures": None,
        "config_digest": "d",
        "weights_sha256": "w",
    }
    return ModelDescription(**{**values, **changes})


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        (GreyFormat((8, 6)), IMAGE),
        (PixelFormat((8, 6), 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), IMAGE),
        (PixelFormat((8, 6), 1, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), IMAGE),
        (LogMelFormat(0.5), CLIP),
        (TokenFormat(7), "Hello, a text of more than seven words!"),
    ],
    ids=["grey", "rgb", "averaged", "log-mel", "hashed"],
)
def test_description_gives_the_same_inputs(tmp_path, encoding, content):
    describe(input=describe_input("x", encoding)).write(tmp_path / "model.json")
    again = input_format(ModelDescription.read(tmp_path / "model.json").input, tmp_path)
    stored = encoding.encode(content)
    assert np.array_equal(again.encode(content), stored)
    assert again.shape() == encoding.shape()
    prepared = torch.from_numpy(stored.copy())[None]
    assert torch.equal(again.prepare(prepared), encoding.prepare(prepared))


def test_description_reads_the_tokenizer_beside_it(tmp_path):
    pytest.importorskip("tokenizers")
    train_tokenizer(["a good film", "a bad film"], 20, tmp_path / TOKENIZER_FILE)
    encoding = TokenFormat(4, str(tmp_path / TOKENIZER_FILE))
    described = describe_input("x", encoding)
    assert described == TokenInput(length=4, tokenizer="tokenizer.json", buckets=None)
    again = input_format(described, tmp_path)
    assert np.array_equal(again.encode("a bad, bad film"), encoding.encode("a bad, bad film"))


@pytest.mark.parametrize("name", RECIPES)
def test_description_of_every_recipe(name):
    options = {"size": (8, 8), "seconds": 1.0}
    encoding = RECIPES[name].format
    encoding = replace(encoding, **{o: v for o, v in options.items() if o in encoding.options})
    described = describe(input=describe_input(name, encoding))
    assert not isinstance(described.input, OwnInput)
    assert ModelDescription.model_validate(json.loads(json.dumps(described.to_dict()))) == described


def test_digits_have_a_format_that_is_theirs():
    data = DATASETS["digits"].load()
    assert torch.equal(torch.from_numpy(data.format.encode(IMAGE)), data.encode(IMAGE))
    assert data.format.shape() == data.shape
    assert data.format.input_range() == data.input_range
    assert torch.equal(data.format.prepare(data.test.x), data.prepare(data.test.x))


def test_description_of_data_of_the_users_own():
    assert describe_input("mine", None) == OwnInput(data="mine")
    assert input_format(OwnInput(data="mine"), None) is None


def test_description_builds_the_model():
    model = describe().build()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert {*model.state_dict()} == {*MODELS["cnn"].build((1, 8, 8), 3, width=8).state_dict()}


@pytest.mark.parametrize(
    ("part", "name"), [(None, "method"), ("model", "name"), ("model", "x\x1b"), ("input", "data")]
)
def test_names_in_the_file_hold_no_control_characters(tmp_path, part, name):
    """They reach folders and terminals."""
    content = describe(input=OwnInput(data="mine")).to_dict()
    (content[part] if part else content)[name] = "red \x1b[31m"
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"model\.json: [\w.]+") as error:
        ModelDescription.read(tmp_path / "model.json")
    assert str(error.value).isprintable()


def test_method_in_the_file_is_the_name_of_a_folder(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({**describe().to_dict(), "method": "../x"}))
    with pytest.raises(InputError, match=r"model\.json: method: "):
        ModelDescription.read(tmp_path / "model.json")


def test_description_without_the_users_code():
    mine = Architecture(name="mine", options={}, own=True)
    with pytest.raises(InputError, match=r"^model: mine is a model of your own.*import the module"):
        describe(model=mine).build()


def test_description_with_options_that_the_code_no_longer_has():
    old = Architecture(name="cnn", options={"depth": 3}, own=False)
    with pytest.raises(InputError, match=r"^model: cnn does not take"):
        describe(model=old).build()


def test_read_a_description_of_another_version(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**describe().to_dict(), "format": 2}))
    with pytest.raises(InputError, match="format 2, but this version of genfl reads format 1"):
        ModelDescription.read(path)
    path.write_text(json.dumps({**describe().to_dict(), "shape": "wide"}))
    with pytest.raises(InputError, match=r"shape: .*restore the file"):
        ModelDescription.read(path)
    with pytest.raises(InputError, match="no such file"):
        ModelDescription.read(tmp_path / "absent.json")


def test_features_of_another_version(tmp_path):
    described = describe_input("x", LogMelFormat(1.0)).model_copy(update={"hop": 320})
    with pytest.raises(InputError, match="other spectrograms"):
        input_format(described, tmp_path)
    hashed = describe_input("x", TokenFormat(5)).model_copy(update={"buckets": 7})
    with pytest.raises(InputError, match="other tokens"):
        input_format(hashed, tmp_path)


def test_figures_are_those_of_the_last_evaluation():
    scores = {"macro_f1": 0.5, "recall": [0.5, None], "calibration_error": 0.1, "loss": 0.7}
    rows = [{"round": n, "accuracy": accuracy, **scores} for n, accuracy in enumerate((0.1, 0.6))]
    assert figures_of(rows, 9).accuracy == 0.6
    assert figures_of(rows, 9).examples == 9
    assert figures_of([], 9) is None
