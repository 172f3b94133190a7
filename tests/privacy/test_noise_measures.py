"""What the noise of DP-SGD leaves in a round: the right figures, at no change of a bit."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from support.parameters import mostly_slow
from support.small_runs import SMALL_RUN

from genfl import config, pipeline, trees
from genfl.algorithms import ALGORITHMS, combine
from genfl.analysis.noise import noise_measures
from genfl.data.clients import ClientData
from genfl.data.plans import PoissonSampling, Schedule
from genfl.engines.in_process import InProcess
from genfl.engines.per_client import PerClientRunner
from genfl.engines.vmapped import VmapRunner
from genfl.learning.local import LocalSGD
from genfl.learning.per_sample import by_layers
from genfl.learning.task import Aux, classification
from genfl.models import CNN
from genfl.privacy.dp.sample import ClippedGradient
from genfl.privacy.dp.user import noise_figures
from genfl.rng import Key
from genfl.simulation import federate

SHAPE, CLASSES, CLIENTS = (1, 8, 8), 3, 6
GRADIENT = ClippedGradient(0.8, 0.5, by_layers, "a trial")
FIGURES = ("signal_to_noise", "noised_cosine")


@pytest.fixture(scope="module")
def task():
    return classification(lambda: CNN(SHAPE, CLASSES, width=4), SHAPE)


@pytest.fixture(scope="module")
def clients():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(120, *SHAPE, generator=generator)
    y = torch.randint(CLASSES, (120,), generator=generator)
    return ClientData(x, y, list(torch.arange(120).view(CLIENTS, 20).numpy()), CLASSES)


def play(task, names, clients, runner, gradient, measures=None, cohort=4):
    local = replace(LocalSGD(0.1, momentum=0.5), batch_gradient=gradient)
    algorithm = combine(task, local, [(ALGORITHMS[name], {}) for name in names], {})
    schedule = Schedule(2, cohort, 8, 3, poisson=PoissonSampling(0.3))
    start, engine = task.init(Key(0)), InProcess(runner(clients))
    return federate(
        algorithm, start, clients, engine, schedule, Key(1), lambda weights: {}, measures=measures
    )


class Watched:
    """DP-SGD that also adds the clean gradient of every step, by the noise-free one, to a list."""

    def __init__(self):
        self.clean, self.noise = [], []
        self.exact = replace(GRADIENT, noise_multiplier=0.0)

    def __call__(self, params, buffers, batch, context, penalty):
        noised, _ = GRADIENT(params, buffers, batch, context, penalty)
        clean, _ = self.exact(params, buffers, batch, context, penalty)
        size = batch["expected"]
        self.clean.append(trees.scale(size, clean))
        self.noise.append(trees.scale(size, trees.sub(noised, clean)))
        return noised, Aux(buffers)


def test_figures_are_those_of_all_steps_together(task, clients, monkeypatch):
    """All steps of a round, one below the other, are one vector; its figures are those of user level."""
    monkeypatch.setenv("GENFL_FAST", "0")
    one = ClientData(clients.x, clients.y, [clients.rows.numpy()[:40]], CLASSES)
    watched = Watched()
    plain = play(task, ["fedavg"], one, PerClientRunner, watched, cohort=1)
    measured = play(
        task,
        ["fedavg"],
        one,
        PerClientRunner,
        replace(GRADIENT, measured=True),
        noise_measures(),
        cohort=1,
    )
    assert all(map(torch.equal, trees.leaves(plain.weights), trees.leaves(measured.weights)))
    assert len(watched.clean) == 6
    for row, steps in zip(measured.rounds, (slice(0, 3), slice(3, 6)), strict=True):
        clean, noise = (
            {str(step): tree for step, tree in enumerate(part[steps])}
            for part in (watched.clean, watched.noise)
        )
        expected = noise_figures(clean, noise)
        for name in FIGURES:
            assert row[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.parametrize(
    "names", mostly_slow([["fedavg"], ["scaffold"], ["moon"]], ["scaffold"]), ids="+".join
)
@pytest.mark.parametrize("runner", [PerClientRunner, VmapRunner])
def test_measures_change_no_bit(task, clients, names, runner):
    plain = play(task, names, clients, runner, GRADIENT)
    measured = play(task, names, clients, runner, replace(GRADIENT, measured=True), noise_measures())
    assert all(map(torch.equal, trees.leaves(plain.weights), trees.leaves(measured.weights)))
    for row, bare in zip(measured.rounds, plain.rounds, strict=True):
        assert {name: value for name, value in row.items() if name not in FIGURES} == bare
        assert 0 < row["signal_to_noise"] < 10
        assert 0 < row["noised_cosine"] < 1


def test_runners_measure_alike(task, clients):
    gradient = replace(GRADIENT, measured=True)
    one, other = (
        play(task, ["fedavg"], clients, runner, gradient, noise_measures()).rounds
        for runner in (PerClientRunner, VmapRunner)
    )
    for row, same in zip(one, other, strict=True):
        for name in FIGURES:
            assert row[name] == pytest.approx(same[name], rel=1e-3)


@pytest.mark.slow
def test_more_noise_leaves_less(task, clients):
    cosines = [
        play(
            task,
            ["fedavg"],
            clients,
            PerClientRunner,
            replace(GRADIENT, noise_multiplier=noise, measured=True),
            noise_measures(),
        ).rounds[0]["noised_cosine"]
        for noise in (1e-3, 1.0, 100.0)
    ]
    assert cosines[0] > 0.999
    assert cosines == sorted(cosines, reverse=True)
    assert abs(cosines[2]) < 0.2


@pytest.mark.parametrize(
    ("privacy", "present"),
    [
        ({"noise_multiplier": 1.0}, True),
        ({"noise_multiplier": 0.0}, False),
        ({"noise_multiplier": 1.0, "strict": True, "public": ["labels", "sizes", "test"]}, False),
    ],
)
def test_run_tells_the_figures_unless_it_is_strict(tmp_path, privacy, present):
    content = config.plain_copy({**SMALL_RUN, "seeds": [0], "methods": {"fedavg": {"algorithm": "fedavg"}}})
    content |= {"privacy": {"unit": "sample", "accountant": "rdp", **privacy}}
    if privacy.get("strict"):
        content |= {"audit": {"overlap": "ignore"}, "report": {"real_examples": False}}
    settings = config.validate(content)
    pipeline.execute(settings, tmp_path, until="federate")
    result = json.loads((tmp_path / "stages" / "federate.json").read_text())["result"]
    (row,) = result["methods"]["fedavg"]["0"]["rounds"]
    assert (set(FIGURES) <= row.keys()) == present
    if present:
        assert math.isfinite(row["signal_to_noise"])
        told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert any(line.get("noised_cosine") == row["noised_cosine"] for line in told)
