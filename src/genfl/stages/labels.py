"""The stage labels: discover which label names the clients hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from genfl.config import Config, Partition
from genfl.config.data import Labels
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.labels.iblt import IBLT
from genfl.privacy.dp.counts import noised_counts
from genfl.privacy.dp.streams import noise_stream
from genfl.rng import Key
from genfl.stages.base import IF_SET, IGNORED, DataInputs, IfChanged, Stage, StageRun, Without, identity
from genfl.stages.federate.protection import noise_secret
from genfl.storage import digest, write_json


@dataclass(frozen=True)
class LabelInputs:
    """The inputs of label discovery.

    Attributes:
        data: The private data.
        partition: The split over clients. Held-back samples count: a client knows their labels too.
        labels: The settings of the table.
        seed: The first seed. The union of the labels is the same for the split of every seed.
        seeds: All seeds, to check their splits.
        found: The label names that enough clients hold.
        repeatable: Whether the noise on counts comes from the seed; else from a secret.
    """

    data: DataInputs
    partition: Annotated[Partition, Without({"test"})]
    labels: Annotated[Labels, Without(set()), IfChanged({"count_epsilon"})]
    seed: int
    seeds: Annotated[list[int], IGNORED]
    found: Annotated[list[str], IGNORED]
    repeatable: Annotated[bool | None, IF_SET]


def _inputs(config: Config, context: RunContext) -> LabelInputs:
    data = DataInputs.of(config, context)
    found = context.discovered(config)
    repeatable = bool(config.privacy and config.privacy.repeatable) if config.labels.count_epsilon else None
    return LabelInputs(
        data, config.data.partition, config.labels, config.seeds[0], config.seeds, found, repeatable
    )


def _run(inputs: LabelInputs, work: StageRun) -> dict[str, Any]:
    discovery = work.context.discover_labels(inputs.data.section, inputs.labels, inputs.seed)
    holders = discovery.holders
    if inputs.labels.count_epsilon is not None:
        clients = len(work.context.client_rows(inputs.data.section, inputs.seed))
        holders = _noised(holders, inputs, work, clients)
    result = {
        "found": list(discovery.holders),
        "cells": discovery.cells,
        "bytes_per_client": discovery.bytes_per_client,
        "attempts": discovery.attempts,
        "holders": holders,
    }
    write_json(work.folder / "labels.json", result)
    return result


def _noised(holders: dict[str, int], inputs: LabelInputs, work: StageRun, clients: int) -> dict[str, int]:
    """Return numbers of holders with noise, moved to the nearest ones that are possible.

    Args:
        holders: The exact numbers, by name.
        inputs: The stage's inputs.
        work: The stage run.
        clients: The number of clients.
    """
    assert inputs.labels.count_epsilon is not None
    secret = "" if inputs.repeatable else noise_secret(work.folder)
    # Of everything that the counts depend on: noise that two releases share would cancel out.
    key = noise_stream(Key(inputs.seed).fold("label counts"), digest([secret, identity(inputs)]))
    noised = noised_counts(holders, inputs.labels.count_epsilon, key)
    return {name: min(max(count, inputs.labels.min_holders), clients) for name, count in noised.items()}


def _check(inputs: LabelInputs, context: RunContext) -> None:
    if context.remote:
        return  # the clients have sent their names already
    for seed in inputs.seeds:
        context.train_test_rows(inputs.data.section, seed)
    options = inputs.labels
    try:
        table = IBLT(options.cells, options.hashes, options.max_bytes)
        table.encode(context.data_set(inputs.data.section).train.labels)
    except ValueError as error:
        raise InputError(f"labels: {error}") from error
    if options.min_holders > 1:
        _check_holders(inputs, context)


def _check_holders(inputs: LabelInputs, context: RunContext) -> None:
    """Check that enough label names remain, and examples of them at each client. No name is shown."""
    section, least = inputs.data.section, inputs.labels.min_holders
    clients = len(context.client_rows(section, inputs.seed))
    if least > clients:
        raise InputError(f"labels.min_holders: {least}, but there are {clients} clients; lower it")
    if len(inputs.found) < 2:
        raise InputError(
            f"labels.min_holders: {len(inputs.found)} label names are held by {least} clients, and 2 are"
            " needed; lower it"
        )
    for seed in inputs.seeds:
        counts = context.label_counts(section, inputs.found, seed).sum(1)
        if not counts.all():
            raise InputError(
                f"labels.min_holders: client {int(counts.argmin())} would have no examples left, because"
                f" fewer than {least} clients hold its label names; lower it, or change the split"
            )


def _gives(inputs: LabelInputs, context: RunContext) -> Any:
    """Return the label names. Other stages depend on no client, and on no example."""
    return inputs.found


STAGE = Stage("labels", "labels", 1, (), _inputs, _run, check=_check, gives=_gives)
