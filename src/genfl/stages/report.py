"""report: the page a person reads."""

from __future__ import annotations

from typing import Any

from genfl.config import Config
from genfl.report.summary import methods
from genfl.stages.base import Run, Stage
from genfl.storage import write_json


def _run(run: Run) -> dict[str, Any]:
    write_json(run.folder / STAGE.folder / "methods.json", methods(run))
    return {}


def _inputs(config: Config) -> Any:
    return config.model_dump()


STAGE = Stage("report", "report", 1, _inputs, ("labels", "prompts", "generate", "pretrain", "federate"), _run)
