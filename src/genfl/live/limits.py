"""What a federation of real machines cannot do yet. Each limit is refused by name, before any work."""

from __future__ import annotations

from collections.abc import Iterator

from genfl.algorithms.registry import UNLABELLED
from genfl.config import Config
from genfl.data.texts import GENERATED_TOKENIZER, HASHED_TOKENIZER
from genfl.privacy.sum_settings import numbers_problem


def problem_of(config: Config) -> str | None:
    """Return what of a config real machines cannot run: field, value and fix. None if they can run all."""
    return next(_problems(config), None)


def _problems(config: Config) -> Iterator[str]:
    if config.privacy is not None:
        yield "privacy: set, but differential privacy runs in simulations alone; leave it out"
    secure = config.federate.secure
    if secure and (problem := numbers_problem(secure, config.federate.clients_per_round)):
        yield problem
    if config.data.tokenizer == GENERATED_TOKENIZER:
        yield (
            f"data.tokenizer: {GENERATED_TOKENIZER}, but clients do not get the words of generated texts; use"
            f" {HASHED_TOKENIZER}"
        )
    if share := config.data.partition.test:
        yield f"data.partition.test: {share}, but clients hold nothing back; leave it out"
    if config.labels.min_holders > 1 and secure is None:
        least = config.labels.min_holders
        yield f"labels.min_holders: {least}, but federate.secure is not set; set it to true"
    if config.labels.count_epsilon is not None:
        yield "labels.count_epsilon: set, but it runs in simulations alone; leave it out"
    if config.public is not None and config.public.is_rest:
        yield "public: a part of the private data, which the server has not; set public.path"
    if config.federate.heterogeneity:
        yield "federate.heterogeneity: true, but it needs the private data in one place; set it to false"
    if config.client_models:
        yield "client_models: clients on other machines train the config's model; leave them out"
    if config.audit.drops:
        yield "audit.overlap: drop, but it compares private data; set it to ignore"
    for name, method in config.methods.items():
        if method.reference is not None:
            yield f"methods.{name}: the reference {method.reference} is for simulations; leave it out"
        elif method.data != "private":
            yield f"methods.{name}.data: {method.data}, but generated samples are not sent yet; use private"
        elif asked := method.asks_for & UNLABELLED:
            yield (
                f"methods.{name}.algorithm: it needs {', '.join(sorted(asked))} inputs, which are not sent to"
                " clients yet; use another"
            )
