"""The schema of a run's config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, PlainSerializer, model_validator

from genfl.config.data import Audit, Data, Labels, Public
from genfl.config.generation import (
    NO_GUIDANCE,
    UNGUIDED,
    AnyGenerator,
    ImageGenerator,
    NoGenerator,
    Prompts,
    SpeechGenerator,
    TextGenerator,
    kind_of,
)
from genfl.config.methods import Content, Method
from genfl.config.names import RESERVED_METHODS
from genfl.config.privacy import Privacy
from genfl.config.section import Device, FolderName, OrName, OrOne, Section
from genfl.config.tracking import Track
from genfl.config.training import Federation, Model, Pretraining
from genfl.data.budget import ORDERS
from genfl.data.texts import GENERATED_TOKENIZER, HASHED_TOKENIZER
from genfl.learning.task import Precision
from genfl.llm.queries import TEXT_QUERIES, shows_examples
from genfl.registry import added

Target = Annotated[float, Field(gt=0, lt=1)]


def _number_or_list(targets: list[float]) -> float | list[float]:
    """Return a single target as a number, as most config files write it."""
    return targets[0] if len(targets) == 1 else targets


class Report(Section):
    """The report."""

    target_accuracy: Annotated[
        list[Target], Field(min_length=1, max_length=20), OrOne(), PlainSerializer(_number_or_list)
    ] = Field(
        [0.9],
        description="The report says how many rounds and bytes reach this accuracy. A list names several; the"
        " first is that of the verdict.",
    )
    compare: Annotated[list[str], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="The two methods that the verdict compares, as in [gptfl, fedavg]. If not set, the most"
        " accurate method with a generator is compared, and its lead must be clear for the best of all"
        " pairs.",
    )
    real_examples: bool | None = Field(
        None,
        description="Whether the page shows examples of clients. If not set, only of public data sets.",
    )
    byte_budget: int | None = Field(
        None,
        ge=1,
        description="Bytes that every method may send and receive where the report compares methods at equal"
        " bytes. If not set, the least that a federated method of the run needs for all its rounds.",
    )


class Config(Section):
    """A run: the private data, the generator, the methods to compare, and the seeds to average over."""

    name: FolderName = Field(description="The name of the run. Its folder is runs/NAME by default.")
    seeds: list[int] = Field(
        [0, 1, 2],
        min_length=1,
        max_length=1000,
        description="The seeds. Every method is trained once per seed.",
    )
    data: Annotated[Data, OrName()] = Field(description="The private data, and its split over clients.")
    labels: Labels = Field(Labels(), description="Private label discovery.")
    prompts: Prompts = Field(Prompts(), description="The prompts that the generator gets.")
    generator: AnyGenerator = Field(
        ImageGenerator(), description="The generator of synthetic data. none: no synthetic data."
    )
    model: Model = Field(description="The downstream model: a name of `genfl list models`, and its options.")
    client_models: list[Model] = Field(
        [], description="The models of clients, in turn, for methods whose clients differ (Fed-ET)."
    )
    precision: Precision = Field(
        "fp32",
        description="bf16 runs models in bfloat16 (torch.autocast). This is several times faster on GPUs, and"
        " on processors with AVX512-BF16 or AMX. Weights and sums stay in fp32.",
    )
    device: Device = Field(
        "cpu",
        description="The device of local training, pre-training and tests: cpu, cuda or cuda:1. Data, random"
        " numbers and the server's work stay on the CPU.",
    )
    pretrain: Pretraining = Field(
        Pretraining(), description="Training on synthetic data at the server (GPT-FL)."
    )
    federate: Federation = Field(Federation(), description="The federated rounds.")
    content: Content = Field(Content(), description="Generated content in the clients (FedGC).")
    methods: dict[FolderName, Method] = Field(
        min_length=1, description="The methods to compare, by names of your choice."
    )
    report: Report = Field(Report(), description="The report.")
    public: Public | None = Field(
        None, description="Public data, for methods with source public. If not set, there is none."
    )
    audit: Audit = Field(Audit(), description="The search for near-duplicates of test examples.")
    track: Track = Field(Track(), description="Trackers: TensorBoard and MLflow. They change no result.")
    privacy: Privacy | None = Field(
        None, description="Differential privacy of training. If not set, there is none."
    )

    @property
    def device_type(self) -> str:
        """The type of the device, cpu or cuda. The last bits of results depend on it."""
        return self.device.partition(":")[0]

    @property
    def model_code(self) -> dict[str, str]:
        """The digest of the code of `model`, if it is a user's own: results depend on it."""
        return _code_of([self.model])

    @property
    def client_model_code(self) -> dict[str, str]:
        """The digest of the code of each user's own model among `client_models`."""
        return _code_of(self.client_models)

    @property
    def generates(self) -> bool:
        """Whether there is a generator."""
        return not isinstance(self.generator, NoGenerator)

    @property
    def pretrains_on_public(self) -> bool:
        """Whether a method starts from a model that was pre-trained on public data."""
        return any(
            method.source == "public" and method.start == "pretrained" for method in self.methods.values()
        )

    @model_validator(mode="before")
    @classmethod
    def _unguided(cls, content: Any) -> Any:
        """Set defaults for unguided generators: no guidance scale, and for speech the style ``label``."""
        kind, prompts = kind_of(content.get("generator")), content.get("prompts") or {}
        if isinstance(kind, dict) and kind["kind"] in UNGUIDED and isinstance(prompts, dict):
            style = {"style": "label"} if kind["kind"] == "speech" else {}
            return {**content, "prompts": {**style, "guidance_scale": NO_GUIDANCE, **prompts}}
        return content

    @model_validator(mode="after")
    def _content_of_methods(self) -> Self:
        """Give methods whose clients hold generated content what the section says and they do not."""
        filled = {
            name: method.model_copy(update={"content": self.content.filling(method.content)})
            for name, method in self.methods.items()
            if method.data != "private"
        }
        return self.model_copy(update={"methods": self.methods | filled})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            *self._problems(),
            *self._problems_of_methods(),
            *self._problems_of_public(),
            *self._problems_without_generator(),
            *self._problems_of_privacy(),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """Yield what is wrong with sections, alone and together: field and fix."""
        if self.track.mlflow and (problem := self.track.mlflow.problem()):
            yield f"track.mlflow.{problem}"
        clients, cohort = self.data.partition.known, self.federate.clients_per_round
        if clients is not None and cohort > clients:
            yield (
                f"federate.clients_per_round: {cohort} clients a round, but data.partition.clients is"
                f" {clients}; lower the one or raise the other"
            )
        if (quorum := self.federate.quorum) > cohort:
            yield (
                f"federate.quorum: {quorum}, but federate.clients_per_round is {cohort}; lower the one or"
                " raise the other"
            )
        if self.federate.secure and (problem := self.federate.secure.problem(cohort)):
            yield f"federate.{problem}"
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            yield "seeds: give different non-negative integers"
        if problem := self.data.problem():
            yield f"data.{problem}"
        if self.generator.kind in UNGUIDED and self.prompts.guidance_scale != NO_GUIDANCE:
            yield f"prompts.guidance_scale: {self.generator.kind} has no guidance scale; leave it out"
        if self.generator.kind == "speech" and self.prompts.style in ("single", "multiple"):
            yield (
                f"prompts.style: {self.prompts.style} is a description, but speech reads a prompt aloud; use"
                " label or fill"
            )
        if problem := self.prompts.problem():
            yield f"prompts.{problem}"
        if isinstance(self.generator, SpeechGenerator | TextGenerator) and (
            problem := self.generator.problem()
        ):
            yield f"generator.{problem}"
        elif isinstance(self.generator, TextGenerator):
            yield from self._problems_of_examples(self.generator.query)
        if (problem := self.content.problem()) and any(method.content for method in self.methods.values()):
            yield f"content.{problem}"
        if self.content != Content() and not any(method.content for method in self.methods.values()):
            yield (
                "content: no method trains on generated data; set data to mixed in one of them, or leave"
                " content out"
            )

    def _problems_of_examples(self, query: str) -> Iterator[str]:
        """Yield which method has texts guided by real examples, if the query shows none: field and fix."""
        for name, method in self.methods.items():
            guidance = method.content.guidance if method.content else "prompt"
            if guidance != "prompt" and not shows_examples(query, TEXT_QUERIES):
                yield (
                    "generator.query: it lacks the blank {examples}, but guidance of the content of"
                    f" methods.{name} is {guidance}; add it, or set guidance to prompt"
                )
                return

    def _problems_of_methods(self) -> Iterator[str]:
        """Yield what is wrong with methods, alone and in this run: field and fix."""
        for name in RESERVED_METHODS.keys() & self.methods.keys():
            yield f"methods: {name} is reserved for {RESERVED_METHODS[name]}; choose another name"
        if all(method.reference for method in self.methods.values()):
            yield "methods: all of them are references; add a federated algorithm to compare them with"
        targets = self.report.target_accuracy
        if repeated := [target for target in targets if targets.count(target) > 1]:
            yield f"report.target_accuracy: {repeated[0]} is given twice; name each accuracy once"
        compared = self.report.compare or []
        if missing := [name for name in compared if name not in self.methods or self.methods[name].reference]:
            yield f"report.compare: {missing[0]!r} is not a federated method of this config; name two of them"
        elif len(set(compared)) == 1:
            yield f"report.compare: {compared[0]!r} is given twice; name two methods"
        for name, method in self.methods.items():
            problem = method.problem()
            if problem and problem != f"content.{self.content.problem()}":  # reported for the section
                yield f"methods.{name}.{problem}"
            choice = method.content.filter if method.content else None
            if choice and choice.from_round > self.federate.rounds:
                yield (
                    f"methods.{name}.content.filter.from_round: {choice.from_round}, but there are"
                    f" {self.federate.rounds} rounds; lower it, or raise federate.rounds"
                )
            if ORDERS.get(method.data) and self.federate.local.steps == 1:
                yield (
                    f"methods.{name}.data: {method.data} needs at least two steps a round; raise"
                    " federate.local.steps"
                )
            if method.start == "init" and self.pretrain.init is None:
                yield (
                    f"methods.{name}.start: init, but pretrain.init is not set; set it to a file or imagenet"
                )

    def _problems_of_public(self) -> Iterator[str]:
        """Yield what is wrong with public data and its uses: field and fix."""
        users = {name: method for name, method in self.methods.items() if method.source == "public"}
        if self.public is None:
            for name in users:
                yield f"methods.{name}.source: public, but there is no section public; add one with a path"
            return
        if problem := self.public.problem(self.data):
            yield f"public.{problem}"
        if not users:
            yield "public: no method takes public data; set source to public in one of them, or leave it out"
        for name, method in users.items():
            if not self.public.labelled and (field := method.needs_labels):
                yield (
                    f"methods.{name}.{field}: it needs labels, but public.labelled is false; set it to"
                    " true, or leave the method out"
                )

    def _problems_without_generator(self) -> Iterator[str]:
        """Yield what needs generated data, if there is no generator: field and fix."""
        if self.generates:
            return
        for name, method in self.methods.items():
            if field := method.needs_generator:
                yield (
                    f"methods.{name}.{field}: it needs generated data, but generator is none; name a"
                    " generator, or leave the method out"
                )
        if self.data.tokenizer == GENERATED_TOKENIZER:
            yield (
                f"data.tokenizer: {GENERATED_TOKENIZER} takes its words from generated texts, but generator"
                f" is none; use {HASHED_TOKENIZER}, or name a generator"
            )

    def _problems_of_privacy(self) -> Iterator[str]:
        """Yield what differential privacy does not go together with: field and fix."""
        if self.privacy is not None and self.privacy.unit == "user" and self.federate.secure:
            yield (
                "federate.secure: set, but with privacy of unit user the clients add noise in a secure sum of"
                " their own; leave it out, and set privacy.noise to distributed"
            )
        if self.privacy is None or self.privacy.unit != "sample":
            return
        if self.precision != "fp32":
            yield "precision: bf16 has no gradients of single samples, which privacy needs; use fp32"
        for name, method in self.methods.items():
            if method.reference is not None:
                continue
            if ORDERS.get(method.data):
                yield (
                    f"methods.{name}.data: {method.data} trains on one kind of samples after the other, and"
                    " privacy draws from all samples at once; use mixed"
                )
            if method.content and method.content.guidance != "prompt" and self.privacy.generated == "free":
                yield (
                    f"methods.{name}.content.guidance: {method.content.guidance} derives samples from private"
                    " ones, so they are not free; set privacy.generated to protected, or guidance to prompt"
                )
            if method.content and method.content.filter:
                yield (
                    f"methods.{name}.content.filter: privacy draws from all samples of a client; leave it out"
                )


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file, for editors. A file for ``genfl sweep`` has a grid, too."""
    schema = Config.model_json_schema()
    schema["properties"]["grid"] = {
        "description": "For genfl sweep: lists of values for fields, as in federate.rounds: [10, 20].",
        "type": "object",
        "additionalProperties": {"type": "array", "minItems": 1},
        "minProperties": 1,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _code_of(models: Sequence[Model]) -> dict[str, str]:
    entries, names = added("model"), sorted({model.name for model in models})
    return {name: entries[name].code for name in names if name in entries}
