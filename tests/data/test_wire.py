"""What the server sends when it generates for clients: counted, and decoded to the same bits."""

import numpy as np
import pytest
import torch
from PIL import Image

from genfl.data.formats import PixelFormat
from genfl.data.media import Clip
from genfl.data.sounds import LogMelFormat
from genfl.data.texts import TokenFormat
from genfl.data.wire import decode_samples, encode_samples, sample_bytes

RNG = np.random.default_rng(0)
PIXELS = [Image.fromarray(RNG.integers(256, size=(48, 64, 3), dtype=np.uint8)) for _ in range(5)]
CLIPS = [Clip(RNG.uniform(-1, 1, 8_000).astype(np.float32), 16_000) for _ in range(5)]
TEXTS = [f"text number {n} " * (n + 1) for n in range(5)]


@pytest.mark.parametrize(
    ("encoding", "contents", "size"),
    [
        (PixelFormat((8, 8), 3, (0.5,), (0.2,)), PIXELS, 3 * 8 * 8),
        (LogMelFormat(seconds=0.5), CLIPS, None),
        (TokenFormat(length=12), TEXTS, 12 * 4),
    ],
    ids=["pixels", "sounds", "tokens"],
)
@pytest.mark.parametrize(("classes", "label"), [(2, 1), (256, 1), (257, 2), (70_000, 4)])
def test_samples_are_decoded_to_the_same_bits(encoding, contents, size, classes, label):
    x = torch.from_numpy(np.stack([np.array(encoding.encode(content)) for content in contents]))
    y = torch.tensor([0, classes - 1, 1, 0, classes - 1])
    message = encode_samples(x, y, classes)
    each = sample_bytes(x.shape[1:], x.dtype, classes)
    assert len(message) == 5 * each
    assert each == (size or x[0].numel() * x.element_size()) + label
    received, labels = decode_samples(message, x.shape[1:], x.dtype, classes)
    assert received.dtype == x.dtype
    assert torch.equal(received, x)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, y)
    unlabelled = encode_samples(x, None, classes)
    assert len(unlabelled) == 5 * (each - label)
    assert torch.equal(decode_samples(unlabelled, x.shape[1:], x.dtype, classes, labelled=False)[0], x)


def test_no_samples_are_no_bytes():
    x, y = torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)
    assert encode_samples(x, y, 10) == b""
    received, labels = decode_samples(b"", (1, 8, 8), torch.float32, 10)
    assert (received.shape, labels.shape) == (x.shape, y.shape)
