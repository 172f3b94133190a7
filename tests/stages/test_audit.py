"""The audit: a contaminated run is warned about, its copies can be dropped, and a clean run is left alone."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.opened import open_run

from genfl import config, pipeline
from genfl.data.sources import digits
from genfl.data.wire import encode_samples
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.results.schema import Summary
from genfl.stages.base import PublicInputs

CONFIG = """
name: audited
seeds: [0]
data: {name: images, path: $own, size: [16, 16], partition: {kind: iid, clients: 3}}
generator: {kind: files, path: $made}
prompts: {per_label: 12, block_size: 8}
model: {name: mlp, width: 8}
pretrain: {epochs: 1, batch_size: 8}
federate: {rounds: 1, clients_per_round: 2, engine: sequential, local: {steps: 1, batch_size: 4}}
methods:
  cold: {algorithm: fedavg}
  warm: {algorithm: fedavg, start: pretrained}
  mixed: {algorithm: fedavg, data: mixed, content: {samples: 12}}
"""
CLASSES = ("black", "white")


def pictures(seed, count):
    """Returns random pictures of blocks, uint8 [count, 16, 16, 3]."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return blocks.repeat(4, 1).repeat(4, 2)


def write(folder, seed, count):
    """Writes pictures of each class, and returns them."""
    written = {}
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        written[name] = pictures(100 * seed + number, count)
        for n, pixels in enumerate(written[name]):
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return written


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Private data, and generated data in which five test pictures of each class return as JPEG of 40×40."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    train = write(tmp_path / "own" / "train", 1, 20)
    test = write(tmp_path / "own" / "test", 2, 10)
    write(tmp_path / "made", 3, 12)
    for name in CLASSES:
        for n, pixels in enumerate([*test[name][:5], train[name][7]]):
            file = io.BytesIO()
            Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
            (tmp_path / "made" / name / f"{n}.png").write_bytes(file.getvalue())
    return tmp_path


def parse(folder, *overrides):
    text = CONFIG.replace("$own", str(folder / "own")).replace("$made", str(folder / "made"))
    return config.parse(text, overrides)


def ran(settings, folder, **options):
    summary = pipeline.execute(settings, folder, **options)
    return Summary.parse(summary), {name for name, stage in summary["stages"].items() if not stage["skipped"]}


@pytest.mark.slow
def test_contaminated_data_is_found_shown_and_warned_about(folders):
    summary, _ = ran(parse(folders), folders / "run")
    found = summary.audit
    assert (found.generated_test.near, found.generated_test.others_near) == (10, 10)
    assert (found.generated_test.examples, found.generated_test.others) == (24, 20)
    assert found.generated_train.near == 2
    assert (found.test_train.near, found.dropped) == (0, 0)
    page = (folders / "run" / "report" / "index.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "near-duplicates of 50.0 % of the test examples (10 samples)" in page
    section = page[page.index('id="overlap"') : page.index('id="labels"')]
    assert "The pairs are not shown" in section, "the data is the user's own, and copies show it, too"
    assert "<img" not in section
    assert "10 of 24 (41.7 %)" in section, "the counts are"
    shown = {content.split('"')[0] for content in page.split("base64,")[1:]}
    for name in CLASSES:
        for n in range(12):
            picture = io.BytesIO()
            Image.open(folders / "made" / name / f"{n}.png").convert("RGB").save(
                picture, "PNG", optimize=True
            )
            code = base64.b64encode(picture.getvalue()).decode()
            assert (code in shown) == (n >= 6), "examples of the labels hold no copy either"


@pytest.mark.slow
def test_real_examples_are_shown_where_the_config_allows(folders):
    ran(parse(folders, "report.real_examples=true"), folders / "run")
    page = (folders / "run" / "report" / "index.html").read_text(encoding="utf-8")
    section = page[page.index('id="overlap"') : page.index('id="labels"')]
    assert section.count("<img") == 2 * (6 + 2)
    assert "not shown" not in section


@pytest.mark.slow
def test_dropped_samples_are_trained_on_and_sent_by_nobody(folders):
    settings = parse(folders, "audit.overlap=drop", "methods.shared={algorithm: {name: dsfl, steps: 1}}")
    summary, _ = ran(settings, folders / "run")
    assert summary.audit.dropped == 10
    run = open_run(settings, folders / "run")
    x, y = run.setting.synthetic
    assert len(x) == len(y) == 14
    everything, labels = run.synthetic()
    pairs = json.loads((folders / "run" / "audit" / "pairs.json").read_text())["generated_test"]
    dropped = {row for row, *_ in pairs}
    assert len(dropped) == 10
    kept = [row for row in range(24) if row not in dropped]
    assert torch.equal(x, everything[kept])
    assert torch.equal(y, labels[kept])
    test = run.data.test.x.float().flatten(1)
    for row, other, _ in pairs:
        assert np.corrcoef(everything[row].float().flatten(), test[other])[0, 1] > 0.9
    assert run.training_data("mixed", 0).count("generated") == 12
    sent = 3 * len(encode_samples(x, None, 2))
    assert summary.methods["shared"].setup_bytes == 3 * summary.labels.bytes_per_client + sent


def test_dropping_all_samples_of_a_label_is_an_error(folders):
    for name in CLASSES:
        for n in range(5, 12):
            (folders / "made" / name / f"{n}.png").unlink()
    settings = parse(
        folders,
        "audit.overlap=drop",
        "prompts.per_label=2",
        "content={}",
        "methods={cold: {algorithm: fedavg}}",
    )
    with pytest.raises(InputError, match=r"audit\.overlap: drop, but all generated samples of 'black'"):
        ran(settings, folders / "run")


@pytest.mark.slow
def test_the_audit_runs_once_and_changes_no_training(folders):
    settings = parse(folders)
    ran(settings, folders / "run")
    assert ran(settings, folders / "run")[1] == set()
    _, again = ran(parse(folders, "audit.overlap=ignore"), folders / "run", update=True)
    assert again == {"report"}
    _, again = ran(settings, folders / "run", update=True)
    assert again == {"report"}, "the record is still there"
    _, again = ran(parse(folders, "audit.overlap=drop"), folders / "run", update=True)
    assert again == {"audit", "pretrain", "federate", "report"}


def test_a_private_photo_does_not_redo_what_reads_generated_samples(folders):
    """Only the test set decides which samples are dropped."""
    settings = parse(folders, "audit.overlap=drop")

    def changed(before):
        after = outputs()
        return {name for name in before if before[name] != after[name]}

    def outputs():
        return {stage.name: output for stage, _, output in pipeline.digests(settings, RunContext())}

    before = outputs()
    photo = Image.fromarray(pictures(9, 1)[0])
    photo.save(folders / "own" / "train" / "black" / "more.png")
    assert changed(before) == {"labels", "audit", "federate", "report"}
    before = outputs()
    photo.save(folders / "own" / "test" / "black" / "more.png")
    assert changed(before) == {"labels", "audit", "pretrain", "federate", "report"}


def test_methods_without_generated_data_are_not_trained_again_after_a_drop(folders):
    settings, dropping = parse(folders), parse(folders, "audit.overlap=drop")
    before, after = (open_run(each, folders / name) for each, name in ((settings, "a"), (dropping, "b")))
    for run in (before, after):
        for stage in ("labels", "generate", "audit", "pretrain", "guided"):
            run.record(
                stage,
                {"found": list(CLASSES)},
                digest=f"{stage}-{run.folder.name}" if stage == "audit" else stage,
            )
    assert before.trial_digest("cold", 0) == after.trial_digest("cold", 0)
    assert before.trial_digest("mixed", 0) != after.trial_digest("mixed", 0)
    assert before.pretrain_digest(0) != after.pretrain_digest(0)


@pytest.mark.slow
def test_copies_in_public_data_are_counted_and_warned_about(folders):
    shutil.copytree(folders / "made", folders / "public")
    settings = parse(
        folders,
        "generator=none",
        f"public={{path: {folders / 'public'}}}",
        "content={}",
        "report.real_examples=true",
        "methods={cold: {algorithm: fedavg}, warm: {algorithm: fedavg, start: pretrained, source: public}}",
    )
    summary, _ = ran(settings, folders / "run")
    assert summary.audit.generated_test is None
    assert summary.audit.public_test.near == summary.audit.public_test.others_near == 10
    assert (summary.audit.public_test.examples, summary.audit.public_train.near) == (24, 2)
    page = (folders / "run" / "report" / "index.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "the public data has near-duplicates of 50.0 % of the test examples (10 samples)" in page
    section = page[page.index('id="overlap"') : page.index('id="labels"')]
    assert section.count("<img") == 2 * (6 + 2)


def test_copies_in_public_data_are_dropped(folders):
    shutil.copytree(folders / "made", folders / "public")
    settings = parse(
        folders,
        "generator=none",
        f"public={{path: {folders / 'public'}}}",
        "content={}",
        "methods={warm: {algorithm: fedavg, start: pretrained, source: public}}",
    )
    dropping = settings.model_copy(update={"audit": config.parse(CONFIG, ["audit.overlap=drop"]).audit})
    context = RunContext()
    kept, public = (PublicInputs.of(each, context) for each in (settings, dropping))
    assert len(kept.read(context, settings.data).x) == 24
    left = public.read(context, settings.data)
    assert len(left.x) == len(left.labels) == 14
    words = "10 of 24 public samples are near-duplicates of private test samples and are left out"
    assert f"{words} (audit.overlap)" in left.notes
    assert public.content != kept.content, "what reads it runs again"
    run = open_run(dropping, folders / "run", context)
    run.record("labels", {"found": list(CLASSES)})
    for file in (folders / "public").rglob("*.png"):
        if int(file.stem) >= 5:
            file.unlink()
    with pytest.raises(InputError, match=r"audit\.overlap: drop, but all public samples are near-duplicates"):
        PublicInputs.of(dropping, RunContext())
    result = run.execute("audit")
    assert (result["public_test"]["examples"], result["public_test"]["near"]) == (14, 0)


def test_the_rest_is_compared_with_what_clients_hold(tmp_path):
    text = """
name: rest
seeds: [0]
data: {name: digits, partition: {kind: iid, clients: 3, samples: 900}}
generator: none
model: {name: mlp, width: 4}
public: {samples: 200}
federate: {rounds: 1, clients_per_round: 2}
methods: {shared: {algorithm: {name: dsfl, steps: 1}, source: public}}
"""
    run = open_run(config.parse(text, []), tmp_path, RunContext())
    run.record("labels", {"found": sorted(digits().label_order)})
    counts = run.execute("audit")["public_train"]
    assert (counts["examples"], counts["others"], counts["compared"]) == (200, 900, 900)
    assert counts["near"] < 20, "no sample is compared with itself"


def test_without_a_generator_train_and_test_are_compared(tmp_path):
    text = """
name: plain
seeds: [0]
data: {name: digits, partition: {kind: iid, clients: 3}}
generator: none
model: {name: mlp, width: 4}
federate: {rounds: 1, clients_per_round: 2}
methods: {plain: {algorithm: fedavg}}
"""
    run = open_run(config.parse(text, []), tmp_path, RunContext())
    run.record("labels", {"found": sorted(digits().label_order)})
    result = run.execute("audit")
    assert result["generated_test"] is result["generated_train"] is None
    assert result["test_train"]["examples"] == 360
    assert result["test_train"]["others"] == 1437
    assert 0 < result["test_train"]["near"] < 12, "the digits of 43 people"
