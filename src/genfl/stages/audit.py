"""The stage audit: find near-duplicates between test and training examples, generated and public samples."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from genfl.config import Config
from genfl.data.overlap import NearPairs, near_pairs
from genfl.data.partition import subset
from genfl.data.sources import DataSet
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.experiment.folder import AUDIT, PAIRS
from genfl.stages import generate
from genfl.stages.base import (
    IF_SET,
    DataInputs,
    FormatInputs,
    PublicInputs,
    Stage,
    StageRun,
    Upstream,
)
from genfl.storage import read_json, write_json

log = logging.getLogger(__name__)


OPTIONAL = ("generated_test", "generated_train", "public_test", "public_train")
"""The comparisons that a run without generated or without public data lacks."""


@dataclass(frozen=True)
class AuditInputs:
    """The inputs of the audit, besides the generated samples.

    Attributes:
        data: The private data, in the format in which inputs are compared.
        overlap: What happens to generated samples that are near-duplicates of test examples.
        public: The public data; None if there is none.
    """

    data: DataInputs
    overlap: Literal["warn", "drop"]
    public: Annotated[PublicInputs | None, IF_SET]


def unread(config: Config) -> tuple[str, ...]:
    """Return the stages that the users of generated samples do not read: the audit, unless it drops some."""
    return () if config.audit.drops else (AUDIT,)


def generated_digests(upstream: Upstream) -> dict[str, str]:
    """Return the digests of all stages that decide which generated samples are used.

    Args:
        upstream: The outputs that the calling stage may read.
    """
    names = [generate.STAGE.name, *([AUDIT] if AUDIT in upstream.stages else [])]
    return {name: upstream.digest(name) for name in names}


def read_generated(upstream: Upstream, data: DataSet) -> tuple[Tensor, Tensor]:
    """Return the generated samples that are used: inputs [m, ...] and class indices [m].

    Args:
        upstream: The outputs that the calling stage may read.
        data: The private data.
    """
    x, y = generate.read_synthetic(upstream.folder(generate.STAGE.name), data, upstream.labels)
    if rows := dropped_rows(upstream):
        kept = torch.ones(len(x), dtype=torch.bool)
        kept[rows] = False
        x, y = x[kept], y[kept]
    return x, y


def dropped_rows(upstream: Upstream) -> list[int]:
    """Return the rows of the generated samples that are dropped, ascending.

    Args:
        upstream: The outputs that the calling stage may read. Without the audit, none is dropped.
    """
    if AUDIT not in upstream.stages:
        return []
    pairs = read_json(upstream.folder(AUDIT) / PAIRS)["generated_test"]
    return sorted({int(row) for row, *_ in pairs})


def _inputs(config: Config, context: RunContext) -> AuditInputs:
    overlap = config.audit.overlap
    assert overlap != "ignore", "else the stage is left out"
    return AuditInputs(DataInputs.of(config, context), overlap, PublicInputs.of(config, context))


def _gives(inputs: AuditInputs, context: RunContext) -> Any:
    """Return what decides which generated samples are dropped, besides these: the training set does not."""
    if inputs.overlap != "drop":
        return inputs
    section = inputs.data.section
    data = context.data_set(section)
    stored = data.test.x.contiguous().reshape(-1).view(torch.uint8).numpy()
    test = context.once(
        ("test inputs", section.name, inputs.data.content), lambda: hashlib.sha256(stored.data).hexdigest()
    )
    return {"format": FormatInputs(section.name, data.shape, data.format_digest, section), "test": test}


def _run(inputs: AuditInputs, work: StageRun) -> dict[str, Any]:
    data = work.context.data_set(inputs.data.section)
    compared = {
        "test_train": work.context.once(
            ("overlap", inputs.data.section.name, inputs.data.content),
            lambda: near_pairs(data.test.x, data.train.x, data.modality),
        )
    }
    labels: list[str] = []
    if generate.STAGE.name in work.upstream.stages:
        x, y = generate.read_synthetic(work.upstream.folder(generate.STAGE.name), data, work.upstream.labels)
        labels = [work.upstream.labels[number] for number in y.tolist()]
        compared["generated_test"] = near_pairs(x, data.test.x, data.modality)
        compared["generated_train"] = near_pairs(x, data.train.x, data.modality)
    sizes = {"test": len(data.test.labels), "train": len(data.train.labels), "generated": len(labels)}
    if inputs.public is not None:
        public, split = inputs.public.section, inputs.data.section.partition
        x = inputs.public.read(work.context, inputs.data.section).x
        # The rest that no client gets is part of the training set. Its content decides the clients' part.
        clients = subset(data.train.labels, split.samples if public.is_rest else None)
        compared["public_test"] = near_pairs(x, data.test.x, data.modality)
        compared["public_train"] = near_pairs(x, data.train.x, data.modality, clients)
        sizes |= {"public": len(x), "public_train": len(clients)}
    write_json(work.folder / PAIRS, {name: _plain(pairs) for name, pairs in compared.items()})
    figures = {name: _figures(name, pairs, sizes) for name, pairs in compared.items()}
    dropped = 0
    if inputs.overlap == "drop" and labels:
        dropped = figures["generated_test"]["near"]
        _refuse_empty(labels, np.unique(compared["generated_test"].rows[:, 0]))
    for name, counts in figures.items():
        if counts["near"]:
            first, second = name.split("_")
            log.info("audit: %d %s examples are near-duplicates of %s ones", counts["near"], first, second)
    if dropped:
        log.warning("audit: %d generated samples are near-duplicates of test examples, and dropped", dropped)
    return {**dict.fromkeys(OPTIONAL), **figures, "dropped": dropped}


def _plain(pairs: NearPairs) -> list[list[float]]:
    rows = pairs.rows.tolist()
    return [
        [*row, round(float(value), 4)] for row, value in zip(rows, pairs.similarity.tolist(), strict=True)
    ]


def _figures(name: str, pairs: NearPairs, sizes: dict[str, int]) -> dict[str, int]:
    """Return the counts of a comparison.

    Args:
        name: Its name, after the two data sets.
        pairs: The near-duplicates.
        sizes: The size of each data set, and of the second one of a comparison that has only a part of it.
    """
    first, second = name.split("_")
    return {
        "examples": sizes[first],
        "others": sizes.get(name, sizes[second]),
        "compared": pairs.compared,
        "pairs": len(pairs.rows),
        "near": len(np.unique(pairs.rows[:, 0])),
        "others_near": len(np.unique(pairs.rows[:, 1])),
    }


def _refuse_empty(labels: list[str], dropped: np.ndarray) -> None:
    """Check that every label keeps a generated sample."""
    left = Counter(labels)
    left.subtract(labels[row] for row in dropped)
    for label, count in left.items():
        if not count:
            raise InputError(
                f"audit.overlap: drop, but all generated samples of {label!r} are near-duplicates of test"
                " examples; generate other samples, or use warn"
            )


STAGE = Stage(
    AUDIT,
    AUDIT,
    1,
    ("labels", "generate"),
    _inputs,
    _run,
    wanted=lambda config: config.audit.overlap != "ignore",
    gives=_gives,
)
