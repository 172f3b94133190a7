"""The page of a comparison of runs, and its tables as CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from genfl.report import plots, text
from genfl.report.style import MOST_DRAWN, REST, Look, looks
from genfl.report.tables import booktabs, latex
from genfl.report.templates import page_template
from genfl.results.comparison import (
    ComparedMethod,
    ComparedRun,
    Comparison,
    row_name,
    short_setting,
)
from genfl.results.schema import CurvePoint, MethodResult

MOST_ROWS = 1000
"""Rows of the page's table, at most. The CSV table has them all."""

MOST_CURVES = 60
"""Curves of a chart, at most. Those beyond `genfl.report.style.MOST_DRAWN` are grey."""

MOST_NAMED = 3
"""Clear differences that the headline names, at most."""

NO_FIGURE = "–"
"""What stands in a table where there is no such figure."""


class MethodRow(NamedTuple):
    """A row of the table of methods, as text.

    Attributes:
        look: The look of the method in the charts.
        method: Its name, with a mark for references.
        accuracy: Its accuracy.
        gain: The difference from the baseline.
        interval: The 95 % interval of the difference; empty without one.
        finding: The statement on it.
        tested: By which test it was judged; empty if by none.
        costs: Rounds to the target, MB to the target, and MB in all.
    """

    look: Look
    method: str
    accuracy: str
    gain: str
    interval: str
    finding: str
    tested: str
    costs: tuple[str, ...]


class RowGroup(NamedTuple):
    """The rows of a run in the table of methods.

    Attributes:
        run: The run.
        link: The address of its page, relative to the comparison; empty if it has none.
        seeds: The number of its seeds, in words.
        rows: A row for each method.
    """

    run: str
    link: str
    seeds: str
    rows: list[MethodRow]


class CostRow(NamedTuple):
    """A row of the table of costs, as text.

    Attributes:
        run: The run.
        about: Its name in the config, and its devices.
        cells: Seeds, test examples, time of generation and of training, energy, memory.
    """

    run: str
    about: str
    cells: tuple[str, ...]


def render_comparison(comparison: Comparison, folder: Path) -> str:
    """Return the page of a comparison as HTML.

    Args:
        comparison: The comparison.
        folder: The folder of the page. Links to the pages of runs are relative to it.
    """
    curves = _curves(comparison)
    drawn = list(curves)[:MOST_DRAWN]
    look = looks([row.name for row in comparison.rows], drawn)
    shown = dict(list(curves.items())[:MOST_CURVES])
    links = {run.run: page_link(run.folder, folder) for run in comparison.runs}
    return page_template("comparison.html.j2").render(
        title=_title([run.run for run in comparison.runs]),
        headline=headline(comparison),
        warnings=comparison.warnings,
        looks=look,
        rest=REST,
        drawn=drawn,
        grey=len(shown) - len(drawn),
        left_out=len(curves) - len(shown),
        charts=_charts(comparison, shown, look),
        settings={
            field: [short_setting(value) or NO_FIGURE for value in values]
            for field, values in comparison.settings.items()
        },
        runs=comparison.runs,
        **comparison_context(comparison, look, links),
    )


def comparison_context(
    comparison: Comparison, look: Mapping[str, Look], links: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the tables of methods and of costs show, on the page of a comparison or of a sweep.

    Args:
        comparison: The comparison.
        look: The look of each row, by its name.
        links: The address of each run's page; empty if it has none.
    """
    groups: dict[str, RowGroup] = {}
    for row in comparison.rows[:MOST_ROWS]:
        seeds = text.count(len(row.seeds), "seed")
        group = groups.setdefault(row.run, RowGroup(row.run, links[row.run], seeds, []))
        _, accuracy, _, gain, interval, finding, *costs = cells(comparison, row)
        interval = "" if interval == NO_FIGURE else interval
        name = f"{row.method} (reference)" if row.reference else row.method
        shown = (accuracy, gain, interval, finding, tested(row), tuple(costs))
        group.rows.append(MethodRow(look[row.name], name, *shown))
    return {
        "cost_columns": columns(comparison)[6:],
        "groups": list(groups.values()),
        "hidden_rows": len(comparison.rows) - MOST_ROWS,
        "against": comparison.against,
        "notes": [*statements(comparison), *explanations(comparison)],
        "costs": [_cost_row(run) for run in comparison.runs],
        "links": links,
    }


def page_link(run: Path, folder: Path) -> str:
    """Return the address of a run's page, relative to another page's folder; empty if the run has none.

    Args:
        run: The run's folder.
        folder: The folder of the other page.
    """
    page = run.resolve() / "report" / "index.html"
    if not page.is_file():
        return ""
    return quote(Path(os.path.relpath(page, folder.resolve())).as_posix())


def headline(comparison: Comparison) -> str:
    """Say in a few sentences which methods clearly differ from what they are compared with."""
    compared = comparison.compared
    if not compared:
        if any(row.difference for row in comparison.rows):
            return "With one seed, there is no statement on differences: run more seeds."
        return "No two methods can be compared."
    clear = [(row, row.difference) for row in compared if row.difference and row.difference.clear]
    holding = [(row, gain) for row, gain in clear if row.holds]
    count, single = text.count(len(compared), "comparison"), len(clear) - len(holding)
    alone = f" {single} more only by {'itself' if single == 1 else 'themselves'}." if single else ""
    if not holding:
        return f"No clear difference over the seeds, in {count} with {comparison.against}.{alone}"
    ranked = sorted(holding, key=lambda pair: -abs(pair[1].points))
    named = [
        f"{row.name} is {abs(gain.points):.1f} points {gain.finding} than {row.against}"
        for row, gain in ranked[:MOST_NAMED]
    ]
    more = f", and {len(holding) - len(named)} more" if len(holding) > len(named) else ""
    differ = "differs" if len(holding) == 1 else "differ"
    return f"{len(holding)} of {count} {differ} clearly: {'; '.join(named)}{more}.{alone}"


def statements(comparison: Comparison) -> list[str]:
    """Say what the differences are, and how many there would be by chance, a sentence each."""
    compared = comparison.compared
    notes = [f"Differences are in points of accuracy, from {comparison.against}."]
    if not compared:
        return notes
    number = len(compared)
    clear = sum(row.difference.clear for row in compared if row.difference)
    holding = sum(row.holds for row in compared)
    notes += [
        f"Each interval is at 95 % by itself. Without any real difference, about one line of twenty is called"
        f" higher or lower all the same. Here, {clear} of {number} {'is' if clear == 1 else 'are'}.",
        f"A star marks what holds for all {number} lines together at 5 %, by Holm’s correction:"
        f" {text.count(holding, 'line')}.",
    ]
    return notes


def explanations(comparison: Comparison) -> list[str]:
    """Say how intervals are computed and what they cover, a sentence each; nothing if there are none."""
    compared, notes = comparison.compared, list[str]()
    if not compared:
        return notes
    tests = {row.difference.test for row in compared if row.difference}
    if "paired" in tests:
        notes.append(
            "Where it says paired, a seed has the same split in both runs, and Student’s t is taken over the"
            " differences of the seeds. One run has all seeds of the other."
        )
    if "welch" in tests:
        notes.append("Where it says Welch, seeds or splits differ, and Welch’s t is taken over two samples.")
    notes.append(
        "No interval is narrower than one test example either way. Intervals cover the randomness of seeds:"
        " splits, initial models, cohorts and batches. They do not cover the choice of test examples, nor"
        " that of the generated data, which the seeds of a run share."
    )
    return notes


def columns(comparison: Comparison) -> tuple[str, ...]:
    """Return the names of the columns of `cells`."""
    goal = "target" if comparison.target is None else f"{100 * comparison.target:g} %"
    return (
        *("method", "accuracy, %", "seeds", "difference", "95 % interval", "statement"),
        *(f"rounds to {goal}", f"MB to {goal}", "MB in all"),
    )


def cells(comparison: Comparison, row: ComparedMethod, *, terminal: bool = False) -> tuple[str, ...]:
    """Return the cells of a row of the table of methods, as text.

    Args:
        comparison: The comparison.
        row: The method.
        terminal: Whether the statement names its test; a page has a line of its own for it.
    """
    gain, interval = row.difference, NO_FIGURE
    if gain and gain.low is not None and gain.high is not None:
        interval = f"{_signed(gain.low)} to {_signed(gain.high)}"
    rounds = "never" if row.rounds_to_target is None else str(row.rounds_to_target)
    sent = "never" if row.bytes_to_target is None else text.megabytes(row.bytes_to_target)
    goal = f" (to {100 * row.target_accuracy:g} %)" if comparison.target is None else ""
    return (
        row.method,
        text.mean_std(row.accuracy),
        str(len(row.seeds)),
        NO_FIGURE if gain is None else _signed(gain.points),
        interval,
        row.finding
        + (" *" if row.holds else "")
        + (f" ({test})" if (test := tested(row)) and terminal else ""),
        rounds + goal,
        NO_FIGURE if row.reference else sent,
        NO_FIGURE if row.reference else text.megabytes(row.total_bytes),
    )


def tested(row: ComparedMethod) -> str:
    """Say by which test a row's difference was judged; empty if by none."""
    gain = row.difference
    if gain is None or gain.test is None:
        return ""
    return f"paired, {text.count(gain.pairs or 0, 'seed')}" if gain.test == "paired" else "Welch"


def _signed(points: float) -> str:
    """Write points of accuracy with a sign: ``+4.5``, ``−0.3``, ``0.0``."""
    shown = f"{points:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown.replace("-", "−")


def _cost_row(run: ComparedRun) -> CostRow:
    summary = run.summary
    parts = [part for part in (summary.cost.generation, summary.cost.training) if part is not None]
    generation, training = (
        text.NOT_MEASURED if seconds is None else text.duration(seconds) for seconds in run.seconds
    )
    memory = [part.peak_memory for part in parts if part.peak_memory is not None]
    figures = (
        ", ".join(map(str, summary.seeds)),
        f"{summary.test_samples:,}",
        generation if summary.synthetic else NO_FIGURE,
        training,
        text.NOT_MEASURED if run.joules is None else text.energy(run.joules),
        text.byte_size(max(memory)) if memory else text.NOT_MEASURED,
    )
    devices = dict.fromkeys(device for part in parts for device in part.devices)
    return CostRow(run.run, f"{summary.name}, on {', '.join(devices)}" if devices else summary.name, figures)


def _curves(comparison: Comparison) -> dict[str, MethodResult]:
    """Return the methods that train in rounds, by the names of their rows, the most interesting first.

    These are the two that each run's verdict compares, and then the most accurate.
    """
    methods: dict[str, tuple[bool, MethodResult]] = {}
    for run in comparison.runs:
        compared = text.contest(run.summary)
        for name, method in run.summary.methods.items():
            if len(method.curve) > 1:
                methods[row_name(run.run, name)] = name in compared, method
    ranked = sorted(methods, key=lambda name: (methods[name][0], methods[name][1].accuracy.mean))
    return {name: methods[name][1] for name in reversed(ranked)}


def _charts(
    comparison: Comparison, methods: Mapping[str, MethodResult], look: Mapping[str, Look]
) -> list[Markup]:
    """Draw accuracy against rounds and, if methods differ in them, against bytes."""
    if not methods:
        return []
    goal = comparison.target
    curves = {name: method.curve for name, method in methods.items()}
    charts: list[Markup] = [plots.plot_learning(curves, look, goal, None, "round", "rounds")]
    sending = {name: method for name, method in methods.items() if method.bytes_per_round}
    sizes = [method.bytes_per_round for method in sending.values()]
    if sizes and (max(sizes) > 1.01 * min(sizes) or len({m.setup_bytes for m in sending.values()}) > 1):
        scaled = {
            name: [
                CurvePoint((method.setup_bytes + method.bytes_per_round * x) / 1e6, mean, std)
                for x, mean, std in method.curve
            ]
            for name, method in sending.items()
        }
        charts.append(plots.plot_learning(scaled, look, goal, None, "MB sent and received", "bytes"))
    return charts


def _title(runs: Sequence[str]) -> str:
    if len(runs) == 2:
        return f"{runs[0]} and {runs[1]}: a comparison"
    return f"{runs[0]} and {len(runs) - 1} other runs: a comparison"


def printed_table(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows of the table of methods for a terminal."""
    rows: list[tuple[str, ...]] = []
    run = None
    for row in comparison.rows:
        first = row.run != run
        cost = text.NOT_MEASURED if row.seconds is None else text.duration(row.seconds)
        rows.append((row.run if first else "", *cells(comparison, row, terminal=True), cost if first else ""))
        run = row.run
    return ("run", *columns(comparison), "time of the run"), rows


def comparison_csv(comparison: Comparison) -> str:
    """Return a CSV table with a row for each method of each run. The figures are not rounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        (
            *("run", "method", "reference", "seeds", "accuracy_mean", "accuracy_std"),
            *("macro_f1_mean", "macro_f1_std", "against", "difference_points", "low", "high", "test"),
            *("paired_seeds", "p_value", "statement", "holds_for_all", "target_accuracy"),
            *("rounds_to_target", "bytes_to_target", "total_bytes"),
            *("run_generation_seconds", "run_training_seconds", "run_joules"),
        )
    )
    for row in comparison.rows:
        gain = row.difference
        judged = (
            (gain.points, gain.low, gain.high, gain.test, gain.pairs, gain.p_value) if gain else (None,) * 6
        )
        writer.writerow(
            (
                *(row.run, row.method, row.reference, " ".join(map(str, row.seeds))),
                *(row.accuracy.mean, row.accuracy.std, row.macro_f1.mean, row.macro_f1.std),
                *(row.against, *judged, row.finding, row.holds if gain else None),
                *(row.target_accuracy, row.rounds_to_target, row.bytes_to_target, row.total_bytes),
                *(row.generation_seconds, row.training_seconds, row.joules),
            )
        )
    return file.getvalue()


def comparison_tex(comparison: Comparison) -> str:
    """Return the table of methods as LaTeX. It needs the package booktabs."""
    rows: list[Sequence[str]] = []
    run = None
    for row in comparison.rows:
        judged = cells(comparison, row)
        plain = [latex(cell) for cell in (row.run if row.run != run else "", *judged)]
        rows.append([_tex(cell) for cell in plain])
        run = row.run
    head = [_tex(latex(name)) for name in ("run", *columns(comparison))]
    caption = (
        f"Test accuracy, mean ± sample standard deviation over the seeds. {' '.join(statements(comparison))}"
    )
    return booktabs(head, rows, _tex(latex(caption)), "ll" + "r" * (len(head) - 2))


def _tex(escaped: str) -> str:
    for character, command in {"±": r"$\pm$", "–": "--", "−": r"$-$", "’": "'"}.items():
        escaped = escaped.replace(character, command)
    return escaped
