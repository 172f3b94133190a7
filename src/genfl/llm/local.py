"""Chat models that transformers runs here: a folder, or a Hugging Face id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genfl import hub
from genfl.data.folders import first_line
from genfl.errors import InputError
from genfl.llm.answers import Answer
from genfl.llm.thoughts import opened_thought, without_thoughts


class LocalChat:
    """A causal language model with a chat template, in the precision of its weights.

    Args:
        model: A folder that ``save_pretrained`` wrote, or a Hugging Face id.
        device: A torch device.
        temperature: The temperature of sampling. Other settings, such as top_p and top_k, are those of the
            model's generation config.
        max_tokens: The length limit of an answer, in tokens.
        field: The section of the config, for messages.

    Raises:
        InputError: The model does not exist, or it is not a chat model.
    """

    at_once = 1

    def __init__(self, model: str, device: str, temperature: float, max_tokens: int, field: str) -> None:
        self.tokenizer = _load_tokenizer(model, field)
        added = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | {*self.tokenizer.all_special_tokens}
        self.special = sorted(special, key=len, reverse=True)  # one may be part of another
        self.settings = {"do_sample": True, "temperature": temperature, "max_new_tokens": max_tokens}
        try:
            loaded = _transformers(field).AutoModelForCausalLM.from_pretrained(
                model,
                dtype="auto",
                use_safetensors=True,  # never a pickle
            )
            self.model: Any = loaded.to(device).eval()
        except (
            Exception
        ) as error:  # transformers and safetensors raise their own errors, torch those of memory
            raise InputError(
                f"{field}.model: {model!r} could not be loaded ({first_line(error)}); give a chat model with"
                " safetensors files"
            ) from error
        self.field = field

    def ask(self, query: str, seed: int) -> Answer:
        """Return an answer that is sampled from the seed; see `genfl.llm.chat.Chat`.

        Raises:
            InputError: The answer does not fit into memory.
        """
        inputs = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": query}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).to(self.model.device)
        cuda = [self.model.device] if self.model.device.type == "cuda" else []
        # transformers samples from torch's global stream only
        in_memory = hub.explain_out_of_memory(1, str(self.model.device), f"{self.field}.device")
        with in_memory, torch.random.fork_rng(cuda), torch.no_grad():
            torch.manual_seed(seed)
            tokens = self.model.generate(**inputs, **self.settings)[0, inputs["input_ids"].shape[1] :]
        ends = self.model.generation_config.eos_token_id  # one, several or none
        cut = tokens[-1].item() not in (ends if isinstance(ends, list) else [ends])
        # The marks of thoughts may be special tokens, so these are decoded, too.
        opened = opened_thought(self.tokenizer.decode(inputs["input_ids"][0]))
        text = f"{opened}{self.tokenizer.decode(tokens)}"
        return Answer(without_thoughts(text, self.special), cut)


def check_local_model(model: str, field: str) -> None:
    """Check that a model is a chat model, without loading its weights.

    Args:
        model: A folder, or a Hugging Face id.
        field: The section of the config, for messages.

    Raises:
        InputError: The model does not exist, or it is not a chat model.
    """
    _load_tokenizer(model, field)


def _load_tokenizer(model: str, field: str) -> Any:
    transformers = _transformers(field)
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if not Path(model).is_dir() and not isinstance(try_to_load_from_cache(model, "config.json"), str):
            # fails at once if there is no network, where loading would try for a minute
            HfApi().model_info(model, timeout=10)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    except Exception as error:  # three libraries raise their own errors
        raise InputError(
            f"{field}.model: {model!r} is neither a folder with a chat model nor available from the Hugging"
            f" Face Hub ({first_line(error)}); give a folder or the id of a chat model"
        ) from error
    if not tokenizer.chat_template:
        raise InputError(
            f"{field}.model: {model!r} is not a chat model, because its tokenizer has no chat template; use"
            " another model"
        )
    return tokenizer


def _transformers(field: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"{field}.model: a model that runs here needs transformers, which is not installed; run pip"
            " install 'genfl[text]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers
