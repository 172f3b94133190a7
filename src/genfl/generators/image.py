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
from genfl.data.formats import plain_image
from genfl.data.samples import Prompt, Sample
from genfl.errors import InputError
from genfl.generators import pretrained
from genfl.generators.base import Generator
from genfl.generators.pretrained import Embeddings, accepted_options
from genfl.model_folders import PIPELINE_FILE, check_weights, expanded

MINIATURE = "miniature"
"""The name of the embedded model."""

DIGITS = {*"0123456789", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
"""The words for what the miniature can draw."""

STABLE_DIFFUSION = "StableDiffusion"
"""How the class names of the pipelines of Stable Diffusion 1, 2, XL and 3 begin in diffusers."""

IMAGE_EMBEDDINGS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
"""What the encoders of Stable Diffusion return, in order; versions 1 and 2 return only the first two."""

DPM_SOLVER_SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
)
"""Schedulers of the DDPM family; DPM-Solver++ reaches the same image in fewer steps."""

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
"""The tokenizers that a pipeline may have."""

MAX_PROMPT_TOKENS = 256
"""The tokens of a prompt that the longest text encoder of Stable Diffusion 3 reads."""

NO_WATERMARK: dict[str, Any] = {"add_watermarker": False}
"""Watermarks are switched off, because they depend on another package."""

NO_SAFETY_CHECKER: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
"""Options of a pipeline without a safety checker, which would blacken images."""


class StableDiffusion(Generator):
    """A text-to-image model, which can also start from a real image.

    Models of the DDPM family are sampled with DPM-Solver++ multistep. Others keep their own scheduler, such
    as flow matching (Stable Diffusion 3), EDM and distilled models.

    Stable Diffusion 1, 2, XL and 3 encode each distinct prompt once and alone. They reject a prompt that none
    of their encoders reads to its end. Other models encode the prompts of a block together.

    A prompt's guide is the image that sampling starts from. Noise is added to it up to `strength` of the
    schedule, and only that share of the steps is taken (SDEdit: Meng et al., ICLR 2022, arXiv 2108.01073).

    Args:
        model: ``miniature`` (embedded: handwritten digits, 32×32 pixels), a folder that a pipeline's
            ``save_pretrained`` wrote, or a Hugging Face model id.
        steps: Denoising steps, at least 1.
        device: A torch device. On CUDA, the model runs in half precision.
        size: Height and width of the images in pixels; None for the model's own.
        strength: How far an image may differ from its guide, in (0, 1]; at 1 hardly anything of it is left.
        safety_checker: Whether the model's own safety checker runs. Images that it flags are black.

    Raises:
        InputError: diffusers is not installed, the model does not exist, or it cannot draw this size.
    """

    def __init__(
        self,
        model: str = MINIATURE,
        steps: int = 15,
        device: str = "cpu",
        size: Sequence[int] | None = None,
        strength: float = 0.6,
        safety_checker: bool = False,
    ) -> None:
        hub.require_libraries("image")
        hub.silence_libraries()
        import diffusers

        self._overrides = NO_WATERMARK if safety_checker else NO_WATERMARK | NO_SAFETY_CHECKER
        half = torch.float16 if "unet" in pipeline_parts(model) else torch.bfloat16
        self.pipeline: Any = hub.load_model(
            diffusers.AutoPipelineForText2Image.from_pretrained,
            locate_image_model(model),
            device=device,
            dtype=hub.dtype_on(device, half),
            **self._overrides,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        multiple = self._scale * getattr(self.pipeline, "patch_size", 1)
        if size and any(side % multiple for side in size):
            raise InputError(
                f"generator.size: {list(size)}, but {model} draws in multiples of {multiple} pixels; round it"
            )
        scheduler = self.pipeline.scheduler
        # Distilled models need few steps that begin at pure noise; trailing spacing marks them.
        distilled = scheduler.config.get("timestep_spacing") == "trailing"
        if type(scheduler).__name__ in DPM_SOLVER_SCHEDULERS and not distilled:
            solver = diffusers.DPMSolverMultistepScheduler.from_config(scheduler.config)
            self.pipeline.scheduler = solver
        if device.startswith("cuda") and hasattr(getattr(self.pipeline, "vae", None), "enable_slicing"):
            self.pipeline.vae.enable_slicing()  # decoding a block of 50 at once would take tens of GB
        self.id = hub.model_name(model)
        self.steps = steps
        self.device = device
        # the number of threads changes the last bits, and the miniature is as fast on one thread
        self.threads = 1 if model == MINIATURE else None
        self.size = size
        self.strength = strength
        self.embedding = lru_cache(pretrained.CACHED_PROMPTS)(self._embedding)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Check that no prompt is too long; see `genfl.generators.base.Generator`."""
        for text in {prompt.text for prompt in prompts}:
            self._check_length(text)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Make one image for each prompt of a block; see `genfl.generators.base.Generator`.

        Raises:
            ValueError: The prompts have different guidance scales, or some have one guide and others do not.
            InputError: The block does not fit into memory, a prompt is too long, or the model cannot start
                from images.
        """
        options: dict[str, Any] = pretrained.guidance_and_noise(prompts, self.device)
        options |= {"num_inference_steps": self.steps, "output_type": "pil"}
        if self.size:
            options["height"], options["width"] = self.size
        pipeline = self.pipeline
        if guides := [guide for prompt in prompts for guide in prompt.guides]:
            if any(len(prompt.guides) != 1 for prompt in prompts):
                raise ValueError("in a block, all images start from one guide each, or none does")
            pipeline = self._guided
            options |= {"image": [self._resized(guide) for guide in guides], "strength": self.strength}
            # at least one step is taken
            options["num_inference_steps"] = max(self.steps, int(1 / self.strength) + 1)
        with hub.explain_out_of_memory(len(prompts), self.device):
            options |= self._texts(prompts)
            images = pipeline(**accepted_options(pipeline.__call__, **options)).images
        for prompt, image in zip(prompts, images, strict=True):
            yield Sample(prompt, image)

    def _texts(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        if type(self.pipeline).__name__.startswith(STABLE_DIFFUSION):
            return pretrained.stack_embeddings([self.embedding(prompt.text) for prompt in prompts])
        return {"prompt": [prompt.text for prompt in prompts]}

    def _embedding(self, text: str) -> Embeddings:
        return self._encoded(text, guided=False) | self._empty_embedding

    @cached_property
    def _empty_embedding(self) -> Embeddings:
        """What guidance leads away from: the empty prompt or zeros, as the model decides."""
        encoded = self._encoded("", guided=True)
        return {name: part for name, part in encoded.items() if name.startswith("negative")}

    def _encoded(self, text: str, guided: bool) -> dict[str, Tensor]:
        self._check_length(text)
        encode = self.pipeline.encode_prompt
        with torch.no_grad():
            parts = encode(
                **accepted_options(encode, prompt=text, prompt_2=None, prompt_3=None, device=self.device),
                num_images_per_prompt=1,
                do_classifier_free_guidance=guided,
            )
        named = zip(IMAGE_EMBEDDINGS, parts, strict=False)
        return {name: part[0] for name, part in named if part is not None}

    def _check_length(self, text: str) -> None:
        """Check that an encoder reads all of a prompt: what is cut off may be the label.

        Raises:
            InputError: No encoder reads all of it.
        """
        tokenizers = [getattr(self.pipeline, name, None) for name in TOKENIZERS]
        lengths = [
            (
                len(tokenizer(text, truncation=False).input_ids),
                min(tokenizer.model_max_length, MAX_PROMPT_TOKENS),
            )
            for tokenizer in tokenizers
            if tokenizer is not None
        ]
        if lengths and all(length > limit for length, limit in lengths):
            length, limit = min(lengths, key=lambda pair: pair[0] - pair[1])
            raise InputError(
                f"prompts: {text!r} has {length} tokens, but {self.id} reads only {limit}; shorten it, or use"
                " another style"
            )

    @cached_property
    def _guided(self) -> Any:
        """The pipeline that starts from images; it shares its parts with the text-to-image pipeline."""
        import diffusers

        try:
            pipeline = diffusers.AutoPipelineForImage2Image.from_pipe(self.pipeline, **self._overrides)
        except ValueError as error:
            raise InputError(
                f"generator.model: {self.id} cannot start from real images; use guidance prompt, or another"
                " model"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _resized(self, guide: Image.Image) -> Image.Image:
        height, width = self.size or (self.side, self.side)
        return plain_image(guide).resize((width, height), Image.Resampling.BILINEAR)

    @property
    def side(self) -> int:
        """The height and width that the model was made for, in pixels."""
        network = getattr(self.pipeline, "unet", None) or self.pipeline.transformer
        latent: int = network.config.get("sample_size") or self.pipeline.default_sample_size
        return latent * self._scale

    @property
    def _scale(self) -> int:
        """Pixels per latent along one side; 1 for models that denoise pixels."""
        scale: int = getattr(self.pipeline, "vae_scale_factor", 1)
        return scale


def locate_image_model(model: str) -> str:
    """Return the folder or the Hugging Face id that a model is loaded from, without loading it.

    Args:
        model: ``miniature``, a folder, or a Hugging Face model id.

    Raises:
        InputError: The model does not exist.
    """
    if model == MINIATURE:
        return str(Path(__file__).parent / MINIATURE)
    pipeline_parts(model)
    return expanded(model)


def check_image_model(model: str, *, safety_checker: bool = False) -> None:
    """Check that a model makes images from texts, without loading it.

    Args:
        model: ``miniature``, a folder, or a Hugging Face model id.
        safety_checker: Whether its safety checker is to run.

    Raises:
        InputError: diffusers is not installed, the model does not exist, makes something else, or has no
            safety checker.
    """
    hub.require_libraries("image")
    parts = pipeline_parts(model)
    name = parts["_class_name"]
    if safety_checker and not all(parts.get("safety_checker") or [None]):
        raise InputError(
            f"generator.safety_checker: {model} ({name}) has none; leave it out, or use a model with one"
        )
    if model != MINIATURE:
        check_weights(model)
    if name.startswith(STABLE_DIFFUSION):
        return  # the import below takes seconds
    hub.silence_libraries()
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    known = {pipeline.__name__: pipeline for pipeline in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    if name not in known:
        raise InputError(
            f"generator.model: {model} is a {name}, which makes no images from texts; use a text-to-image"
            " model"
        )
    for option in ("guidance_scale", "generator"):
        if option not in _parameters(known[name]):
            raise InputError(
                f"generator.model: {model} is a {name}, which takes no {option}; use another text-to-image"
                " model"
            )


def check_image_labels(model: str, labels: Sequence[str]) -> None:
    """Check that the miniature can draw all labels; what other models can draw is not known.

    Args:
        model: ``miniature``, a folder, or a Hugging Face model id.
        labels: The names of the classes.

    Raises:
        InputError: A label is no digit.
    """
    if model != MINIATURE:
        return
    unknown = [name for name in labels if not DIGITS & set(name.lower().split())]
    if unknown:
        raise InputError(
            f"generator.model: the embedded miniature draws handwritten digits only, not {unknown[0]!r}; give"
            " the folder or Hugging Face id of a text-to-image model, use generator.kind: files, or use"
            " generator: none for methods that need no generated data"
        )


def image_guidance_problem(model: str) -> str | None:
    """Return why a model cannot start from real images, and the fix; None if it can.

    The model is not loaded.

    Args:
        model: ``miniature``, a folder, or a Hugging Face model id.

    Raises:
        InputError: The model does not exist.
    """
    name = pipeline_parts(model)["_class_name"]
    if name.startswith(STABLE_DIFFUSION):
        return None  # the import below takes seconds
    hub.silence_libraries()
    from diffusers.pipelines import auto_pipeline

    kinds = auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items()
    guided = auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING
    for kind, pipeline in kinds:
        # Without a strength, a pipeline's images are references, which all images of a block would follow.
        if pipeline.__name__ == name and kind in guided and "strength" in _parameters(guided[kind]):
            return None
    return f"{model} is a {name}, which cannot start from real images; use prompt, or another generator.model"


def image_fingerprint(model: str) -> str:
    """Return a digest that changes when a local model changes; see `genfl.hub.fingerprint`."""
    return hub.fingerprint(locate_image_model(model) if model == MINIATURE else model)


def _parameters(pipeline: Any) -> Collection[str]:
    """Return the names of the arguments of a pipeline class."""
    return inspect.signature(pipeline.__call__).parameters


def pipeline_parts(model: str) -> dict[str, Any]:
    """Return the class name and the parts of a model's pipeline, without loading it.

    Args:
        model: ``miniature``, a folder, or a Hugging Face model id.

    Raises:
        InputError: The model does not exist, or its settings are damaged.
    """
    folder_or_id = locate_image_model(model) if model == MINIATURE else model
    return hub.read_settings(folder_or_id, PIPELINE_FILE, embedded=MINIATURE)
