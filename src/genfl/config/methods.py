"""The sections of the methods to compare, and of the generated content of their clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from genfl.config.names import GENERATOR_REFERENCE, OLD_OPTIONS, REFERENCE_NAMES, UNLABELLED_RESOURCES
from genfl.config.section import Choice, OneOf, OptionSections, Section, as_list, named
from genfl.data.budget import BudgetKind as Budget
from genfl.data.budget import Guidance
from genfl.registry import added


class LocalReference(Choice):
    """Every client trains alone."""

    name: Literal["local"]


class CentralisedReference(Choice):
    """One model is trained on all clients' data in one place."""

    name: Literal["centralised"]


class GeneratorReference(Choice):
    """The generator itself classifies the test examples."""

    name: Literal["generator"]
    samples: int = Field(16, ge=1, le=1000, description="Pairs of a timestep and noise for each example.")


_algorithm_sections = OptionSections("Algorithm", lambda entry: entry.options())


def _algorithms() -> dict[str, type[BaseModel]]:
    references: dict[str, type[BaseModel]] = {
        "local": LocalReference,
        "centralised": CentralisedReference,
        "generator": GeneratorReference,
    }
    return {**_algorithm_sections(_registered()), **references}


def _registered() -> Mapping[str, Any]:
    from genfl.algorithms.registry import ALGORITHMS

    return ALGORITHMS


def _named_method(value: Any) -> Any:
    """Return a method as a mapping with its options' present names."""
    value = named(value)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return value
    old = OLD_OPTIONS.get(value["name"], {})
    return {
        old[option] if option in old and old[option] not in value else option: setting
        for option, setting in value.items()
    }


ALGORITHM = OneOf("Algorithm", "name", _algorithms)
MethodPart = Annotated[Choice, ALGORITHM, BeforeValidator(_named_method)]
"""A method or a reference: its name in `genfl.algorithms.ALGORITHMS`, and its options."""


class Filter(Section):
    """Which generated samples clients train on: those of least loss under the global model (FedGC)."""

    share: float = Field(0.9, gt=0, le=1, description="The share of them that a client keeps.")
    from_round: int = Field(1, ge=1, description="The first round that filters: early models judge badly.")
    by_class: bool = Field(
        False, description="Whether that share of each class is kept, one at least, or of all."
    )


class Content(Section):
    """Generated content in the clients (FedGC): how much each gets, of what kind, and how it counts."""

    samples: int | None = Field(
        None, ge=1, description="Generated samples of all clients together; without it, all there are."
    )
    budget: Budget = Field(
        "equal",
        description="How they are divided. equal: the same for every client and class. inverse: the fewer"
        " samples a client has, the more. water_filling: the same for every client, poured over its classes"
        " so that those it has least of rise to one level.",
    )
    clients: float = Field(
        1.0, gt=0, le=1, description="Share of the clients that get any; which ones is drawn for each seed."
    )
    guidance: Guidance = Field(
        "prompt",
        description="What a client's samples are made from. prompt: prompts alone. real: prompts and examples"
        " of its own, so that it gets samples of its own classes only. mixed: of a class that it has, half of"
        " them with an example; of the others, prompts alone.",
    )
    by: Literal["clients", "server"] = Field(
        "clients",
        description="Who generates: clients, for themselves, so that nothing is sent; or the server, which"
        " sends every client its own, and their bytes count.",
    )
    weight: Literal["merged", "private"] = Field(
        "merged",
        description="What counts as a client's samples when models are averaged: merged, private and"
        " generated ones; or private ones alone, where clients train on any.",
    )
    filter: Filter | None = Field(None, description="Has clients choose among their generated samples.")

    def problem(self) -> str | None:
        """Say what cannot be combined: field and fix; None where there is nothing."""
        if self.guidance != "prompt" and self.by == "server":
            return "by: the server has no real examples; use clients, or guidance prompt"
        if self.guidance != "prompt" and self.samples is None:
            return "samples: say how many, where real examples guide them"
        if self.budget == "water_filling" and self.samples is None:
            return "samples: say how many, where some classes get more than others"
        return None

    def given(self) -> dict[str, Any]:
        """Return what was set, by name."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class Method(Section):
    """One arm of the comparison."""

    algorithm: Annotated[list[MethodPart], BeforeValidator(as_list), Field(min_length=1)] = Field(
        description="A name of `genfl list algorithms`, or a list of those that make one algorithm together;"
        " or a reference, which is not federated: local (every client alone), centralised (all data in one"
        " place), generator (the generator as a classifier)."
    )
    start: Literal["random", "init", "pretrained"] = Field(
        "random",
        description="The initial global model: pretrained is GPT-FL's warm start, init is pretrain.init as it"
        " is, without generated data.",
    )
    data: Literal["private", "generated", "mixed", "p2g", "g2p"] = Field(
        "private",
        description="What clients train on: private, generated, or both: mixed together; p2g, private samples"
        " first in every round, then generated ones; g2p, the other way round.",
    )
    content: Content | None = Field(
        None,
        description="The generated samples of clients that train on any; what is not set here is as in the"
        " section content.",
    )

    @property
    def reference(self) -> str | None:
        """The name of the reference that it is; None for federated methods."""
        name = self.algorithm[0].name
        return name if name in REFERENCE_NAMES else None

    @property
    def code(self) -> list[str]:
        """The digests of the code of users' own builders that it names: results depend on it."""
        names = [part.name for part in self.algorithm]
        return [entry.code for name, entry in added("algorithm").items() if name in names]

    @property
    def asks_for(self) -> set[str]:
        """The names of the resources that its builders ask for."""
        parts = [] if self.reference else self.algorithm
        registered = _registered()
        return {resource for part in parts for resource in registered[part.name].resources}

    @property
    def reads_generated(self) -> str | None:
        """The field for which its training needs the synthetic data itself; None where nothing does."""
        if self.data != "private":
            return "data"
        return "algorithm" if self.asks_for & {*UNLABELLED_RESOURCES} else None

    @property
    def needs_generator(self) -> str | None:
        """The field without which it would not need the generator; None where nothing needs it."""
        if self.start == "pretrained":
            return "start"
        return "algorithm" if self.reference == GENERATOR_REFERENCE else self.reads_generated

    def problem(self) -> str | None:
        """Say what cannot be combined: field and fix; None where there is nothing."""
        alone = [part.name for part in self.algorithm if part.name in REFERENCE_NAMES]
        if alone and len(self.algorithm) > 1:
            return f"algorithm: {alone[0]} stands alone; it is not federated, so it combines with nothing"
        if self.reference == GENERATOR_REFERENCE and self.start != "random":
            return "start: generator trains nothing, so there is nothing to start from; leave it out"
        if self.reference == GENERATOR_REFERENCE and self.data != "private":
            return "data: generator trains on nothing; leave it out"
        if self.content and self.data == "private":
            return "content: clients train on private data alone; set data to mixed, or leave it out"
        if self.content and (problem := self.content.problem()):
            return f"content.{problem}"
        return None
