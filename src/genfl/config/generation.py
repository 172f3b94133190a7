"""The sections of what makes the synthetic data: prompts, and the generator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from genfl import registry
from genfl.config.names import ASKED_STYLES, ESPEAK, NO_GENERATOR, SPEECH_VOCODER
from genfl.config.section import Device, OneOf, OptionSections, Section, as_list

NO_GUIDANCE = [1.0]
UNGUIDED = ("speech", "text")
"""Kinds of generators without classifier-free guidance."""


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
    api_key_env: str | None = Field(
        None,
        description="The environment variable that holds the server's key, where it wants one. If not set,"
        " OpenAI's own server gets that of OPENAI_API_KEY. The key is written nowhere.",
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
        """Return what `genfl.llm.chat.connect` takes."""
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
        " sounds or texts; of speech, label is the default. multiple: one of several. fill: your own"
        " template. llm: a language model fills in a sentence around the label (GPT-FL). scenes: it describes"
        " scenes with this label and no other (FedGC).",
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
    guidance_scale: Annotated[list[Annotated[float, Field(ge=0)]], BeforeValidator(as_list)] = Field(
        [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0],
        min_length=1,
        description="One scale, or those to draw from.",
    )
    block_size: int = Field(50, ge=1, description="Samples generated in one call, all of one scale.")

    def problem(self) -> str | None:
        """Say what does not fit together: field and fix; None where there is nothing."""
        if self.style in ASKED_STYLES and self.llm is None:
            return f"llm: style {self.style} needs a language model, as in llm: {{model: FOLDER}}"
        if self.style not in ASKED_STYLES and self.llm is not None:
            return f"llm: style {self.style} asks no language model; use style llm or scenes, or leave it out"
        return None


class GeneratorSection(Section):
    """A generator and its settings.

    Attributes:
        kind: The kind of generator.
    """

    kind: str


Side = Annotated[int, Field(ge=8, le=4096, multiple_of=8)]


class ImageGenerator(GeneratorSection):
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


class FileGenerator(GeneratorSection):
    """Samples that exist already."""

    kind: Literal["files"]
    path: str = Field(
        description="A folder of generated samples: Parquet, CSV or JSONL files, or one folder of files for"
        " each class. Or hf://datasets/owner/name."
    )
    input: str | None = Field(None, description="The column of the samples; image, audio or text if not set.")
    label: str = Field("label", description="The column of the classes.")


def _ascending(value: list[float]) -> list[float]:
    if value != sorted(value):
        raise ValueError("the least comes first")
    return value


Decibels = Annotated[float, Field(ge=-20, le=100)]
Span = Annotated[list[Decibels], Field(min_length=2, max_length=2), AfterValidator(_ascending)]


class SpeechGenerator(GeneratorSection):
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
        SPEECH_VOCODER,
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
        """Say what does not fit together: field and fix; None where there is nothing."""
        of_espeak, of_models = ("language", "seconds", "snr"), ("vocoder", "speakers", "device")
        for name in of_models if self.model == ESPEAK else of_espeak:
            if getattr(self, name) != type(self).model_fields[name].default:
                what = "for espeak alone" if name in of_espeak else "not for espeak"
                return f"{name}: it is {what}; leave it out, or take another model"
        return None


class SoundGenerator(GeneratorSection):
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


class NoGenerator(GeneratorSection):
    """Nothing is generated: federated learning as it is without a generator."""

    kind: Literal["none"] = "none"


class TextGenerator(ChatModel, GeneratorSection):
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

    def problem(self) -> str | None:
        """Say what does not fit together: field and fix; None where there is nothing."""
        if self.max_tokens < 3 * self.words:
            return (
                f"max_tokens: {self.max_tokens} would cut texts of about {self.words} words; raise it to"
                f" {3 * self.words} or more"
            )
        return None


def kind_of(value: Any) -> Any:
    """Read a generator without a kind as one of images, its name alone as its kind, and null as none."""
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
"""A generator: its kind in `genfl.generators.registry.GENERATORS`, and its settings."""
