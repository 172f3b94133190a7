"""Arms: what each method of a config, with each seed, reads, runs and depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genfl.algorithms import ALGORITHMS, Algorithm, combine
from genfl.algorithms.fedavg import fedavg
from genfl.algorithms.filtering import SampleFilter, filtered
from genfl.config import Config, Method
from genfl.data.budget import ORDERS
from genfl.data.clients import ClientData
from genfl.data.plans import Schedule
from genfl.data.texts import GENERATED
from genfl.experiment.context import classify, data_digest
from genfl.experiment.folder import VOCABULARY, Run
from genfl.learning.local import LocalSGD
from genfl.learning.task import Task
from genfl.references import GENERATOR, LOCAL, TRAINED, Federation
from genfl.rng import Key
from genfl.stages import generate, guided, pretrain
from genfl.stages.federate.engine_choice import batched
from genfl.storage import digest

FOLDER, VERSION = "federate", 4
"""Of the stage that runs them."""

ROUNDING = 2
"""Raised whenever clients in batches are computed or added up in another order."""


def federations(config: Config, method: Method, clients: ClientData, seed: int) -> list[Federation]:
    """Returns what a method runs: one federation, or a reference's federations of one."""
    key = Key(seed).fold("federate")  # not the method's: all methods see the same cohorts
    if method.reference:
        return TRAINED[method.reference](clients, schedule(config, method), key)
    return [Federation(clients, schedule(config, method), key)]


def places(config: Config, method: Method, seed: int) -> list[str]:
    """Returns the names of the folders of a method's federations."""
    if method.reference != LOCAL:
        return [f"seed-{seed}"]
    return [f"seed-{seed}-client-{client}" for client in range(config.data.partition.clients)]


def trained(config: Config) -> dict[str, Method]:
    """Returns the methods that train in rounds."""
    return {name: method for name, method in config.methods.items() if method.reference != GENERATOR}


def key(run: Run, method: Method, seed: int) -> str:
    """Returns a digest of all that a method's training with one seed depends on, and of nothing else."""
    config = run.config
    if method.reference == GENERATOR:
        texts = [run.labels, config.prompts.style, config.prompts.template, config.prompts.blanks]
        model = generate.inputs(config)
        return digest([VERSION, data_digest(config.data), texts, model, method.model_dump(), seed])
    upstream = []
    if method.reads_generated:
        upstream.append(generate.STAGE.name)
    models = [config.precision, config.device_type, config.model.model_dump()]
    if "client_tasks" in method.asks_for:
        models += [model.model_dump() for model in config.client_models]
    federation = training(config)
    if batched(run, method):
        federation["engine"] = ["vectorized", ROUNDING]  # the others have the same bits
    if config.data.tokenizer == GENERATED:
        upstream.append(VOCABULARY)
    keys = {name: run.key(name) for name in upstream}
    if method.content and method.content.guidance != "prompt":
        keys[guided.STAGE.name] = guided.identity(run, method.content)
    if method.start == "pretrained":
        keys[pretrain.STAGE.name] = pretrain.key(run, seed)
    if method.start == "init":
        keys["init"] = str(pretrain.initial_digest(config))
    data = [data_digest(config.data), config.data.partition.model_dump()]
    return digest([VERSION, run.labels, data, models, federation, method.model_dump(), seed, keys])


def training(config: Config) -> dict[str, Any]:
    """Returns what decides the results of federated training, but for the engine."""
    return config.federate.model_dump(exclude={"checkpoint_every", "engine"})


def resources(config: Config, classes: int) -> dict[str, Any]:
    """Returns what builders may ask for, but for the synthetic data."""
    tasks = {
        f"{index}-{model.name}": classify(config, model, classes)
        for index, model in enumerate(config.client_models)
    }
    return {
        "cohort": config.federate.clients_per_round,
        "rounds": config.federate.rounds,
        "client_tasks": tasks or None,
    }


def algorithm(config: Config, method: Method, task: Task, resources: Mapping[str, Any]) -> Algorithm:
    """Returns what clients and server of a method compute; of a reference, how its one client trains."""
    work = config.federate.local
    local = LocalSGD(work.lr, work.momentum, work.weight_decay)
    if method.reference:
        return fedavg(task, local)  # of a single client: its own training
    parts = [(ALGORITHMS[part.name], part.options()) for part in method.algorithm]
    combined = combine(task, local, parts, resources)
    choice = method.content.filter if method.content else None
    if choice is None:
        return combined
    keep = SampleFilter(choice.share, choice.by_class)
    part = 0 if method.data == "generated" else 1
    return filtered(combined, task, keep, part=part, from_round=choice.from_round)


def schedule(config: Config, method: Method) -> Schedule:
    """Returns the rounds, cohorts and work, the same for all methods, and how one uses generated content."""
    federation = config.federate
    return Schedule(
        rounds=federation.rounds,
        clients_per_round=federation.clients_per_round,
        batch_size=federation.local.batch_size,
        local_steps=federation.local.steps,
        local_epochs=federation.local.epochs,
        evaluate_every=federation.evaluate_every,
        checkpoint_every=federation.checkpoint_every,
        order=ORDERS.get(method.data),
    )


def sent_to_clients(run: Run, method: Method, content: float) -> float:
    """Returns the bytes of synthetic data, as on disk, that all clients of a method get together, once.

    Args:
        run: A run whose data is generated.
        method: One of its methods.
        content: How many generated samples its clients train on.
    """
    if not run.config.generates:
        return 0.0
    made = run.result(generate.STAGE.name)
    size: int = made["bytes"]
    copies: float = run.config.data.partition.clients * ("shared" in method.asks_for)
    if method.content and method.content.by == "server" and method.reference is None:
        copies += content / made["samples"]  # every client gets its own
    return copies * size
