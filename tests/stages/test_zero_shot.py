"""The generator as a classifier of texts, in whole runs with a server."""

import itertools
import json

import pytest
from support.opened import open_run

from genfl import config, pipeline
from genfl.errors import InputError
from genfl.rng import Key

CONFIG = """
{name: t, model: {name: lstm, embedding: 4, width: 4}, seeds: [0, 1],
 data: {name: texts, length: 8, partition: {kind: iid, clients: 3}},
 generator: {kind: text, model: m, words: 3, trusted: true},
 prompts: {per_label: 6, block_size: 5}, pretrain: {epochs: 1, batch_size: 4},
 federate: {rounds: 1, clients_per_round: 2, local: {steps: 1, batch_size: 2}, engine: sequential},
 methods: {vanilla: {algorithm: fedavg}, zero: {algorithm: generator},
           few: {algorithm: {name: generator, shots: 4}}}}
"""
WORDS = {"good": "lovely great kind", "bad": "lost late worst"}
ROWS = [
    {"text": f"{word} {what} number {n}", "label": label}
    for label, words in WORDS.items()
    for word, what, n in itertools.product(words.split(), ("crew", "flight"), range(4))
]


def parse_with(tmp_path, url, *overrides):
    return config.parse(CONFIG, [f"data.path={tmp_path / 'data'}", f"generator.base_url={url}", *overrides])


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    lines = [json.dumps(row) + "\n" for row in ROWS]
    (tmp_path / "data" / "train.jsonl").write_text("".join(lines))


@pytest.mark.slow
def test_a_chat_model_classifies_the_test_set_with_examples_of_one_client(tmp_path, chat_server, data):
    """The test set is set apart from the training file, so its rows are not those of the training set."""
    shown = []

    def behave(query, seed, number):
        if not query.startswith("To which class"):
            return f"written text {number}"
        *examples, asked = query.split("Text: ")[1:]
        shown.append([tuple(example.strip().split("\nClass: ")) for example in examples])
        first = asked.split()[0]
        # right, but for what is late
        return "good" if first == "late" or first in WORDS["good"].split() else "bad"

    chat_server.behave = behave
    settings = parse_with(tmp_path, chat_server.url)
    summary = pipeline.execute(settings, tmp_path / "run")
    run = open_run(settings, tmp_path / "run")
    texts = list(run.data.test_originals(range(len(run.data.test.labels))))
    label_of = {row["text"]: row["label"] for row in ROWS}
    assert [label_of[text] for text in texts] == list(run.data.test.labels)
    right = sum(not text.startswith("late") for text in texts) / len(texts)
    for name in ("zero", "few"):
        assert summary["methods"][name]["accuracy"]["per_seed"] == pytest.approx([right, right])
        assert summary["methods"][name]["uses_generator"]
    assert 0 < right < 1
    assert [len(pairs) for pairs in shown if pairs] == [4] * 2 * len(texts)
    for pairs in filter(None, shown):
        assert sorted(label for _, label in pairs) == ["bad", "bad", "good", "good"]
        assert all(label_of[text] == label for text, label in pairs)
    sets = {tuple(pairs) for pairs in shown if pairs}
    assert len(sets) == 2, "one of each seed, in all of its queries"
    for seed in (0, 1):
        client = int(Key(seed).fold("shots").fold("client").numpy().integers(3))
        own = set(run.data.originals(run.train_rows(seed)[client]))
        assert any({text for text, _ in pairs} <= own for pairs in sets), "of one client"
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "the generator as a classifier of texts, shown no example" in page
    assert "the generator as a classifier of texts, shown 4 labelled examples" in page
    before = len(chat_server.asked)
    pipeline.execute(
        parse_with(tmp_path, chat_server.url, "federate.rounds=2"), tmp_path / "run", update=True
    )
    assert len(chat_server.asked) == before, "what was classified is not classified again"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "generator.trusted=false",
            "methods.zero.algorithm: the server at generator.base_url would see the test set; set",
        ),
        (
            "methods.zero.algorithm={name: generator, normalize: true}",
            "methods.zero.algorithm: normalize: a ",
        ),
    ],
)
def test_what_a_server_may_not_do_is_named_before_it_is_asked(tmp_path, chat_server, data, override, line):
    with pytest.raises(InputError) as caught:
        open_run(parse_with(tmp_path, chat_server.url, override), tmp_path / "run").check("federate")
    assert str(caught.value).startswith(line)
    assert chat_server.asked == []


def test_a_query_with_an_unknown_blank_is_one_mistake():
    with pytest.raises(InputError) as caught:
        config.parse(CONFIG, ["data.path=x", "methods.zero.algorithm={name: generator, query: '{text} {x}'}"])
    assert str(caught.value) == (
        "methods.zero.algorithm.query: the blank {x} is unknown; use {labels}, {text}, {examples}, or {{ for"
        " a brace"
    )


def test_a_query_without_its_blank_for_examples_is_refused_with_shots():
    query = "methods.zero.algorithm={name: generator, query: 'Which is {text}?', shots: %d}"
    with pytest.raises(InputError) as caught:
        config.parse(CONFIG, ["data.path=x", query % 8])
    assert str(caught.value) == (
        "methods.zero.algorithm.query: it lacks the blank {examples}, but shots is 8; add it, or set"
        " shots to 0"
    )
    config.parse(CONFIG, ["data.path=x", query % 0])
