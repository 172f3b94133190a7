"""Sounds from a text-to-audio diffusion model: AudioLDM or AudioLDM 2, by folder or id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch

from genfl import hub
from genfl.data.samples import Prompt, Sample
from genfl.errors import InputError
from genfl.generators import pretrained
from genfl.generators.base import Generator
from genfl.generators.pretrained import Embeddings

PIPELINES = ("AudioLDMPipeline", "AudioLDM2Pipeline")

EMBEDDINGS = ("prompt_embeds", "attention_mask", "generated_prompt_embeds")
"""What their encoders return, in order, each for no prompt and for the prompt; AudioLDM's only the first."""


class Sound(Generator):
    """Text to sound, with the model's own scheduler.

    Each distinct prompt is encoded once and alone; guidance leads away from the empty one.

    Source: Liu et al., ICML 2023 (arXiv 2301.12503); AudioLDM 2: Liu et al., arXiv 2308.05734.

    Args:
        model: A folder that a pipeline's ``save_pretrained`` wrote, or a Hugging Face model id.
        steps: Denoising steps.
        seconds: How long a clip is.
        device: A torch device; half precision is used on CUDA.

    Raises:
        InputError: diffusers is not installed, or there is no such model.
    """

    def __init__(self, model: str, steps: int = 100, seconds: float = 5.0, device: str = "cpu") -> None:
        check(model)
        hub.hush()
        import diffusers

        self.pipeline: Any = hub.load_model(
            diffusers.DiffusionPipeline.from_pretrained,
            model,
            device=device,
            dtype=hub.dtype_on(device),
        )
        self.pipeline.set_progress_bar_config(disable=True)
        _make_generate(self.pipeline)
        self.id = hub.model_name(model)
        self.steps = steps
        self.seconds = seconds
        self.device = device
        self.embedding = lru_cache(pretrained.CACHED_PROMPTS)(self._embedding)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Makes a clip of 16 kHz for each prompt of a block; see `genfl.generators.base.Generator`.

        Raises:
            ValueError: The prompts have different guidance scales.
            InputError: The block does not fit into memory.
        """
        with pretrained.in_memory(len(prompts), self.device):
            sounds = self.pipeline(
                num_inference_steps=self.steps,
                audio_length_in_s=self.seconds,
                **pretrained.draws(prompts, self.device),
                **pretrained.together([self.embedding(prompt.text) for prompt in prompts]),
            ).audios
        rate = self.pipeline.vocoder.config.sampling_rate
        for prompt, samples in zip(prompts, sounds, strict=True):
            yield Sample(prompt, pretrained.clip(samples, rate))

    def _embedding(self, text: str) -> Embeddings:
        """Encodes a text and the empty one: what AudioLDM 2 makes of that depends on the text's length."""
        pipeline = self.pipeline
        encode = getattr(pipeline, "encode_prompt", None) or pipeline._encode_prompt
        with torch.no_grad():
            found = encode(text, self.device, 1, True)
        parts = found if isinstance(found, tuple) else (found,)
        return {
            sign + name: part[row]
            for row, sign in enumerate(("negative_", ""))
            for name, part in zip(EMBEDDINGS, parts, strict=False)
        }


def _make_generate(pipeline: Any) -> None:
    """Has the language model of AudioLDM 2 generate, as the pipeline wants it to.

    The published ones hold a GPT2Model, which transformers 5 lets no longer generate without a head. That is
    not used: what is generated are hidden states.
    """
    model: Any = getattr(pipeline, "language_model", None)
    if type(model).__name__ != "GPT2Model":
        return
    from transformers import GPT2LMHeadModel

    with torch.device("meta"):
        whole: Any = GPT2LMHeadModel(model.config)
    whole.transformer = model
    whole.tie_weights()
    pipeline.register_modules(language_model=whole.eval())


def check(model: str) -> None:
    """Refuses models that are none of these, without loading them.

    Raises:
        InputError: diffusers is not installed, there is no such model, or it is another one.
    """
    hub.require_libraries("sound")
    name = hub.read_settings(model, hub.PIPELINE_FILE)["_class_name"]
    if name not in PIPELINES:
        raise InputError(f"generator.model: {model} is a {name}; sound takes AudioLDM or AudioLDM 2")
    hub.check_weights(model)
