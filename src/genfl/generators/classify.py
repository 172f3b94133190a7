"""A text-to-image diffusion model as a classifier: whose prompt tells the noise in an image best?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from torch import Tensor

from genfl.errors import InputError
from genfl.generators.image import StableDiffusion, locate
from genfl.rng import Key

ROWS = 64
"""Pairs of an image and a label in one call of the U-Net; fixed, as it would change the last bits."""


@torch.inference_mode()
def label_scores(
    generator: StableDiffusion,
    images: Sequence[Image.Image],
    prompts: Callable[[Key], Sequence[str]],
    key: Key,
    *,
    samples: Annotated[int, Ge(1), Le(1000)] = 16,
) -> Tensor:
    """Returns how well each label's prompt explains each image, as logits of the labels.

    The logit of label c is ``− 1/S Σ_s ‖ε_s − ε̂(√ᾱ_t x₀ + √(1 − ᾱ_t) ε_s, t_s, c)‖²``, where x₀ is the
    latent of the image, enlarged (bilinear) to the size the model was made for: with a uniform prior over
    labels, their softmax is the model's posterior. The pairs (t_s, ε_s) are the same for all labels and
    images, and the timesteps t_s are evenly spaced, which the paper found to be better than random ones.

    Source: Li et al., ICCV 2023 (arXiv 2303.16203), Algorithm 1 and Equation 6. Unlike there, the labels'
    prompts may differ from one pair to the next; they are the same sentence for all labels.

    Args:
        generator: The model, which may predict the noise or the velocity.
        images: What to classify, of any size and mode.
        prompts: ``(key) -> the prompt of each label``, asked for each pair.
        key: The random stream.
        samples: How many pairs S.

    Returns:
        [images, labels], float32.

    Raises:
        InputError: The model predicts something else.
    """
    pipeline = generator.pipeline
    predicts = pipeline.scheduler.config.prediction_type
    if predicts not in ("epsilon", "v_prediction"):
        raise InputError(
            f"generator.model: {generator.id} predicts {predicts}; classifying needs epsilon or v_prediction"
        )
    # not the scheduler's add_noise: a multistep solver's knows the timesteps of its sampling only
    kept = pipeline.scheduler.alphas_cumprod
    x0 = _latents(pipeline, images)
    errors = torch.zeros(())
    for sample in range(samples):
        t = int((sample + 0.5) / samples * len(kept))
        signal, sigma = kept[t].sqrt().item(), (1 - kept[t]).sqrt().item()
        noise = torch.randn(x0.shape[1:], generator=key.fold("noise", sample).torch()).to(x0)
        noisy = signal * x0 + sigma * noise
        told = prompts(key.fold("prompt", sample))
        texts = torch.stack([generator.embedding(text)["prompt_embeds"] for text in told])
        found = []
        for rows in torch.cartesian_prod(torch.arange(len(x0)), torch.arange(len(texts))).split(ROWS):
            x, text = noisy[rows[:, 0]], texts[rows[:, 1]]
            guess = pipeline.unet(x, t, encoder_hidden_states=text).sample
            if predicts == "v_prediction":
                guess = signal * guess + sigma * x
            found.append((noise - guess).float().square().flatten(1).sum(1).cpu())
        errors = errors + torch.cat(found).reshape(len(x0), len(texts))
    return -errors / samples


def refuse(model: str) -> None:
    """Refuses a local model that cannot classify, without loading it.

    Raises:
        InputError: There is no such model, or its pipeline lacks a part.
    """
    index = Path(locate(model)) / "model_index.json"
    if index.is_file():
        parts = json.loads(index.read_text(encoding="utf-8"))
        lacking = [part for part in ("vae", "unet", "scheduler", "text_encoder") if part not in parts]
        if "text_encoder_2" in parts:
            raise InputError(f"generator needs a model with one text encoder; {model} has several")
        if lacking:
            kind = parts.get("_class_name", "the pipeline")
            raise InputError(
                f"generator needs a latent diffusion model; {model} ({kind}) has no {lacking[0]}"
            )


def _latents(pipeline: Any, images: Sequence[Image.Image]) -> Tensor:
    """Encodes images of the size that the model was made for."""
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    pixels = [np.asarray(i.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)) for i in images]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
    means = pipeline.vae.encode(x.to(pipeline.device, pipeline.dtype)).latent_dist.mean
    latents: Tensor = means * pipeline.vae.config.scaling_factor
    return latents
