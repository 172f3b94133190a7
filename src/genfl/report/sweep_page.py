"""The page of a sweep: one table of all runs, and accuracy against the fields of the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from genfl.report import plots
from genfl.report.comparison_page import comparison_context
from genfl.report.style import MOST_DRAWN, REST, Look, looks
from genfl.report.tables import booktabs, latex
from genfl.report.templates import page_template
from genfl.report.text import mean_std
from genfl.results.comparison import Comparison
from genfl.results.schema import Figure
from genfl.results.sweep import PointResult, setting_text

MOST_CHARTS = 12
"""Charts of a page, at most. More would be a page to scroll, not to look at."""


class ChartPlan(NamedTuple):
    """What a chart of a sweep shows.

    Attributes:
        field: The field on the horizontal axis.
        fixed: The values of the other fields that vary, as text; empty if there are none.
        members: The runs.
    """

    field: str
    fixed: str
    members: Sequence[PointResult]


class SweepChart(NamedTuple):
    """Accuracy against one field of a grid.

    Attributes:
        chart: The chart.
        field: The field.
        fixed: The values of the other fields that vary, as text; empty if there are none.
    """

    chart: Markup
    field: str
    fixed: str


def render_sweep(name: str, results: Sequence[PointResult], planned: int, comparison: Comparison) -> str:
    """Return the page of a sweep as HTML.

    Args:
        name: The name of the sweep.
        results: The results of the runs that are finished, in the order of the grid. At least one.
        planned: The number of runs of the whole grid.
        comparison: The same runs, compared with the first one.
    """
    methods = _methods(results)
    links = {result.run: f"{quote(result.run)}/report/index.html" for result in results}
    look = looks(methods, _drawn(results, methods))
    plans = _plans(results)
    return page_template("sweep.html.j2").render(
        title=f"{name}: a sweep over {_enumerated(list(results[0].settings))}",
        fields=list(results[0].settings),
        rows=[
            {
                "settings": [setting_text(value) for value in result.settings.values()],
                "link": links[result.run],
                "figures": [_accuracy(result, method) for method in methods],
                "best": _best(result),
            }
            for result in results
        ],
        methods=methods,
        looks=look,
        rest=REST,
        drawn=[method for method in methods if look[method] is not REST],
        many_seeds=any(figure.accuracy.std is not None for r in results for figure in r.methods.values()),
        charts=[_chart(plan, look, f"chart-{n}") for n, plan in enumerate(plans[:MOST_CHARTS])],
        left_out=len(plans[MOST_CHARTS:]),
        finished=len(results),
        planned=planned,
        warnings=comparison.warnings,
        **comparison_context(comparison, {row.name: look[row.method] for row in comparison.rows}, links),
    )


def sweep_tex(name: str, results: Sequence[PointResult]) -> str:
    """Return a LaTeX table of accuracies, a row for each run. It needs the package booktabs.

    Args:
        name: The name of the sweep.
        results: The results of the runs. At least one.
    """
    methods, fields = _methods(results), list(results[0].settings)
    head = [latex(column) for column in (*fields, *methods)]
    rows = [
        [
            *(latex(setting_text(value)) for value in result.settings.values()),
            *(_tex_figure(_accuracy(result, method)) for method in methods),
        ]
        for result in results
    ]
    caption = f"{latex(name)}: accuracy (\\%), mean $\\pm$ sample standard deviation over the seeds."
    return booktabs(head, rows, caption, "l" * len(fields) + "r" * len(methods))


def _methods(results: Sequence[PointResult]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.methods))


def _accuracy(result: PointResult, method: str) -> Figure | None:
    return result.methods[method].accuracy if method in result.methods else None


def _best(result: PointResult) -> str:
    """Return the most accurate federated method of a run."""
    federated = {name: m.accuracy.mean for name, m in result.methods.items() if not m.reference}
    return max(federated, key=lambda name: federated[name], default="")


def _drawn(results: Sequence[PointResult], methods: Sequence[str]) -> list[str]:
    """Pick the methods that charts tell apart: those with the highest accuracies at any point."""

    def highest(method: str) -> float:
        return max(result.methods[method].accuracy.mean for result in results if method in result.methods)

    return sorted(methods, key=highest, reverse=True)[:MOST_DRAWN]


def _plans(results: Sequence[PointResult]) -> list[ChartPlan]:
    """Return a chart of each field with several values, once for each setting of the others."""
    fields = list(results[0].settings)
    values = {field: {setting_text(result.settings[field]) for result in results} for field in fields}
    varied = [field for field in fields if len(values[field]) > 1]
    plans: list[ChartPlan] = []
    for field in varied:
        groups: dict[str, list[PointResult]] = {}
        for result in results:
            others = (
                f"{other} = {setting_text(result.settings[other])}" for other in varied if other != field
            )
            groups.setdefault(", ".join(others), []).append(result)
        plans += [ChartPlan(field, fixed, members) for fixed, members in groups.items() if len(members) > 1]
    return plans


def _chart(plan: ChartPlan, look: Mapping[str, Look], name: str) -> SweepChart:
    values = [result.settings[plan.field] for result in plan.members]
    figures = {method: [_accuracy(result, method) for result in plan.members] for method in look}
    return SweepChart(plots.plot_setting(values, figures, look, plan.field, name), plan.field, plan.fixed)


def _tex_figure(figure: Figure | None) -> str:
    return mean_std(figure).replace("±", r"$\pm$") if figure else "--"


def _enumerated(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
