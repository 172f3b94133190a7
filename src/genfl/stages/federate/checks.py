"""Whether every method of a config can be, tried on the real models before any stage works."""

from __future__ import annotations

import numpy as np
import torch

from genfl.algorithms.base import Algorithm
from genfl.algorithms.profile import sends_weights, take_a_step
from genfl.algorithms.registry import UNLABELLED
from genfl.config import Config, ImageGenerator
from genfl.data.clients import ClientData
from genfl.data.folders import first_line
from genfl.data.plans import Schedule
from genfl.data.sources import DataSet
from genfl.engines.auto import together
from genfl.engines.pool import refusal
from genfl.errors import InputError
from genfl.experiment.context import data_set
from genfl.generators.classify import refuse
from genfl.hub import check_device
from genfl.learning.task import MissingPart, Task
from genfl.references import GENERATOR
from genfl.rng import Key
from genfl.stages.federate import generated_content, trial
from genfl.stages.pretrain import check_initial, fitting


def check(config: Config) -> None:
    """Refuses methods that cannot be: tried on the real models, with as many classes as names in the data."""
    check_device(config.device, "device")
    data = data_set(config.data)
    classes = len(set(data.train.labels))
    task = fitting("model", config, config.model, classes)
    check_initial(config, task)
    for index, model in enumerate(config.client_models):
        fitting(f"client_models.{index}", config, model, classes)
    if problem := config.federate.local.augment.augment().problem(data.modality, data.shape):
        raise InputError(f"federate.local.augment.{problem}")
    nothing_yet = torch.zeros(2, *data.shape)
    resources = trial.resources(config, classes) | dict.fromkeys(UNLABELLED, nothing_yet)
    why_not = refusal() if config.federate.engine == "parallel" else None
    if why_not:
        raise InputError(f"federate.engine: parallel, but {why_not}; use auto or sequential")
    generated_content.check(config)
    for name, method in config.methods.items():
        try:
            if method.reference == GENERATOR:
                _check_classifier(config, data)
                continue
            algorithm = trial.algorithm(config, method, task, resources)
            for client in range(max(1, len(config.client_models))):  # models may differ between clients
                take_a_step(algorithm, task, client)
        except ValueError as error:
            raise InputError(f"methods.{name}.algorithm: {error}") from error
        except MissingPart as error:
            raise InputError(
                f"methods.{name}.algorithm: it needs a model with {error}, which"
                f" {config.model.name} does not offer"
            ) from error
        if config.federate.engine == "vectorized":
            _check_together(name, algorithm, task, max(2, len(config.client_models)))
        if method.content and method.content.filter and not sends_weights(algorithm, task):
            raise InputError(
                f"methods.{name}.content.filter: {method.algorithm[0].name} sends clients no global model to"
                " judge samples by; leave it out"
            )


def _check_together(name: str, algorithm: Algorithm, task: Task, clients: int) -> None:
    form = task.shapes()
    rows = np.arange(2 * clients).reshape(clients, 2)
    x, y = torch.zeros(rows.size, *form.input), torch.arange(rows.size) % form.classes
    data = ClientData(x, y, list(rows), form.classes)
    schedule = Schedule(rounds=1, clients_per_round=clients, batch_size=2)
    try:
        together(algorithm, task.init(Key(0)), data, schedule, range(clients))
    except Exception as error:  # whatever the batching of an operation raises
        raise InputError(
            f"federate.engine: vectorized, but clients of {name} cannot be batched ({first_line(error)}); use"
            " auto"
        ) from error


def _check_classifier(config: Config, data: DataSet) -> None:
    if not isinstance(config.generator, ImageGenerator):
        raise InputError(f"generator classifies with a diffusion model, which {config.generator.kind} is not")
    if data.decode is None:
        raise InputError(f"generator classifies images, and the examples of {config.data.name} are none")
    refuse(config.generator.model)
