"""Near-duplicates: planted copies are found, other examples are not, and blocks do not matter."""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from genfl.data import overlap
from genfl.data.formats import PixelFormat
from genfl.data.overlap import near_pairs
from genfl.data.sources import digits
from genfl.data.texts import TokenFormat

from .helpers import find

INPUTS = PixelFormat((32, 32), 3, (0.5,) * 3, (0.5,) * 3)


def photos(count, seed=0, size=32):
    """Returns smooth random pictures, uint8 [count, 3, size, size]: waves of several lengths."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 6, 6))).float()
    fine = torch.from_numpy(rng.normal(0, 12, (count, 3, size, size))).float()
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (smooth + fine).clamp(0, 255).to(torch.uint8)


def reencoded(x, size, quality=75, encoding=INPUTS):
    """Returns images after they were resized, saved as JPEG, and read as inputs again."""
    changed = []
    for pixels in x:
        image = Image.fromarray(pixels.numpy().transpose(1, 2, 0)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        changed.append(encoding.encode(Image.open(file)))
    return torch.from_numpy(np.stack(changed))


@pytest.mark.parametrize(
    ("size", "quality", "least"), [(48, 75, 60), (224, 50, 60), (32, 90, 60), (24, 75, 55)]
)
def test_reencoded_images_are_found_at_any_size(size, quality, least):
    test, others = photos(60), photos(300, seed=1)
    generated = torch.cat([reencoded(test, size, quality), others])
    pairs = near_pairs(generated, test, "image")
    assert {(row, row) for row in range(60)} >= {tuple(pair) for pair in pairs.rows.tolist()}, "no false pair"
    assert len(pairs.rows) >= least
    assert (np.diff(pairs.similarity) <= 0).all(), "the most similar come first"


def test_pairs_are_those_of_a_loop_over_all(monkeypatch):
    monkeypatch.setattr(overlap, "COMPARED_ROWS", 7)
    test = photos(20)
    first = torch.cat([photos(9, seed=2), test[5:8] // 2 + 40, test[[3, 3]]])

    def centred(x, size):
        x = torch.nn.functional.interpolate(x[None].float(), size, mode="area")[0]
        return (x - x.mean()).flatten() / (x - x.mean()).norm()

    def grey(x):
        return (x.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)

    expected = set()
    for n, x in enumerate(first):
        coarse = [float(centred(grey(x), (16, 16)) @ centred(grey(y), (16, 16))) for y in test]
        detail = [float(centred(x, (32, 32)) @ centred(y, (32, 32))) for y in test]
        nearest = np.argsort(coarse)[-10:]
        far = min(detail[m] for m in nearest)
        expected |= {
            (n, int(m))
            for m in nearest
            if coarse[m] >= 0.95 and detail[m] >= 0.95 and 1 - detail[m] <= 0.3 * (1 - far)
        }
    assert expected == {(9, 5), (10, 6), (11, 7), (12, 3), (13, 3)}
    assert {tuple(pair) for pair in near_pairs(first, test, "image").rows.tolist()} == expected


def test_lookalikes_are_no_copies():
    """Noisy views of one scene correlate, but none is much closer than the others."""
    scene = photos(1).float() * 0.8 + 25
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 6, (200, 3, 32, 32))).float()
    x = (scene + noise).clamp(0, 255).to(torch.uint8)
    first, second = x[:100], x[100:]
    assert np.corrcoef(first.flatten(1).numpy(), second.flatten(1).numpy())[:100, 100:].min() >= 0.95
    assert len(near_pairs(first, second, "image").rows) == 0


def test_blank_inputs_are_near_nothing():
    blank = torch.full((3, 3, 32, 32), 9, dtype=torch.uint8)
    assert len(near_pairs(blank, torch.cat([blank, photos(20)]), "image").rows) == 0
    assert len(near_pairs(blank[:0], photos(2), "image").rows) == 0


def test_few_numbers_need_more_resemblance():
    data = digits()
    same = near_pairs(data.test.x, data.test.x, "image")
    assert {(n, n) for n in range(360)} <= {tuple(pair) for pair in same.rows.tolist()}
    assert len(near_pairs(data.test.x, data.train.x, "image").rows) < 0.03 * 360


def test_texts_are_compared_by_their_sets_of_words():
    encoding = TokenFormat(24)

    def tokens(*texts):
        return torch.from_numpy(np.stack([encoding.encode(text) for text in texts]))

    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    first = tokens(long, "good", "", "never seen before at all")
    second = tokens(long.replace("sixteen", "other"), "Good", "good day", "", long.replace("eight", "x"))
    pairs = near_pairs(first, second, "text")
    assert sorted(map(tuple, pairs.rows.tolist())) == [(0, 0), (1, 1)]
    assert pairs.similarity.tolist() == pytest.approx([1, 13 / 14])


def test_many_training_examples_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(overlap, "MOST_EXAMPLES", 50)
    train = photos(200)
    pairs = near_pairs(train[[0, 4, 5]], train, "image")
    assert pairs.compared == 50
    assert sorted(pairs.rows.tolist()) == [[0, 0], [1, 4]], "every fourth row, by its own number"


@pytest.mark.parametrize("size", [32, 48])
def test_small_chunks_change_no_pair(monkeypatch, size):
    test = photos(40, size=size)
    first = torch.cat([photos(20, seed=2, size=size), test[5:15] // 2 + 40, test[[3, 3]]])
    whole = near_pairs(first, test, "image")
    monkeypatch.setattr(overlap, "CHUNK_NUMBERS", 3 * 3 * size * size)
    monkeypatch.setattr(overlap, "QUERIES", 5)
    parts = near_pairs(first, test, "image")
    assert len(whole.rows) == 12
    assert np.array_equal(whole.rows, parts.rows)
    assert np.array_equal(whole.similarity, parts.similarity), "the bits are the same"


def test_few_inputs_are_floats_at_a_time(monkeypatch):
    """Of 300 lookalikes at 64 px, all of which are compared in detail, at most two are read at a time."""
    scene = photos(1, size=64).float() * 0.8 + 25
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (300, 1, 64, 64))).float()
    x = (scene + noise).clamp(0, 255).to(torch.uint8)
    read, pictures = [], overlap._pictures
    monkeypatch.setattr(overlap, "_pictures", lambda part: read.append(len(part)) or pictures(part))
    monkeypatch.setattr(overlap, "CHUNK_NUMBERS", 2 * 3 * 64 * 64)
    near_pairs(x[:20], x, "image")
    assert max(read) == 2
    assert sum(read) > 300 + 20 + 20 + 100, "coarse ones of both, the own, and the neighbours"


def test_spectrograms_are_compared():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 100, 64)).astype(np.float32)).cumsum(1)
    louder = x[:5] + 0.7
    assert sorted(map(tuple, near_pairs(louder, x, "audio").rows.tolist())) == [(n, n) for n in range(5)]


@pytest.mark.slow
def test_real_photos_and_stable_diffusion_do_not_overlap(real):
    """CIFAR-10 with Stable Diffusion's images has no pair; planted copies of it are found."""
    data, generated = real("cifar10", "cifar10"), real("cifar10", "cifake_sd14")
    began = time.perf_counter()
    assert len(near_pairs(generated.train.x[:10_000], data.test.x, "image").rows) == 0
    seconds = time.perf_counter() - began
    assert seconds < 60
    copies = reencoded(data.test.x[:500], 48)
    pairs = near_pairs(copies, data.test.x, "image")
    assert len({row for row, _ in pairs.rows.tolist()}) >= 495
    overlapping = near_pairs(data.test.x[:1000], data.train.x, "image")
    assert 0 < len(overlapping.rows) < 30, "CIFAR-10 is known to repeat some photos"


@pytest.mark.slow
def test_real_mnist_has_few_near_duplicates():
    import pyarrow.parquet

    def read(split, count):
        (path,) = (find("mnist") / "data").glob(f"{split}*.parquet")
        cells = pyarrow.parquet.read_table(path, columns=["image"])["image"].slice(0, count).to_pylist()
        images = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells]
        return torch.from_numpy(np.stack(images)[:, None])

    assert len(near_pairs(read("test", 1000), read("train", 20_000), "image").rows) <= 10
