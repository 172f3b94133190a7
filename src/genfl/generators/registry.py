"""Generators by the kinds a config names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from genfl import hub
from genfl.data.media import MEDIA, Modality
from genfl.data.recipes import NOT_WORDS, in_words
from genfl.errors import InputError
from genfl.generators import espeak, files, image, sound, speech, text
from genfl.generators.base import Generator
from genfl.llm import chat

Options = Mapping[str, Any]
"""A generator's section of the config, without its kind."""


NOTHING_RECORDED = {"recorded from the world": "nothing"}


class Purpose(NamedTuple):
    """What a run wants a generator for.

    Attributes:
        modality: What the private examples are.
        labels: The names of their classes.
        words: What prompts call classes whose own names in data sets are codes.
        per_label: How many samples of each label are wanted.
        encode: Turns a sample into what models are trained on.
        private: The folder of the private examples; None where they come with genfl's requirements.
        answers: Where language models' answers are kept, if anywhere.
    """

    modality: Modality
    labels: Sequence[str]
    words: Mapping[str, str]
    per_label: int
    encode: Callable[[Any], Any]
    private: Path | None
    answers: Path | None = None


class GeneratorEntry(NamedTuple):
    """A kind of generator.

    Attributes:
        modalities: What it can make.
        models: What it can load, in words.
        make: Gives the generator.
        fingerprint: Returns what changes when what it loads changes.
        check: Refuses options that cannot work, without generating.
        facts: Returns what a data card says of it.
        prompted: Whether samples are made from prompts.
        unguided: Says why no real example can guide one with these options, and the fix; None where one can.
            It is there for the kinds that can be guided at all.
    """

    modalities: Collection[Modality]
    models: str
    make: Callable[[Options, Purpose], Generator]
    fingerprint: Callable[[Options, Modality], Any]
    check: Callable[[Options, Purpose], None]
    facts: Callable[[Options], dict[str, Any]]
    prompted: bool = True
    unguided: Callable[[Options], str | None] | None = None


def _image(options: Options, purpose: Purpose) -> Generator:
    return image.StableDiffusion(**options)


def _check_image(options: Options, purpose: Purpose) -> None:
    image.check(options["model"])
    image.check_labels(options["model"], purpose.labels)
    hub.check_device(options["device"])


def _diffusion_facts(options: Options) -> dict[str, Any]:
    model = hub.model_name(options["model"])
    return {"generator": model, "denoising steps": options["steps"], **NOTHING_RECORDED}


def _sound(options: Options, purpose: Purpose) -> Generator:
    return sound.Sound(**options)


def _check_sound(options: Options, purpose: Purpose) -> None:
    sound.check(options["model"])
    hub.check_device(options["device"])


def _files(options: Options, purpose: Purpose) -> files.Files:
    return files.Files(
        options["path"],
        purpose.modality,
        options["input"],
        options["label"],
        words=purpose.words,
        encode=purpose.encode,
    )


def _check_files(options: Options, purpose: Purpose) -> None:
    if purpose.private:
        files.check_apart(options["path"], purpose.private, purpose.modality)
    _files(options, purpose).check(purpose.labels, purpose.per_label)


ESPEAK = "espeak"


def _espeak(options: Options) -> espeak.Espeak:
    return espeak.Espeak(options["language"], options["seconds"], options["snr"])


def _speech(options: Options, purpose: Purpose) -> Generator:
    if options["model"] == ESPEAK:
        return _espeak(options)
    return speech.Speech(options["model"], options["vocoder"], options["speakers"], options["device"])


def _check_speech(options: Options, purpose: Purpose) -> None:
    for name in NOT_WORDS:
        if in_words(name, purpose.words) in purpose.labels:
            raise InputError(
                f"generator.kind: speech cannot make the class {name!r}, which is no word; use files, or a"
                " data.path without it"
            )
    if options["model"] == ESPEAK:
        _espeak(options).check(purpose.labels)
        return
    speech.check(options["model"], options["vocoder"], options["speakers"])
    speech.check_labels(options["model"], purpose.labels)
    hub.check_device(options["device"])


def _speech_fingerprint(options: Options, modality: Modality) -> Any:
    if options["model"] == ESPEAK:
        return espeak.fingerprint()
    return speech.fingerprint(options["model"], options["vocoder"], options["speakers"])


def _speech_facts(options: Options) -> dict[str, Any]:
    if options["model"] == ESPEAK:
        return {"generator": espeak.Espeak.id, "language": options["language"], **NOTHING_RECORDED}
    names = ("vocoder", "speakers") if options["speakers"] else ()
    voices = {name: hub.model_name(options[name]) for name in names}
    return {"generator": hub.model_name(options["model"]), **voices, **NOTHING_RECORDED}


IMAGE: tuple[Modality, ...] = ("image",)
AUDIO: tuple[Modality, ...] = ("audio",)
TEXT: tuple[Modality, ...] = ("text",)

GENERATORS: dict[str, GeneratorEntry] = {
    "image": GeneratorEntry(
        IMAGE,
        "miniature (embedded), or a folder or Hugging Face id of Stable Diffusion or another diffusers model",
        _image,
        lambda options, modality: image.fingerprint(options["model"]),
        _check_image,
        _diffusion_facts,
        unguided=lambda options: image.unguided(options["model"]),
    ),
    "speech": GeneratorEntry(
        AUDIO,
        "espeak (espeak-ng: hundreds of voices, a hundred languages), or a folder or Hugging Face id of"
        " SpeechT5 or another text-to-speech model of transformers",
        _speech,
        _speech_fingerprint,
        _check_speech,
        _speech_facts,
    ),
    "sound": GeneratorEntry(
        AUDIO,
        "a folder or Hugging Face id of AudioLDM or AudioLDM 2",
        _sound,
        lambda options, modality: hub.fingerprint(options["model"]),
        _check_sound,
        _diffusion_facts,
    ),
    "text": GeneratorEntry(
        TEXT,
        "any chat model that transformers loads, or one behind an OpenAI-compatible server",
        lambda options, purpose: text.ChatTexts(options, purpose.labels, purpose.answers),
        lambda options, modality: chat.fingerprint(options),
        lambda options, purpose: chat.check(options, text.FIELD),
        lambda options: {
            "generator": text.called(options),
            "run by": options["base_url"] or "transformers",
            "recorded from the world": "nothing, but for what the model remembers",
        },
        unguided=text.unguided,
    ),
    "files": GeneratorEntry(
        tuple(MEDIA),
        "a folder of samples that exist already: Parquet files, or one folder of files for each class",
        _files,
        lambda options, modality: files.fingerprint(options["path"], modality),
        _check_files,
        lambda options: {
            "taken from": hub.model_name(options["path"]),
            "recorded from the world": "not known: genfl took the samples as they were",
        },
        prompted=False,
    ),
}
