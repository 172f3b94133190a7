import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import genfl
from genfl import catalogue, config, pipeline
from genfl.data.formats import PixelFormat
from genfl.data.recipes import RECIPES
from genfl.data.sources import (
    DATASETS,
    DIGIT_NAMES,
    DataEntry,
    DataSet,
    LabelledExamples,
    grey_image,
    to_image,
)
from genfl.errors import InputError
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
    found = PixelFormat((3, 1), 3, (0.2, 0.5, 1.0), (0.1, 0.5, 2.0)).prepare(x)
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
    [(name, recipe.format) for name, recipe in RECIPES.items() if isinstance(recipe.format, PixelFormat)],
)
def test_images_have_a_mean_and_deviation_for_each_channel(name, form):
    assert len(form.mean) == len(form.std) == form.channels
    assert all(0 <= mean <= 1 and 0 < std <= 0.5 for mean, std in zip(form.mean, form.std, strict=True))
    assert (form.size is None) == (name == "images")


# --- data sets of the user's own


def squares(bright=0):
    """Returns two classes of 4×4 images: dark on the left, dark on the right."""
    x = torch.zeros(40, 1, 4, 4)
    x[::2, :, :, :2], x[1::2, :, :, 2:] = 1.0, 1.0
    x[0, 0, 0, 0] -= bright
    labels = ["left", "right"] * 20
    owners = [f"client {n // 10}" for n in range(40)]
    train = LabelledExamples(x[:30], labels[:30], owners[:30])
    return DataSet(train, LabelledExamples(x[30:], labels[30:]), "image", grey_image(4, 4), to_image)


@pytest.fixture
def registered():
    """Removes what a test registers."""
    before = DATASETS.added()
    yield lambda name, load, modality="image", summary="": genfl.register.dataset(
        name, modality=modality, summary=summary
    )(load)
    DATASETS.restore(before)


@pytest.mark.slow
def test_register_dataset_makes_it_known_to_configs_and_the_catalogue(registered, tmp_path):
    text = """
    {name: t, seeds: [0], data: {name: squares, partition: {kind: natural}}, model: {name: mlp, width: 4},
     generator: none, methods: {a: {algorithm: fedavg}},
     federate: {rounds: 1, clients_per_round: 2, engine: sequential, local: {steps: 1, batch_size: 4}}}
    """
    with pytest.raises(InputError, match=r"^data.name: there is no 'squares'"):
        config.parse(text)
    registered("squares", squares, "image", "dark halves")
    assert pipeline.execute(config.parse(text), tmp_path)["methods"].keys() == {"a"}
    (row,) = (row for row in catalogue.datasets() if row["name"] == "squares")
    assert (row["modality"], row["summary"], row["metric"]) == ("image", "dark halves", "accuracy")
    assert not DATASETS["squares"].public, "reports show nobody's private examples"


def test_register_dataset_replaces_only_the_users_own(registered):
    for bright in (0, 0.5):
        registered("squares", lambda bright=bright: squares(bright), "image", "")
        assert float(DATASETS["squares"].load().train.x[0, 0, 0, 0]) == 1 - bright
    for name in ("digits", "mnist", ""):
        with pytest.raises(InputError, match=rf"^register: .*{name}'.* (choose another name|as in 'mine')$"):
            registered(name, squares, "image", "")
    with pytest.raises(InputError, match=r"^modality: 'video' is unknown; give image, audio, text$"):
        registered("films", squares, "video", "")


def test_register_dataset_gives_a_digest_of_the_content(registered):
    def digest(change=lambda data: data):
        registered("squares", lambda: change(squares()), "image", "")
        return DATASETS["squares"].load().digest

    def changed(**values):
        return lambda data: data._replace(train=data.train._replace(**values))

    assert digest() == digest()
    others = {
        digest(lambda data: squares(bright=1e-6)),
        digest(changed(labels=["right", "left"] * 15)),
        digest(changed(client_ids=None)),
        digest(changed(x=squares().train.x.half())),
        digest(lambda data: data._replace(test=data.train)),
        digest(lambda data: data._replace(digest="of the user")),
    }
    assert len(others | {digest()}) == 7


def test_registered_data_depend_on_code(registered):
    def digest(scale=1.0, offset=0.0):
        def load():
            data = squares()
            encode = lambda image: data.encode(image) + offset  # noqa: E731
            return data._replace(prepare=lambda x: scale * x, encode=encode, digest="the user's")

        registered("squares", load)
        return DATASETS["squares"].load().digest

    assert digest() == digest()
    assert len({digest(), digest(scale=2.0), digest(offset=1.0)}) == 3


def test_an_entry_of_a_recipe_reads_by_the_recipe(tmp_path):
    recipe = RECIPES["images"]._replace(metric="macro_f1")
    entry = DataEntry.from_recipe("mine", recipe)
    assert (entry.modality, entry.metric, entry.public, entry.recipe) == ("image", "macro_f1", False, recipe)
    with pytest.raises(InputError, match=r"^data.path: required for mine; give the folder with the data$"):
        entry.load()
    assert {name for name, entry in DATASETS.items() if not entry.public} >= {"images", "sounds", "texts"}
    assert DATASETS["digits"].public


@pytest.mark.parametrize("field", ["key", "client", "clientid"])
def test_another_name_of_client_id_is_corrected(field):
    text = "{name: t, model: mlp, methods: {a: {algorithm: fedavg}}, data: {name: pacs, FIELD: domain}}"
    with pytest.raises(InputError) as caught:
        config.parse(text.replace("FIELD", field))
    assert str(caught.value) == f"data.{field}: unknown key; did you mean 'client_id'?"
