"""Clients that have texts written in the manner of their own."""

import itertools
import json

import pytest
from support.opened import open_run

from genfl import config, pipeline
from genfl.errors import InputError

CONFIG = """
{name: t, model: {name: lstm, embedding: 4, width: 4}, seeds: [0],
 data: {name: texts, length: 8, partition: {kind: dirichlet, alpha: 0.1, clients: 3, min_size: 2}},
 generator: {kind: text, model: m, words: 3, shots: 2, trusted: true},
 prompts: {per_label: 6, block_size: 5},
 content: {samples: 12, guidance: real},
 pretrain: {epochs: 1, batch_size: 4},
 federate: {rounds: 1, clients_per_round: 2, local: {steps: 1, batch_size: 2}, engine: sequential},
 methods: {vanilla: {algorithm: fedavg}, fedgc: {algorithm: fedavg, data: mixed}}}
"""
WORDS = {"good": "lovely great kind", "bad": "lost late worst"}
ROWS = [
    {"text": f"{word} {what} number {n}", "label": label}
    for label, words in WORDS.items()
    for word, what, n in itertools.product(words.split(), ("crew", "flight"), (1, 2))
]


@pytest.fixture
def parse(tmp_path, monkeypatch, chat_server):
    """Reads the config on a small text folder, with settings."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[::5])):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lambda *overrides: config.parse(
        CONFIG, [f"data.path={tmp_path / 'data'}", f"generator.base_url={chat_server.url}", *overrides]
    )


@pytest.mark.slow
def test_queries_show_the_clients_own_texts_of_the_class(parse, tmp_path, chat_server):
    chat_server.behave = lambda query, seed, number: f"written text {number}"
    settings = parse()
    summary = pipeline.execute(settings, tmp_path / "run")
    run = open_run(settings, tmp_path / "run")
    data = run.data
    assert summary["guided"]["samples"] == summary["methods"]["fedgc"]["generated_samples"] == 12
    (kind,) = run.guided_kinds()
    blocks = run.guided_blocks(kind, 0)
    texts = {row["text"] for row in ROWS}
    queries = [request["messages"][-1]["content"] for _, request in chat_server.asked]
    shown = [sorted(text for text in texts if text in query) for query in queries if "Real examples" in query]
    expected = [sorted(data.originals(rows)) for block in blocks for rows in block.guides]
    assert sorted(shown) == sorted(expected)
    assert all(0 < len(rows) <= 2 for rows in expected)
    for block in blocks:
        for prompt, rows in zip(block.prompts, block.guides, strict=True):
            assert {data.train.labels[row] for row in rows} == {prompt.label}


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("generator.trusted=false", "the server at generator.base_url would see clients' real texts"),
        ("generator.shots=0", "generator.shots is 0, so no real example is shown"),
    ],
)
def test_who_may_not_see_them_is_asked_nothing(parse, tmp_path, chat_server, override, why):
    with pytest.raises(InputError) as caught:
        open_run(parse(override), tmp_path / "run").check("federate")
    assert str(caught.value).startswith(f"methods.fedgc.content.guidance: {why}")
    assert chat_server.asked == []


@pytest.mark.slow
def test_few_shot_queries_show_labelled_texts_of_all_classes_of_one_client(parse, tmp_path, chat_server):
    """Four labelled examples, and two texts a label a query (FedGC, Figure 9)."""
    chat_server.behave = lambda query, seed, number: "\n".join(
        f"{label}: new text {number} {n}" for n in (1, 2) for label in WORDS
    )
    shared = ("data.partition={kind: iid, clients: 2}", "generator.query=fewshot", "generator.shots=4")
    settings = parse(*shared, "prompts.block_size=8")
    assert settings.generator.texts_per_label == 2
    summary = pipeline.execute(settings, tmp_path / "run")
    run = open_run(settings, tmp_path / "run")
    assert summary["guided"]["samples"] == 12
    (kind,) = run.guided_kinds()
    label_of = {row["text"]: row["label"] for row in ROWS}
    queries = [request["messages"][-1]["content"] for _, request in chat_server.asked]
    shown = [
        [line.removeprefix("- ").split(": ", 1) for line in query.splitlines() if line.startswith("- ")]
        for query in queries
        if "Real examples" in query
    ]
    assert len(shown) == 4  # of each client, 3 texts of each class: two queries
    for examples in shown:
        assert sorted(label for label, _ in examples) == ["bad", "bad", "good", "good"]
        assert all(label_of[text] == label for label, text in examples)
        rows = [run.data.originals([row])[0] for row in run.train_rows(0)[0]]
        assert len({text in rows for _, text in examples}) == 1, "of one client"
    texts = [row for block in run.guided_blocks(kind, 0) for row in block.guides]
    assert all(len(set(rows)) == 4 for rows in texts)
