"""Every change against a loop over samples, and against what it should look like over many of them."""

import numpy as np
import pytest
import torch

from genfl.learning.augment import OPTIONS, Augment
from genfl.rng import Key


def rng(seed=0):
    return Key(seed).torch()


def pictures(n=40, channels=3, height=9, width=7):
    return 1 + torch.rand(n, channels, height, width, generator=rng(9))  # no zeros of their own


def spectrograms(n=40, time=20, mels=13):
    return 1 + torch.rand(n, time, mels, generator=rng(9))


# --- against a plain loop over the samples


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("crop", [1, 4, 6])
def test_a_crop_is_a_window_of_the_padded_image(crop, padding):
    x = pictures()
    found = Augment(crop=crop, padding=padding)(x, rng())
    generator = rng()
    down, right = (torch.randint(2 * crop + 1, (len(x),), generator=generator) for _ in "dr")
    mode = {"zeros": "constant", "reflect": "reflect"}[padding]
    for image, made, top, left in zip(x.numpy(), found.numpy(), down, right, strict=True):
        padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)), mode)
        assert np.array_equal(made, padded[:, top : top + 9, left : left + 7])


def test_half_the_images_are_mirrored_and_the_others_stay():
    x = pictures(n=2000, channels=1, height=2, width=3)
    found = Augment(flip=True)(x, rng())
    chosen = torch.rand(2000, generator=rng()) < 0.5
    for image, made, flipped in zip(x, found, chosen, strict=True):
        expected = torch.stack([row.flip(0) for row in image[0]])[None] if flipped else image
        assert torch.equal(made, expected)
    assert abs(int(chosen.sum()) - 1000) < 4 * np.sqrt(500)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_hides_a_square_whose_centre_is_anywhere(side):
    x = pictures(n=3000)
    found = Augment(cutout=side)(x, rng())
    generator = rng()
    rows, columns = (torch.randint(size, (3000,), generator=generator) for size in (9, 7))
    for image, made, row, column in zip(x, found, rows.tolist(), columns.tolist(), strict=True):
        expected = image.clone()
        top, left = row - side // 2, column - side // 2
        expected[:, max(0, top) : top + side, max(0, left) : left + side] = 0
        assert torch.equal(made, expected)
    assert {(row, column) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)} == {
        (row, column) for row in range(9) for column in range(7)
    }


def test_time_shifts_move_frames_and_zeros_in():
    x = spectrograms(n=400)
    found = Augment(time_shift=6)(x, rng())
    moves = torch.randint(13, (len(x),), generator=rng()) - 6
    for sound, made, move in zip(x, found, moves.tolist(), strict=True):
        expected = torch.zeros_like(sound)
        for frame in range(20):
            if 0 <= frame + move < 20:
                expected[frame] = sound[frame + move]
        assert torch.equal(made, expected)
    assert set(moves.tolist()) == set(range(-6, 7))


@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize(("time", "mels"), [(8, 0), (0, 5), (8, 5)])
def test_masks_hide_whole_frames_and_whole_bands(time, mels, masks):
    x = spectrograms()
    found = Augment(time_mask=time, frequency_mask=mels, masks=masks)(x, rng())
    generator = rng()
    expected = x.clone()
    for widest, size, hide in (
        (time, 20, lambda sample, places: expected[sample].__setitem__(places, 0)),
        (mels, 13, lambda sample, places: expected[sample].__setitem__((slice(None), places), 0)),
    ):
        for _ in range(masks if widest else 0):
            widths = torch.randint(widest + 1, (len(x),), generator=generator).tolist()
            where = torch.rand(len(x), generator=generator).tolist()
            for sample, (wide, at) in enumerate(zip(widths, where, strict=True)):
                first = int(at * (size - wide + 1))
                hide(sample, slice(first, first + wide))
    assert torch.equal(found, expected)


def test_noise_is_normal_and_of_the_given_deviation():
    x = pictures(n=500)
    noise = (Augment(noise=0.1)(x, rng()) - x) / 0.1
    assert noise.mean().abs() < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise.abs() < 1).float().mean() - 0.6827) < 0.01


# --- over many samples


def test_widths_and_places_of_masks_are_uniform():
    hidden = Augment(time_mask=4)(torch.ones(50_000, 10, 3), rng())[:, :, 0] == 0
    widths = hidden.sum(1)
    shares = widths.bincount(minlength=5) / 50_000
    assert (shares - 0.2).abs().max() < 0.01
    firsts = hidden[widths == 4].int().argmax(1).bincount(minlength=7)
    assert len(firsts) == 7, "the last place a mask of 4 fits in 10 is the seventh"
    assert (firsts / firsts.sum() - 1 / 7).abs().max() < 0.015


def test_all_moves_are_equally_likely_and_alike_for_all_channels():
    x = torch.zeros(20_000, 2, 5, 5)
    x[:, :, 2, 2] = 1
    found = Augment(crop=2)(x, rng())
    assert torch.equal(found[:, 0], found[:, 1])
    shares = found[:, 0].mean(0)
    assert (shares - 1 / 25).abs().max() < 0.006


# --- what holds of all of them

IMAGE = Augment(crop=2, padding="reflect", flip=True, cutout=3, noise=0.1)
SOUND = Augment(time_shift=3, time_mask=5, frequency_mask=4, masks=2, noise=0.1)


@pytest.mark.parametrize(
    ("augment", "x"), [(IMAGE, pictures()), (SOUND, spectrograms())], ids=["image", "audio"]
)
def test_the_key_alone_decides(augment, x):
    before, state = x.clone(), torch.get_rng_state()
    one = augment(x, Key(3).fold("a").torch())
    assert torch.equal(one, augment(x, Key(3).fold("a").torch()))
    assert not torch.equal(one, augment(x, Key(3).fold("b").torch()))
    assert torch.equal(x, before), "the inputs stay as they are"
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not used"
    assert (one.shape, one.dtype) == (x.shape, x.dtype)
    assert one.is_contiguous()


def test_samples_are_changed_independently():
    same = pictures(n=1).expand(50, -1, -1, -1)
    assert len({made.numpy().tobytes() for made in IMAGE(same, rng())}) == 50


def test_without_options_nothing_is_done_and_nothing_drawn():
    x, generator = pictures(), rng()
    assert Augment()(x, generator) is x
    assert torch.equal(generator.get_state(), rng().get_state())


def test_double_precision_stays(float64):
    for augment, x in ((IMAGE, pictures()), (SOUND, spectrograms())):
        assert augment(x, rng()).dtype == torch.float64


# --- what does not fit

SHAPES = {"image": (3, 9, 7), "audio": (20, 13), "text": (64,)}
GIVEN = {
    "crop": 2,
    "padding": "reflect",
    "flip": True,
    "cutout": 2,
    "time_shift": 2,
    "time_mask": 2,
    "frequency_mask": 2,
    "masks": 2,
    "noise": 0.1,
}


@pytest.mark.parametrize("modality", list(SHAPES))
@pytest.mark.parametrize("option", list(GIVEN))
def test_an_option_for_something_else_is_refused_by_name(modality, option):
    problem = Augment(**{option: GIVEN[option]}).problem(modality, SHAPES[modality])
    if option in OPTIONS[modality]:
        assert problem is None
    else:
        assert problem.startswith(f"{option}: not available for {modality}; ")
        assert all(known in problem for known in OPTIONS[modality])


def test_without_options_everything_fits():
    assert [Augment().problem(modality, shape) for modality, shape in SHAPES.items()] == [None] * 3


@pytest.mark.parametrize(
    ("modality", "option", "most"),
    [
        ("image", "crop", 6),
        ("image", "cutout", 6),
        ("audio", "time_shift", 19),
        ("audio", "time_mask", 19),
        ("audio", "frequency_mask", 12),
    ],
)
def test_changes_that_leave_nothing_are_refused(modality, option, most):
    shape = SHAPES[modality]
    x = torch.rand(5, *shape)
    good = Augment(**{option: most, **({"padding": "reflect"} if option == "crop" else {})})
    assert good.problem(modality, shape) is None
    assert good(x, rng()).shape == x.shape
    problem = Augment(**{option: most + 1}).problem(modality, shape)
    assert problem == f"{option}: {most + 1} of {most + 1} leaves nothing to learn from; lower it"
