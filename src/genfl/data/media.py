"""The content of examples, recorded or generated: images, sounds and texts, and how tables store them."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from genfl.errors import InputError

Modality = Literal["image", "audio", "text"]
"""The kind of content of an example."""


class Clip(NamedTuple):
    """A sound.

    Attributes:
        samples: float32 [n], one channel, in [−1, 1].
        rate: The sample rate in Hz.
    """

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return len(self.samples) / self.rate


class Medium(NamedTuple):
    """The storage of one kind of content in the cells of a table, in the Hugging Face layout.

    Attributes:
        column: The usual name of the column.
        what: The name of the content in messages, in the plural.
        read: ``(cell) -> content``; raises any exception on a damaged cell.
        write: ``(content) -> cell``.
        feature: Returns the type of the column in a `datasets` table.
        suffixes: Returns the suffixes of files that hold the content, with their dots.
        tables: Whether such a file is a table of many examples.
    """

    column: str
    what: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    feature: Callable[[], Any]
    suffixes: Callable[[], Collection[str]]
    tables: bool = False


def _open(cell: Any) -> Any:
    """Return what Pillow and soundfile can open: a file in memory, or a path."""
    content = (cell.get("bytes") or cell["path"]) if isinstance(cell, dict) else cell
    return io.BytesIO(content) if isinstance(content, bytes) else content


def _read_image(cell: Any) -> Image.Image:
    with Image.open(_open(cell)) as image:
        ImageOps.exif_transpose(image, in_place=True)  # photographs store which way is up
        image.load()
        return image


PNG_MODES = frozenset({"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"})
"""Modes of images that PNG files can hold."""


def _write_image(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    (image if image.mode in PNG_MODES else image.convert("RGB")).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _image_feature() -> Any:
    import datasets

    return datasets.Image()


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise InputError("data.name: sounds need soundfile: pip install 'genfl[audio]'") from error
    return soundfile


def _read_audio(cell: Any) -> Clip:
    samples, rate = _soundfile().read(_open(cell), dtype="float32", always_2d=True)
    return Clip(samples.mean(1), rate)


def _write_audio(clip: Clip) -> dict[str, Any]:
    buffer = io.BytesIO()
    _soundfile().write(buffer, clip.samples, clip.rate, format="WAV", subtype="PCM_16")
    return {"bytes": buffer.getvalue(), "path": None}


def _audio_feature() -> Any:
    import datasets

    return datasets.Audio(decode=False)  # decoding by datasets needs torchcodec and FFmpeg


def _read_text(cell: Any) -> str:
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError("no text")
    return cell


def _text_feature() -> Any:
    import datasets

    return datasets.Value("string")


def _same(text: str) -> str:
    return text


MEDIA: dict[Modality, Medium] = {
    "image": Medium(
        "image", "images", _read_image, _write_image, _image_feature, Image.registered_extensions
    ),
    "audio": Medium(
        "audio", "clips", _read_audio, _write_audio, _audio_feature, lambda: (".wav", ".flac", ".ogg", ".mp3")
    ),
    "text": Medium(
        "text", "texts", _read_text, _same, _text_feature, lambda: (".csv", ".jsonl", ".json"), tables=True
    ),
}
