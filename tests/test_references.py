"""The references, against the training they stand for, written out."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from support.opened import open_run

from genfl import config, references, trees
from genfl.algorithms.fedavg import fedavg
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule, plan
from genfl.data.sources import DATASETS, DIGIT_NAMES, grey_image, to_image
from genfl.engines.in_process import InProcess, sequential
from genfl.engines.pool import WorkerPool
from genfl.errors import InputError
from genfl.generators.classify import PAIRS_PER_CALL, check_classifier, label_scores
from genfl.generators.image import StableDiffusion
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import Stack
from genfl.rng import Key
from genfl.simulation import Trace, federate
from genfl.stages import generate
from genfl.stages.federate import setting, trial, zero_shot

SIZES = (3, 9, 20)
SCHEDULE = Schedule(rounds=4, clients_per_round=2, batch_size=4, local_steps=3, evaluate_every=2)


def soft_regression():
    return classification(lambda: Stack(torch.nn.Flatten(), torch.nn.Linear(5, 3)), (5,))


@pytest.fixture
def clients(float64):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(sum(SIZES), 5, generator=rng), torch.randint(3, (sum(SIZES),), generator=rng)
    return ClientData(x, y, np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1]), 3)


def train(federation, task, **options):
    return federate(
        fedavg(task, LocalSGD(0.3, momentum=0.5, weight_decay=0.01)),
        task.init(Key(1)),
        federation.clients,
        sequential(federation.clients),
        federation.schedule,
        federation.key,
        lambda weights: {"norm": trees.square_norm(weights["params"]).item()},
        **options,
    )


# --- local and centralised


def test_local_is_plain_sgd_on_each_clients_data(clients):
    task = soft_regression()
    federations = references.local(clients, SCHEDULE, Key(7))
    assert len(federations) == len(SIZES)
    for k, federation in enumerate(federations):
        first = sum(SIZES[:k])
        x, y = (part[first : first + SIZES[k]] for part in (clients.x, clients.y))
        start = task.init(Key(1))["params"]
        w, b = start.values()
        for number in range(1, 5):
            v_w, v_b = torch.zeros_like(w), torch.zeros_like(b)
            rng = federation.key.fold("plan", number, 0).numpy()
            for rows in plan(SIZES[k], 4, 3, 1, rng):
                residual = (x[rows] @ w.T + b).softmax(1)
                residual[torch.arange(len(rows)), y[rows]] -= 1
                v_w = 0.5 * v_w + residual.T @ x[rows] / len(rows) + 0.01 * w
                v_b = 0.5 * v_b + residual.mean(0) + 0.01 * b
                w, b = w - 0.3 * v_w, b - 0.3 * v_b
        trained = train(federation, task).weights["params"]
        for found, by_hand in zip(trained.values(), (w, b), strict=True):
            torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-12)
    assert len({federation.key for federation in federations}) == len(SIZES)


def test_centralised_holds_everything_and_works_as_much_as_a_cohort(clients):
    (federation,) = references.centralised(clients, SCHEDULE, Key(7))
    assert federation.clients.samples(0) == len(federation.clients.x) == sum(SIZES)
    assert torch.equal(federation.clients.x, clients.x)
    assert federation.schedule.local_steps == 2 * 3
    assert federation.schedule.clients_per_round == 1
    # in epochs, of batches of 4: 2 · 1, 2 · 2 and 2 · 5 steps, and two clients a round
    counted = Schedule(4, 2, batch_size=4, local_epochs=2)
    (federation,) = references.centralised(clients, counted, Key(7))
    assert federation.schedule.local_steps == round(2 * (2 + 4 + 10) / 3)


def test_with_one_client_centralised_and_local_are_the_federation(clients):
    task, one = soft_regression(), clients.as_one(range(3))
    schedule = Schedule(4, 1, batch_size=4, local_steps=3)
    whole = train(references.FederationPlan(one, schedule, Key(7)), task)
    (central,) = references.centralised(one, schedule, Key(7))
    assert train(central, task).evaluations == whole.evaluations
    (alone,) = references.local(one, schedule, Key(7))
    assert train(alone._replace(key=Key(7)), task).evaluations == whole.evaluations


def test_the_figures_of_a_reference_are_means_over_its_clients():
    def trace(accuracies, losses, refused):
        evaluations = [
            {"round": n, "accuracy": a, "macro_f1": a / 2, "loss": loss}
            for n, a, loss in zip((0, 5), accuracies, losses, strict=True)
        ]
        rounds = [{"round": n, "uplink_bytes": 9, "downlink_bytes": 9, "refused": refused} for n in (1, 2)]
        return Trace({}, evaluations, rounds)

    found = references.mean([trace((0.2, 0.4), (1.0, 2.0), 0), trace((0.4, 1.0), (3.0, None), 1)])
    assert found["evaluations"] == [
        {"round": 0, "accuracy": pytest.approx(0.3), "macro_f1": pytest.approx(0.15), "loss": 2.0},
        {"round": 5, "accuracy": pytest.approx(0.7), "macro_f1": pytest.approx(0.35), "loss": None},
    ]
    nothing_sent = {"uplink_bytes": 0, "downlink_bytes": 0, "refused": 1, "diversity": None}
    assert found["rounds"] == [{"round": n, **nothing_sent} for n in (1, 2)]


# --- what clients hold

CONFIG = """
name: references
seeds: [0, 1]
data: {name: digits, partition: {kind: iid, clients: 4}}
prompts: {style: single, per_label: 3}
generator: {steps: 1}
model: {name: mlp, width: 8}
federate: {rounds: 4, clients_per_round: 2, local: {steps: 2}, evaluate_every: 2, checkpoint_every: 2}
methods:
  fedavg: {algorithm: fedavg}
  local: {algorithm: local}
  finetuned: {algorithm: local, start: pretrained}
  local+generated: {algorithm: local, data: mixed}
  centralised: {algorithm: centralised}
  centralised_synthetic: {algorithm: centralised, data: generated}
"""


@pytest.fixture
def run(tmp_path):
    """A run whose labels are known."""
    return a_run(tmp_path)


def a_run(folder, *overrides):
    run = open_run(config.parse(CONFIG, overrides), folder)
    run.record("labels", {"found": sorted(DIGIT_NAMES)})
    for name in ("generate", "pretrain"):
        run.record(name, {})
    return run


def rows(x):
    return {tuple(row) for row in x.flatten(1).tolist()}


def synthetic():
    """Thirty inputs that are nobody's: their pixels are larger than any real one's."""
    rng = torch.Generator().manual_seed(1)
    return 2 + torch.rand(30, 1, 8, 8, generator=rng), torch.arange(30) % 10


def test_generated_data_holds_no_private_row_and_mixed_data_both(run):
    x, y = synthetic()
    private, made, mixed = (
        run.training_data(name, 0, synthetic())
        for name in ("local", "centralised_synthetic", "local+generated")
    )
    assert len(private) == len(made) == len(mixed) == 4
    assert rows(made.x) == rows(x)
    assert sorted(made.samples(k) for k in range(4)) == [7, 7, 8, 8]
    for k in range(4):
        every = [torch.arange(data.samples(k)) for data in (private, made, mixed)]
        parts = [data.batch(k, of)["x"] for data, of in zip((private, made, mixed), every, strict=True)]
        assert rows(parts[2]) == rows(parts[0]) | rows(parts[1])
        for fact in ("samples", "label_counts"):
            both = private.client_info(k)[fact] + made.client_info(k)[fact]
            assert mixed.client_info(k)[fact].tolist() == both.tolist()
    label = {tuple(row): int(of) for row, of in zip(x.flatten(1).tolist(), y, strict=True)}
    assert all(
        label[tuple(row)] == int(of) for row, of in zip(made.x.flatten(1).tolist(), made.y, strict=True)
    )
    other = run.training_data("centralised_synthetic", 1, synthetic())
    assert not torch.equal(made.rows, other.rows), "another seed deals them out otherwise"


# --- the stage


def prepared(monkeypatch):
    """Gives the stage a synthetic data set and a pre-trained model without making them."""
    monkeypatch.setattr(generate, "read_synthetic", lambda folder, data, labels: synthetic())
    monkeypatch.setattr(
        setting, "read_weights", lambda folder, task, seed, source: task.init(Key(seed).fold("warm"))
    )


@pytest.mark.slow
def test_no_reference_trains_on_a_test_sample_nor_on_data_it_was_not_given(run, monkeypatch):
    prepared(monkeypatch)
    seen = {}
    batch = ClientData.batch

    def watched(data, client, of, key=None):
        found = batch(data, client, of, key)
        seen[name] = seen.get(name, set()) | rows(found["x"])
        return found

    monkeypatch.setattr(ClientData, "batch", watched)
    for name in run.config.methods:
        only = a_run(run.folder / name)
        alone = only.config.model_copy(update={"methods": {name: run.config.methods[name]}})
        open_run(alone, only.folder).execute("federate")
    digits = DATASETS["digits"].load()
    train, test, made = rows(digits.train.x), rows(digits.test.x) - rows(digits.train.x), rows(synthetic()[0])
    assert not set().union(*seen.values()) & test
    assert seen["centralised"] <= train
    assert seen["local"] <= train
    assert seen["centralised_synthetic"] <= made
    assert seen["local+generated"] & made
    assert seen["local+generated"] & train


@pytest.mark.slow
def test_what_the_stage_gives_for_references(run, monkeypatch):
    prepared(monkeypatch)
    results = run.execute("federate")["methods"]
    for name in ("local", "finetuned", "centralised"):
        for seed in ("0", "1"):
            trace = results[name][seed]
            assert [e["round"] for e in trace["evaluations"]] == [0, 2, 4]
            assert len(trace["rounds"]) == 4
            for row in trace["rounds"]:
                assert row.pop("round") > 0
                assert row == {"uplink_bytes": 0, "downlink_bytes": 0, "refused": 0, "diversity": None}
    own = [
        json.loads((run.folder / f"federate/local/seed-0-client-{k}/trace.json").read_text())
        for k in range(4)
    ]
    for n, evaluation in enumerate(results["local"]["0"]["evaluations"]):
        for score in ("accuracy", "macro_f1", "loss"):
            mean = sum(trace["evaluations"][n][score] for trace in own) / 4
            assert evaluation[score] == pytest.approx(mean, rel=1e-12)
    assert len({trace["evaluations"][-1]["loss"] for trace in own}) == 4
    # the same start for all of a kind, and the warm one for the others
    begun = {name: results[name]["0"]["evaluations"][0]["loss"] for name in results}
    assert begun["local"] == begun["centralised"] == begun["fedavg"] != begun["finetuned"]
    assert begun["finetuned"] == begun["synthetic_only"]


class Interrupted(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 9, 14, 42])
def test_an_interrupted_reference_ends_bit_identical_and_a_finished_one_is_read_back(
    tmp_path, monkeypatch, after
):
    prepared(monkeypatch)
    whole = a_run(tmp_path / "whole").execute("federate")["methods"]
    inner, worked = trial.federate, []

    def counted(*args, **options):
        advance = options.pop("on_round")

        def on_round(number):
            worked.append(number)
            if sum(worked) == after:
                raise Interrupted
            advance(number)

        return inner(*args, **options, on_round=on_round)

    run = a_run(tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(trial, "federate", counted)
        with pytest.raises(Interrupted):
            run.execute("federate")
    done, total, unit = run.progress("federate")
    assert after - 2 < done <= after
    # six methods of two seeds, four of them of one federation and three of four clients each
    assert (total, unit) == (4 * 2 * (3 + 3 * 4), "rounds")
    assert run.execute("federate")["methods"] == whole
    assert run.progress("federate")[:2] == (total, total)
    with monkeypatch.context() as patch:
        for engine in (InProcess, WorkerPool):
            patch.setattr(engine, "run", lambda *_: pytest.fail("it was trained again"))
        assert run.execute("federate")["methods"] == whole


@pytest.mark.slow
def test_folders_of_clients_that_are_no_more_are_deleted(run, monkeypatch):
    prepared(monkeypatch)
    run.execute("federate")
    before = {path.name for path in (run.folder / "federate/local").iterdir()}
    fewer = a_run(run.folder, "data.partition.clients=2", "seeds=[0]", "methods.finetuned.algorithm=fedprox")
    fewer.execute("federate")
    assert {path.name for path in (run.folder / "federate/local").iterdir()} == {
        "seed-0-client-0",
        "seed-0-client-1",
    }
    assert len(before) == 8
    assert [path.name for path in (run.folder / "federate/finetuned").iterdir()] == ["seed-0"]


def digests(run):
    return {name: run.trial_digest(name, 0) for name in run.config.methods}


def test_only_what_reads_what_was_generated_is_redone_with_it(run):
    before = digests(run)
    run.record("generate", {}, digest="another")
    redone = {name for name, digest in digests(run).items() if digest != before[name]}
    assert redone == {"local+generated", "centralised_synthetic", "finetuned"}


def test_only_what_starts_from_a_model_is_redone_with_it(run):
    before, otherwise = digests(run), a_run(run.folder, "pretrain.weight_decay=0.2")
    changed = {name for name, digest in digests(otherwise).items() if digest != before[name]}
    assert changed == {"finetuned"}


def test_every_seed_has_its_own_trials(run):
    for name in run.config.methods:
        assert run.trial_digest(name, 0) != run.trial_digest(name, 1), name


def test_cohorts_depend_on_neither_method_nor_start(tmp_path):
    run = a_run(tmp_path)
    clients = run.private(0)
    keys = {
        federation.key
        for name, method in run.config.methods.items()
        for start in ("random", "pretrained")
        if not method.reference
        for federation in trial.Trial(name, method.model_copy(update={"start": start}), 0).federations(
            run.setting, clients
        )
    }
    assert len(keys) == 1


# --- what a config may say of them


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("methods.local.algorithm=[local]", None),
        (
            "methods.local.algorithm=[local, fedprox]",
            "methods.local.algorithm: local is not federated, so it cannot be combined; ",
        ),
        (
            "methods.x={algorithm: [fedavg, centralised]}",
            "methods.x.algorithm: centralised is not federated, so it cannot be combined; ",
        ),
        (
            "methods.local.algorithm=[local, local]",
            "methods.local.algorithm: local is not federated, so it cannot be combined; ",
        ),
        (
            "methods.x={algorithm: generator, start: pretrained}",
            "methods.x.start: the reference generator does not train a model",
        ),
        (
            "methods.x={algorithm: generator, data: mixed}",
            "methods.x.data: the reference generator does not train a model",
        ),
        ("methods.x={algorithm: {name: generator, samples: 0}}", "methods.x.algorithm.samples: should be gr"),
        (
            "methods.x={algorithm: {name: generator, sample: 1}}",
            "samples: unknown key; did you mean 'samples'",
        ),
        ("methods.x={algorithm: {name: local, mu: 1}}", "methods.x.algorithm.mu: unknown key; known: name"),
        ("methods.x={algorithm: centralized}", "there is no 'centralized'; did you mean 'centralised'?"),
        ("methods.x={algorithm: fedavgg}", "there is no 'fedavgg'; did you mean 'fedavg'?"),
        (
            "methods.x={algorithm: fedavg, data: synthetic}",
            "methods.x.data: should be 'private', 'generated',",
        ),
        ("methods={local: {algorithm: local}}", "methods: all of them are references; add a federated"),
    ],
)
def test_bad_combinations_are_one_clear_line(override, line):
    if line is None:
        assert config.parse(CONFIG, [override]).methods["local"].reference == "local"
        return
    with pytest.raises(InputError) as caught:
        config.parse(CONFIG, [override])
    assert line.replace("samples: unknown", "sample: unknown") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_check_refuses_what_the_schema_cannot_see(monkeypatch, tmp_path):
    def refused(*overrides):
        with pytest.raises(InputError) as caught:
            open_run(config.parse(CONFIG, overrides), tmp_path / "run").check("federate")
        return str(caught.value)

    few = "methods.centralised_synthetic.data: with seed 0, client 10 gets no generated sample"
    assert few in refused("prompts.per_label=1", "data.partition.clients=40")
    generator = "methods.g={algorithm: generator}"
    open_run(config.parse(CONFIG, [generator]), tmp_path / "run").check("federate")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline", "vae": [], "scheduler": []}')
    line = refused(generator, f"generator.model={tmp_path}")
    assert line == (
        "methods.g.algorithm: generator needs Stable Diffusion 1, 2, XL or 3, or a model like them;"
        f" {tmp_path} (FluxPipeline) has no unet"
    )
    digits = DATASETS["digits"]
    blind = digits.load()._replace(decode=None)
    monkeypatch.setitem(DATASETS, "unseen", digits._replace(load=lambda: blind))
    assert refused(generator, "data.name=unseen") == (
        "methods.g.algorithm: generator: classification needs images, but unseen has none;"
        " leave the method out"
    )
    with pytest.raises(InputError, match="FluxPipeline"):
        check_classifier(str(tmp_path))


@pytest.mark.parametrize(
    ("method", "uses"),
    [
        ("{algorithm: fedavg}", False),
        ("{algorithm: fedavg, start: pretrained}", True),
        ("{algorithm: fedavg, data: mixed}", True),
        ("{algorithm: fedprox, data: generated}", True),
        ("{algorithm: feddf}", True),
        ("{algorithm: [fedprox, fedadam]}", False),
        ("{algorithm: local}", False),
        ("{algorithm: local, start: pretrained}", True),
        ("{algorithm: centralised}", False),
        ("{algorithm: centralised, data: generated}", True),
        ("{algorithm: generator}", True),
    ],
)
def test_who_uses_the_generator(method, uses):
    assert bool(config.parse(CONFIG, [f"methods.x={method}"]).methods["x"].needs_generator) is uses


# --- the generator as a classifier

TEXTS = ("a seven", "two", "a bold six")


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def generator(request, tiny_stable_diffusion):
    made = StableDiffusion(str(tiny_stable_diffusion), steps=1)
    made.pipeline.scheduler.register_to_config(prediction_type=request.param)
    return made


def drawings(count=9):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)) for _ in range(count)]


@pytest.mark.slow
def test_the_logits_are_those_of_a_plain_loop_over_images_labels_and_draws(generator):
    from diffusers import DDPMScheduler

    pipeline, images, key = generator.pipeline, drawings(), Key(3)
    ours = label_scores(generator, images, lambda key: TEXTS, key, samples=4)
    assert ours.shape == (9, 3)
    assert len(images) * len(TEXTS) < PAIRS_PER_CALL
    ddpm = DDPMScheduler.from_config(pipeline.scheduler.config)
    with torch.no_grad():
        for image, found in zip(images, ours, strict=True):
            pixels = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR))
            x = torch.tensor(pixels / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
            latent = pipeline.vae.encode(x).latent_dist.mean * pipeline.vae.config.scaling_factor
            for text, logit in zip(TEXTS, found, strict=True):
                embeds, _ = pipeline.encode_prompt(text, "cpu", 1, False)
                errors = []
                for sample, t in enumerate((125, 375, 625, 875)):
                    t = torch.tensor([t])
                    rng = key.fold("noise", sample).torch()
                    noise = torch.randn(latent.shape[1:], generator=rng)[None]
                    noisy = ddpm.add_noise(latent, noise, t)
                    guess = pipeline.unet(noisy, t, encoder_hidden_states=embeds).sample
                    # a model of velocities errs by its velocity, weighed by the share of the signal
                    if ddpm.config.prediction_type == "v_prediction":
                        error = ddpm.alphas_cumprod[t] * (ddpm.get_velocity(latent, noise, t) - guess) ** 2
                    else:
                        error = (noise - guess) ** 2
                    errors.append(error.sum().item())
                assert logit.item() == pytest.approx(-np.mean(errors), rel=1e-4)


def test_draws_depend_on_the_key_and_not_on_the_images_beside(generator):
    first = label_scores(generator, drawings(4), lambda key: TEXTS, Key(3), samples=2)
    again = label_scores(generator, drawings(4), lambda key: TEXTS, Key(3), samples=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, label_scores(generator, drawings(4), lambda key: TEXTS, Key(4), samples=2))
    torch.testing.assert_close(
        first[1:3], label_scores(generator, drawings(4)[1:3], lambda key: TEXTS, Key(3), samples=2)
    )


def test_every_draw_asks_for_its_prompts_with_a_key_of_its_own(generator):
    keys = []
    label_scores(generator, drawings(1), lambda key: keys.append(key) or TEXTS, Key(3), samples=3)
    assert len(set(keys)) == 3


def test_a_model_that_predicts_something_else_is_refused(tiny_stable_diffusion):
    made = StableDiffusion(str(tiny_stable_diffusion), steps=1)
    made.pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(
        InputError, match=r"predicts sample; to classify, use a model that predicts epsilon or v_prediction"
    ):
        label_scores(made, drawings(1), lambda key: TEXTS, Key(0))


@pytest.mark.slow
def test_the_stage_scores_the_generator_once_for_each_seed_and_goes_on_where_it_stopped(
    tmp_path, monkeypatch, tiny_stable_diffusion
):
    prepared(monkeypatch)
    digits = DATASETS["digits"].load()
    few = digits._replace(test=digits.test._replace(x=digits.test.x[:20], labels=digits.test.labels[:20]))
    monkeypatch.setitem(DATASETS, "few digits", DATASETS["digits"]._replace(load=lambda: few))
    monkeypatch.setattr(zero_shot, "BLOCK", 8)
    settings = [
        "data.name=few digits",
        f"generator.model={tiny_stable_diffusion}",
        "methods={fedavg: {algorithm: fedavg}, g: {algorithm: {name: generator, samples: 1}}}",
        "prompts.style=multiple",
    ]
    asked, sizes = [], []

    def watched(generator, images, prompts, key, **options):
        texts = prompts(key.fold("prompt", 0))
        asked.append((key, texts, options))
        sizes.append(len(images))
        if len(sizes) == 2 and not cut:
            raise Interrupted
        return label_scores(generator, images, prompts, key, **options)

    monkeypatch.setattr(zero_shot, "label_scores", watched)
    cut = True
    whole = a_run(tmp_path / "whole", *settings).execute("federate")["methods"]["g"]
    assert sizes == [8, 8, 4] * 2
    assert len({key for key, *_ in asked}) == 2, "each seed has draws of its own"
    assert asked[0][2] == {"samples": 1}
    names = sorted(DIGIT_NAMES)
    around = {text.replace(name, "*") for text, name in zip(asked[0][1], names, strict=True)}
    assert len(around) == 1, "the labels are asked for in the same words"
    for trace in whole.values():
        (evaluation,) = trace["evaluations"]
        assert (evaluation["round"], trace["rounds"]) == (0, [])
        assert 0 < evaluation["loss"] < math.inf
    cut, sizes[:], run = False, [], a_run(tmp_path / "cut", *settings)
    with pytest.raises(Interrupted):
        run.execute("federate")
    cut, sizes[:] = True, []
    assert run.execute("federate")["methods"]["g"] == whole
    assert sizes == [8, 4, 8, 8, 4], "what was classified is not classified again"
    sizes[:] = []
    longer = a_run(tmp_path / "cut", *settings, "federate.rounds=6", "data.partition.clients=5")
    assert longer.execute("federate")["methods"]["g"] == whole
    assert sizes == [], "neither rounds nor clients matter to the generator"
    a_run(tmp_path / "cut", *settings, "prompts.style=label").execute("federate")
    assert sizes == [8, 8, 4] * 2


def test_an_image_is_enlarged_to_what_it_was():
    x = DATASETS["digits"].load().train.x[0]
    assert torch.allclose(grey_image(8, 8)(to_image(x)), x, atol=1 / 255)
    colour = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    image = to_image(colour)
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert image.getpixel((3, 1)) == tuple(round(255 * value) for value in colour[:, 1, 3].tolist())


@pytest.mark.slow
def test_the_miniature_reads_real_digits_far_better_than_chance():
    digits, generator = DATASETS["digits"].load(), StableDiffusion("miniature")
    prompts = [f"a handwritten {name}" for name in DIGIT_NAMES]
    images = [digits.decode(x) for x in digits.test.x[:60]]
    logits = label_scores(generator, images, lambda key: prompts, Key(0), samples=8)
    right = [
        DIGIT_NAMES[guess] == name for guess, name in zip(logits.argmax(1), digits.test.labels, strict=False)
    ]
    assert np.mean(right) > 0.5
