"""Images from a text-to-image model: any id or folder that diffusers loads, or the embedded miniature."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genfl import hub
from genfl.data.samples import Prompt, Sample
from genfl.errors import InputError
from genfl.generators import pretrained
from genfl.generators.base import Generator
from genfl.generators.pretrained import Embeddings, accepted

MINIATURE = "miniature"
DIGITS = {*"0123456789", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
"""What the miniature can draw."""


FAMILY = "StableDiffusion"
"""How diffusers calls pipelines of Stable Diffusion 1, 2, XL and 3, whose encoders return `EMBEDDINGS`."""

EMBEDDINGS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
"""What these encoders return, in order; those of versions 1 and 2 only the first two."""

SOLVED = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler")
"""Schedulers of the DDPM family in whose place DPM-Solver++ takes fewer steps to the same image."""

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")

MOST_TOKENS = 256
"""Of a prompt: what Stable Diffusion 3 reads with the longest of its encoders."""

PLAIN: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False, "add_watermarker": False}
"""What images are not to depend on: a checker blackens some, and a watermark is there if a package is."""


class StableDiffusion(Generator):
    """Text to image, and from a real image to one like it.

    Models of the DDPM family are sampled with DPM-Solver++ multistep; others, such as flow matching (Stable
    Diffusion 3), EDM and distilled ones, keep their own scheduler. Each distinct prompt is encoded once and
    alone by Stable Diffusion 1, 2, XL and 3, and refused if none of their encoders reads all of it; other
    models encode the prompts of a block together.

    A prompt's guide is where its image starts from, with noise added up to `strength` of the schedule, of
    which only that share of the steps is taken (SDEdit: Meng et al., ICLR 2022, arXiv 2108.01073).

    Args:
        model: ``miniature`` (embedded: handwritten digits, 32×32), a folder that a pipeline's
            ``save_pretrained`` wrote, or a Hugging Face model id.
        steps: Denoising steps.
        device: A torch device; half precision is used on CUDA.
        size: Height and width to draw at; None for the model's own.
        strength: How far an image may go from its guide, in (0, 1]; at 1 hardly anything of it is left.

    Raises:
        InputError: diffusers is not installed, there is no such model, or it makes no images of that size.
    """

    def __init__(
        self,
        model: str = MINIATURE,
        steps: int = 15,
        device: str = "cpu",
        size: Sequence[int] | None = None,
        strength: float = 0.6,
    ) -> None:
        hub.require_libraries("image")
        hub.hush()
        import diffusers

        half = torch.float16 if "unet" in _index(model) else torch.bfloat16
        self.pipeline: Any = hub.load_model(
            diffusers.AutoPipelineForText2Image.from_pretrained,
            locate(model),
            device=device,
            dtype=hub.dtype_on(device, half),
            **PLAIN,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        grain = self._scale * getattr(self.pipeline, "patch_size", 1)
        if size and any(side % grain for side in size):
            raise InputError(
                f"generator.size: {model} draws in multiples of {grain} pixels, not {list(size)}"
            )
        scheduler = self.pipeline.scheduler
        # distilled models are made for few steps that begin with noise alone, which is what trailing says
        distilled = scheduler.config.get("timestep_spacing") == "trailing"
        if type(scheduler).__name__ in SOLVED and not distilled:
            solver = diffusers.DPMSolverMultistepScheduler.from_config(scheduler.config)
            self.pipeline.scheduler = solver
        if device.startswith("cuda") and hasattr(getattr(self.pipeline, "vae", None), "enable_slicing"):
            self.pipeline.vae.enable_slicing()  # or a block of 50 needs tens of GB once it is denoised
        self.id = hub.model_name(model)
        self.steps = steps
        self.device = device
        self.size = size
        self.strength = strength
        self.embedding = lru_cache(pretrained.CACHED_PROMPTS)(self._embedding)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts that are too long; see `genfl.generators.base.Generator`."""
        for text in {prompt.text for prompt in prompts}:
            self._refuse_cut(text)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Makes one image for each prompt of a block; see `genfl.generators.base.Generator`.

        Raises:
            ValueError: The prompts have different guidance scales, or not all one guide or none.
            InputError: The block does not fit into memory, a prompt is too long, or the model has no guides.
        """
        told: dict[str, Any] = pretrained.draws(prompts, self.device)
        told |= {"num_inference_steps": self.steps, "output_type": "pil"}
        if self.size:
            told["height"], told["width"] = self.size
        pipeline = self.pipeline
        if guides := [guide for prompt in prompts for guide in prompt.guides]:
            if any(len(prompt.guides) != 1 for prompt in prompts):
                raise ValueError("in a block, all images start from one guide each, or none does")
            pipeline = self._guided
            told |= {"image": [self._fitted(guide) for guide in guides], "strength": self.strength}
            told["num_inference_steps"] = max(self.steps, int(1 / self.strength) + 1)  # one is taken at least
        with pretrained.in_memory(len(prompts), self.device):
            images = pipeline(**accepted(pipeline.__call__, **told, **self._texts(prompts))).images
        for prompt, image in zip(prompts, images, strict=True):
            yield Sample(prompt, image)

    def _texts(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        if type(self.pipeline).__name__.startswith(FAMILY):
            return pretrained.together([self.embedding(prompt.text) for prompt in prompts])
        return {"prompt": [prompt.text for prompt in prompts]}

    def _embedding(self, text: str) -> Embeddings:
        return self._encoded(text, guided=False) | self._nothing

    @cached_property
    def _nothing(self) -> Embeddings:
        """What guidance leads away from, which the model says: the empty prompt, or zeros."""
        found = self._encoded("", guided=True)
        return {name: part for name, part in found.items() if name.startswith("negative")}

    def _encoded(self, text: str, guided: bool) -> dict[str, Tensor]:
        self._refuse_cut(text)
        encode = self.pipeline.encode_prompt
        with torch.no_grad():
            found = encode(
                **accepted(encode, prompt=text, prompt_2=None, prompt_3=None, device=self.device),
                num_images_per_prompt=1,
                do_classifier_free_guidance=guided,
            )
        named = zip(EMBEDDINGS, found, strict=False)
        return {name: part[0] for name, part in named if part is not None}

    def _refuse_cut(self, text: str) -> None:
        """Refuses a prompt whose end would be lost, and with it perhaps the label.

        Raises:
            InputError: No encoder reads all of it.
        """
        found = [getattr(self.pipeline, name, None) for name in TOKENIZERS]
        lengths = [
            (len(tokenizer(text, truncation=False).input_ids), min(tokenizer.model_max_length, MOST_TOKENS))
            for tokenizer in found
            if tokenizer is not None
        ]
        if lengths and all(length > most for length, most in lengths):
            length, most = min(lengths, key=lambda pair: pair[0] - pair[1])
            raise InputError(
                f"prompts: {text!r} has {length} tokens, of which {self.id} reads {most}; shorten it, or take"
                " another style"
            )

    @cached_property
    def _guided(self) -> Any:
        """The pipeline that starts from images; it shares its parts with the other."""
        import diffusers

        try:
            pipeline = diffusers.AutoPipelineForImage2Image.from_pipe(self.pipeline, **PLAIN)
        except ValueError as error:
            raise InputError(f"generator.model: {self.id} cannot start from real images") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _fitted(self, guide: Image.Image) -> Image.Image:
        height, width = self.size or (self.side, self.side)
        return guide.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)

    @property
    def side(self) -> int:
        """Height and width that the model was made for, in pixels."""
        network = getattr(self.pipeline, "unet", None) or self.pipeline.transformer
        latent: int = network.config.get("sample_size") or self.pipeline.default_sample_size
        return latent * self._scale

    @property
    def _scale(self) -> int:
        """How many pixels an image has, in a row, for one of its latent's; 1 for models of pixels."""
        scale: int = getattr(self.pipeline, "vae_scale_factor", 1)
        return scale


def locate(model: str) -> str:
    """Returns where a model is to be loaded from, without loading it.

    Args:
        model: ``miniature``, a folder, or a Hugging Face model id.

    Raises:
        InputError: There is no such model.
    """
    if model == MINIATURE:
        return str(Path(__file__).parent / MINIATURE)
    _index(model)
    return model


def check(model: str) -> None:
    """Refuses models that make no images from texts, without loading them.

    Raises:
        InputError: diffusers is not installed, there is no such model, or it makes something else.
    """
    hub.require_libraries("image")
    name = _index(model)["_class_name"]
    if model != MINIATURE:
        hub.check_weights(model)
    if name.startswith(FAMILY):
        return  # the import below takes seconds
    hub.hush()
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    known = {pipeline.__name__: pipeline for pipeline in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    if name not in known:
        raise InputError(
            f"generator.model: {model} is a {name}, which makes no images from texts; take a text-to-image"
            " model"
        )
    for what in ("guidance_scale", "generator"):
        if what not in _parameters(known[name]):
            raise InputError(
                f"generator.model: {model} is a {name}, which takes no {what}; take another model of images"
            )


def check_labels(model: str, labels: Sequence[str]) -> None:
    """Refuses labels of which a model knows nothing, where that can be known: of the miniature.

    Raises:
        InputError: There is such a label.
    """
    if model != MINIATURE:
        return
    strange = [name for name in labels if not DIGITS & set(name.lower().split())]
    if strange:
        raise InputError(
            f"generator.model: the embedded miniature draws handwritten digits, and no {strange[0]!r}; give"
            " the folder or Hugging Face id of a text-to-image model, use generator.kind: files, or take"
            " generator: none for methods that need no generated data"
        )


def unguided(model: str) -> str | None:
    """Says why no image that a model makes can start from a real one, without loading it; None where one can.

    Raises:
        InputError: There is no such model.
    """
    name = _index(model)["_class_name"]
    if name.startswith(FAMILY):
        return None  # the import below takes seconds
    hub.hush()
    from diffusers.pipelines import auto_pipeline

    kinds = auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items()
    guided = auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING
    for kind, pipeline in kinds:
        # without a strength, images are references, which all images of a block would follow
        if pipeline.__name__ == name and kind in guided and "strength" in _parameters(guided[kind]):
            return None
    return f"{model} is a {name}, which cannot start from real images; use prompt, or another generator.model"


def _parameters(pipeline: Any) -> Collection[str]:
    """Returns what a class of pipelines can be told."""
    return inspect.signature(pipeline.__call__).parameters


def fingerprint(model: str) -> str:
    """Returns what changes when a local model changes; see `genfl.hub.fingerprint`."""
    return hub.fingerprint(locate(model) if model == MINIATURE else model)


def _index(model: str) -> dict[str, Any]:
    place = locate(model) if model == MINIATURE else model
    return hub.read_settings(place, hub.PIPELINE_FILE, embedded=MINIATURE)
