import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from genfl.data.sources import DATASETS, DIGIT_NAMES, grey_image


def test_digits_are_the_bundled_ones_split_once():
    data = DATASETS["digits"].load()
    images, target = load_digits(return_X_y=True)
    assert (len(data.train.x), len(data.test.x)) == (1437, 360)
    assert data.shape == (1, 8, 8)
    both = torch.cat([data.train.x, data.test.x]).flatten(1).numpy() * 16
    names = [*data.train.labels, *data.test.labels]
    seen = sorted((tuple(image), DIGIT_NAMES.index(name)) for image, name in zip(both, names, strict=True))
    assert seen == sorted((tuple(image), label) for image, label in zip(images, target, strict=True))
    counts = np.bincount([DIGIT_NAMES.index(name) for name in data.test.labels])
    assert counts.min() >= 34, "the test set holds a fifth of every class"


def test_generated_images_are_encoded_by_counting_ink_in_blocks():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[0:4, 4:8] = 255  # one block of 4×4, white
    pixels[8:10, 8:12] = 255  # half a block
    x = grey_image(8, 8)(Image.fromarray(pixels))
    assert x.shape == (1, 8, 8)
    assert x[0, 0, 1] == 1.0
    assert abs(x[0, 2, 2].item() - 0.5) < 0.01
    assert abs(x.sum().item() - 1.5) < 0.02
