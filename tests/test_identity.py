"""Digests of code and values: what they follow, and what they name as out of reach."""

import functools
import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch

from genfl.identity import value_digest

NET = """
import dataclasses, functools
from torch import nn
from torch.nn.functional import {activation} as act

TABLE = {table}
GRID = {{"a": [{cell}]}}

@dataclasses.dataclass
class Settings:
    width: int = {width}

SETTINGS = Settings()

class Base(nn.Sequential):
    factor = {factor}

    @property
    def scale(self):
        return {scale}

    @staticmethod
    def depth():
        return {depth}

class Net(Base):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(4, SETTINGS.width), nn.{layer}(), nn.Linear(8, classes))

@functools.lru_cache
def cached():
    return GRID

def net(shape, classes):
    return act(Net(classes), TABLE, cached())
"""
USUAL = {
    "activation": "relu",
    "table": "[1]",
    "cell": "2",
    "width": 8,
    "factor": 1.0,
    "scale": 2,
    "depth": 3,
    "layer": "ReLU",
}


def load(**changes):
    """Return the builder of a user's module that is written anew, as a notebook's cell is."""
    module = types.ModuleType("user_module")
    sys.modules["user_module"] = module
    try:
        exec(NET.format(**{**USUAL, **changes}), module.__dict__)
    finally:
        del sys.modules["user_module"]
    return module.net


def test_digest_is_the_same_for_the_same_code():
    assert value_digest(load()) == value_digest(load())


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "tanh"},
        {"table": "[2]"},
        {"cell": "3"},
        {"width": 16},
        {"factor": 0.5},
        {"scale": 3},
        {"depth": 4},
        {"layer": "Tanh"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_digest_follows_classes_bases_and_containers(change):
    assert value_digest(load()) != value_digest(load(**change))


def test_repeated_values_do_not_collide():
    a, b = np.zeros(3), np.ones(3)
    assert value_digest([a, b, a]) != value_digest([a, b, b])
    loop: list = []
    loop.append(loop)
    assert value_digest(loop) == value_digest(loop)


class Slotted:
    __slots__ = ("__hidden", "value")

    def __init__(self, value, hidden=0):
        self.value, self.__hidden = value, hidden


def test_slots_count():
    assert value_digest(Slotted(1)) == value_digest(Slotted(1))
    assert len({value_digest(Slotted(*given)) for given in ((1,), (2,), (1, 1))}) == 3


def test_sets_of_functions_hash_code_not_addresses():
    def functions(factor):
        return {lambda x: factor * x, "name"}

    assert value_digest(functions(1)) == value_digest(functions(1)) != value_digest(functions(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.bool, torch.float16])
def test_tensors_of_every_type_are_hashed(dtype):
    zeros, ones = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)
    assert value_digest(zeros) == value_digest(torch.zeros(2, dtype=dtype)) != value_digest(ones)
    assert value_digest(zeros) != value_digest(zeros[:, None])
    assert value_digest(torch.tensor(1.0)) != value_digest(torch.tensor(2.0))


def test_arrays_of_objects_hash_the_objects():
    assert value_digest(np.array(["a", 1], object)) == value_digest(np.array(["".join("a"), 1], object))


def test_plain_attributes_of_a_module_count():
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert value_digest(first) == value_digest(second)
    second.scale = 2.0
    assert value_digest(first) != value_digest(second)


def test_what_cannot_be_hashed_is_named(caplog):
    stream = (number for number in range(3))
    lock = threading.Lock()

    def reads():
        return next(stream), lock

    value_digest(reads)
    assert "a value of type generator cannot be hashed" in caplog.text
    assert caplog.text.count("cannot be hashed") == 1, "locks decide no result"


@pytest.mark.slow
def test_digest_is_the_same_in_every_process(capsys):
    """In one that has only begun, and in this one, which orders sets in another way."""
    code = (
        "import genfl, torch; from genfl.identity import value_digest; torch.manual_seed(0);"
        "data = genfl.FederatedDataset.from_arrays(torch.rand(8, 4), [0, 1] * 4, genfl.partition.iid(2));"
        "task = genfl.task(torch.nn.Sequential(torch.nn.Linear(4, 2)), data);"
        "print(value_digest(genfl.fedavg(task, genfl.LocalSGD(0.1), genfl.moon()), {*'abcdefgh'}));"
        "print(value_digest(genfl.fedavg, genfl.fedprox(mu=0.1)))"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    with torch.random.fork_rng(devices=[]):
        exec(code, {})
    here = capsys.readouterr()
    assert elsewhere.stdout == here.out
    assert len(here.out.splitlines()) == 2
    assert not elsewhere.stderr, "a built-in algorithm holds nothing that cannot be hashed"


def test_caches_and_partials_are_followed():
    def make(factor):
        return functools.partial(functools.lru_cache(lambda x: factor * x), 2)

    assert value_digest(make(1)) == value_digest(make(1)) != value_digest(make(2))
