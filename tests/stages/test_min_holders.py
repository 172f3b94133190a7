"""Label names that few clients hold: they are in no file, log or report of a run."""

import datasets
import pytest

from genfl import config, pipeline
from genfl.errors import InputError
from genfl.experiment.context import RunContext

from ..data.helpers import tables

RARE = "quokka"
WORDS = {"cat": "meow purr", "dog": "bark growl", RARE: "hop munch"}


def rows(client, labels, count=4):
    return [
        {"text": f"{WORDS[label]} {client} {n}", "label": label, "who": client}
        for label in labels
        for n in range(count)
    ]


@pytest.fixture
def given(tmp_path):
    train = [row for client in ("ann", "bob", "eve") for row in rows(client, ("cat", "dog"))]
    train += rows("ann", (RARE,)) + rows("dan", ("cat", RARE))
    own = tables(tmp_path / "own", "jsonl", train=train, test=rows("zoe", WORDS, 3))
    generated = rows("g", ("cat", "dog"), 6)
    made = tables(tmp_path / "made", "csv", train=[{**row, "text": f"{row['text']}!"} for row in generated])
    return [f"data.path={own}", f"generator.path={made}"]


RUN = """
{name: t, model: {name: lstm, embedding: 4, width: 4}, seeds: [0, 1], labels: {min_holders: 3},
 data: {name: texts, length: 6, client_id: who, partition: {kind: natural, test: 0.25}},
 generator: {kind: files}, prompts: {style: label, per_label: 5}, report: {real_examples: true},
 pretrain: {epochs: 1, batch_size: 4},
 federate: {rounds: 2, clients_per_round: 2, local: {steps: 1, batch_size: 2}, heterogeneity: true,
            engine: sequential},
 methods: {fedavg: {algorithm: fedavg}, gptfl: {algorithm: fedavg, start: pretrained},
           fedgc: {algorithm: fedavg, data: mixed}, alone: {algorithm: local}}}
"""


@pytest.mark.slow
def test_no_file_or_log_of_a_run_holds_a_name_of_too_few_holders(given, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "run"
    summary = pipeline.execute(config.parse(RUN, given), folder)
    assert summary["labels"]["found"] == ["cat", "dog"]
    assert summary["labels"]["holders"] == {"cat": 4, "dog": 3}
    assert summary["test_samples"] == 6, "3 of each of the two labels"
    context = RunContext()
    data = context.resolve(config.parse(RUN, given)).data
    names, (_, held_back) = context.data_set(data).train.labels, context.train_test_rows(data, 0)
    kept = sum(names[row] != RARE for rows in held_back for row in rows)
    assert summary["methods"]["fedavg"]["clients"]["samples"][0] == kept < sum(map(len, held_back))
    for path in folder.rglob("*"):
        assert RARE not in path.name
        if path.is_file():
            assert RARE.encode() not in path.read_bytes(), path
    assert RARE not in caplog.text
    shards = datasets.load_dataset(str(folder / "synthetic"), split="train")
    assert set(shards.features["label"].names) == {"cat", "dog"}
    page = (folder / "report" / "index.html").read_text()
    assert "names of the labels that 3 clients or more hold" in page
    # without a least number, all labels are found, and the generator lacks one
    with pytest.raises(InputError, match=RARE):
        pipeline.execute(config.parse(RUN, [*given, "labels.min_holders=1"]), tmp_path / "other")


def test_what_cannot_be_left_out_is_rejected_without_a_name(given, tmp_path):
    def problem(*overrides):
        with pytest.raises(InputError) as caught:
            pipeline.execute(config.parse(RUN, [*given, *overrides]), tmp_path / "run")
        line = str(caught.value)
        assert line.startswith("labels.min_holders: ")
        assert "\n" not in line
        assert RARE not in line
        return line

    assert "5, but there are 4 clients; lower it" in problem("labels.min_holders=5")
    assert "1 label names are held by 4 clients, and 2 are needed" in problem("labels.min_holders=4")
    own = tables(
        tmp_path / "lone",
        "jsonl",
        train=[*rows("ann", ("cat", "dog")), *rows("bob", ("cat", "dog")), *rows("dan", (RARE,))],
        test=rows("zoe", WORDS, 3),
    )
    line = problem(f"data.path={own}", "labels.min_holders=2")
    assert "client 2 would have no examples left, because fewer than 2 clients hold its label names" in line
