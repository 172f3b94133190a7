"""Chat models that transformers runs here: a folder, or a Hugging Face id."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from genfl import hub
from genfl.errors import GenflError, InputError, first_line
from genfl.llm.answers import Answer
from genfl.llm.thoughts import opened_thought, without_thoughts
from genfl.model_folders import CONFIG_FILE, OWN_CODE, check_weights, expanded


class LocalChat:
    """A causal language model with a chat template, in the precision of its weights.

    Args:
        model: A folder that ``save_pretrained`` wrote, or a Hugging Face id.
        device: A torch device.
        temperature: The temperature of sampling. Other settings, such as top_p and top_k, are those of the
            model's generation config.
        max_tokens: The length limit of an answer, in tokens.
        field: The section of the config, for messages.
        system: The system prompt; empty for none.

    Raises:
        InputError: The model does not exist, or it is not a chat model.
    """

    at_once = 1

    def __init__(
        self, model: str, device: str, temperature: float, max_tokens: int, field: str, system: str = ""
    ) -> None:
        self.tokenizer = _load_tokenizer(model, field, system)
        added = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | {*self.tokenizer.all_special_tokens}
        self.special = sorted(special, key=len, reverse=True)  # one may be part of another
        self.settings = {"do_sample": True, "temperature": temperature, "max_new_tokens": max_tokens}
        self.model: Any = hub.load_model(
            _transformers(field).AutoModelForCausalLM.from_pretrained,
            model,
            f"{field}.model",
            device,
            dtype="auto",
        ).eval()
        self.field = field
        self.system = system
        self.name = hub.model_name(model)

    def ask(self, query: str, seed: int) -> Answer:
        """Return an answer that is sampled from the seed; see `genfl.llm.chat.Chat`.

        Raises:
            InputError: The answer does not fit into memory.
            GenflError: The model fails.
        """
        inputs = self.tokenizer.apply_chat_template(
            _conversation(query, self.system),
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).to(self.model.device)
        cuda = [self.model.device] if self.model.device.type == "cuda" else []
        # transformers samples from torch's global stream only
        in_memory = hub.explain_out_of_memory(1, str(self.model.device), f"{self.field}.device")
        try:
            with in_memory, torch.random.fork_rng(cuda), torch.no_grad():
                torch.manual_seed(seed)
                tokens = self.model.generate(**inputs, **self.settings)[0, inputs["input_ids"].shape[1] :]
        except GenflError:
            raise
        except Exception as error:  # settings of the model that do not fit, or a query that is too long
            raise GenflError(
                f"{self.field}.model: {self.name} cannot answer a query of {inputs['input_ids'].shape[1]}"
                f" tokens ({first_line(error)}); use another model"
            ) from error
        ends = self.model.generation_config.eos_token_id  # one, several or none
        cut = tokens[-1].item() not in (ends if isinstance(ends, list) else [ends])
        # The marks of thoughts may be special tokens, so these are decoded, too.
        opened = opened_thought(self.tokenizer.decode(inputs["input_ids"][0]))
        text = f"{opened}{self.tokenizer.decode(tokens)}"
        return Answer(without_thoughts(text, self.special), cut)

    @torch.inference_mode()
    def log_likelihoods(self, query: str, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how likely each text is as the whole answer to a query.

        An answer is a text and the token that ends it, so that a text which begins like another is not
        always the likelier one. The texts form one batch.

        Args:
            query: The message.
            texts: Possible answers.

        Returns:
            The log-probability of each answer, and its number of tokens, float32 [texts] each.

        Raises:
            InputError: The batch does not fit into memory.
            GenflError: The model fails.
        """
        prompt = self.tokenizer.apply_chat_template(
            _conversation(query, self.system), add_generation_prompt=True, return_dict=True
        )["input_ids"]
        ends = self.model.generation_config.eos_token_id
        end = ends[:1] if isinstance(ends, list) else [ends] if ends is not None else []
        answers = [[*self.tokenizer.encode(text, add_special_tokens=False), *end] for text in texts]
        longest = max(map(len, answers))
        tokens = torch.zeros(len(answers), len(prompt) + longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, answer in enumerate(answers):
            tokens[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            mask[row, : len(prompt) + len(answer)] = 1
        device = self.model.device
        # most models can leave out the logits of the query, which are many
        keeps = {"logits_to_keep": longest + 1}
        known = inspect.signature(self.model.forward).parameters
        in_memory = hub.explain_out_of_memory(len(texts), str(device), f"{self.field}.device")
        try:
            with in_memory:
                logits = self.model(
                    input_ids=tokens.to(device),
                    attention_mask=mask.to(device),
                    **(keeps if keeps.keys() <= known.keys() else {}),
                ).logits[:, -longest - 1 : -1]
        except GenflError:
            raise
        except Exception as error:  # a query that is too long
            raise GenflError(
                f"{self.field}.model: {self.name} cannot read a query of {len(prompt)} tokens"
                f" ({first_line(error)}); use another model"
            ) from error
        said, counted = tokens[:, len(prompt) :], mask[:, len(prompt) :]
        likely = logits.float().log_softmax(-1).cpu().gather(2, said[..., None])[..., 0]
        return (likely * counted).sum(1), counted.sum(1).float()


def check_local_model(model: str, field: str, system: str = "") -> None:
    """Check that a model is a chat model, without loading its weights.

    Args:
        model: A folder, or a Hugging Face id.
        field: The section of the config, for messages.
        system: The system prompt; empty for none.

    Raises:
        InputError: The model does not exist, it is not a chat model, or it takes no system prompt.
    """
    transformers = _transformers(field)
    settings = hub.read_settings(model, CONFIG_FILE, f"{field}.model")
    kind = settings.get("model_type")
    if kind not in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        problem = OWN_CODE if "auto_map" in settings else f"a model of type {kind!r} writes no texts"
        raise InputError(
            f"{field}.model: {model!r} is not a chat model of transformers: {problem}; use another model"
        )
    check_weights(model, f"{field}.model")
    _load_tokenizer(model, field, system)


def _load_tokenizer(model: str, field: str, system: str = "") -> Any:
    try:
        tokenizer = _transformers(field).AutoTokenizer.from_pretrained(
            expanded(model), trust_remote_code=False
        )
        if tokenizer.chat_template:
            tokenizer.apply_chat_template(_conversation("hello"), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # transformers, tokenizers and Jinja raise their own errors
        raise InputError(
            f"{field}.model: the tokenizer of {model!r} cannot be used ({hub.hub_reason(error)}); give a chat"
            " model that save_pretrained wrote"
        ) from error
    if not tokenizer.chat_template:
        raise InputError(
            f"{field}.model: {model!r} is not a chat model, because its tokenizer has no chat template; use"
            " another model"
        )
    if system:
        _check_system_prompt(tokenizer, model, field)
    return tokenizer


def _check_system_prompt(tokenizer: Any, model: str, field: str) -> None:
    """Check that a chat template shows the system prompt to the model: some reject it, some drop it."""
    mark = "a mark of genfl"
    try:
        shown = tokenizer.apply_chat_template(
            _conversation("hello", mark), tokenize=False, add_generation_prompt=True
        )
    except Exception:  # templates raise their own errors
        shown = ""
    if mark not in shown:
        raise InputError(
            f"{field}.system: the chat template of {model!r} takes no system prompt; set system to an empty"
            " text and say it in query, or use another model"
        )


def _conversation(query: str, system: str = "") -> list[dict[str, str]]:
    """Return the messages of a query."""
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": query}]


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
