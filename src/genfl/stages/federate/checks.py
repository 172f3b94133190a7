"""Checks that every method of a config can run. They use the real models, before any stage works."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from genfl import trees
from genfl.algorithms.base import Algorithm
from genfl.algorithms.profile import sends_weights, take_a_step
from genfl.algorithms.registry import UNLABELLED
from genfl.analysis.extractors import build_extractor
from genfl.config import ImageGenerator, Method, Model
from genfl.config.generation import TextGenerator
from genfl.config.names import FLOWER, FLOWER_IN_PROCESS
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.data.sources import DATASETS, DataSet
from genfl.engines.auto import together
from genfl.engines.flower import check_flower
from genfl.engines.pool import refusal
from genfl.errors import InputError, cause, first_line
from genfl.experiment.context import RunContext
from genfl.generators.classify import check_classifier
from genfl.generators.classify_text import check_text_classifier
from genfl.hub import check_device
from genfl.learning.local import LocalSGD
from genfl.learning.task import MissingPart, Task
from genfl.privacy.dp.accounting import check_accountant, default_delta, noise_for
from genfl.privacy.dp.user import check_algorithm
from genfl.privacy.sum_settings import numbers_problem
from genfl.references import GENERATOR, REFERENCES, GeneratorClassifier
from genfl.rng import Key
from genfl.stages.federate.generated_content import check_content
from genfl.stages.federate.inputs import FederateInputs
from genfl.stages.federate.methods import (
    build_algorithm,
    federation_resources,
    local_training,
    schedule,
)
from genfl.stages.federate.protection import protect_users, sample_problem, user_noise

log = logging.getLogger(__name__)

LARGE_DELTA = 1e-3
"""The δ above which a warning says that few units make it so large."""


def check(inputs: FederateInputs, context: RunContext) -> None:
    """Check that every method can run, with the real models and the data's number of classes.

    Args:
        inputs: The stage's inputs.
        context: The run's context.

    Raises:
        InputError: A method cannot run.
    """
    check_device(inputs.model.device, "device")
    data = context.data_set(inputs.data.section)
    classes = len(inputs.labels)
    task = _fitting("model", inputs, context, inputs.model.model, classes)
    inputs.model.check(task, inputs.seeds[0])
    client_tasks = {
        f"{index}-{model.name}": _fitting(f"client_models.{index}", inputs, context, model, classes)
        for index, model in enumerate(inputs.client_models)
    }
    if problem := inputs.federation.local.augment.augment().problem(data.modality, data.shape):
        raise InputError(f"federate.local.augment.{problem}")
    placeholder = torch.zeros(2, *data.shape)  # nothing has been generated yet
    provided = federation_resources(inputs.federation, client_tasks) | dict.fromkeys(UNLABELLED, placeholder)
    pool_problem = refusal() if inputs.federation.engine == "parallel" else None
    if pool_problem:
        raise InputError(f"federate.engine: parallel, but {pool_problem}; use auto or sequential")
    if inputs.federation.engine in (FLOWER, FLOWER_IN_PROCESS):
        check_flower("federate.engine")
    if inputs.federation.engine == FLOWER and not context.remote:
        raise InputError(
            "federate.engine: flower is for clients on other machines (genfl deploy); use flower-inprocess"
        )
    if inputs.extractor is not None:
        try:
            build_extractor(inputs.extractor.choice, data.shape, classes)
        except ValueError as error:
            raise InputError(f"federate.extractor: {error}") from error
    secure = inputs.federation.secure
    if secure and (problem := numbers_problem(secure, inputs.federation.clients_per_round)):
        raise InputError(problem)
    check_content(inputs, context)
    _check_public(inputs, context)
    _check_delta(inputs, context)
    for name, method in inputs.methods.items():
        try:
            if method.reference == GENERATOR:
                _check_classifier(inputs, data, method)
                continue
            algorithm = build_algorithm(inputs.federation, method, task, provided)
            for client in range(max(1, len(inputs.client_models))):  # models may differ between clients
                take_a_step(algorithm, task, client)
        except ValueError as error:
            raise InputError(f"methods.{name}.algorithm: {error}") from error
        except MissingPart as error:
            raise InputError(
                f"methods.{name}.algorithm: it needs a model with {error}, but {inputs.model.model.name} has"
                " none; use another model or algorithm"
            ) from error
        except Exception as error:  # a method or model of the user's own can raise anything
            raise InputError(f"methods.{name}.algorithm: its first step fails: {cause(error)}") from error
        _check_protection(name, inputs, method, task, provided)
        single = [part for part, kind in algorithm.client.reductions.items() if kind == "each"]
        if inputs.federation.secure and single and method.reference is None:
            raise InputError(
                f"methods.{name}.algorithm: its server sees {', '.join(single)} of every client, which a"
                " secure sum does not carry; use an algorithm whose server sees sums alone, or set"
                " federate.secure to false"
            )
        if inputs.federation.engine == "vectorized":
            _check_together(
                name, algorithm, task, max(2, len(inputs.client_models)), fast=inputs.federation.fast
            )
        if method.content and method.content.filter and not sends_weights(algorithm, task):
            raise InputError(
                f"methods.{name}.content.filter: {method.algorithm[0].name} does not send clients the global"
                " model, which the filter needs; leave it out"
            )


def _check_delta(inputs: FederateInputs, context: RunContext) -> None:
    """Warn if δ allows that one of the n units is published in full, or if few units make it large."""
    if inputs.privacy is None:
        return
    if inputs.privacy.unit == "user":
        units, what = inputs.partition.clients, "clients"
    else:
        section, labels = inputs.data.section, inputs.labels
        counts = [int(context.label_counts(section, labels, seed).sum()) for seed in inputs.seeds]
        units, what = min(counts), "private samples"
    if inputs.privacy.delta is None:
        if (delta := default_delta(max(units, 1))) > LARGE_DELTA:
            log.warning(
                "privacy.delta: not set, so it is 1/n^1.1 = %.3g of %d %s, and the bound may fail with this"
                " probability; set a smaller one, or protect more of them",
                delta,
                units,
                what,
            )
    elif inputs.privacy.delta >= 1 / units:
        log.warning(
            "privacy.delta: %g is at least 1/n of %d %s, so publishing one of them in full would count as"
            " private; lower it",
            inputs.privacy.delta,
            units,
            what,
        )


def _check_protection(
    name: str, inputs: FederateInputs, method: Method, task: Task, resources: Mapping[str, Any]
) -> None:
    """Check that differential privacy can protect a method.

    Raises:
        InputError: It cannot.
    """
    if inputs.privacy is None or method.reference is not None:
        return
    check_accountant()
    if inputs.privacy.unit == "user":
        parts = " and ".join(part.name for part in method.algorithm)
        try:
            upload = check_algorithm(build_algorithm(inputs.federation, method, task, resources), task, parts)
        except InputError as error:
            raise InputError(f"methods.{name}.algorithm: {error}") from error
        plan = schedule(inputs.federation, method)
        for seed in inputs.seeds:  # in fixed cohorts, the most exposed client depends on the seed
            stream = Key(seed).fold("federate")
            _, protection = protect_users(inputs.privacy, inputs.partition.clients, plan, stream)
            if protection.quorum is not None:
                try:
                    user_noise(protection).words(upload)
                except InputError as error:
                    raise InputError(f"privacy.{error}") from error
        return
    if inputs.privacy.epsilon is not None:  # without sampling, noise must be enough for one round at least
        noise_for(inputs.privacy.epsilon, inputs.privacy.delta or LARGE_DELTA, 1.0, 1, "rdp")
    if trees.leaves(task.init(Key(0))["buffers"]):
        raise InputError(
            f"privacy: the batch norm of model {inputs.model.model.name} mixes the samples of a batch, which"
            " DP-SGD must treat one by one; set model.norm to group, or use another model"
        )

    def build(local: LocalSGD) -> Algorithm:
        return build_algorithm(inputs.federation, method, task, resources, local)

    if problem := sample_problem(build, local_training(inputs.federation), task):
        raise InputError(f"methods.{name}.algorithm: DP-SGD cannot protect it: {problem}")


def _check_public(inputs: FederateInputs, context: RunContext) -> None:
    """Check that public data can be used as the methods use it, and say which samples they leave out.

    Raises:
        InputError: A method needs labels, and no public label is one of the clients'.
    """
    if inputs.public is None:
        return
    public = inputs.public.read(context, inputs.data.section)
    users = [method for method in inputs.methods.values() if method.source == "public"]
    if any(method.needs_labels for method in users):
        public.matched(inputs.labels)
        if note := public.unmatched(inputs.labels):
            log.info("public: %s", note)


def _fitting(field: str, inputs: FederateInputs, context: RunContext, model: Model, classes: int) -> Task:
    """Return the task of classifying the data with a model.

    Raises:
        InputError: The model does not fit the data.
    """
    section = inputs.data.section
    try:
        return context.classify(section, model, classes, inputs.model.precision)
    except (ValueError, RuntimeError) as error:
        shape = context.data_set(section).shape
        raise InputError(f"{field}: {model.name} does not fit inputs of shape {shape}: {error}") from error


def _check_together(name: str, algorithm: Algorithm, task: Task, clients: int, *, fast: bool) -> None:
    form = task.shapes()
    rows = np.arange(2 * clients).reshape(clients, 2)
    x, y = torch.zeros(rows.size, *form.input), torch.arange(rows.size) % form.classes
    data = ClientData(x, y, list(rows), form.classes)
    schedule = Schedule(rounds=1, clients_per_round=clients, batch_size=2)
    try:
        together(algorithm, task.init(Key(0)), data, schedule, range(clients), fast=fast)
    except Exception as error:  # batching an operation can raise any exception
        raise InputError(
            f"federate.engine: vectorized, but clients of {name} cannot be batched ({first_line(error)}); use"
            " auto"
        ) from error


def _check_classifier(inputs: FederateInputs, data: DataSet, method: Method) -> None:
    assert inputs.generator is not None
    options: GeneratorClassifier = REFERENCES[GENERATOR](**method.algorithm[0].options())
    if isinstance(inputs.generator.section, TextGenerator):
        public = DATASETS[inputs.data.section.name].public
        check_text_classifier(inputs.generator.options, options, public=public)
        data.test_originals([0])
        return
    if not isinstance(inputs.generator.section, ImageGenerator):
        raise InputError(
            f"generator: classification needs a diffusion model or a chat model, but the generator is"
            f" {inputs.generator.kind}; leave the method out"
        )
    if options != REFERENCES[GENERATOR](samples=options.samples):
        raise InputError("generator: shots, normalize, votes and query are for texts; leave them out")
    if data.decode is None:
        raise InputError(
            f"generator: classification needs images, but {inputs.data.section.name} has none; leave the"
            " method out"
        )
    check_classifier(inputs.generator.section.model)
