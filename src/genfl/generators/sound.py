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
from genfl.model_folders import PIPELINE_FILE, check_weights

AUDIOLDM_PIPELINES = ("AudioLDMPipeline", "AudioLDM2Pipeline")
"""The pipelines of diffusers that this generator runs."""

AUDIOLDM_EMBEDDINGS = ("prompt_embeds", "attention_mask", "generated_prompt_embeds")
"""What the encoders return, in order; AudioLDM's only the first.

Each has two rows: the first is for the empty prompt, the second for the prompt.
"""


class Sound(Generator):
    """A text-to-audio model with its own scheduler.

    Each distinct prompt is encoded once and alone. Guidance leads away from the empty prompt.

    Source: Liu et al., ICML 2023 (arXiv 2301.12503); AudioLDM 2: Liu et al., arXiv 2308.05734.

    Args:
        model: A folder that a pipeline's ``save_pretrained`` wrote, or a Hugging Face model id.
        steps: Denoising steps, at least 1.
        seconds: The length of a clip.
        device: A torch device. On CUDA, the model runs in half precision.

    Raises:
        InputError: diffusers is not installed, or the model does not exist.
    """

    def __init__(self, model: str, steps: int = 100, seconds: float = 5.0, device: str = "cpu") -> None:
        check_sound_model(model)
        hub.silence_libraries()
        import diffusers

        self.pipeline: Any = hub.load_model(
            diffusers.DiffusionPipeline.from_pretrained,
            model,
            device=device,
            dtype=hub.dtype_on(device),
        )
        self.pipeline.set_progress_bar_config(disable=True)
        _add_language_model_head(self.pipeline)
        self.id = hub.model_name(model)
        self.steps = steps
        self.seconds = seconds
        self.device = device
        self.embedding = lru_cache(pretrained.CACHED_PROMPTS)(self._embedding)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Sample]:
        """Make a clip of 16 kHz for each prompt of a block; see `genfl.generators.base.Generator`.

        Raises:
            ValueError: The prompts have different guidance scales.
            InputError: The block does not fit into memory.
        """
        with hub.explain_out_of_memory(len(prompts), self.device):
            sounds = self.pipeline(
                num_inference_steps=self.steps,
                audio_length_in_s=self.seconds,
                **pretrained.guidance_and_noise(prompts, self.device),
                **pretrained.stack_embeddings([self.embedding(prompt.text) for prompt in prompts]),
            ).audios
        rate = self.pipeline.vocoder.config.sampling_rate
        for prompt, samples in zip(prompts, sounds, strict=True):
            yield Sample(prompt, pretrained.clip_of(samples, rate))

    def _embedding(self, text: str) -> Embeddings:
        """Encode a text and the empty prompt, whose encoding by AudioLDM 2 depends on the text's length."""
        pipeline = self.pipeline
        encode = getattr(pipeline, "encode_prompt", None) or pipeline._encode_prompt
        with torch.no_grad():
            encoded = encode(text, self.device, 1, True)
        parts = encoded if isinstance(encoded, tuple) else (encoded,)
        return {
            sign + name: part[row]
            for row, sign in enumerate(("negative_", ""))
            for name, part in zip(AUDIOLDM_EMBEDDINGS, parts, strict=False)
        }


def _add_language_model_head(pipeline: Any) -> None:
    """Make the language model of AudioLDM 2 able to generate, as the pipeline expects.

    The published models hold a GPT2Model, which cannot generate without a head since transformers 5. The head
    is never used, because the pipeline generates hidden states.
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


def check_sound_model(model: str) -> None:
    """Check that a model is AudioLDM or AudioLDM 2, without loading it.

    Args:
        model: A folder, or a Hugging Face model id.

    Raises:
        InputError: diffusers is not installed, the model does not exist, or it is another model.
    """
    hub.require_libraries("sound")
    name = hub.read_settings(model, PIPELINE_FILE)["_class_name"]
    if name not in AUDIOLDM_PIPELINES:
        raise InputError(f"generator.model: {model} is a {name}; use AudioLDM or AudioLDM 2")
    check_weights(model)
