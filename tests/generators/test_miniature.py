"""The embedded model: complete, small, and it does what it is told."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from genfl.data.samples import Prompt
from genfl.data.sources import DATASETS, DIGIT_NAMES
from genfl.generators.image import StableDiffusion, locate_image_model
from genfl.models import CNN

FOLDER = Path(locate_image_model("miniature"))


@pytest.fixture(scope="module")
def generator():
    return StableDiffusion("miniature", steps=15)


@pytest.fixture(scope="module")
def reader():
    """A classifier trained on real handwriting: the judge of what a generated image shows."""
    data = DATASETS["digits"].load()
    y = torch.tensor([DIGIT_NAMES.index(name) for name in data.train.labels])
    torch.manual_seed(0)
    model = CNN((1, 8, 8), 10)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(12):
        for rows in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train.x[rows]), y[rows]).backward()
            optimizer.step()
    model.eval()

    def read(images):
        with torch.no_grad():
            return model(torch.stack([data.encode(image) for image in images])).argmax(1).numpy()

    y_test = np.array([DIGIT_NAMES.index(name) for name in data.test.labels])
    with torch.no_grad():
        assert (model(data.test.x).argmax(1).numpy() == y_test).mean() > 0.95
    return read


def _draw(generator, texts, scale, first_seed=0):
    prompts = [Prompt("", text, scale, first_seed + n) for n, text in enumerate(texts)]
    return [sample.content for sample in generator.generate(prompts)]


def test_miniature_is_complete_and_at_most_8_mb():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 8_000_000
    assert {path.name for path in FOLDER.iterdir()} == {
        "README.md",
        "model_index.json",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    }
    assert not [path for path in FOLDER.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt", ".py")]


@pytest.mark.slow
def test_miniature_follows_prompts_more_at_higher_scales(generator, reader):
    labels = np.arange(100) % 10
    texts = [f"a handwritten {DIGIT_NAMES[label]}" for label in labels]
    fidelity = {scale: (reader(_draw(generator, texts, scale)) == labels).mean() for scale in (1.0, 2.0, 4.0)}
    assert fidelity[1.0] < fidelity[2.0] < fidelity[4.0]
    assert fidelity[4.0] > 0.85


@pytest.mark.slow
def test_miniature_style_follows_the_words(generator):
    def ink(look):
        texts = [f"a {look} handwritten {name}" for name in DIGIT_NAMES] * 2
        return np.mean([np.asarray(image) for image in _draw(generator, texts, 3.0)])

    assert ink("bold") > 1.5 * ink("thin")


@pytest.mark.slow
def test_miniature_images_of_one_prompt_differ(generator):
    images = [np.asarray(image).astype(float) for image in _draw(generator, ["a handwritten eight"] * 8, 3.0)]
    distances = [np.abs(a - b).mean() for n, a in enumerate(images) for b in images[:n]]
    assert min(distances) > 5


def test_miniature_tokenizer_fits_every_demo_prompt(generator):
    from itertools import product

    from genfl import config

    prompts = config.load(Path(config.__file__).parents[1] / "configs" / "digits.yaml").prompts
    tokenizer = generator.pipeline.tokenizer
    for words in product(*prompts.blanks.values(), DIGIT_NAMES):
        text = prompts.template.format(**dict(zip((*prompts.blanks, "label"), words, strict=True)))
        assert len(tokenizer(" ".join(text.split())).input_ids) <= tokenizer.model_max_length


@pytest.mark.slow
def test_miniature_distance_to_guide_grows_with_strength(reader):
    real = DATASETS["digits"].load().train
    wanted = np.arange(30) % 10
    of_label = [[n for n, name in enumerate(real.labels) if name == wanted] for wanted in DIGIT_NAMES]
    rows = [of_label[label][n // 10] for n, label in enumerate(wanted)]
    guides = [Image.fromarray((real.x[row, 0] * 255).byte().numpy()) for row in rows]
    seen = np.stack([np.asarray(guide.resize((32, 32), Image.Resampling.BILINEAR)) for guide in guides])
    prompts = [
        Prompt(DIGIT_NAMES[k], f"a handwritten {DIGIT_NAMES[k]}", 2.0, n, guides=(guide,))
        for n, (k, guide) in enumerate(zip(wanted, guides, strict=True))
    ]
    distances, read = [], []
    for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
        made = StableDiffusion("miniature", steps=10, strength=strength).generate(prompts)
        images = [sample.content for sample in made]
        grey = np.stack([np.asarray(image.convert("L")).astype(float) for image in images])
        distances.append(np.abs(grey - seen).mean())
        read.append((reader(images) == wanted).mean())
    assert distances == sorted(distances)
    assert distances[-1] > 1.4 * distances[0]
    assert read[0] >= 0.9


@pytest.mark.slow
def test_miniature_follows_guide_or_prompt_by_strength(reader):
    real = DATASETS["digits"].load().train
    shown = np.arange(30) % 10
    told = (shown + 5) % 10
    guides = [
        Image.fromarray((real.x[real.labels.index(DIGIT_NAMES[k]), 0] * 255).byte().numpy()) for k in shown
    ]
    prompts = [
        Prompt("", f"a handwritten {DIGIT_NAMES[k]}", 4.0, n, guides=(guide,))
        for n, (k, guide) in enumerate(zip(told, guides, strict=True))
    ]
    for strength, meant in ((0.1, shown), (1.0, told)):
        made = StableDiffusion("miniature", steps=10, strength=strength).generate(prompts)
        assert (reader([sample.content for sample in made]) == meant).mean() > 0.75


def test_miniature_card_lists_every_font_and_licence():
    import yaml

    card = (FOLDER / "README.md").read_text()
    fonts = yaml.safe_load((Path(__file__).parents[2] / "tools" / "miniature_fonts.yaml").read_text())
    families = fonts["fonts"] if isinstance(fonts, dict) else fonts
    assert len(families) > 80
    licences = Counter()
    for font in families:
        assert font["family"].removeprefix("@fontsource/") in card.lower().replace(" ", "-")
        licences[font["licence"]] += 1
    assert set(licences) <= {"OFL-1.1", "Apache-2.0"}
