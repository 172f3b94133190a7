"""PSNR, SSIM and the assignment of reconstructions to true images, against hand values and plain loops."""

import math

import numpy as np
import pytest
import torch

from genfl.privacy.attacks.resemblance import matched, psnr, ssim, unit_range
from genfl.rng import Key


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=Key(seed).torch(), dtype=torch.float64)


def plain_ssim(a, b):
    """Equation 13 of Wang et al., window by window, for the windows inside the image."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for image, truth in zip(a.numpy(), b.numpy(), strict=True):
        for i in range(image.shape[0] - 10):
            for j in range(image.shape[1] - 10):
                x, y = image[i : i + 11, j : j + 11], truth[i : i + 11, j : j + 11]
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
                both = (window * (x - mean_x) * (y - mean_y)).sum()
                values.append(
                    (2 * mean_x * mean_y + 1e-4)
                    * (2 * both + 9e-4)
                    / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4))
                )
    return np.mean(values)


@pytest.mark.parametrize("shape", [(1, 11, 11), (1, 16, 20), (3, 14, 12)])
def test_ssim_is_that_of_the_paper(shape):
    a, b = noise(*shape), noise(*shape, seed=1)
    assert math.isclose(ssim(a, b), plain_ssim(a, b), rel_tol=1e-9)
    near = 0.8 * a + 0.2 * b
    assert math.isclose(ssim(near, a), plain_ssim(near, a), rel_tol=1e-9)


@pytest.mark.parametrize("size", [8, 32])
def test_ssim_of_known_images(size):
    a = noise(1, size, size)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    grey, black = torch.full((1, size, size), 0.5), torch.zeros(1, size, size)
    assert ssim(grey, black) == pytest.approx(1e-4 / (0.25 + 1e-4))  # luminance alone
    assert ssim(grey, grey / 2) == pytest.approx((2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4))
    assert ssim(1 - a, a) < 0  # the structure is inverted
    assert ssim(a, 1 - a) == pytest.approx(ssim(1 - a, a))


def test_ssim_falls_with_noise():
    a = noise(1, 8, 8)
    values = [ssim((a + level * (noise(1, 8, 8, seed=1) - 0.5)).clamp(0, 1), a) for level in (0, 0.1, 0.3, 1)]
    assert values == sorted(values, reverse=True)


def test_psnr_of_known_errors():
    a = torch.zeros(3, 4, 4)
    assert psnr(a + 0.1, a) == pytest.approx(20, abs=1e-5)
    assert psnr(a + 1, a) == pytest.approx(0)
    assert psnr(a, a) == math.inf
    one = a.clone()
    one[0, 0, 0] = 1
    assert psnr(one, a) == pytest.approx(10 * math.log10(48))


def test_matched_undoes_a_permutation():
    truth = noise(6, 1, 8, 8)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    images = truth[order] + 0.05 * noise(6, 1, 8, 8, seed=1)
    assert torch.equal(matched(images, truth)[order], images)
    assert torch.equal(matched(images, truth[:2]), images[[1, 3]])


def test_matched_is_best_in_sum_not_one_by_one():
    truth = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    images = torch.tensor([0.9, 3.0]).view(2, 1, 1, 1)  # 0.9 is nearest to both
    assert matched(images, truth).flatten().tolist() == pytest.approx([0.9, 3.0])


def test_unit_range_inverts_a_normalisation():
    pixels = noise(2, 3, 4, 4)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.1])
    low, high = (0 - mean) / std, (1 - mean) / std
    inputs = (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    box = (tuple(low.tolist()), tuple(high.tolist()))
    assert torch.allclose(unit_range(inputs, box), pixels, atol=1e-6)
    assert torch.equal(unit_range(torch.tensor([-1.0, 0.5, 2.0]), None), torch.tensor([0.0, 0.5, 1.0]))
