"""The sections of generation: prompts, and the generator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from genfl import registry
from genfl.config.names import ASKED_STYLES, ESPEAK, NO_GENERATOR, SPEECH_VOCODER
from genfl.config.section import Device, OneOf, OptionSections, OrOne, Section
from genfl.llm.queries import (
    FEWSHOT_EXAMPLES,
    JOINT_BLANKS,
    PROMPT_BLANKS,
    PROMPT_QUERIES,
    SINGLE_BLANKS,
    TEXT_QUERIES,
    query_problem,
)

NO_GUIDANCE = [1.0]
UNGUIDED = ("speech", "text")
"""Kinds of generators without classifier-free guidance."""

_KIND = "The kind of generator; see `genfl list generators`."


class ChatModel(Section):
    """A chat model: a local one of transformers, or one on an OpenAI-compatible server."""

    model: str = Field(
        min_length=1,
        description="A folder or a Hugging Face id of a chat model. With base_url, the server's name of the"
        " model.",
    )
    base_url: str | None = Field(
        None,
        description="The server's address, as in http://127.0.0.1:8000/v1. If not set, the model runs"
        " locally.",
    )
    api_key_env: str | None = Field(
        None,
        description="The environment variable that holds the server's key, if the server needs one. If not"
        " set, only OpenAI's server gets a key, from OPENAI_API_KEY. genfl never writes the key to a file.",
    )
    device: Device = Field("cpu", description="The device of a local model: cpu, cuda or cuda:1.")
    temperature: float = Field(1.0, gt=0, le=2, description="Sampling temperature.")
    max_tokens: int = Field(500, ge=1, description="Length of the longest answer, in tokens.")
    timeout: float = Field(
        120.0,
        gt=0,
        description="Longest wait for an answer of the server, and between two attempts, in seconds.",
    )
    parallel: int = Field(4, ge=1, le=256, description="Number of simultaneous queries to a server.")
    attempts: int = Field(
        5, ge=1, description="Largest number of queries for one sample, or for the prompts of one label."
    )
    system: str | None = Field(
        None,
        max_length=20_000,
        description="The system prompt. It has no blanks. If not set, that of the query. An empty text sends"
        " none.",
    )

    def options(self) -> dict[str, Any]:
        """Return the options of `genfl.llm.chat.connect`."""
        return {name: getattr(self, name) for name in ChatModel.model_fields}


class PromptModel(ChatModel):
    """The language model that writes prompts."""

    distinct: int = Field(20, ge=1, description="Number of different prompts per label.")
    fallback: Literal["multiple"] | None = Field(
        None,
        description="multiple: use prompts of that style if too few of the model's prompts are usable. If not"
        " set, too few prompts are an error.",
    )
    query: str | None = Field(
        None,
        max_length=20_000,
        description="The query: gptfl, scenes, fedgc (a list of ten within ten words), or your own text with"
        " the blanks {label}, {others}, {avoid}, {count}, {content} and {known}. If not set, that of the"
        " style: gptfl for llm, scenes for scenes.",
    )

    def problem(self) -> str | None:
        """Return what is wrong with the query: field and fix. None if it can be used."""
        if self.query is None:
            return None
        if problem := query_problem(self.query, PROMPT_QUERIES, PROMPT_BLANKS, ["label"]):
            return f"query: {problem}"
        length = PROMPT_QUERIES[self.query].list_length if self.query in PROMPT_QUERIES else None
        if length and self.distinct > length * self.attempts and self.fallback is None:
            return (
                f"distinct: {self.distinct}, but query {self.query} asks for {length} prompts at a time, and"
                f" attempts is {self.attempts}; lower it to {length * self.attempts}, or raise attempts to"
                f" {-(-self.distinct // length)}"
            )
        return None


class Prompts(Section):
    """The prompts that the generator gets."""

    style: Literal["label", "single", "multiple", "fill", "llm", "scenes"] = Field(
        "single",
        description="label: only the label's name, the default for speech. single: one sentence, such as 'a"
        " photo of a {label}'. multiple: one of several sentences. fill: your own template. llm: a language"
        " model writes a sentence around the label (GPT-FL). scenes: a language model describes scenes with"
        " this label and no other (FedGC).",
    )
    llm: PromptModel | None = Field(
        None, description="Styles llm and scenes: the language model that writes the prompts."
    )
    template: str | None = Field(None, description="Style fill: the template, as in 'a {look} {label}'.")
    blanks: dict[str, list[str]] = Field({}, description="Style fill: the words for each blank.")
    per_label: int = Field(200, ge=1, description="Number of samples per label.")
    wrong: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of samples that are generated from another label's prompt. It simulates a poor"
        " generator.",
    )
    guidance_scale: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1), OrOne()] = Field(
        [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0],
        description="The guidance scale, or a list of scales to draw from.",
    )
    block_size: int = Field(
        50, ge=1, description="Samples generated in one call. All of them have the same guidance scale."
    )

    def problem(self) -> str | None:
        """Return which fields do not fit together: field and fix. None if all do."""
        if self.style in ASKED_STYLES and self.llm is None:
            return f"llm: style {self.style} needs a language model; add one, as in llm: {{model: FOLDER}}"
        if self.style not in ASKED_STYLES and self.llm is not None:
            return f"llm: style {self.style} uses no language model; use style llm or scenes, or leave it out"
        if self.llm is not None and (problem := self.llm.problem()):
            return f"llm.{problem}"
        return None


class GeneratorSection(Section):
    """A generator and its settings.

    Attributes:
        kind: The kind of generator.
    """

    kind: str = Field(description=_KIND)


Side = Annotated[int, Field(ge=8, le=4096, multiple_of=8)]


class ImageGenerator(GeneratorSection):
    """A text-to-image model."""

    kind: Literal["image"] = Field("image", description=_KIND)
    model: str = Field("miniature", description="miniature, a folder, or a Hugging Face model id.")
    steps: int = Field(15, ge=1, le=1000, description="Number of denoising steps.")
    device: Device = Field("cpu", description="The device that generates: cpu, cuda or cuda:1.")
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Height and width of generated images, in pixels. If not set, the model's default."
    )
    strength: float = Field(
        0.6,
        gt=0,
        le=1,
        description="How far an image may differ from the real example that guides it. At 1, almost nothing"
        " of the example remains.",
    )
    safety_checker: bool = Field(
        False,
        description="Whether the model's own safety checker of diffusers runs. It blackens images that it"
        " flags, and genfl leaves black images out. Off by default: it flags harmless images, too.",
    )


class FileGenerator(GeneratorSection):
    """Samples that were generated before."""

    kind: Literal["files"] = Field(description=_KIND)
    path: str = Field(
        description="A folder of generated samples, or hf://datasets/owner/name. The folder holds Parquet,"
        " CSV or JSONL files, or one folder of files for each class."
    )
    input: str | None = Field(
        None, description="The column of the samples. If not set: image, audio or text."
    )
    label: str = Field("label", description="The column of the classes.")


def _ascending(value: list[float]) -> list[float]:
    if value != sorted(value):
        raise ValueError("the smaller value comes first")
    return value


Decibels = Annotated[float, Field(ge=-20, le=100)]
Span = Annotated[list[Decibels], Field(min_length=2, max_length=2), AfterValidator(_ascending)]


class SpeechGenerator(GeneratorSection):
    """Text to speech."""

    kind: Literal["speech"] = Field(description=_KIND)
    model: str = Field(
        ESPEAK,
        min_length=1,
        description="espeak: the program espeak-ng, with hundreds of voices. Or a folder or a Hugging Face id"
        " of a text-to-speech model of transformers, such as microsoft/speecht5_tts or facebook/mms-tts-eng.",
    )
    language: str = Field(
        "en",
        description="espeak: a language of espeak-ng with all its accents (en, de, cmn), or one accent"
        " (en-us).",
    )
    seconds: float = Field(
        1.0,
        ge=0,
        le=60,
        description="espeak: smallest length of a clip, in seconds. The speech has a random position in it.",
    )
    snr: Span | None = Field(
        [0.0, 40.0],
        description="espeak: smallest and largest signal-to-noise ratio of a clip with added noise, in dB."
        " null adds no noise.",
    )
    vocoder: str = Field(
        SPEECH_VOCODER,
        min_length=1,
        description="SpeechT5: a folder or a Hugging Face id of its vocoder, a HiFi-GAN.",
    )
    speakers: str | None = Field(
        None,
        description="SpeechT5: a file or folder of x-vectors (.npy, .safetensors, .parquet). One of them is"
        " drawn for each clip.",
    )
    device: Device = Field("cpu", description="The device of a model: cpu, cuda or cuda:1. Not for espeak.")

    def problem(self) -> str | None:
        """Return which fields do not fit together: field and fix. None if all do."""
        of_espeak, of_models = ("language", "seconds", "snr"), ("vocoder", "speakers", "device")
        for name in of_models if self.model == ESPEAK else of_espeak:
            if getattr(self, name) != type(self).model_fields[name].default:
                reason = "only espeak has it" if name in of_espeak else "espeak does not have it"
                return f"{name}: {reason}; leave it out, or use another model"
        return None


class SoundGenerator(GeneratorSection):
    """Text to sound."""

    kind: Literal["sound"] = Field(description=_KIND)
    model: str = Field(
        min_length=1,
        description="A folder or a Hugging Face id of AudioLDM or AudioLDM 2, such as"
        " cvssp/audioldm-s-full-v2.",
    )
    steps: int = Field(100, ge=1, le=1000, description="Number of denoising steps.")
    seconds: float = Field(5.0, ge=0.1, le=60, description="Length of the clips, in seconds.")
    device: Device = Field("cpu", description="The device that generates: cpu, cuda or cuda:1.")


class NoGenerator(GeneratorSection):
    """No generator: federated learning on private data only."""

    kind: Literal["none"] = Field("none", description=_KIND)


class TextGenerator(ChatModel, GeneratorSection):
    """Texts by a language model."""

    kind: Literal["text"] = Field(description=_KIND)
    words: int = Field(
        30,
        ge=1,
        le=2000,
        description="Typical number of words in a text. Accepted are a quarter to three times as many.",
    )
    shots: int = Field(
        3,
        ge=0,
        description="Number of real examples shown with a query, if real examples guide clients' generation.",
    )
    trusted: bool = Field(
        False,
        description="Whether the server belongs to the clients, so that it may see real examples.",
    )
    query: str = Field(
        "single",
        max_length=20_000,
        description="The query: single (one text of one label), fewshot (two texts of every label, after"
        " labelled examples), or your own text. Its blanks are {label}, {labels}, {prompt}, {words} and"
        " {examples}; with texts_per_label, {labels}, {count}, {words} and {examples}.",
    )
    texts_per_label: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Number of texts of every label that one query asks for, each on a line that begins with"
        " its label. If not set, a query asks for one text of one label.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fewshot(cls, content: Any) -> Any:
        """Set the defaults of the preset ``fewshot``."""
        if not isinstance(content, dict) or content.get("query") != "fewshot":
            return content
        preset = {"shots": FEWSHOT_EXAMPLES, "texts_per_label": TEXT_QUERIES["fewshot"].texts_per_label}
        return preset | content

    def problem(self) -> str | None:
        """Return which fields do not fit together: field and fix. None if all do."""
        joint = self.texts_per_label is not None
        if self.query in TEXT_QUERIES and joint != (TEXT_QUERIES[self.query].texts_per_label is not None):
            return (
                f"texts_per_label: query {self.query} does not fit it; leave it out, or write your own query"
            )
        blanks, needed = (JOINT_BLANKS, "labels") if joint else (SINGLE_BLANKS, "label")
        if problem := query_problem(self.query, TEXT_QUERIES, blanks, [needed]):
            return f"query: {problem}"
        if self.max_tokens < 3 * self.words:
            return (
                f"max_tokens: {self.max_tokens} would cut texts of about {self.words} words; raise it to"
                f" {3 * self.words} or more"
            )
        return None


def kind_of(value: Any) -> Any:
    """Return a generator with its kind: ``image`` by default, a text as the kind, and null as none."""
    if value is None or isinstance(value, str):
        return {"kind": value or NO_GENERATOR}
    return {"kind": "image", **value} if isinstance(value, dict) else value


_added_sections = OptionSections("Generator", lambda entry: entry.options(), GeneratorSection, "kind")


def _generators() -> dict[str, type[BaseModel]]:
    builtin: dict[str, type[BaseModel]] = {
        "image": ImageGenerator,
        "speech": SpeechGenerator,
        "sound": SoundGenerator,
        "text": TextGenerator,
        "files": FileGenerator,
    }
    return {**builtin, **_added_sections(registry.added("generator")), NO_GENERATOR: NoGenerator}


GENERATOR_UNION = OneOf("Generator", "kind", _generators)
AnyGenerator = Annotated[GeneratorSection, GENERATOR_UNION, BeforeValidator(kind_of)]
"""A generator: its kind, a name in `genfl.generators.registry.GENERATORS`, and its settings."""
