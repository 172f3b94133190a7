"""Test sets that genfl draws: by groups, by clients as LEAF does; domains in folders; joined texts."""

import numpy as np
import pytest
import torch

from genfl import config
from genfl.data.sources import DATASETS
from genfl.data.texts import TokenFormat
from genfl.errors import InputError
from genfl.experiment.context import RunContext

from .helpers import png, tables


def lesions(seed, names, first=0):
    """Returns rows as the Hub's HAM10000 has them: some lesions have several photos."""
    rng = np.random.default_rng(seed)
    kinds = ("melanoma", "melanocytic_Nevi", "dermatofibroma")
    rows = []
    for number, name in enumerate(names):
        for _ in range(1 + number % 3):
            photo = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            row = {"image": {"bytes": png(photo), "path": None}, "dx": kinds[number % 3], "lesion_id": name}
            rows.append({**row, "image_id": f"ISIC_{first + len(rows)}"})
    return rows


def test_ham10000_shares_no_lesion_between_train_and_test(tmp_path):
    """The Hub's own splits overlap."""
    train, test = lesions(0, [f"HAM_{n}" for n in range(60)]), lesions(1, [f"HAM_{n}" for n in range(50, 74)])
    data = DATASETS["ham10000"].load(path=str(tables(tmp_path / "d", train=train, test=test)))
    assert not {*data.train.groups} & {*data.test.groups}
    assert {*data.train.groups} == {f"HAM_{n}" for n in range(50)}
    assert len(data.test.labels) == len(test), "the test set is whole"
    assert len(data.train.x) == len(data.train.labels) == sum(1 + n % 3 for n in range(50))
    left_out = len(train) - len(data.train.labels)
    assert f"{left_out} images of train share lesion_id with the test set and are left out" in data.notes
    kept = [row for row in train if int(row["lesion_id"][4:]) < 50]
    images = data.originals(range(len(kept)))
    assert len(images) == len(data.train.x)
    for image, x, row in zip(images, data.train.x, kept, strict=True):
        assert png(np.asarray(image)) == row["image"]["bytes"], "the photo of the file, at its own size"
        assert torch.equal(data.encode(image), x)


def test_ham10000_without_splits_is_divided_by_lesion(tmp_path):
    rows = lesions(0, [f"HAM_{n}" for n in range(90)])
    data = DATASETS["ham10000"].load(path=str(tables(tmp_path / "d", train=rows)))
    assert not {*data.train.groups} & {*data.test.groups}
    assert sorted(data.train.labels + data.test.labels) == sorted(
        {"melanoma": "melanoma", "melanocytic_Nevi": "melanocytic nevi", "dermatofibroma": "dermatofibroma"}[
            row["dx"]
        ]
        for row in rows
    )
    for label in {*data.train.labels}:
        share = data.test.labels.count(label) / (data.test.labels + data.train.labels).count(label)
        assert 0.2 <= share < 0.27, "a fifth of each class, and at most a lesion more"
    again = DATASETS["ham10000"].load(path=str(tmp_path / "d"))
    assert list(again.test.groups) == list(data.test.groups)


def test_groups_of_the_users_own(tmp_path):
    rows = [
        {"text": f"{label} {n}", "label": label, "patient": n // 4}
        for label in ("ill", "well")
        for n in range(40)
    ]
    folder = tables(tmp_path / "d", "csv", train=rows)
    plain = DATASETS["texts"].load(path=str(folder))
    data = DATASETS["texts"].load(path=str(folder), group="patient")
    assert plain.train.groups is None
    assert not {*data.train.groups} & {*data.test.groups}
    assert data.digest != plain.digest
    with pytest.raises(InputError, match=r"data\.group: no column 'doctor'"):
        DATASETS["texts"].load(path=str(folder), group="doctor")
    single = [{"text": f"{label} {n}", "label": label, "patient": label} for label in "ab" for n in range(9)]
    with pytest.raises(InputError, match=r"data\.group: a class has a single patient, 'a'"):
        DATASETS["texts"].load(path=str(tables(tmp_path / "s", "csv", train=single)), group="patient")


# --- LEAF


def tweets(folder):
    """Writes tweets as the Hub's Sentiment140 has them: users with 1 to 40 tweets, and another test set."""
    train = [
        {"text": f"tweet {n} of {user}", "user": f"u{user:02}", "sentiment": 4 * (n % 2)}
        for user, count in enumerate([1, 2, 3, 10, 11, 19, 20, 40])
        for n in range(count)
    ]
    test = [{"text": f"other {n}", "user": "v", "sentiment": 2 * (n % 3)} for n in range(12)]
    return str(tables(folder, train=train, test=test))


def test_sentiment140_has_its_own_test_set_without_neutral_tweets(tmp_path):
    data = DATASETS["sentiment140"].load(path=tweets(tmp_path / "d"))
    assert sorted(data.test.labels) == ["negative"] * 4 + ["positive"] * 4


def test_leafs_test_set_is_a_tenth_of_each_users_tweets(tmp_path):
    data = DATASETS["sentiment140"].load(path=tweets(tmp_path / "d"), test_from="samples")
    counts = {user: data.train.client_ids.count(user) for user in {*data.train.client_ids}}
    # LEAF keeps max(1, int(0.9 n)) of n tweets for training
    assert counts == {"u00": 1, "u01": 1, "u02": 2, "u03": 9, "u04": 9, "u05": 17, "u06": 18, "u07": 36}
    assert len(data.train.labels) + len(data.test.labels) == 106
    least = DATASETS["sentiment140"].load(path=tweets(tmp_path / "e"), test_from="samples", least=10)
    assert {*least.test.client_ids} == {*least.train.client_ids} == {"u03", "u04", "u05", "u06", "u07"}
    assert "6 texts of clients with fewer than 10 are left out" in least.notes
    assert "10 % of the samples of each client, drawn at random, are the test set" in data.notes


def test_leafs_other_test_set_is_a_tenth_of_the_users(tmp_path):
    data = DATASETS["sentiment140"].load(path=tweets(tmp_path / "d"), test_from="clients", test_share=0.25)
    assert not {*data.train.client_ids} & {*data.test.client_ids}
    assert len({*data.test.client_ids}) == 2
    assert len(data.train.labels) + len(data.test.labels) == 106


def test_a_drawn_test_set_needs_clients(tmp_path):
    rows = [{"text": f"{label} {n}", "label": label} for label in ("a", "b") for n in range(9)]
    folder = str(tables(tmp_path / "d", "csv", train=rows))
    with pytest.raises(InputError, match=r"data\.test_from: samples, but the data names no clients"):
        DATASETS["texts"].load(path=folder, test_from="samples")


RUN = """
name: leaf
data: {name: sentiment140, path: nowhere, test_from: samples, partition: {kind: natural, min_size: 10}}
generator: none
model: lstm
federate: {clients_per_round: 2}
methods: {fedavg: {algorithm: fedavg}}
"""


def test_natural_clients_are_those_that_leaf_keeps(tmp_path):
    settings = config.parse(RUN, [f"data.path={tweets(tmp_path / 'd')}"])
    context = RunContext()
    assert context.resolve(settings).data.partition.clients == 5
    assert [len(rows) for rows in context.client_rows(settings.data, 0)] == [9, 9, 17, 18, 36]


def test_settings_of_a_drawn_test_set_that_cannot_be():
    with pytest.raises(InputError, match=r"data\.test_share: only for test_from"):
        config.parse(RUN, ["data.test_from=split", "data.test_share=0.2"])
    with pytest.raises(InputError, match=r"data\.group: test_from draws single samples"):
        config.parse(RUN, ["data.group=user"])
    lesions_by_site = ["data.name=ham10000", "data.client_id=site", "model=cnn"]
    with pytest.raises(InputError, match=r"data\.test_from: samples, but .* one lesion_id on both sides"):
        config.parse(RUN, lesions_by_site)
    with pytest.raises(InputError, match=r"data\.test_from: clients, but .* use split for ham10000"):
        config.parse(RUN, [*lesions_by_site, "data.test_from=clients"])
    config.parse(RUN, [*lesions_by_site, "data.test_from=split"])


# --- VLCS and Yahoo! Answers


def test_vlcs_is_read_from_folders_of_domains(tmp_path):
    for number, domain in enumerate(("Caltech101", "LabelMe", "SUN09", "VOC2007")):
        for label in ("bird", "car", "chair", "dog", "person"):
            folder = tmp_path / "VLCS" / domain / label
            folder.mkdir(parents=True)
            for n in range(5):
                pixels = np.full((6, 6, 3), 40 * number + n, np.uint8)
                (folder / f"{n}.png").write_bytes(png(pixels))
    data = DATASETS["vlcs"].load(path=str(tmp_path / "VLCS"))
    assert {*data.train.labels} == {"bird", "car", "chair", "dog", "person"}
    assert {*data.train.client_ids} == {"Caltech101", "LabelMe", "SUN09", "VOC2007"}
    for x, domain in zip(data.train.x, data.train.client_ids, strict=True):
        assert int(x[0, 0, 0]) // 40 == ("Caltech101", "LabelMe", "SUN09", "VOC2007").index(domain)
    text = """
name: vlcs
data: {name: vlcs, partition: {kind: domain, clients_per_domain: 2}}
generator: none
model: cnn
federate: {clients_per_round: 4}
methods: {fedavg: {algorithm: fedavg}}
"""
    resolved = RunContext().resolve(config.parse(text, [f"data.path={tmp_path / 'VLCS'}"]))
    assert resolved.data.partition.clients == 8


def test_yahoo_answers_have_questions_and_answers(tmp_path):
    rows = [
        {
            "id": n,
            "topic": n % 2,
            "question_title": f"title {n}",
            "question_content": "" if n == 3 else f"more {n}",
            "best_answer": f"answer {n}",
        }
        for n in range(12)
    ]
    data = DATASETS["yahoo_answers"].load(path=str(tables(tmp_path / "d", train=rows, test=rows)))
    encoding = TokenFormat(128)
    assert data.shape == (128,)
    assert torch.equal(data.test.x[2], torch.from_numpy(encoding.encode("title 2 more 2 answer 2")))
    assert torch.equal(data.test.x[3], torch.from_numpy(encoding.encode("title 3 answer 3")))
    assert list(data.originals([1])) == ["title 1 more 1 answer 1"]
    titles = DATASETS["yahoo_answers"].load(path=str(tmp_path / "d"), input="question_title")
    assert torch.equal(titles.test.x[2], torch.from_numpy(encoding.encode("title 2")))
    with pytest.raises(InputError, match=r"data\.input: no column 'question_title \+ nothing'"):
        DATASETS["yahoo_answers"].load(path=str(tmp_path / "d"), input="question_title + nothing")
