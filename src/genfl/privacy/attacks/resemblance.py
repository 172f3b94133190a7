"""How much reconstructed images resemble the true ones: PSNR, SSIM, and which belongs to which.

Images are tensors [n, channels, height, width] with values in [0, 1]. `unit_range` makes them of a model's
inputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genfl.learning.inspect import InputRange

WINDOW_RADIUS, WINDOW_SIGMA = 5, 1.5
"""SSIM's window: a Gaussian of 11×11 pixels, and its standard deviation in pixels."""


def unit_range(x: Tensor, input_range: InputRange | None) -> Tensor:
    """Return inputs [n, channels, ...] scaled and clipped to [0, 1].

    Args:
        x: The inputs of a model.
        input_range: Their smallest and largest values for each channel; None if they are in [0, 1] already.
    """
    if input_range is not None:
        low, high = (torch.tensor(end).to(x).view(-1, *[1] * (x.dim() - 2)) for end in input_range)
        x = (x - low) / (high - low)
    return x.clamp(0, 1)


def psnr(image: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two images in [0, 1], in dB; infinity if they are equal."""
    error = float((image - truth).double().square().mean())
    return float(-10 * np.log10(error)) if error else float("inf")


def ssim(image: Tensor, truth: Tensor) -> float:
    """Return the structural similarity of two images in [0, 1]: at most 1, which means equal.

    Source: Wang et al., IEEE TIP 2004, Equation 13, with a Gaussian window of 11×11 pixels of standard
    deviation 1.5, K1 = 0.01 and K2 = 0.03; the mean over the windows inside the image, and over the channels.
    Deviation: images of fewer than 11 pixels in height or width have no such window. Theirs are centred at
    every pixel, and the image is continued by reflection.

    Args:
        image: [channels, height, width].
        truth: Of the same shape.
    """
    from scipy.ndimage import gaussian_filter

    a, b = image.double().numpy(), truth.double().numpy()
    inside = slice(WINDOW_RADIUS, -WINDOW_RADIUS) if min(a.shape[1:]) > 2 * WINDOW_RADIUS else slice(None)

    def local_mean(values: np.ndarray) -> np.ndarray:
        means = gaussian_filter(values, WINDOW_SIGMA, axes=(1, 2), radius=WINDOW_RADIUS, mode="reflect")
        return np.asarray(means[:, inside, inside])

    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a**2, local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float((luminance * structure).mean())


def matched(images: Tensor, truth: Tensor) -> Tensor:
    """Return the images in the order in which they resemble the true ones best.

    Attacks on a batch find its images in any order. The order with the least squared error in sum is taken,
    which flatters an attack on images that it did not find; so compare attacks by the same rule only.

    Args:
        images: [n, ...].
        truth: [m, ...], at most as many.
    """
    from scipy.optimize import linear_sum_assignment

    cost = (truth.flatten(1)[:, None] - images.flatten(1)[None]).double().square().mean(2)
    _, order = linear_sum_assignment(cost.numpy())
    return images[torch.from_numpy(order)]
