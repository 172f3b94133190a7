"""Examples of each label, real and generated, for a person to look at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
from torch import Tensor

from genfl.data.sources import DataSet
from genfl.data.synthetic import SyntheticData

PER_LABEL = 6
"""Examples of a kind that are shown of a label."""

MOST_LABELS = 15
"""Labels that are shown; more would make a page heavy."""


class GeneratedExample(NamedTuple):
    """A generated sample.

    Attributes:
        content: What the generator made: a PIL image, a `genfl.data.media.Clip` or a text.
        encoded: The input that models get for it; None for texts, whose token numbers nobody can read.
        prompt: What the generator was told; None where that is not known.
        guidance_scale: The guidance scale; None where that is not known.
    """

    content: Any
    encoded: Tensor | None
    prompt: str | None
    guidance_scale: float | None


class LabelExamples(NamedTuple):
    """The examples of one label.

    Attributes:
        label: The name of the label.
        real: Inputs of the private data; empty if they must not be shown, or nobody can read them.
        generated: Generated samples.
    """

    label: str
    real: list[Tensor]
    generated: list[GeneratedExample]


class OverlapExamples(NamedTuple):
    """The most similar near-duplicates of a comparison.

    Attributes:
        comparison: Its name, as in `genfl.results.schema.AuditResult`.
        first: Examples of the first data set: inputs, or generated texts.
        second: Their near-duplicates in the second data set, as inputs; empty if nobody can read them.
        similarity: The correlation of each pair, or the cosine for texts.
    """

    comparison: str
    first: list[Any]
    second: list[Tensor]
    similarity: list[float]


def choose_overlaps(
    data: DataSet,
    synthetic: Path,
    pairs: Mapping[str, Sequence[Sequence[float]]],
    public: Tensor | None = None,
) -> list[OverlapExamples]:
    """Choose the most similar near-duplicates of each comparison, each first example once.

    Show none of them where real examples must not be shown: a near-copy shows what the real example shows.

    Args:
        data: The private data set.
        synthetic: The folder of the synthetic data set.
        pairs: The pairs of each comparison, the most similar first; see `genfl.experiment.folder.PAIRS`.
        public: The public inputs; None if there are none.
    """
    chosen: list[OverlapExamples] = []
    for comparison, rows in pairs.items():
        once: dict[int, tuple[int, float]] = {}
        for row, other, similarity in rows:
            if len(once) < PER_LABEL:
                once.setdefault(int(row), (int(other), similarity))
        if not once:
            continue
        if comparison.startswith("generated"):
            shown: list[Any] = _contents(SyntheticData.open(synthetic), list(once))
            if data.modality != "text":
                shown = [data.encode(content) for content in shown]
        else:
            first = public if comparison.startswith("public") and public is not None else data.test.x
            shown = [first[row] for row in once] if data.modality != "text" else []
        others = data.test if comparison.endswith("test") else data.train
        second_shown = [others.x[row] for row, _ in once.values()] if data.modality != "text" else []
        if shown:
            similarities = [value for _, value in once.values()]
            chosen.append(OverlapExamples(comparison, shown, second_shown, similarities))
    return chosen


def _contents(synthetic: SyntheticData, rows: Sequence[int]) -> list[Any]:
    """Return the contents of generated samples, by their rows over all files in order."""
    contents: dict[int, Any] = {}
    start, medium = 0, synthetic.medium
    for file in synthetic.files():
        count = pyarrow.parquet.read_metadata(file).num_rows
        if inside := [row for row in rows if start <= row < start + count]:
            column = pyarrow.parquet.read_table(file, columns=[medium.column])[medium.column]
            cells = column.take([row - start for row in inside]).to_pylist()
            contents |= {row: medium.read(cell) for row, cell in zip(inside, cells, strict=True)}
        start += count
    return [contents[row] for row in rows]


def choose_examples(
    data: DataSet, folder: Path, labels: Sequence[str], *, real: bool, hidden: Collection[int] = ()
) -> list[LabelExamples]:
    """Choose examples of each label at even distances over the data, so that nobody picks them by eye.

    Args:
        data: The private data set.
        folder: The folder of the synthetic data set.
        labels: The names of the labels. The first `MOST_LABELS` are shown.
        real: Whether real examples may be shown.
        hidden: The rows of generated samples that must not be shown.
    """
    readable = data.modality != "text"
    shown = list(labels[:MOST_LABELS])
    generated = generated_examples(SyntheticData.open(folder), shown, data if readable else None, hidden)
    rows = {
        label: _evenly_spaced(_rows_of(data.train.labels, label)) if real and readable else []
        for label in shown
    }
    return [
        LabelExamples(label, [data.train.x[row] for row in rows[label]], generated[label]) for label in shown
    ]


def generated_examples(
    synthetic: SyntheticData,
    labels: Sequence[str],
    data: DataSet | None = None,
    hidden: Collection[int] = (),
) -> dict[str, list[GeneratedExample]]:
    """Return generated samples of labels, at even distances over the data.

    Args:
        synthetic: The synthetic data set.
        labels: The names of the labels. The first `MOST_LABELS` are shown.
        data: The private data set, whose format encodes them; without it, they are not encoded.
        hidden: The rows of generated samples that must not be shown.
    """
    labels = labels[:MOST_LABELS]
    files, medium = synthetic.files(), synthetic.medium
    columns = [pyarrow.parquet.read_table(file, columns=["label"])["label"].to_pylist() for file in files]
    positions = [(number, row) for number, column in enumerate(columns) for row in range(len(column))]
    names = [synthetic.label_names[index] for column in columns for index in column]
    chosen = {}
    for label in labels:
        rows = [row for row in _rows_of(names, label) if row not in hidden]
        chosen[label] = [positions[row] for row in _evenly_spaced(rows)]
    examples: dict[tuple[int, int], GeneratedExample] = {}
    for number, file in enumerate(files):
        rows = sorted(row for wanted in chosen.values() for shard, row in wanted if shard == number)
        if not rows:  # samples can be large: only shards that hold a chosen one are read
            continue
        table = pyarrow.parquet.read_table(file, columns=[medium.column, "prompt", "guidance_scale"])
        for row, cell in zip(rows, table.take(rows).to_pylist(), strict=True):
            content = medium.read(cell[medium.column])
            encoded = data.encode(content) if data else None
            examples[number, row] = GeneratedExample(content, encoded, cell["prompt"], cell["guidance_scale"])
    return {label: [examples[position] for position in wanted] for label, wanted in chosen.items()}


def _rows_of(names: Sequence[str], label: str) -> list[int]:
    return [row for row, name in enumerate(names) if name == label]


def _evenly_spaced(rows: Sequence[int], count: int = PER_LABEL) -> list[int]:
    return [rows[len(rows) * n // count] for n in range(count)] if len(rows) > count else list(rows)
