"""What the page and the terminal say of privacy, of runs with and without noise."""

import pytest
import torch
from support.command import run_command
from support.pages import BROWSER, Reader, seen
from support.small_runs import SMALL_RUN
from support.summaries import compared, method

import genfl
from genfl import config, pipeline
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run
from genfl.privacy.ledger import NEIGHBOURING, ZEROED_OUT, Noise, ledger
from genfl.report import page
from genfl.report.releases import READERS, TOPICS, number, privacy_line, privacy_section, sum_sentences
from genfl.results.evidence import collect
from genfl.results.schema import PrivacyResult, ReleaseResult, Summary, SumNumbers
from genfl.storage import load_tensors
from genfl.trees import leaves

TEXT = """
name: all
data: {name: digits, partition: {clients: 6, test: 0.2}}
prompts: {per_label: 4}
model: {name: mlp, width: 8}
federate: {rounds: 4, clients_per_round: 2, heterogeneity: true}
methods:
  plain: {algorithm: fedavg}
  other: {algorithm: scaffold}
  guided: {algorithm: feddyn, data: mixed, content: {samples: 60, guidance: real}}
  alone: {algorithm: local}
"""
NOISE = Noise("sample", NEIGHBOURING["sample"], 1.5, 1.0, 0.04, 2250, 1e-5, 7.3294)
SAMPLE = "privacy={unit: sample, epsilon: 8, generated: protected, accountant: rdp}"
STRICT = [
    "privacy={unit: sample, epsilon: 8, accountant: rdp, strict: true, public: [labels, sizes, test]}",
    "audit.overlap=ignore",
    "report.real_examples=false",
    "federate.heterogeneity=false",
    "data.partition={clients: 6}",
    "methods={plain: {algorithm: fedavg}}",
    "generator=none",
]


def result_of(*overrides, **noise):
    return PrivacyResult.of(ledger(config.parse(TEXT, list(overrides)), noise))


# --- the line of a terminal


def test_without_noise_there_is_no_line():
    assert privacy_line(result_of()) == ""


def test_the_line_names_epsilon_delta_unit_and_what_is_exact():
    line = privacy_line(result_of(SAMPLE, plain=NOISE))
    assert line.startswith("privacy: epsilon 7.33 at delta 1e-5 per sample (label names, label holders and ")
    assert line.endswith(" other releases are exact)")


def test_a_few_exact_releases_are_named():
    two = [*STRICT, "privacy.public=[sizes, test]"]
    assert privacy_line(result_of(*two, plain=NOISE)) == (
        "privacy: epsilon 7.33 at delta 1e-5 per sample (label names and label holders are exact)"
    )
    assert privacy_line(result_of(*STRICT, plain=NOISE)) == "privacy: epsilon 7.33 at delta 1e-5 per sample"


def test_of_several_methods_the_largest_epsilon_is_told():
    line = privacy_line(result_of(SAMPLE, plain=NOISE, other=NOISE._replace(noise_multiplier=3.0)))
    assert line.startswith("privacy: epsilon at most 7.33 at delta 1e-5 per sample")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1e-5"), (1.25e-10, "1.25e-10"), (7.3294, "7.33"), (8.0, "8"), (0.001, "0.001")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


# --- the section of the page


def test_every_topic_and_recipient_has_words():
    topic, recipient = (ReleaseResult.model_fields[name].annotation for name in ("topic", "recipient"))
    assert set(TOPICS) == set(topic.__args__)
    assert set(READERS) == set(recipient.__args__)
    assert len(TOPICS) <= 10, "a table of ten lines at most"


def test_without_noise_the_section_says_so():
    section = privacy_section(result_of())
    assert section["sentences"][0].startswith("Training is not protected by differential privacy.")
    lines = {row.what: row for row in section["rows"]}
    training = lines[TOPICS["training"]]
    assert (training.protection, training.epsilon, training.open) == ("none", "no bound", True)
    assert lines[TOPICS["generated"]].epsilon == "0 more"
    assert not lines[TOPICS["guided"]].open


def test_with_noise_the_section_tells_what_is_covered():
    section = privacy_section(result_of(SAMPLE, plain=NOISE, other=NOISE, guided=NOISE))
    first, second = section["sentences"]
    assert "protects each private sample" in first
    assert "ε is at most 7.33, and δ is 1e-5" in first
    assert "e^ε = 1,524" in first  # e^7.32933
    assert second.startswith("This does not cover 14 releases without noise: label names, label holders, ")
    lines = {row.what: row for row in section["rows"]}
    assert lines[TOPICS["training"]].protection == "noise, for each private sample"
    assert lines[TOPICS["training"]].epsilon == "7.33 at δ = 1e-5"
    assert lines[TOPICS["sizes"]].epsilon == "no bound"


def test_noise_on_sums_counts_on_the_server():
    noise = NOISE._replace(unit="user", neighbours=NEIGHBOURING["user"])
    section = privacy_section(
        result_of("privacy={unit: user, epsilon: 8}", plain=noise, other=noise, guided=noise)
    )
    assert "Suppose that somebody other than the server sees" in section["sentences"][0]
    (training,) = (row for row in section["rows"] if row.what == TOPICS["training"])
    assert training.protection.startswith("noise, for each client with all its data; ")
    assert training.protection.endswith("the server adds it, so it is trusted with exact sums")
    assert training.learns.startswith("other clients, and whoever gets the model; the server")


def test_noise_of_clients_holds_against_the_server():
    noise = NOISE._replace(unit="user", neighbours=ZEROED_OUT)
    section = privacy_section(
        result_of(
            "privacy={unit: user, epsilon: 8, noise: distributed}", plain=noise, other=noise, guided=noise
        )
    )
    assert "Suppose that somebody sees" in section["sentences"][0]
    (training,) = (row for row in section["rows"] if row.what == TOPICS["training"])
    assert training.protection.startswith("noise that the clients add, for each client with all its data")
    assert training.learns.startswith("other clients, and whoever gets the model")
    assert "trusted" not in training.protection
    assert training.epsilon == "7.33 at δ = 1e-5"


def test_a_strict_run_leaves_nothing_open():
    section = privacy_section(result_of(*STRICT, plain=NOISE))
    assert len(section["sentences"]) == 1
    assert not any(row.open for row in section["rows"])
    assert {row.epsilon for row in section["rows"]} == {"0 more", "7.33 at δ = 1e-5"}


# --- in a page


@pytest.fixture(scope="module")
def noised(tmp_path_factory):
    """The source of the page of a run with noise."""
    folder = tmp_path_factory.mktemp("releases") / "run"
    privacy = {"unit": "sample", "noise_multiplier": 2.0, "delta": 1e-4, "accountant": "rdp"}
    content = SMALL_RUN | {"seeds": [0], "privacy": privacy, "methods": {"fedavg": {"algorithm": "fedavg"}}}
    settings = config.validate(content)
    pipeline.execute(settings, folder)
    return (folder / "report" / "index.html").read_text(encoding="utf-8"), Run(settings, folder)


def test_the_page_of_a_run_with_noise_says_so(noised):
    source, run = noised
    text = " ".join(" ".join(Reader(source).text).split())
    privacy = Summary.read(run.folder / "summary.json").privacy
    assert f"ε is {number(privacy.guarantees['fedavg'].epsilon)}, and δ is 0.0001" in text
    assert "Whoever has it can subtract the noise" in text
    assert "#privacy" in Reader(source).values("href")


@pytest.mark.slow
def test_the_page_of_a_run_without_noise_says_so(noised):
    _, run = noised
    summary = Summary.read(run.folder / "summary.json")
    plain = summary.model_copy(update={"privacy": result_of()})
    source = page.render(collect(run, RunContext()), plain)
    assert "Training is not protected by differential privacy" in source


@pytest.mark.slow
def test_the_command_prints_the_line(noised):
    _, run = noised
    output, _ = run_command("run", run.folder / "config.yaml", "--out", run.folder)
    privacy = Summary.read(run.folder / "summary.json").privacy
    assert privacy_line(privacy) in output.splitlines()


def test_a_model_card_states_the_guarantee(noised, tmp_path):
    _, run = noised
    genfl.load_run(run.folder).export(tmp_path / "model", method="fedavg")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    epsilon = Summary.read(run.folder / "summary.json").privacy.guarantees["fedavg"].epsilon
    assert (
        f"protected each private sample by differential privacy, with ε at most {epsilon:.3g} and δ" in card
    )
    assert "Training had no differential privacy" not in card


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_phone_shows_the_section_whole(noised, tmp_path):
    shown = seen(noised[0], tmp_path)
    assert (shown["width"], shown["overflow"], shown["console"]) == (390, 0, [])


# --- the numbers of secure sums


def test_secure_sums_are_told_in_two_sentences():
    numbers = SumNumbers(clients=3, threshold=2, limit=100.0, bits=32, step=2.0**-21, error=3 * 2.0**-22)
    small, large = (method([0.9], 5, 0.1, masked_upload_bytes=size) for size in (4200, 8400))
    summary = compared(generator="none", a=small, b=large, c=small).model_copy(
        update={"secure_sums": numbers}
    )
    assert sum_sentences(summary) == (
        "Secure sums carry each float of an upload as a word of 32 bits, in steps of 4.77e-7. In the sum of 3"
        " clients, a number differs from the exact sum by at most 7.15e-7. The words of a masked upload take"
        " 4 kB (a, c); 8 kB (b)."
    )
    assert sum_sentences(compared(generator="none", a=method([0.9], 5, 0.1))) == ""


@pytest.mark.slow
def test_the_error_of_a_run_stays_below_what_its_page_says(tmp_path):
    """One round, so that training does not enlarge the error. Steps are coarse, so that there is one."""
    secure = {"threshold": 2, "limit": 2.0**14, "precision": 2.0**-15}
    summaries, models = {}, {}
    for name, changes in (("exact", {}), ("secure", {"secure": secure})):
        content = SMALL_RUN | {"seeds": [0], "methods": {"plain": {"algorithm": "fedavg"}}}
        content["federate"] = SMALL_RUN["federate"] | changes
        pipeline.execute(config.validate(content), tmp_path / name)
        summaries[name] = Summary.read(tmp_path / name / "summary.json")
        file = tmp_path / name / "federate" / "plain" / "seed-0" / "model.safetensors"
        models[name] = torch.cat([leaf.double().flatten() for leaf in leaves(load_tensors(file)[0])])
    numbers = summaries["secure"].secure_sums
    assert (numbers.bits, numbers.step, numbers.error) == (32, 2.0**-15, 2.0**-15)
    error = (models["exact"] - models["secure"]).abs().max()
    assert 0 < error <= numbers.error
    sent = summaries["secure"].methods["plain"].masked_upload_bytes
    assert 2 * sent == summaries["secure"].methods["plain"].uplink_bytes_per_round
    html = (tmp_path / "secure" / "report" / "index.html").read_text(encoding="utf-8")
    assert "as a word of 32 bits, in steps of 3.05e-5. In the sum of 2 clients, a number differs" in html
    assert "Secure sums carry" not in (tmp_path / "exact" / "report" / "index.html").read_text("utf-8")
