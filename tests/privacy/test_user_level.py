"""Noise on sums of clipped uploads: its bound, its size, its streams, and what it leaves as it is."""

import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.parameters import mostly_slow

from genfl import trees
from genfl.algorithms import ALGORITHMS
from genfl.algorithms.base import run_once
from genfl.algorithms.fedavg import fedavg
from genfl.config.privacy import Privacy
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.engines.auto import engine
from genfl.engines.in_process import sequential
from genfl.engines.protocol import ClientTask, run_client
from genfl.engines.reducers import quorum_reducers
from genfl.errors import InputError
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN, MLP
from genfl.privacy.dp.distributed import Words
from genfl.privacy.dp.streams import noise_stream
from genfl.privacy.dp.toeplitz import BufferedToeplitz
from genfl.privacy.dp.user import (
    BUFFERS,
    CLIP_NORM,
    MATRIX,
    NOISED_COSINE,
    NOISED_WORDS,
    SIGNAL_TO_NOISE,
    UserNoise,
    clip_upload,
    estimated_figures,
    exact_census,
    gaussian,
    user_level,
)
from genfl.rng import Key
from genfl.simulation import federate
from genfl.stages.federate.protection import protect_users

from ..engines.helpers import SpyEngine

CLIENTS, SHAPE = 8, (1, 8, 8)
TASK = classification(partial(MLP, SHAPE, 3, 6), SHAPE)
EQUAL = {"weighting": "uniform"}
OPTIONS = {
    "fedavg": EQUAL,
    "feddf_logits": EQUAL | {"steps": 2},
    "fedgen": EQUAL | {"generator_steps": 2},
    "dynafed": EQUAL | {"trajectory": 1, "span": 1, "synthesis_steps": 2, "refine_steps": 2},
    "dsfl": {"steps": 2},
}
PARTS_OF_FEDAVG = [
    "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "moon", "feddecorr", "fedsam",
]  # fmt: skip
PROTECTED = [*PARTS_OF_FEDAVG, "fedavg", "scaffold", "feddyn", "feddf_logits", "dsfl", "fedgen", "dynafed"]
REFUSED = {
    "fednova": r"fednova: .*\(samples, steps\).*weighting: uniform",
    "feddisco": r"feddisco: .*\(weight\).*weighting: uniform",
    "feddf": r"feddf: its server sees model of every client.*use an algorithm whose server sees sums",
    "fedet": r"fedet: its server sees trained of every client.*use an algorithm whose server sees sums",
    "fedftg": r"fedftg: its server sees weight, delta, label_counts.*use an algorithm whose server sees sums",
}


def data():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, *SHAPE, generator=rng), torch.randint(3, (120,), generator=rng)
    sizes = [8, 12, 20, 8, 12, 20, 16, 24]
    return ClientData(x, y, np.split(np.arange(120), np.cumsum(sizes)[:-1]), 3)


def algorithm(name, task=TASK, lr=0.1, **options):
    x = torch.linspace(-1, 1, 10 * 64).reshape(10, *SHAPE)
    resources = {"cohort": 4, "shared": x, "unlabelled": x, "client_tasks": {"small": task}}
    if name in PARTS_OF_FEDAVG:
        return fedavg(task, LocalSGD(lr, momentum=0.5), ALGORITHMS[name].make(), weighting="uniform")
    return ALGORITHMS[name].build(task, LocalSGD(lr), resources, **OPTIONS.get(name, {}) | options)


def run(method, kind="sequential", rounds=3, cohort=4, cohorts="fixed", **options):
    clients = data()
    schedule = Schedule(rounds, cohort, 4, local_steps=2, cohorts=cohorts)
    with engine(kind, clients, cohort) as opened:
        spy = SpyEngine(opened)
        trace = federate(method, TASK.init(Key(1)), clients, spy, schedule, Key(5), lambda w: {}, **options)
    return trace, spy.results


def assert_same(a, b):
    for x, y in zip(trees.leaves(a), trees.leaves(b), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_is_protected_or_refused(name):
    """One round, of which the server's noise is all that the results do not share."""
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            user_level(algorithm(name), TASK, UserNoise(1.0, 1.0, 4), name)
        return
    assert name in PROTECTED
    results = []
    for stream in ("a", "b"):
        method = user_level(algorithm(name), TASK, UserNoise(1.0, 0.5, 4, stream=stream), name)
        assert set(method.client.reductions.values()) == {"sum"}
        trace, (result,) = run(method, rounds=1)
        assert not result.refused
        norm = math.sqrt(trees.square_norm(result.aggregate))
        assert norm <= 4 * 0.5, "four uploads of norm 0.5 at most"
        assert 0 < trace.rounds[0][SIGNAL_TO_NOISE] < 1
        results.append((trace.weights, result.aggregate))
    assert_same(results[0][1], results[1][1])
    assert not torch.equal(*(trees.leaves(weights)[0] for weights, _ in results))


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_declared_counts_are_one_for_every_client(name):
    method = algorithm(name)
    assert set(method.counts) <= set(method.client.reductions)
    if name in PROTECTED:
        assert method.counts, "else the mean would be divided by a noised number"
    weights, clients = TASK.init(Key(0)), data()
    for client in range(2) if method.counts else ():
        info = clients.client_info(client)
        sums = run_once(method.census, {}, {}, info)[0]
        message = method.address(method.send(method.init(weights, sums, Key(0))), client)
        task = ClientTask(
            client, message, method.memory(weights), Schedule(1, 1, 4).batches(Key(0)), Key(client)
        )
        upload, _ = run_client(method.client, clients, task)
        assert [upload[count].item() for count in method.counts] == [1] * len(method.counts)


def test_sample_weights_are_refused_with_the_option():
    for name, options in {"fedavg": {}, "fedgen": {}, "dynafed": {"trajectory": 1, "span": 1}}.items():
        build = ALGORITHMS[name].build(TASK, LocalSGD(0.1), {}, **options)
        with pytest.raises(InputError, match=rf"{name}: .*\(weight\).*set weighting: uniform") as error:
            user_level(build, TASK, UserNoise(1.0, 1.0, 4), name)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


def test_batch_norm_is_refused_with_the_option():
    task = classification(partial(CNN, SHAPE, 3, norm="batch"), SHAPE)
    with pytest.raises(InputError, match=r"running statistics.*model\.norm: group"):
        user_level(algorithm("fedavg", task), task, UserNoise(1.0, 1.0, 4), "fedavg")
    grouped = classification(partial(CNN, SHAPE, 3, norm="group"), SHAPE)
    user_level(algorithm("fedavg", grouped), grouped, UserNoise(1.0, 1.0, 4), "fedavg")


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((-1.0, 1.0, 4), "noise_multiplier: -1"),
        ((math.nan, 1.0, 4), "noise_multiplier: nan"),
        ((math.inf, 1.0, 4), "noise_multiplier: inf"),
        ((1.0, 0.0, 4), "max_update_norm: 0"),
        ((1.0, math.nan, 4), "max_update_norm: nan"),
        ((1.0, math.inf, 4), "max_update_norm: inf"),
        ((1.0, 1.0, 40, 1.0), "target_quantile: 1"),
        ((0.0, math.inf, 40, 0.5), "target_quantile: 0.5 with a norm of inf"),
        ((1.0, 1.0, 10, 0.5), "more than 10 clients in a round, and there are 10"),
        ((0.0, math.inf, 10, None, "", 5), "max_update_norm: inf"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, match):
    with pytest.raises(InputError, match=match):
        UserNoise(*numbers)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(
            name,
            kind,
            marks=[] if name in ("fedavg", "scaffold") and kind == "sequential" else pytest.mark.slow,
        )
        for name in PROTECTED
        for kind in ("sequential", "parallel", "vectorized")
    ],
)
def test_no_noise_and_no_bound_leave_every_bit(name, kind):
    plain, _ = run(algorithm(name), kind)
    protected, _ = run(user_level(algorithm(name), TASK, UserNoise(0.0, math.inf, 4), name), kind)
    assert_same(plain.weights, protected.weights)
    same = ("round", "refused", "samples", "downlink_bytes")
    assert [[row[n] for n in same] for row in plain.rounds] == [
        [row[n] for n in same] for row in protected.rounds
    ]


@pytest.mark.parametrize("quorum", mostly_slow([None, 3], 3))
@pytest.mark.parametrize("quantile", mostly_slow([None, 0.5], 0.5))
def test_engines_give_the_same_protected_results(quantile, quorum):
    noise = UserNoise(0.3, 0.2, 4, quantile, quorum=quorum)
    method = user_level(algorithm("scaffold"), TASK, noise, "scaffold")
    cohorts = "poisson" if quorum is None else "fixed"
    one, _ = run(method, cohorts=cohorts)
    pool, _ = run(method, "parallel", cohorts=cohorts)
    batched, _ = run(method, "vectorized", cohorts=cohorts)
    assert_same(one.weights, pool.weights)
    assert one.rounds == pool.rounds
    for a, b in zip(trees.leaves(one.weights), trees.leaves(batched.weights), strict=True):
        torch.testing.assert_close(a, b)


# --- the bound


UPLOADS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5)


@given(UPLOADS, st.floats(1e-6, 1e6))
def test_clipped_upload_never_exceeds_the_norm_and_keeps_its_direction(values, norm):
    vector = torch.tensor(values)
    upload = {"delta": {"w": vector[:2], "b": vector[2:3]}, "control": vector[3:]}
    clipped, within = clip_upload(upload, norm)
    size = vector.double().norm().item()
    after = torch.cat([leaf.double() for leaf in trees.leaves(clipped)])
    assert after.norm() <= norm
    assert bool(within) == (size <= norm)
    expected = vector.double() * min(1.0, norm / size if size else 1.0)
    torch.testing.assert_close(after, expected, rtol=2e-6, atol=1e-30)
    if within:
        assert_same(clipped, upload)


def test_huge_uploads_are_clipped_and_those_not_finite_become_zeros():
    clipped, within = clip_upload({"a": torch.full((4,), 3e38)}, 1.0)
    assert not within
    assert clipped["a"].tolist() == pytest.approx([0.5] * 4, rel=1e-5)
    for bad in (math.inf, math.nan):
        for norm in (1.0, math.inf):
            clipped, _ = clip_upload({"a": torch.tensor([bad, 1.0])}, norm)
            assert clipped["a"].tolist() == [0, 0], "a rejected upload would tell that somebody sent it"


@pytest.fixture(scope="module")
def uploads():
    """A function from a norm to the clients' uploads in a round of SCAFFOLD, made once for each norm."""
    clients, known = data(), {}

    def of(norm):
        if norm not in known:
            method = user_level(algorithm("scaffold"), TASK, UserNoise(1.0, norm, 40, 0.5), "scaffold")
            weights = TASK.init(Key(1))
            message = method.send(method.init(weights, {"clients": torch.tensor(8.0)}, Key(0)))
            plans = Schedule(1, 8, 4, local_steps=2)
            tasks = [
                ClientTask(k, message, method.memory(weights), plans.batches(Key(k)), Key(k))
                for k in range(CLIENTS)
            ]
            known[norm] = [run_client(method.client, clients, task)[0] for task in tasks]
        return known[norm]

    return of


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(
    norm=st.sampled_from([1e-3, 0.1, 0.5, 5.0]),
    cohort=st.sets(st.integers(0, CLIENTS - 1), min_size=1),
    chosen=st.integers(0, 7),
)
def test_neighbouring_cohorts_differ_by_at_most_the_norm(uploads, norm, cohort, chosen):
    """With a client and without it: all sums together, and the centred count."""
    one = sorted(cohort)[chosen % len(cohort)]
    sums, others = (
        [trees.map(lambda *leaves: sum(leaf.double() for leaf in leaves), *(uploads(norm)[k] for k in ks))]
        if ks
        else [trees.zeros_like(trees.map(torch.Tensor.double, uploads(norm)[0]))]
        for ks in (sorted(cohort), sorted(cohort - {one}))
    )
    difference = trees.sub(sums[0], others[0])
    count = difference.pop("within_norm")
    assert abs(count) == 0.5
    assert math.sqrt(trees.square_norm(difference)) <= norm * (1 + 1e-9)
    if count < 0:  # it was clipped, so the bound is tight
        assert math.sqrt(trees.square_norm(difference)) == pytest.approx(norm, rel=1e-5)
    # In units of their noise, both together differ by no more than one sum with the noise multiplier does.
    noise = UserNoise(1.0, norm, 40, 0.5)
    scaled = trees.square_norm(difference) / (noise.sum_noise * norm) ** 2 + (count / noise.count_noise) ** 2
    assert math.sqrt(scaled) <= 1 / noise.noise_multiplier + 1e-9


# --- the noise


def test_noise_has_the_right_variance():
    """What the server adds to a sum of zeros: its variance by chi-square, and no correlation."""
    z, norm, cohort = 1.7, 0.3, 4
    method = user_level(algorithm("scaffold"), TASK, UserNoise(z, norm, cohort), "scaffold")
    weights = TASK.init(Key(1))
    state = method.init(weights, {"clients": torch.tensor(8.0)}, Key(0))
    message = method.send(state)
    zeros = trees.zeros_like(
        run_once(method.client, message, method.memory(weights), data().client_info(0))[0]
    )
    draws = []
    for number in range(40):
        after = method.server(state, zeros, Key(7).fold("server", number))
        change = trees.sub(after["weights"], weights)["params"]
        model = torch.cat([leaf.double().flatten() for leaf in trees.leaves(change)]) * cohort
        control = torch.cat([leaf.double().flatten() for leaf in trees.leaves(after["control"])]) * 8
        draws.append(torch.cat([model, control]) / (z * norm))
    noise = torch.stack(draws)
    assert stats.chi2(noise.numel()).cdf(noise.square().sum()) == pytest.approx(0.5, abs=0.4999)
    assert stats.kstest(noise.flatten(), "norm").pvalue > 1e-4
    rounds = torch.corrcoef(noise)
    entries = torch.corrcoef(noise.T)
    for matrix, count in ((rounds, noise.shape[1]), (entries, 40)):
        off = matrix - torch.eye(len(matrix))
        assert off.abs().max() < stats.norm.isf(1e-4 / len(matrix) ** 2) / math.sqrt(count) * 1.6


def test_gaussian_does_not_depend_on_the_order_of_names():
    tree = {"b": torch.zeros(3), "a": {"y": torch.zeros(2), "x": torch.zeros(2)}}
    turned = {"a": {"x": torch.zeros(2), "y": torch.zeros(2)}, "b": torch.zeros(3)}
    one, other = gaussian(tree, 2.0, Key(1)), gaussian(turned, 2.0, Key(1))
    assert list(one) == ["b", "a"]
    assert torch.equal(one["b"], other["b"])
    assert torch.equal(one["a"]["y"], other["a"]["y"])
    assert not torch.equal(one["a"]["x"], one["a"]["y"])


def test_mean_is_unbiased_over_poisson_cohorts():
    """The expectation over all 2⁶ cohorts, written out, is the mean of the clipped uploads."""
    clients, q = 6, 0.4
    method = user_level(algorithm("fedavg"), TASK, UserNoise(0.0, 0.5, 1), "fedavg")
    weights = TASK.init(Key(1))
    state = method.init(weights, {"clients": torch.tensor(6.0)}, Key(0))
    generator = torch.Generator().manual_seed(0)
    raw = [trees.map(lambda w: torch.randn(w.shape, generator=generator), weights) for _ in range(clients)]
    sent = [clip_upload({"delta": delta}, 0.5)[0] for delta in raw]
    # the expected size of a cohort need not be a whole number here, so that it is put in afterwards
    expected = trees.zeros_like(weights)
    for taken in itertools.product((0, 1), repeat=clients):
        cohort = [upload for upload, one in zip(sent, taken, strict=True) if one]
        probability = math.prod(q if one else 1 - q for one in taken)
        total = trees.add(*cohort) if cohort else trees.zeros_like(sent[0])
        after = method.server(state, total, Key(0))["weights"]
        change = trees.scale(probability / (q * clients), trees.sub(after, weights))
        expected = trees.add(expected, change)
    mean = trees.scale(1 / clients, trees.add(*sent))["delta"]
    for a, b in zip(trees.leaves(expected), trees.leaves(mean), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


# --- noise that is correlated over rounds


CORRELATED = BufferedToeplitz((0.9, 0.4), (0.3, 0.2))


def correlated(name="fedavg", z=1.0, norm=0.5, **options):
    noise = UserNoise(z, norm, 4, matrix=options.pop("matrix", CORRELATED))
    return user_level(algorithm(name, **options), TASK, noise, name)


def test_correlated_noise_has_the_covariance_of_the_inverse():
    """Of what the server adds to sums of zeros. C makes it independent noise of the right size."""
    rounds, z, norm = 6, 1.7, 0.3
    task = classification(partial(MLP, SHAPE, 3, 60), SHAPE)
    noise = UserNoise(z, norm, 4, matrix=CORRELATED)
    method = user_level(fedavg(task, LocalSGD(0.1), weighting="uniform"), task, noise)
    state = method.init(task.init(Key(1)), {"clients": torch.tensor(8.0)}, Key(0))
    zeros = {"delta": trees.zeros_like(state["weights"])}
    draws = []
    for number in range(rounds):
        after = method.server(state, zeros, Key(7).fold("server", number))
        change = trees.leaves(trees.sub(after["weights"], state["weights"]))
        draws.append(torch.cat([leaf.double().flatten() for leaf in change]) * 4 / (z * norm))
        state = after
    added = torch.stack(draws)
    column = torch.from_numpy(CORRELATED.coefficients(rounds))
    matrix = torch.stack([torch.cat([torch.zeros(s), column[: rounds - s]]) for s in range(rounds)], 1)
    fresh, entries = matrix @ added, added.shape[1]
    assert entries > 4000
    assert stats.chi2(fresh.numel()).cdf(fresh.square().sum()) == pytest.approx(0.5, abs=0.4999)
    assert stats.kstest(fresh.flatten(), "norm", method="asymp").pvalue > 1e-4
    assert (torch.corrcoef(fresh) - torch.eye(rounds)).abs().max() < 4.5 / math.sqrt(entries)
    inverse = torch.linalg.inv(matrix)
    error = (added @ added.T / entries - inverse @ inverse.T).abs().max()
    assert error < 4.5 * math.sqrt(2 / entries)
    assert torch.corrcoef(added)[0, 1] < -0.3, "a round cancels a part of the one before"
    # The noise of the models: of all rounds together, it is less than that of independent noise.
    left = added.cumsum(0).square().mean(1)
    predicted = (torch.tril(torch.ones(rounds, rounds, dtype=torch.float64)) @ inverse).square().sum(1)
    torch.testing.assert_close(left, predicted, rtol=0.1, atol=0)
    assert left[-1] < rounds / 2


@pytest.mark.parametrize("name", PROTECTED)
def test_every_protected_algorithm_takes_correlated_noise(name):
    """The first round has the noise of independent rounds, and the next one does not."""
    plain, _ = run(user_level(algorithm(name), TASK, UserNoise(1.0, 0.5, 4), name), rounds=2)
    trace, _ = run(correlated(name), rounds=2)
    assert plain.rounds[0] == trace.rounds[0]
    assert plain.rounds[1][SIGNAL_TO_NOISE] != trace.rounds[1][SIGNAL_TO_NOISE] > 0
    assert not torch.equal(*(trees.leaves(weights)[0] for weights in (plain.weights, trace.weights)))


def test_no_buffers_are_independent_noise_bit_for_bit():
    plain, _ = run(user_level(algorithm("scaffold"), TASK, UserNoise(1.0, 0.5, 4), "scaffold"))
    trace, _ = run(correlated("scaffold", matrix=BufferedToeplitz((), ())))
    assert_same(plain.weights, trace.weights)
    assert plain.rounds == trace.rounds


@pytest.mark.parametrize("kind", mostly_slow(["sequential", "parallel", "vectorized"], "sequential"))
def test_a_matrix_without_noise_leaves_every_bit(kind):
    plain, _ = run(algorithm("scaffold"), kind)
    trace, _ = run(correlated("scaffold", z=0.0, norm=math.inf), kind)
    assert_same(plain.weights, trace.weights)


def test_engines_give_the_same_correlated_noise():
    one, _ = run(correlated("scaffold"), cohorts="cyclic")
    pool, _ = run(correlated("scaffold"), "parallel", cohorts="cyclic")
    batched, _ = run(correlated("scaffold"), "vectorized", cohorts="cyclic")
    assert_same(one.weights, pool.weights)
    assert one.rounds == pool.rounds
    for a, b in zip(trees.leaves(one.weights), trees.leaves(batched.weights), strict=True):
        torch.testing.assert_close(a, b)


class Stopped(Exception):
    pass


def interrupted(method, checkpoint, rounds):
    """Run five rounds of which some are taken, then the rest."""

    def stop(_):
        nonlocal rounds
        rounds -= 1
        if rounds == 0:
            raise Stopped

    with pytest.raises(Stopped):
        run(method, rounds=5, checkpoint=checkpoint, on_round=stop)
    return run(method, rounds=5, checkpoint=checkpoint)[0]


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_interrupted_correlated_noise_is_continued_bit_for_bit(name, tmp_path):
    whole, _ = run(correlated(name), rounds=5)
    for rounds in (1, 3):
        resumed = interrupted(correlated(name), tmp_path / f"{rounds}.safetensors", rounds)
        assert_same(whole.weights, resumed.weights)
        assert whole.rounds == resumed.rounds


def test_noise_of_another_matrix_is_not_continued(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    run(correlated(), rounds=2, checkpoint=checkpoint)
    other = correlated(matrix=BufferedToeplitz((0.9, 0.4), (0.3, 0.200001)))
    with pytest.raises(InputError, match=r"privacy\.mechanism: .*another matrix.*--fresh"):
        run(other, rounds=3, checkpoint=checkpoint)


def test_clients_get_no_buffers():
    method = correlated()
    state = method.init(TASK.init(Key(1)), {"clients": torch.tensor(8.0)}, Key(0))
    assert {BUFFERS, MATRIX} < set(state)
    assert not {BUFFERS, MATRIX} & set(method.send(state))
    assert trees.num_bytes(state[BUFFERS]) == 2 * trees.num_bytes({"delta": state["weights"]})


def test_adaptive_norms_refuse_correlated_noise():
    with pytest.raises(InputError, match="target_quantile: correlated noise needs a fixed norm"):
        UserNoise(1.0, 1.0, 40, 0.5, matrix=CORRELATED)


# --- cohorts


def test_cyclic_cohorts_take_turns():
    for clients, size in ((7, 3), (12, 4), (5, 5), (5, 1)):
        schedule = Schedule(40, size, 4, cohorts="cyclic")
        drawn = [schedule.cohort(clients, Key(2), number) for number in range(1, 41)]
        assert all(list(one) == sorted(set(one)) and len(one) == size for one in drawn)
        for client in range(clients):
            rounds = [number for number, one in enumerate(drawn) if client in one]
            assert abs(len(rounds) - 40 * size / clients) < 1
            assert set(np.diff(rounds)) <= {clients // size, -(-clients // size)}
        assert clients == size or drawn != [schedule.cohort(clients, Key(3), n) for n in range(1, 41)]


def test_poisson_cohorts_draw_each_client_independently():
    schedule = Schedule(1, 5, 4, cohorts="poisson")
    taken = np.zeros((4000, 20))
    for number in range(len(taken)):
        drawn = schedule.cohort(20, Key(0), number)
        assert list(drawn) == sorted(set(drawn))
        taken[number, drawn] = 1
    counts = taken.sum(0)
    statistic = ((counts - 1000) ** 2 / 750).sum()
    assert stats.chi2(20).cdf(statistic) == pytest.approx(0.5, abs=0.4999)
    sizes = np.bincount(taken.sum(1).astype(int), minlength=21)
    binomial = stats.binom(20, 0.25).pmf(np.arange(21)) * 4000
    often = binomial > 5
    assert stats.chi2(often.sum()).cdf(((sizes - binomial) ** 2 / binomial)[often].sum()) < 0.9999
    assert np.abs(np.corrcoef(taken.T) - np.eye(20)).max() < 0.08


def test_fixed_cohorts_are_as_before():
    from genfl.simulation import cohort

    schedule = Schedule(9, 3, 4)
    assert [schedule.cohort(7, Key(2), n) for n in range(1, 9)] == [
        cohort(7, 3, Key(2).fold("cohort", n)) for n in range(1, 9)
    ]


def test_releases_count_what_cohorts_hide():
    def protection(cohorts, clients=12, size=3):
        privacy = Privacy(unit="user", noise_multiplier=1.3, cohorts=cohorts)
        return protect_users(privacy, clients, Schedule(30, size, 4), Key(4))

    plan, poisson = protection(None)
    assert plan.cohorts == "poisson"
    assert poisson.releases(7) == ((1.3, 0.25, 7),)
    assert poisson.neighbours == "add or remove"
    plan, fixed = protection("fixed")
    assert plan.cohorts == "fixed"
    assert fixed.neighbours == "zero out"
    for rounds in (0, 1, 11, 30):
        times = [0] * 12
        for number in range(1, rounds + 1):
            for client in plan.cohort(12, Key(4), number):
                times[client] += 1
        assert fixed.releases(rounds) == ((1.3, 1.0, max(times)),)
    for cohorts in ("poisson", "fixed"):  # with everyone in each round, they are the same
        assert protection(cohorts, size=12)[1].releases(30) == ((1.3, 1.0, 30),)


@pytest.mark.parametrize("kind", mostly_slow(["sequential", "parallel", "vectorized"], "sequential"))
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_small_and_empty_cohorts_take_noised_steps(name, kind):
    """Cohorts of 0, 1 and more clients, the first of them empty."""
    seed = next(
        seed
        for seed in itertools.count()
        if [len(Schedule(4, 1, 4, cohorts="poisson").cohort(CLIENTS, Key(seed), n)) for n in range(1, 5)]
        == [0, 1, 0, 2]
    )
    clients = data()
    method = user_level(algorithm(name), TASK, UserNoise(1.0, 0.5, 1), name)
    schedule = Schedule(4, 1, 4, local_steps=1, cohorts="poisson")
    seen = [TASK.init(Key(1))]
    with engine(kind, clients, 1) as opened:
        trace = federate(
            method, seen[0], clients, opened, schedule, Key(seed), lambda w: seen.append(w) or {"n": 0.0}
        )
    assert [row["uplink_bytes"] > 0 for row in trace.rounds] == [False, True, False, True]
    assert [row[SIGNAL_TO_NOISE] is None for row in trace.rounds] == [True, False, True, False]
    assert all(row["refused"] == 0 for row in trace.rounds)
    for before, after in itertools.pairwise(seen[1:]):
        assert not torch.equal(trees.leaves(before)[0], trees.leaves(after)[0]), "each round takes a step"
    # what an empty round adds is its noise, divided by the expected number of clients
    stream = noise_stream(Key(seed).fold("server", 1), "").fold("sums")
    like = {"delta": seen[0]} | ({"control": seen[0]["params"]} if name == "scaffold" else {})
    noise = gaussian(like, 0.5, stream)["delta"]
    assert_same(seen[2], trees.add(seen[1], noise))


# --- the adaptive norm


def algorithm_1(norm, uploads, z, sigma_b, gamma, eta, noise):
    """A round of Algorithm 1 of Andrew et al. for the clients of a cohort, in NumPy.

    Noise is (of the sum, of the count), both standard normal.
    """
    m = len(uploads)
    z_delta = (z**-2 - (2 * sigma_b) ** -2) ** -0.5
    b = [float(np.linalg.norm(delta) <= norm) for delta in uploads]
    clipped = [delta * min(1, norm / np.linalg.norm(delta)) for delta in uploads]
    mean = (sum(clipped) + z_delta * norm * noise[0]) / m
    share = (sum(b) + sigma_b * noise[1]) / m
    return mean, norm * np.exp(-eta * (share - gamma))


def test_adaptive_norm_is_algorithm_1(float64):
    task = classification(partial(MLP, SHAPE, 3, 2), SHAPE)
    cohort, z = 12, 0.9
    noise = UserNoise(z, 0.4, cohort, 0.3)
    method = user_level(algorithm("fedavg", task), task, noise, "fedavg")
    weights = task.init(Key(1))
    state = method.init(weights, {"clients": torch.tensor(12.0)}, Key(0))
    rng, norm = np.random.default_rng(0), 0.4
    flat = np.concatenate([leaf.flatten().numpy() for leaf in trees.leaves(weights)])
    for number in range(1, 6):
        raw = rng.normal(size=(cohort, len(flat))) * rng.uniform(0.01, 0.2, (cohort, 1))
        sums = None
        for delta in raw:
            pieces = torch.from_numpy(delta).split([leaf.numel() for leaf in trees.leaves(weights)])
            shaped = [p.view(leaf.shape) for p, leaf in zip(pieces, trees.leaves(weights), strict=True)]
            carry = {"upload": trees.unflatten(weights, shaped)}
            clipped, within = clip_upload({"delta": carry["upload"]}, state[CLIP_NORM])
            clipped["within_norm"] = within.double() - 0.5
            sums = clipped if sums is None else trees.add(sums, clipped)
        key = Key(3).fold("server", number)
        normal = gaussian({"delta": weights}, 1.0, noise_stream(key, "").fold("sums"))
        count = gaussian(torch.zeros((), dtype=torch.float64), 1.0, noise_stream(key, "").fold("count"))
        drawn = np.concatenate([leaf.flatten().numpy() for leaf in trees.leaves(normal)]), count.item()
        mean, next_norm = algorithm_1(norm, raw, z, cohort / 20, 0.3, 0.2, drawn)
        before, state = state, method.server(state, sums, key)
        change = torch.cat(
            [leaf.flatten() for leaf in trees.leaves(trees.sub(state["weights"], before["weights"]))]
        )
        np.testing.assert_allclose(change.numpy(), mean, rtol=1e-5, atol=1e-7)  # clipping keeps a margin
        assert state[CLIP_NORM].item() == pytest.approx(next_norm, rel=1e-12)
        norm = next_norm


def test_adaptive_norm_splits_the_budget():
    noise = UserNoise(1.5, 1.0, 100, 0.5)
    assert noise.count_noise == 5
    assert noise.sum_noise == pytest.approx((1.5**-2 - 10**-2) ** -0.5)
    assert noise.sum_noise**-2 + (2 * noise.count_noise) ** -2 == pytest.approx(1.5**-2)
    assert UserNoise(1.5, 1.0, 100).sum_noise == 1.5


@pytest.mark.parametrize(("quantile", "first"), [(0.5, 0.001), (0.8, 50.0)])
def test_adaptive_norm_converges_to_the_quantile(quantile, first):
    """Norms of uploads are log-normal. So the quantile is known."""
    noise = UserNoise(1.0, first, 1000, quantile)
    rng, norm, seen = np.random.default_rng(0), torch.tensor(first, dtype=torch.float64), []
    for _ in range(400):
        norms = rng.lognormal(0, 0.5, rng.binomial(10_000, 0.1))
        count = (norms <= norm.item()).sum() - len(norms) / 2 + rng.normal() * noise.count_noise
        norm = noise.next_norm(norm, torch.tensor(count, dtype=torch.float64))
        seen.append(norm.item())
    expected = stats.lognorm(0.5).ppf(quantile)
    assert np.exp(np.mean(np.log(seen[-100:]))) == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_adaptive_norm_follows_the_clients_of_a_federation():
    """Norms that start too small and too large meet where half of all uploads are within."""
    ends = []
    for first in (0.005, 0.06):
        method = user_level(algorithm("fedavg", lr=0.01), TASK, UserNoise(0.0, first, 8, 0.5), "fedavg")
        trace, results = run(method, rounds=28, cohort=8)
        assert trace.rounds[0][CLIP_NORM] == first
        ends.append(np.mean([row[CLIP_NORM] for row in trace.rounds[-8:]]))
        within = [result.aggregate["within_norm"].item() / 8 + 0.5 for result in results[-8:]]
        assert np.mean(within) == pytest.approx(0.5, abs=0.15)
    assert ends[0] == pytest.approx(ends[1], rel=0.2)


# --- resumes, streams, figures


class Interrupted(BaseException):
    pass


METHOD = ("scaffold", UserNoise(0.5, 0.3, 6, 0.5, "some digest"))
SHARED = UserNoise(0.5, 0.3, 6, 0.5, "some digest", quorum=4)


def interrupted_and_resumed(tmp_path, rounds, noise=METHOD[1], cohorts="poisson"):
    method = user_level(algorithm(METHOD[0]), TASK, noise, METHOD[0])

    def interrupt(done):
        interrupt.total += done
        if interrupt.total == 3:
            raise Interrupted

    interrupt.total = 0
    options = {"checkpoint": tmp_path / "checkpoint.safetensors", "cohort": 6, "cohorts": cohorts}
    with pytest.raises(Interrupted):
        run(method, rounds=rounds, on_round=interrupt, **options)
    return run(method, rounds=rounds, **options)[0]


@pytest.mark.parametrize(("noise", "cohorts"), [(METHOD[1], "poisson"), (SHARED, "fixed")])
def test_interrupted_run_ends_bit_identical(tmp_path, noise, cohorts):
    method = user_level(algorithm(METHOD[0]), TASK, noise, METHOD[0])
    whole, _ = run(method, rounds=6, cohort=6, cohorts=cohorts)
    resumed = interrupted_and_resumed(tmp_path, 6, noise, cohorts)
    assert_same(whole.weights, resumed.weights)
    assert whole.rounds == resumed.rounds


@pytest.mark.slow
def test_no_noise_is_drawn_twice(tmp_path, monkeypatch):
    """The addresses of all streams of a run, and of one that is interrupted and resumed."""
    opened = []
    for kind in ("torch", "numpy"):
        original = getattr(Key, kind)
        monkeypatch.setattr(
            Key, kind, lambda key, original=original: opened.append(key.path) or original(key)
        )
    mark = Key(0).fold("dp noise").path[0]
    method = user_level(algorithm(METHOD[0]), TASK, METHOD[1], METHOD[0])

    def streams(work):
        opened.clear()
        work()
        noise = [path for path in opened if mark in path]
        return noise, set(opened) - set(noise)

    noise, others = streams(lambda: run(method, rounds=6, cohort=6, cohorts="poisson"))
    parts = 1 + 2 * len(trees.leaves(TASK.init(Key(0))))  # the count, the model, the control
    # The figures of a round read its noise a second time. They release nothing.
    assert len(set(noise)) == 6 * parts
    server = Key(0).fold("server").path[0]
    assert {path[0] for path in noise} == {server}
    assert {path[1] for path in noise} == set(range(1, 7)), "each round has streams of its own"
    assert server not in {path[0] for path in others if path}, "nothing else draws below the server's stream"
    resumed, _ = streams(lambda: interrupted_and_resumed(tmp_path, 6))
    assert set(resumed) == set(noise)
    changed = METHOD[1].__class__(0.5, 0.3, 6, 0.5, "another digest")
    other = user_level(algorithm(METHOD[0]), TASK, changed, METHOD[0])
    assert not set(noise) & set(streams(lambda: run(other, rounds=6, cohort=6, cohorts="poisson"))[0])


@pytest.mark.slow
def test_no_client_draws_noise_twice(tmp_path, monkeypatch):
    """The addresses of what clients draw: their own, in each round, also after a resume."""
    drawn = []
    draw = Words.draw
    monkeypatch.setattr(Words, "draw", lambda words, key: drawn.append(key.path) or draw(words, key))

    def shares(work):
        drawn.clear()
        work()
        client = Key(0).fold("client").path[0]
        return [path for path in drawn if path[0] == client]  # not those of templates

    method = user_level(algorithm(METHOD[0]), TASK, SHARED, METHOD[0])
    whole = shares(lambda: run(method, rounds=6, cohort=6))
    assert len(whole) == len(set(whole)) == 6 * 6
    assert {path[1] for path in whole} == set(range(1, 7))
    mark = Key(0).fold("dp noise").path[0]
    assert all(path.count(mark) == 1 for path in whole)
    resumed = shares(lambda: interrupted_and_resumed(tmp_path, 6, SHARED, "fixed"))
    assert set(resumed) == set(whole)
    other = user_level(algorithm(METHOD[0]), TASK, replace(SHARED, stream="another digest"), METHOD[0])
    assert not set(whole) & set(shares(lambda: run(other, rounds=6, cohort=6)))


@pytest.mark.parametrize(
    "name", [n if n in ("dsfl", "fedgen") else pytest.param(n, marks=pytest.mark.slow) for n in PROTECTED]
)
def test_clients_of_every_algorithm_upload_noised_words(name):
    """Four bytes for each number of an upload, and a sum near that of central noise."""
    ends = []
    for quorum in (None, 3):
        noise = UserNoise(1e-3, 0.05, 4, quorum=quorum)
        trace, (result,) = run(user_level(algorithm(name), TASK, noise, name), rounds=1)
        assert not result.refused
        numbers = sum(leaf.numel() for leaf in trees.leaves(result.aggregate))
        assert sum(result.uplink_bytes.values()) == 4 * 4 * numbers
        ends.append((numbers, trace.weights))
    assert ends[0][0] == ends[1][0]
    for a, b in zip(trees.leaves(ends[0][1]), trees.leaves(ends[1][1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02)


@pytest.mark.parametrize("quantile", [None, 0.5])
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_clients_without_noise_give_the_results_of_central_noise(name, quantile):
    """Words are as fine as single precision, so rounding is all that differs."""
    central = user_level(algorithm(name), TASK, UserNoise(0.0, 0.05, 4, quantile), name)
    shared = user_level(algorithm(name), TASK, UserNoise(0.0, 0.05, 4, quantile, quorum=3), name)
    one, _ = run(central)
    other, _ = run(shared)
    for a, b in zip(trees.leaves(one.weights), trees.leaves(other.weights), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3 * 4 * 0.05 / 2**24 + 1e-6)
    if quantile:
        assert [row[CLIP_NORM] for row in one.rounds] == [row[CLIP_NORM] for row in other.rounds]


@pytest.mark.parametrize("z", [0.01, 0.1])
def test_figures_of_clients_noise_are_close_to_the_real_ones(z):
    """Without noise, the same round shows the sum that only the clients' noise hides."""
    sums, rows = [], []
    for noise in (z, 0.0):
        method = user_level(algorithm("fedavg"), TASK, UserNoise(noise, 0.05, 8, quorum=5), "fedavg")
        trace, ((aggregate, *_),) = run(method, rounds=1, cohort=8)
        sums.append(aggregate[NOISED_WORDS].double())
        rows.append(trace.rounds[0])
    noised, clean = sums
    real = clean.norm() / (noised - clean).norm()
    assert rows[0][SIGNAL_TO_NOISE] == pytest.approx(real.item(), rel=0.1)
    cosine = torch.cosine_similarity(noised, clean, dim=0)
    assert rows[0][NOISED_COSINE] == pytest.approx(cosine.item(), rel=0.05)
    assert SIGNAL_TO_NOISE not in rows[1]


def test_sums_that_noise_hides_have_figures_of_zero():
    assert estimated_figures(5.0, 4.0) == {SIGNAL_TO_NOISE: 0.5, NOISED_COSINE: math.sqrt(0.2)}
    assert estimated_figures(3.9, 4.0) == {SIGNAL_TO_NOISE: 0.0, NOISED_COSINE: 0.0}


def test_clients_noise_has_the_variance_of_their_number():
    """One round from one start, with noise and without: the difference of the models is the noise."""
    z, norm, cohort, quorum = 2.0, 0.05, 8, 5
    ends = []
    for noise in (z, 0.0):
        method = user_level(
            algorithm("fedavg"), TASK, UserNoise(noise, norm, cohort, quorum=quorum), "fedavg"
        )
        trace, _ = run(method, rounds=1, cohort=cohort)
        ends.append(torch.cat([leaf.double().flatten() for leaf in trees.leaves(trace.weights)]))
    noise = (ends[0] - ends[1]) * cohort / (z * norm * math.sqrt(cohort / quorum))
    assert stats.chi2(len(noise)).cdf(noise.square().sum()) == pytest.approx(0.5, abs=0.4999)
    assert stats.kstest(noise, "norm").pvalue > 1e-4


def test_round_without_a_quorum_is_skipped():
    """Half of the clients send nothing in the second round. State, memories and model stay as they were."""
    clients, seen = data(), []
    method = user_level(algorithm("scaffold"), TASK, UserNoise(0.3, 0.2, 6, quorum=4), "scaffold")

    def lose_some(program, tasks):
        if tasks[0].round == 2:
            del tasks[3:]

    inner = sequential(clients, quorum_reducers(NOISED_WORDS, 4))
    trace = federate(
        method,
        TASK.init(Key(1)),
        clients,
        SpyEngine(inner, on_round=lose_some),
        Schedule(3, 6, 4, local_steps=2),
        Key(5),
        lambda w: seen.append(w) or {"n": 0.0},
    )
    assert len(trace.rounds) == 3
    assert_same(seen[1], seen[2])
    assert not torch.equal(trees.leaves(seen[2])[0], trees.leaves(seen[3])[0])


def test_figures_compare_the_noised_sum_with_the_clean_one():
    method = user_level(algorithm("fedavg"), TASK, UserNoise(0.05, 0.2, 4), "fedavg")
    seen = []
    clients = data()
    spy = SpyEngine(sequential(clients))
    trace = federate(
        method,
        TASK.init(Key(1)),
        clients,
        spy,
        Schedule(3, 4, 4, local_steps=2),
        Key(5),
        lambda w: seen.append(w) or {"n": 0.0},
    )
    for row, result, (before, after) in zip(trace.rounds, spy.results, itertools.pairwise(seen), strict=True):
        clean, noised = (
            torch.cat([leaf.double().flatten() for leaf in trees.leaves(tree)])
            for tree in (result.aggregate["delta"], trees.scale(4.0, trees.sub(after, before)))
        )
        ratio = (clean.norm() / (noised - clean).norm()).item()
        assert row[SIGNAL_TO_NOISE] == pytest.approx(ratio, rel=1e-3)
        cosine = torch.cosine_similarity(clean, noised, dim=0).item()
        assert row[NOISED_COSINE] == pytest.approx(cosine, rel=1e-3)
        assert 0.3 < cosine < 1


def test_census_that_stays_exact_is_named():
    def named(name):
        return exact_census(user_level(algorithm(name), TASK, UserNoise(1.0, 1.0, 4), name))

    assert named("fedgen") == ["label_counts"]
    assert [named(name) for name in PROTECTED if name != "fedgen"] == [[]] * (len(PROTECTED) - 1)
