"""The stage report: write the HTML page, and tables of methods for spreadsheets and papers."""

from __future__ import annotations

import glob
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError

from genfl.config import Config
from genfl.deployment.description import WEIGHTS_FILE
from genfl.errors import GenflError, first_line
from genfl.experiment.folder import AUDIT, VOCABULARY, Run
from genfl.privacy.ledger import shows_audits
from genfl.results.membership import AUDIT_FILE, AUDIT_INFIX, MembershipAudit
from genfl.stages.base import Stage, StageRun, Without
from genfl.storage import read_json, sha256, write_text

log = logging.getLogger(__name__)


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
    from genfl.report.audit_page import audit_section, page_address
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
    shows = shows_audits(inputs.config.privacy)
    audits = _audits(run.folder) if shows else []
    sections = [audit_section(audit, page_address(file, work.folder)) for file, audit in audits]
    drawn = page.draw_page(collect(run, work.context), summary, sections)
    for chart in drawn.charts:
        write_text(work.folder / page.FIGURES / f"{chart.name}.svg", svg_file(chart))
    write_text(work.folder / "index.html", drawn.html)
    return {"audits": _digests(audits) if shows else None}


def _audits(run: Path) -> list[tuple[Path, MembershipAudit]]:
    """Return the audits beside a run's folder that attacked models of this run, with their files."""
    audits = []
    for file in sorted(run.parent.glob(f"{glob.escape(run.name)}{AUDIT_INFIX}*/{AUDIT_FILE}")):
        try:
            audit = MembershipAudit.model_validate(read_json(file))
        except (GenflError, ValidationError) as error:
            log.info("report: %s is left out: %s", file.parent.name, first_line(error))
            continue
        model = run / "federate" / Path(audit.method).name / f"seed-{audit.seed}" / WEIGHTS_FILE
        if model.is_file() and sha256(model) == audit.model_sha256:
            audits.append((file, audit))
    return audits


def _digests(audits: list[tuple[Path, MembershipAudit]]) -> dict[str, str]:
    """Return the digest of each audit's file, by the name of its folder."""
    return {file.parent.name: sha256(file) for file, _ in audits}


def _shows_audits(result: Mapping[str, Any], work: StageRun) -> bool:
    """Return whether the page shows the audits that lie beside the run now, or is to show none."""
    shown: dict[str, str] | None = result.get("audits", {})
    return shown is None or shown == _digests(_audits(work.folder.parent))


STAGE = Stage(
    "report",
    "report",
    11,
    ("labels", "prompts", "generate", "guided", AUDIT, VOCABULARY, "pretrain", "federate"),
    lambda config, context: ReportInputs(
        config, context.data_notes(config.data) + context.public_notes(config)
    ),
    _run,
    current=_shows_audits,
)
