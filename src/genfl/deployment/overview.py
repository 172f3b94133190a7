"""What the command line prints of evaluations and predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from genfl.deployment.evaluation import Evaluation
from genfl.deployment.prediction import Prediction, Unreadable, prediction_columns
from genfl.errors import on_one_line
from genfl.report.text import count, mean_std
from genfl.results.schema import Figure

MOST_SHOWN = 1000
"""The largest number of lines that the command line prints of one kind."""

LONGEST_NAME_SHOWN = 200
"""The most characters that the command line prints of a name."""

TableRow = tuple[str, ...]


def evaluation_tables(evaluation: Evaluation) -> tuple[list[str], list[tuple[TableRow, list[TableRow]]]]:
    """Return notes on an evaluation, and its tables, each with its head."""
    choice = ", the federated method of the best mean accuracy in the run" if evaluation.chosen else ""
    data, split = on_one_line(evaluation.data, 200), on_one_line(evaluation.split)
    method = _name(evaluation.method)
    notes = [
        f"Method: {method}{choice}",
        f"Data: {count(evaluation.examples, 'example')} of the split {split} of {data}",
    ]
    if evaluation.unknown_labels:
        names = [f"{on_one_line(name)} ({n})" for name, n in evaluation.unknown_labels.items()]
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        total = sum(evaluation.unknown_labels.values())
        notes.append(
            f"Left out: {count(total, 'example')} with labels that the model does not know:"
            f" {', '.join(names[:20])}{more}"
        )
    if evaluation.unlabelled:
        notes.append(f"Left out: {count(evaluation.unlabelled, 'example')} without a label")
    if evaluation.unreadable:
        notes.append(f"Left out: {count(evaluation.unreadable, 'example')} that cannot be read:")
        notes += [f"  {on_one_line(name, 200)}" for name in evaluation.unreadable_names]
    scores = ("accuracy", "macro F1", "calibration error")
    figures = (evaluation.accuracy, evaluation.macro_f1, evaluation.calibration_error)
    rows: list[TableRow] = [(method, *map(_percent, figures))]
    if len(evaluation.seeds) > 1:
        for number, seed in enumerate(evaluation.seeds):
            of_seed = ("–" if f is None else f"{100 * f.per_seed[number]:.1f}" for f in figures)
            rows.append((f"seed {seed.seed}", *of_seed))
    tables: list[tuple[TableRow, list[TableRow]]] = [
        (("in %", *scores), rows),
        (
            ("class", "examples", "recall %", "precision %"),
            [
                (_name(c.label), str(c.examples), _share(c.recall), _share(c.precision))
                for c in evaluation.classes
            ],
        ),
    ]
    for groups in (evaluation.groups, evaluation.clients):
        if groups is not None:
            worst: list[TableRow] = [
                (_name(g.name), str(g.examples), _share(g.accuracy)) for g in groups.listed[:5]
            ]
            head: TableRow = (f"{_name(groups.column)}: worst of {groups.count}", "examples", "accuracy %")
            tables.append((head, worst))
    return notes, tables


def prediction_table(rows: Iterable[Prediction], top: int) -> tuple[TableRow, list[TableRow], int]:
    """Return the head and the first rows of a table of predictions, and the number of further rows."""
    shown: list[TableRow] = []
    more = 0
    for row in rows:
        if len(shown) == MOST_SHOWN:
            more += 1
            continue
        pairs = zip(row.labels, row.probabilities, strict=True)
        shown.append((row.input, *(cell for name, share in pairs for cell in (_name(name), f"{share:.3f}"))))
    return tuple(prediction_columns(top)), shown, more


def unreadable_lines(failed: Sequence[Unreadable]) -> list[str]:
    """Return a line for each input that cannot be read, and one with their number."""
    lines = [f"not read: {on_one_line(item.input, 200)}: {item.reason}" for item in failed[:MOST_SHOWN]]
    if len(failed) > MOST_SHOWN:
        lines.append(f"not read: {len(failed) - MOST_SHOWN:,} more")
    return [*lines, f"{count(len(failed), 'input')} could not be read"] if failed else []


def _name(text: str) -> str:
    """Return a name of a class, group or method without what a terminal would obey."""
    return on_one_line(text, LONGEST_NAME_SHOWN)


def _percent(figure: Figure | None) -> str:
    return "–" if figure is None else mean_std(figure)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
