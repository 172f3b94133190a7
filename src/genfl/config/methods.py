"""The sections of the methods to compare, and of the generated content of their clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from genfl.config.names import GENERATOR_REFERENCE, OLD_OPTIONS, REFERENCE_NAMES, UNLABELLED_RESOURCES
from genfl.config.section import Choice, OneOf, OptionSections, OrOne, Section, named
from genfl.data.budget import BudgetKind as Budget
from genfl.data.budget import Guidance
from genfl.llm.queries import CLASSIFY_BLANKS, CLASSIFY_QUERIES, query_problem, shows_examples

AuxiliarySource = Literal["generated", "public"]
"""Where data from outside the clients comes from."""


class LocalReference(Choice):
    """Every client trains alone."""

    name: Literal["local"] = Field(description="The name of the reference.")


class CentralisedReference(Choice):
    """One model is trained on the pooled data of all clients."""

    name: Literal["centralised"] = Field(description="The name of the reference.")


class GeneratorReference(Choice):
    """The generator itself classifies the test examples."""

    name: Literal["generator"] = Field(description="The name of the reference.")
    samples: int = Field(
        16,
        ge=1,
        le=1000,
        description="Images: number of pairs of a timestep and noise for each example.",
    )
    shots: int = Field(
        0,
        ge=0,
        le=1000,
        description="Texts: number of labelled examples in a query. They are those of one client, drawn for"
        " each seed. A server sees them only if it is trusted.",
    )
    normalize: bool = Field(
        False,
        description="Texts, models that run here: whether the log-likelihood of a label is divided by its"
        " number of tokens.",
    )
    votes: int = Field(
        1, ge=1, le=1000, description="Texts, servers: number of answers that vote on the class of a text."
    )
    query: str = Field(
        "classify",
        max_length=20_000,
        description="Texts: the query, with the blanks {labels}, {text} and {examples}.",
    )


_algorithm_sections = OptionSections(
    "Algorithm", lambda entry: entry.options(), build=lambda entry: entry.make
)


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
    """Return a method as a mapping, with old option names replaced by the current ones."""
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
    """The selection of generated samples by their loss under the global model (FedGC)."""

    share: float = Field(0.9, gt=0, le=1, description="Share of its generated samples that a client keeps.")
    from_round: int = Field(
        1, ge=1, description="First round with filtering. The global models of early rounds judge badly."
    )
    by_class: bool = Field(
        False,
        description="Whether the share applies to each class, with at least one sample, or to all samples"
        " together.",
    )


class Content(Section):
    """Generated content in the clients (FedGC): how much each client gets, of what kind, and its weight."""

    samples: int | None = Field(
        None,
        ge=1,
        description="Number of generated samples of all clients together. Without samples and per_client, all"
        " samples are divided.",
    )
    budget: Budget = Field(
        "equal",
        description="How the samples are divided. equal: the same number for every client and class. inverse:"
        " a client with fewer samples gets more. water_filling: the same number for every client, given first"
        " to the classes with the fewest samples.",
    )
    clients: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the clients that get generated samples, as many as each would get if all did."
        " These clients are drawn for each seed.",
    )
    guidance: Guidance = Field(
        "prompt",
        description="What a client's samples are generated from. prompt: only prompts. real: prompts and the"
        " client's own examples, so only the client's own classes. mixed: half of the samples of its own"
        " classes from examples, all others from prompts.",
    )
    by: Literal["clients", "server"] = Field(
        "clients",
        description="Who generates. clients: every client for itself, so nothing is sent. server: the server"
        " sends every client its samples, and their bytes count.",
    )
    weight: Literal["merged", "private"] = Field(
        "merged",
        description="The number of samples that weights a client's model in the mean. merged: private and"
        " generated samples. private: only private samples, if clients train on any.",
    )
    filter: Filter | None = Field(None, description="How clients select among their generated samples.")
    per_client: int | None = Field(
        None,
        ge=1,
        description="Number of generated samples of a client, in place of samples. With budget inverse, it is"
        " the mean over all clients.",
    )

    def problem(self) -> str | None:
        """Return which fields do not fit together: field and fix. None if all do."""
        if self.samples is not None and self.per_client is not None:
            return "per_client: samples is set, too; give the number of each client or of all, not both"
        sized = self.samples is not None or self.per_client is not None
        if self.guidance != "prompt" and self.by == "server":
            return "by: the server has no real examples; use clients, or guidance prompt"
        if self.guidance != "prompt" and not sized:
            return "samples: required with guidance real or mixed; set a number, or per_client"
        if self.budget == "water_filling" and not sized:
            return "samples: required with budget water_filling; set a number, or per_client"
        return None

    def given(self) -> dict[str, Any]:
        """Return the fields that were set, by name."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def filling(self, other: Content | None) -> Content:
        """Return another section with what it does not set taken from this one.

        Only what the other section sets counts as set; see `given`. A section that sets one of samples and
        per_client does not take the other.

        Args:
            other: The section of a method; None sets nothing.
        """
        given = other.given() if other else {}
        sizes = given.keys() & {"samples", "per_client"}
        if len(sizes) == 1 and given[next(iter(sizes))] is not None:
            given = {"samples": None, "per_client": None} | given
        return Content.model_construct(_fields_set=set(given), **{**dict(self), **given})

    def own(self, shared: Content) -> Content:
        """Return this section with nothing set that is inherited.

        Args:
            shared: The section that it inherits from. If all fields are set, as in the config of a run's
                folder, those that equal it count as inherited.
        """
        given = self.given()
        if given.keys() == type(self).model_fields.keys():
            given = {name: value for name, value in given.items() if value != getattr(shared, name)}
        return Content.model_construct(_fields_set=set(given), **{**dict(self), **given})


class Method(Section):
    """One method of the comparison."""

    algorithm: Annotated[list[MethodPart], Field(min_length=1), OrOne()] = Field(
        description="A name of `genfl list algorithms`, or a list of names that make one algorithm. Or a"
        " reference, which is not federated: local (every client alone), centralised (all data in one place),"
        " generator (the generator as a classifier)."
    )
    start: Literal["random", "init", "pretrained"] = Field(
        "random",
        description="The initial global model. random: random weights. init: the model of pretrain.init,"
        " without generated data. pretrained: the model trained on the data of source, generated by default"
        " (GPT-FL).",
    )
    data: Literal["private", "generated", "mixed", "p2g", "g2p"] = Field(
        "private",
        description="The training data of clients. private: their own. generated: generated samples. mixed:"
        " both together. p2g: in every round, private samples first, then generated ones. g2p: the other way"
        " round.",
    )
    content: Content | None = Field(
        None,
        description="The generated samples of the clients. Fields that are not set here are taken from the"
        " section content.",
    )
    source: AuxiliarySource = Field(
        "generated",
        description="The data from outside the clients that the method takes: generated, or public for that"
        " of the section public. It applies to start pretrained, to the content of clients, and to the inputs"
        " of methods that distil.",
    )

    @property
    def reference(self) -> str | None:
        """The name of the reference; None for federated methods."""
        name = self.algorithm[0].name
        return name if name in REFERENCE_NAMES else None

    @property
    def code(self) -> dict[str, str]:
        """The digest of the code of each user's own builder that it names: results depend on it."""
        names = [] if self.reference else sorted({part.name for part in self.algorithm})
        registered = _registered()
        return {name: registered[name].code for name in names if registered[name].code}

    @property
    def asks_for(self) -> set[str]:
        """The names of the resources that the method's builders take."""
        parts = [] if self.reference else self.algorithm
        registered = _registered()
        return {resource for part in parts for resource in registered[part.name].resources}

    @property
    def takes_client_models(self) -> bool:
        """Whether training depends on the clients' models.

        A builder that can do without them may have an option ``heterogeneous``: whether it uses them.
        """
        registered = _registered()
        return any(
            "client_tasks" in registered[part.name].required
            or (
                "client_tasks" in registered[part.name].resources
                and part.options().get("heterogeneous", True)
            )
            for part in ([] if self.reference else self.algorithm)
        )

    @property
    def reads_auxiliary(self) -> str | None:
        """The field that makes training read data of `source`; None if training does not read any."""
        if self.data != "private":
            return "data"
        return "algorithm" if self.asks_for & {*UNLABELLED_RESOURCES} else None

    @property
    def reads_generated(self) -> str | None:
        """The field that makes training read the synthetic data; None if training does not read it."""
        return self.reads_auxiliary if self.source == "generated" else None

    @property
    def needs_auxiliary(self) -> str | None:
        """The field that makes the method need data of `source`, or a model that was trained on it."""
        return "start" if self.start == "pretrained" else self.reads_auxiliary

    @property
    def needs_labels(self) -> str | None:
        """The field that makes the method need labels of the data of `source`; None if it needs none."""
        if self.start == "pretrained":
            return "start"
        return "data" if self.data != "private" else None

    @property
    def needs_public(self) -> str | None:
        """The field that makes the method need public data; None if it does not need any."""
        return self.needs_auxiliary if self.source == "public" else None

    @property
    def needs_generator(self) -> str | None:
        """The field that makes the method need the generator; None if it does not need one."""
        if self.reference == GENERATOR_REFERENCE:
            return "algorithm"
        return self.needs_auxiliary if self.source == "generated" else None

    def problem(self) -> str | None:
        """Return which fields do not fit together: field and fix. None if all do."""
        references = [part.name for part in self.algorithm if part.name in REFERENCE_NAMES]
        for part in self.algorithm:
            if not isinstance(part, GeneratorReference):
                continue
            if problem := query_problem(part.query, CLASSIFY_QUERIES, CLASSIFY_BLANKS, ["text"]):
                return f"algorithm.query: {problem}"
            if part.shots and not shows_examples(part.query, CLASSIFY_QUERIES):
                return (
                    f"algorithm.query: it lacks the blank {{examples}}, but shots is {part.shots}; add it, or"
                    " set shots to 0"
                )
        if references and len(self.algorithm) > 1:
            return f"algorithm: {references[0]} is not federated, so it cannot be combined; name it alone"
        if self.reference == GENERATOR_REFERENCE and self.start != "random":
            return "start: the reference generator does not train a model; leave it out"
        if self.reference == GENERATOR_REFERENCE and self.data != "private":
            return "data: the reference generator does not train a model; leave it out"
        if self.content and self.data == "private":
            return "content: clients train on private data only; set data to mixed, or leave it out"
        if self.source == "public" and (problem := self._problem_of_public()):
            return problem
        if self.content and (problem := self.content.problem()):
            return f"content.{problem}"
        return None

    def _problem_of_public(self) -> str | None:
        if self.needs_auxiliary is None:
            return "source: public, but the method takes no data from outside the clients; leave it out"
        if self.content and self.content.guidance != "prompt":
            return f"content.guidance: {self.content.guidance}, but public data is not generated; use prompt"
        if self.content and self.content.by == "server":
            return "content.by: server, but clients have public data themselves; use clients"
        return None
