"""Generated content in clients: who gets what, how it counts, and what a config may ask for."""

import functools
import itertools

import numpy as np
import pytest
import torch
from support.opened import open_run

from genfl import config, pipeline
from genfl.algorithms.base import HeldSamples
from genfl.config import Content
from genfl.data.budget import budget, deal
from genfl.data.sources import DATASETS, DIGIT_NAMES
from genfl.data.wire import decode_samples, encode_samples
from genfl.errors import InputError
from genfl.results.summarise import bytes_to_clients
from genfl.rng import Key
from genfl.stages.allocations import allocate
from genfl.stages.federate import methods as federated
from genfl.stages.federate.generated_content import check_content
from genfl.storage import read_json, sha256

CONFIG = """
name: content
seeds: [0, 1]
data: {name: digits, partition: {kind: dirichlet, alpha: 0.3, clients: 6, min_size: 5}}
prompts: {style: label, per_label: 12}
generator: {steps: 1}
model: {name: mlp, width: 8}
content: {samples: 60, budget: inverse}
pretrain: {epochs: 1}
federate: {rounds: 3, clients_per_round: 4, local: {steps: 4, batch_size: 8}, evaluate_every: 1}
methods:
  plain: {algorithm: fedavg}
  mixed: {algorithm: fedavg, data: mixed}
  p2g: {algorithm: fedavg, data: p2g}
  equal: {algorithm: fedavg, data: mixed, content: {budget: equal, samples: 120, by: server}}
  half: {algorithm: fedavg, data: mixed, content: {clients: 0.5, weight: private}}
  chosen: {algorithm: fedavg, data: mixed, content: {filter: {share: 0.5, from_round: 2, by_class: true}}}
  alone: {algorithm: fedavg, data: generated, content: {budget: equal}}
"""
POOL = torch.arange(10).repeat_interleave(12)
"""The labels of the synthetic data."""


def synthetic():
    """Inputs that are nobody's: each has its number as its first pixel, larger than any real one's."""
    x = torch.zeros(120, 1, 8, 8)
    x[:, 0, 0, 0] = 100 + torch.arange(120)
    return x, POOL


@pytest.fixture
def run(tmp_path):
    return a_run(tmp_path)


def a_run(folder, *overrides):
    """Opens a run of which the labels are known, and how many samples were generated."""
    run = open_run(config.parse(CONFIG, overrides), folder)
    run.record("labels", {"found": sorted(DIGIT_NAMES)})
    for name in ("generate", "pretrain"):
        run.record(name, {"samples": 120, "bytes": 5000})
    return run


def given(data):
    """For each client the numbers of the generated samples it holds."""
    rows = [data.batch(k, torch.arange(data.samples(k)))["x"][:, 0, 0, 0] for k in range(len(data))]
    return [[int(value) - 100 for value in of if value >= 100] for of in rows]


# --- who gets what


def test_every_sample_is_dealt_to_one_client_and_every_client_gets_its_share():
    shares = np.array([[3, 0, 1], [2, 4, 0], [0, 0, 0]])
    y = torch.tensor([0, 1, 2] * 6)
    parts = deal(y, shares, seed=0)
    assert [np.bincount(y[part], minlength=3).tolist() for part in parts] == shares.tolist()
    every = np.concatenate(parts)
    assert len(set(every.tolist())) == len(every)
    again, other = deal(y, shares, seed=0), deal(y, shares, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_clients_hold_their_own_and_what_the_budget_gives_them(run):
    own = run.private(0).client_info_table["label_counts"].numpy()
    data = run.training_data("mixed", 0, synthetic())
    found = [np.bincount(POOL[numbers], minlength=10).tolist() for numbers in given(data)]
    assert found == budget("inverse", 60, own).tolist()
    assert data.count("generated") == 60
    assert data.client_info_table["label_counts"].tolist() == (own + found).tolist()
    assert data.client_info_table["samples"].tolist() == (own + found).sum(1).tolist()
    assert given(data) != given(run.training_data("mixed", 1, synthetic()))


def test_what_a_method_does_not_say_is_as_in_the_section(run):
    methods = run.config.methods
    assert methods["plain"].content is None
    assert methods["mixed"].content == methods["p2g"].content == run.config.content
    assert (methods["half"].content.samples, methods["half"].content.budget) == (60, "inverse")
    assert (methods["equal"].content.samples, methods["equal"].content.budget) == (120, "equal")
    again = config.validate(config.plain(config.dump(run.config)))
    assert again == run.config


def test_a_share_of_the_clients_may_generate(run):
    data = run.training_data("half", 0, synthetic())
    counts = list(map(len, given(data)))
    everyone = budget("inverse", 60, run.label_counts(0)).sum(1).tolist()
    drawn = [number for number, count in enumerate(counts) if count]
    assert [counts[number] for number in drawn] == [everyone[number] for number in drawn]
    assert len(drawn) <= 3  # inverse gives the largest client nothing
    own = run.private(0).client_info_table["samples"]
    assert data.client_info_table["samples"].tolist() == own.tolist(), "weight: private"
    others = list(map(len, given(run.training_data("half", 1, synthetic()))))
    assert [count > 0 for count in counts] != [count > 0 for count in others]


@pytest.mark.parametrize("kind", ["equal", "inverse", "water_filling"])
@pytest.mark.parametrize("size", [{"samples": 240}, {"per_client": 40}])
def test_a_client_that_generates_gets_its_number_whoever_else_does(kind, size):
    """FedGC, Table 13: with half of the clients, each of them has as many samples as before."""
    counts = np.random.default_rng(0).integers(0, 30, (6, 10))
    pools = np.full(10, 12)
    everyone = allocate(Content(budget=kind, **size), counts, pools, 0).pooled
    assert everyone.tolist() == budget(kind, 240, counts).tolist()
    if kind != "inverse":
        assert everyone.sum(1).tolist() == [40] * 6
    half = allocate(Content(budget=kind, clients=0.5, **size), counts, pools, 0).pooled
    drawn = np.sort(Key(0).fold("generating clients").numpy().choice(6, 3, replace=False))
    assert half[drawn].tolist() == everyone[drawn].tolist()
    assert half.sum() == everyone[drawn].sum()


def test_per_client_and_samples_replace_each_other(run):
    method = "methods.mixed.content.per_client=5"
    content = config.parse(CONFIG, [method]).methods["mixed"].content
    assert (content.samples, content.per_client, content.budget) == (None, 5, "inverse")
    other = config.parse(CONFIG, ["content={per_client: 5}"])
    assert [other.methods[name].content.samples for name in ("mixed", "equal")] == [None, 120]
    assert [other.methods[name].content.per_client for name in ("mixed", "equal")] == [5, None]
    again = config.validate(config.plain(config.dump(other)))
    assert again == other
    with pytest.raises(InputError, match=r"^content\.per_client: samples is set, too; give"):
        config.parse(CONFIG, ["content.per_client=5"])


def test_each_seed_draws_its_generating_clients(tmp_path):
    run = a_run(tmp_path, "content.clients=0.25")
    content, counts = run.config.methods["mixed"].content, np.ones((20, 10), dtype=int)
    drawn = {
        tuple(np.flatnonzero(allocate(content, counts, np.full(10, 12), seed).pooled.sum(1)))
        for seed in range(5)
    }
    assert len(drawn) > 1
    assert {len(clients) for clients in drawn} == {5}


def test_generated_data_alone_has_no_private_sample(run):
    data = run.training_data("alone", 0, synthetic())
    assert [part.name for part in data.parts] == ["generated"]
    assert [data.part_sizes(k) for k in range(6)] == [(10,)] * 6
    assert sorted(itertools.chain(*given(data))) != list(range(120))


def test_without_a_number_all_there_is_is_dealt_out(run):
    run = a_run(run.folder, "content={}", "methods.half.content={weight: private}")
    data = run.training_data("half", 0, synthetic())
    assert sorted(itertools.chain(*given(data))) == list(range(120))


def test_what_tests_see_is_never_generated(run):
    run = a_run(run.folder, "data.partition.test=0.3")
    held = run.held_back(0)[1]
    assert held.count("generated") == 0
    assert held.x.max() < 100
    kept = run.training_data("mixed", 0, synthetic())
    assert kept.count("generated") == 60


# --- how it is trained on


def test_methods_differ_in_order_and_filter_and_in_nothing_else(run):
    methods, federation = run.config.methods, run.config.federate
    schedules = {name: federated.schedule(federation, method) for name, method in methods.items()}
    assert schedules["mixed"] == schedules["plain"] == schedules["equal"] == schedules["alone"]
    assert schedules["p2g"].order == (0, 1), "private samples first"
    task = run.task
    algorithms = {
        name: federated.build_algorithm(federation, method, task, {}) for name, method in methods.items()
    }
    selects = {name: algorithm.client.select for name, algorithm in algorithms.items()}
    assert [name for name, select in selects.items() if select] == ["chosen"]
    x, _ = synthetic()
    generated = {"x": x[:6], "y": torch.tensor([0, 0, 0, 0, 1, 1])}

    def examples(rows):
        return {name: value[rows - 4] for name, value in generated.items()}

    message, kept = {"weights": task.init(Key(0))}, []
    for number in (1, 2, 3):
        private, chosen = selects["chosen"](message, HeldSamples(number, (4, 6), examples))
        assert private.tolist() == [0, 1, 2, 3]
        kept.append(examples(chosen)["y"].tolist())
    assert kept == [[0, 0, 0, 0, 1, 1], [0, 0, 1], [0, 0, 1]], "half of each class, from round 2"


def test_the_server_sends_what_it_generates_for_clients_and_clients_nothing(run):
    methods = run.config.methods
    sent = functools.partial(bytes_to_clients, clients=6, pool=120, data=run.data, classes=10)
    assert sent(methods["mixed"], generated_samples=60) == 0
    # 64 numbers of four bytes and a label of one, however large the generator's files are
    assert sent(methods["equal"], generated_samples=120) == 120 * (64 * 4 + 1)
    assert sent(methods["equal"], generated_samples=30) == 30 * (64 * 4 + 1)


def test_bytes_of_server_side_generation_are_what_clients_decode(run):
    """Encoded for each client, counted, decoded: the same bits that it trains on."""
    x, y = synthetic()
    trained, counts = run.training_data("equal", 0, (x, y)), run.label_counts(0).sum(1)
    received, size = [], 0
    for client in range(6):
        made = trained.batch(client, torch.arange(int(counts[client]), int(counts[client]) + 20))
        rows = (made["x"][:, 0, 0, 0] - 100).long()  # each sample has its number
        message = encode_samples(x[rows], y[rows], 10)
        decoded = decode_samples(message, x.shape[1:], x.dtype, 10)
        assert torch.equal(decoded[0], made["x"])
        assert torch.equal(decoded[1], made["y"])
        received += rows.tolist()
        size += len(message)
    assert sorted(received) == list(range(120))
    equal = run.config.methods["equal"]
    assert bytes_to_clients(equal, 6, trained.count("generated"), 120, run.data, 10) == size


# --- what cannot be


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "content.samples=600",
            "methods.mixed.content.samples: with seed 0, clients need",
        ),
        (
            "methods.alone.content.samples=5",
            "methods.alone.data: with seed 0, client 5 gets no",
        ),
        ("methods.alone.content.budget=inverse", "methods.alone.data: with seed"),
    ],
)
def test_more_than_there_is_and_clients_with_nothing_are_refused_before_anything_works(
    tmp_path, override, line
):
    with pytest.raises(InputError) as caught:
        open_run(config.parse(CONFIG, [override]), tmp_path / "run").check("federate")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("methods.plain.content={samples: 3}", "methods.plain.content: clients train on private data only"),
        ("content.budget=fair", "content.budget: should be 'equal', 'inverse' or 'water_filling'"),
        ("content.clients=0", "content.clients: should be greater than 0"),
        (
            "methods.mixed.content={sample: 3}",
            "methods.mixed.content.sample: unknown key; did you mean",
        ),
        (
            "methods.mixed.content.filter={share: 2}",
            "methods.mixed.content.filter.share: should be less",
        ),
        ("methods.mixed.content=3", "methods.mixed.content: should be a mapping of keys to values, not 3"),
        (
            "methods.chosen.content.filter.from_round=4",
            "methods.chosen.content.filter.from_round: 4, but there are 3 rounds",
        ),
        ("federate.local.steps=1", "methods.p2g.data: p2g needs at least two steps a round"),
        ("methods={plain: {algorithm: fedavg}}", "content: no method trains on generated data"),
        (
            "methods.p2g.content={budget: water_filling, samples: null}",
            "methods.p2g.content.samples: required with budget water_filling",
        ),
        ("content=3", "content: should be a mapping of keys to values, not 3"),
        (
            "methods.mixed.data=g2g",
            "methods.mixed.data: should be 'private', 'generated',",
        ),
    ],
)
def test_mistakes_are_named(override, line):
    with pytest.raises(InputError) as caught:
        config.parse(CONFIG, [override])
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "options"),
    [("fedet", ["client_models=[{name: mlp, width: 4}]"]), ("dsfl", [])],
)
def test_methods_that_send_no_global_model_cannot_filter(tmp_path, method, options):
    arm = f"methods.mixed={{algorithm: {method}, data: mixed, content: {{filter: {{share: 0.5}}}}}}"
    with pytest.raises(InputError, match=rf"^methods\.mixed\.content\.filter: {method} does not send"):
        open_run(config.parse(CONFIG, [arm, *options]), tmp_path / "run").check("federate")


def test_samples_that_were_left_out_lower_the_largest_shares(run, caplog):
    """Two of each class for each of six clients are asked for, and of one class there are five."""
    x, y = synthetic()
    kept = torch.ones(120, dtype=torch.bool)
    kept[:7] = False
    run = a_run(run.folder, "content={samples: 120}")
    data = run.training_data("mixed", 0, (x[kept], y[kept]))
    numbers = given(data)
    assert sorted(itertools.chain(*numbers)) == list(range(7, 120))
    of_short = [sum(number < 12 for number in own) for own in numbers]
    assert sorted(of_short) == [0, 1, 1, 1, 1, 1]
    assert "methods.mixed: clients get 7 generated samples less than content.samples" in caplog.text


def test_class_names_may_be_spelt_in_two_ways(tmp_path, monkeypatch):
    data = DATASETS["digits"].load()
    names = [name.replace("one", "e\u0301") for name in data.train.labels]
    decomposed = data._replace(train=data.train._replace(labels=names))
    monkeypatch.setitem(DATASETS, "decomposed", DATASETS["digits"]._replace(load=lambda: decomposed))
    run = open_run(config.parse(CONFIG, ["data.name=decomposed"]), tmp_path)
    check_content(run.step("federate").inputs, run.context)


# --- a run


@pytest.mark.slow
def test_a_run_with_all_of_it(tmp_path):
    summary = pipeline.execute(config.parse(CONFIG, ["seeds=[0]"]), tmp_path)
    methods = summary["methods"]
    samples = {name: methods[name]["generated_samples"] for name in methods if name != "synthetic_only"}
    assert samples == {
        "plain": 0,
        "mixed": 60,
        "p2g": 60,
        "equal": 120,
        "half": 15,  # what the inverse budget gives these three of all clients
        "chosen": 60,
        "alone": 60,
    }
    discovery = methods["mixed"]["setup_bytes"]
    assert methods["equal"]["setup_bytes"] - discovery == 120 * (64 * 4 + 1)
    assert methods["plain"]["setup_bytes"] == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "generated data, equal" in page
    assert "mixed (inverse budget; 50 % of the clients; weight by private samples alone)" in page
    assert "50 % of each class, one at least, kept from round 2" in page
    assert methods["half"]["content"]["weight"] == "private"
    models = {sha256(tmp_path / "federate" / name / "seed-0" / "model.safetensors") for name in samples}
    assert len(models) == len(samples), "no two of them are the same federation"
    again = pipeline.execute(
        config.parse(CONFIG, ["seeds=[0]", "methods.p2g.content={samples: 30}"]), tmp_path, update=True
    )
    assert again["methods"]["p2g"]["generated_samples"] == 30
    assert again["methods"]["mixed"]["curve"] == methods["mixed"]["curve"]
    assert read_json(tmp_path / "summary.json")["methods"]["p2g"]["generated_samples"] == 30
