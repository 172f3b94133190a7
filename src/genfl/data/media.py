"""The content of examples, recorded or generated: images, sounds and texts, and how tables store them."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from genfl.data.tables import TEXT_TABLE_SUFFIXES
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
        recognises: ``(path) -> whether`` a file with any other suffix, or none, holds the content.
        table_suffixes: The suffixes of tables that can hold the content, besides Parquet and Arrow.
        by_path: Whether text in a cell names a file of the content; if not, it is the content.
    """

    column: str
    what: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    feature: Callable[[], Any]
    suffixes: Callable[[], Collection[str]]
    recognises: Callable[[Path], bool]
    table_suffixes: tuple[str, ...] = ()
    by_path: bool = True


def _open(cell: Any) -> Any:
    """Return what Pillow and soundfile can open: a file in memory, or a path.

    Only a `Path` is opened, which the list of a folder's files made. Text in a table never is: it could name
    any file of this machine.
    """
    if isinstance(cell, Path):
        return cell
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise ValueError("the cell holds no content")
    return io.BytesIO(content)


ORIENTATION = 0x0112
"""The EXIF tag that tells which way is up."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the value of its tag."""


def _read_image(cell: Any) -> Image.Image:
    with Image.open(_open(cell)) as image:
        image.load()
        # Pillow's own exif_transpose also writes the metadata anew, and fails where a tag is damaged
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
        upright = image if turn is None else image.transpose(turn)
        if is_deep_grey(image):
            return Image.fromarray(np.asarray(upright).astype(np.uint16))  # one mode for all of them
        return upright


def is_deep_grey(image: Image.Image) -> bool:
    """Return whether an image holds greys of 16 bits, for which Pillow has several modes."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # decoders raise many types on files of other kinds
        return False


PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
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


def _is_sound(path: Path) -> bool:
    try:
        _soundfile().info(path)
    except InputError:
        raise
    except Exception:  # of libsndfile
        return False
    return True


def _write_audio(clip: Clip) -> dict[str, Any]:
    buffer = io.BytesIO()
    _soundfile().write(buffer, clip.samples, clip.rate, format="WAV", subtype="PCM_16")
    return {"bytes": buffer.getvalue(), "path": None}


def _audio_feature() -> Any:
    import datasets

    return datasets.Audio(decode=False)  # decoding by datasets needs torchcodec and FFmpeg


def _read_text(cell: Any) -> str:
    if isinstance(cell, Path):
        cell = cell.read_text("utf-8-sig")
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError("no text")
    return cell


def _text_feature() -> Any:
    import datasets

    return datasets.Value("string")


def _same(text: str) -> str:
    return text


def _is_text(path: Path) -> bool:
    return False  # almost any file could be one


MEDIA: dict[Modality, Medium] = {
    "image": Medium(
        "image", "images", _read_image, _write_image, _image_feature, Image.registered_extensions, _is_image
    ),
    "audio": Medium(
        "audio",
        "clips",
        _read_audio,
        _write_audio,
        _audio_feature,
        lambda: (".wav", ".flac", ".ogg", ".mp3"),
        _is_sound,
    ),
    "text": Medium(
        "text",
        "texts",
        _read_text,
        _same,
        _text_feature,
        lambda: (".txt",),
        _is_text,
        TEXT_TABLE_SUFFIXES,
        by_path=False,
    ),
}
