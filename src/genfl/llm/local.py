"""A chat model that transformers runs here: a folder, or a Hugging Face id."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from genfl.data.folders import first_line
from genfl.errors import InputError
from genfl.generators import pretrained
from genfl.llm.answers import Answer


class Local:
    """A causal language model with a chat template, in the precision of its weights.

    Args:
        model: A folder that ``save_pretrained`` wrote, or a Hugging Face id.
        device: A torch device.
        temperature: Of sampling; what else the model's own generation config says (top_p, top_k) stays.
        max_tokens: The longest answer.
        field: The section of the config, for messages.

    Raises:
        InputError: There is no such model, or it is none to chat with.
    """

    at_once = 1

    def __init__(self, model: str, device: str, temperature: float, max_tokens: int, field: str) -> None:
        self.tokenizer = _tokenizer(model, field)
        self.settings = {"do_sample": True, "temperature": temperature, "max_new_tokens": max_tokens}
        try:
            loaded = _transformers(field).AutoModelForCausalLM.from_pretrained(
                model,
                dtype="auto",
                use_safetensors=True,  # never a pickle
            )
            self.model: Any = loaded.to(device).eval()
        except Exception as error:  # of transformers and safetensors, which raise their own, and of torch
            raise InputError(f"{field}.model: {model!r} could not be loaded: {first_line(error)}") from error
        self.field = field

    def ask(self, query: str, seed: int) -> Answer:
        """Returns an answer, sampled from the seed; see `genfl.llm.chat.Chat`.

        Raises:
            InputError: It does not fit into memory.
        """
        inputs = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": query}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).to(self.model.device)
        cuda = [self.model.device] if self.model.device.type == "cuda" else []
        # transformers samples from torch's global stream only
        enough = pretrained.in_memory(1, str(self.model.device), f"{self.field}.device")
        with enough, torch.random.fork_rng(cuda), torch.no_grad():
            torch.manual_seed(seed)
            tokens = self.model.generate(**inputs, **self.settings)[0, inputs["input_ids"].shape[1] :]
        ends = self.model.generation_config.eos_token_id  # one, several or none
        cut = tokens[-1].item() not in (ends if isinstance(ends, list) else [ends])
        return Answer(self.tokenizer.decode(tokens, skip_special_tokens=True), cut)


def check(model: str, field: str) -> None:
    """Refuses a model that is not there, or none to chat with, without loading its weights.

    Raises:
        InputError: It is so.
    """
    _tokenizer(model, field)


@lru_cache(maxsize=2)
def _tokenizer(model: str, field: str) -> Any:
    transformers = _transformers(field)
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if not Path(model).is_dir() and not isinstance(try_to_load_from_cache(model, "config.json"), str):
            HfApi().model_info(model, timeout=10)  # loading would try for a minute where there is no network
        found = transformers.AutoTokenizer.from_pretrained(model)
    except Exception as error:  # of three libraries, which raise their own
        raise InputError(
            f"{field}.model: {model!r} is no folder with a chat model, and none to be had from the Hugging"
            f" Face Hub now ({first_line(error)})"
        ) from error
    if not found.chat_template:
        raise InputError(f"{field}.model: {model!r} is no chat model: its tokenizer has no chat template")
    return found


def _transformers(field: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"{field}.model: it needs transformers: pip install 'genfl[text]'") from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers
