"""Generators by the kinds a config names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from genfl.data.media import MEDIA, Modality
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
    """

    modality: Modality
    labels: Sequence[str]
    words: Mapping[str, str]
    per_label: int


class GeneratorEntry(NamedTuple):
    """A kind of generator.

    Attributes:
        modalities: What it can make.
        models: What it can load, in words.
        make: Gives the generator.
        fingerprint: Returns what changes when what it loads changes.
        check: Refuses options that cannot work, without generating.
        facts: Returns what a data card says of it.
    """

    modalities: Collection[Modality]
    models: str
    make: Callable[[Options, Purpose], Generator]
    fingerprint: Callable[[Options, Purpose], Any]
    check: Callable[[Options, Purpose], None]
    facts: Callable[[Options], dict[str, Any]]


def _image(options: Options, purpose: Purpose) -> Generator:
    return image.StableDiffusion(options["model"], options["steps"], options["device"])


def _check_image(options: Options, purpose: Purpose) -> None:
    image.locate(options["model"])
    if options["device"].startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"generator.device: {options['device']!r}, but torch sees no GPU; use cpu")


def _files(options: Options, purpose: Purpose) -> files.Files:
    return files.Files(
        options["path"], purpose.modality, options["input"], options["label"], words=purpose.words
    )


def _speech(options: Options, purpose: Purpose) -> espeak.Espeak:
    return espeak.Espeak(options["language"], options["seconds"], options["snr"])


IMAGE: tuple[Modality, ...] = ("image",)
AUDIO: tuple[Modality, ...] = ("audio",)

GENERATORS: dict[str, GeneratorEntry] = {
    "image": GeneratorEntry(
        IMAGE,
        "miniature (embedded), or any Stable Diffusion folder or Hugging Face id",
        _image,
        lambda options, purpose: image.fingerprint(options["model"]),
        _check_image,
        lambda options: {"generator": options["model"], "denoising steps": options["steps"]},
    ),
    "speech": GeneratorEntry(
        AUDIO,
        "espeak (espeak-ng: hundreds of voices, a hundred languages)",
        _speech,
        lambda options, purpose: espeak.fingerprint(),
        lambda options, purpose: _speech(options, purpose).check(purpose.labels),
        lambda options: {"generator": espeak.Espeak.id, "language": options["language"]},
    ),
    "files": GeneratorEntry(
        tuple(MEDIA),
        "a folder of samples that exist already: Parquet files, or one folder of files for each class",
        _files,
        lambda options, purpose: files.fingerprint(options["path"], purpose.modality),
        lambda options, purpose: _files(options, purpose).check(purpose.labels, purpose.per_label),
        lambda options: {"taken from": options["path"]},
    ),
}
