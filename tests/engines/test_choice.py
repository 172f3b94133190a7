"""The engine `auto` takes: the fastest one, and the same one when a federation is gone on with."""

import json
from functools import partial

import pytest
import torch

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.data.clients import ClientData
from genfl.engines import choice
from genfl.engines.choice import Auto, engine
from genfl.engines.rounds import Schedule, federate
from genfl.engines.sequential import Sequential
from genfl.engines.vectorised import Vectorised
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import MLP, Stack
from genfl.rng import Key

SHAPE, CLASSES = (4,), 3


@pytest.fixture
def clients():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(160, *SHAPE, generator=rng), torch.randint(CLASSES, (160,), generator=rng)
    return ClientData(x, y, list(torch.arange(160).view(8, 20).numpy()), CLASSES)


def play(clients, run, rounds=3, build=None):
    task = classification(build or partial(MLP, SHAPE, CLASSES, 16), SHAPE)
    algorithm = ALGORITHMS["scaffold"].build(task, LocalSGD(0.1), {})
    trace = federate(
        algorithm, task.init(Key(1)), clients, run, Schedule(rounds, 8, 4), Key(5), lambda weights: {}
    )
    return torch.cat([leaf.flatten() for leaf in trees.leaves(trace.weights)])


def with_auto(clients, **options):
    with engine("auto", clients, 8, **options) as run:
        return play(clients, run)


@pytest.fixture
def long(monkeypatch):
    """Makes every federation long enough for a trial."""
    monkeypatch.setattr(choice, "FEWEST_ROUNDS", 1)
    monkeypatch.setattr(choice, "LEAST_SECONDS", 0.0)


def test_a_short_federation_is_not_tried_out_and_has_the_bits_of_the_reference(clients, tmp_path):
    kept = tmp_path / "arm" / "engine.json"
    assert torch.equal(with_auto(clients, rounds=99, kept=kept), play(clients, Sequential(clients)))
    known = json.loads(kept.read_text())
    assert known["engine"] in choice.EXACT
    assert list(known["seconds_a_round"]) == [known["engine"]]


def test_a_long_one_is_tried_on_both_kinds_and_runs_on_the_faster(clients, tmp_path, long, caplog):
    kept = tmp_path / "engine.json"
    with caplog.at_level("INFO"):
        mine = with_auto(clients, rounds=3, kept=kept)
    known = json.loads(kept.read_text())
    seconds = known["seconds_a_round"]
    (exact,) = seconds.keys() - {"vectorised"}
    faster = seconds["vectorised"] <= choice.GAIN * seconds[exact]
    assert known["engine"] == ("vectorised" if faster else exact)
    assert f"engine {known['engine']}; seconds a round" in caplog.text
    torch.testing.assert_close(mine, play(clients, Sequential(clients)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("exact", "vectorised"), [(1.0, 0.5), (1.0, 0.9), (1.0, 3.0)])
def test_other_bits_must_be_worth_it(clients, tmp_path, long, monkeypatch, exact, vectorised):
    times = {"parallel": exact, "sequential": exact, "vectorised": vectorised}
    monkeypatch.setattr(Auto, "_seconds", lambda self, name, *_: times[name])
    kept = tmp_path / "engine.json"
    mine = with_auto(clients, rounds=3, kept=kept)
    assert (json.loads(kept.read_text())["engine"] == "vectorised") == (vectorised == 0.5)
    if vectorised > 0.5:
        assert torch.equal(mine, play(clients, Sequential(clients)))


def test_what_was_chosen_is_followed_without_another_trial(clients, tmp_path, long, monkeypatch):
    kept = tmp_path / "engine.json"
    for name in ("vectorised", "parallel", "sequential"):
        kept.write_text(json.dumps({"key": "k", "engine": name}))
        with monkeypatch.context() as patch:
            patch.setattr(Auto, "_seconds", None)
            with engine("auto", clients, 8, rounds=3, kept=kept, kept_key="k") as run:
                mine = play(clients, run)
                exact = isinstance(run._engine, choice.Replaying)
        assert exact == (name != "vectorised")
        assert torch.equal(mine, play(clients, Sequential(clients))) or name == "vectorised"
        assert json.loads(kept.read_text()) == {"key": "k", "engine": name}


def test_a_choice_for_another_federation_does_not_count(clients, tmp_path):
    kept = tmp_path / "engine.json"
    kept.write_text(json.dumps({"key": "other", "engine": "vectorised"}))
    mine = with_auto(clients, rounds=3, kept=kept, kept_key="this")
    assert torch.equal(mine, play(clients, Sequential(clients)))
    assert json.loads(kept.read_text())["key"] == "this"


def test_a_model_that_cannot_be_batched_runs_as_ever(clients, tmp_path, long, caplog):
    class Noisy(Stack):
        def features(self, x):
            return super().features(x) + (torch.rand(()) if self.training else 0)

    def build():
        return Noisy(torch.nn.Linear(4, 5), torch.nn.Linear(5, CLASSES))

    kept = tmp_path / "engine.json"
    with caplog.at_level("INFO"), engine("auto", clients, 8, rounds=3, kept=kept) as run:
        mine = play(clients, run, build=build)
    assert "vectorised is not to be had" in caplog.text
    assert torch.equal(mine, play(clients, Sequential(clients), build=build))
    assert json.loads(kept.read_text())["engine"] in choice.EXACT


def test_one_client_a_round_is_not_tried_in_batches(clients, long, monkeypatch):
    monkeypatch.setattr(Auto, "_seconds", None)
    with engine("auto", clients, 1, rounds=1000) as run:
        play(clients, run)


def test_engines_by_name(clients, monkeypatch):
    with engine("sequential", clients, 8) as run:
        assert isinstance(run, Sequential)
    monkeypatch.setattr(choice, "cores", lambda: 1)
    with engine("vectorised", clients, 8) as run:
        assert isinstance(run, Vectorised), "on one core there is nothing to share"
