"""The stage report: write the HTML page, and tables of methods for spreadsheets and papers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from genfl.config import Config
from genfl.experiment.folder import AUDIT, VOCABULARY, Run
from genfl.stages.base import Stage, StageRun, Without
from genfl.storage import write_text


@dataclass(frozen=True)
class ReportInputs:
    """The inputs of the report, besides the outputs of all other stages.

    Attributes:
        config: The whole config, but for its trackers.
        data_notes: What a user should know of the reading of the private and public data.
    """

    config: Annotated[Config, Without({"track"})]
    data_notes: tuple[str, ...]


def _run(inputs: ReportInputs, work: StageRun) -> dict[str, Any]:
    # Plotting is slow to import, and only this stage needs it.
    from genfl.report import page, tables
    from genfl.report.charts import svg_file
    from genfl.results.evidence import collect
    from genfl.results.summarise import summarise

    run = Run(inputs.config, work.folder.parent)
    summary = summarise(run, work.context, dict.fromkeys(work.upstream.stages, False))
    write_text(work.folder / "methods.csv", tables.methods_csv(summary))
    write_text(work.folder / "methods.tex", tables.methods_tex(summary))
    write_text(work.folder / "recall.csv", tables.recall_csv(summary))
    write_text(work.folder / "per_seed.csv", tables.per_seed_csv(summary))
    traces = run.result("federate")["methods"]
    write_text(work.folder / "learning_curves.csv", tables.learning_csv(summary, traces))
    drawn = page.draw_page(collect(run, work.context), summary)
    for chart in drawn.charts:
        write_text(work.folder / page.FIGURES / f"{chart.name}.svg", svg_file(chart))
    write_text(work.folder / "index.html", drawn.html)
    return {}


STAGE = Stage(
    "report",
    "report",
    10,
    ("labels", "prompts", "generate", "guided", AUDIT, VOCABULARY, "pretrain", "federate"),
    lambda config, context: ReportInputs(
        config, context.data_notes(config.data) + context.public_notes(config)
    ),
    _run,
)
