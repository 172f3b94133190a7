"""A run notices that a method, model or data set of the user's own changed, and only then."""

import json
import runpy

import pytest
from support.command import run_program

import genfl

PLUGIN = """
import torch

import genfl

MU, WIDTH, SCALE = 0.01, 8, 1.0


def size(params):
    return MU * sum(leaf.square().sum() for leaf in params.values())


@genfl.register("own penalty")
def penalty() -> genfl.LocalHook:
    return genfl.LocalHook(penalty=lambda params, aux, batch, context: size(params))


@genfl.register.model("own model", shape=(1, 4, 4))
def net(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    layers = torch.nn.Linear(16, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, classes)
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)


@genfl.register.dataset("own data", summary="random images of two classes")
def data() -> genfl.DataSet:
    x = SCALE * torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    examples = genfl.LabelledExamples(x, ["left", "right"] * 30)
    return genfl.DataSet(examples, examples, "image", encode=lambda image: x[0])
"""
CONFIG = {
    "name": "own",
    "seeds": [0],
    "data": {"name": "own data", "partition": {"kind": "iid", "clients": 3}},
    "generator": "none",
    "model": "own model",
    "methods": {"own": {"algorithm": "own penalty"}},
    "federate": {"rounds": 2, "clients_per_round": 2, "local": {"steps": 2}, "engine": "sequential"},
}


def in_this_process(plugin, out):
    runpy.run_path(str(plugin))
    genfl.run(CONFIG, out=out, update=True)


def in_a_new_process(plugin, out):
    run_program(
        f"import runpy, genfl; runpy.run_path({str(plugin)!r});"
        f" genfl.run({CONFIG!r}, out={str(out)!r}, update=True)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("run", [in_this_process, in_a_new_process])
def test_changed_code_is_trained_again_and_other_code_is_not(run, tmp_path, forget):
    plugin, record = tmp_path / "own.py", tmp_path / "out" / "stages" / "federate.json"
    plugin.write_text(PLUGIN)
    run(plugin, tmp_path / "out")
    known = {json.loads(record.read_text())["digest"]}
    written = record.stat().st_mtime_ns
    run(plugin, tmp_path / "out")
    assert record.stat().st_mtime_ns == written, "nothing changed"
    changes = (("SCALE = 0.01", "SCALE = 9.0"), ("8, 1.0", "9, 1.0"), ("9, 1.0", "9, 2.0"))
    for old, new in changes:
        plugin.write_text(plugin.read_text().replace(old, new))
        run(plugin, tmp_path / "out")
        digest = json.loads(record.read_text())["digest"]
        assert digest not in known, f"{new} was not noticed"
        known.add(digest)
