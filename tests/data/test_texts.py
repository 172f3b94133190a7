import hashlib
import json
import re
import sys
import unicodedata

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.opened import open_run

from genfl import config, pipeline
from genfl.algorithms import ALGORITHMS
from genfl.data.recipes import RECIPES
from genfl.data.samples import Prompt
from genfl.data.sources import DATASETS
from genfl.data.texts import (
    HASH_BUCKETS,
    HASHED_TOKENIZER,
    TokenFormat,
    hash_words,
    load_tokenizer,
    train_tokenizer,
)
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.generators.files import Files
from genfl.models import LSTM

from .helpers import find, tables

TEXTS = [
    "The cat sat.",
    "A dog barked at the cat!",
    "Cats and dogs",
    "it rains, again",
    "the sun",
    "Sun, sea",
]


@pytest.fixture
def words(tmp_path):
    """A tokenizer.json that knows the words of `TEXTS`."""
    train_tokenizer(TEXTS, 100, tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


def ids(form, text):
    return [int(token) for token in form.encode(text) if token]


class TestHashing:
    def test_words_have_the_same_buckets_everywhere_and_always(self):
        assert hash_words("the cat, don't!", 9) == [6789, 6903, 2795, 3496, 9230, 1486, 7198]

    @pytest.mark.slow
    @given(st.text(max_size=60), st.integers(1, 40))
    def test_it_is_what_its_description_says(self, text, length):
        found = re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFC", text).lower())
        expected = [
            int(hashlib.blake2b(word.encode(), digest_size=8).hexdigest(), 16) % HASH_BUCKETS
            for word in found
        ]
        assert hash_words(text, length) == expected[:length]

    def test_letters_of_any_case_and_composition_are_one(self):
        assert hash_words("Café AU lait", 9) == hash_words("cafe\u0301 au\tlait", 9)

    @given(st.text(min_size=1).filter(str.strip))
    def test_a_text_that_is_not_blank_has_tokens(self, text):
        assert hash_words(text, 1)

    def test_all_buckets_are_used_alike(self):
        counts = np.bincount(
            [hash_words(f"word{n}", 1)[0] for n in range(10 * HASH_BUCKETS)], minlength=HASH_BUCKETS
        )
        # Poisson with mean 10: variance 10, and P(0) = 4.5e-5
        assert abs(counts.var() - 10) < 0.6
        assert (counts == 0).sum() < 5


class TestTokens:
    def test_texts_are_cut_at_the_length_and_padded_behind_their_end(self):
        short, long = TokenFormat(4).encode("one two"), TokenFormat(4).encode("one two three four five six")
        assert (
            (short.shape, short.dtype) == ((4,), np.int32) == (TokenFormat(4).shape(), TokenFormat(4).dtype())
        )
        assert short[2:].tolist() == [0, 0]
        assert (long > 0).all()
        assert long[:2].tolist() == short[:2].tolist()

    @pytest.mark.slow
    def test_no_token_is_padding_and_none_is_outside_the_vocabulary(self):
        tokens = {token for n in range(60_000) for token in ids(TokenFormat(2), f"w{n}")}
        assert min(tokens) == 1
        assert max(tokens) == TokenFormat(2).vocabulary() - 1 == 9_999

    def test_models_read_the_very_ids(self):
        stored = torch.tensor([[0, 1, 9_999, 2**24]], dtype=torch.int32)
        given = TokenFormat(4).prepare(stored)
        assert given.dtype == torch.float32
        assert torch.equal(given.long(), stored.long())

    def test_the_length_changes_nothing_for_a_text_that_fits(self):
        torch.manual_seed(0)
        model = LSTM((8,), 3, vocabulary=10_000).eval()
        logits = [
            model(TokenFormat(n).prepare(torch.from_numpy(TokenFormat(n).encode("one two three"))[None]))
            for n in (3, 8, 30)
        ]
        assert torch.allclose(logits[0], logits[1], atol=1e-6)
        assert torch.allclose(logits[0], logits[2], atol=1e-6)

    def test_its_defaults_fit_the_lstm(self):
        assert TokenFormat(8).vocabulary() == config.parse(BASE).model.options()["vocabulary"]


class TestTokenizer:
    def test_ids_are_the_tokenizers_own_after_padding(self, words):
        form, own = TokenFormat(8, str(words)), tokenizers.Tokenizer.from_file(str(words))
        assert ids(form, "The CAT flew.") == [
            1 + own.token_to_id(token) for token in ("the", "cat", "[UNK]", ".")
        ]
        assert form.vocabulary() == 1 + own.get_vocab_size()
        assert max(ids(TokenFormat(40, str(words)), " ".join(own.get_vocab()))) < form.vocabulary()

    def test_a_folder_stands_for_its_file(self, words):
        assert (
            TokenFormat(8, str(words.parent)).encode("a dog").tolist()
            == TokenFormat(8, str(words)).encode("a dog").tolist()
        )

    def test_marks_padding_and_cuts_of_the_file_are_left_aside(self, words, tmp_path):
        own = tokenizers.Tokenizer.from_file(str(words))
        own.add_special_tokens(["[CLS]"])
        own.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", own.token_to_id("[CLS]"))]
        )
        own.enable_padding(length=20)
        own.enable_truncation(2)
        own.save(str(tmp_path / "marked.json"))
        assert len(own.encode("the cat sat.").ids) == 20
        assert ids(TokenFormat(8, str(tmp_path / "marked.json")), "The cat sat.") == ids(
            TokenFormat(8, str(words)), "The cat sat."
        )

    def test_gaps_in_its_ids_are_no_danger(self, tmp_path):
        own = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
        own.save(str(tmp_path / "gaps.json"))
        form = TokenFormat(1, str(tmp_path / "gaps.json"))
        assert (ids(form, "b"), form.vocabulary()) == ([8], 9)

    def test_a_text_without_tokens_is_padding(self, tmp_path):
        own = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
        own.normalizer = tokenizers.normalizers.Replace("z", "")
        own.save(str(tmp_path / "deaf.json"))
        assert TokenFormat(3, str(tmp_path / "deaf.json")).encode("zzz").tolist() == [0, 0, 0]

    def test_one_that_gives_up_on_unknown_words_is_refused(self, tmp_path):
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0})).save(str(tmp_path / "poor.json"))
        folder = tables(tmp_path / "d", train=ROWS, test=TEST)
        with pytest.raises(InputError, match=r"data.tokenizer: \S*poor.json cannot read a text .*unknown"):
            texts(folder, tokenizer=str(tmp_path / "poor.json"))

    def test_what_it_is_counts_and_where_it_is_does_not(self, words, tmp_path):
        (tmp_path / "b").mkdir()
        copy = tmp_path / "b" / "tokenizer.json"
        copy.write_bytes(words.read_bytes())
        train_tokenizer(TEXTS, 5, tmp_path / "small.json")
        one, same, other, plain = (
            TokenFormat(8, str(path)).identity()
            for path in (words, copy, tmp_path / "small.json", HASHED_TOKENIZER)
        )
        assert one == same
        assert len({json.dumps(identity) for identity in (one, other, plain)}) == 3

    @pytest.mark.parametrize(
        ("name", "line"),
        [
            (
                "no/such/place/tokenizer.json",
                "there is no file no/such/place/tokenizer.json; give another tokenizer, or hashed",
            ),
            ("./nowhere", "there is no file nowhere"),
            ("FOLDER", "tokenizer.json; give another tokenizer, or hashed"),
            ("FOLDER/broken.json", "broken.json cannot be read as a tokenizer"),
            ("FOLDER/empty.json", "empty.json cannot be read as a tokenizer (it has no tokens)"),
            (
                "someone/some-model",
                "cannot be downloaded from the Hugging Face Hub (HF_HUB_OFFLINE switches the Hub off)",
            ),
        ],
    )
    def test_what_cannot_be_read(self, tmp_path, monkeypatch, name, line):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        (tmp_path / "broken.json").write_text('{"model": 1}')
        tokenizers.Tokenizer(tokenizers.models.WordLevel({})).save(str(tmp_path / "empty.json"))
        with pytest.raises(InputError) as caught:
            load_tokenizer(name.replace("FOLDER", str(tmp_path)))
        assert str(caught.value).startswith("data.tokenizer: ")
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_changed_file_is_read_by_a_new_format_and_not_by_one_in_use(self, words):
        used = TokenFormat(8, str(words))
        before = (used.identity(), ids(used, "a dog"))
        train_tokenizer(["dog dog a"], 3, words)
        assert (used.identity(), ids(used, "a dog")) == before
        changed = TokenFormat(8, str(words))
        assert changed.identity() != before[0]
        assert ids(changed, "a dog") == [3, 2] != before[1]

    def test_a_data_set_read_again_has_the_changed_tokenizer(self, words, tmp_path):
        folder = tables(tmp_path / "d", train=ROWS, test=TEST)
        before = texts(folder, tokenizer=str(words))
        train_tokenizer(["good bad"], 3, words)
        after = texts(folder, tokenizer=str(words))
        assert after.digest != before.digest
        assert (after.vocabulary, int(after.train.x.max())) == (4, 3)

    def test_without_the_library_hashing_goes_on(self, words, monkeypatch):
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        assert ids(TokenFormat(4), "a cat")
        with pytest.raises(InputError, match=r"pip install 'genfl\[text\]', or use hashed"):
            TokenFormat(4, str(words)).encode("a cat")


class TestVocabulary:
    def test_the_most_frequent_words_stay_and_the_rest_is_unknown(self, tmp_path):
        train_tokenizer(["b b b a a c", "B, a"], 3, tmp_path / "v" / "t.json")
        known = tokenizers.Tokenizer.from_file(str(tmp_path / "v" / "t.json")).get_vocab()
        assert known == {"[UNK]": 0, "b": 1, "a": 2}

    def test_the_same_texts_give_the_same_file(self, tmp_path):
        texts = [f"w{n % 97} w{n % 89} w{n}" for n in range(500)]  # with many ties
        for name in ("a", "b"):
            train_tokenizer(texts, 150, tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


ROWS = [
    {"text": text, "label": label, "who": who}
    for n in range(6)
    for text, label, who in (
        (f'good, "{n}"\nday', "like_new", f"u{n % 3}"),
        (f"bad bad day {n}", "broken", f"u{n % 2}"),
    )
]
TEST = [{"text": "good", "label": "like_new", "who": "u9"}, {"text": "bad", "label": "broken", "who": "u9"}]


def texts(folder, **options):
    return DATASETS["texts"].load(path=str(folder), **options)


class TestOnesOwn:
    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_tables_of_any_kind_are_the_same_examples(self, tmp_path, kind):
        data = texts(tables(tmp_path / "d", kind, train=ROWS, test=TEST), client_id="who", length=6)
        assert data.train.x.tolist() == [TokenFormat(6).encode(row["text"]).tolist() for row in ROWS]
        assert data.train.labels == [row["label"].replace("_", " ") for row in ROWS]
        assert data.train.client_ids == [row["who"] for row in ROWS]
        assert data.test.labels == ["like new", "broken"]
        assert (data.modality, data.vocabulary, data.decode) == ("text", 10_000, None)
        assert data.encode("good day").tolist() == TokenFormat(6).encode("good day").tolist()

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_empty_texts_are_left_out_and_counted(self, tmp_path, caplog, kind):
        rows = [
            *ROWS,
            {"text": " \n", "label": "broken", "who": "a"},
            {"text": None, "label": "broken", "who": "a"},
        ]
        data = texts(tables(tmp_path / "d", kind, train=rows, test=TEST))
        assert len(data.train.x) == len(data.train.labels) == len(ROWS)
        assert "2 texts of train cannot be read and are left out: rows 12, 13" in caplog.text

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ({"input": "body"}, "data.input: no column 'body' in"),
            ({"label": "topic"}, "data.label: no column 'topic' in"),
            ({"client_id": "author"}, "data.client_id: no column 'author' in"),
            ({"input": "label", "label": "text"}, "data.label: split test has the label 'good'"),
        ],
    )
    def test_wrong_columns(self, tmp_path, options, line):
        with pytest.raises(InputError, match=line):
            texts(tables(tmp_path / "d", train=ROWS, test=TEST), **options)

    def test_numbers_are_no_texts(self, tmp_path):
        rows = [{"text": n, "label": "ab"[n % 2]} for n in range(4)]
        with pytest.raises(InputError, match=r"data.input: none of the 4 cells .* can be read as texts"):
            texts(tables(tmp_path / "d", train=rows))

    def test_a_label_that_train_has_not(self, tmp_path):
        more = {"text": "x", "label": "unheard of", "who": "u"}
        folder = tables(tmp_path / "d", "jsonl", train=ROWS, test=[*TEST, more])
        with pytest.raises(
            InputError, match=r"split test has the label 'unheard of', which is none of the 2"
        ):
            texts(folder)

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_none_is_a_word_and_nothing_is_no_label(self, tmp_path, kind, caplog):
        labels = ["None", "NA", "null", "None", "NA", "null", "" if kind == "jsonl" else None]
        rows = [
            {"text": "None" if row == 2 else f"t{row}", "label": label} for row, label in enumerate(labels)
        ]
        data = texts(tables(tmp_path / "d", kind, train=rows, test=rows[:3]))
        assert data.train.labels == labels[:6]
        assert "1 texts of train have no label and are left out: rows 6" in caplog.text

    def test_cells_of_csv_are_text_as_they_are(self, tmp_path):
        rows = [
            {"text": f"t{row}", "label": ["01", "1", "0.0"][row % 3], "who": f"0{row % 2}"}
            for row in range(12)
        ]
        folder = tables(tmp_path / "d", "csv", train=rows, test=rows[:3])
        data = texts(folder, client_id="who")
        assert data.train.labels == ["01", "1", "0.0"] * 4
        assert data.train.client_ids == ["00", "01"] * 6
        for table in folder.iterdir():  # as Excel writes them in much of Europe
            table.write_text("\ufeff" + table.read_text().replace(",", ";"), encoding="utf-8")
        assert texts(folder, client_id="who").train.labels == data.train.labels

    def test_csv_as_it_comes(self, tmp_path):
        """With pandas' index, its columns in another order, a blank first line, and quoted separators."""
        folder = tables(tmp_path / "d", "csv", train=ROWS, test=TEST)
        expected = texts(folder).train
        pd.DataFrame(ROWS).to_csv(folder / "train.csv")
        test = pd.DataFrame(TEST)[["who", "text", "label"]].assign(**{"Unnamed: 0": 0})
        test.to_csv(folder / "test.csv", index=False)
        assert texts(folder).train.labels == expected.labels
        (folder / "test.csv").unlink()
        table = '\n"a;b;c;d",text,label\n' + "".join(f'1,"x, {row}",{"ab"[row % 2]}\n' for row in range(9))
        (folder / "train.csv").write_text(table)
        assert sorted({*texts(folder).train.labels}) == ["a", "b"]

    def test_a_readme_says_what_a_csv_means(self, tmp_path):
        folder = tables(tmp_path / "d", "csv", train=[{"text": f"t{n}", "label": n % 2} for n in range(9)])
        names = "class_label: {names: {'0': neg, '1': pos}}"
        columns = f"[{{name: text, dtype: string}}, {{name: label, dtype: {{{names}}}}}]"
        (folder / "README.md").write_text(f"---\ndataset_info: {{features: {columns}}}\n---\n")
        assert sorted({*texts(folder).train.labels}) == ["neg", "pos"]
        (folder / "train.csv").write_text("t1|a\nt2|b\n" * 5)
        told = "[{config_name: default, data_files: train.csv, sep: '|', names: [text, label]}]"
        (folder / "README.md").write_text(f"---\nconfigs: {told}\n---\n")
        assert sorted({*texts(folder).train.labels}) == ["a", "b"]

    def test_nan_is_no_label_and_nobody(self, tmp_path, caplog):
        nan = float("nan")
        rows = [{"text": f"t{row}", "label": [0.0, 1.0][row % 2], "who": 1.0 + row % 2} for row in range(10)]
        rows[4]["label"] = rows[7]["who"] = nan
        folder = tables(tmp_path / "d", train=rows, test=rows[:2])
        data = texts(folder, client_id="who")
        assert ({*data.train.labels}, {*data.train.client_ids}) == ({"0", "1"}, {"1", "2"})
        assert "1 texts of train have no label and are left out: rows 4" in caplog.text
        assert "1 texts of train have no who and are left out: rows 7" in caplog.text

    def test_labels_of_any_kind_in_any_row(self, tmp_path):
        rows = [{"text": f"t{row}", "label": "12ab"[row // 5_000]} for row in range(20_000)]
        data = texts(tables(tmp_path / "d", "csv", train=rows, test=rows[::4_000]))
        assert data.train.labels == [row["label"] for row in rows]

    @pytest.mark.parametrize(
        ("name", "content", "line"),
        [
            (
                "b.csv",
                b"text,topic\nx,a\n",
                r"b.csv has the columns text, topic, but .*a.csv has text, label; give all tables the same",
            ),
            (
                "b.csv",
                "text,label\nfine,a\ncaf\xe9,b\n".encode("latin-1"),
                r"line 3 of .*b.csv is not UTF-8",
            ),
        ],
    )
    def test_what_is_wrong_with_a_table_is_said(self, tmp_path, name, content, line):
        (tmp_path / "a.csv").write_text("text,label\nx,a\ny,b\n")
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"^data.path: .*{line}"):
            texts(tmp_path)

    def test_a_line_that_is_no_json_is_named(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": "y", "lab\n')
        with pytest.raises(InputError, match=r"^data.path: .*line 2 of .*a.jsonl is not JSON"):
            texts(tmp_path)

    def test_a_table_of_no_split_is_refused(self, tmp_path):
        folder = tables(tmp_path / "d", "csv", train=ROWS, more=ROWS)
        with pytest.raises(InputError, match=r"^data.path: .*more.csv would not be read.* called train"):
            texts(folder)
        tables(tmp_path / "e", "csv", one=ROWS)
        pd.DataFrame(ROWS).to_csv(tmp_path / "e" / "two.csv", index=False)
        both = texts(tmp_path / "e")
        assert len(both.train.labels) + len(both.test.labels) == 2 * len(ROWS)

    def test_a_label_outside_the_names_of_the_file(self, tmp_path):
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
        )
        table = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [0, 1, 1]}, features=features)
        table = table.with_format("arrow")[:].set_column(1, "label", [[0, 1, 7]])
        (tmp_path / "d").mkdir()
        pyarrow.parquet.write_table(table, tmp_path / "d" / "train.parquet")
        with pytest.raises(InputError, match=r"the label '7', which is none of the 2 classes \(a, b\)"):
            texts(tmp_path / "d")

    def test_another_tokenizer_is_another_reading(self, tmp_path, words):
        folder = tables(tmp_path / "d", train=ROWS, test=TEST)
        plain, own = texts(folder), texts(folder, tokenizer=str(words))
        assert plain.digest != own.digest
        assert own.vocabulary == TokenFormat(1, str(words)).vocabulary()
        assert own.train.x.max() < own.vocabulary


def test_the_neutral_tweets_of_sentiment140_which_only_its_test_split_has_are_left_out(tmp_path, caplog):
    def rows(*labels):
        return [{"text": f"t{n}", "user": f"u{n}", "sentiment": label} for n, label in enumerate(labels)]

    folder = tables(tmp_path / "d", train=rows(0, 4, 4, 0), test=rows(2, 4, 2, 0))
    data = DATASETS["sentiment140"].load(path=str(folder))
    assert data.train.labels == ["negative", "positive", "positive", "negative"]
    assert (data.test.labels, data.test.client_ids) == (["positive", "negative"], ["u1", "u3"])
    assert data.test.x[0].tolist() == TokenFormat(48).encode("t1").tolist()
    assert "2 texts of test are of excluded classes and are left out: rows 0, 2" in caplog.text


BASE = """
{name: t, model: lstm, methods: {a: {algorithm: fedavg}}, data: {name: texts, path: x},
 generator: {kind: files, path: x}, federate: {clients_per_round: 2}}
"""


class TestConfig:
    @pytest.mark.parametrize(
        ("overrides", "line"),
        [
            (["data.size=[8, 8]"], "data.size: not an option of texts, which is text; leave it out"),
            (
                ["data.name=mnist", "data.length=8"],
                "data.length: not an option of mnist, which is image; leave it out",
            ),
            (["data.name=mnist", "data.tokenizer=hashed"], "data.tokenizer: not an option of mnist"),
            (["data.length=0"], "data.length: should be greater than or equal to 1, not 0"),
            (["data.tokenizer=''"], "data.tokenizer: string should have at least 1 character"),
            (["data={name: texts}"], "data.path: required for texts; give the folder"),
        ],
    )
    def test_mistakes(self, overrides, line):
        with pytest.raises(InputError) as caught:
            config.parse(BASE, overrides)
        assert line in str(caught.value)

    @pytest.fixture
    def mine(self, tmp_path):
        folder = tables(tmp_path / "d", train=ROWS, test=TEST)
        paths = [f"data.path={folder}", f"generator.path={folder}"]
        return lambda *overrides: config.parse(
            BASE, [*paths, "data.partition={kind: iid, clients: 3}", *overrides]
        )

    def test_the_vocabulary_follows_the_tokenizer(self, mine, words):
        found = RunContext().resolve(
            mine(f"data.tokenizer={words}", "client_models=[lstm, {name: lstm, width: 8}]")
        )
        size = TokenFormat(1, str(words)).vocabulary()
        assert found.model.options()["vocabulary"] == size
        assert [model.options()["vocabulary"] for model in found.client_models] == [size, size]
        again = config.parse(config.dump(found))
        assert again == RunContext().resolve(again) == found

    def test_a_vocabulary_that_is_set_stays(self, mine):
        assert (
            RunContext().resolve(mine("model={name: lstm, vocabulary: 12345}")).model.options()["vocabulary"]
            == 12345
        )

    @pytest.mark.parametrize(
        ("model", "line"),
        [
            ("{name: lstm, vocabulary: 500}", "its vocabulary has 500 tokens, but the tokenizer has 10000"),
            ("mlp", "the inputs are token ids, which the model cannot embed; use lstm"),
        ],
    )
    def test_models_that_cannot_read_the_tokens(self, mine, tmp_path, model, line):
        with pytest.raises(InputError) as caught:
            open_run(mine(f"model={model}"), tmp_path / "run").check("federate")
        assert str(caught.value).startswith(f"model: {'mlp' if model == 'mlp' else 'lstm'} does not fit")
        assert line in str(caught.value)

    def test_a_model_that_cannot_be_batched_is_refused_before_any_work(self, mine, tmp_path):
        with pytest.raises(InputError) as caught:
            open_run(mine("federate.engine=vectorized"), tmp_path / "run").check("federate")
        line = str(caught.value)
        assert line.startswith("federate.engine: vectorized, but clients of "), line
        assert line.endswith("; use auto"), line
        assert "\n" not in line
        open_run(mine("federate.engine=auto"), tmp_path / "run").check("federate")

    @pytest.mark.parametrize("name", ["dynafed", "fedftg"])
    def test_methods_that_learn_inputs_are_refused(self, mine, tmp_path, name):
        settings = mine(f"methods={{m: {{algorithm: {name}}}}}")
        with pytest.raises(InputError) as caught:
            open_run(settings, tmp_path / "run").check("federate")
        assert str(caught.value) == (
            "methods.m.algorithm: it needs a model with inputs that gradients reach,"
            " but lstm has none; use another model or algorithm"
        )

    @pytest.mark.slow
    def test_every_other_method_is_not(self, mine, tmp_path):
        others = [name for name in ALGORITHMS if name not in ("dynafed", "fedftg")]
        methods = {name: {"algorithm": name} for name in others}
        settings = mine(f"methods={json.dumps(methods)}", "client_models=[{name: lstm, width: 8}]")
        open_run(settings, tmp_path / "run").check("federate")


GENERATED = [
    {"text": f"<i>{word}</i> {extra} & day", "topic": label}
    for label, word in (("like_new", "good"), ("broken", "bad"))
    for extra in ("fine", "very", "quite", "so", "how", "too")
]
RUN = """
{name: t, model: {name: lstm, embedding: 4, width: 4}, seeds: [0], report: {target_accuracy: 0.5},
 data: {name: texts, length: 6, partition: {kind: iid, clients: 3}},
 generator: {kind: files, label: topic}, prompts: {style: label, per_label: 5},
 pretrain: {epochs: 2, batch_size: 4},
 federate: {rounds: 2, clients_per_round: 2, local: {steps: 1, batch_size: 2}, evaluate_every: 1,
            engine: sequential},
 methods: {vanilla: {algorithm: fedavg}, gptfl: {algorithm: fedavg, start: pretrained},
           mixed: {algorithm: fedavg, data: mixed}, distilled: {algorithm: feddf}}}
"""


def test_originals_are_the_texts_that_examples_were_made_of(tmp_path):
    """Rows that cannot be read and a test set that is set apart come between the files' rows and ours."""
    written = [None if n % 7 == 3 else f"text number {n} of {n % 2}" for n in range(40)]
    data = texts(
        tables(tmp_path / "own", train={"text": written, "label": [n % 2 for n in range(40)]}), length=8
    )
    count = len(data.train.labels)
    found = data.originals(range(count))
    assert count < 30
    assert len(set(found)) == count
    for row, original in enumerate(found):
        assert original in written
        assert torch.equal(data.encode(original), data.train.x[row])
    assert list(data.originals([4, 2, 4])) == [found[4], found[2], found[4]]
    pd.DataFrame({"text": written[::-1], "label": 20 * [0, 1]}).to_parquet(tmp_path / "own" / "train.parquet")
    with pytest.raises(InputError, match=r"^data.path: the files in .* changed while they were in use"):
        data.originals([4])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_generated_texts_are_taken_from_tables_of_any_kind(tmp_path, kind):
    rows = [*GENERATED, {"text": " ", "topic": "broken"}]
    made = Files(str(tables(tmp_path / "made", kind, train=rows)), "text", label="topic")
    found = [sample.content for sample in made.generate([Prompt("broken", "p", 1.0, n, n) for n in range(6)])]
    assert sorted(found) == sorted(row["text"] for row in GENERATED if row["topic"] == "broken")


@pytest.mark.slow
def test_generated_texts_go_through_the_whole_pipeline(tmp_path, words):
    own = tables(tmp_path / "own", "jsonl", train=ROWS, test=TEST)
    made = tables(tmp_path / "made", "csv", train=GENERATED)
    given = [f"data.path={own}", f"generator.path={made}", f"data.tokenizer={words}"]
    read = config.parse(RUN, given)
    summary = pipeline.execute(read, tmp_path / "run")
    assert set(summary["methods"]) >= {"vanilla", "gptfl", "mixed", "distilled"}
    shards = datasets.load_dataset(str(tmp_path / "run" / "synthetic"), split="train")
    assert len(shards) == 10
    assert set(shards["text"]) < {row["text"] for row in GENERATED}
    label = shards.features["label"].int2str
    assert {(label(row["label"]), "good" in row["text"]) for row in shards} == {
        ("like new", True),
        ("broken", False),
    }
    page = next((tmp_path / "run").rglob("*.html")).read_text()
    assert "10 generated samples of 10 are not shown" in page, "they repeat the private texts word by word"
    assert "&lt;i&gt;good&lt;/i&gt;" not in page
    assert "good, &#34;" not in page, "private texts are no part of it"
    # stopped on the way and gone on with
    pipeline.execute(read, tmp_path / "again", until="generate")
    again = pipeline.execute(read, tmp_path / "again")
    assert again["methods"] == summary["methods"]
    # without an audit nobody knows of the copies
    read = config.parse(RUN, [*given, "audit.overlap=ignore"])
    pipeline.execute(read, tmp_path / "shown", until="report")
    page = next((tmp_path / "shown").rglob("*.html")).read_text()
    assert "not shown, because" not in page
    assert "&lt;i&gt;good&lt;/i&gt;" in page
    assert "<i>good</i>" not in page


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    own = tables(folder / "own", "jsonl", train=ROWS, test=TEST)
    return folder, [f"data.path={own}", f"generator.path={tables(folder / 'made', train=GENERATED)}"]


@pytest.fixture(scope="module")
def done(paths):
    folder, given = paths
    settings = config.parse(RUN, [*given, "data.tokenizer=generated"])
    return pipeline.execute(settings, folder / "run"), settings, folder / "run"


class TestWordsOfGeneratedTexts:
    def test_clients_texts_are_read_by_words_of_generated_texts_alone(self, done):
        summary, settings, folder = done
        run = open_run(settings, folder)
        (path,) = folder.glob("vocabulary/*/tokenizer.json")
        known = set(load_tokenizer(str(path)).get_vocab())
        made = datasets.load_dataset(str(folder / "synthetic"), split="train")["text"]
        assert known - {"[UNK]"} == {word for text in made for word in re.findall(r"\w+|[^\w\s]+", text)}
        assert run.result("vocabulary")["words"] == len(known)
        unknown = 1 + load_tokenizer(str(path)).token_to_id("[UNK]")
        assert {"bad", "day"} < known
        encoded = {
            tuple(x)
            for x, label in zip(run.data.train.x.tolist(), run.data.train.labels, strict=True)
            if label == "broken"
        }
        assert len(encoded) == 1, "only a number tells these private texts apart"
        assert encoded.pop()[3] == unknown
        assert set(summary["stages"]) > {"vocabulary"}

    @pytest.mark.slow
    def test_it_is_what_two_runs_gave(self, done, paths):
        summary, _, folder = done
        elsewhere, given = paths
        (path,) = folder.glob("vocabulary/*/tokenizer.json")
        by_hand = config.parse(
            RUN, [*given, f"data.tokenizer={path}", f"model.vocabulary={1 + HASH_BUCKETS}"]
        )
        assert pipeline.execute(by_hand, elsewhere / "two")["methods"] == summary["methods"]
        hashed_words = pipeline.execute(config.parse(RUN, given), elsewhere / "hashed")
        assert hashed_words["methods"] != summary["methods"]

    @pytest.mark.slow
    def test_a_model_may_have_room_for_fewer_words(self, done, paths, tmp_path):
        settings = config.parse(RUN, [*paths[1], "data.tokenizer=generated", "model.vocabulary=6"])
        summary = pipeline.execute(settings, tmp_path / "run")
        assert summary["vocabulary"]["words"] == 5
        assert done[0]["vocabulary"]["unknown"] == 0, "good and bad are words of generated texts"
        assert summary["vocabulary"]["unknown"] > 0
        assert "words of generated texts" in (tmp_path / "run" / "report" / "index.html").read_text()
        none = config.parse(RUN, [*paths[1], "data.tokenizer=generated", "model.vocabulary=2"])
        with pytest.raises(InputError, match=r"model\.vocabulary: too small for padding"):
            pipeline.execute(none, tmp_path / "none")

    def test_it_is_made_once_and_made_again_the_same(self, done):
        summary, settings, folder = done
        assert all(stage["skipped"] for stage in pipeline.execute(settings, folder)["stages"].values())
        (path,) = folder.glob("vocabulary/*/tokenizer.json")
        path.unlink()
        again = pipeline.execute(settings, folder)
        assert [name for name, stage in again["stages"].items() if not stage["skipped"]] == ["vocabulary"]
        assert again["methods"] == summary["methods"]
        assert {row.state for row in pipeline.run_status(folder)} == {"done"}

    @pytest.mark.slow
    def test_a_run_with_hashed_words_keeps_what_it_generated(self, done, paths, tmp_path):
        summary, settings, _ = done
        pipeline.execute(config.parse(RUN, paths[1]), tmp_path / "run")
        changed = pipeline.execute(settings, tmp_path / "run", update=True)
        skipped = [name for name, stage in changed["stages"].items() if stage["skipped"]]
        assert skipped == ["labels", "prompts", "generate", "audit"]
        assert changed["methods"] == summary["methods"]

    def test_a_slip_is_named_before_anybody_is_asked_for_it(self, paths):
        with pytest.raises(InputError, match="did you mean 'generated'"):
            pipeline.checked(config.parse(RUN, [*paths[1], "data.tokenizer=generate"]), RunContext())

    def test_without_generated_texts_there_are_no_words(self, paths):
        with pytest.raises(InputError, match=r"data\.tokenizer: generated takes its words from "):
            config.parse(
                RUN,
                [*paths[1], "data.tokenizer=generated", "generator=none", "methods={a: {algorithm: fedavg}}"],
            )


SETS = [
    pytest.param("ag_news", "ag_news_7600", 6_080, 1_520, None, 0, id="ag_news"),
    pytest.param(
        "airline_tweets",
        "airline_tweets",
        11_517,
        2_965,
        "user",
        0,
        id="airline_tweets",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "newsgroups20", "newsgroups20", 11_314, 7_532, "author", 18, id="newsgroups20", marks=pytest.mark.slow
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder", "train", "test", "client_id", "empty"), SETS)
def test_real_texts_and_labels_are_those_of_the_files(real, name, folder, train, test, client_id, empty):
    data = real(name, folder)
    read = pyarrow.parquet.read_table(next(find(folder).glob("data/train-*.parquet"))).to_pydict()
    names = datasets.load_dataset(str(find(folder)), split="train", streaming=True).features["label"].names
    rows = [row for row, text in enumerate(read["text"]) if text.strip()]
    assert len(read["text"]) == train
    assert len(rows) == len(data.train.x) == len(data.train.labels) == train - empty
    assert len(data.test.x) <= test
    form = RECIPES[name].format
    for at in np.random.default_rng(0).integers(len(rows), size=100).tolist():
        assert data.train.x[at].tolist() == form.encode(read["text"][rows[at]]).tolist()
    own = [names[label] for label in read["label"]]
    known = RECIPES[name].words
    assert data.train.labels == [known.get(own[row], own[row]) for row in rows]
    assert not known or set(known) == set(names)
    assert data.train.client_ids == ([read[client_id][row] for row in rows] if client_id else None)


@pytest.mark.slow
def test_clients_are_the_people_with_five_tweets_or_more(real, session_cache, caplog):
    folder = find("airline_tweets")
    data = real("airline_tweets", "airline_tweets")
    read = config.parse(
        BASE, [f"data={{name: airline_tweets, path: {folder}, partition: {{kind: natural, min_size: 5}}}}"]
    )
    context = RunContext()
    found = context.resolve(read)
    assert found.data.partition.clients == 367
    assert "5793 of 6160 clients have fewer than 5 samples and are left out, with 8808 samples" in caplog.text
    parts = context.client_rows(found.data, 0)
    assert [{len({data.train.client_ids[row] for row in rows}) for rows in parts}, sum(map(len, parts))] == [
        {1},
        2_709,
    ]
    by_airline = config.parse(
        BASE,
        [f"data={{name: airline_tweets, path: {folder}, client_id: airline, partition: {{kind: natural}}}}"],
    )
    assert RunContext().resolve(by_airline).data.partition.clients == 6
