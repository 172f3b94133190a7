"""Tables of methods as CSV, for spreadsheets, and as LaTeX, for papers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from genfl.report.text import (
    accuracy_rule,
    client_accuracy_cells,
    mean_std,
    megabytes,
    reference_note,
    target_percent,
)
from genfl.results.schema import Figure, MethodResult, Summary

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def methods_csv(summary: Summary) -> str:
    """Return a row for each method, with unrounded figures; a cell is empty if there is no such figure."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    others = summary.targets[1:]
    writer.writerow(
        (
            "method",
            "reference",
            "seeds",
            "accuracy_mean",
            "accuracy_std",
            "macro_f1_mean",
            "macro_f1_std",
            "target_accuracy",
            "rounds_to_target",
            "bytes_to_target",
            "uplink_bytes_per_round",
            "downlink_bytes_per_round",
            "refused_uploads",
            "calibration_error_mean",
            "calibration_error_std",
            "client_accuracy_mean",
            "client_accuracy_std",
            "worst_client_accuracy_mean",
            "worst_client_accuracy_std",
            *next(iter(summary.methods.values())).cost_cells,
            *(f"{what}_to_{target:g}" for target in others for what in ("rounds", "bytes")),
        )
    )
    for name, method in summary.methods.items():
        tested = method.clients
        writer.writerow(
            (
                name,
                reference_note(method),
                len(summary.seeds),
                *_mean_and_std(method.accuracy),
                *_mean_and_std(method.macro_f1),
                summary.target_accuracy,
                method.rounds_to_target,
                method.bytes_to_target,
                method.uplink_bytes_per_round,
                method.downlink_bytes_per_round,
                method.refused_uploads,
                *_mean_and_std(method.calibration_error),
                *_mean_and_std(tested.accuracy if tested else None),
                *_mean_and_std(tested.worst if tested else None),
                *method.cost_cells.values(),
                *(cell for target in method.targets[1:] for cell in (target.rounds, target.bytes)),
            )
        )
    return file.getvalue()


def recall_csv(summary: Summary) -> str:
    """Return each method's recall of each class, unrounded; empty for a class without test examples."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("method", *summary.labels.found))
    writer.writerows((name, *method.recall) for name, method in summary.methods.items())
    return file.getvalue()


def learning_csv(summary: Summary, traces: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a row for each evaluated round of each method and seed, unrounded.

    Bytes and refused uploads are those of all rounds so far. The total has the bytes of the setup, too; it is
    0 for references, which send nothing.

    Args:
        summary: The figures of the run.
        traces: The evaluations and rounds of each method and seed, as in the record of the federation.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    scores = ("accuracy", "macro_f1", "loss", "calibration_error")
    sums = ("uplink_bytes", "downlink_bytes", "refused")
    writer.writerow(
        ("method", "seed", "round", *scores, *(f"{name}_so_far" for name in sums), "bytes_so_far")
    )
    for name, method in summary.methods.items():
        setup = 0 if method.reference else method.setup_bytes
        for seed in summary.seeds:
            trace = traces[name][str(seed)]
            totals = [(0, 0, 0)]
            for row in trace["rounds"]:
                totals.append(tuple(total + row[what] for total, what in zip(totals[-1], sums, strict=True)))
            for evaluation in trace["evaluations"]:
                so_far = totals[evaluation["round"]]
                figures = (evaluation.get(score) for score in scores)
                writer.writerow((name, seed, evaluation["round"], *figures, *so_far, setup + sum(so_far[:2])))
    return file.getvalue()


def per_seed_csv(summary: Summary) -> str:
    """Return a row for each method and seed, unrounded; a cell is empty if there is no such figure."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        (
            *("method", "reference", "seed", "accuracy", "macro_f1", "calibration_error", "delta"),
            *("target_accuracy", "rounds_to_target", "client_accuracy", "worst_client_accuracy"),
            *(f"rounds_to_{target:g}" for target in summary.targets[1:]),
        )
    )
    for name, method in summary.methods.items():
        tested = method.clients
        for number, seed in enumerate(summary.seeds):
            writer.writerow(
                (
                    name,
                    reference_note(method),
                    seed,
                    method.accuracy.per_seed[number],
                    method.macro_f1.per_seed[number],
                    _of_seed(method.calibration_error, number),
                    _of_seed(method.delta, number),
                    summary.target_accuracy,
                    method.rounds_to_target_per_seed[number],
                    _of_seed(tested.accuracy if tested else None, number),
                    _of_seed(tested.worst if tested else None, number),
                    *(target.rounds_per_seed[number] for target in method.targets[1:]),
                )
            )
    return file.getvalue()


def methods_tex(summary: Summary) -> str:
    """Return a LaTeX table, which needs the package booktabs."""
    goal = latex(target_percent(summary))
    seeds = len(summary.seeds)
    head = f"Method & Accuracy (\\%) & Macro-F1 (\\%) & Rounds to {goal} & MB to {goal} & kB/round up & down"
    head += " & ECE (\\%)"
    over = f"mean $\\pm$ sample standard deviation over {seeds} seeds" if seeds > 1 else "a single seed"
    rule = accuracy_rule(summary.federated)
    tested = any(method.clients for method in summary.methods.values())
    if tested:
        head += " & Clients (\\%) & Worst client (\\%)"
    caption = f"{latex(summary.name)}: {over}; figures of federated methods are {rule}."
    rows = [_tex_row(name, method, tested) for name, method in summary.methods.items()]
    return booktabs(head.split(" & "), rows, caption, f"l{'r' * head.count('&')}")


def booktabs(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, columns: str) -> str:
    """Return a LaTeX table, which needs the package booktabs.

    Args:
        head: The names of the columns, as LaTeX.
        rows: The cells of each row, as LaTeX.
        caption: The caption, as LaTeX.
        columns: The alignment of the columns, as in ``lrr``.
    """
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{caption}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
        f"    {' & '.join(head)} \\\\",
        "    \\midrule",
        *(f"    {' & '.join(row)} \\\\" for row in rows),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def _mean_and_std(figure: Figure | None) -> tuple[float | None, float | None]:
    return (figure.mean, figure.std) if figure else (None, None)


def _of_seed(figure: Figure | None, number: int) -> float | None:
    return figure.per_seed[number] if figure else None


def _tex_row(name: str, method: MethodResult, tested: bool) -> tuple[str, ...]:
    rounds, total, gap = method.rounds_to_target, method.bytes_to_target, method.calibration_error
    per_round = (method.uplink_bytes_per_round, method.downlink_bytes_per_round)
    sent = ("--" if total is None else megabytes(total), *(f"{number / 1e3:.0f}" for number in per_round))
    note = reference_note(method)
    figures = (
        latex(f"{name} ({note})" if note else name),
        mean_std(method.accuracy),
        mean_std(method.macro_f1),
        "--" if rounds is None else str(rounds),
        *(("--",) * 3 if note else sent),
        mean_std(gap) if gap else "--",
        *(client_accuracy_cells(method) if tested else ()),
    )
    return tuple(figure.replace("±", r"$\pm$").replace("–", "--") for figure in figures)
