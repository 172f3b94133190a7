"""The kinds of generators: users add their own, and looking at them loads nothing heavy."""

import subprocess
import sys

import pytest

from genfl.catalogue import generators
from genfl.errors import InputError
from genfl.generators.registry import GENERATORS, GeneratorEntry


def entry(models="nothing"):
    return GeneratorEntry(
        modalities=("image",),
        models=models,
        make=lambda options, purpose: None,
        fingerprint=lambda options, modality: "1",
        check=lambda options, purpose: None,
        facts=lambda options: {},
    )


def test_register_generator_adds_a_kind():
    before, mine = list(GENERATORS), entry()
    GENERATORS["mine"] = mine
    GENERATORS["mine"] = mine  # a notebook cell may run twice
    try:
        assert GENERATORS["mine"] is mine
        assert list(GENERATORS) == [*before, "mine"]
    finally:
        del GENERATORS["mine"]


@pytest.mark.parametrize("kind", ["image", "none"])
def test_register_generator_rejects_a_taken_name(kind):
    with pytest.raises(InputError, match=rf"^register: the generator '{kind}' .*; choose another name$"):
        GENERATORS[kind] = entry()


def test_generators_is_a_mapping_that_users_extend(monkeypatch):
    monkeypatch.setitem(GENERATORS, "mine", entry("a model of mine"))
    assert {"name": "mine", "modality": "image", "models": "a model of mine"} in generators()


def test_registry_import_loads_no_model_library():
    script = "import sys, genfl.generators.registry; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert "genfl.generators.registry" in modules.split()
    assert not {"torch", "diffusers", "transformers", "datasets"} & set(modules.split())
