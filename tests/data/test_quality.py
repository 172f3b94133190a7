"""What is left out of generated data, and what counts as a repetition."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from genfl.data import quality
from genfl.data.media import Clip
from genfl.data.quality import MEASURES, near_duplicates, sift, survey
from genfl.data.samples import Prompt, Sample
from genfl.data.sounds import RATE
from genfl.data.synthetic import SyntheticData

from .helpers import tone


def noise(seed, size=(32, 32, 3)):
    """Returns an image of coarse and fine structure."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(256, size=(4, 4, 3), dtype=np.uint8)).resize(size[:2])
    return Image.fromarray(np.asarray(coarse) // 2 + rng.integers(32, size=size, dtype=np.uint8))


def clip(hertz, seconds=0.5, loud=0.5):
    return Clip(tone(hertz, seconds, loud=loud), RATE)


def holed(value):
    samples = clip(440).samples.copy()
    samples[100] = value
    return Clip(samples, RATE)


def floats(value):
    return Image.fromarray(np.array([[0.0, value], [1.0, 2.0]], np.float32))


FAULTS = {
    "noise": ("image", noise(0), None),
    "one pixel differs": ("image", Image.fromarray(np.eye(1, 64, dtype=np.uint8).reshape(8, 8)), None),
    "one colour": ("image", Image.new("RGB", (8, 8), (1, 2, 3)), "blank"),
    "one grey": ("image", Image.new("L", (8, 8), 7), "blank"),
    "one band differs": (
        "image",
        Image.merge("RGB", [Image.new("L", (32, 32)), Image.new("L", (32, 32)), noise(0).getchannel(0)]),
        None,
    ),
    "numbers": ("image", floats(3.0), None),
    "NaN among numbers": ("image", floats(np.nan), "not finite"),
    "tone": ("audio", clip(440), None),
    "quiet tone": ("audio", clip(440, loud=0.51e-3), None),
    "all but silent": ("audio", clip(440, loud=0.49e-3), "silent"),
    "zeros": ("audio", Clip(np.zeros(RATE, np.float32), RATE), "silent"),
    "constant": ("audio", Clip(np.full(RATE, 0.5, np.float32), RATE), "silent"),
    "NaN": ("audio", holed(np.nan), "not finite"),
    "infinity": ("audio", holed(np.inf), "not finite"),
    "nothing": ("audio", Clip(np.zeros(0, np.float32), RATE), "too short"),
    "63 ms": ("audio", clip(440, seconds=0.063), "too short"),
    "64 ms": ("audio", clip(440, seconds=0.064), None),
    "words": ("text", "a word", None),
    "no letters": ("text", "", "empty"),
    "white space": ("text", " \n\t\u2003", "empty"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_broken_is_told_from_what_is_not(name):
    modality, content, expected = FAULTS[name]
    assert MEASURES[modality].fault(content) == expected


def test_what_is_left_out_is_counted_by_label_and_reason():
    contents = {"yes": [clip(300), holed(np.nan), clip(400)], "no": [clip(1, loud=0), clip(1, loud=0)]}
    samples = [Sample(Prompt(label, "", 1.0, 0), c) for label, own in contents.items() for c in own]
    kept, removed = sift(samples, "audio")
    assert kept == [samples[0], samples[2]]
    assert removed == {"yes": {"not finite": 1}, "no": {"silent": 2}}


def plain(vectors, near):
    """Counts, pair by pair, those that are near one before them."""
    return sum(any(float(v @ u) >= near for u in vectors[:n]) for n, v in enumerate(vectors))


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_pairs_are_counted_as_one_by_one_whatever_the_chunks(rows, monkeypatch):
    monkeypatch.setattr(quality, "COMPARED_ROWS", rows)
    rng = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(60, 3, generator=rng))
    for near in (0.5, 0.8, 0.95):
        assert near_duplicates(vectors, near) == plain(vectors, near) > 0
    assert near_duplicates(torch.zeros(5, 3), 0.8) == 0


def test_texts_of_which_a_fifth_differs_are_at_the_threshold_whoever_comes_first():
    words = [f"word{n}" for n in range(10 + 2)]
    other = [*words[:-2], "another", "end"]
    vectors = [MEASURES["text"].vector(" ".join(text)) for text in (words, other)]
    assert vectors[0] @ vectors[1] == pytest.approx(0.8)
    for order in (vectors, vectors[::-1]):
        assert near_duplicates(torch.from_numpy(np.stack(order)), MEASURES["text"].near) == 1


def likeness(modality, one, other):
    vector = MEASURES[modality].vector
    return float(vector(one) @ vector(other))


def compressed(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def test_an_image_that_was_changed_a_little_is_a_near_duplicate_and_another_is_not():
    near = MEASURES["image"].near
    for seed in range(5):
        image = noise(seed)
        for changed in (
            image.copy(),
            compressed(image),
            ImageEnhance.Brightness(image).enhance(1.2),
            image.resize((64, 64), Image.Resampling.BICUBIC),
            image.convert("RGBA"),
        ):
            assert likeness("image", image, changed) >= near
        for other in (noise(seed + 100), Image.eval(image, lambda v: 255 - v), image.rotate(90)):
            assert likeness("image", image, other) < near


def test_a_clip_at_another_loudness_or_rate_is_a_near_duplicate_and_another_is_not():
    import soxr

    near, rng = MEASURES["audio"].near, np.random.default_rng(0)
    samples = np.concatenate([clip(hertz, 0.1).samples for hertz in (300, 900, 500, 2000, 700)])
    sound = Clip(samples + rng.normal(0, 0.02, len(samples)).astype(np.float32), RATE)
    assert likeness("audio", sound, Clip(sound.samples * 0.1, RATE)) >= near
    assert likeness("audio", sound, Clip(soxr.resample(sound.samples, RATE, 44_100), 44_100)) >= near
    assert likeness("audio", sound, Clip(sound.samples[::-1].copy(), RATE)) < near
    assert likeness("audio", sound, clip(440)) < near


SENTENCE = (
    "The quick brown fox jumps over the lazy dog while seven wizards of Oz look on from the hills near town"
)


def test_a_text_with_one_word_replaced_is_a_near_duplicate_and_one_in_another_order_is_not():
    near = MEASURES["text"].near
    assert likeness("text", SENTENCE, SENTENCE.upper() + "!") == pytest.approx(1)
    assert likeness("text", SENTENCE, SENTENCE.replace("town", "us")) >= near
    assert likeness("text", SENTENCE, " ".join(reversed(SENTENCE.split()))) < near / 2
    assert likeness("text", "yes", "yes!") == pytest.approx(1)
    assert likeness("text", "yes", "no") == 0
    assert likeness("text", "!!!", "!!!") == 0, "no word to compare"


def test_hashed_vectors_tell_the_cosine_of_sets_of_words():
    words = [f"word{n}" for n in range(400)]
    runs = [{tuple(words[n : n + 3]) for n in range(first, first + 98)} for first in (0, 30, 60)]
    for first, own in zip((0, 30, 60), runs, strict=True):
        found = likeness("text", " ".join(words[:100]), " ".join(words[first : first + 100]))
        assert found == pytest.approx(len(own & runs[0]) / 98, abs=0.1)


@pytest.fixture
def data(tmp_path):
    """Two labels; bytes repeat within a label and over labels, and one image is another one compressed."""
    data = SyntheticData(tmp_path, ["cat", "dog", "emu"], shards=2)

    def write(number, *images, removed=None):
        samples = [Sample(Prompt(label, "", 1.0, 0), image) for label, image in images]
        data.write(number, samples, "test", 0.5, removed=removed)

    write(
        0, ("cat", noise(0)), ("dog", noise(1)), ("cat", compressed(noise(0))), removed={"cat": {"blank": 2}}
    )
    write(1, ("cat", noise(0)), ("dog", noise(0)), removed={"cat": {"blank": 1}, "emu": {"not finite": 1}})
    return data


def test_a_survey_counts_for_each_label(data):
    assert survey(data) == {
        "cat": {"samples": 3, "removed": {"blank": 3}, "duplicates": 1, "near_duplicates": 2},
        "dog": {"samples": 2, "removed": {}, "duplicates": 1, "near_duplicates": 0},
        "emu": {"samples": 0, "removed": {"not finite": 1}, "duplicates": 0, "near_duplicates": 0},
    }
