"""Models of some rounds: the right bits, kept by the config, with no more training than needed."""

from __future__ import annotations

import pytest
import torch
from support.small_runs import SMALL_RUN

import genfl
from genfl import config, pipeline
from genfl.deployment.trained import RunModel
from genfl.errors import GenflError
from genfl.stages.federate.kept_models import KeptModels, kept_rounds
from genfl.storage import load_tensors

METHODS = {name: {"algorithm": name} for name in ("scaffold", "local")}
SCAFFOLD = {"scaffold": {"algorithm": "scaffold"}}
MORE = SCAFFOLD | {"fedavg": {"algorithm": "fedavg"}}


def run(folder, rounds=5, privacy=None, methods=METHODS, others=(), **federate):
    content = config.plain_copy({**SMALL_RUN, "seeds": [0], "methods": methods, "privacy": privacy})
    options = {"rounds": rounds, "checkpoint_every": 1, "evaluate_every": rounds, **federate}
    for name, value in options.items():
        config.put(content, f"federate.{name}", value)
    pipeline.execute(config.validate(content), folder, until="federate", update=True, others=others)


def kept(folder, home="scaffold/seed-0"):
    return {file.name: file for file in (folder / "federate" / home / "rounds").glob("*")}


def bits(file):
    return {name: value.numpy().tobytes() for name, value in load_tensors(file)[0].items()}


def final(folder, home="scaffold/seed-0"):
    return folder / "federate" / home / "model.safetensors"


def stamps(folder):
    return {file: file.stat().st_mtime_ns for file in (folder / "federate").rglob("*.safetensors")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that keeps final models alone."""
    folder = tmp_path_factory.mktemp("kept") / "plain"
    run(folder)
    return folder


@pytest.mark.slow
def test_kept_models_are_those_of_shorter_runs(plain, tmp_path):
    run(tmp_path / "kept", keep_every=2)
    run(tmp_path / "short", rounds=2)
    for home in ("scaffold/seed-0", "local/seed-0-client-3"):
        files = kept(tmp_path / "kept", home)
        assert sorted(files) == ["round-2.safetensors", "round-4.safetensors"]
        assert bits(files["round-2.safetensors"]) == bits(final(tmp_path / "short", home))
        assert bits(final(tmp_path / "kept", home)) == bits(final(plain, home))
    model = RunModel.load(final(tmp_path / "kept").parent)
    model.load_state_dict(load_tensors(kept(tmp_path / "kept")["round-4.safetensors"])[0])
    assert torch.isfinite(model(torch.zeros(1, 1, 8, 8))).all()
    assert kept(plain) == {}


@pytest.mark.slow
def test_change_trains_only_for_models_that_are_missing(plain, tmp_path):
    run(tmp_path)
    before = bits(final(tmp_path))
    run(tmp_path, keep_every=1)  # they can only come from another training, of the same bits
    assert sorted(kept(tmp_path)) == [f"round-{number}.safetensors" for number in range(1, 5)]
    assert bits(final(tmp_path)) == before == bits(final(plain))
    trained = stamps(tmp_path)
    run(tmp_path, keep_every=2)
    checkpoint = tmp_path / "federate" / "scaffold" / "seed-0" / "checkpoint.safetensors"
    assert stamps(tmp_path)[checkpoint] == trained[checkpoint]
    assert sorted(kept(tmp_path)) == ["round-2.safetensors", "round-4.safetensors"]
    run(tmp_path)
    assert kept(tmp_path) == {}
    assert stamps(tmp_path)[checkpoint] == trained[checkpoint]


@pytest.mark.slow
def test_interrupted_run_resumes_and_a_lost_model_is_trained_again(plain, tmp_path, monkeypatch):
    save = KeptModels.save

    def failing(self, task, number, weights):
        if number == 4:
            raise OSError("the disk is gone")
        save(self, task, number, weights)

    with monkeypatch.context() as patch:
        patch.setattr(KeptModels, "save", failing)
        with pytest.raises(OSError, match="gone"):
            run(tmp_path, keep_every=2)
    first = kept(tmp_path)["round-2.safetensors"]
    written = first.stat().st_mtime_ns
    status = next(row for row in pipeline.run_status(tmp_path) if row.name == "federate")
    assert status.progress == "3 of 25 rounds"
    run(tmp_path, keep_every=2)
    assert first.stat().st_mtime_ns == written, "the run resumed after round 3"
    assert bits(final(tmp_path)) == bits(final(plain))
    content = bits(first)
    first.unlink()
    run(tmp_path, keep_every=2)
    assert bits(first) == content


@pytest.mark.slow
def test_models_are_taken_over_from_one_run_with_its_checkpoint(tmp_path):
    """Trainings with other noise have the same digest. Their models are never mixed."""
    noised, names = {"unit": "sample", "noise_multiplier": 1.0, "delta": 1e-4, "accountant": "rdp"}, "abc"
    for name in names:
        run(tmp_path / name, rounds=3, keep_every=1, privacy=noised, methods=SCAFFOLD)
    whole = {name: [bits(file) for _, file in sorted(kept(tmp_path / name).items())] for name in names}
    assert whole["a"] != whole["b"] != whole["c"], "each run has noise of its own"
    others = [tmp_path / name for name in "ab"]
    kept(tmp_path / "a")["round-2.safetensors"].unlink()
    run(tmp_path / "new", rounds=3, keep_every=1, privacy=noised, methods=MORE, others=others)
    assert [bits(file) for _, file in sorted(kept(tmp_path / "new").items())] == whole["b"], "not one of a"
    assert bits(final(tmp_path / "new")) == bits(final(tmp_path / "b"))
    before = stamps(tmp_path / "c")
    run(tmp_path / "c", rounds=3, keep_every=1, privacy=noised, methods=MORE, others=others)
    assert [bits(file) for _, file in sorted(kept(tmp_path / "c").items())] == whole["c"]
    checkpoint = final(tmp_path / "c").with_name("checkpoint.safetensors")
    assert stamps(tmp_path / "c")[checkpoint] == before[checkpoint], "its own is complete"


def test_rounds_and_files_of_kept_models(tmp_path):
    home = KeptModels(tmp_path, "digest", kept_rounds(7, 3))
    assert home.rounds == (3, 6)
    assert kept_rounds(6, 3) == (3,), "the last one is the final model"
    assert kept_rounds(6, None) == kept_rounds(6, 9) == ()
    assert home.state_dict(3) is None
    home.file(3).parent.mkdir()
    home.file(3).write_bytes(b"no tensors")
    assert home.state_dict(3) is None
    with pytest.raises(GenflError, match="damaged"):
        load_tensors(home.file(3))


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_keep_every_is_a_number_of_rounds(value):
    content = {**SMALL_RUN, "methods": METHODS, "federate": {"keep_every": value}}
    with pytest.raises(genfl.InputError, match=r"^federate\.keep_every: "):
        config.validate(content)
