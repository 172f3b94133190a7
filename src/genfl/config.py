"""The schema of a run's config, and how it is read: YAML, overrides, one clear line for each mistake."""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from genfl.algorithms import ALGORITHMS
from genfl.algorithms.registry import UNLABELLED
from genfl.data.budget import Guidance
from genfl.data.budget import Kind as Budget
from genfl.data.partition import OWN, Kind, Within
from genfl.data.plans import ORDERS
from genfl.data.recipes import RECIPES
from genfl.data.sources import DATASETS
from genfl.data.texts import GENERATED, HASHED
from genfl.engines.choice import Name as EngineName
from genfl.errors import InputError
from genfl.generators.registry import ESPEAK, GENERATORS
from genfl.generators.speech import VOCODER
from genfl.learning.augment import Augment, Padding
from genfl.learning.task import Precision
from genfl.models import MODELS
from genfl.options import options
from genfl.prompts.llm import ASKED
from genfl.references import GENERATOR, REFERENCES


def _folder_name(value: str) -> str:
    if not value or value[0] == "." or any(c in "/\\" or ord(c) < 32 for c in value):
        raise ValueError("becomes the name of a folder: no slash, no dot in front, and not empty")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Choice(Section):
    """An entry of a registry, and its options."""

    name: str

    def options(self) -> dict[str, Any]:
        """Returns the options by name."""
        return self.model_dump(exclude={"name"})


class Partition(Section):
    """How the training data is split over clients."""

    kind: Kind = Field(
        "dirichlet",
        description="iid: all alike. dirichlet: every label is dealt out in Dirichlet(alpha) shares. shards:"
        " every client gets pieces of the data sorted by label. quantity: labels alike, sizes in"
        " Dirichlet(alpha) shares. natural: the clients the data has of its own. domain: a client holds data"
        " of one domain, such as PACS's sketches.",
    )
    clients: int = Field(
        20,
        ge=2,
        le=65_537,
        description="Number of clients; not needed for the kinds natural and domain, where the data says it.",
    )
    alpha: float = Field(0.1, gt=0, description="Dirichlet concentration: smaller is less IID.")
    min_size: int = Field(
        1,
        ge=1,
        description="Samples every client has at least; of kind natural, those with fewer are left out.",
    )
    shards_per_client: int = Field(2, ge=1, description="Of kind shards: how many every client gets.")
    clients_per_domain: int = Field(5, ge=1, description="Of kind domain: how many share a domain's data.")
    within: Within = Field("iid", description="Of kind domain: how a domain is split over its clients.")
    test: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of every client's own samples, rounded down, that it holds back from training and"
        " tests the final models on.",
    )
    samples: int | None = Field(
        None,
        ge=1,
        description="Training samples that are split: drawn at random, classes as frequent as in all of them,"
        " the same for every seed. Without it, all are.",
    )

    @property
    def known(self) -> int | None:
        """The number of clients; None where the data has yet to say it."""
        return None if self.kind in OWN and "clients" not in self.model_fields_set else self.clients


Pixels = Annotated[int, Field(ge=1, le=1024)]

FORM_OPTIONS = list(dict.fromkeys(name for recipe in RECIPES.values() for name in recipe.form.options))
"""The fields of `Data` that are fields of some form of examples."""


class Data(Section):
    """The private data."""

    name: str = Field(
        description="A name of `genfl list datasets`; images, sounds and texts are data of your own."
    )
    path: str | None = Field(
        None,
        description="A folder with a copy: Parquet files, CSV or JSONL files of texts, one folder of files"
        " for each class, or what save_to_disk wrote. Without it, the data comes from the Hugging Face Hub.",
    )
    input: str | None = Field(None, description="The column of the inputs, where it has another name.")
    label: str | None = Field(None, description="The column of the classes, where it has another name.")
    key: str | None = Field(None, description="The column that says whose an example is (kind: natural).")
    size: Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Height and width that images are resized to."
    )
    channels: Literal[1, 3] | None = Field(None, description="1 for grey, 3 for RGB images.")
    length: int | None = Field(
        None, ge=1, le=4096, description="Tokens that texts are cut to, or filled up to with padding."
    )
    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="What splits texts into tokens: hashed (words, by a hash), generated (the words of the"
        " run's generated texts, and no others), a tokenizer.json, a folder with one, or a Hugging Face id.",
    )
    seconds: float | None = Field(
        None, ge=0.1, le=60, description="How long sounds are: longer ones are cut, shorter ones filled up."
    )
    partition: Partition = Partition()

    def options(self) -> dict[str, Any]:
        """Returns what `genfl.data.sources.read` takes: all that is set but the name and the split."""
        given = self.model_dump(exclude={"name", "partition"}, exclude_none=True)
        if self.tokenizer == GENERATED:
            given["tokenizer"] = HASHED  # as long as there are no generated texts
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}

    def problem(self) -> str | None:
        """Says what is wrong: field and fix; None where there is nothing."""
        if self.name not in DATASETS:
            return f"name: there is no {self.name!r}; {_suggest(self.name, list(DATASETS))}"
        recipe, given = DATASETS[self.name].recipe, self.options()
        if recipe is None:
            return f"{next(iter(given))}: {self.name} is always the same; leave it out" if given else None
        if not recipe.hub and "path" not in given:
            return f"path: {self.name} needs the folder it is in"
        for name in FORM_OPTIONS:
            if name in given and name not in recipe.form.options:
                return f"{name}: {self.name} has none, it is {recipe.form.modality}; leave it out"
        chosen = {name: given[name] for name in recipe.form.options if name in given}
        return replace(recipe.form, **chosen).missing()  # type: ignore[type-var]  # all are dataclasses


class Labels(Section):
    """Private label discovery."""

    max_bytes: int = Field(64, ge=1, le=1024, description="Longest label name, in UTF-8 bytes.")
    cells: int = Field(
        80, ge=8, le=2**20, description="Cells of the first table; doubled when it does not decode."
    )
    hashes: int = Field(4, ge=2, le=8, description="Cells each name is put in.")
    attempts: int = Field(8, ge=1, le=16, description="Tables tried before giving up.")


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as the number it is, and refuses a key given twice, of which YAML would keep the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.YAMLError(f"{key_node.value!r} is given twice, {key_node.start_mark}")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around a text that `_Loader` would read as a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _as_list(value: Any) -> Any:
    """Reads one number as a list of it."""
    return value if isinstance(value, list) else [value]


NO_GUIDANCE = [1.0]
UNGUIDED = ("speech", "text")
"""Kinds of generators without classifier-free guidance."""


Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:(0|[1-9]\d?))?)$")]


class ChatModel(Section):
    """A language model to ask: one that transformers runs here, or one behind an OpenAI-compatible server."""

    model: str = Field(
        min_length=1,
        description="A folder or a Hugging Face id of a chat model; with base_url, what the server calls it.",
    )
    base_url: str | None = Field(
        None,
        description="The server's address, as in http://127.0.0.1:8000/v1. Without it, the model runs here.",
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        description="The environment variable that holds the server's key, where it wants one. The key is"
        " written nowhere.",
    )
    device: Device = Field("cpu", description="cpu, cuda or cuda:1; without base_url.")
    temperature: float = Field(1.0, gt=0, le=2, description="Of sampling.")
    max_tokens: int = Field(500, ge=1, description="The longest answer.")
    timeout: float = Field(
        120.0, gt=0, description="The longest wait for a server's answer, or between two tries, in seconds."
    )
    parallel: int = Field(4, ge=1, le=256, description="Queries that a server gets at the same time.")
    attempts: int = Field(
        5, ge=1, description="Queries for one sample, or for the prompts of one label, until they are usable."
    )

    def options(self) -> dict[str, Any]:
        """Returns what `genfl.llm.chat.connect` takes."""
        return {name: getattr(self, name) for name in ChatModel.model_fields}


class PromptModel(ChatModel):
    """The language model that writes prompts."""

    distinct: int = Field(20, ge=1, description="Different prompts of each label.")
    fallback: Literal["multiple"] | None = Field(
        None,
        description="multiple fills up too few usable prompts with that style's; without it, it is an error.",
    )


class Prompts(Section):
    """What the generator is told."""

    style: Literal["label", "single", "multiple", "fill", "llm", "scenes"] = Field(
        "single",
        description="label: its name alone. single: one sentence, such as 'a photo of a {label}', or for"
        " sounds or texts. multiple: one of several. fill: your own template. llm: a language model fills"
        " in a sentence around the label (GPT-FL). scenes: it describes scenes with this label and no other"
        " (FedGC).",
    )
    llm: PromptModel | None = Field(None, description="For styles llm and scenes: who writes the prompts.")
    template: str | None = Field(None, description="For style fill: 'a {look} {label}'.")
    blanks: dict[str, list[str]] = Field({}, description="For style fill: the words for each blank.")
    per_label: int = Field(200, ge=1, description="Samples of each label.")
    wrong: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the samples that are made from another label's prompt, to learn how bad a"
        " generator may be.",
    )
    guidance_scale: Annotated[list[Annotated[float, Field(ge=0)]], BeforeValidator(_as_list)] = Field(
        [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0],
        min_length=1,
        description="One scale, or those to draw from.",
    )
    block_size: int = Field(50, ge=1, description="Samples generated in one call, all of one scale.")

    def problem(self) -> str | None:
        """Says what does not fit together: field and fix; None where there is nothing."""
        if self.style in ASKED and self.llm is None:
            return f"llm: style {self.style} needs a language model, as in llm: {{model: FOLDER}}"
        if self.style not in ASKED and self.llm is not None:
            return f"llm: style {self.style} asks no language model; use style llm or scenes, or leave it out"
        return None


Side = Annotated[int, Field(ge=8, le=4096, multiple_of=8)]


class ImageGenerator(Section):
    """A text-to-image model."""

    kind: Literal["image"] = "image"
    model: str = Field("miniature", description="miniature, a folder, or a Hugging Face model id.")
    steps: int = Field(15, ge=1, le=1000, description="Denoising steps.")
    device: Device = Field("cpu", description="cpu, cuda or cuda:1.")
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Height and width to draw at, in pixels. Without it, the model's own."
    )
    strength: float = Field(
        0.6,
        gt=0,
        le=1,
        description="How far an image may go from the real one that guides it, where one does; at 1 hardly"
        " anything is left of it.",
    )


class FileGenerator(Section):
    """Samples that exist already."""

    kind: Literal["files"]
    path: str = Field(
        description="A folder of generated samples: Parquet, CSV or JSONL files, or one folder of files for"
        " each class."
    )
    input: str | None = Field(None, description="The column of the samples; image, audio or text if not set.")
    label: str = Field("label", description="The column of the classes.")


def _ascending(value: list[float]) -> list[float]:
    if value != sorted(value):
        raise ValueError("the least comes first")
    return value


Decibels = Annotated[float, Field(ge=-20, le=100)]
Span = Annotated[list[Decibels], Field(min_length=2, max_length=2), AfterValidator(_ascending)]


class SpeechGenerator(Section):
    """Text to speech."""

    kind: Literal["speech"]
    model: str = Field(
        ESPEAK,
        min_length=1,
        description="espeak: espeak-ng, in hundreds of voices. Or a folder or a Hugging Face id of a"
        " text-to-speech model of transformers, such as microsoft/speecht5_tts or facebook/mms-tts-eng.",
    )
    language: str = Field(
        "en",
        description="Of espeak: a language as espeak-ng calls it, with all its accents (en, de, cmn), or one"
        " of these (en-us).",
    )
    seconds: float = Field(
        1.0,
        ge=0,
        le=60,
        description="Of espeak: how long a clip is at least; what is said is at a random place in it.",
    )
    snr: Span | None = Field(
        [0.0, 40.0],
        description="Of espeak: least and greatest signal-to-noise ratio, in dB, of the noise that is added"
        " to a clip; null for none.",
    )
    vocoder: str = Field(
        VOCODER,
        min_length=1,
        description="Of SpeechT5: a folder or a Hugging Face id of its HiFi-GAN, which makes sound.",
    )
    speakers: str | None = Field(
        None,
        description="Of SpeechT5: a file or folder of x-vectors (.npy, .safetensors, .parquet), of which one"
        " is drawn for each clip.",
    )
    device: Device = Field("cpu", description="Of models: cpu, cuda or cuda:1.")

    def problem(self) -> str | None:
        """Says what does not fit together: field and fix; None where there is nothing."""
        of_espeak, of_models = ("language", "seconds", "snr"), ("vocoder", "speakers", "device")
        for name in of_models if self.model == ESPEAK else of_espeak:
            if getattr(self, name) != type(self).model_fields[name].default:
                what = "for espeak alone" if name in of_espeak else "not for espeak"
                return f"{name}: it is {what}; leave it out, or take another model"
        return None


class SoundGenerator(Section):
    """Text to sound."""

    kind: Literal["sound"]
    model: str = Field(
        min_length=1,
        description="A folder or a Hugging Face id of AudioLDM or AudioLDM 2, such as"
        " cvssp/audioldm-s-full-v2.",
    )
    steps: int = Field(100, ge=1, le=1000, description="Denoising steps.")
    seconds: float = Field(5.0, ge=0.1, le=60, description="How long clips are.")
    device: Device = Field("cpu", description="cpu, cuda or cuda:1.")


class NoGenerator(Section):
    """Nothing is generated: federated learning as it is without a generator."""

    kind: Literal["none"] = "none"


def _kind(value: Any) -> Any:
    """Reads a generator without a kind as one of images, its name alone as its kind, and null as none."""
    if value is None or isinstance(value, str):
        return {"kind": value or "none"}
    return {"kind": "image", **value} if isinstance(value, dict) else value


class TextGenerator(ChatModel):
    """Texts by a language model."""

    kind: Literal["text"]
    words: int = Field(
        30,
        ge=1,
        le=2000,
        description="How many words, between spaces, texts have, about: a quarter to three times as many do.",
    )
    shots: int = Field(
        3, ge=0, description="Real examples shown with a query, where clients generate guided by them."
    )
    trusted: bool = Field(
        False, description="Whether the server may be shown real examples, because it is the clients' own."
    )


Generator = Annotated[
    ImageGenerator | SpeechGenerator | SoundGenerator | TextGenerator | FileGenerator | NoGenerator,
    Discriminator("kind"),
    BeforeValidator(_kind),
]


def _named(value: Any) -> Any:
    """Reads ``algorithm: fedavg`` as ``algorithm: {name: fedavg}``."""
    return {"name": value} if isinstance(value, str) else value


def _parts(value: Any) -> Any:
    """Reads one method as a list of it."""
    return value if isinstance(value, list) else [value]


def _one_of(what: str, registry: Mapping[str, Any], fields: Callable[[str], dict[str, Any]]) -> Any:
    """Returns the type of a section that names an entry of a registry and sets its options."""
    sections = [
        create_model(
            f"{what}_{name}",
            __base__=Choice,
            __doc__=f"Options of {name}.",
            **{"name": (Literal[name], ...), **fields(name)},
        )
        for name in registry
    ]
    union: Any = Union[tuple(sections)]  # noqa: UP007
    return Annotated[union, Discriminator("name"), BeforeValidator(_named)]


if TYPE_CHECKING:
    Algorithm = Choice
    Model = Choice
else:  # unions computed from the registries, which no type checker can follow
    Algorithm = _one_of(
        "Algorithm",
        {**ALGORITHMS, **REFERENCES},
        lambda name: ALGORITHMS[name].options() if name in ALGORITHMS else options(REFERENCES[name]),
    )
    Model = _one_of("Model", MODELS, lambda name: options(MODELS[name].build))


class Augmentation(Section):
    """Random changes of inputs during training, drawn anew for each sample in each step."""

    crop: int = Field(
        0,
        ge=0,
        description="Images: padded by so many pixels and cropped at a random place, so that they move.",
    )
    padding: Padding = Field(
        "zeros",
        description="What a crop moves in: zeros, in normalised images the mean colour, or the mirror image.",
    )
    flip: bool = Field(False, description="Images: every second one, at random, is mirrored left to right.")
    cutout: int = Field(0, ge=0, description="Images: side of a square of zeros, in pixels.")
    time_shift: int = Field(0, ge=0, description="Sounds: moved by up to so many frames of 10 ms.")
    time_mask: int = Field(0, ge=0, description="Sounds: most frames that a mask hides (SpecAugment).")
    frequency_mask: int = Field(
        0, ge=0, description="Sounds: most mel bands that a mask hides (SpecAugment)."
    )
    masks: int = Field(1, ge=1, description="Sounds: how many masks of each kind.")
    noise: float = Field(
        0.0, ge=0, description="Standard deviation of noise, on the scale of what models are given."
    )

    def augment(self) -> Augment:
        """Returns the changes."""
        return Augment(**self.model_dump(exclude={"data"}))


Source = Literal["private", "generated"]


class LocalAugmentation(Augmentation):
    """Random changes of the inputs that clients train on."""

    data: Annotated[list[Source], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        ["private", "generated"], description="Which of a client's data are changed."
    )

    def of(self, source: Source) -> Augment | None:
        """Returns the changes of a part of clients' data; None where there are none."""
        augment = self.augment()
        return augment if source in self.data and augment != Augment() else None


class Pretraining(Section):
    """Training on synthetic data at the server."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=1)
    lr: float = Field(1e-3, gt=0, description="AdamW's learning rate at the start.")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="cosine lowers it to zero.")
    weight_decay: float = Field(0.3, ge=0, description="AdamW's decoupled weight decay.")
    holdout: float = Field(0.1, gt=0, lt=1, description="Share of synthetic data that decides when to stop.")
    patience: int = Field(5, ge=1, description="Epochs without a better held-back loss before stopping.")
    init: str | None = Field(
        None,
        description="An existing model to start from: a file of weights (.safetensors, or torchvision's"
        " .pth), or imagenet, torchvision's in the folder of torch.hub. Without it, random weights.",
    )
    augment: Augmentation = Augmentation()


class LocalTraining(Section):
    """What a client of the cohort does in a round."""

    steps: int | None = Field(None, ge=1, description="SGD steps; without it, epochs are counted.")
    epochs: int = Field(1, ge=1, description="Passes over the client's data, where no steps are given.")
    batch_size: int = Field(32, ge=1)
    lr: float = Field(0.05, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    augment: LocalAugmentation = LocalAugmentation()

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if self.steps is not None and self.epochs != 1:
            raise ValueError("give steps or epochs, not both")
        return self


class Federation(Section):
    """The federated rounds, the same for every method."""

    rounds: int = Field(100, ge=1)
    clients_per_round: int = Field(10, ge=1)
    local: LocalTraining = LocalTraining()
    evaluate_every: int = Field(5, ge=1, description="Rounds between evaluations.")
    checkpoint_every: int = Field(5, ge=1, description="Rounds between checkpoints.")
    heterogeneity: bool = Field(
        False,
        description="Whether to measure how alike clients are and what that does to their local models: in"
        " every round, their divergence from the global model, and their accuracy before they are averaged.",
    )
    engine: EngineName = Field(
        "auto",
        description="What executes the work. parallel and sequential run clients one by one and give the same"
        " bits; vectorised runs them in batches and gives the same up to rounding. auto is vectorised where"
        " steps are short, clients take the same ones, and every core, of at most four, has a batch.",
    )


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
        """Says what cannot be combined: field and fix; None where there is nothing."""
        if self.guidance != "prompt" and self.by == "server":
            return "by: the server has no real examples; use clients, or guidance prompt"
        if self.guidance != "prompt" and self.samples is None:
            return "samples: say how many, where real examples guide them"
        if self.budget == "water_filling" and self.samples is None:
            return "samples: say how many, where some classes get more than others"
        return None

    def given(self) -> dict[str, Any]:
        """Returns what was set, by name."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class Method(Section):
    """One arm of the comparison."""

    algorithm: Annotated[list[Algorithm], BeforeValidator(_parts), Field(min_length=1)] = Field(
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
        return name if name in REFERENCES else None

    @property
    def asks_for(self) -> set[str]:
        """The names of the resources that its builders ask for."""
        parts = [] if self.reference else self.algorithm
        return {resource for part in parts for resource in ALGORITHMS[part.name].resources}

    @property
    def reads_generated(self) -> str | None:
        """The field for which its training needs the synthetic data itself; None where nothing does."""
        if self.data != "private":
            return "data"
        return "algorithm" if self.asks_for & UNLABELLED else None

    @property
    def needs_generator(self) -> str | None:
        """The field without which it would not need the generator; None where nothing needs it."""
        if self.start == "pretrained":
            return "start"
        return "algorithm" if self.reference == GENERATOR else self.reads_generated

    def problem(self) -> str | None:
        """Says what cannot be combined: field and fix; None where there is nothing."""
        alone = [part.name for part in self.algorithm if part.name in REFERENCES]
        if alone and len(self.algorithm) > 1:
            return f"algorithm: {alone[0]} stands alone; it is not federated, so it combines with nothing"
        if self.reference == GENERATOR and self.start != "random":
            return "start: generator trains nothing, so there is nothing to start from; leave it out"
        if self.reference == GENERATOR and self.data != "private":
            return "data: generator trains on nothing; leave it out"
        if self.content and self.data == "private":
            return "content: clients train on private data alone; set data to mixed, or leave it out"
        if self.content and (problem := self.content.problem()):
            return f"content.{problem}"
        return None


class Report(Section):
    """What is reported."""

    target_accuracy: float = Field(0.9, gt=0, lt=1, description="Rounds and bytes to it are reported.")
    real_examples: bool | None = Field(
        None,
        description="Whether the page shows clients' examples; if not set, of public data sets only.",
    )


class Config(Section):
    """A run: the private data, the generator, the methods to compare, and the seeds to average over."""

    name: FolderName
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    data: Annotated[Data, BeforeValidator(_named)]
    labels: Labels = Labels()
    prompts: Prompts = Prompts()
    generator: Generator = Field(
        ImageGenerator(), description="What makes the synthetic data; none trains without it."
    )
    model: Model = Field(description="The downstream model: a name of `genfl list models`, and its options.")
    client_models: list[Model] = Field(
        [], description="The models of clients, in turn, for methods whose clients differ (Fed-ET)."
    )
    precision: Precision = Field(
        "fp32",
        description="bf16 runs models in bfloat16 (torch.autocast), which processors with AVX512-BF16, AMX or"
        " a GPU do several times faster; weights and sums stay in fp32.",
    )
    device: Device = Field(
        "cpu",
        description="Where clients and pre-training compute, and models are tested: cpu, cuda or cuda:1."
        " Data, random numbers and the server's work stay on the CPU.",
    )
    pretrain: Pretraining = Pretraining()
    federate: Federation = Federation()
    content: Content = Content()
    methods: dict[FolderName, Method] = Field(min_length=1)
    report: Report = Report()

    @property
    def device_type(self) -> str:
        """What kind of device computes, of which results' last bits depend: cpu or cuda."""
        return self.device.partition(":")[0]

    @property
    def generates(self) -> bool:
        """Whether there is a generator."""
        return not isinstance(self.generator, NoGenerator)

    @model_validator(mode="before")
    @classmethod
    def _unguided(cls, content: Any) -> Any:
        """Has speech say labels alone, and no scale guide what none can, where nothing else is asked for."""
        kind, prompts = (content.get(name) or {} for name in ("generator", "prompts"))
        if isinstance(kind, dict) and kind.get("kind") in UNGUIDED and isinstance(prompts, dict):
            style = {"style": "label"} if kind["kind"] == "speech" else {}
            return {**content, "prompts": {**style, "guidance_scale": NO_GUIDANCE, **prompts}}
        return content

    @model_validator(mode="after")
    def _content_of_methods(self) -> Self:
        """Gives methods whose clients hold generated content what the section says and they do not."""
        shared = dict(self.content)
        filled = {
            name: method.model_copy(
                update={"content": Content(**shared | (method.content or Content()).given())}
            )
            for name, method in self.methods.items()
            if method.data != "private"
        }
        return self.model_copy(update={"methods": self.methods | filled})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.generator.kind in UNGUIDED and self.prompts.guidance_scale != NO_GUIDANCE:
            raise ValueError(f"prompts.guidance_scale: {self.generator.kind} is not guided; leave it out")
        clients, cohort = self.data.partition.known, self.federate.clients_per_round
        if clients is not None and cohort > clients:
            raise ValueError(
                f"federate.clients_per_round: {cohort} clients a round, but data.partition.clients is"
                f" {clients}; lower the one or raise the other"
            )
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds: give different non-negative integers")
        if not self.generates:
            for name, method in self.methods.items():
                if field := method.needs_generator:
                    raise ValueError(
                        f"methods.{name}.{field}: it needs generated data, but generator is none; name a"
                        " generator, or leave the method out"
                    )
        if "synthetic_only" in self.methods:
            raise ValueError(
                "methods: synthetic_only names the pre-trained model itself; choose another name"
            )
        for name, method in self.methods.items():
            if problem := method.problem():
                raise ValueError(f"methods.{name}.{problem}")
            choice = method.content.filter if method.content else None
            if choice and choice.from_round > self.federate.rounds:
                raise ValueError(
                    f"methods.{name}.content.filter.from_round: {choice.from_round}, but there are"
                    f" {self.federate.rounds} rounds; lower it, or raise federate.rounds"
                )
            if method.data in ORDERS[1:] and self.federate.local.steps == 1:
                raise ValueError(
                    f"methods.{name}.data: {method.data} is for two steps a round at least; raise"
                    " federate.local.steps"
                )
            if method.start == "init" and self.pretrain.init is None:
                raise ValueError(
                    f"methods.{name}.start: init, but pretrain.init names no model; give a file or imagenet"
                )
        if all(method.reference for method in self.methods.values()):
            raise ValueError(
                "methods: all of them are references; name a federated algorithm for them to be compared with"
            )
        if self.content != Content() and not any(method.content for method in self.methods.values()):
            raise ValueError(
                "content: no method's clients train on generated data; set data: mixed in one, or leave it"
                " out"
            )
        if problem := self.data.problem():
            raise ValueError(f"data.{problem}")
        if self.data.tokenizer == GENERATED and not self.generates:
            raise ValueError(
                f"data.tokenizer: {GENERATED} takes its words from generated texts, but generator is none;"
                f" use {HASHED}, or name a generator"
            )
        if problem := self.prompts.problem():
            raise ValueError(f"prompts.{problem}")
        if isinstance(self.generator, TextGenerator) and self.generator.max_tokens < 3 * self.generator.words:
            raise ValueError(
                f"generator.max_tokens: {self.generator.max_tokens} would cut texts of about"
                f" {self.generator.words} words; raise it to {3 * self.generator.words} or more"
            )
        if isinstance(self.generator, SpeechGenerator) and (problem := self.generator.problem()):
            raise ValueError(f"generator.{problem}")
        return self


UNIONS: dict[Any, tuple[str, Collection[str]]] = {
    "algorithm": ("name", [*ALGORITHMS, *REFERENCES]),
    "model": ("name", MODELS),
    "client_models": ("name", MODELS),
    "generator": ("kind", [*GENERATORS, "none"]),
}
"""The fields that hold one of several sections, by the key that says which, and its values."""


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file.

    Args:
        path: A YAML file.
        overrides: ``dotted.path=value`` settings that replace the file's, values in YAML.

    Raises:
        InputError: One line for each mistake, naming the field.
    """
    return validate(read(path, overrides))


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the content of a config file as plain values, unchecked; see `load`."""
    if not path.is_file():
        raise InputError(f"config: there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return _parse(text, overrides, str(path))


def parse(text: str, overrides: Sequence[str] = ()) -> Config:
    """Reads a config from YAML text; see `load`."""
    return validate(_parse(text, overrides, "config"))


def _parse(text: str, overrides: Sequence[str], source: str) -> dict[str, Any]:
    try:
        content = plain(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{source}: a config is a mapping of keys to values")
    for override in overrides:
        _apply(content, override)
    return content


def validate(content: dict[str, Any]) -> Config:
    """Checks a config given as plain values; see `load`."""
    if "grid" in content:
        raise InputError("grid: many runs in one config are for `genfl sweep`; leave it out for one run")
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise InputError("\n".join(_explain(problem) for problem in error.errors())) from error


def plain(text: str) -> Any:
    """Reads YAML as plain values.

    Raises:
        yaml.YAMLError: It is none, or gives a key twice.
    """
    return yaml.load(text, _Loader)


def dump(config: Config) -> str:
    """Returns the resolved config as YAML."""
    content = config.model_dump(mode="json")
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Says where two configs, as plain values, differ: ``federate.rounds: 100 there, 20 here``."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{path}: {old} there, {new} here"]
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        where = f"{path}.{key}" if path else key
        if key in old and key in new:
            lines += differences(old[key], new[key], where)
        else:
            lines.append(f"{where}: {'here' if key in new else 'there'} alone")
    return lines


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise InputError(f"{override!r}: an override is key=value, for example federate.rounds=20")
    try:
        parsed = plain(value)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: {value!r} is not a YAML value") from error
    put(content, path.strip(), parsed)


def put(content: dict[str, Any], path: str, value: Any) -> None:
    """Sets one field of a config given as plain values.

    Args:
        content: The config; it is changed.
        path: The field, as in ``federate.rounds`` or ``methods.gptfl.algorithm.0.mu``.
        value: Its value.

    Raises:
        InputError: There can be no such field.
    """
    *parents, last = path.split(".")
    node: Any = content
    for above, parent in itertools.pairwise(("", *parents)):
        if above == "algorithm" and parent == "0" and isinstance(node, dict):
            continue  # what was given alone is read as a list of one
        if isinstance(node, dict) and parent in ("algorithm", "data", "model"):
            node[parent] = _named(node.get(parent, {}))  # algorithm: fedavgm, then algorithm.beta=0.5
        if isinstance(node, list) and parent.isdigit() and int(parent) < len(node):
            node[int(parent)] = node = _named(node[int(parent)])
            continue
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict | list):
            raise InputError(f"{path}: {parent!r} holds no keys")
    if not isinstance(node, dict):
        raise InputError(f"{path}: it is a list; name the place in it, as in {'.'.join(parents)}.0.{last}")
    node[last] = copy.deepcopy(value)  # the next field may be put into it, and the caller's stays as it is


def _explain(problem: Any) -> str:
    location = _as_written(problem["loc"])
    field = ".".join(map(str, location))
    match problem["type"]:
        case "extra_forbidden":
            return f"{field}: unknown key; {_suggest(str(location[-1]), _keys_at(problem['loc'][:-1]))}"
        case "missing":
            return f"{field}: required, and not given"
        case "union_tag_invalid":
            given, (tag, known) = problem["ctx"]["tag"], _union(location)
            return f"{field}.{tag}: there is no {given!r}; {_suggest(given, list(known))}"
        case "union_tag_not_found":
            return f"{field}.{_union(location)[0]}: required, and not given"
        case "value_error" if not field:
            return str(problem["ctx"]["error"])
        case _:
            message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
            return f"{field}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"


def _union(location: Sequence[Any]) -> tuple[str, Collection[str]]:
    return next(UNIONS[part] for part in reversed(location) if part in UNIONS)


def _as_written(parts: Sequence[Any]) -> list[Any]:
    """Returns a place in the config as its author knows it.

    pydantic names the member of a union, and what was given alone is read as a list of one:
    ``algorithm.0.fedavg.beta`` is ``algorithm.beta`` to users.
    """
    location: list[Any] = []
    for part in parts:
        in_list = bool(location) and isinstance(location[-1], int)
        holder = location[-2 if in_list else -1] if location else None
        if holder in UNIONS and part in UNIONS[holder][1]:
            if location[-1] == 0 and holder == "algorithm":
                location.pop()
            continue
        location.append(part)
    if location[-2:] == ["algorithm", 0]:
        location.pop()
    return location


def _keys_at(location: Sequence[Any]) -> list[str]:
    """Returns the keys that the schema knows at a place, as pydantic names it, in the config."""
    schema = Config.model_json_schema()
    known: set[str] = set()
    nodes = [schema]
    for part in location:
        if isinstance(part, int):
            continue  # lists are seen through, below
        found = []
        for node in _resolved(nodes, schema):
            if part in node.get("properties", {}):
                found.append(node["properties"][part])
            elif isinstance(node.get("additionalProperties"), dict):
                found.append(node["additionalProperties"])
            elif part in (node.get("properties", {}).get(tag, {}).get("const") for tag in ("name", "kind")):
                found.append(node)  # the member of a union
        nodes = found
    for node in _resolved(nodes, schema):
        known |= set(node.get("properties", {}))
    return sorted(known)


def _resolved(nodes: Sequence[Any], schema: Any) -> list[Any]:
    """Follows references and alternatives of a JSON schema."""
    flat: list[Any] = []
    for node in nodes:
        if "$ref" in node:
            flat += _resolved([schema["$defs"][node["$ref"].rsplit("/", 1)[1]]], schema)
        elif "oneOf" in node or "anyOf" in node:
            flat += _resolved(node.get("oneOf", []) + node.get("anyOf", []), schema)
        elif "items" in node:
            flat += _resolved([node["items"]], schema)
        else:
            flat.append(node)
    return flat


def _suggest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there are no keys to set here"
