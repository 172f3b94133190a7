"""labels: which label names exist over all clients?"""

from __future__ import annotations

from typing import Any

from genfl.config import Config
from genfl.engines.in_process import sequential
from genfl.engines.protocol import DataView, Engine
from genfl.engines.reducers import secure_reducers
from genfl.errors import InputError
from genfl.experiment.context import data_digest, data_set, parts, train_test_rows
from genfl.experiment.folder import Run
from genfl.labels.discovery import discover
from genfl.labels.iblt import IBLT
from genfl.rng import Key
from genfl.stages.base import Stage
from genfl.storage import write_json


def _run(run: Run) -> dict[str, Any]:
    config, seed = run.config, run.config.seeds[0]  # the union is the same for every seed's split
    train = data_set(config.data).train
    label_sets = [sorted({train.labels[row] for row in rows}) for rows in parts(config, seed)]
    options = config.labels.model_dump()
    discovery = discover(label_sets, _engine, Key(seed).fold("labels"), **options)
    result = {
        "found": list(discovery.holders),
        "cells": discovery.cells,
        "bytes_per_client": discovery.bytes_per_client,
        "attempts": discovery.attempts,
        "holders": discovery.holders,
    }
    write_json(run.folder / STAGE.folder / "labels.json", result)
    return result


def _engine(data: DataView, key: Key) -> Engine:
    return sequential(data, secure_reducers(key))


def _inputs(config: Config) -> Any:
    return [
        data_digest(config.data),
        config.data.partition.model_dump(exclude={"test"}),  # a client knows its labels, tested or not
        config.labels.model_dump(),
        config.seeds[0],
    ]


def _check(config: Config) -> None:
    for seed in config.seeds:
        train_test_rows(config, seed)
    options = config.labels
    try:
        table = IBLT(options.cells, options.hashes, options.max_bytes)
        table.encode(data_set(config.data).train.labels)
    except ValueError as error:
        raise InputError(f"labels: {error}") from error


def _names(config: Config) -> Any:
    """Returns the names that there are to be found: who holds which is of no interest to other stages."""
    labels = data_set(config.data).train.labels
    names = {labels[row] for rows in parts(config, config.seeds[0]) for row in rows}
    return [data_digest(config.data), sorted(names), config.labels.max_bytes]


STAGE = Stage("labels", "labels", 1, _inputs, (), _run, check=_check, gives=_names)
