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
import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor, nn

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path`` and rename it to ``path`` on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
            subprocess.run(["npm", "pack", "--silent", package], cwd=staging, check=True, stdout=subprocess.DEVNULL)
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

    packed = _member(
        cache / font.archive, f"package/files/{font.family}-latin-{font.weight}-normal.woff"
    )
    face = TTFont(io.BytesIO(packed))
    face.flavor = None
    plain = io.BytesIO()
    face.save(plain)
    return plain.getvalue()


# -------------------------------------------------------------------------------------------- glyphs


@dataclass
class Glyphs:
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

    def save(self, path: Path) -> None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Glyphs:
        with np.load(path) as data:
            return cls(**{name: data[name] for name in data.files})

    def select(self, keep: np.ndarray) -> Glyphs:
        return Glyphs(**{name: value[keep] for name, value in vars(self).items()})


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
            turns = np.sum([~a & b for a, b in zip(ring, ring[1:] + ring[:1])], axis=0, dtype=np.int8)
            first, second = (~(n & e & w), ~(n & s & w)) if odd else (~(n & e & s), ~(e & s & w))
            image &= ~(image & (count >= 2) & (count <= 6) & (turns == 1) & first & second)
        if image.sum() == before:
            return image


VARIANT_SHARES = {
    1: {"own": 0.4, "plain": 0.4, "footed": 0.2},
    6: {"own": 0.65, "turned": 0.35},
    7: {"own": 0.45, "crossed": 0.55},
    9: {"own": 0.3, "turned": 0.7},
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
    for index, (shape, bone) in enumerate(zip(ink, bones)):
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
    fold_of = dict(zip(families, np.random.default_rng(seed).permutation(len(families)) % folds))
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
    return share.reshape(-1, views).mean(1) >= threshold


# ------------------------------------------------------------------------------------- classifiers


def to_unit(images: np.ndarray) -> Tensor:
    """Images of bytes as a (count, 1, side, side) tensor in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32) / 255)[:, None]


def classifier(side: int) -> nn.Sequential:
    """The small convolutional network used as filter, probe and judge."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]

    layers = block(1, 32) + block(32, 64) + [nn.MaxPool2d(2)] + block(64, 64) + [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, 10))


def fit_classifier(x: Tensor, y: Tensor, seed: int, epochs: int = 14) -> nn.Sequential:
    """Train the classifier with noisy inputs, which regularises it across domains."""
    torch.manual_seed(seed)
    model = classifier(x.shape[-1])
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, epochs * math.ceil(len(x) / 64))
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(model(x[batch] + 0.1 * torch.randn_like(x[batch])), y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images read as their label."""
    return (model(x).argmax(1) == y).float().mean().item()


# ----------------------------------------------------------------------------------------- rendering


@dataclass
class Renderings:
    """Rendered digits with the measurements that their prompts are built from."""

    image: np.ndarray
    digit: np.ndarray
    glyph: np.ndarray
    stroke: np.ndarray
    width: np.ndarray
    slant: np.ndarray
    hand: np.ndarray

    def save(self, path: Path) -> None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Renderings:
        with np.load(path) as data:
            return cls(**{name: data[name] for name in data.files})


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
    x, y = x + shear * y, y
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
    pen = np.clip(rng.lognormal(math.log(5.0), 0.28, count), 1.8, 7.5).astype(np.float32)
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
        # The real digits are nearly equally wide whatever their own proportions.
        spread = rng.normal(0, 0.16)
        columns = round(float(np.clip(math.exp(0.3 * math.log(natural) + 0.7 * math.log(18) + spread), 7, 30)))
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
    return (-(ink * dx * dy).sum((1, 2)) / (ink * dy * dy).sum((1, 2))).astype(np.float32)


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
