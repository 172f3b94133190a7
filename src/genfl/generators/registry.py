"""Generators by the kinds a config names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from genfl.data.media import MEDIA, Modality
from genfl.data.recipes import NOT_WORDS, in_words
from genfl.errors import InputError
from genfl.generators import espeak, files, image
from genfl.generators.base import Generator

Options = Mapping[str, Any]
"""A generator's section of the config, without its kind."""


class Purpose(NamedTuple):
    """What a run wants a generator for.

    Attributes:
        modality: What the private examples are.
        labels: The names of their classes.
        words: What prompts call classes whose own names in data sets are codes.
        per_label: How many samples of each label are wanted.
        encode: Turns a sample into what models are trained on.
        private: The folder of the private examples, if a config names one.
    """

    modality: Modality
    labels: Sequence[str]
    words: Mapping[str, str]
    per_label: int
    encode: Callable[[Any], Any]
    private: str | None


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
        guided: Whether real examples can guide it.
    """

    modalities: Collection[Modality]
    models: str
    make: Callable[[Options, Purpose], Generator]
    fingerprint: Callable[[Options, Modality], Any]
    check: Callable[[Options, Purpose], None]
    facts: Callable[[Options], dict[str, Any]]
    prompted: bool = True
    guided: bool = False


def _image(options: Options, purpose: Purpose) -> Generator:
    return image.StableDiffusion(options["model"], options["steps"], options["device"])


def _check_image(options: Options, purpose: Purpose) -> None:
    image.locate(options["model"])
    if options["device"].startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"generator.device: {options['device']!r}, but torch sees no GPU; use cpu")


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


def _speech(options: Options, purpose: Purpose) -> espeak.Espeak:
    return espeak.Espeak(options["language"], options["seconds"], options["snr"])


def _check_speech(options: Options, purpose: Purpose) -> None:
    for name in NOT_WORDS:
        if in_words(name, purpose.words) in purpose.labels:
            raise InputError(
                f"generator.kind: speech cannot make the class {name!r}, which is no word; use files, or a"
                " data.path without it"
            )
    _speech(options, purpose).check(purpose.labels)


NOTHING_RECORDED = {"recorded from the world": "nothing"}

IMAGE: tuple[Modality, ...] = ("image",)
AUDIO: tuple[Modality, ...] = ("audio",)

GENERATORS: dict[str, GeneratorEntry] = {
    "image": GeneratorEntry(
        IMAGE,
        "miniature (embedded), or any Stable Diffusion folder or Hugging Face id",
        _image,
        lambda options, modality: image.fingerprint(options["model"]),
        _check_image,
        lambda options: {
            "generator": options["model"],
            "denoising steps": options["steps"],
            **NOTHING_RECORDED,
        },
    ),
    "speech": GeneratorEntry(
        AUDIO,
        "espeak (espeak-ng: hundreds of voices, a hundred languages)",
        _speech,
        lambda options, modality: espeak.fingerprint(),
        _check_speech,
        lambda options: {
            "generator": espeak.Espeak.id,
            "language": options["language"],
            **NOTHING_RECORDED,
        },
    ),
    "files": GeneratorEntry(
        tuple(MEDIA),
        "a folder of samples that exist already: Parquet files, or one folder of files for each class",
        _files,
        lambda options, modality: files.fingerprint(options["path"], modality),
        _check_files,
        lambda options: {
            "taken from": options["path"],
            "recorded from the world": "not known: genfl took the samples as they were",
        },
        prompted=False,
    ),
}
