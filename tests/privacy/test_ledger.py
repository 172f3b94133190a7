"""The ledger: every stage, method and figure is in a row, strict configs are refused, and ε is right."""

import json
import logging
import shutil

import pytest
from support.opened import open_run
from support.small_runs import SMALL_RUN

from genfl import config, pipeline
from genfl.algorithms import ALGORITHMS
from genfl.config.privacy import FIXES, Privacy
from genfl.errors import LONGEST_LINE, InputError
from genfl.experiment.context import RunContext
from genfl.learning.local import LocalHook
from genfl.privacy.dp.accounting import NoisedSums, epsilon_of
from genfl.privacy.ledger import (
    COUNTS,
    LEDGER_FILE,
    NEIGHBOURING,
    UNKNOWN_EXCHANGE,
    UPLOADS,
    ZEROED_OUT,
    Noise,
    check_strict,
    exchange,
    ledger,
    noise_in,
    releases,
)
from genfl.registration import register
from genfl.results.schema import MethodResult, PrivacyResult, Summary

BASE = """
name: all
data: {name: digits, partition: {clients: 6, test: 0.2}}
prompts: {per_label: 4}
model: {name: mlp, width: 8}
client_models: [{name: mlp, width: 8}]
federate: {rounds: 4, clients_per_round: 2, heterogeneity: true}
report: {real_examples: true}
methods:
  plain: {algorithm: fedavg}
  warm: {algorithm: scaffold, start: pretrained}
  water: {algorithm: fedavg, data: mixed, content: {samples: 60, budget: water_filling}}
  guided: {algorithm: feddyn, data: mixed, content: {samples: 60, guidance: real}}
  alone: {algorithm: local}
  together: {algorithm: centralised}
"""
TEXTS = """
name: texts
data: {name: texts, path: nowhere, length: 4, tokenizer: generated, partition: {clients: 3}}
generator: {kind: text, model: m, base_url: "http://127.0.0.1:9/v1", words: 5, trusted: true}
prompts: {style: llm, per_label: 2, llm: {model: m, base_url: "http://127.0.0.1:9/v1"}}
model: {name: lstm, embedding: 4, width: 4}
federate: {clients_per_round: 2}
methods:
  plain: {algorithm: fedavg}
  guided: {algorithm: fedavg, data: mixed, content: {samples: 6, guidance: real}}
  zero_shot: {algorithm: {name: generator, shots: 2, query: "{labels} {text} {examples}"}}
"""
BARE = """
name: bare
data: digits
generator: none
model: mlp
audit: {overlap: ignore}
report: {real_examples: false}
methods: {plain: {algorithm: fedavg}}
"""
USER = "privacy={unit: user, epsilon: 8}"
SAMPLE = "privacy={unit: sample, epsilon: 8, generated: protected}"
NOISE = Noise("sample", NEIGHBOURING["sample"], 1.5, 1.0, 0.04, 2250, 1e-5, 0.0)


def rows_of(text, *overrides):
    return releases(config.parse(text, list(overrides)))


def names(rows):
    return {row.name for row in rows}


# --- nothing is missing


@pytest.mark.parametrize("text", [BASE, TEXTS, BARE])
def test_every_stage_has_a_row(text):
    settings = config.parse(text)
    wanted = {stage.name for stage in pipeline.STAGES if stage.wanted(settings)}
    assert {row.stage for row in releases(settings)} == wanted


def test_the_three_configs_need_all_stages():
    settings = [config.parse(text) for text in (BASE, TEXTS, BARE)]
    needed = {stage.name for stage in pipeline.STAGES for one in settings if stage.wanted(one)}
    assert needed == {stage.name for stage in pipeline.STAGES}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_has_rows_in_words(name):
    settings = config.parse(BASE, [f"methods.plain.algorithm={name}"])
    told = exchange(settings.methods["plain"])
    assert told.trained, "clients tell what they learned"
    assert {*told.census, *told.counts} <= COUNTS.keys()
    assert {*told.trained} <= UPLOADS.keys()
    rows = names(row for row in releases(settings) if "plain" in row.methods)
    assert {"training", "census", "samples of rounds"} <= rows
    assert ("sample counts" in rows) == bool(told.counts)


@pytest.mark.parametrize(
    ("algorithm", "census", "counts", "sums"),
    [
        ("fedavg", ("samples",), ("weight",), True),
        ("{name: fedavg, weighting: uniform}", ("samples",), (), True),
        ("[fedprox, fedadam, feddisco]", ("samples",), ("weight",), True),
        ("scaffold", ("samples",), (), True),
        ("fednova", ("samples",), ("samples", "steps"), True),
        ("feddf", ("samples",), ("samples",), False),
        ("fedgen", ("label_counts",), ("weight",), True),
        ("fedftg", ("samples",), ("label_counts", "weight"), False),
    ],
)
def test_exchange_is_what_the_papers_send(algorithm, census, counts, sums):
    told = exchange(config.parse(BASE, [f"methods.plain.algorithm={algorithm}"]).methods["plain"])
    assert (told.census, told.counts, told.sums) == (census, counts, sums)


@pytest.mark.usefixtures("forget")
def test_an_algorithm_that_does_not_run_is_unknown():
    @register("odd")
    def odd(*, mu: float = 0.1) -> LocalHook:
        raise RuntimeError("needs another model")

    method = config.parse(BASE, ["methods.plain.algorithm=odd"]).methods["plain"]
    assert exchange(method) == UNKNOWN_EXCHANGE
    row = next(row for row in rows_of(BASE, "methods.plain.algorithm=odd") if row.name == "training")
    assert (row.recipient, row.mechanism) == ("server", "exact")
    assert "unknown parts" in row.what


FIGURES = {
    # of a summary
    "labels": "label names",
    "test_samples": "scores on the test set",
    "test_digest": "scores on the test set",
    "synthetic": "generated samples",
    "guided": "guided samples",
    "vocabulary": "unknown words",
    "audit": "near-duplicates",
    "methods": "training",
    "privacy": None,  # made from the config
    # of a method
    "accuracy": "scores on the test set",
    "macro_f1": "scores on the test set",
    "calibration_error": "scores on the test set",
    "recall": "scores on the test set",
    "curve": "scores on the test set",
    "rounds_to_target": "scores on the test set",
    "rounds_to_target_per_seed": "scores on the test set",
    "bytes_to_target": "scores on the test set",
    "targets": "scores on the test set",
    "equal_bytes": "scores on the test set",
    "delta": "scores on the test set",
    "clients": "scores on clients",
    "generated_samples": "shares of generated samples",
    "extra_cost": "samples of rounds",
    "refused_uploads": "rejected uploads",
    "untrained_seeds": "samples of rounds",
    "diversity": "measures of rounds",
    "heterogeneity": "similarity of clients",
    # of a trial
    "content": "shares of generated samples",
    "similarity": "similarity of clients",
    "evaluations": "scores on the test set",
    "rounds": "samples of rounds",
    # of a round
    "samples": "samples of rounds",
    "refused": "rejected uploads",
    "divergence": "measures of rounds",
    "generality": "measures of rounds",
    # of a round with noise on sums
    "signal_to_noise": "figures of noise",
    "noised_cosine": "figures of noise",
    "clip_norm": "training",
}
"""The release behind each figure of a result; None for figures that no private data decides."""

NO_DATA = {
    *(
        "schema_version",
        "name",
        "seeds",
        "generator",
        "generated",
        "compare",
        "target_accuracy",
        "byte_budget",
    ),
    *("cost", "stages", "environment", "algorithm", "data", "source", "reference", "uses_generator"),
    *("existing_model", "total_bytes", "setup_bytes", "uplink_bytes_per_round", "downlink_bytes_per_round"),
    *("secure_sums", "masked_upload_bytes", "uploads", "round", "uplink_bytes", "downlink_bytes", "privacy"),
}
"""Figures that the config and the machine decide."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run without differential privacy that measures and tests all that it can."""
    folder = tmp_path_factory.mktemp("ledger") / "run"
    data = {"name": "digits", "partition": {"clients": 4, "alpha": 1.0, "test": 0.2}}
    federate = SMALL_RUN["federate"] | {"heterogeneity": True}
    content = SMALL_RUN | {"data": data, "federate": federate, "seeds": [0]}
    methods = {"fedavg": {"algorithm": "fedavg"}, "scaffold": {"algorithm": "scaffold"}}
    settings = config.validate(content | {"methods": methods})
    pipeline.execute(settings, folder)
    return folder


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    """A run with noise on sums, and a norm that follows the clients."""
    folder = tmp_path_factory.mktemp("users") / "run"
    privacy = {"unit": "user", "noise_multiplier": 0.1, "target_quantile": 0.5, "accountant": "rdp"}
    content = SMALL_RUN | {
        "seeds": [0],
        "privacy": privacy,
        "methods": {"scaffold": {"algorithm": "scaffold"}},
    }
    pipeline.execute(config.validate(content), folder)
    return folder


@pytest.mark.slow
def test_every_figure_has_a_row(run, users):
    known = names(rows_of(BASE)) | names(rows_of(TEXTS)) | names(rows_of(BASE, USER))
    assert {row for row in FIGURES.values() if row} <= known
    trial = json.loads((run / "stages" / "federate.json").read_text())["result"]["methods"]["fedavg"]["0"]
    noised = json.loads((users / "stages" / "federate.json").read_text())["result"]["methods"]["scaffold"][
        "0"
    ]
    figures = {*Summary.model_fields, *MethodResult.model_fields, *trial, *trial["rounds"][0]}
    figures |= {*noised, *noised["rounds"][0]}
    assert "noised_cosine" in figures
    assert figures - FIGURES.keys() - NO_DATA == set()


# --- the file


def test_a_run_without_privacy_has_a_ledger(run):
    written = PrivacyResult.model_validate_json((run / LEDGER_FILE).read_text())
    assert written == Summary.read(run / "summary.json").privacy
    assert written.guarantees == {}
    assert all(row.epsilon is None for row in written.releases if row.mechanism in ("exact", "secure_sum"))
    assert not any(row.noise for row in written.releases)
    assert written.releases[0].stage == "labels"
    assert len(written.notes) == 1, "nothing is said of noise"


@pytest.mark.slow
def test_the_ledger_is_absent_until_a_run_has_trained(run, tmp_path):
    settings = config.load(run / "config.yaml")
    folder = tmp_path / "run"
    pipeline.execute(settings, folder, others=[run])
    assert (folder / LEDGER_FILE).exists()
    (folder / "federate" / "fedavg" / "seed-0" / "trace.json").unlink()
    pipeline.execute(settings, folder, until="audit")
    assert (folder / LEDGER_FILE).exists()
    pipeline.execute(settings, folder, until="federate")
    assert (folder / LEDGER_FILE).read_bytes() == (run / LEDGER_FILE).read_bytes()
    pipeline.execute(settings, folder)
    assert (folder / LEDGER_FILE).read_bytes() == (run / LEDGER_FILE).read_bytes()
    pipeline.execute(settings, folder, until="labels", fresh=True)
    assert not (folder / LEDGER_FILE).exists()


def test_the_ledger_reads_no_private_data():
    assert len(rows_of(TEXTS)) > 10, "there is no folder nowhere"


# --- what rows say


def test_names_of_few_are_no_release():
    (row,) = (row for row in rows_of(BASE, "labels.min_holders=3") if row.name == "label names")
    assert row.what == "the label names that 3 clients or more hold"


def test_real_machines_have_no_secure_sum():
    methods = "methods={plain: {algorithm: fedavg}, memory: {algorithm: scaffold}}"
    settings = config.parse(BARE, ["federate.engine=flower", methods])
    written = ledger(settings, {})
    rows = {row.name: row for row in written.releases}
    for name in ("label names", "label holders", "census", "training", "sample counts", "samples of clients"):
        assert (rows[name].recipient, rows[name].mechanism) == ("server", "exact"), name
        assert rows[name].outside
    assert {row.mechanism for row in written.releases} == {"exact", "local"}
    assert {row.recipient for row in written.releases} == {"server", "readers", "nobody"}
    assert {row.stage for row in written.releases} == {"labels", "federate"}  # there is no report
    assert not any("privacy." in row.fix or "count_epsilon" in row.fix for row in written.releases)
    (note,) = written.notes
    assert "in the clear" in note
    assert "simulated" not in note
    in_process = ledger(config.parse(BARE, ["federate.engine=flower-inprocess", methods]), {})
    assert in_process == ledger(config.parse(BARE, [methods]), {})


def test_what_the_config_asks_for_is_in_rows():
    base, texts, bare = (names(rows_of(text)) for text in (BASE, TEXTS, BARE))
    assert base - bare == {
        "prompts",
        "generated samples",
        "guided samples",
        "near-duplicates",
        "pre-trained model",
        "shares of generated samples",
        "scores on clients",
        "similarity of clients",
        "references",
        "real examples",
    }
    assert texts - base - bare == {
        "vocabulary",
        "unknown words",
        "examples in queries",
        "test texts in queries",
    }


def test_only_data_that_leaves_its_place_is_outside():
    rows = {row.name: row for row in rows_of(BASE)}
    assert {row.mechanism for row in rows.values()} == {"exact", "secure_sum", "derived", "local"}
    assert not rows["guided samples"].outside, "they stay with the clients"
    assert not rows["generated samples"].outside, "prompts alone make them"
    assert rows["label names"].outside


def test_a_run_of_users_states_its_neighbours(users):
    result = Summary.read(users / "summary.json").privacy
    rows = {row.name: row for row in result.releases}
    assert rows["training"].noise.neighbours == NEIGHBOURING["user"]
    assert result.guarantees["scaffold"].unit == "user"
    recorded = json.loads((users / "stages" / "federate.json").read_text())["result"]["methods"]["scaffold"]
    assert recorded["0"]["privacy"]["exact_census"] == []
    assert "census" not in rows, "the server asks for the number of clients alone"
    assert rows["sizes of cohorts"].outside
    zeroed = noise_in({**rows["training"].noise.model_dump(), "neighbours": "zero out"})
    assert zeroed.neighbours == ZEROED_OUT


@pytest.mark.slow
def test_a_strict_run_of_users_has_no_exact_figure(users, tmp_path):
    settings = config.load(users / "config.yaml")
    public = ["labels", "sizes", "test"]
    strict = settings.privacy.model_copy(update={"strict": True, "public": public, "cohorts": "fixed"})
    report = settings.report.model_copy(update={"real_examples": False})
    audit = settings.audit.model_copy(update={"overlap": "ignore"})
    update = {"privacy": strict, "report": report, "audit": audit}
    pipeline.execute(settings.model_copy(update=update), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "stages" / "federate.json").read_text())
    (row,) = record["result"]["methods"]["scaffold"]["0"]["rounds"]
    assert row.keys() == {"round", "uplink_bytes", "downlink_bytes", "refused", "samples"}
    assert Summary.read(tmp_path / "run" / "summary.json").privacy.guarantees["scaffold"].outside == []


def test_noise_covers_what_clients_learn_and_not_what_they_count():
    rows = rows_of(BASE, SAMPLE)
    plain = {row.name: row for row in rows if "plain" in row.methods}
    assert plain["training"].mechanism == "gaussian"
    assert plain["sample counts"].outside
    assert plain["measures of rounds"].mechanism == "derived"
    (influence,) = (row for row in rows if row.name == "influence of guides")
    assert influence.outside
    assert influence.methods == ("guided",)


def test_noise_on_whole_uploads_covers_counts():
    rows = rows_of(BASE, "privacy={unit: user, epsilon: 8}")
    plain = {row.name: row for row in rows if "plain" in row.methods}
    assert "sample counts" not in plain
    assert (plain["training"].recipient, plain["training"].mechanism) == ("others", "gaussian")
    server = plain["sums before noise"]
    assert (server.mechanism, server.outside, server.epsilon) == ("trusted", False, None)
    assert "numbers of samples" in plain["training"].what
    assert plain["measures of rounds"].outside, "they are computed from models without noise"
    assert "influence of guides" not in names(rows)
    assert "shares of generated samples" not in names(rows)


@pytest.mark.parametrize(("quorum", "enough"), [("", "all of them"), (", quorum: 3", "any 3 of them")])
def test_noise_of_clients_leaves_the_server_no_exact_sum(quorum, enough):
    rows = rows_of(BASE, f"privacy={{unit: user, epsilon: 8, noise: distributed{quorum}}}")
    plain = {row.name: row for row in rows if "plain" in row.methods}
    training = plain["training"]
    assert (training.recipient, training.mechanism, training.outside) == (
        "others",
        "discrete_gaussian",
        False,
    )
    assert training.what.endswith(f"its clients add the noise, which is enough if {enough} finish")
    central = {row.name for row in rows_of(BASE, "privacy={unit: user, epsilon: 8, cohorts: fixed}")}
    assert central - names(rows) == {"sums before noise"}
    assert names(rows) <= central
    (figures,) = (row for row in rows if row.name == "figures of noise")
    assert (figures.mechanism, figures.outside, figures.epsilon) == ("derived", False, 0)
    off = rows_of(BASE, f"privacy={{unit: user, noise_multiplier: 0.0, noise: distributed{quorum}}}")
    assert {row.mechanism for row in off if row.name == "training"} == {"exact"}


def test_training_on_generated_samples_is_derived():
    change = "methods={water: {algorithm: fedavg, data: generated, content: {samples: 60}}}"
    free, protected = "privacy={unit: sample, epsilon: 8}", SAMPLE
    for section, derived in (("name=all", True), (free, True), (protected, False), (USER, False)):
        rows = {row.name: row for row in rows_of(BASE, change, section)}
        assert ("training" not in rows) == derived
        assert ("training on generated samples" in rows) == derived


def test_no_noise_is_no_protection():
    rows = rows_of(BASE, "privacy={unit: sample, noise_multiplier: 0.0, generated: protected}")
    assert all(row.outside for row in rows if row.name == "training")


@pytest.mark.parametrize(("fact", "topic"), [("labels", "labels"), ("sizes", "sizes"), ("test", "test")])
def test_public_knowledge_reveals_nothing(fact, topic):
    rows = rows_of(BASE, f"privacy={{unit: user, epsilon: 8, public: [{fact}]}}")
    for row in rows:
        assert row.public == (row.topic == topic)
        assert not (row.public and row.outside)
        assert row.epsilon == 0 if row.public else True


# --- the composition


def test_epsilon_is_that_of_the_steps_taken():
    settings = config.parse(BASE, [SAMPLE, "privacy.accountant=rdp"])
    whole = ledger(settings, {"plain": NOISE}).guarantees
    assert set(whole) == {"plain"}, "the others report no noise"
    assert whole["plain"].epsilon == pytest.approx(7.32911, abs=1e-3)
    half = ledger(settings, {"plain": NOISE._replace(steps=1125)}).guarantees["plain"]
    assert 0 < half.epsilon < whole["plain"].epsilon
    assert {"label names", "sample counts", "census"} <= set(half.outside)


def test_the_accountant_is_that_of_the_config():
    guarantee = ledger(config.parse(BASE, [SAMPLE]), {"plain": NOISE}).guarantees["plain"]
    assert guarantee.epsilon == pytest.approx(6.7774, abs=1e-2)


def test_a_ledger_with_noise_is_a_result():
    result = PrivacyResult.of(ledger(config.parse(BASE, [SAMPLE]), {"plain": NOISE}))
    (row,) = (row for row in result.releases if row.noise)
    assert (row.methods, row.noise.steps, row.noise.sampling_rate) == (["plain"], 2250, 0.04)
    assert any("add up" in note for note in result.notes)
    assert any("noise.key" in note and "subtract" in note for note in result.notes)
    repeatable = SAMPLE.replace("epsilon: 8", "epsilon: 8, repeatable: true")
    seeded = PrivacyResult.of(ledger(config.parse(BASE, [repeatable]), {"plain": NOISE}))
    assert any("seed" in note and "subtract" in note for note in seeded.notes)


@pytest.fixture(scope="module")
def noised(tmp_path_factory):
    """A run with noise, of two methods and two seeds."""
    folder = tmp_path_factory.mktemp("noised") / "run"
    federate = SMALL_RUN["federate"] | {"rounds": 3}
    methods = {name: {"algorithm": name} for name in ("fedavg", "scaffold", "local")}
    privacy = {"unit": "sample", "noise_multiplier": 2.0, "delta": 1e-4, "accountant": "rdp"}
    content = SMALL_RUN | {"federate": federate, "methods": methods, "privacy": privacy}
    pipeline.execute(config.validate(content), folder)
    return folder


@pytest.mark.slow
def test_a_run_with_noise_states_its_epsilon(noised):
    result = Summary.read(noised / "summary.json").privacy
    recorded = json.loads((noised / "stages" / "federate.json").read_text())["result"]["methods"]
    assert set(result.guarantees) == {"fedavg", "scaffold"}, "the reference has none"
    for name, guarantee in result.guarantees.items():
        worst = max((trial["privacy"] for trial in recorded[name].values()), key=lambda one: one["epsilon"])
        sums = NoisedSums(2.0, worst["sampling_rate"], worst["steps"])
        assert 1 <= worst["steps"] <= 3
        assert guarantee.epsilon == epsilon_of((sums,), 1e-4, "rdp") == worst["epsilon"]
        assert (guarantee.unit, guarantee.delta) == ("sample", 1e-4)


@pytest.mark.slow
def test_a_resumed_run_states_the_same_epsilon(noised, tmp_path):
    folder = shutil.copytree(noised, tmp_path / "run")
    for file in (LEDGER_FILE, "summary.json", "stages/federate.json"):
        (folder / file).unlink()
    pipeline.execute(config.load(folder / "config.yaml"), folder)
    assert (folder / LEDGER_FILE).read_bytes() == (noised / LEDGER_FILE).read_bytes()


# --- strict configs


def test_strict_names_every_exact_row_and_its_fix():
    settings = config.parse(BASE, [SAMPLE, "privacy.strict=true"])
    with pytest.raises(InputError) as caught:
        check_strict(settings)
    lines = str(caught.value).splitlines()
    exact = [row for row in releases(settings) if row.outside]
    assert len(lines) == len(exact) > 8
    for line, row in zip(lines, exact, strict=True):
        assert line.startswith(f"privacy.strict: true, but {row.name}")
        assert line.endswith(row.fix)
        assert row.fix
        assert len(line) <= LONGEST_LINE


def test_audits_are_in_the_ledger_unless_strict():
    """The ledger is made from the config, so the row says nothing of files beside the run."""
    for sections in ([], [SAMPLE], [USER]):
        (row,) = (row for row in rows_of(BASE, *sections) if row.name == "audits")
        assert (row.stage, row.topic, row.recipient) == ("report", "measures", "readers")
        assert row.outside
        assert row.what.startswith("if genfl audit was run: ")
    assert "audits" in ledger(config.parse(BASE, [SAMPLE]), {"plain": NOISE}).guarantees["plain"].outside
    assert "audits" not in names(rows_of(BASE, SAMPLE, "privacy.strict=true"))


def test_strict_accepts_a_config_with_all_fixes():
    fixed = [
        "privacy={unit: sample, epsilon: 8, strict: true, public: [labels, sizes, test]}",
        "audit.overlap=ignore",
        "report.real_examples=false",
        "federate.heterogeneity=false",
        "data.partition={clients: 6}",
        "methods={plain: {algorithm: fedavg}, warm: {algorithm: scaffold, start: pretrained}}",
    ]
    check_strict(config.parse(BASE, fixed))
    for number in range(1, 5):
        with pytest.raises(InputError):
            check_strict(config.parse(BASE, fixed[:number] + fixed[number + 1 :]))


def test_strict_refuses_before_any_work(tmp_path):
    with pytest.raises(InputError, match=r"privacy\.strict: true, but label names"):
        pipeline.execute(config.parse(BASE, [SAMPLE, "privacy.strict=true"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_strict_users_leave_no_exact_measure(run):
    """Nothing is computed of single uploads where noise is on their sum alone."""
    settings = config.load(run / "config.yaml")
    users, samples = (
        Privacy(unit=unit, epsilon=8, public=["labels", "sizes", "test"]) for unit in ("user", "sample")
    )
    for privacy, measured in (
        (None, True),
        (users, True),
        (users.model_copy(update={"strict": True}), False),
        (samples.model_copy(update={"strict": True}), True),
    ):
        opened = open_run(settings.model_copy(update={"privacy": privacy}), run)
        assert ("diversity" in opened.setting.measures) == measured
        rows = {row.name: row for row in releases(opened.config)}
        assert ("measures of rounds" in rows) == measured
        assert ("figures of noise" in rows) == (privacy == users)


def test_without_strict_nothing_is_refused():
    check_strict(config.parse(BASE))
    check_strict(config.parse(BASE, [SAMPLE]))


# --- mistakes


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("{unit: sample}", "privacy: set epsilon or noise_multiplier"),
        ("{unit: sample, epsilon: 8, noise_multiplier: 1.0}", "privacy: set epsilon or noise_multiplier"),
        ("{unit: sample, epsilon: 0}", "privacy.epsilon: should be greater than 0, not 0"),
        ("{unit: sample, epsilon: -1}", "privacy.epsilon: should be greater than 0, not -1"),
        ("{unit: sample, epsilon: .nan}", "privacy.epsilon: should be a finite number, not nan"),
        ("{unit: sample, epsilon: .inf}", "privacy.epsilon: should be a finite number, not inf"),
        ("{unit: sample, noise_multiplier: -1}", "privacy.noise_multiplier: should be greater than or equal"),
        ("{unit: sample, noise_multiplier: .nan}", "privacy.noise_multiplier: should be a finite number"),
        ("{unit: sample, epsilon: 8, max_grad_norm: .inf}", "privacy.max_grad_norm: should be a finite"),
        ("{unit: sample, epsilon: 8, max_grad_norm: 0}", "privacy.max_grad_norm: should be greater than 0"),
        ("{unit: sample, epsilon: 8, max_update_norm: 1}", "privacy: max_update_norm does not apply"),
        ("{unit: user, epsilon: 8, max_update_norm: .nan}", "privacy.max_update_norm: should be a finite"),
        ("{unit: sample, epsilon: 8, delta: 0}", "privacy.delta: should be greater than 0"),
        ("{unit: sample, epsilon: 8, delta: 1}", "privacy.delta: should be less than 1"),
        ("{unit: sample, epsilon: 8, delta: .nan}", "privacy.delta: should be a finite number"),
        ("{unit: client, epsilon: 8}", "privacy.unit: should be 'sample' or 'user', not 'client'"),
        ("{epsilon: 8}", "privacy.unit: required, but missing"),
        ("{unit: sample, epsilon: 8, strict: 1}", "privacy.strict: should be a valid boolean"),
        ("{unit: sample, epsilon: 8, public: [names]}", "privacy.public.0: should be 'labels', 'sizes' or"),
        ("{unit: sample, epsilon: 8, public: [test, test]}", "privacy.public: names something twice"),
        ("{unit: sample, epsilon: 8}", "methods.guided.content.guidance: real derives samples from private"),
    ],
)
def test_a_mistake_is_one_line(section, line):
    with pytest.raises(InputError) as caught:
        config.parse(BASE, [f"privacy={section}"])
    assert str(caught.value).startswith(line)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) <= LONGEST_LINE


@pytest.mark.parametrize("field", FIXES)
@pytest.mark.parametrize("value", ["-1", ".nan", ".inf", "-.inf", "many"])
def test_value_out_of_range_names_the_fix(field, value):
    unit = "user" if field in ("max_update_norm", "target_quantile") else "sample"
    other = "" if field in ("epsilon", "noise_multiplier") else "epsilon: 8, "
    with pytest.raises(InputError) as caught:
        config.parse(BASE, [f"privacy={{unit: {unit}, {other}{field}: {value}}}"])
    line = str(caught.value)
    assert line.startswith(f"privacy.{field}: should be ")
    assert line.endswith(f"; {FIXES[field]}")
    assert len(line) <= LONGEST_LINE


@pytest.mark.slow
def test_run_that_ends_before_the_report_has_its_ledger(tmp_path):
    """Its models are trained, so what they cost is known."""
    content = SMALL_RUN | {"seeds": [0], "methods": {"fedavg": {"algorithm": "fedavg"}}}
    privacy = {"unit": "sample", "noise_multiplier": 1.0, "accountant": "rdp"}
    settings = config.validate({**content, "privacy": privacy})
    pipeline.execute(settings, tmp_path, until="labels")
    assert not (tmp_path / LEDGER_FILE).exists()
    pipeline.execute(settings, tmp_path, until="federate")
    before = json.loads((tmp_path / LEDGER_FILE).read_text())
    assert before["guarantees"]["fedavg"]["epsilon"] > 0
    assert not (tmp_path / "summary.json").exists()
    pipeline.execute(settings, tmp_path)
    assert json.loads((tmp_path / LEDGER_FILE).read_text()) == before


def test_references_need_no_privacy():
    settings = config.parse(BASE, [SAMPLE])
    assert settings.methods["alone"].reference
    assert isinstance(settings.privacy, Privacy)


@pytest.mark.parametrize(
    ("section", "warns"),
    [
        ("{unit: sample, noise_multiplier: 2.0, delta: 0.001, generated: protected}", True),
        ("{unit: sample, noise_multiplier: 2.0, delta: 0.0001, generated: protected}", False),
        ("{unit: user, noise_multiplier: 2.0, delta: 0.25}", True),
        ("{unit: user, noise_multiplier: 2.0, delta: 0.2}", False),
    ],
)
def test_a_large_delta_is_warned_of(section, warns, caplog):
    small = ["data.partition.clients=4", "federate.clients_per_round=2", "seeds=[0]"]
    small.append("methods.plain.algorithm=scaffold")
    settings = config.parse(BARE, [*small, f"privacy={section}"])
    with caplog.at_level(logging.WARNING):
        pipeline.checked(settings, RunContext())
    assert ("privacy.delta" in caplog.text) == warns
    assert ("published" in caplog.text or "publishing" in caplog.text) == warns
