import bz2
import gzip
import json
import lzma

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from genfl.data.tables import CSVOptions, TableError, open_table


def rows(path, options=None, size=2):
    """Returns the rows of a table as dictionaries."""
    table = open_table(path, options) if options else open_table(path)
    return [
        dict(zip(chunk, cells, strict=True))
        for chunk in table.chunks(table.columns, size)
        for cells in zip(*chunk.values(), strict=True)
    ]


EXPECTED = [{"text": "a", "label": "x"}, {"text": "b, c", "label": None}, {"text": "d", "label": "y"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'text,label\na,x\n"b, c",\nd,y\n'),
        ("T.CSV", 'text;label\r\na;x\r\n"b, c";\r\nd;y\r\n'),
        ("t.csv", '\n"text", label\na,x,\n"b, c",,\n\nd,y,,\n'),
        ("t.csv", '\ufefftext,label\na,x\n"b, c"\nd,y'),
        ("t.tsv", "text\tlabel\na\tx\nb, c\t\nd\ty\n"),
        ("t.jsonl", "\n".join(map(json.dumps, EXPECTED))),
        ("t.json", json.dumps(EXPECTED)),
        ("t.json", json.dumps({"data": EXPECTED})),
        ("t.json", json.dumps({name: [row[name] for row in EXPECTED] for name in ("text", "label")})),
        ("t.json", "\n".join(map(json.dumps, EXPECTED))),
    ],
)
@pytest.mark.parametrize("pack", ["", ".gz", ".bz2", ".xz"])
def test_tables_of_text_are_read_as_they_are_written(tmp_path, name, content, pack):
    pack_with = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[pack]
    (tmp_path / (name + pack)).write_bytes(pack_with(content.encode()))
    assert rows(tmp_path / (name + pack)) == EXPECTED


@pytest.mark.parametrize("kind", ["parquet", "stream.arrow", "file.arrow"])
def test_binary_tables_are_read_with_class_names(tmp_path, kind):
    features = datasets.Features(
        {"n": datasets.Value("int64"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    table = datasets.Dataset.from_dict({"n": [0, 1, 2, 3, 4], "label": [0, 1, 0, 1, 0]}, features)
    table = table.with_format("arrow")[:]
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        new = pyarrow.ipc.new_stream if kind.startswith("stream") else pyarrow.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    assert open_table(path).class_names == {"label": ["a", "b"]}
    assert rows(path) == [{"n": n, "label": n % 2} for n in range(5)]


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b'{"info": {"features": [1]}}', b"[" * 100_000], ids=range(4)
)
def test_metadata_that_cannot_be_read_names_no_classes(tmp_path, metadata):
    table = pyarrow.table({"n": [1]}).replace_schema_metadata({"huggingface": metadata})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert open_table(tmp_path / "t.parquet").class_names == {}
    assert rows(tmp_path / "t.parquet") == [{"n": 1}]


@pytest.mark.parametrize("offsets", [[0, -5, 3], [0, 2, 10**6], [3, 1, 2]])
def test_an_arrow_table_with_wrong_offsets_is_damaged(tmp_path, offsets):
    """As flipped bits leave it. Reading it would end the process, or read outside of the file."""
    batch = pyarrow.record_batch([["ab", "c"], ["longer", "text"]], names=["text", "label"])
    path = tmp_path / "t.arrow"
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)
    good, wrong = (np.array(each, np.int32).tobytes() for each in ([0, 2, 3], offsets))
    assert path.read_bytes().count(good) == 1
    path.write_bytes(path.read_bytes().replace(good, wrong))
    with pytest.raises(TableError, match="is damaged"):
        list(open_table(path).chunks(["text", "label"], 10))


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("t.csv", b"", None, "is empty"),
        ("t.csv", b"text,label\na,x\nb,c,x\n", 3, "has 3 cells, but the header has 2"),
        ("t.csv", b'text,label\na,x\n"b,y\n', 3, "is not CSV"),
        ("t.csv", b"text,label\na,x\ncaf\xe9,y\n", 3, "is not UTF-8"),
        ("t.csv", b"text,label\na,\x00\n", None, ""),
        ("t.jsonl", b'{"text": "a"}\n{"te\n', 2, "is not JSON"),
        ("t.jsonl", b'{"text": "a"}\n[1]\n', 2, "is not a JSON object"),
        ("t.json", b'[{"text": "a"}, 3]', None, "has the row 2"),
        ("t.jsonl", b'{"text": ' + b"[" * 10**5, 1, "is not JSON"),
        ("t.csv.gz", gzip.compress(b"text,label\na,x\n" * 99, mtime=0)[:-9], None, "is damaged"),
        ("t.parquet", b"PAR1", None, "is damaged"),
        ("t.arrow", b"nothing", None, "is damaged"),
    ],
)
def test_damaged_tables_are_rejected_with_the_line(tmp_path, name, content, line, problem):
    (tmp_path / name).write_bytes(content)
    if not problem:  # csv of Python 3.11 and later takes it as a character
        assert rows(tmp_path / name) == [{"text": "a", "label": "\0"}]
        return
    with pytest.raises(TableError, match=problem) as caught:
        rows(tmp_path / name)
    assert caught.value.line == line


@pytest.mark.parametrize(
    "content", ['{"0": "cat", "1": "dog"}', "3", '["a", "b"]', "{}", '{"a": [1], "b": [1, 2]}']
)
def test_json_files_of_other_kinds_have_no_columns_of_examples(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    assert not {"text", "label"} & {*open_table(tmp_path / "labels.json").columns}


def test_a_data_card_may_name_separator_and_columns(tmp_path):
    (tmp_path / "t.csv").write_text("a|x\nb|y\n")
    assert rows(tmp_path / "t.csv", CSVOptions("|", ("text", "label"))) == [
        {"text": "a", "label": "x"},
        {"text": "b", "label": "y"},
    ]
