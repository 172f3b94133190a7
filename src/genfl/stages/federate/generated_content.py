"""The training data of clients in each trial: private data, generated content, or both."""

from __future__ import annotations

import logging

import numpy as np
import torch

from genfl.config import Method
from genfl.data.budget import deal
from genfl.data.clients import GENERATED, ClientData
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.generators.registry import GENERATORS
from genfl.stages.allocations import allocate, limit_to_pools, refuse_empty
from genfl.stages.federate.inputs import FederateInputs
from genfl.stages.federate.setting import Setting
from genfl.stages.generate import GeneratorInputs

log = logging.getLogger(__name__)


def training_data(setting: Setting, name: str, method: Method, seed: int) -> ClientData:
    """Return the training data of a method's clients.

    Args:
        setting: The setting of all trials.
        name: The method's name in the config.
        method: The method.
        seed: The seed.

    Raises:
        InputError: A client gets no sample.
    """
    private, content = setting.private(seed), method.content
    if content is None:
        return private
    x, y = setting.labelled(method.source)
    pools = y.bincount(minlength=len(setting.labels)).numpy()
    allocation = allocate(content, private.client_info_table["label_counts"].numpy(), pools, seed)
    short = limit_to_pools(allocation.pooled, pools)
    if short:  # unusable samples were left out of the synthetic data
        size = "samples" if content.per_client is None else "per_client"
        log.warning(
            "methods.%s: clients get %d %s samples less than content.%s", name, short, method.source, size
        )
    rows = deal(y, allocation.pooled, seed)
    if allocation.guided.any():
        guided_x, guided_y, guided_rows = setting.guided(content, seed)
        rows = [np.append(part, len(x) + more) for part, more in zip(rows, guided_rows, strict=True)]
        x, y = torch.cat([x, guided_x]), torch.cat([y, guided_y])
    augment = setting.inputs.federation.local.augment.of("generated")
    if method.data != "generated":
        return private.with_part(GENERATED, x, y, rows, augment, weighs=content.weight == "merged")
    refuse_empty(name, [len(part) for part in rows], seed)
    return ClientData(x, y, rows, len(setting.labels), setting.data.prepare, augment, name=GENERATED)


def check_content(inputs: FederateInputs, context: RunContext) -> None:
    """Check that the clients of every method can get their generated content, before anything is generated.

    Args:
        inputs: The stage's inputs.
        context: The run's context.

    Raises:
        InputError: A method's clients cannot get it.
    """
    methods = {name: method for name, method in inputs.methods.items() if method.content}
    for name, method in methods.items():
        if (
            method.content
            and method.content.guidance != "prompt"
            and (problem := _unguided(inputs.generator))
        ):
            raise InputError(f"methods.{name}.content.guidance: {problem}")
    section = inputs.data.section
    labels = inputs.labels
    pools = {"generated": np.full(len(labels), inputs.prompts.per_label)}
    if inputs.public is not None and any(method.source == "public" for method in methods.values()):
        _, y = inputs.public.read(context, section).matched(labels)
        pools["public"] = y.bincount(minlength=len(labels)).numpy()
    for seed in inputs.seeds if methods else ():
        counts = context.label_counts(section, labels, seed)
        for name, method in methods.items():
            assert method.content is not None
            pool = pools[method.source]
            if method.content.samples is None and method.content.per_client is None and not pool.all():
                raise InputError(
                    f"methods.{name}.content.samples: required, as no public sample is of"
                    f" {labels[int(np.argmin(pool))]!r}; set a number and budget water_filling, or use other"
                    " public data"
                )
            allocation = allocate(method.content, counts, pool, seed)
            asked = allocation.pooled.sum(0)
            short = int(np.argmax(asked - pool))
            if asked[short] > pool[short]:
                field = "samples" if method.content.per_client is None else "per_client"
                fix = "lower it, or raise prompts.per_label" if method.source == "generated" else "lower it"
                raise InputError(
                    f"methods.{name}.content.{field}: with seed {seed}, clients need {asked[short]}"
                    f" {method.source} samples of {labels[short]!r}, but there are {pool[short]}; {fix}"
                )
            if method.data == "generated":
                refuse_empty(name, (allocation.pooled + allocation.guided).sum(1).tolist(), seed)


def _unguided(generator: GeneratorInputs | None) -> str | None:
    """Return why real examples cannot guide a config's generator, and the fix. None if they can."""
    assert generator is not None
    unguided = generator.entry.unguided
    if unguided is None:
        able = ", ".join(name for name, entry in GENERATORS.items() if entry.unguided)
        return f"real examples cannot guide generator {generator.kind}; use prompt, or one of: {able}"
    return unguided(generator.options)
