import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from genfl.data.forms import Pixels
from genfl.data.recipes import RECIPES
from genfl.data.sources import DATASETS, DIGIT_NAMES, grey_image
from genfl.learning.task import Task


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


def test_digits_are_given_to_models_as_they_are_stored():
    data = DATASETS["digits"].load()
    assert data.prepare(data.train.x) is data.train.x
    assert data.train.x.dtype == torch.float32


def test_pixels_are_normalised_channel_by_channel():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(2, 3, 3).unsqueeze(3)
    found = Pixels((3, 1), 3, (0.2, 0.5, 1.0), (0.1, 0.5, 2.0)).prepare(x)
    expected = [[-2, 0, 8], [-1, -0.6, 1], [-0.5, -0.4, 0]]
    assert torch.allclose(found[1, :, :, 0], torch.tensor(expected), atol=1e-6)


def test_what_is_learned_and_scored_is_prepared():
    """The model sees the same numbers in training and in evaluation."""
    seen = []
    task = Task(
        init=lambda key: {}, loss=lambda *_: None, forward=lambda weights, x: (seen.append(x), (x, x))[1]
    )
    data = DATASETS["digits"].load()._replace(prepare=lambda x: x.float() / 5)
    stored = torch.arange(20, dtype=torch.uint8)[:, None]
    logits = task.of_stored(data.prepare).predict({}, stored, batch_size=8)
    assert torch.equal(logits, stored / 5)
    assert [len(x) for x in seen] == [8, 8, 4], "batch by batch"


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_is_of_one_piece(name):
    recipe = RECIPES[name]
    assert recipe.hub is None or recipe.hub.count("/") == 1
    assert not any("_" in word for word in recipe.words.values())


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, recipe.form) for name, recipe in RECIPES.items() if isinstance(recipe.form, Pixels)],
)
def test_images_have_a_mean_and_deviation_for_each_channel(name, form):
    assert len(form.mean) == len(form.std) == form.channels
    assert all(0 <= mean <= 1 and 0 < std <= 0.5 for mean, std in zip(form.mean, form.std, strict=True))
    assert (form.size is None) == (name == "images")
