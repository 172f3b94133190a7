"""Real beside generated examples, as images, sounds and texts inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
from PIL import Image
from torch import Tensor

from genfl.data.media import Clip, Modality
from genfl.data.sounds import RATE, resampled
from genfl.data.sources import DataSet, to_image
from genfl.data.synthetic import SyntheticData

PER_LABEL = 6
MOST_LABELS = 15
"""More than this would make the page heavy."""

PIXELS = 32
"""Images up to this size are shown pixel by pixel, larger ones as compressed thumbnails."""

THUMBNAIL = 96

LETTERS = 240
"""Of a text; the rest is left out."""

LEVELS = (-2.0, 3.0)
"""What is black and what is white in a spectrogram, in standard deviations from its mean."""


class Picture(NamedTuple):
    """An image, a sound or a text inside the page.

    Attributes:
        source: Its data URI, or the text itself.
        title: What is said of it.
        pixels: Whether its pixels are its content, to be enlarged without smoothing.
        sound: Whether it is one.
        text: Whether it is one.
    """

    source: str
    title: str
    pixels: bool = False
    sound: bool = False
    text: bool = False


class Row(NamedTuple):
    """The examples of one label.

    Attributes:
        label: Its name.
        real: Real examples; none where they are not to be seen, or the run keeps nothing that can be read.
        generated: Generated ones as they were made.
        encoded: The same as the downstream model sees them.
    """

    label: str
    real: list[Picture]
    generated: list[Picture]
    encoded: list[Picture]


class Generated(NamedTuple):
    """A generated sample, with what the generator was told; None where nobody knows."""

    content: Any
    prompt: str | None
    guidance_scale: float | None


class View(NamedTuple):
    """How examples are shown.

    Attributes:
        encoded: ``(input, title) -> what the model sees``; None where no reader could tell anything from it.
        made: ``(content, title) -> what the generator made``.
        told: What is said of a generated sample.
    """

    encoded: Callable[[Tensor, str], Picture] | None
    made: Callable[[Any, str], Picture]
    told: Callable[[Generated], str]


def grid(data: DataSet, folder: Path, labels: Sequence[str], *, real: bool) -> list[Row]:
    """Takes examples of each label, evenly spaced over the data: nobody chose them.

    Args:
        data: The private data set.
        folder: The synthetic data set.
        labels: The label names, the first `MOST_LABELS` of which are shown.
        real: Whether real examples are shown, too.
    """
    shown = list(labels[:MOST_LABELS])
    generated = samples(folder, shown)
    view = VIEWS[data.modality]
    rows = []
    for label in shown:
        made = [view.made(sample.content, view.told(sample)) for sample in generated[label]]
        own, encoded = [], []
        if view.encoded:
            chosen = _spaced(_rows(data.train.labels, label)) if real else []
            own = [view.encoded(data.train.x[row], f"real: {label}") for row in chosen]
            encoded = [view.encoded(data.encode(s.content), view.told(s)) for s in generated[label]]
        rows.append(Row(label, own, made, encoded))
    return rows


def samples(folder: Path, labels: Sequence[str]) -> dict[str, list[Generated]]:
    """Reads evenly spaced samples of each label from a synthetic data set."""
    data = SyntheticData.open(folder)
    files = data.files()
    columns = [pyarrow.parquet.read_table(file, columns=["label"])["label"].to_pylist() for file in files]
    places = [(number, row) for number, column in enumerate(columns) for row in range(len(column))]
    names = [data.label_names[index] for column in columns for index in column]
    chosen = {label: [places[at] for at in _spaced(_rows(names, label))] for label in labels}
    found: dict[tuple[int, int], Generated] = {}
    for number, file in enumerate(files):
        rows = sorted(row for wanted in chosen.values() for shard, row in wanted if shard == number)
        if rows:  # samples can be large: only the shards that hold one are read
            wanted = [data.medium.column, "prompt", "guidance_scale"]
            cells = pyarrow.parquet.read_table(file, columns=wanted).take(rows).to_pylist()
            for row, cell in zip(rows, cells, strict=True):
                content = data.medium.read(cell[data.medium.column])
                found[number, row] = Generated(content, cell["prompt"], cell["guidance_scale"])
    return {label: [found[place] for place in wanted] for label, wanted in chosen.items()}


def _rows(names: Sequence[str], label: str) -> list[int]:
    return [row for row, name in enumerate(names) if name == label]


def _spaced(rows: Sequence[int], count: int = PER_LABEL) -> list[int]:
    return [rows[len(rows) * n // count] for n in range(count)] if len(rows) > count else list(rows)


def _guided(sample: Generated) -> str:
    if sample.guidance_scale is None:
        return _told(sample)
    return f"“{sample.prompt}”, guidance scale {sample.guidance_scale:g}"


def _spectrogram(x: Tensor, title: str) -> Picture:
    """Returns a picture of [time, mels], time to the right and high sounds above."""
    least, most = LEVELS
    return _picture(to_image(((x.float().mT.flip(0) - least) / (most - least))[None]), title)


def _sound(clip: Clip, title: str) -> Picture:
    """Returns an MP3, which every browser plays, at a rate that it knows."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, resampled(clip, RATE).samples, RATE, format="MP3")
    content = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:audio/mpeg;base64,{content}", title, sound=True)


def _text(content: str, title: str) -> Picture:
    return Picture(content if len(content) <= LETTERS else content[:LETTERS] + " …", title, text=True)


def _told(sample: Generated) -> str:
    return "taken from a folder" if sample.prompt is None else f"“{sample.prompt}”"


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
    "image": View(lambda x, title: _picture(to_image(x), title), _picture, _guided),
    "audio": View(_spectrogram, _sound, _told),
    "text": View(None, _text, _told),
}
"""The views of what can be shown."""
