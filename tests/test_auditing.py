"""`genfl audit`, on real runs in small: attacks, shadow models, resumes, one line for each mistake."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from support.command import Command, run_command
from support.opened import open_run
from support.small_runs import SMALL_RUN, image_folder, image_run, small_run

import genfl
from genfl import config
from genfl.auditing import AttackedModel, attack_scores, audit_folder, audit_run
from genfl.data.plans import Schedule
from genfl.data.sources import DATASETS
from genfl.deployment.trained import RunModel
from genfl.errors import InputError
from genfl.models import MODELS
from genfl.privacy.attacks.roc import SMALL_RATES, delong
from genfl.privacy.attacks.scores import confidence
from genfl.rng import Key
from genfl.stages.federate.engine_choice import EngineChoice
from genfl.stages.federate.kept_models import KeptModels
from genfl.stages.federate.shadow import ShadowSetting, train_shadow
from genfl.stages.federate.trial import Trial
from genfl.storage import load_tensors

pytestmark = pytest.mark.slow

ALL = ("loss", "lira", "rmia")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of two methods and two seeds on the digits, with clients that hold samples back."""
    methods = {name: {"algorithm": name} for name in ("fedavg", "scaffold", "centralised", "local")}
    content = config.plain_copy({**SMALL_RUN, "methods": methods})
    config.put(content, "federate.rounds", 3)
    config.put(content, "federate.local.steps", 5)
    config.put(content, "data.partition.test", 0.2)
    return genfl.run(content, out=tmp_path_factory.mktemp("audited") / "run")


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_loss_attack_equals_a_plain_loop(digits, tmp_path):
    """Losses by plain PyTorch: members are the rows that clients train on, others the test set."""
    before = files_of(digits.folder)
    audit = digits.audit(method="scaffold", seed=1, out=tmp_path / "out")
    assert files_of(digits.folder) == before
    run = open_run(digits.config, digits.folder)
    model = MODELS["mlp"].build((1, 8, 8), 10)
    model.load_state_dict(load_file(digits.folder / "federate" / "scaffold" / "seed-1" / "model.safetensors"))
    losses, hits = [], []
    for x, y in (
        (run.data.train.x[np.concatenate(run.train_rows(1))], np.concatenate(run.train_rows(1))),
        (run.data.test.x, None),
    ):
        names = run.data.test.labels if y is None else [run.data.train.labels[row] for row in y]
        labels = torch.tensor([run.labels.index(name) for name in names])
        with torch.no_grad():
            logits = model.eval()(run.data.prepare(x)).double()
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none").numpy())
        hits.append(float((logits.argmax(1) == labels).double().mean()))
    assert (audit.members, audit.nonmembers) == (len(losses[0]), len(losses[1])) == (audit.members, 360)
    assert audit.members < 1437, "clients hold samples back, which nobody trained on"
    assert (audit.member_accuracy, audit.nonmember_accuracy) == pytest.approx(tuple(hits))
    truth = np.r_[np.ones(len(losses[0])), np.zeros(360)]
    attack = audit.attacks[0]
    assert attack.auc.value == pytest.approx(roc_auc_score(truth, -np.concatenate(losses)), abs=1e-6)
    allowed = np.sort(losses[1])[3]  # three of 360 non-members are 0.8 %
    assert attack.rates[1].tpr.value == pytest.approx((losses[0] < allowed).mean(), abs=2e-3)


@pytest.mark.slow
def test_audit_writes_every_figure_and_a_page(digits, tmp_path):
    audit = digits.audit(attacks=ALL, shadows=4, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == audit.to_dict()
    assert [attack.attack for attack in audit.attacks] == ["loss", "lira", "lira-offline", "rmia"]
    assert (audit.method, audit.chosen, audit.shadows) == (digits.best_method, True, 4)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<svg") == 1 + page.count('<svg class="key"')
    for attack in audit.attacks:
        assert f"{attack.auc.value:.3f} ({attack.auc.low:.3f} to {attack.auc.high:.3f})" in page
        assert [rate.fpr for rate in attack.rates] == list(SMALL_RATES)
        assert attack.rates[0].tpr is None
        assert attack.roc[0] == (0.0, attack.roc[0][1])
        assert attack.roc[-1] == (1.0, 1.0)
    assert "1,000 non-members" in page
    assert "assumed to have" in page
    link = re.search(r'href="([^"]*index.html)"', page)
    assert link is not None
    assert (tmp_path / "out" / link[1]).resolve() == digits.report.resolve()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != ".lock") == [
        ".genfl-audit",
        "audit.json",
        "index.html",
        "shadows",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "centralised"])
def test_shadow_models_train_on_their_halves_alone(digits, tmp_path, method):
    """Members and non-members together, of four clients; the same bits again."""
    model = RunModel.load(digits.folder / "federate" / method / "seed-0")
    attacked = AttackedModel(digits.folder, model)
    phi, member = attacked.shadows(3, tmp_path)
    assert (phi.shape, member.shape) == ((3, 1, len(attacked.y)), (3, len(attacked.y)))
    again, _ = AttackedModel(digits.folder, model).shadows(2, tmp_path / "again")
    assert (again == phi[:2]).all()
    assert np.abs(phi[0] - phi[1]).max() > 0.01
    last = attacked.setting.private(0)  # what the last model was trained on
    assert len(last) == 4
    assert (np.sort(last.rows.numpy()) == np.sort(attacked.setting.examples.rows[member[2]])).all()


def test_shadow_model_on_the_run_s_own_data_is_the_run_s_model(digits, tmp_path):
    """With the private data and the random stream of the trial, the recipe gives the trial's bits."""
    run = open_run(digits.config, digits.folder)
    step = run.step("federate")
    setting = ShadowSetting(step.inputs, step.work, seed=0)

    class Same(Trial):
        """The trial, whose stream is not folded."""

        def federations(self, setting, clients):
            plans = super().federations(setting, clients)
            return [plan._replace(key=Unfolded(plan.key)) for plan in plans]

    class Unfolded:
        def __init__(self, key):
            self.key = key

        def fold(self, *address):
            return self.key

    for name in ("fedavg", "scaffold"):
        trial = Same(name, digits.config.methods[name], 0)
        file = tmp_path / name / "checkpoint.safetensors"
        choice = EngineChoice(step.inputs, step.work)
        weights, _ = train_shadow(setting, choice, trial, 0, file, "digest", lambda rounds: None)
        tensors, _ = load_tensors(digits.folder / "federate" / name / "seed-0" / "model.safetensors")
        assert all(torch.equal(value, tensors[key]) for key, value in weights["params"].items())


def test_uploads_of_fedavg_are_the_local_models(digits, tmp_path):
    """One more round of each client alone from the final model: plain SGD on the client's examples."""
    model = RunModel.load(digits.folder / "federate" / "fedavg" / "seed-0")
    attacked = AttackedModel(digits.folder, model)
    rows = attacked.confidences(uploads=True)
    assert (rows[0] == attacked.confidences(uploads=False)[0]).all()
    private, trial, key = attacked.setting.private(0), attacked.trial, Key(0).fold("upload", "target")
    assert trial is not None
    for client in range(4):
        one = private.as_one([client])
        size = digits.config.federate.local.batch_size
        plan = Schedule(rounds=1, clients_per_round=1, batch_size=size, local_steps=5)
        own, local = key.fold(client), model.inner
        local.load_state_dict(load_file(model.folder / "model.safetensors"))
        optimizer = torch.optim.SGD(local.train().parameters(), lr=digits.config.federate.local.lr)
        for batch in plan.batches(own.fold("plan", 1).fold(0)).draw(one.part_sizes(0)):
            examples = one.batch(0, batch)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(local(examples["x"]), examples["y"]).backward()
            optimizer.step()
        here = attacked.clients == client
        x = attacked.setting.examples.x.take(torch.from_numpy(attacked.setting.examples.rows[here]))
        with torch.no_grad():
            logits = local.eval()(attacked.setting.data.prepare(x)).numpy()
        assert rows[1][here] == pytest.approx(confidence(logits, attacked.y[here]), abs=1e-4)


@pytest.mark.slow
def test_uploads_are_attacked_with_shadow_models_of_their_own(digits, tmp_path):
    audit = digits.audit(method="scaffold", attacks=ALL, shadows=4, uploads=True, out=tmp_path / "out")
    assert audit.uploads is not None
    assert [attack.attack for attack in audit.uploads] == [attack.attack for attack in audit.attacks]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Attacks on single uploads" in page
    for attack in audit.uploads:
        assert f"{attack.auc.value:.3f} ({attack.auc.low:.3f} to {attack.auc.high:.3f})" in page
    with pytest.raises(InputError, match=r"^uploads: centralised has none: .*leave it out$"):
        digits.audit(method="centralised", uploads=True, out=tmp_path / "out")


@pytest.mark.slow
def test_command_prints_the_table_and_json(digits, tmp_path):
    text, _ = run_command("audit", digits.folder, "--method", "fedavg", "--out", tmp_path / "out")
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert f"{audit['attacks'][0]['auc']['value']:.3f}" in text
    assert "it takes 1,000 non-members" in text.lower()
    assert f"Page: {tmp_path / 'out' / 'index.html'}" in text
    text, _ = run_command("audit", digits.folder, "--method", "fedavg", "--out", tmp_path / "out", "--json")
    assert json.loads(text) == audit


def test_default_folder_lies_beside_the_run(digits):
    audit, page = audit_run(digits.folder, method="fedavg", seed=1)
    assert page.parent == audit_folder(digits.folder, "fedavg", 1)
    assert page.parent.name == "run.audit-fedavg-seed-1"
    assert page.parent.parent == digits.folder.parent.resolve()
    assert page.is_file()
    assert audit.seed == 1


@pytest.mark.slow
def test_killed_audit_resumes_to_the_same_bits(digits, tmp_path):
    options = ("--attack", "lira,rmia", "--shadows", "6", "--method", "fedavg")
    run_command("audit", digits.folder, *options, "--out", tmp_path / "whole")
    killed = Command("audit", digits.folder, *options, "--out", tmp_path / "killed")
    while not list((tmp_path / "killed").glob("shadows/shadow-2")) and killed.poll() is None:
        time.sleep(0.002)
    killed.kill()
    assert not (tmp_path / "killed" / "audit.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed" / "shadows").glob("*.safetensors")}
    assert kept
    run_command("audit", digits.folder, *options, "--out", tmp_path / "killed")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name in ("audit.json", *(f"shadows/shadow-{number}.safetensors" for number in range(6))):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_attacks_on_generated_content_and_on_none(tmp_path):
    """FedGC's clients get generated samples in shadow models, too; a model without private data has none."""
    private, made = image_folder(tmp_path / "private", 20), image_folder(tmp_path / "made", 6, seed=5)
    run = image_run(
        private,
        tmp_path / "run",
        generator={"kind": "files", "path": str(made)},
        prompts={"style": "label", "per_label": 6},
        pretrain={"epochs": 1},
        methods={
            "mixed": {"algorithm": "fedavg", "data": "mixed", "content": {"samples": 18}},
            "warm": {"algorithm": "fedavg", "start": "pretrained"},
        },
    )
    for method in ("mixed", "warm"):
        audit = run.audit(method=method, attacks=["rmia"], shadows=2, out=tmp_path / method)
        assert audit.shadows == 2
    assert run.audit(method="synthetic_only", out=tmp_path / "alone").attacks[0].attack == "loss"
    with pytest.raises(InputError, match=r"^attacks: synthetic_only can have no shadow models: .*use loss$"):
        run.audit(method="synthetic_only", attacks=["rmia"], out=tmp_path / "alone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "fedavgg"), r"--method: there is no 'fedavgg'; .*fedavg"),
        (("--method", "local"), r"--method: local has no global model"),
        (("--seed", "7"), r"--seed: there is no 7; known: 0, 1"),
        (("--attack", "lirra"), r"--attack: there is no 'lirra'; .*lira"),
        (("--attack", ","), r"--attack: none is named"),
        (("--attack", "rmia", "--shadows", "1"), r"--shadows: 1, but rmia needs 2"),
        (("--attack", "rmia,lira", "--shadows", "3"), r"--shadows: 3, but lira needs 4"),
        (("--out", "."), r"--out: .* is not empty and holds no audit"),
        (("--out", "run/federate"), r"--out: .* is in the folder of a run"),
    ],
)
def test_command_says_what_is_wrong_in_one_line(digits, options, message):
    _, errors = run_command("audit", "run", *options, code=2, cwd=digits.folder.parent)
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: ")
    assert re.search(message, errors)


def test_folder_without_a_finished_run_is_named(digits, tmp_path):
    _, errors = run_command("audit", tmp_path, code=2)
    assert errors.startswith("error: RUN: ")
    shutil.copytree(digits.folder, tmp_path / "copy")
    (tmp_path / "copy" / "summary.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        audit_run(tmp_path / "copy", method="fedavg")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there_is_named(digits, tmp_path):
    shutil.copytree(digits.folder, tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("device: cpu", "device: cuda"))
    with pytest.raises(InputError, match=r"^folder: an audit needs .* device of the run, but device: "):
        genfl.load_run(tmp_path / "run").audit(method="fedavg", out=tmp_path / "out")


@pytest.mark.slow
def test_private_data_that_changed_or_is_gone_is_named(tmp_path):
    private = image_folder(tmp_path / "private", 12)
    run = image_run(private, tmp_path / "run")
    run.audit(out=tmp_path / "out")
    image = next(private.rglob("*.png"))
    image.unlink()
    with pytest.raises(InputError, match=r"^folder: the private data, or the code, is not that of the run"):
        run.audit(out=tmp_path / "out")
    shutil.rmtree(private)
    with pytest.raises(InputError, match=r"^folder: an audit needs the private data.* data\.path") as caught:
        run.audit(out=tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1


def noise(seed: int) -> genfl.DataSet:
    """Random inputs with random labels: whatever a model knows of them, it has memorised."""
    rng = np.random.default_rng(seed)

    def examples(count: int) -> genfl.LabelledExamples:
        x = torch.from_numpy(rng.normal(size=(count, 1, 32, 32)).astype(np.float32))
        return genfl.LabelledExamples(x, [("left", "right")[label] for label in rng.integers(2, size=count)])

    return genfl.DataSet(examples(1000), examples(1200), "image", encode=lambda image: torch.zeros(1, 32, 32))


@pytest.fixture(scope="module")
def memorised(tmp_path_factory):
    """Two runs whose models are over-fitted, each on noise of its own."""
    folder = tmp_path_factory.mktemp("memorised")
    entries = DATASETS.added()
    runs = []
    for number in (1, 2):

        @genfl.register.dataset(f"noise {number}")
        def load(number=number) -> genfl.DataSet:
            return noise(number)

        data, federate = {"name": f"noise {number}"}, {"rounds": 12, "clients_per_round": 2}
        federate |= {"engine": "sequential", "local": {"steps": 30, "lr": 0.2, "batch_size": 50}}
        model = {"name": "mlp", "width": 128}
        runs.append(small_run(data, model, folder / f"run-{number}", federate=federate))
    yield runs
    DATASETS.restore(entries)


@pytest.mark.slow
def test_lira_finds_members_of_an_overfitted_model(memorised, tmp_path):
    run, other = memorised
    audit = run.audit(attacks=ALL, shadows=8, out=tmp_path / "out")
    assert (audit.members, audit.nonmembers) == (1000, 1200)
    assert audit.member_accuracy > 0.95, "the model is over-fitted"
    assert audit.nonmember_accuracy == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(1200))
    results = {attack.attack: attack for attack in audit.attacks}
    assert results["lira"].rates[0].tpr.low >= 0.05
    assert results["loss"].rates[0].tpr.high < results["lira"].rates[0].tpr.low
    for attack in results.values():
        assert attack.auc.low > 0.8
        assert attack.accuracy.low > 0.7

    # a model that was trained on other noise tells nothing about this one, to any attack
    attacked = AttackedModel(run.folder, RunModel.load(run.folder / "federate" / "fedavg" / "seed-0"))
    x = attacked.setting.examples.x.take(torch.from_numpy(attacked.setting.examples.rows))
    unseen = other.model("fedavg").logits(x).numpy()
    phi, member = attacked.shadows(8, tmp_path / "out" / "shadows")
    scores = attack_scores(ALL, confidence(unseen, attacked.y), 1000, (phi[:, 0], member))
    assert list(scores) == list(results)
    for values in scores.values():
        interval = delong(values[:1000], values[1000:])[1]
        assert interval.low < 0.5 < interval.high


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of six rounds that keeps the models of rounds 2 and 4, and those of its method local, too."""
    methods = {name: {"algorithm": name} for name in ("fedavg", "local")}
    content = config.plain_copy({**SMALL_RUN, "methods": methods, "seeds": [0]})
    federate = {"rounds": 6, "keep_every": 2, "checkpoint_every": 3, "local": {"steps": 5}}
    for name, value in federate.items():
        config.put(content, f"federate.{name}", value)
    return genfl.run(content, out=tmp_path_factory.mktemp("kept") / "run")


@pytest.mark.slow
def test_kept_models_are_attacked_round_by_round(kept, tmp_path):
    """The figures of a round are those of an attack on that model alone, shadow models included."""
    audit = kept.audit(attacks=ALL, shadows=4, out=tmp_path / "out")
    assert audit.rounds is not None
    assert [of_round.round for of_round in audit.rounds] == [2, 4, 6]
    for last, attack in zip(audit.rounds[-1].attacks, audit.attacks, strict=True):
        assert last.model_dump() == attack.model_dump(exclude={"roc"})
    folder = kept.folder / "federate" / "fedavg" / "seed-0"
    attacked = AttackedModel(kept.folder, RunModel.load(folder))
    model = RunModel.load(folder)
    model.load_state_dict(load_tensors(folder / "rounds" / "round-4.safetensors")[0])
    examples = attacked.setting.examples
    logits = model.logits(examples.x.take(torch.from_numpy(examples.rows))).numpy()
    hits = logits.argmax(1) == attacked.y
    assert audit.rounds[1].member_accuracy == hits[: audit.members].mean()
    phi, member = attacked.shadows(4, tmp_path / "out" / "shadows")
    assert phi.shape == (4, 3, len(attacked.y))
    scores = attack_scores(ALL, confidence(logits, attacked.y), audit.members, (phi[:, 2], member))
    for attack in audit.rounds[1].attacks:
        values = scores[attack.attack]
        assert attack.auc.value == delong(values[: audit.members], values[audit.members :])[0]
    # and the shadows' confidences of round 4 are those of shadow models of four rounds
    content = config.plain_copy(configs_of(kept))
    config.put(content, "federate.rounds", 4)
    config.put(content, "federate.keep_every", None)
    short = genfl.run(content, out=tmp_path / "short")
    attacked = AttackedModel(short.folder, RunModel.load(short.folder / "federate" / "fedavg" / "seed-0"))
    assert (attacked.shadows(4, tmp_path / "shadows")[0][:, 0] == phi[:, 2]).all()


def configs_of(result):
    return json.loads(json.dumps(result.config.model_dump(exclude_unset=True)))


@pytest.mark.slow
def test_page_and_command_show_the_rounds(kept, tmp_path):
    text, _ = run_command("audit", kept.folder, "--out", tmp_path / "out")
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Attacks over the rounds" in text
    assert "Attacks over the rounds" in page
    for of_round in audit["rounds"]:
        auc = of_round["attacks"][0]["auc"]
        assert f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})" in page
        assert re.search(rf"^ *{of_round['round']} +loss .* {auc['value']:.3f} ", text, re.MULTILINE)
    assert page.count("<svg") - page.count('<svg class="key"') == 4  # accuracy, AUC, a rate, and the ROC


@pytest.mark.slow
def test_interrupted_shadow_models_keep_their_rounds(kept, tmp_path, monkeypatch):
    """A shadow model resumes after the checkpoint of round 3, and still has the confidences of round 2."""
    folder = kept.folder / "federate" / "fedavg" / "seed-0"
    whole, _ = AttackedModel(kept.folder, RunModel.load(folder)).shadows(2, tmp_path / "whole")
    save = KeptModels.save

    def failing(self, task, number, weights):
        if number == 4:
            raise KeyboardInterrupt
        save(self, task, number, weights)

    attacked = AttackedModel(kept.folder, RunModel.load(folder))
    with monkeypatch.context() as patch:
        patch.setattr(KeptModels, "save", failing)
        with pytest.raises(KeyboardInterrupt):
            attacked.shadows(2, tmp_path / "killed")
    assert (tmp_path / "killed" / "shadow-0" / "checkpoint.safetensors").is_file()
    saved: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(KeptModels, "save", lambda *args: (saved.append(args[2]), save(*args)))
        again, _ = attacked.shadows(2, tmp_path / "killed")
    assert saved[:3] == [4, 5, 6], "it resumed after round 3"
    assert (again == whole).all()


def test_kept_model_that_is_gone_is_named(kept, tmp_path):
    shutil.copytree(kept.folder, tmp_path / "run")
    file = tmp_path / "run" / "federate" / "fedavg" / "seed-0" / "rounds" / "round-2.safetensors"
    file.unlink()
    with pytest.raises(InputError, match=r"^folder: .*round-2\.safetensors is missing, .* --update$"):
        audit_run(tmp_path / "run", out=tmp_path / "out")


@pytest.mark.slow
def test_audit_joins_the_report_when_the_run_is_executed_again(kept, tmp_path):
    """The audit changes nothing. The same run renders its page again, and does nothing else."""
    folder = tmp_path / "run"
    shutil.copytree(kept.folder, folder)
    page = folder / "report" / "index.html"
    rendered = page.stat().st_mtime_ns
    genfl.run(kept.config, out=folder)
    assert page.stat().st_mtime_ns == rendered, "nothing to do without an audit"
    before = files_of(folder)
    audit, _ = audit_run(folder, method="fedavg")
    audit_run(folder, method="fedavg", out=tmp_path / "elsewhere")
    assert files_of(folder) == before
    times = {path: path.stat().st_mtime_ns for path in (folder / "federate").rglob("*")}
    genfl.run(kept.config, out=folder)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    text = page.read_text()
    auc = audit.attacks[0].auc
    assert f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})" in text
    links = re.findall(r'href="([^"]*\.audit-[^"]*)"', text)
    assert [(page.parent / link).resolve() for link in links] == [
        tmp_path / "run.audit-fedavg-seed-0" / "index.html"
    ]
    rendered = page.stat().st_mtime_ns
    genfl.run(kept.config, out=folder)
    assert page.stat().st_mtime_ns == rendered, "the page shows the audit already"
    file = tmp_path / "run.audit-fedavg-seed-0" / "audit.json"
    for content in ("no JSON", "{}", file.read_text().replace(audit.model_sha256, "0" * 64)):
        file.write_text(content)
        genfl.run(kept.config, out=folder)
        assert ".audit-" not in page.read_text(), "an audit of another model is left out"
    assert json.loads((folder / "summary.json").read_text())["methods"]


@pytest.mark.slow
def test_report_leaves_out_an_audit_of_a_model_with_other_noise(tmp_path):
    """A training that begins anew draws other noise: the same digest, another model."""
    privacy = {"unit": "sample", "noise_multiplier": 2.0, "delta": 1e-4, "accountant": "rdp"}
    content = {**SMALL_RUN, "seeds": [0], "methods": {"fedavg": {"algorithm": "fedavg"}}, "privacy": privacy}
    folder = tmp_path / "run"
    page, trained = folder / "report" / "index.html", folder / "federate" / "fedavg" / "seed-0"
    genfl.run(content, out=folder)
    before = RunModel.load(trained)
    audit, _ = audit_run(folder)
    weights = (trained / "model.safetensors").read_bytes()
    assert audit.model_sha256 == hashlib.sha256(weights).hexdigest()
    genfl.run(content, out=folder)
    assert ".audit-" in page.read_text()
    genfl.run(content, out=folder, fresh=True)
    assert RunModel.load(trained).description.config_digest == before.description.config_digest
    assert (trained / "model.safetensors").read_bytes() != weights
    assert ".audit-" not in page.read_text()


@pytest.mark.slow
def test_strict_report_shows_no_audit(tmp_path):
    """The figures of an audit are exact, so they are no part of a strict run's page."""
    public = ["labels", "sizes", "test"]
    privacy = {"unit": "sample", "noise_multiplier": 2.0, "delta": 1e-4, "accountant": "rdp"}
    content = {
        **SMALL_RUN,
        "seeds": [0],
        "methods": {"fedavg": {"algorithm": "fedavg"}},
        "privacy": {**privacy, "strict": True, "public": public},
        "audit": {"overlap": "ignore"},
        "report": {"real_examples": False},
    }
    folder = tmp_path / "run"
    page = folder / "report" / "index.html"
    genfl.run(content, out=folder)
    audit_run(folder)
    before = page.stat().st_mtime_ns
    genfl.run(content, out=folder)
    assert page.stat().st_mtime_ns == before, "there is nothing to write again"
    genfl.run({**content, "name": "another name"}, out=folder, update=True)
    assert "another name" in page.read_text(), "the page is written again, and no model is trained"
    audit = json.loads(audit_folder(folder, "fedavg", 0).joinpath("audit.json").read_text())
    weights = (folder / "federate" / "fedavg" / "seed-0" / "model.safetensors").read_bytes()
    assert audit["model_sha256"] == hashlib.sha256(weights).hexdigest()
    assert ".audit-" not in page.read_text()
