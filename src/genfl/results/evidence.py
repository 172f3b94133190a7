"""What a report shows beside the figures of a summary: the data of the clients, examples, the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from genfl import config as configs
from genfl.config import Config
from genfl.data import overlap
from genfl.data.media import Modality
from genfl.data.quality import MEASURES
from genfl.data.sources import DATASETS
from genfl.experiment.context import RunContext
from genfl.experiment.folder import AUDIT, PAIRS, Run
from genfl.generators.registry import GENERATORS
from genfl.natural_order import in_natural_order
from genfl.results.examples import LabelExamples, OverlapExamples, choose_examples, choose_overlaps
from genfl.results.schema import PretrainResult, StageRecord
from genfl.storage import read_json


@dataclass(frozen=True)
class Evidence:
    """Everything that a report shows of a run besides its `genfl.results.schema.Summary`.

    Attributes:
        config: The resolved config.
        config_text: The same as YAML, without trackers, which change no result.
        generator: What the data card says of the generator: a value for each name; empty without one.
        modality: What an example is: image, audio or text.
        usual_metric: The metric that is usually reported for the data set: ``accuracy`` or ``macro_f1``.
        near_duplicate_rule: What makes two samples near-duplicates, in words.
        data_notes: What a user should know of the reading of the data, such as files left out.
        label_order: The labels in the order in which the report lists them.
        label_counts: Training samples of each label at each client for the first seed, int [clients, labels].
            None if the clients are on other machines, and nobody knows.
        pretraining: The history of pre-training; None without a generator.
        examples: Examples of each label; empty without a generator.
        hidden: How many generated samples must not be shown, because they are near-duplicates of real ones.
        overlaps: Near-duplicates of each comparison that has some; None if they must not be shown.
        overlap_rule: What makes two inputs near-duplicates in the audit, in words.
        origin: When and how the figures were made: a value for each name.
    """

    config: Config
    config_text: str
    generator: Mapping[str, Any]
    modality: Modality
    usual_metric: str
    near_duplicate_rule: str
    data_notes: tuple[str, ...]
    label_order: list[str]
    label_counts: np.ndarray | None
    pretraining: PretrainResult | None
    examples: list[LabelExamples]
    hidden: int
    overlaps: list[OverlapExamples] | None
    overlap_rule: str
    origin: Mapping[str, str]


def collect(run: Run, context: RunContext) -> Evidence:
    """Collect what a report shows of a run.

    Args:
        run: A run whose stages before the report are done.
        context: The data sets and splits of the run.
    """
    config, data = run.config, context.data_set(run.config.data)
    entry = DATASETS[config.data.name]
    show_real = entry.public if config.report.real_examples is None else config.report.real_examples
    show_real = show_real and not context.remote  # clients' examples are not here
    folder = run.folder / "synthetic"
    ordered = [label for label in data.label_order if label in run.labels]
    order = ordered + in_natural_order(set(run.labels) - set(ordered))
    pairs, copies = _pairs(run), set[int]()
    if not show_real:  # a near-copy shows what the real example shows
        copies = {row for name in ("generated_test", "generated_train") for row, *_ in pairs.get(name, ())}
    public = None
    if config.public is not None:
        public = context.public(config.public, config.data, distinct=config.audit.drops).x
    return Evidence(
        config=config,
        config_text=configs.dump(config, without=("track",)),
        generator=_generator_facts(config),
        modality=data.modality,
        usual_metric=entry.metric,
        near_duplicate_rule=MEASURES[data.modality].means,
        data_notes=context.data_notes(config.data) + context.public_notes(config),
        label_order=order,
        label_counts=None
        if context.remote
        else context.label_counts(config.data, run.labels, config.seeds[0]),
        pretraining=PretrainResult.model_validate(run.result("pretrain")) if config.generates else None,
        examples=choose_examples(data, folder, order, real=show_real, hidden=copies)
        if config.generates
        else [],
        hidden=len(copies),
        overlaps=choose_overlaps(data, folder, pairs, public) if show_real else None,
        overlap_rule=overlap.means(data.modality),
        origin=_origin(run),
    )


def _origin(run: Run) -> dict[str, str]:
    """Return when the federation of a run ended, and of what. Records of earlier versions have no date."""
    record = StageRecord.read(run.record("federate"))
    date = {}
    if record.finished:
        date = {"date": f"{datetime.fromisoformat(record.finished):%Y-%m-%d %H:%M} UTC, end of training"}
    return {**date, "digest of all inputs": record.digest or "unknown"}


def _pairs(run: Run) -> dict[str, Any]:
    """Return the near-duplicates that the audit found; none if nothing was compared."""
    path = run.folder / AUDIT / PAIRS
    pairs: dict[str, Any] = {}
    if run.config.audit.overlap != "ignore" and path.is_file():
        pairs = read_json(path)
    return pairs


def _generator_facts(config: Config) -> dict[str, Any]:
    """Return what a data card and a report say of a config's generator; nothing without one.

    Args:
        config: The resolved config.
    """
    if not config.generates:
        return {}
    return GENERATORS[config.generator.kind].described(config.generator.model_dump(exclude={"kind"}))
