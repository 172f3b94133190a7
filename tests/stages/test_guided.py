"""Clients that generate from their own real examples."""

import dataclasses
import itertools

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from support.opened import open_run
from support.parameters import mostly_slow

from genfl import config, pipeline
from genfl.data.synthetic import SyntheticData
from genfl.errors import InputError
from genfl.experiment.context import RunContext, class_indices
from genfl.stages import guided
from genfl.stages.federate.inputs import trial_digest
from genfl.storage import read_json, sha256

CONFIG = """
name: guided
seeds: [0, 1]
data: {name: digits, partition: {kind: dirichlet, alpha: 0.1, clients: 3, min_size: 5}}
prompts: {style: label, per_label: 6, guidance_scale: [2, 3], block_size: 8}
generator: {steps: 4, strength: 0.3}
model: {name: mlp, width: 8}
content: {samples: 60}
pretrain: {epochs: 1}
federate: {rounds: 1, clients_per_round: 2, local: {steps: 2, batch_size: 8}}
methods:
  plain: {algorithm: fedavg}
  prompt: {algorithm: fedavg, data: mixed}
  real: {algorithm: fedavg, data: mixed, content: {guidance: real}}
  mixed: {algorithm: fedavg, data: mixed, content: {guidance: mixed}}
  mixed_too: {algorithm: fedprox, data: p2g, content: {guidance: mixed}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings, folder = config.parse(CONFIG), tmp_path_factory.mktemp("guided") / "run"
    pipeline.execute(settings, folder)
    return open_run(settings, folder)


def own_classes(run, seed):
    return run.label_counts(seed) > 0


@pytest.mark.slow
def test_alike_content_is_generated_once(run):
    kinds = run.guided_kinds()
    assert sorted(kind.guidance for kind in kinds) == ["mixed", "real"]
    assert len(list((run.folder / "guided").glob("*/seed-*"))) == 4


@pytest.mark.slow
def test_real_guidance_is_never_of_a_class_the_client_lacks(run):
    for kind, seed in itertools.product(run.guided_kinds(), run.config.seeds):
        y = class_indices(run.data.train, run.labels).numpy()
        kept = run.train_rows(seed)
        for block in run.guided_blocks(kind, seed):
            for prompt, rows in zip(block.prompts, block.guides, strict=True):
                assert len(rows) == 1
                assert set(rows) <= set(kept[block.client].tolist()), "its own examples"
                assert {run.labels[label] for label in y[rows]} == {prompt.label}, "of the class asked for"


@pytest.mark.slow
def test_real_moves_the_budget_to_the_classes_a_client_has(run):
    kind = run.config.methods["real"].content
    for seed in run.config.seeds:
        _, y, parts = run.guided(kind, seed)
        own = own_classes(run, seed)
        found = np.stack([np.bincount(y[part], minlength=10) for part in parts])
        assert found.sum(1).tolist() == [20, 20, 20]
        assert not found[~own].any()
        assert all(np.ptp(row[mask]) <= 1 for row, mask in zip(found, own, strict=True))


@pytest.mark.slow
def test_mixed_is_half_and_half_where_the_client_has_the_class(run):
    kind = run.config.methods["mixed"].content
    for seed in run.config.seeds:
        _, y, parts = run.guided(kind, seed)
        by_example = np.stack([np.bincount(y[part], minlength=10) for part in parts])
        assert by_example.tolist() == np.where(own_classes(run, seed), 1, 0).tolist()  # of two for each class


@pytest.mark.slow
def test_clients_hold_what_was_guided_and_what_was_not(run):
    counts = run.label_counts(0)
    pool = torch.full((60, 1, 8, 8), 7.0), torch.arange(60) % 10
    opened = open_run(run.config, run.folder)

    for name in ("real", "mixed"):
        data = opened.training_data(name, 0, pool)
        assert data.count("generated") == 60
        for client in range(3):
            private, made = data.part_sizes(client)
            assert (private, made) == (counts[client].sum(), 20)
            x = data.batch(client, torch.arange(private, private + made))["x"]
            pooled = int((x == 7).flatten(1).all(1).sum())
            expected = 0 if name == "real" else 20 - int((counts[client] > 0).sum())
            assert pooled == expected


@pytest.mark.slow
def test_samples_say_that_they_were_guided_and_are_no_copies(run):
    real = {tuple(x.flatten().tolist()) for x in run.data.train.x}
    for kind, seed in itertools.product(run.guided_kinds(), run.config.seeds):
        data = SyntheticData.open(run.guided_folder(kind, seed))
        assert data.missing() == []
        rows = pyarrow.parquet.read_table(data.files()[0]).to_pylist()
        assert all(row["guided"] for row in rows)
        x, _, _ = run.guided(kind, seed)
        assert not real & {tuple(made.flatten().tolist()) for made in x}
        card = (data.folder / "README.md").read_text()
        assert "strength: 0.3" in card
        assert "the examples of clients" in card


@pytest.mark.slow
def test_only_what_decides_the_samples_makes_them_again(run, tmp_path):
    def made(*overrides):
        other = open_run(config.parse(CONFIG, overrides), run.folder)
        return {other.guided_folder(kind, 0).parent.name for kind in other.guided_kinds()}

    before = made()
    assert made("content.weight=private", "content.filter={share: 0.5}", "federate.rounds=9") == before
    assert made("methods={m: {algorithm: fedavg, data: mixed, content: {guidance: mixed}}}") < before
    for change in (
        "generator.strength=0.4",
        "content.samples=50",
        "prompts.block_size=4",
        "generator.steps=3",
    ):
        assert not made(change) & before
    one = open_run(config.parse(CONFIG, ["seeds=[0]"]), run.folder)
    digests = {name: one.trial_digest(name, 0) for name in one.config.methods}
    again = {name: run.trial_digest(name, 0) for name in run.config.methods}
    assert digests == again, "another seed trains nothing anew"


@pytest.mark.slow
def test_the_report_says_what_clients_made(run):
    summary = read_json(run.folder / "summary.json")
    assert summary["guided"]["samples"] == 2 * 60 + sum(own_classes(run, seed).sum() for seed in (0, 1))
    assert summary["stages"]["guided"]["seconds"] > 0
    page = (run.folder / "report" / "index.html").read_text()
    assert f"clients made {summary['guided']['samples']} samples more" in page


@pytest.mark.slow
def test_what_is_missing_is_made_again_byte_for_byte(run, tmp_path):
    files = sorted((run.folder / "guided").rglob("*.parquet"))
    before = {path: sha256(path) for path in files}
    files[0].unlink()
    files[3].write_bytes(b"damaged")
    pipeline.execute(run.config, run.folder, until="guided")
    assert {path: sha256(path) for path in files} == before
    status = {stage.name: stage.state for stage in pipeline.run_status(run.folder)}
    assert status["guided"] == "done"


@pytest.mark.slow
def test_without_guidance_there_is_no_such_stage(tmp_path):
    settings = config.parse(CONFIG, ["methods={a: {algorithm: fedavg, data: mixed}}", "seeds=[0]"])
    summary = pipeline.execute(settings, tmp_path / "run")
    assert "guided" not in summary["stages"]
    assert not (tmp_path / "run" / "guided").exists()
    assert "guided" not in [stage.name for stage in pipeline.run_status(tmp_path / "run")]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("methods.real.content.by=server", "methods.real.content.by: the server has no real examples"),
        ("content={}", "methods.real.content.samples: required with guidance real or mixed"),
    ],
)
def test_mistakes_are_named(override, line):
    with pytest.raises(InputError) as caught:
        config.parse(CONFIG, [override])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(line)
    problem = lines[0].partition(": ")[2]
    assert all(other.endswith(problem) for other in lines), "one line for each method that has it"


# --- examples whose files are larger than a model's inputs

BOARD = np.kron(np.indices((12, 16)).sum(0) % 2, np.ones((4, 4)))
"""A checkerboard of 48×64 pixels, which is an even grey at 8×8."""

LARGE = """
{name: large, seeds: [0], prompts: {per_label: 2, block_size: 3, guidance_scale: 2},
 data: {name: images, size: [8, 8], partition: {kind: iid, clients: 2}},
 generator: {steps: 2, strength: 0.5}, model: {name: mlp, width: 8}, content: {samples: 8, guidance: real},
 pretrain: {epochs: 1}, federate: {rounds: 1, clients_per_round: 2, local: {steps: 1}},
 methods: {plain: {algorithm: fedavg}, fedgc: {algorithm: fedavg, data: mixed}}}
"""


@pytest.fixture
def large(tmp_path, monkeypatch, tiny_stable_diffusion):
    """A run on checkerboards, blue or red, whose values tell them apart."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    for label, channel in (("blue", 2), ("red", 0)):
        for n in range(12):
            file = tmp_path / "data" / ("test" if n > 9 else "train") / label / f"{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.repeat(BOARD[..., None] * 200 + 2 * n, 3, axis=2)
            pixels[..., channel] += 30
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return config.parse(LARGE, [f"data.path={tmp_path / 'data'}", f"generator.model={tiny_stable_diffusion}"])


@pytest.mark.slow
def test_guides_have_the_detail_of_the_original_files(large, tmp_path, monkeypatch):
    from genfl.generators.image import StableDiffusion

    shown, generate = [], StableDiffusion.generate

    def recorded(self, prompts):
        shown.extend(prompts)
        return generate(self, prompts)

    monkeypatch.setattr(StableDiffusion, "generate", recorded)
    pipeline.execute(large, tmp_path / "run")
    run = open_run(large, tmp_path / "run")
    assert np.asarray(run.data.decode(run.data.train.x[0]).convert("L")).std() < 2, "grey at 8×8"
    (kind,) = run.guided_kinds()
    rows = [row for block in run.guided_blocks(kind, 0) for (row,) in block.guides]
    guides = [guide for prompt in shown for guide in prompt.guides]
    assert len(guides) == len(rows) == 8
    for row, guide in zip(rows, guides, strict=True):
        red, green, _ = np.asarray(guide).transpose(2, 0, 1).astype(int)
        assert ((green - green.min()) / 200).tolist() == BOARD.tolist(), "every pixel of the file"
        assert ("red" if (red > green).all() else "blue") == run.data.train.labels[row]
    # the pipeline gets them at the size that it draws
    assert np.asarray(StableDiffusion(large.generator.model)._resized(guides[0])).std() > 20


def test_only_the_examples_that_guide_are_opened(large, tmp_path, monkeypatch):
    data = open_run(large, tmp_path / "run").context.data_set(large.data)
    opened, opening = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, *more: opened.append(file) or opening(file, *more))
    originals = data.originals([3, 5, 3])
    assert opened == []
    assert originals[1].size == (64, 48)
    assert [image.size for image in originals[1:]] == [(64, 48), (64, 48)]
    assert len(opened) == 3
    assert len(set(opened)) == 2


def test_other_guides_make_the_guided_samples_again_and_no_others(large, tmp_path, monkeypatch):
    """As a version of the stage does."""

    def digests():
        return {stage.name: digest for stage, _, digest in pipeline.digests(large, RunContext())}

    before = digests()
    run = open_run(large, tmp_path / "run")
    for stage in ("labels", "prompts", "generate", "pretrain"):
        run.record(stage, {"found": ["blue", "red"]})
    inputs, upstream = (run.step("federate").inputs, run.step("federate").work.upstream)
    trials = {
        name: trial_digest(inputs, upstream, method, 0, False) for name, method in inputs.methods.items()
    }
    monkeypatch.setattr(guided, "STAGE", dataclasses.replace(guided.STAGE, version=guided.STAGE.version + 1))
    monkeypatch.setattr(
        pipeline, "STAGES", [guided.STAGE if s.name == "guided" else s for s in pipeline.STAGES]
    )
    after = digests()
    assert {name for name in before if before[name] != after[name]} >= {"guided"}
    assert {"labels", "prompts", "generate", "pretrain"} & {
        name for name in before if before[name] != after[name]
    } == set()
    again = {
        name: trial_digest(inputs, upstream, method, 0, False) for name, method in inputs.methods.items()
    }
    assert {name for name in trials if trials[name] != again[name]} == {"fedgc"}


@pytest.mark.parametrize("mode", mostly_slow(["L", "RGBA", "P", "I;16", "LA"], "L", "I;16"))
def test_guides_of_any_mode_are_drawn_over(mode):
    from genfl.generators.image import StableDiffusion

    plain = Image.fromarray((BOARD * 200).astype(np.uint8))
    deep = Image.fromarray((BOARD * 200).astype(np.uint16) << 8)
    guide = deep if mode == "I;16" else plain.convert(mode)
    resized = StableDiffusion()._resized(guide)
    assert resized.size == (32, 32)
    assert np.array_equal(np.asarray(resized), np.asarray(StableDiffusion()._resized(plain)))


def test_guides_take_turns():
    rows = np.array([5, 7, 9])
    assert [guided._in_turn(rows, 2, nth) for nth in range(3)] == [[5, 7], [9, 5], [7, 9]]
    assert guided._in_turn(rows, 4, 1) == [5, 7, 9]


def test_what_cannot_be_guided_is_refused(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / label / "0.png")
    for override in (f"generator={{kind: files, path: {tmp_path}}}",):
        with pytest.raises(
            InputError, match=r"content\.guidance: real examples cannot guide generator files"
        ):
            open_run(config.parse(CONFIG, [override]), tmp_path / "run").check("federate")
