"""Train the miniature Stable Diffusion that ships with genfl.

The result is an ordinary ``StableDiffusionPipeline`` folder of a few megabytes that draws 32x32 digits
from text such as ``"a thin slanted handwritten seven"``. It learns from digits rendered from open fonts
and never sees a handwritten digit, so it can stand for a public generator in experiments on private
handwriting.

Stages (``--stages`` picks some; every stage reads and writes the work folder, so a killed run resumes)::

    fonts     fetch the @fontsource packages of miniature_fonts.yaml with ``npm pack``
    render    glyphs -> warped, re-inked 32x32 digits with prompts that describe them
    vae       train the AutoencoderKL
    unet      train the text encoder and the U-Net jointly on the latents
    export    write the pipeline folder in fp16
    evaluate  generate 2,000 images and measure them against real digits

Real digits (scikit-learn's ``load_digits``) are used by ``evaluate`` only, as a probe; nothing is
trained on them except the judge that reads generated images.

Usage::

    python tools/train_miniature.py --work build/miniature
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import string
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor, nn

from genfl.storage import replacing

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("fonts", "render", "vae", "unet", "export", "evaluate")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 32
"""Side of the images in pixels: the size at which the UCI digits were normalised."""

FIELD = 80
"""Side of the distance fields that stand for a glyph."""

GLYPH_HEIGHT = 56
"""Height of a digit inside its field; the margin leaves room for warping and thick pens."""


def log(message: str) -> None:
    """Print a line with the time of day, at once."""
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)


# --------------------------------------------------------------------------------------------- fonts


@dataclass(frozen=True)
class Font:
    """One pinned @fontsource package."""

    family: str
    version: str
    licence: str
    weight: int
    kind: str

    @property
    def archive(self) -> str:
        """File name that ``npm pack`` gives the package."""
        return f"fontsource-{self.family}-{self.version}.tgz"


def read_fonts(path: Path) -> list[Font]:
    """Read the list of font packages."""
    return [Font(**entry) for entry in yaml.safe_load(path.read_text())["fonts"]]


def fetch_fonts(fonts: Sequence[Font], cache: Path) -> None:
    """Download the packages that the cache lacks and check every licence."""
    cache.mkdir(parents=True, exist_ok=True)
    for font in fonts:
        target = cache / font.archive
        if not target.exists():
            staging = cache / ".staging"
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            package = f"@fontsource/{font.family}@{font.version}"
            subprocess.run(
                ["npm", "pack", "--silent", package], cwd=staging, check=True, stdout=subprocess.DEVNULL
            )
            (staging / font.archive).replace(target)
            staging.rmdir()
        licence = json.loads(_member(target, "package/package.json"))["license"]
        if licence != font.licence:
            raise ValueError(f"{font.family}: licence is {licence}, the list says {font.licence}")
    log(f"{len(fonts)} font packages in {cache}")


def _member(archive: Path, name: str) -> bytes:
    """Return one file of a tar archive."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        if file is None:
            raise FileNotFoundError(f"{archive}: {name}")
        return file.read()


def load_typeface(font: Font, cache: Path) -> bytes:
    """Return the Latin face of a package as a plain TrueType/OpenType file."""
    from fontTools.ttLib import TTFont

    packed = _member(cache / font.archive, f"package/files/{font.family}-latin-{font.weight}-normal.woff")
    face = TTFont(io.BytesIO(packed))
    face.flavor = None
    plain = io.BytesIO()
    face.save(plain)
    return plain.getvalue()


# -------------------------------------------------------------------------------------------- glyphs


class Columns:
    """Arrays of equal length, kept in one file."""

    def save(self, path: Path) -> None:
        """Write all arrays."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote."""
        with np.load(path) as data:
            return cls(**{name: data[name] for name in data.files})

    def select(self, keep: np.ndarray) -> Self:
        """Return the rows that a mask or a list of indices picks."""
        return type(self)(**{name: value[keep] for name, value in vars(self).items()})


@dataclass
class Glyphs(Columns):
    """Distance fields of many glyphs.

    ``outline`` is the signed distance to the outline (positive inside), ``skeleton`` the distance to the
    centre line. Thresholding the first keeps the contrast of the face, the second redraws the digit with
    a round pen; both give any stroke width without aliasing.
    """

    outline: np.ndarray
    skeleton: np.ndarray
    pen: np.ndarray
    digit: np.ndarray
    variant: np.ndarray
    family: np.ndarray
    hand: np.ndarray


def thin(bitmaps: np.ndarray) -> np.ndarray:
    """Zhang-Suen thinning of a stack of boolean bitmaps (with an empty border)."""
    image = bitmaps.copy()
    while True:
        before = image.sum()
        for odd in (False, True):
            p = np.pad(image, ((0, 0), (1, 1), (1, 1)))
            n, s, w, e = p[:, :-2, 1:-1], p[:, 2:, 1:-1], p[:, 1:-1, :-2], p[:, 1:-1, 2:]
            nw, ne, sw, se = p[:, :-2, :-2], p[:, :-2, 2:], p[:, 2:, :-2], p[:, 2:, 2:]
            ring = [n, ne, e, se, s, sw, w, nw]
            count = np.sum(ring, axis=0, dtype=np.int8)
            turns = np.sum(
                [~a & b for a, b in zip(ring, ring[1:] + ring[:1], strict=True)], axis=0, dtype=np.int8
            )
            first, second = (~(n & e & w), ~(n & s & w)) if odd else (~(n & e & s), ~(e & s & w))
            image &= ~(image & (count >= 2) & (count <= 6) & (turns == 1) & first & second)
        if image.sum() == before:
            return image


VARIANT_SHARES = {
    1: {"own": 0.4, "plain": 0.4, "footed": 0.2},
    6: {"own": 0.65, "turned": 0.35},
    7: {"own": 0.45, "crossed": 0.55},
    9: {"own": 0.4, "turned": 0.6},
}
"""How often the handwritten variants of a digit are rendered; other digits have only their own shape."""


def draw_digit(face: bytes, digit: int) -> Image.Image | None:
    """Draw a digit of a face, twice as large as its field."""
    side, height = 2 * FIELD, 2 * GLYPH_HEIGHT
    probe = ImageFont.truetype(io.BytesIO(face), 100)
    left, top, right, bottom = probe.getbbox(str(digit))
    scale = min(height / max(bottom - top, 1), (side - 24) / max(right - left, 1))
    font = ImageFont.truetype(io.BytesIO(face), max(8, round(100 * scale)))
    image = Image.new("L", (side, side), 0)
    left, top, right, bottom = font.getbbox(str(digit))
    origin = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(origin, str(digit), font=font, fill=255)
    return image if image.getbbox() else None


def draw_variants(face: bytes, digit: int) -> dict[str, Image.Image]:
    """Draw a digit of a face and its customary handwritten variants.

    Many people cross the seven, write the one as a plain stroke or with a foot and curve the tail of the
    nine as if it were a six turned round, which few faces do.
    """
    image = draw_digit(face, digit)
    if image is None:
        return {}
    left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    ink = np.asarray(image) > 127
    stroke = max(3, round(2 * ndimage.distance_transform_edt(ink)[ink].mean()))
    variants = {"own": image}

    def bar(picture: Image.Image, row: float, reach: float) -> Image.Image:
        """Add a horizontal stroke centred on the ink of a row."""
        columns = np.flatnonzero(ink[min(int(row), bottom - stroke - 2)])
        centre = columns.mean() if len(columns) else (left + right) / 2
        marked = picture.copy()
        ends = (centre - reach * GLYPH_HEIGHT, row, centre + reach * GLYPH_HEIGHT, row)
        ImageDraw.Draw(marked).line(ends, fill=255, width=stroke)
        return marked

    if digit == 1:
        variants["footed"] = bar(image, bottom - stroke / 2, 0.45)
        variants["plain"] = Image.new("L", image.size, 0)
        ImageDraw.Draw(variants["plain"]).line((FIELD, top, FIELD, bottom), fill=255, width=stroke)
    if digit == 7:
        variants["crossed"] = bar(image, (top + bottom) / 2, 0.5)
    if digit in (6, 9) and (other := draw_digit(face, 15 - digit)) is not None:
        variants["turned"] = other.rotate(180)
    return variants


def build_glyphs(fonts: Sequence[Font], cache: Path) -> Glyphs:
    """Turn every digit of every face into distance fields."""
    bitmaps, digits, variants, families, hands = [], [], [], [], []
    for font in fonts:
        face = load_typeface(font, cache)
        for digit in range(10):
            for variant, image in draw_variants(face, digit).items():
                bitmaps.append(np.asarray(image) > 127)
                digits.append(digit)
                variants.append(variant)
                families.append(font.family)
                hands.append(font.kind == "hand")
    ink = np.stack(bitmaps)
    bones = thin(ink)
    outline = np.empty((len(ink), FIELD, FIELD), np.float16)
    skeleton, pen = np.empty_like(outline), np.empty(len(ink), np.float32)
    for index, (shape, bone) in enumerate(zip(ink, bones, strict=True)):
        inside = ndimage.distance_transform_edt(shape)
        signed = (inside - ndimage.distance_transform_edt(~shape)) / 2
        centre = ndimage.distance_transform_edt(~bone) / 2
        outline[index] = signed.reshape(FIELD, 2, FIELD, 2).mean((1, 3))
        skeleton[index] = centre.reshape(FIELD, 2, FIELD, 2).mean((1, 3))
        pen[index] = inside[bone].mean() / 2 if bone.any() else 1.0
    return Glyphs(
        outline=outline,
        skeleton=skeleton,
        pen=pen,
        digit=np.array(digits),
        variant=np.array(variants),
        family=np.array(families),
        hand=np.array(hands),
    )


def glyph_weights(glyphs: Glyphs) -> np.ndarray:
    """Probability of each glyph within its digit.

    Variants get their shares; within one, glyphs that look alike share their probability, so that
    families with the same digits count once.
    """
    flat = np.exp(-glyphs.skeleton.astype(np.float32).reshape(len(glyphs.digit), -1) / 3)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    weight = np.zeros(len(glyphs.digit))
    for digit in range(10):
        for variant, share in VARIANT_SHARES.get(digit, {"own": 1.0}).items():
            group = np.flatnonzero((glyphs.digit == digit) & (glyphs.variant == variant))
            rarity = 1 / ((flat[group] @ flat[group].T) > 0.93).sum(1)
            weight[group] = share * rarity / rarity.sum()
    return weight


def legible(glyphs: Glyphs, seed: int, folds: int = 3, views: int = 3, threshold: float = 0.5) -> np.ndarray:
    """Tell which glyphs a classifier trained on the other families reads as intended.

    Ornamental faces drop out this way without anyone looking at real handwriting.
    """
    families = np.unique(glyphs.family)
    order = np.random.default_rng(seed).permutation(len(families))
    fold_of = dict(zip(families, order % folds, strict=True))
    fold = np.array([fold_of[name] for name in glyphs.family])
    chosen = np.repeat(np.arange(len(glyphs.digit)), views)
    seen = render_batch(glyphs, chosen, np.random.default_rng(seed))
    x = F.avg_pool2d(to_unit(seen.image), 2)
    y = torch.from_numpy(seen.digit)
    share = np.zeros(len(chosen), np.float32)
    for part in range(folds):
        held = torch.from_numpy(fold[chosen] == part)
        judge = fit_classifier(x[~held], y[~held], seed, epochs=5)
        share[held.numpy()] = judge(x[held]).softmax(1).gather(1, y[held, None])[:, 0].detach().numpy()
    readable: np.ndarray = share.reshape(-1, views).mean(1) >= threshold
    return readable


# ------------------------------------------------------------------------------------- classifiers


def to_unit(images: np.ndarray) -> Tensor:
    """Images of bytes as a (count, 1, side, side) tensor in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32) / 255)[:, None]


def classifier(side: int) -> nn.Sequential:
    """Build the small convolutional network used as filter, probe and judge."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]

    layers = block(1, 32) + block(32, 64) + [nn.MaxPool2d(2)] + block(64, 64) + [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, 10))


def nudge(x: Tensor, share: float) -> Tensor:
    """Move some images by a pixel: each of the four directions is tried with probability ``share``."""
    moved = x.clone()
    for offset in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        chosen = torch.rand(len(x)) < share
        moved[chosen] = torch.roll(moved[chosen], offset, (2, 3))
    return moved


def fit_classifier(x: Tensor, y: Tensor, seed: int, epochs: int = 14, shift: float = 0.0) -> nn.Sequential:
    """Train the classifier with noisy and perhaps shifted inputs, which regularises it across domains."""
    torch.manual_seed(seed)
    model = classifier(x.shape[-1])
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, epochs * math.ceil(len(x) / 64))
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            images = nudge(x[batch], shift)
            loss = F.cross_entropy(model(images + 0.1 * torch.randn_like(images)), y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images read as their label."""
    return float((model(x).argmax(1) == y).float().mean())


# ----------------------------------------------------------------------------------------- rendering


@dataclass
class Renderings(Columns):
    """Rendered digits with the measurements that their prompts are built from."""

    image: np.ndarray
    digit: np.ndarray
    glyph: np.ndarray
    stroke: np.ndarray
    width: np.ndarray
    slant: np.ndarray
    hand: np.ndarray


def warp_grid(count: int, rng: np.random.Generator) -> Tensor:
    """Random smooth maps from output to field coordinates: rotation, shear, perspective, elastic."""
    axis = torch.linspace(-1, 1, FIELD)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = x.expand(count, -1, -1), y.expand(count, -1, -1)

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).view(count, 1, 1)

    angle = column(rng.normal(0, math.radians(6), count))
    shear = column(rng.normal(0.06, 0.2, count))
    tilt_x, tilt_y = (column(rng.normal(0, 0.08, count)) for _ in range(2))
    squeeze = column(rng.normal(0, 0.1, count))
    x = x + shear * y
    x, y = angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y
    # A digit's upper and lower halves differ in size between writers.
    y = y + squeeze * (1 - y.square()).clamp_min(0)
    depth = 1 + tilt_x * x + tilt_y * y
    x, y = x / depth, y / depth
    moved = torch.zeros(count, 2, FIELD, FIELD)
    for knots, strength in ((4, 0.055), (7, 0.016)):
        size = np.abs(rng.normal(0, strength, (count, 1, 1, 1))) + strength / 2
        noise = torch.from_numpy((rng.normal(size=(count, 2, knots, knots)) * size).astype(np.float32))
        moved += F.interpolate(noise, size=(FIELD, FIELD), mode="bicubic", align_corners=True)
    return torch.stack([x + moved[:, 0], y + moved[:, 1]], dim=-1)


def render_batch(glyphs: Glyphs, chosen: np.ndarray, rng: np.random.Generator) -> Renderings:
    """Warp, re-ink and normalise the chosen glyphs the way the UCI digits were normalised."""
    count = len(chosen)
    fields = torch.from_numpy(
        np.stack([glyphs.outline[chosen], glyphs.skeleton[chosen]], axis=1).astype(np.float32)
    )
    warped = F.grid_sample(fields, warp_grid(count, rng), padding_mode="border", align_corners=True)
    # Half the stroke width, in field pixels; modulated along the digit as a hand's pressure is.
    pen = np.clip(rng.lognormal(math.log(4.7), 0.28, count), 1.8, 6.8).astype(np.float32)
    pressure = torch.from_numpy(rng.normal(0, 0.12, (count, 1, 5, 5)).astype(np.float32))
    pressure = F.interpolate(pressure, size=(FIELD, FIELD), mode="bicubic", align_corners=True)[:, 0]
    half = torch.from_numpy(pen)[:, None, None] * (1 + pressure)
    native = torch.from_numpy(glyphs.pen[chosen])[:, None, None]
    contrast = warped[:, 0] + half - native
    monoline = half - warped[:, 1]
    redraw = torch.from_numpy(rng.random(count) < 0.5)[:, None, None]
    ink = (torch.where(redraw, monoline, contrast) + 0.5).clamp(0, 1)
    pixels = (ink * 255).byte().numpy()
    images = np.zeros((count, SIZE, SIZE), np.uint8)
    width, stroke = np.zeros(count, np.float32), np.zeros(count, np.float32)
    for index, picture in enumerate(pixels):
        box = Image.fromarray(picture).point(lambda v: 255 * (v > 64)).getbbox()
        if box is None:
            continue
        natural = SIZE * (box[2] - box[0]) / (box[3] - box[1])
        # Size normalisation stretched the UCI digits to nearly equal widths whatever their proportions.
        spread = rng.normal(0, 0.16)
        columns = round(
            float(np.clip(math.exp(0.3 * math.log(natural) + 0.7 * math.log(18) + spread), 7, 30))
        )
        digit = Image.fromarray(picture).crop(box).resize((columns, SIZE), Image.Resampling.BOX)
        left = (SIZE - columns) // 2 + round(rng.normal(0, 0.8))
        left = min(max(left, 0), SIZE - columns)
        images[index, :, left : left + columns] = np.asarray(digit)
        width[index] = columns
        scale = math.sqrt(columns / (box[2] - box[0]) * SIZE / (box[3] - box[1]))
        stroke[index] = 2 * pen[index] * scale
    return Renderings(
        images, glyphs.digit[chosen], chosen, stroke, width, slants(images), glyphs.hand[chosen]
    )


def slants(images: np.ndarray) -> np.ndarray:
    """Horizontal drift per row upwards, from second moments: positive leans right."""
    ink = images.astype(np.float64) / 255 + 1e-9
    mass = ink.sum((1, 2))
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    row = (ink * rows).sum((1, 2)) / mass
    column = (ink * columns).sum((1, 2)) / mass
    dy, dx = rows - row[:, None, None], columns - column[:, None, None]
    drift: np.ndarray = -(ink * dx * dy).sum((1, 2)) / (ink * dy * dy).sum((1, 2))
    return drift.astype(np.float32)


def render(glyphs: Glyphs, count: int, seed: int) -> Renderings:
    """Render ``count`` digits, balanced over the ten classes."""
    rng = np.random.default_rng(seed)
    digits = rng.permutation(np.arange(count) % 10)
    weight = glyph_weights(glyphs)
    chosen = np.empty(count, np.int64)
    for digit in range(10):
        pool = np.flatnonzero(glyphs.digit == digit)
        share = weight[pool] / weight[pool].sum()
        chosen[digits == digit] = rng.choice(pool, (digits == digit).sum(), p=share)
    parts = [render_batch(glyphs, block, rng) for block in np.array_split(chosen, max(1, count // 500))]
    merged = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    return Renderings(**merged)


# ------------------------------------------------------------------------------------------- prompts

STYLES: dict[str, tuple[str, ...]] = {
    "thin": ("thin", "fine", "light"),
    "bold": ("bold", "thick", "heavy"),
    "narrow": ("narrow", "slim"),
    "wide": ("wide", "broad"),
    "slanted": ("slanted", "tilted", "leaning"),
    "upright": ("upright", "straight"),
}
"""Adjectives of each measured style; the first one is the usual word."""

OPENINGS = (
    "",
    "a",
    "the",
    "a photo of a",
    "a photo of the",
    "a photograph of a",
    "an image of a",
    "an image of the",
    "a picture of a",
    "a picture of the",
    "a scan of a",
    "a drawing of a",
)
NOUNS = ("", "digit", "number")
ENDINGS = ("", "", "", "", "", "written by hand", "on a black background", "in white ink")
STRANGERS = ("close-up", "bright", "dark", "small", "large", "good", "clear", "nice", "old", "blurry", "neat")
"""Words outside the vocabulary; spelled out in letters, they must not change the digit."""

PROMPT_TOKENS = 16
PROMPTS_PER_IMAGE = 8


def find_styles(seen: Renderings) -> list[list[str]]:
    """Name the styles that each rendering shows, judged against its own digit where shapes differ."""
    wide, slant = np.empty_like(seen.width), np.empty_like(seen.slant)
    for digit in range(10):
        own = seen.digit == digit
        wide[own] = seen.width[own] - np.median(seen.width[own])
        slant[own] = seen.slant[own] - np.median(seen.slant[own])
    thin, bold = np.quantile(seen.stroke, [0.25, 0.75])
    narrow, broad = np.quantile(wide, [0.25, 0.75])
    lean = np.quantile(slant, 0.75)
    tests = {
        "thin": seen.stroke < thin,
        "bold": seen.stroke > bold,
        "narrow": wide <= narrow,
        "wide": wide >= broad,
        "slanted": slant > lean,
        "upright": np.abs(slant) < lean / 3,
    }
    return [[name for name, test in tests.items() if test[index]] for index in range(len(wide))]


def write_prompt(word: str, styles: Sequence[str], hand: bool, rng: np.random.Generator) -> str:
    """Describe a digit in a random frame with a random part of its styles."""
    named = [style for style in styles if rng.random() < 0.6]
    rng.shuffle(named)
    usual = rng.random() < 0.6
    adjectives = [STYLES[style][0 if usual else rng.integers(len(STYLES[style]))] for style in named]
    if rng.random() < 0.5:
        adjectives.append("handwritten" if hand else "printed")
    noun = NOUNS[rng.choice(3, p=[0.6, 0.25, 0.15])]
    ending = ENDINGS[rng.integers(len(ENDINGS))]
    if not hand and "hand" in ending:
        ending = ""
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    words = " ".join(part for part in (opening, *adjectives, noun, word, ending) if part).split()
    stranger = STRANGERS[rng.integers(len(STRANGERS))]
    if rng.random() < 0.3:
        stranger = "".join(rng.choice(list(string.ascii_lowercase), rng.integers(2, 9)))
    # The label must stay within the tokens that the encoder reads.
    if rng.random() < 0.2 and len(words) + len(stranger) <= PROMPT_TOKENS - 2:
        words.insert(int(rng.integers(words.index(word) + 1)), stranger)
    return " ".join(words)


def vocabulary() -> list[str]:
    """All words that the prompts use."""
    phrases = [*OPENINGS, *NOUNS, *ENDINGS, *WORDS, "handwritten", "printed"]
    phrases += [word for words in STYLES.values() for word in words]
    return sorted({word for phrase in phrases for word in phrase.split()})


def build_tokenizer(folder: Path) -> Any:
    """Make a CLIP tokenizer with one token for each word and a fallback to bytes for all others."""
    from transformers import CLIPTokenizer

    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(256 + index) for index in range(len(hidden))]
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in vocabulary():
        parts = [*word[:-1], word[-1] + "</w>"]
        # Earlier merges apply first; what they leave is joined by new, later ones.
        for left, right in merges:
            index = 0
            while index < len(parts) - 1:
                if (parts[index], parts[index + 1]) == (left, right):
                    parts[index : index + 2] = [left + right]
                index += 1
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            if parts[0] not in tokens:
                tokens.append(parts[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    numbered = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=PROMPT_TOKENS)
    for word in vocabulary():
        if len(tokenizer(word).input_ids) != 3:
            raise AssertionError(f"{word!r} is not one token: {tokenizer.tokenize(word)}")
    return tokenizer


def tokenise(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Token ids of prompts, padded as the pipeline pads them."""
    batch = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = batch.input_ids
    return ids


# ------------------------------------------------------------------------------------------ training

LATENT_CHANNELS = 8


def build_vae() -> Any:
    """Build an autoencoder from 3x32x32 pixels to 8x4x4 latents, which keep the U-Net cheap on a CPU."""
    from diffusers import AutoencoderKL

    channels = (16, 32, 48, 64)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def build_text_encoder(tokenizer: Any) -> Any:
    """Build a two-layer CLIP text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_TOKENS,
            projection_dim=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> Any:
    """Build a single-level U-Net with cross-attention over the 4x4 latents."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(96,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def noise_schedule() -> Any:
    """Stable Diffusion's noise schedule, with the network predicting the velocity."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
    )


def learning_rate(step: int, total: int, peak: float, decay: float = 0.35) -> float:
    """Warm up, hold, and anneal to zero over the last part, so a held phase can be prolonged."""
    if step < 100:
        return peak * (step + 1) / 100
    left = (total - step) / (decay * total)
    return peak * min(1.0, 0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


@dataclass
class Training:
    """What a checkpoint holds: modules, their averaged weights, the optimiser and the step."""

    modules: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    average: list[Tensor]
    step: int = 0

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "modules": self.modules.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint if there is one."""
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.modules.load_state_dict(state["modules"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average, self.step = state["average"], state["step"]

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights in place of the current ones."""
        for parameter, mean in zip(self.modules.parameters(), self.average, strict=True):
            parameter.copy_(mean)


def start_training(modules: nn.ModuleDict, checkpoint: Path, weight_decay: float) -> Training:
    """Make a training state, from the checkpoint where there is one."""
    optimiser = torch.optim.AdamW(modules.parameters(), weight_decay=weight_decay, betas=(0.9, 0.99))
    average = [parameter.detach().clone() for parameter in modules.parameters()]
    training = Training(modules, optimiser, average)
    training.restore(checkpoint)
    return training


def run_training(
    training: Training,
    loss_at: Callable[[torch.Generator], Tensor],
    total: int,
    peak: float,
    seed: int,
    checkpoint: Path,
    name: str,
) -> None:
    """Optimise until ``total`` steps are done; every step draws its randomness from its own number."""
    begun, first, running = time.monotonic(), training.step, 0.0
    parameters = list(training.modules.parameters())
    while training.step < total:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + training.step)
        for group in training.optimiser.param_groups:
            group["lr"] = learning_rate(training.step, total, peak)
        loss = loss_at(generator)
        training.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        training.optimiser.step()
        decay = min(0.998, (1 + training.step) / (10 + training.step))
        torch._foreach_lerp_(training.average, [p.detach() for p in parameters], 1 - decay)
        training.step += 1
        running = loss.item() if training.step == first + 1 else 0.98 * running + 0.02 * loss.item()
        if training.step % 100 == 0 or training.step == total:
            seconds = time.monotonic() - begun
            log(f"{name} {training.step}/{total} loss {running:.4f}, {seconds:.0f} s")
        if training.step % 200 == 0 or training.step == total:
            training.save(checkpoint)


def train_vae(work: Path, steps: int, seed: int) -> None:
    """Train the autoencoder on the renderings and store their latents."""
    images = to_unit(Renderings.load(work / "renderings.npz").image) * 2 - 1
    torch.manual_seed(seed)
    vae = build_vae()
    training = start_training(nn.ModuleDict({"vae": vae}), work / "vae.pt", 1e-3)

    def loss_at(generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(images), (64,), generator=generator)
        x = images[batch].expand(-1, 3, -1, -1)
        posterior = vae.encode(x).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        loss: Tensor = F.mse_loss(decoded, x) + 2e-5 * posterior.kl().mean()
        return loss

    run_training(training, loss_at, steps, 3e-3, seed, work / "vae.pt", "vae")
    training.use_average()
    vae.eval()
    with torch.no_grad():
        parts = [vae.encode(part.expand(-1, 3, -1, -1)).latent_dist.mean for part in images.split(500)]
        latents = torch.cat(parts)
        error = F.mse_loss(vae.decode(latents[:500]).sample, images[:500].expand(-1, 3, -1, -1)).item()
    factor = 1 / latents.std().item()
    log(f"vae reconstruction error {error:.4f}, scaling factor {factor:.3f}")
    with replacing(work / "latents.pt") as temporary:
        torch.save({"latents": latents * factor, "factor": factor}, temporary)


def train_unet(work: Path, steps: int, seed: int) -> None:
    """Train the text encoder and the U-Net; one prompt in ten is empty, for classifier-free guidance."""
    latents = torch.load(work / "latents.pt", weights_only=True)["latents"]
    seen = Renderings.load(work / "renderings.npz")
    tokenizer = build_tokenizer(work / "tokenizer")
    rng = np.random.default_rng(seed)
    prompts = [
        write_prompt(WORDS[digit], styles, bool(hand), rng)
        for digit, styles, hand in zip(seen.digit, find_styles(seen), seen.hand, strict=True)
        for _ in range(PROMPTS_PER_IMAGE)
    ]
    log("prompts such as " + "; ".join(map(repr, prompts[:80:PROMPTS_PER_IMAGE])))
    ids = tokenise(tokenizer, prompts).view(len(latents), PROMPTS_PER_IMAGE, PROMPT_TOKENS)
    empty = tokenise(tokenizer, [""])[0]
    torch.manual_seed(seed)
    encoder, unet, schedule = build_text_encoder(tokenizer), build_unet(), noise_schedule()
    modules = nn.ModuleDict({"text_encoder": encoder, "unet": unet})
    training = start_training(modules, work / "unet.pt", 1e-2)
    size = 128

    def loss_at(generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(latents), (size,), generator=generator)
        frame = torch.randint(PROMPTS_PER_IMAGE, (size,), generator=generator)
        tokens = ids[batch, frame]
        tokens[torch.rand(size, generator=generator) < 0.1] = empty
        clean = latents[batch]
        noise = torch.randn(clean.shape, generator=generator)
        moment = torch.randint(1000, (size,), generator=generator)
        noisy = schedule.add_noise(clean, noise, moment)
        velocity = unet(noisy, moment, encoder(tokens)[0]).sample
        return F.mse_loss(velocity, schedule.get_velocity(clean, noise, moment))

    run_training(training, loss_at, steps, 2e-3, seed, work / "unet.pt", "unet")


# -------------------------------------------------------------------------------------------- export


def export(work: Path, folder: Path) -> None:
    """Write the pipeline in half precision; whatever else lies in ``folder`` (its README) stays."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    tokenizer = build_tokenizer(work / "tokenizer")
    vae, encoder, unet = build_vae(), build_text_encoder(tokenizer), build_unet()
    start_training(nn.ModuleDict({"vae": vae}), work / "vae.pt", 0).use_average()
    modules = nn.ModuleDict({"text_encoder": encoder, "unet": unet})
    training = start_training(modules, work / "unet.pt", 0)
    training.use_average()
    factor = torch.load(work / "latents.pt", weights_only=True)["factor"]
    vae.register_to_config(scaling_factor=factor)
    scheduler = DPMSolverMultistepScheduler.from_config(noise_schedule().config)
    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    for module in (vae, encoder, unet):
        for parameter in module.parameters():
            parameter.data = parameter.data.half()
    pipeline.save_pretrained(staging)
    make_portable(staging)
    folder.mkdir(parents=True, exist_ok=True)
    for part in staging.iterdir():
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    staging.rmdir()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    log(f"{folder}: {size / 1e6:.2f} MB after {training.step} steps")


def make_portable(folder: Path) -> None:
    """Let older and newer transformers load the text encoder and the tokenizer alike."""
    from safetensors.torch import load_file, save_file

    # Stable Diffusion's own names, which every version of transformers accepts.
    weights = folder / "text_encoder" / "model.safetensors"
    prefix = "text_model."
    named = {prefix + name.removeprefix(prefix): value for name, value in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
    # transformers loads a model in the type that its configuration names, diffusers in float32.
    config = folder / "text_encoder" / "config.json"
    settings = {**json.loads(config.read_text()), "dtype": "float32", "torch_dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2) + "\n")
    # How this run loaded its tokenizer concerns nobody else.
    options = folder / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(options.read_text())
    for name in ("is_local", "local_files_only"):
        settings.pop(name, None)
    options.write_text(json.dumps(settings, indent=2) + "\n")
    # Before version 5, transformers read a vocabulary and its merges instead of one file.
    fast = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(fast["vocab"], ensure_ascii=False))
    lines = [" ".join(merge) if isinstance(merge, list) else merge for merge in fast["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


# ---------------------------------------------------------------------------------------- evaluation

SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
MODIFIERS = (
    "",
    "thin ",
    "bold ",
    "slanted ",
    "upright ",
    "wide ",
    "narrow ",
    "thin slanted ",
    "bold narrow ",
    "bold slanted ",
    "thin wide ",
)
FRAMES = (
    "a {}handwritten {}",
    "a photo of a {}{}",
    "an image of a {}handwritten {}",
    "a scan of a {}digit {}",
    "a {}{}",
)


def load_pipeline(folder: Path) -> Any:
    """Load the exported folder as any user would."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, prompts: Sequence[str], scale: float, seeds: Sequence[int], steps: int) -> np.ndarray:
    """Generate one image for each prompt and seed, as bytes."""
    images = pipeline(
        list(prompts),
        height=SIZE,
        width=SIZE,
        num_inference_steps=steps,
        guidance_scale=scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    grey: np.ndarray = (images.mean(-1) * 255).round().astype(np.uint8)
    return grey


def reduce8(images: np.ndarray) -> Tensor:
    """32x32 bytes to the 8x8 block means of the UCI digits."""
    return F.avg_pool2d(to_unit(images), 4)


def real_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the real digits: 1,437 for decisions and the judge, 360 for the final figures."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train, test = train_test_split(
        range(len(data.target)), test_size=360, stratify=data.target, random_state=0
    )
    x = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(data.target)
    return x[train], y[train], x[test], y[test]


def draw_dataset(
    pipeline: Any, count: int, steps: int, seed: int, scales: Sequence[float] = SCALES, block: int = 50
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate a labelled set in blocks of one guidance scale each, with varied prompts."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10)
    images, used = [], []
    for start in range(0, count, block):
        prompts = [
            FRAMES[rng.integers(len(FRAMES))].format(MODIFIERS[rng.integers(len(MODIFIERS))], WORDS[label])
            for label in labels[start : start + block]
        ]
        scale = scales[int(rng.integers(len(scales)))]
        seeds = [seed * 1_000_000 + index for index in range(start, start + len(prompts))]
        images.append(draw(pipeline, prompts, scale, seeds, steps))
        used += [scale] * len(prompts)
    return np.concatenate(images), labels, np.array(used)


def guidance_fidelity(
    pipeline: Any, judge: nn.Module, steps: int, each: int, seed: int
) -> dict[str, dict[str, float]]:
    """How often a judge trained on real digits reads the label, and how varied the images are."""
    table = {}
    labels = np.arange(each * 10) % 10
    seeds = [seed * 1_000_000 + 500_000 + index for index in range(len(labels))]
    prompts = [f"a handwritten {WORDS[label]}" for label in labels]
    for scale in SCALES:
        blocks = [
            draw(pipeline, prompts[at : at + 100], scale, seeds[at : at + 100], steps)
            for at in range(0, len(labels), 100)
        ]
        x = reduce8(np.concatenate(blocks))
        spread = np.mean([x[labels == digit].std(0).mean().item() for digit in range(10)])
        table[f"{scale:g}"] = {
            "fidelity": accuracy(judge, x, torch.from_numpy(labels)),
            "spread": float(spread),
        }
    return table


def style_control(
    pipeline: Any, steps: int, scale: float, each: int, seed: int
) -> dict[str, dict[str, float]]:
    """Mean ink, width and slant of the same seeds under different adjectives."""
    table = {}
    labels = np.arange(each * 10) % 10
    seeds = [seed * 1_000_000 + 700_000 + index for index in range(len(labels))]
    for style in ("", *STYLES):
        prompts = [" ".join(f"a {style} handwritten {WORDS[label]}".split()) for label in labels]
        images = np.concatenate(
            [
                draw(pipeline, prompts[at : at + 100], scale, seeds[at : at + 100], steps)
                for at in range(0, len(labels), 100)
            ]
        )
        columns: np.ndarray = (images > 64).max(axis=1)
        width = SIZE - columns.argmax(1) - columns[:, ::-1].argmax(1)
        table[style or "(none)"] = {
            "ink": float(images.mean() / 255),
            "width": float(width.mean()),
            "slant": float(slants(images).mean()),
        }
    return table


def stranger_fidelity(
    pipeline: Any, judge: nn.Module, steps: int, scale: float, each: int, seed: int
) -> dict[str, float]:
    """How often the label survives a word of another domain, met in training only as spelled letters."""
    table = {}
    labels = np.arange(each * 10) % 10
    seeds = [seed * 1_000_000 + 800_000 + index for index in range(len(labels))]
    for stranger in ("", "close-up", "bright", "dark", "small", "large", "good", "crooked", "elegant"):
        place = "{} photo of a" if stranger == "close-up" else "photo of a {}"
        frame = " ".join(f"a {place.format(stranger)}".split())
        images = draw(pipeline, [f"{frame} {WORDS[label]}" for label in labels], scale, seeds, steps)
        table[stranger or "(none)"] = accuracy(judge, reduce8(images), torch.from_numpy(labels))
    return table


def draw_guidance_picture(pipeline: Any, steps: int, path: Path, seed: int = 1) -> None:
    """Rows are guidance scales, columns prompts; a column keeps its seed."""
    scales = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
    words = [*WORDS, "seven", "two", "four", "eight", "five", "nine"]
    styles = [""] * 10 + ["thin slanted ", "bold ", "thin ", "narrow ", "bold slanted ", "wide "]
    prompts = [f"a {style}handwritten {word}" for style, word in zip(styles, words, strict=True)]
    zoom, margin, header = 2, 34, 26
    cell = SIZE * zoom + 4
    sheet = Image.new("L", (margin + cell * len(prompts), header + cell * len(scales)), 255)
    pen = ImageDraw.Draw(sheet)
    for column, (style, word) in enumerate(zip(styles, words, strict=True)):
        for row, text in enumerate((style.strip(), word)):
            pen.text((margin + cell * (column + 0.5), 6 + 12 * row), text, fill=0, anchor="mm", font_size=10)
    for row, scale in enumerate(scales):
        seeds = [seed * 1_000 + column for column in range(len(prompts))]
        pen.text((margin / 2, header + cell * (row + 0.5)), f"{scale:g}", fill=0, anchor="mm", font_size=12)
        for column, picture in enumerate(draw(pipeline, prompts, scale, seeds, steps)):
            tile = Image.fromarray(picture).resize((SIZE * zoom,) * 2, Image.Resampling.NEAREST)
            sheet.paste(tile, (margin + cell * column + 2, header + cell * row + 2))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def evaluate(work: Path, folder: Path, picture: Path, steps: int, final: bool) -> None:
    """Measure the exported model; the 360 test digits are read only with ``final``."""
    train_x, train_y, test_x, test_y = real_digits()
    real = {"1437 for decisions": (train_x, train_y)}
    if final:
        real["360 for the final figures"] = (test_x, test_y)
    report: dict[str, Any] = {"steps": steps}
    pipeline = load_pipeline(folder)
    draw(pipeline, ["warm up"], 2.0, [0], 2)
    begun = time.monotonic()
    images, labels, scales = draw_dataset(pipeline, 2000, steps, seed=1)
    report["seconds for 2000 images"] = round(time.monotonic() - begun, 1)
    report["ink of the 2000"] = float(images.mean() / 255)
    generated = reduce8(images), torch.from_numpy(labels)
    seen = Renderings.load(work / "renderings.npz")
    rendered = reduce8(seen.image[:2000]), torch.from_numpy(seen.digit[:2000])
    for name, (x, y) in {"generated": generated, "renderings": rendered}.items():
        for shift, how in ((0.0, ""), (0.15, " with shifts")):
            models = [fit_classifier(x, y, seed, epochs=20, shift=shift) for seed in range(3)]
            for part, (real_x, real_y) in real.items():
                reached = [round(accuracy(model, real_x, real_y), 4) for model in models]
                title = f"trained on 2000 {name}{how}, read {part}"
                report[title] = {"seeds": reached, "mean": round(float(np.mean(reached)), 4)}
                log(f"{title}: {reached}")
    with replacing(work / "generated.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, images=images, labels=labels, scales=scales)
    judge = fit_classifier(train_x, train_y, seed=0, epochs=20)
    report["judge on its test digits"] = accuracy(judge, test_x, test_y)
    report["fidelity of the 2000 generated"] = accuracy(judge, *generated)
    report["fidelity of the 2000 renderings"] = accuracy(judge, *rendered)
    report["guidance"] = guidance_fidelity(pipeline, judge, steps, each=20, seed=2)
    report["styles at scale 3"] = style_control(pipeline, steps, 3.0, each=10, seed=3)
    report["fidelity with strange words at scale 3"] = stranger_fidelity(pipeline, judge, steps, 3.0, 10, 4)
    with replacing(work / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    draw_guidance_picture(pipeline, steps, picture)


# ------------------------------------------------------------------------------------------- command


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Define the command line."""
    parser = argparse.ArgumentParser(
        description="Train the miniature Stable Diffusion on digits rendered from open fonts."
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "miniature", help="checkpoints and caches"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "src/genfl/generators/miniature")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/miniature_guidance.png")
    parser.add_argument("--fonts", type=Path, default=Path(__file__).with_name("miniature_fonts.yaml"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--renderings", type=int, default=40_000)
    parser.add_argument("--vae-steps", type=int, default=600)
    parser.add_argument("--unet-steps", type=int, default=3000)
    parser.add_argument("--inference-steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--final", action="store_true", help="evaluate on the 360 test digits")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen stages in order; finished ones are recognised by what they left in the work folder."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    fonts = read_fonts(options.fonts)
    if "fonts" in options.stages:
        fetch_fonts(fonts, work / "fonts")
    if "render" in options.stages and not (work / "renderings.npz").exists():
        glyphs = build_glyphs(fonts, work / "fonts")
        keep = legible(glyphs, options.seed)
        log(f"{keep.sum()} of {len(keep)} glyphs are legible")
        render(glyphs.select(keep), options.renderings, options.seed).save(work / "renderings.npz")
        log(f"{options.renderings} digits rendered")
    if "vae" in options.stages and not (work / "latents.pt").exists():
        train_vae(work, options.vae_steps, options.seed)
    if "unet" in options.stages:
        train_unet(work, options.unet_steps, options.seed)
    if "export" in options.stages:
        export(work, options.output)
    if "evaluate" in options.stages:
        evaluate(work, options.output, options.picture, options.inference_steps, options.final)


if __name__ == "__main__":
    main()
