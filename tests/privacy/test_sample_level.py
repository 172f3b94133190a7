"""DP-SGD at clients: clipping, sensitivity, noise, engines, resumes."""

import math
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.parameters import mostly_slow

from genfl import trees
from genfl.algorithms import ALGORITHMS, combine
from genfl.data.clients import ClientData
from genfl.data.plans import PoissonSampling, Schedule
from genfl.engines.fast import replays
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.per_client import PerClientRunner
from genfl.engines.pool import WorkerPool
from genfl.engines.vmapped import VmapRunner
from genfl.errors import InputError
from genfl.learning.local import Context, LocalSGD, no_penalty
from genfl.learning.per_sample import by_layers, by_loop
from genfl.learning.task import classification
from genfl.models import CNN
from genfl.privacy.dp.sample import ClippedGradient, clipped_sum
from genfl.privacy.dp.streams import noise_stream
from genfl.rng import Key
from genfl.simulation import federate

SHAPE, CLASSES, CLIENTS = (1, 8, 8), 3, 6
METHODS = [["fedavg"], ["fedprox", "fedadam"], ["scaffold"], ["feddyn"], ["fednova"], ["moon"]]


@pytest.fixture(scope="module")
def task():
    return classification(lambda: CNN(SHAPE, CLASSES, width=4), SHAPE)


@pytest.fixture(scope="module")
def clients():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(120, *SHAPE, generator=generator)
    y = torch.randint(CLASSES, (120,), generator=generator)
    return ClientData(x, y, list(torch.arange(120).view(CLIENTS, 20).numpy()), CLASSES)


def gradients(rows, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 2), (5,)]
    return [scale * torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def norm_of(flat):
    return math.sqrt(sum(float(part.square().sum()) for part in flat))


# --- clipping and sensitivity


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 100))
def test_clipped_norm_never_exceeds_the_bound(scale, norm, seed):
    for dtype in (torch.float32, torch.float64):
        one = [gradient.to(dtype) for gradient in gradients(1, scale, seed)]
        clipped = clipped_sum(one, torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype), norm)
        assert norm_of([part.double() for part in clipped]) <= norm
        if norm_of([part.double() for part in one]) < 0.999 * norm:
            assert all(torch.equal(a, b.flatten()) for a, b in zip(clipped, one, strict=True)), "as it is"


@pytest.mark.slow
def test_clipped_norm_of_large_models_never_exceeds_the_bound():
    generator = torch.Generator().manual_seed(0)
    for rows in (torch.rand(1, 10**7, generator=generator), torch.full((1, 10**7), 0.1)):
        (clipped,) = clipped_sum([rows], torch.ones(1), torch.zeros(1), 1.0)
        assert 0.999 < norm_of([clipped.double()]) <= 1.0


@given(st.floats(1e-2, 1e2), st.floats(1e-2, 1e2), st.integers(0, 7), st.integers(0, 100))
def test_neighbouring_batches_differ_by_at_most_the_norm(scale, norm, removed, seed):
    batch, everyone = gradients(8, scale, seed), torch.ones(8, dtype=torch.float64)
    without = everyone.clone()
    without[removed] = 0
    nobody = torch.zeros_like(everyone)
    with_it, without_it = (clipped_sum(batch, member, nobody, norm) for member in (everyone, without))
    difference = [a - b for a, b in zip(with_it, without_it, strict=True)]
    assert norm_of(difference) <= norm * (1 + 1e-12)


def test_free_samples_are_not_clipped_and_padding_counts_nothing():
    batch = gradients(3, 10.0)
    protected, free = torch.tensor([1.0, 0, 0]).double(), torch.tensor([0, 1.0, 0]).double()
    total = clipped_sum(batch, protected, free, 1.0)
    first = [rows[0].flatten() for rows in batch]
    clipped = [part * (1 - 1e-5) / norm_of(first) for part in first]
    expected = [part + rows[1].flatten() for part, rows in zip(clipped, batch, strict=True)]
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(total, expected, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_without_a_finite_gradient_count_as_zero(bad):
    batch = gradients(2)
    batch[0][1, 0, 0] = bad
    both, none = torch.ones(2).double(), torch.zeros(2).double()
    total = clipped_sum(batch, both, none, 1.0)
    alone = clipped_sum([rows[:1] for rows in batch], both[:1], none[:1], 1.0)
    assert all(map(torch.equal, total, alone))


# --- one gradient


def context_of(task, key=0):
    return Context(task, {}, {}, {}, Key(key))


def marked(task, count=5):
    x = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(3))
    protected = torch.tensor([1.0, 1, 0, 0, 0])
    free = torch.tensor([0.0, 0, 1, 1, 0])
    return {
        "x": x,
        "y": torch.arange(count) % CLASSES,
        "protected": protected,
        "free": free,
        "expected": torch.tensor(3.0),
    }


def test_gradient_equals_the_formula(task):
    weights, batch, norm, sigma = task.init(Key(0)), marked(task), 0.05, 0.7
    args = (weights["params"], weights["buffers"], batch, context_of(task), no_penalty)
    gradient, _ = ClippedGradient(sigma, norm, by_layers)(*args)
    singles = by_loop(*args[:2], {name: batch[name] for name in "xy"}, *args[3:])
    total = {name: torch.zeros_like(leaf) for name, leaf in weights["params"].items()}
    for number in range(5):
        one = {name: leaf[number] for name, leaf in singles.items()}
        size = math.sqrt(sum(float(leaf.square().sum()) for leaf in one.values()))
        weight = float(batch["protected"][number]) * min(1, norm / size) + float(batch["free"][number])
        total = {name: total[name] + weight * one[name] for name in total}
    count = sum(leaf.numel() for leaf in total.values())
    noise = torch.randn(count, generator=noise_stream(Key(0), "").torch()).split(
        [v.numel() for v in total.values()]
    )
    for (name, leaf), drawn in zip(total.items(), noise, strict=True):
        expected = (leaf + sigma * norm * drawn.view_as(leaf)) / 3
        assert torch.allclose(gradient[name], expected, rtol=1e-4, atol=1e-6)


def test_noise_has_the_right_variance_and_mean(task):
    weights, batch, norm, sigma = task.init(Key(0)), marked(task), 0.5, 2.0

    def gradient(noise, key):
        args = (weights["params"], weights["buffers"], batch, context_of(task, key), no_penalty)
        return trees.leaves(ClippedGradient(noise, norm, by_layers)(*args)[0])

    clean = gradient(0.0, 0)
    drawn = [
        (noised - exact).flatten() * 3 / (sigma * norm)
        for key in range(20)
        for noised, exact in zip(gradient(sigma, key), clean, strict=True)
    ]
    noise = torch.cat(drawn).double().numpy()
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], len(noise))
    assert low < (noise**2).sum() < high
    assert stats.kstest(noise, "norm").pvalue > 1e-4


def test_memory_is_bounded_by_parts_of_the_batch(task, monkeypatch):
    weights, batch = task.init(Key(0)), marked(task)
    args = (weights["params"], weights["buffers"], batch, context_of(task), no_penalty)
    seen = []

    def spy(params, buffers, examples, *rest):
        seen.append(len(examples["y"]))
        return by_layers(params, buffers, examples, *rest)

    whole, _ = ClippedGradient(0.3, 0.5, spy)(*args)
    count = sum(leaf.numel() for leaf in trees.leaves(weights["params"]))
    monkeypatch.setattr("genfl.privacy.dp.sample.MOST_NUMBERS", 2 * count)
    parts, _ = ClippedGradient(0.3, 0.5, spy)(*args)
    assert seen == [5, 2, 2, 1]
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(trees.leaves(whole), trees.leaves(parts), strict=True)
    )


@pytest.mark.parametrize(
    ("noise", "norm"), [(-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_impossible_values_are_rejected(noise, norm):
    with pytest.raises(InputError, match="ClippedGradient"):
        ClippedGradient(noise, norm, by_layers)


# --- federations


def algorithm_of(task, names, local):
    return combine(task, local, [(ALGORITHMS[name], {}) for name in names], {})


def play(task, names, clients, engine, gradient=None, poisson=None, rounds=2, **options):
    local = LocalSGD(0.1, momentum=0.5)
    if gradient:
        local = replace(local, batch_gradient=gradient)
    schedule = Schedule(rounds, 4, 8, 3, poisson=poisson, checkpoint_every=1)
    algorithm = algorithm_of(task, names, local)
    return federate(
        algorithm, task.init(Key(0)), clients, engine, schedule, Key(1), lambda weights: {}, **options
    ).weights


def bits(weights):
    return torch.cat([leaf.flatten() for leaf in trees.leaves(weights)])


PRIVATE = ClippedGradient(0.8, 0.5, by_layers, "a trial")
POISSON = PoissonSampling(0.3)


@pytest.mark.parametrize("names", mostly_slow(METHODS, ["fedavg"], ["scaffold"]), ids="+".join)
@pytest.mark.parametrize("runner", [PerClientRunner, VmapRunner])
def test_no_noise_and_no_clipping_give_the_undefended_bits(task, clients, names, runner):
    undefended = play(task, names, clients, InProcess(runner(clients)))
    free = ClippedGradient(0.0, math.inf, by_layers)
    assert torch.equal(bits(undefended), bits(play(task, names, clients, InProcess(runner(clients)), free)))


@pytest.mark.slow
def test_no_noise_and_no_clipping_give_the_undefended_bits_in_a_pool(task, clients):
    free = ClippedGradient(0.0, math.inf, by_layers)
    with closing(WorkerPool(PerClientRunner(clients), workers=2)) as pool:
        assert torch.equal(
            bits(play(task, ["fedavg"], clients, sequential(clients))),
            bits(play(task, ["fedavg"], clients, pool, free)),
        )


@pytest.mark.slow
@pytest.mark.parametrize("names", [["fedavg"], ["scaffold"], ["moon"]], ids="+".join)
def test_engines_agree(task, clients, names, monkeypatch):
    monkeypatch.setattr(replays, "AFTER", 0)
    recorded, vmapped = InProcess(PerClientRunner(clients)), InProcess(VmapRunner(clients))
    results = [
        bits(play(task, names, clients, engine, PRIVATE, POISSON, rounds=1))
        for engine in (sequential(clients), recorded, vmapped)
    ]
    assert torch.equal(results[0], results[1])
    assert torch.allclose(results[0], results[2], atol=1e-5)


@pytest.mark.slow
def test_pool_has_the_bits_of_one_process(task, clients):
    with closing(WorkerPool(PerClientRunner(clients), workers=2)) as pool:
        pooled = play(task, ["fedavg"], clients, pool, PRIVATE, POISSON)
    assert torch.equal(
        bits(pooled), bits(play(task, ["fedavg"], clients, sequential(clients), PRIVATE, POISSON))
    )


@pytest.mark.slow
def test_steps_are_replayed(task, clients, monkeypatch):
    monkeypatch.setattr(replays, "AFTER", 0)
    engine = InProcess(PerClientRunner(clients))
    play(task, ["fedavg"], clients, engine, PRIVATE, POISSON, rounds=3)
    assert engine.stats().fast.replayed > 0
    assert engine.stats().fast.reasons == ()


@pytest.mark.slow
def test_resumed_federation_has_the_same_bits(task, clients, tmp_path):
    whole = play(task, ["scaffold"], clients, sequential(clients), PRIVATE, POISSON, rounds=4)
    file = tmp_path / "checkpoint.safetensors"
    for rounds in (2, 4):
        resumed = play(
            task, ["scaffold"], clients, sequential(clients), PRIVATE, POISSON, rounds, checkpoint=file
        )
    assert torch.equal(bits(whole), bits(resumed))


def test_no_noise_is_drawn_twice(task, clients, monkeypatch):
    drawn = []
    draw = Key.draw

    def spy(key, sampler, *inputs):
        drawn.append(key)
        return draw(key, sampler, *inputs)

    monkeypatch.setattr(Key, "draw", spy)
    engine = sequential(clients)
    play(task, ["fedavg"], clients, engine, PRIVATE, POISSON, rounds=3)
    end = noise_stream(Key(0), PRIVATE.stream).path
    noise = [key for key in drawn if key.path[-len(end) :] == end]
    assert len(noise) == 3 * 4 * 3, "rounds, clients, steps"
    assert len(set(noise)) == len(noise)
    other = replace(PRIVATE, stream="another trial")
    play(task, ["fedavg"], clients, engine, other, POISSON, rounds=3)
    assert len(set(drawn)) >= 2 * len(noise), "another trial with the same seed has other noise"


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_an_empty_batch_takes_a_step_of_noise_alone(task, seed):
    batch = marked(task) | {"protected": torch.zeros(5), "free": torch.zeros(5)}
    weights = task.init(Key(0))
    args = (weights["params"], weights["buffers"], batch, context_of(task, seed), no_penalty)
    gradient = bits(ClippedGradient(1.0, 2.0, by_layers)(*args)[0])
    expected = torch.randn(len(gradient), generator=noise_stream(Key(seed), "").torch())
    assert torch.allclose(gradient, 2.0 * expected / 3)
