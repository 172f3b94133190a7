"""report: the page a person reads, and the table of methods for spreadsheets and papers."""

from __future__ import annotations

from typing import Any

from genfl.config import Config
from genfl.experiment.folder import Run
from genfl.stages import generate, guided, labels, pretrain, prompts, vocabulary
from genfl.stages.base import Stage
from genfl.stages.federate import stage as federate
from genfl.storage import write_text

BEFORE = (
    labels.STAGE,
    prompts.STAGE,
    generate.STAGE,
    guided.STAGE,
    vocabulary.STAGE,
    pretrain.STAGE,
    federate.STAGE,
)
"""The other stages, in order."""


def _run(run: Run) -> dict[str, Any]:
    # Only here, as drawing is slow to import and nothing else needs it.
    from genfl.report import page, tables
    from genfl.results.summarise import summarise

    done = [stage.name for stage in BEFORE if stage.wanted(run.config)]
    summary = summarise(run, dict.fromkeys(done, False))
    folder = run.folder / STAGE.folder
    write_text(folder / "methods.csv", tables.methods_csv(summary))
    write_text(folder / "methods.tex", tables.methods_tex(summary))
    write_text(folder / "recall.csv", tables.recall_csv(summary))
    write_text(folder / "index.html", page.render(run, summary))
    return {}


def _inputs(config: Config) -> Any:
    return config.model_dump()


STAGE = Stage("report", "report", 4, _inputs, tuple(stage.name for stage in BEFORE), _run)
