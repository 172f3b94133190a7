"""How fast images are generated in blocks, against a plain loop over the same pipeline, one image a call.

Runs the two in turn, so that a machine's drift hits both, and prints medians, their ratio, and the share of a
block's time that is not the U-Net's. With --full, the model is as large as Stable Diffusion 2.1 (768×768) and
random, which wants a GPU; the default is the embedded miniature on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from genfl.data.samples import Prompt
from genfl.generators.image import MINIATURE, StableDiffusion, locate_image_model

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


FACTORS = (1, 2, 4, 4)
"""How much wider each level of a U-Net or an autoencoder is than the first."""


def now() -> float:
    """Return the time, when what the GPU has been told is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], Any]) -> float:
    """Return the wall time of a piece of work."""
    began = now()
    work()
    return now() - began


def share_outside(unet: torch.nn.Module, work: Callable[[], Any]) -> float:
    """Return the share of a piece of work's wall time that is not a U-Net's."""
    marks: list[float] = []
    hooks = [
        unet.register_forward_pre_hook(lambda *_: marks.append(-now())),
        unet.register_forward_hook(lambda *_: marks.append(now())),
    ]
    total = seconds(work)
    for hook in hooks:
        hook.remove()
    return 1 - sum(marks) / total


def full_size(folder: Path, width: int = 320, vae_width: int = 128, latent: int = 96) -> None:
    """Write a pipeline as large as Stable Diffusion 2.1: random weights, the miniature's tokenizer.

    Args:
        folder: Where it is written.
        width: Channels of the U-Net's first level; smaller ones are for trying this out.
        vae_width: Channels of the decoder's last level.
        latent: Height and width of an image's latent, an eighth of the image's.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    unet = UNet2DConditionModel(
        sample_size=latent,
        block_out_channels=tuple(width * factor for factor in FACTORS),
        attention_head_dim=tuple(max(1, width * factor // 64) for factor in FACTORS),  # the number of heads
        cross_attention_dim=1024,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=tuple(vae_width * factor for factor in FACTORS),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=8 * latent,
    )
    tokenizer = CLIPTokenizer.from_pretrained(
        Path(locate_image_model(MINIATURE)) / "tokenizer", model_max_length=77
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
        )
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(folder)


def main() -> None:
    """Print the medians, their ratio and the share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block", type=int, default=50)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", default=None, help="the CPU, or with --full the GPU, if not given")
    parser.add_argument("--full", action="store_true", help="a model as large as Stable Diffusion 2.1")
    options = parser.parse_args()
    device = options.device or ("cuda" if options.full else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        if options.full:
            full_size(Path(folder))
        generator = StableDiffusion(folder if options.full else MINIATURE, options.steps, device)
    prompts = [
        Prompt(label, f"a handwritten {label}", 3.0, number)
        for number in range(options.block)
        for label in [DIGITS[number % 10]]
    ]

    def block() -> None:
        list(generator.generate(prompts))

    def plain() -> None:
        for prompt in prompts:
            generator.pipeline(
                prompt.text,
                guidance_scale=prompt.guidance_scale,
                num_inference_steps=options.steps,
                generator=torch.Generator(device).manual_seed(prompt.seed),
            )

    list(generator.generate(prompts[:1]))  # warms up
    pairs = []
    for _ in range(options.repetitions):
        generator.embedding.cache_clear()
        pairs.append((seconds(block), seconds(plain)))
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    shares = [share_outside(generator.pipeline.unet, block) for _ in range(options.repetitions)]
    print(
        f"{options.block} images of {options.steps} steps on {device}: in a block {ours:.2f} s"
        f" ({options.block / ours:.1f} a second), one by one {theirs:.2f} s, ratio {ratio:.1f};"
        f" outside the U-Net {100 * statistics.median(shares):.0f} %"
    )


if __name__ == "__main__":
    main()
