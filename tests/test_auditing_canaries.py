"""`genfl audit --canaries`: one more training by a run's recipe, and a lower bound on epsilon."""

from __future__ import annotations

import json
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
import torch
import yaml
from dp_accounting import pld
from support.command import run_command
from support.small_runs import SMALL_RUN

import genfl
from genfl import config, trees
from genfl.auditing import AttackedModel
from genfl.config.privacy import Privacy
from genfl.data import plans
from genfl.data.plans import poisson_cohort
from genfl.deployment.trained import RunModel
from genfl.errors import InputError
from genfl.privacy.attacks.canaries import audit_canaries
from genfl.stages.federate import canaries as canary_training
from genfl.stages.federate import trial
from genfl.stages.federate.protection import user_noise

pytestmark = pytest.mark.slow

COUNT = 300


def digits(folder, privacy, methods=None, **federate):
    """A run on the digits, whose test set has 360 examples."""
    content = config.plain_copy({**SMALL_RUN, "seeds": [0]})
    content["methods"] = methods or {"fedavg": {"algorithm": "fedavg"}}
    if privacy:
        content["privacy"] = privacy
    for name, value in {"rounds": 3, "local.steps": 4, **federate}.items():
        config.put(content, f"federate.{name}", value)
    return genfl.run(content, out=folder)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A run with privacy of samples."""
    return digits(tmp_path_factory.mktemp("samples") / "run", {"unit": "sample", "epsilon": 3.0})


USERS = {
    "fedavg": {"algorithm": {"name": "fedavg", "weighting": "uniform"}},
    "scaffold": {"algorithm": "scaffold"},
}


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    """A run with privacy of users: Poisson cohorts of 2 of 4 clients."""
    folder = tmp_path_factory.mktemp("users") / "run"
    return digits(folder, {"unit": "user", "noise_multiplier": 1.0, "delta": 1e-5}, USERS)


@pytest.fixture(scope="module")
def one_round(tmp_path_factory):
    """A run with privacy of users: one round with all 4 clients."""
    privacy = {"unit": "user", "noise_multiplier": 2.0, "delta": 1e-5}
    schedule = {"rounds": 1, "clients_per_round": 4, "local.steps": 1}
    return digits(tmp_path_factory.mktemp("round") / "run", privacy, {"fedavg": USERS["fedavg"]}, **schedule)


def attacked(result, method="fedavg"):
    return AttackedModel(result.folder, RunModel.load(result.folder / "federate" / method / "seed-0"))


def accounted(result, method="fedavg"):
    ledger = json.loads((result.folder / "privacy.json").read_text())
    return ledger["guarantees"][method]["epsilon"]


@pytest.mark.parametrize(
    ("name", "unit"), [pytest.param("samples", "sample", marks=pytest.mark.slow), ("one_round", "user")]
)
def test_bound_stays_below_the_epsilon_of_the_run(name, unit, request, tmp_path):
    """Of users, ε is 1.99, and such a bound exceeds it if the noise is a quarter; see the next test."""
    result = request.getfixturevalue(name)
    before = {path: path.read_bytes() for path in result.folder.rglob("*.*") if path.is_file()}
    bound = result.audit(method="fedavg", canaries=COUNT, out=tmp_path / "out").canaries
    assert bound is not None
    assert (bound.unit, bound.canaries, bound.guesses, bound.confidence) == (unit, COUNT, 100, 0.95)
    assert 0.4 * COUNT < bound.included < 0.6 * COUNT
    assert bound.accounted == pytest.approx(accounted(result), rel=1e-9)
    assert bound.epsilon <= bound.accounted
    assert {path: path.read_bytes() for path in before} == before
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"The accounted epsilon is {bound.accounted:.3g}." in page
    assert "300 canaries" in page


@pytest.mark.slow
def test_a_quarter_of_the_noise_breaks_the_bound(one_round, tmp_path, monkeypatch):
    def quieter(protection, stream):
        noise = user_noise(protection, stream)
        return replace(noise, noise_multiplier=noise.noise_multiplier / 4)

    monkeypatch.setattr(trial, "user_noise", quieter)
    bound = one_round.audit(canaries=COUNT, out=tmp_path / "out").canaries
    assert bound.epsilon > bound.accounted


@pytest.mark.slow
def test_canary_clients_have_the_rate_and_the_noise_that_are_accounted(users, tmp_path, monkeypatch):
    """Directions are nearly orthogonal, so the product with one tells its part of the sum, and the noise.

    A canary takes part in a round with probability q = 2/4, and moves the model by its direction, of norm 1,
    divided by the cohort of 2. Noise of standard deviation z = 1 in each weight is divided by it, too.
    """
    seen = []

    def watched(clients, probability, key):
        taken = poisson_cohort(clients, probability, key)
        seen.append((clients, probability, taken))
        return taken

    canaries = attacked(users).canaries(COUNT)
    canaries.included[canaries.included.argmax()] = False
    monkeypatch.setattr(plans, "poisson_cohort", watched)
    trained = canaries.train(tmp_path / "checkpoint.safetensors", "digest", lambda rounds: None)
    q, z, cohort, rounds = 2 / 4, 1.0, 2, 3
    clients = 4 + int(canaries.included.sum())
    assert clients % 2, "of which no whole number is the share q"
    assert [draw[:2] for draw in seen] == [(clients, q)] * rounds
    sums = trained.scores * cohort  # of directions and noise, along each direction
    turns = np.zeros(COUNT)
    for *_, taken in seen:
        turns[np.flatnonzero(canaries.included)[[client - 4 for client in taken if client >= 4]]] += 1
    noise = sums - turns
    assert abs(noise.mean()) < 4 * z * (rounds / COUNT) ** 0.5
    assert noise.std() == pytest.approx(z * rounds**0.5, rel=0.15), "its own error is 4 %"
    subsampled = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z))
    expected = pld.PLDAccountant(value_discretization_interval=1e-3).compose(subsampled, rounds)
    assert trained.epsilon == pytest.approx(expected.get_epsilon(1e-5), rel=5e-3)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"cohorts": "fixed"}, "privacy.cohorts poisson, not fixed"),
        ({"cohorts": "cyclic"}, "privacy.cohorts poisson, not cyclic"),
        ({"target_quantile": 0.5}, "privacy.target_quantile unset, not 0.5"),
        (
            {"noise": "distributed"},
            "privacy.cohorts poisson, not fixed, and privacy.noise central, not distributed",
        ),
        (
            {"cohorts": "cyclic", "mechanism": "blt"},
            "privacy.cohorts poisson, not cyclic, and privacy.mechanism gaussian, not blt",
        ),
    ],
)
def test_canary_clients_are_refused_where_they_are_not_what_is_accounted(settings, needed):
    method = config.parse(yaml.safe_dump({**SMALL_RUN, "methods": USERS})).methods["fedavg"]
    privacy = Privacy(unit="user", epsilon=8, **settings)
    problem = canary_training.refuse_canaries(method, privacy)
    assert problem == f"canary clients need a run with {needed}"
    assert canary_training.refuse_canaries(method, Privacy(unit="user", epsilon=8)) is None
    assert canary_training.refuse_canaries(method, Privacy(unit="sample", epsilon=8)) is None


@pytest.mark.slow
def test_refused_canary_clients_cost_no_work(tmp_path):
    privacy = {"unit": "user", "noise_multiplier": 1.0, "delta": 1e-5, "cohorts": "fixed"}
    result = digits(tmp_path / "run", privacy, {"fedavg": USERS["fedavg"]}, rounds=1)
    with pytest.raises(InputError, match=r"^canaries: fedavg can have none: .* not fixed; leave it out$"):
        result.audit(canaries=20, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_canary_samples_are_test_examples_with_wrong_labels(samples, tmp_path):
    target = attacked(samples)
    canaries = target.canaries(COUNT)
    canaries.train(tmp_path / "checkpoint.safetensors", "digest", lambda rounds: None)
    data, examples = target.setting.private(0), target.setting.examples
    assert data.rows is not None
    assert len(data) == 4
    trained, planted = set(data.rows.tolist()), examples.rows[canaries.examples]
    assert set(planted[canaries.included]) == trained - set(examples.rows[: target.members])
    assert len(planted) == len(set(planted)) == COUNT
    assert set(examples.rows[: target.members]) < trained
    wrong = data.y[torch.from_numpy(planted)]
    assert (wrong != examples.y_all[torch.from_numpy(planted)]).all()
    assert (wrong >= 0).all()
    assert (wrong < 10).all()
    others = torch.from_numpy(examples.rows[: target.members])
    assert (data.y[others] == examples.y_all[others]).all()


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_canary_clients_upload_their_direction_alone(users, method, tmp_path, monkeypatch):
    """Where nothing hides them, a round moves the model by the sum of the canaries' directions."""
    target = attacked(users, method)
    canaries = target.canaries(12)
    monkeypatch.setattr(canaries, "included", np.arange(12) < 2)
    uploads = {}
    plain = canary_training.canary_clients

    def watched(algorithm, params, update):
        changed = plain(algorithm, params, update)

        def finish(carry):
            upload, memory = changed.client.finish(carry)
            if carry["is_canary"] > 0:
                uploads.setdefault(len(uploads), (upload, carry["canary_direction"]))
            return upload, memory

        return changed._replace(client=changed.client._replace(finish=finish))

    monkeypatch.setattr(canary_training, "canary_clients", watched)
    result = canaries.train(tmp_path / "checkpoint.safetensors", "digest", lambda rounds: None)
    assert len(target.setting.private(0)) == 4 + 2
    assert uploads, "a canary client took part"
    for upload, direction in uploads.values():
        assert float(trees.square_norm(direction).sqrt()) == pytest.approx(1.0, rel=1e-4)
        assert all(map(torch.equal, trees.leaves(upload["delta"]["params"]), trees.leaves(direction)))
        rest = {name: value for name, value in upload.items() if name not in ("delta", "weight", "clients")}
        assert not any(leaf.any() for leaf in trees.leaves(rest))
    assert len(result.scores) == 12


@pytest.mark.slow
def test_without_noise_canaries_refute_a_small_epsilon(tmp_path):
    """The same protection of users without its noise: what was included is plain to see."""
    privacy = {"unit": "user", "noise_multiplier": 0.0, "delta": 1e-5}
    result = digits(tmp_path / "run", privacy, {"fedavg": USERS["fedavg"]}, clients_per_round=4)
    bound = result.audit(canaries=120, out=tmp_path / "out").canaries
    assert bound is not None
    assert bound.accounted is None
    assert bound.correct >= 38
    assert bound.epsilon > 1
    text = (tmp_path / "out" / "index.html").read_text()
    assert "No epsilon is accounted" in text


@pytest.mark.slow
def test_canary_samples_are_found_in_an_overfitted_model(tmp_path):
    result = digits(tmp_path / "run", None, rounds=40, **{"local.steps": 20, "local.lr": 0.5})
    bound = result.audit(canaries=COUNT, out=tmp_path / "out").canaries
    assert bound is not None
    assert bound.epsilon > 0.5, "a guess is right for 50 of 100, give or take 5, and proves 0"


@pytest.mark.slow
def test_finished_training_is_not_repeated_and_an_interrupted_one_resumes(users, tmp_path, monkeypatch):
    whole = users.audit(method="scaffold", canaries=60, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(canary_training.Canaries, "train", None)
        assert users.audit(method="scaffold", canaries=60, out=tmp_path / "whole") == whole
        with pytest.raises(TypeError):
            users.audit(method="scaffold", canaries=61, out=tmp_path / "whole")
    rounds = []

    def advance(count):
        rounds.append(count)
        if len(rounds) == 2:
            raise KeyboardInterrupt

    target = attacked(users, "scaffold")
    checkpoint = tmp_path / "training" / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        target.canaries(60).train(checkpoint, "digest", advance)
    resumed = target.canaries(60).train(checkpoint, "digest", lambda count: None)
    bound = audit_canaries(resumed.scores, resumed.included, positive=10, negative=10, delta=0.1)
    assert whole.canaries is not None
    assert bound.correct == whole.canaries.correct
    fresh = target.canaries(60).train(tmp_path / "fresh.safetensors", "digest", lambda count: None)
    assert (fresh.scores == resumed.scores).all()


@pytest.mark.slow
def test_command_prints_the_bound_beside_the_accounted_epsilon(users, tmp_path):
    text, _ = run_command("audit", users.folder, "--canaries", 60, "--method", "fedavg", "--out", tmp_path)
    audit = json.loads((tmp_path / "audit.json").read_text())
    bound = audit["canaries"]
    assert f"{bound['correct']} of 20 guesses are right" in text
    assert f"The accounted epsilon is {bound['accounted']:.3g}. A bound below it is no proof of it" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canaries": 361}, r"^canaries: 361, .* 360 test examples .* from 10 to 360$"),
        ({"canaries": 9}, r"^canaries: 9, .* from 10 to 360$"),
        ({"canaries": 20, "method": "centralised"}, r"^canaries: centralised can have none: .*leave it out$"),
    ],
)
def test_canaries_that_cannot_be_are_named(tmp_path_factory, options, message):
    folder = tmp_path_factory.getbasetemp() / "plain-run"
    methods = {name: {"algorithm": name} for name in ("fedavg", "centralised")}
    result = genfl.load_run(folder) if folder.exists() else digits(folder, None, methods, rounds=1)
    with pytest.raises(InputError, match=message):
        result.audit(**options, out=folder.with_name("plain-audit"))
