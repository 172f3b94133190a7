"""The sheet of sounds: spectrograms, and clips that play."""

import base64
import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from genfl.data.media import Clip
from genfl.data.samples import Prompt, Sample
from genfl.data.sounds import RATE, LogMelFormat
from genfl.data.sources import DataSet, LabelledExamples
from genfl.data.synthetic import SyntheticData
from genfl.report import pictures
from genfl.results.examples import choose_examples

FORM = LogMelFormat(1.0)


def tone(hertz, rate=RATE):
    return Clip((0.5 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate)).astype(np.float32), rate)


@pytest.fixture
def rows(tmp_path):
    import torch

    def encode(clip):
        return torch.from_numpy(FORM.encode(clip))

    x = torch.stack([encode(tone(300)), encode(tone(6000))])
    examples = LabelledExamples(x, ["low", "high"])
    samples = [
        Sample(Prompt(label, f"<{label}>", 1.0, 0), tone(hertz, 44_100))
        for label, hertz in (("low", 500), ("high", 5000))
    ]
    SyntheticData(tmp_path, ["low", "high"], 1, "audio").write(0, samples, "test", 1.0)
    data = DataSet(examples, examples, "audio", encode, prepare=FORM.prepare)
    examples = choose_examples(data, tmp_path, ["low", "high"], real=True)
    return pictures.picture_rows(examples, "audio")


def content(picture):
    return io.BytesIO(base64.b64decode(picture.source.partition("base64,")[2]))


def brightest(picture):
    """Returns where a spectrogram is brightest, from 0, above, to 1, below."""
    grey = np.asarray(Image.open(content(picture)).convert("L"), dtype=float)
    return grey.mean(1).argmax() / len(grey)


def test_spectrograms_have_high_sounds_above(rows):
    low, high = rows
    for group in ("real", "encoded"):
        (dull,), (bright,) = getattr(low, group), getattr(high, group)
        assert not dull.sound
        assert brightest(bright) < 0.3 < 0.6 < brightest(dull)


def test_clips_as_made_are_played_and_their_title_is_their_prompt(rows):
    (picture,) = rows[0].generated
    assert picture.sound
    assert picture.title == "“<low>”"
    assert picture.source.startswith("data:audio/mpeg;base64,")
    samples, rate = soundfile.read(content(picture))
    assert rate == RATE
    spectrum = np.abs(np.fft.rfft(samples[:RATE]))
    assert abs(int(spectrum.argmax()) - 500) <= 2
