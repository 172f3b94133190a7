"""Classification with a text-to-image diffusion model: which prompt predicts the noise of an image best?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from torch import Tensor

from genfl.errors import InputError
from genfl.generators.image import StableDiffusion, pipeline_parts
from genfl.rng import Key

PAIRS_PER_CALL = 64
"""Pairs of an image and a label in one call of the U-Net. Another number changes the last bits."""


@torch.inference_mode()
def label_scores(
    generator: StableDiffusion,
    images: Sequence[Image.Image],
    prompts: Callable[[Key], Sequence[str]],
    key: Key,
    *,
    samples: Annotated[int, Ge(1), Le(1000)] = 16,
) -> Tensor:
    """Return how well each label's prompt explains each image, as logits of the labels.

    The logit of label c is ``− 1/S Σ_s ‖ε_s − ε̂(√ᾱ_t x₀ + √(1 − ᾱ_t) ε_s, t_s, c)‖²``. Here x₀ is the latent
    of the image, enlarged (bilinear) to the size that the model was made for. With a uniform prior over
    labels, the softmax of the logits is the model's posterior. The pairs (t_s, ε_s) are the same for all
    labels and images. The timesteps t_s are evenly spaced, which the paper found better than random ones.

    Source: Li et al., ICCV 2023 (arXiv 2303.16203), Algorithm 1 and Equation 6. Unlike in the paper, the
    prompts may differ from one pair to the next; within a pair, all labels use the same sentence.

    Args:
        generator: The model, which predicts the noise or the velocity.
        images: The images to classify, of any size and mode.
        prompts: A function ``(key) -> the prompt of each label``, called once for each pair.
        key: The random stream.
        samples: The number of pairs S.

    Returns:
        [images, labels], float32.

    Raises:
        InputError: The model predicts something else.
    """
    pipeline = generator.pipeline
    prediction = pipeline.scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction"):
        raise InputError(
            f"generator.model: {generator.id} predicts {prediction}; to classify, use a model that predicts"
            " epsilon or v_prediction"
        )
    # The add_noise of a multistep scheduler knows only the timesteps of its sampling, so it is not used.
    signal_shares = pipeline.scheduler.alphas_cumprod
    x0 = _latents(pipeline, images)
    errors = torch.zeros(())
    for sample in range(samples):
        t = int((sample + 0.5) / samples * len(signal_shares))
        signal, sigma = signal_shares[t].sqrt().item(), (1 - signal_shares[t]).sqrt().item()
        noise = torch.randn(x0.shape[1:], generator=key.fold("noise", sample).torch()).to(x0)
        noisy = signal * x0 + sigma * noise
        sentences = prompts(key.fold("prompt", sample))
        texts = torch.stack([generator.embedding(text)["prompt_embeds"] for text in sentences])
        pair_errors = []
        pairs = torch.cartesian_prod(torch.arange(len(x0)), torch.arange(len(texts)))
        for rows in pairs.split(PAIRS_PER_CALL):
            x, text = noisy[rows[:, 0]], texts[rows[:, 1]]
            guess = pipeline.unet(x, t, encoder_hidden_states=text).sample
            if prediction == "v_prediction":
                guess = signal * guess + sigma * x
            pair_errors.append((noise - guess).float().square().flatten(1).sum(1).cpu())
        errors = errors + torch.cat(pair_errors).reshape(len(x0), len(texts))
    return -errors / samples


def check_classifier(model: str) -> None:
    """Check that a model can classify, without loading it.

    Args:
        model: ``miniature``, a folder, or a Hugging Face model id.

    Raises:
        InputError: The model does not exist, or its pipeline lacks a part.
    """
    parts = pipeline_parts(model)
    missing = [part for part in ("vae", "unet", "scheduler", "text_encoder") if part not in parts]
    if "text_encoder_2" in parts:
        raise InputError(f"generator needs a model with one text encoder; {model} has several")
    if missing:
        raise InputError(
            f"generator needs a latent diffusion model; {model} ({parts['_class_name']}) has no {missing[0]}"
        )


def _latents(pipeline: Any, images: Sequence[Image.Image]) -> Tensor:
    """Encode images at the size that the model was made for."""
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    pixels = [np.asarray(i.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)) for i in images]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
    means = pipeline.vae.encode(x.to(pipeline.device, pipeline.dtype)).latent_dist.mean
    latents: Tensor = means * pipeline.vae.config.scaling_factor
    return latents
