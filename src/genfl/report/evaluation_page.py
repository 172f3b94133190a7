"""The page of an evaluation: figures, classes, groups, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genfl.report import plots
from genfl.report.templates import page_template

SHOWN_GROUPS = 30
"""The largest number of groups that the page lists."""


def render_evaluation(content: Mapping[str, Any]) -> str:
    """Return the page of an evaluation as HTML.

    Args:
        content: The values of ``evaluation.json``; see `genfl.deployment.evaluation.Evaluation`.
    """
    seeds, names = content["seeds"], content["label_names"]
    classes = range(len(names))
    confusion = [
        [sum(seed["confusion"][row][column] for seed in seeds) / len(seeds) for column in classes]
        for row in classes
    ]
    return page_template("evaluation.html.j2").render(
        title=f"{content['run']}: {content['method']} on other data",
        **content,
        chart=plots.plot_confusion(confusion, names),
        partitions=[part for part in (content["groups"], content["clients"]) if part],
        most=SHOWN_GROUPS,
    )
