"""The stage prompts: write the prompts of all samples."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from genfl import progress
from genfl.config import Config, Section
from genfl.config.generation import PromptModel, Prompts
from genfl.data.media import Modality
from genfl.data.samples import Prompt
from genfl.data.sources import DATASETS
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.generators.registry import GENERATORS
from genfl.llm.chat import TRANSPORT_OPTIONS, chat_fingerprint, check_chat_model, connect, map_queries
from genfl.llm.queries import PROMPT_QUERIES, ChatQuery, chat_query
from genfl.prompts.llm import ASKED, DEFAULT_QUERIES, Asked, PromptLists, write_prompts
from genfl.prompts.plan import plan_prompts
from genfl.prompts.templates import Style, Templates
from genfl.rng import Key
from genfl.stages.base import IGNORED, Stage, StageRun, Without
from genfl.storage import write_text

PROMPTS_FILE = "prompts.jsonl"
SECTION = "prompts.llm"


@dataclass(frozen=True)
class PromptInputs:
    """The inputs of the prompts, besides the label names.

    Attributes:
        prompts: The section of the config.
        llm: The settings of the language model that change its answers; None without a language model.
        llm_fingerprint: The identity of the language model.
        modality: The kind of samples that the prompts describe.
        seed: The seed of the draws.
        generator: The kind of generator.
    """

    prompts: Annotated[Prompts, Without({"llm"})]
    llm: dict[str, Any] | None
    llm_fingerprint: Any
    modality: Modality
    seed: int
    generator: Annotated[str, IGNORED]


def _inputs(config: Config, context: RunContext) -> PromptInputs:
    settings = config.prompts.llm
    options = _chat_options(settings, _query(config.prompts)) if settings else None
    return PromptInputs(
        config.prompts,
        # the fingerprint identifies the model
        deciding(settings, {"model", *TRANSPORT_OPTIONS}) if settings else None,
        context.once(("llm", str(options)), lambda: chat_fingerprint(options)) if options else None,
        DATASETS[config.data.name].modality,
        config.seeds[0],
        config.generator.kind,
    )


def _run(inputs: PromptInputs, work: StageRun) -> dict[str, Any]:
    prompts, labels = inputs.prompts, work.upstream.labels
    key = Key(inputs.seed).fold("prompts")
    if prompts.style in ASKED:
        assert prompts.llm is not None
        source: Any = _described(prompts, prompts.llm, inputs.modality, labels, key, work.answers)
    else:
        source = templates(prompts, inputs.modality)
    blocks = plan_prompts(
        labels, prompts.per_label, source, prompts.guidance_scale, prompts.block_size, key, prompts.wrong
    )
    lines = [json.dumps({"block": n, **_row(p)}) for n, block in enumerate(blocks) for p in block]
    write_text(work.folder / PROMPTS_FILE, "\n".join(lines) + "\n")
    texts = {prompt.text for block in blocks for prompt in block}
    return {
        "samples": len(lines),
        "blocks": len(blocks),
        "distinct": len(texts),
        "examples": sorted(texts)[:5],
    }


def _row(prompt: Prompt) -> dict[str, Any]:
    row = prompt._asdict()
    del row["guides"], row["guide_labels"]  # real examples never leave their client
    return row


def read_prompts(folder: Path) -> list[list[Prompt]]:
    """Return the blocks of prompts that this stage wrote to its folder."""
    blocks: dict[int, list[Prompt]] = {}
    for line in (folder / PROMPTS_FILE).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        blocks.setdefault(row.pop("block"), []).append(Prompt(**row))
    return list(blocks.values())


def templates(prompts: Prompts, modality: Modality) -> Templates:
    """Return the sentences of a config. For the styles llm and scenes, those of the style multiple."""
    style = "multiple" if prompts.style in ASKED else prompts.style
    return Templates(cast(Style, style), prompts.template, prompts.blanks, modality)


def _query(prompts: Prompts) -> ChatQuery:
    """Return the query of a config with a language model, and its system prompt."""
    assert prompts.llm is not None
    text = prompts.llm.query or DEFAULT_QUERIES[cast(Asked, prompts.style)]
    return chat_query(text, PROMPT_QUERIES, prompts.llm.system)


def _chat_options(llm: PromptModel, query: ChatQuery) -> dict[str, Any]:
    """Return the options of the chat model, with the system prompt of its query."""
    return llm.options() | {"system": query.system}


def _described(
    prompts: Prompts, llm: PromptModel, modality: Modality, labels: list[str], key: Key, answers: Path
) -> PromptLists:
    query = _query(prompts)
    chat = connect(_chat_options(llm, query), SECTION, answers)
    with progress.bar("prompts", len(labels), "labels") as advance:

        def describe_label(label: str) -> list[str]:
            texts = write_prompts(
                chat,
                cast(Asked, prompts.style),
                label,
                labels,
                modality,
                distinct=llm.distinct,
                attempts=llm.attempts,
                key=key.fold("llm", label),
                fallback=templates(prompts, modality) if llm.fallback else None,
                query=query,
            )
            advance(1)
            return texts

        return PromptLists(dict(zip(labels, map_queries(chat, describe_label, labels), strict=True)))


def _check(inputs: PromptInputs, context: RunContext) -> None:
    templates(inputs.prompts, inputs.modality)
    settings = inputs.prompts.llm
    if settings is None:
        return
    if not GENERATORS[inputs.generator].prompted:
        raise InputError(
            f"prompts.style: generator {inputs.generator} uses no prompts, so a language model has nothing to"
            " write; leave style and llm out"
        )
    check_chat_model(_chat_options(settings, _query(inputs.prompts)), SECTION)


def deciding(section: Section, without: Collection[str]) -> dict[str, Any]:
    """Return the settings of a section that change the output of a model.

    Args:
        section: A section with a model, and with settings of how it runs or is queried.
        without: The settings that change nothing.
    """
    settings = section.model_dump(exclude=set(without))
    if str(settings.get("device", "")).startswith("cuda"):
        settings["device"] = settings["device"].partition(":")[0]  # the number of the device does not matter
    return settings


STAGE = Stage(
    "prompts",
    "prompts",
    4,
    ("labels",),
    _inputs,
    _run,
    check=_check,
    wanted=lambda config: config.generates,
)
