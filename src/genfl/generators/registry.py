"""The kinds of generators that a config can name.

Functions import the modules they need when they are called: this module loads no model library and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genfl.data.media import MEDIA, Modality
from genfl.errors import InputError
from genfl.registry import Registry

if TYPE_CHECKING:
    from genfl.generators.base import Generator
    from genfl.generators.espeak import Espeak
    from genfl.generators.files import Files

GeneratorOptions = Mapping[str, Any]
"""The generator's section of the config, without its kind."""

NOTHING_RECORDED = {"recorded from the world": "nothing"}
"""The fact on a data card whose samples hold no real recording."""


LICENCE = "licence of the generator"
"""The row of a data card with the licence of the model, or of samples that existed before."""


class Purpose(NamedTuple):
    """The task that a run has for a generator.

    Attributes:
        modality: The modality of the private examples.
        labels: The names of their classes.
        words: The words that prompts use for classes whose names in the data set are codes.
        per_label: The number of samples wanted of each label.
        encode: The function that turns a sample into a model's input.
        private: The folder of the private examples; None if they come with genfl's requirements.
        answers: The folder of the cached answers of language models; None to keep none.
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
        modalities: The modalities that it can make.
        models: The models that it can load, in words.
        make: ``(options, purpose) -> generator``.
        fingerprint: ``(options, modality) -> plain values`` that change when the loaded files change. Every
            call reads the files again.
        check: ``(options, purpose)`` raises InputError for options that cannot work, without generating.
        facts: ``(options) -> rows of the data card``; see `described`.
        prompted: Whether samples are made from prompts.
        unguided: ``(options) -> why`` real examples cannot guide it, with the fix; the answer is None if they
            can. The function is None for kinds that no real example can guide.
        read_options: Returns each option's type and default, for a user's own generator.
        ignored_options: The options that do not decide the samples of a prompt. A fingerprint covers what
            those that name files say, and only guided samples depend on those for real examples.
    """

    modalities: Collection[Modality]
    models: str
    make: Callable[[GeneratorOptions, Purpose], Generator]
    fingerprint: Callable[[GeneratorOptions, Modality], Any]
    check: Callable[[GeneratorOptions, Purpose], None]
    facts: Callable[[GeneratorOptions], dict[str, Any]]
    prompted: bool = True
    unguided: Callable[[GeneratorOptions], str | None] | None = None
    read_options: Callable[[], Mapping[str, Any]] = dict
    ignored_options: Collection[str] = ()

    def described(self, options: GeneratorOptions) -> dict[str, Any]:
        """Return the rows of the data card, with the licence."""
        from genfl.generators.licences import UNKNOWN_LICENCE

        return {LICENCE: UNKNOWN_LICENCE} | self.facts(options)

    def options(self) -> Mapping[str, Any]:
        """Return each option's type and default, of a user's own generator; built-in ones have sections."""
        return self.read_options()


def _make_image(options: GeneratorOptions, purpose: Purpose) -> Generator:
    from genfl.generators.image import StableDiffusion

    return StableDiffusion(**options)


def _check_image(options: GeneratorOptions, purpose: Purpose) -> None:
    from genfl import hub
    from genfl.generators import image

    image.check_image_model(options["model"], safety_checker=options.get("safety_checker", False))
    image.check_image_labels(options["model"], purpose.labels)
    hub.check_device(options["device"])


def _image_fingerprint(options: GeneratorOptions, modality: Modality) -> Any:
    from genfl.generators.image import image_fingerprint

    return image_fingerprint(options["model"])


def _image_unguided(options: GeneratorOptions) -> str | None:
    from genfl.generators.image import image_guidance_problem

    return image_guidance_problem(options["model"])


def _diffusion_facts(options: GeneratorOptions) -> dict[str, Any]:
    from genfl.generators.licences import licence
    from genfl.hub import model_name

    embedded = Path(__file__).with_name("miniature") if options["model"] == "miniature" else None
    checked = {"safety checker": "on"} if options.get("safety_checker") else {}
    return {
        "generator": model_name(options["model"]),
        LICENCE: licence(str(embedded or options["model"])),
        "denoising steps": options["steps"],
        **checked,
        **NOTHING_RECORDED,
    }


def _make_sound(options: GeneratorOptions, purpose: Purpose) -> Generator:
    from genfl.generators.sound import Sound

    return Sound(**options)


def _check_sound(options: GeneratorOptions, purpose: Purpose) -> None:
    from genfl import hub
    from genfl.generators.sound import check_sound_model

    check_sound_model(options["model"])
    hub.check_device(options["device"])


def _sound_fingerprint(options: GeneratorOptions, modality: Modality) -> Any:
    from genfl import hub

    return hub.fingerprint(options["model"])


def _make_files(options: GeneratorOptions, purpose: Purpose) -> Files:
    from genfl.generators.files import Files

    return Files(
        options["path"],
        purpose.modality,
        options["input"],
        options["label"],
        words=purpose.words,
        encode=purpose.encode,
    )


def _check_files(options: GeneratorOptions, purpose: Purpose) -> None:
    from genfl.generators.files import check_not_private

    if purpose.private:
        check_not_private(options["path"], purpose.private, purpose.modality)
    _make_files(options, purpose).check_labels(purpose.labels, purpose.per_label)


def _files_fingerprint(options: GeneratorOptions, modality: Modality) -> Any:
    from genfl.generators.files import samples_fingerprint

    return samples_fingerprint(options["path"], modality)


def _files_facts(options: GeneratorOptions) -> dict[str, Any]:
    from genfl.generators.licences import licence
    from genfl.hub import model_name

    return {
        "taken from": model_name(options["path"]),
        LICENCE: licence(options["path"]),
        "recorded from the world": "not known: genfl took the samples as they were",
    }


def _is_espeak(options: GeneratorOptions) -> bool:
    from genfl.config.names import ESPEAK

    return bool(options["model"] == ESPEAK)


def _make_espeak(options: GeneratorOptions) -> Espeak:
    from genfl.generators.espeak import Espeak

    return Espeak(options["language"], options["seconds"], options["snr"])


def _make_speech(options: GeneratorOptions, purpose: Purpose) -> Generator:
    if _is_espeak(options):
        return _make_espeak(options)
    from genfl.generators.speech import Speech

    return Speech(options["model"], options["vocoder"], options["speakers"], options["device"])


def _check_speech(options: GeneratorOptions, purpose: Purpose) -> None:
    from genfl.data.recipes import NOT_WORDS, in_words

    for name in NOT_WORDS:
        if in_words(name, purpose.words) in purpose.labels:
            raise InputError(
                f"generator.kind: speech cannot make the class {name!r}, which is not a word; use files, or a"
                " data.path without this class"
            )
    if _is_espeak(options):
        _make_espeak(options).check_labels(purpose.labels)
        return
    from genfl import hub
    from genfl.generators import speech

    speech.check_speech_model(options["model"], options["vocoder"], options["speakers"])
    speech.check_speech_labels(options["model"], purpose.labels)
    hub.check_device(options["device"])


def _speech_fingerprint(options: GeneratorOptions, modality: Modality) -> Any:
    if _is_espeak(options):
        from genfl.generators.espeak import espeak_fingerprint

        return espeak_fingerprint()
    from genfl.generators.speech import speech_fingerprint

    return speech_fingerprint(options["model"], options["vocoder"], options["speakers"])


def _speech_facts(options: GeneratorOptions) -> dict[str, Any]:
    if _is_espeak(options):
        from genfl.generators.espeak import Espeak

        program = {"generator": Espeak.id, LICENCE: "GPL-3.0-or-later (espeak-ng)"}
        return {**program, "language": options["language"], **NOTHING_RECORDED}
    from genfl.generators.licences import licence
    from genfl.hub import model_name

    names = ("vocoder", "speakers") if options["speakers"] else ()
    voices = {name: model_name(options[name]) for name in names}
    model = {"generator": model_name(options["model"]), LICENCE: licence(options["model"])}
    return {**model, **voices, **NOTHING_RECORDED}


def _make_text(options: GeneratorOptions, purpose: Purpose) -> Generator:
    from genfl.generators.text import ChatTexts

    return ChatTexts(options, purpose.labels, purpose.answers)


def _check_text(options: GeneratorOptions, purpose: Purpose) -> None:
    from genfl.generators.text import FIELD, text_query
    from genfl.llm.chat import check_chat_model

    check_chat_model({**options, "system": text_query(options).system}, FIELD)


def _text_fingerprint(options: GeneratorOptions, modality: Modality) -> Any:
    from genfl.llm.chat import chat_fingerprint

    return chat_fingerprint(options)


def _text_facts(options: GeneratorOptions) -> dict[str, Any]:
    from genfl.generators.licences import UNKNOWN_LICENCE, licence
    from genfl.generators.text import chat_model_name

    return {
        "generator": chat_model_name(options),
        LICENCE: UNKNOWN_LICENCE if options["base_url"] else licence(options["model"]),
        "run by": options["base_url"] or "transformers",
        "recorded from the world": "nothing, except what the model remembers",
    }


def _text_unguided(options: GeneratorOptions) -> str | None:
    from genfl.generators.text import text_guidance_problem

    return text_guidance_problem(options)


_IMAGE: tuple[Modality, ...] = ("image",)
_AUDIO: tuple[Modality, ...] = ("audio",)
_TEXT: tuple[Modality, ...] = ("text",)

_BUILTIN: dict[str, GeneratorEntry] = {
    "image": GeneratorEntry(
        modalities=_IMAGE,
        models="miniature (embedded), or a folder or Hugging Face id of Stable Diffusion or another diffusers"
        " model",
        make=_make_image,
        fingerprint=_image_fingerprint,
        check=_check_image,
        facts=_diffusion_facts,
        unguided=_image_unguided,
        ignored_options={"model", "strength"},
    ),
    "speech": GeneratorEntry(
        modalities=_AUDIO,
        models="espeak (espeak-ng: hundreds of voices, a hundred languages), or a folder or Hugging Face id"
        " of SpeechT5 or another text-to-speech model of transformers",
        make=_make_speech,
        fingerprint=_speech_fingerprint,
        check=_check_speech,
        facts=_speech_facts,
        ignored_options={"model", "vocoder", "speakers"},
    ),
    "sound": GeneratorEntry(
        modalities=_AUDIO,
        models="a folder or Hugging Face id of AudioLDM or AudioLDM 2",
        make=_make_sound,
        fingerprint=_sound_fingerprint,
        check=_check_sound,
        facts=_diffusion_facts,
        ignored_options={"model"},
    ),
    "text": GeneratorEntry(
        modalities=_TEXT,
        models="any chat model that transformers loads, or one behind an OpenAI-compatible server",
        make=_make_text,
        fingerprint=_text_fingerprint,
        check=_check_text,
        facts=_text_facts,
        unguided=_text_unguided,
        ignored_options={"model", "shots", "trusted", "api_key_env", "timeout", "parallel"},
    ),
    "files": GeneratorEntry(
        modalities=tuple(MEDIA),
        models="a folder of existing samples: Parquet files, or one folder of files for each class",
        make=_make_files,
        fingerprint=_files_fingerprint,
        check=_check_files,
        facts=_files_facts,
        prompted=False,
        ignored_options={"path"},
    ),
}

GENERATORS: Registry[GeneratorEntry] = Registry("generator", _BUILTIN, reserved={"none"})
"""The kinds of generators by name."""
