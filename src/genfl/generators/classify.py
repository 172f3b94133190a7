"""Classification with a text-to-image model: which prompt predicts the noise of an image best?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from torch import Tensor

from genfl.errors import InputError
from genfl.generators.image import StableDiffusion, pipeline_parts
from genfl.generators.pretrained import Embeddings, stack_embeddings
from genfl.rng import Key

PAIRS_PER_CALL = 64
"""Pairs of an image and a label in one call of the model. Another number changes the last bits."""

WITH_SIZES = "StableDiffusionXL"
"""How the class names of pipelines begin whose U-Net also gets a pooled text and the image's size."""

FLOW = "StableDiffusion3"
"""How the class names of pipelines begin that match flows with a transformer."""


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

    Stable Diffusion 1, 2 and XL predict the noise ε. Stable Diffusion 3 predicts the velocity ``ε − x₀`` of a
    flow, and its error takes the place of that of the noise, at evenly spaced noise levels.

    Source: Li et al., ICCV 2023 (arXiv 2303.16203), Algorithm 1 and Equation 6. Unlike in the paper, the
    prompts may differ from one pair to the next; within a pair, all labels use the same sentence.

    Args:
        generator: Stable Diffusion 1, 2, XL or 3, or a model like them.
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
    residual = _flow_residual if hasattr(pipeline, "transformer") else _noise_residual
    x0 = _latents(generator, images)
    errors = torch.zeros(())
    for sample in range(samples):
        share = (sample + 0.5) / samples
        noise = torch.randn(x0.shape[1:], generator=key.fold("noise", sample).torch()).to(x0)
        sentences = prompts(key.fold("prompt", sample))
        texts = stack_embeddings([generator.embedding(text) for text in sentences])
        pair_errors = []
        pairs = torch.cartesian_prod(torch.arange(len(x0)), torch.arange(len(sentences)))
        for rows in pairs.split(PAIRS_PER_CALL):
            conditions = {name: part[rows[:, 1]] for name, part in texts.items()}
            rest = residual(generator, x0[rows[:, 0]], noise, share, conditions)
            pair_errors.append(rest.float().square().flatten(1).sum(1).cpu())
        errors = errors + torch.cat(pair_errors).reshape(len(x0), len(sentences))
    return -errors / samples


def _noise_residual(
    generator: StableDiffusion, x0: Tensor, noise: Tensor, share: float, texts: Embeddings
) -> Tensor:
    """Return by how much a U-Net errs about the noise of noisy latents (Stable Diffusion 1, 2 and XL).

    Args:
        generator: The model.
        x0: Latents without noise, [n, ...].
        noise: The noise, the same for all of them.
        share: The timestep, as a share of all timesteps, in (0, 1).
        texts: The encoded texts, [n, ...] each.

    Raises:
        InputError: The model predicts neither the noise nor the velocity.
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
    t = int(share * len(signal_shares))
    signal, sigma = signal_shares[t].sqrt().item(), (1 - signal_shares[t]).sqrt().item()
    x = signal * x0 + sigma * noise
    added: dict[str, Tensor] | None = None
    if "pooled_prompt_embeds" in texts:
        # the image is whole and of the model's own size: original size, crop, and target size
        sizes = torch.tensor([generator.side, generator.side, 0, 0, generator.side, generator.side])
        added = {
            "text_embeds": texts["pooled_prompt_embeds"],
            "time_ids": sizes.to(x).expand(len(x), -1),
        }
    guess = pipeline.unet(x, t, encoder_hidden_states=texts["prompt_embeds"], added_cond_kwargs=added).sample
    if prediction == "v_prediction":
        guess = signal * guess + sigma * x
    rest: Tensor = noise - guess
    return rest


def _flow_residual(
    generator: StableDiffusion, x0: Tensor, noise: Tensor, share: float, texts: Embeddings
) -> Tensor:
    """Return by how much a transformer errs about the velocity of a flow (Stable Diffusion 3).

    Between x₀ and the noise ε lies ``x = (1 − σ) x₀ + σ ε``, with the velocity ``ε − x₀`` (Esser et al., ICML
    2024, arXiv 2403.03206). σ is `share`; the other arguments are those of `_noise_residual`.
    """
    pipeline = generator.pipeline
    x = (1 - share) * x0 + share * noise
    time = share * pipeline.scheduler.config.num_train_timesteps
    guess = pipeline.transformer(
        hidden_states=x,
        timestep=torch.full((len(x),), time).to(x),
        encoder_hidden_states=texts["prompt_embeds"],
        pooled_projections=texts["pooled_prompt_embeds"],
    ).sample
    rest: Tensor = noise - x0 - guess
    return rest


def check_classifier(model: str) -> None:
    """Check that a model can classify, without loading it.

    Args:
        model: ``miniature``, a folder, or a Hugging Face model id.

    Raises:
        InputError: The model does not exist, or its pipeline lacks a part.
    """
    parts = pipeline_parts(model)
    name = parts["_class_name"]
    flow = name.startswith(FLOW)
    denoiser = "transformer" if flow else "unet"
    missing = [part for part in ("vae", denoiser, "scheduler", "text_encoder") if part not in parts]
    if missing:
        raise InputError(
            f"generator needs Stable Diffusion 1, 2, XL or 3, or a model like them; {model} ({name}) has no"
            f" {missing[0]}"
        )
    if "text_encoder_2" in parts and not name.startswith((WITH_SIZES, FLOW)):
        raise InputError(f"generator needs a model with one text encoder; {model} ({name}) has several")


def _latents(generator: StableDiffusion, images: Sequence[Image.Image]) -> Tensor:
    """Encode images at the size that the model was made for."""
    pipeline, size = generator.pipeline, generator.side
    pixels = [np.asarray(i.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)) for i in images]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
    vae, dtype = pipeline.vae, pipeline.vae.dtype
    # the encoder of Stable Diffusion XL overflows in half precision
    in_full = dtype == torch.float16 and vae.config.force_upcast
    if in_full:
        vae.to(torch.float32)
    means = vae.encode(x.to(pipeline.device, vae.dtype)).latent_dist.mean
    if in_full:
        vae.to(dtype)
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents: Tensor = ((means - shift) * vae.config.scaling_factor).to(pipeline.dtype)
    return latents
