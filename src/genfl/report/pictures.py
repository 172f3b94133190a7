"""Real and generated examples as images, sounds and texts inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from genfl.data.media import Clip, Modality
from genfl.data.sounds import RATE, resampled
from genfl.data.sources import to_image
from genfl.results.examples import GeneratedExample, LabelExamples, OverlapExamples

PIXELS = 32
"""Images up to this size are shown pixel by pixel, larger ones as compressed thumbnails."""

THUMBNAIL = 96
"""Width and height of a thumbnail, at most."""

LETTERS = 240
"""Letters of a text that are shown."""

LEVELS = (-2.0, 3.0)
"""Black and white of a spectrogram, in standard deviations from its mean."""


class Picture(NamedTuple):
    """An image, a sound or a text inside the page.

    Attributes:
        source: Its data URI; for a text, the text itself.
        title: A short description.
        pixels: Whether it is an image to be enlarged without smoothing.
        sound: Whether it is a sound.
        text: Whether it is a text.
    """

    source: str
    title: str
    pixels: bool = False
    sound: bool = False
    text: bool = False


class PictureRow(NamedTuple):
    """The pictures of one label.

    Attributes:
        label: The name of the label.
        real: Real examples; empty if they must not be shown, or nobody can read them.
        generated: Generated examples as the generator made them.
        encoded: The same as the downstream model sees them; empty if nobody can read that.
    """

    label: str
    real: list[Picture]
    generated: list[Picture]
    encoded: list[Picture]


class View(NamedTuple):
    """How examples of a modality are shown.

    Attributes:
        encoded: ``(input, title)`` to a picture of what the model sees; None if nobody can read that.
        generated: ``(content, title)`` to a picture of what the generator made.
        title: The title of a generated example.
    """

    encoded: Callable[[Tensor, str], Picture] | None
    generated: Callable[[Any, str], Picture]
    title: Callable[[GeneratedExample], str]


def picture_rows(examples: Sequence[LabelExamples], modality: Modality) -> list[PictureRow]:
    """Return the pictures of examples, a row for each label.

    Args:
        examples: The examples of each label.
        modality: What an example is.
    """
    view, rows = VIEWS[modality], []
    for label, real, generated in examples:
        titles = [view.title(example) for example in generated]
        pictures = [view.generated(e.content, title) for e, title in zip(generated, titles, strict=True)]
        real_pictures, encoded = [], []
        if view.encoded:
            real_pictures = [view.encoded(x, f"real: {label}") for x in real]
            encoded = [
                view.encoded(example.encoded, title)
                for example, title in zip(generated, titles, strict=True)
                if example.encoded is not None
            ]
        rows.append(PictureRow(label, real_pictures, pictures, encoded))
    return rows


class OverlapRow(NamedTuple):
    """The pictures of the near-duplicates of one comparison.

    Attributes:
        label: What is compared, in words.
        first: Examples of the first data set.
        second: Their near-duplicates; empty if nobody can read them.
    """

    label: str
    first: list[Picture]
    second: list[Picture]


def overlap_rows(examples: Sequence[OverlapExamples], modality: Modality) -> list[OverlapRow]:
    """Return the pictures of near-duplicates, a row for each comparison.

    Args:
        examples: The near-duplicates of each comparison.
        modality: What an example is.
    """
    view, rows = VIEWS[modality], []
    for comparison, first, second, similarity in examples:
        show = view.encoded or view.generated
        titles = [f"similarity {value:.3f}" for value in similarity]
        rows.append(
            OverlapRow(
                COMPARISONS[comparison],
                [show(content, title) for content, title in zip(first, titles, strict=True)],
                [show(x, title) for x, title in zip(second, titles, strict=False)],
            )
        )
    return rows


COMPARISONS = {
    "test_train": "test and training examples",
    "generated_test": "generated and test examples",
    "generated_train": "generated and training examples",
    "public_test": "public and test examples",
    "public_train": "public and training examples",
}
"""The comparisons of an audit, in words."""


def _prompt_and_scale(example: GeneratedExample) -> str:
    if example.guidance_scale is None:
        return _prompt(example)
    return f"{_prompt(example)}, guidance scale {example.guidance_scale:g}"


def _spectrogram(x: Tensor, title: str) -> Picture:
    """Return a picture of [time, mels], with time to the right and high frequencies at the top."""
    least, most = LEVELS
    return _picture(to_image(((x.float().mT.flip(0) - least) / (most - least))[None]), title)


def _sound(clip: Clip, title: str) -> Picture:
    """Return an MP3 of `RATE` samples a second, which every browser plays."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, resampled(clip, RATE).samples, RATE, format="MP3")
    content = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:audio/mpeg;base64,{content}", title, sound=True)


def _text(content: str, title: str) -> Picture:
    return Picture(content if len(content) <= LETTERS else content[:LETTERS] + " …", title, text=True)


def _prompt(example: GeneratedExample) -> str:
    return "taken from a folder" if example.prompt is None else f"“{example.prompt}”"


def _picture(image: Image.Image, title: str) -> Picture:
    buffer = io.BytesIO()
    pixels = max(image.size) <= PIXELS
    if pixels:
        image.save(buffer, "PNG", optimize=True)
    else:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(buffer, "JPEG", quality=82)
    content = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/{'png' if pixels else 'jpeg'};base64,{content}", title, pixels)


VIEWS: dict[Modality, View] = {
    "image": View(lambda x, title: _picture(to_image(x), title), _picture, _prompt_and_scale),
    "audio": View(_spectrogram, _sound, _prompt),
    "text": View(None, _text, _prompt),
}
"""The view of each modality."""
