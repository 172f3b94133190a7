"""Images from a Stable Diffusion model: any id or folder that diffusers loads, or the embedded miniature."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genfl.errors import InputError
from genfl.generators.base import Prompt, Sample
from genfl.storage import digest, sha256

log = logging.getLogger(__name__)

MINIATURE = "miniature"
_CACHED_PROMPTS = 4096


class StableDiffusion:
    """Text to image with DPM-Solver++ multistep sampling.

    Args:
        model: ``miniature`` (embedded: handwritten digits, 32×32), a folder that
            ``StableDiffusionPipeline.save_pretrained`` wrote, or a Hugging Face model id.
        steps: Denoising steps.
        device: A torch device; half precision is used on CUDA.

    Raises:
        InputError: diffusers is not installed, or there is no such model.
    """

    def __init__(self, model: str = MINIATURE, steps: int = 15, device: str = "cpu") -> None:
        diffusers = _import_diffusers()
        source = locate(model)
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        try:
            pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
                source,
                dtype=dtype,
                use_safetensors=True,  # never a pickle
                safety_checker=None,
                requires_safety_checker=False,
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"generator.model: {model!r} could not be loaded: {_first_line(error)}"
            ) from error
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        self.id = model
        self.steps = steps
        self.pipeline: Any = pipeline.to(device)
        self._embeddings: dict[str, Tensor] = {}

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Makes one image for each prompt of a block; see `genfl.generators.base.Generator`."""
        scales = {prompt.guidance_scale for prompt in prompts}
        if len(scales) != 1:
            raise ValueError(f"a block has one guidance scale, not {sorted(scales)}")
        noise = [torch.Generator(self.pipeline.device).manual_seed(prompt.seed) for prompt in prompts]
        empty = self._embedding("")
        images = self.pipeline(
            prompt_embeds=torch.stack([self._embedding(prompt.text) for prompt in prompts]),
            negative_prompt_embeds=empty.expand(len(prompts), *empty.shape),
            guidance_scale=scales.pop(),
            num_inference_steps=self.steps,
            generator=noise,
            output_type="pil",
        ).images
        for prompt, image in zip(prompts, images, strict=True):
            yield Sample(prompt, image)

    def _embedding(self, text: str) -> Tensor:
        """Encodes a text once. One at a time: the size of a batch would change the last bits."""
        if text not in self._embeddings:
            if len(self._embeddings) >= _CACHED_PROMPTS:
                self._embeddings.pop(next(iter(self._embeddings)))
            with torch.no_grad():
                embeds, _ = self.pipeline.encode_prompt(
                    text, self.pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
                )
            self._embeddings[text] = embeds[0]
        return self._embeddings[text]


def locate(model: str) -> str:
    """Returns where a model is to be loaded from, without loading it.

    Args:
        model: ``miniature``, a folder, or a Hugging Face model id.

    Raises:
        InputError: There is no such model.
    """
    if model == MINIATURE:
        return str(Path(__file__).parent / MINIATURE)
    if Path(model).is_dir():
        if not (Path(model) / "model_index.json").is_file():
            raise InputError(f"generator.model: the folder {model} holds no model_index.json, so no pipeline")
        return model
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if isinstance(try_to_load_from_cache(model, "model_index.json"), str):
            return model
        if not constants.HF_HUB_OFFLINE:
            HfApi().model_info(model, timeout=10)
            return model
        reason = "the Hub is switched off by HF_HUB_OFFLINE"
    except HFValidationError:
        reason = "it is no valid Hub id"
    except Exception as error:  # the client raises its own, its HTTP library's and OSErrors alike
        reason = _first_line(error)
    raise InputError(
        f"generator.model: {model!r} is not {MINIATURE!r}, no folder, not in the local Hugging Face cache,"
        f" and not to be had from the Hub ({reason})"
    )


@lru_cache
def fingerprint(model: str) -> str:
    """Returns what changes when a local model changes, so that data made with the old one is made again.

    It is a digest of the names and contents of a folder's weights and settings. A Hugging Face id stands for
    itself: pin a revision by downloading it to a folder.
    """
    folder = Path(__file__).parent / MINIATURE if model == MINIATURE else Path(model)
    if not folder.is_dir():
        return model
    kinds = (".json", ".txt", ".model", ".safetensors")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in kinds]
    return digest([[path.relative_to(folder).as_posix(), sha256(path)] for path in paths])


def _import_diffusers() -> Any:
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise InputError("generator.kind: image needs diffusers: pip install 'genfl[image]'") from error
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return diffusers


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
