"""Whole runs with chat models: from the config to the report, killed on the way and gone on with."""

import json
import time

import datasets
import pytest
from support.command import Command, run_command

from genfl import config, pipeline
from genfl.data.texts import train_tokenizer
from genfl.errors import GenflError, InputError
from genfl.experiment.context import RunContext
from genfl.stages import generate

ROWS = {
    "train": [
        {"text": f"{word} {what}", "label": label}
        for label, words in (("good", "lovely great kind"), ("bad", "lost late worst"))
        for word in words.split()
        for what in ("crew", "flight", "staff", "line")
    ],
    "test": [{"text": "great staff", "label": "good"}, {"text": "late flight", "label": "bad"}],
}
RUN = """
{name: t, model: {name: lstm, embedding: 4, width: 4}, seeds: [0], report: {target_accuracy: 0.5},
 data: {name: texts, length: 8, partition: {kind: iid, clients: 3}},
 generator: {kind: text, words: 6, max_tokens: 20, temperature: 0.5},
 prompts: {per_label: 8, block_size: 5},
 pretrain: {epochs: 2, batch_size: 4},
 federate: {rounds: 2, clients_per_round: 2, local: {steps: 1, batch_size: 2}, evaluate_every: 1,
            engine: sequential},
 methods: {vanilla: {algorithm: fedavg}, gptfl: {algorithm: fedavg, start: pretrained}}}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Reads a config of a small text folder, with settings."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    for split, rows in ROWS.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lambda *overrides: config.parse(RUN, [f"data.path={folder}", *overrides])


def files(folder):
    """Returns all that a run wrote but what holds times and places."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != "metrics.jsonl" and path.suffix in (".jsonl", ".parquet", ".safetensors"):
            found[name] = path.read_bytes()
    return found


@pytest.mark.slow
def test_local_model_run_is_reproducible(mine, tmp_path, tiny_chat_model, chat_texts):
    read = mine(f"generator.model={tiny_chat_model}")
    summary = pipeline.execute(read, tmp_path / "run")
    assert set(summary["methods"]) >= {"vanilla", "gptfl"}
    made = datasets.load_dataset(str(tmp_path / "run" / "synthetic"), split="train")
    assert len(made) == 16
    name = made.features["label"].int2str
    assert all(row["text"] in chat_texts[name(row["label"])] for row in made)
    assert {row["prompt"] for row in made} == {"a text about bad", "a text about good"}
    # stopped in the middle of the texts: the answers that are there are not asked for again
    assert len(list((tmp_path / "run" / "answers").iterdir())) >= 16
    again = pipeline.execute(mine(f"generator.model={tiny_chat_model}"), tmp_path / "again")
    assert again["methods"] == summary["methods"]
    assert files(tmp_path / "again") == files(tmp_path / "run")


@pytest.mark.slow
def test_fresh_run_asks_again_and_an_update_does_not(mine, chat_server, tmp_path):
    chat_server.behave = lambda query, seed, number: f"text number {number} of this run"
    read = mine("generator.model=m", f"generator.base_url={chat_server.url}")
    pipeline.execute(read, tmp_path / "run", until="generate")
    first = files(tmp_path / "run")
    chat_server.asked.clear()
    pipeline.execute(read, tmp_path / "run", until="generate", fresh=True)
    assert len(chat_server.asked) == 16
    # more samples: those that are there already are not asked for again
    chat_server.asked.clear()
    more = mine("generator.model=m", f"generator.base_url={chat_server.url}", "prompts.per_label=10")
    pipeline.execute(more, tmp_path / "run", until="generate", update=True)
    assert len(chat_server.asked) == 4
    assert first != files(tmp_path / "run")
    # a vocabulary of the generated texts: nothing is asked again, and the texts stay
    chat_server.asked.clear()
    made = datasets.load_dataset(str(tmp_path / "run" / "synthetic"), split="train")["text"]
    train_tokenizer(made, 100, tmp_path / "words.json")
    own = mine(
        "generator.model=m",
        f"generator.base_url={chat_server.url}",
        "prompts.per_label=10",
        f"data.tokenizer={tmp_path / 'words.json'}",
    )
    pipeline.execute(own, tmp_path / "run", until="pretrain", update=True)
    assert not chat_server.asked
    again = datasets.load_dataset(str(tmp_path / "run" / "synthetic"), split="train")["text"]
    assert list(again) == list(made)


def test_finished_run_needs_no_server(mine, chat_server, tmp_path):
    chat_server.behave = lambda query, seed, number: f"text number {number} of this run"
    read = mine("generator.model=m", f"generator.base_url={chat_server.url}")
    pipeline.execute(read, tmp_path / "run", until="generate")
    count = len(chat_server.asked)
    chat_server.behave = lambda query, seed, number: (404, {}, "gone")
    pipeline.execute(read, tmp_path / "run", until="pretrain")
    assert len(chat_server.asked) == count


@pytest.mark.slow
@pytest.mark.parametrize("style", ["llm", "scenes"])
def test_server_prompts_are_written_or_rejected(mine, chat_server, tmp_path, style):
    def behave(query, seed, number):
        label = "bad" if "_ bad _" in query or "of bad" in query else "good"
        return f"Here you go:\n1. a {label} day\n2. one {label} flight with the crew\n3. an umbrella"

    chat_server.behave = behave
    llm = f"{{model: m, base_url: '{chat_server.url}', distinct: 2}}"
    asks = f"prompts={{style: {style}, per_label: 9, llm: {llm}}}"
    read = mine(asks, "generator={kind: text, model: x}")
    with pytest.raises(InputError, match=r"generator\.model: 'x' is not a folder, not in the local "):
        pipeline.execute(read, tmp_path / "run")
    read = mine(asks, f"generator.base_url={chat_server.url}", "generator.model=m")
    pipeline.execute(read, tmp_path / "run", until="prompts")
    rows = [json.loads(line) for line in (tmp_path / "run/prompts/prompts.jsonl").read_text().splitlines()]
    assert {row["text"] for row in rows if row["label"] == "bad"} == {
        "a bad day",
        "one bad flight with the crew",
    }
    assert len(chat_server.asked) == 2
    chat_server.behave = lambda query, seed, number: "an umbrella"
    few = mine(asks, f"generator.base_url={chat_server.url}", "generator.model=m", "prompts.llm.distinct=3")
    with pytest.raises(
        GenflError, match=r"prompts\.llm: 0 of 3 prompts for 'bad' after 5 queries \(unusable: "
    ):
        pipeline.execute(few, tmp_path / "other", until="prompts")
    filled = mine(
        asks,
        f"generator.base_url={chat_server.url}",
        "generator.model=m",
        "prompts.llm.distinct=3",
        "prompts.llm.fallback=multiple",
    )
    pipeline.execute(filled, tmp_path / "other", until="prompts", update=True)
    assert "about bad" in (tmp_path / "other/prompts/prompts.jsonl").read_text()


@pytest.mark.slow
def test_transport_options_regenerate_nothing(mine, chat_server, tmp_path):
    chat_server.behave = lambda query, seed, number: "a good day\na bad day\na good flight\na bad flight"
    asks = f"prompts={{style: llm, llm: {{model: m, base_url: '{chat_server.url}', distinct: 2}}}}"
    generator = f"generator={{kind: text, model: m, base_url: '{chat_server.url}'}}"
    pipeline.execute(mine(asks, generator), tmp_path / "run", until="generate")
    records = [tmp_path / "run" / "stages" / f"{stage}.json" for stage in ("prompts", "generate")]
    before = [record.read_bytes() for record in records]
    chat_server.asked.clear()
    how = [
        f"{section}.{setting}"
        for section in ("prompts.llm", "generator")
        for setting in ("timeout=7.0", "parallel=1", "api_key_env=X")
    ]
    pipeline.execute(mine(asks, generator, *how), tmp_path / "run", until="generate", update=True)
    assert not chat_server.asked
    assert [record.read_bytes() for record in records] == before


def test_stage_inputs_ignore_the_number_of_the_gpu(mine):
    def digests(device, section):
        settings = {"prompts.llm": "cpu", "generator": "cpu", section: device}
        read = mine(
            f"prompts={{style: llm, llm: {{model: m, device: '{settings['prompts.llm']}'}}}}",
            f"generator={{kind: text, model: m, device: '{settings['generator']}'}}",
        )
        by_stage = {stage.name: digest for stage, _, digest in pipeline.digests(read, RunContext())}
        return by_stage["prompts"], by_stage["generate"]

    for section in ("prompts.llm", "generator"):
        assert digests("cuda", section) == digests("cuda:1", section) != digests("cpu", section)


def test_text_generator_rejects_wrong_prompts(mine, tiny_chat_model):
    read = mine(f"generator.model={tiny_chat_model}", "prompts.wrong=0.5")
    with pytest.raises(InputError, match=r"^prompts\.wrong: the generator text also gets the true label"):
        generate.STAGE.check(generate.STAGE.inputs(read, context := RunContext()), context)


def test_files_generator_rejects_a_prompt_model(mine, tmp_path):
    read = mine("generator={kind: files, path: x}", "prompts={style: llm, llm: {model: m}}")
    with pytest.raises(
        InputError, match=r"prompts\.style: generator files uses no prompts, so a language model"
    ):
        pipeline.execute(read, tmp_path / "run")


@pytest.mark.slow
def test_run_killed_twice_asks_nothing_twice(mine, chat_server, tmp_path):
    kills = 2

    def behave(query, seed, number):
        time.sleep(0.05)
        kind = "bad" if 'class "bad"' in query else "good"
        return f"a {kind} text of the seed {seed}" if seed % 3 else "no"

    chat_server.behave = behave
    settings = [f"generator.base_url={chat_server.url}", "generator.model=m", "generator.parallel=1"]
    read = mine(*settings, "prompts.per_label=20")
    pipeline.execute(read, tmp_path / "whole", until="generate")
    whole = [json.dumps(request) for _, request in chat_server.asked]
    (tmp_path / "t.yaml").write_text(config.dump(read))
    command = ["run", tmp_path / "t.yaml", "--until", "generate", "--out", tmp_path / "killed"]
    chat_server.asked.clear()
    for kill in range(1, kills + 1):
        process = Command(*command)
        while len(chat_server.asked) < 12 * kill and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None
        process.kill()
    run_command(*command)
    asked = [json.dumps(request) for _, request in chat_server.asked]
    assert set(asked) == set(whole)
    assert len(asked) <= len(whole) + kills, "only what was in flight is asked again"
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
