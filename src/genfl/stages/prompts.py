"""prompts: what is the generator told?"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, cast

from genfl import progress
from genfl.config import Config, Section
from genfl.data.samples import Prompt
from genfl.data.sources import DATASETS
from genfl.errors import InputError
from genfl.experiment.folder import Run
from genfl.generators.registry import GENERATORS
from genfl.llm.chat import HOW, check, connect, each, fingerprint
from genfl.prompts.llm import ASKED, Asked, Described, describe
from genfl.prompts.plan import plan
from genfl.prompts.templates import Style, Templates
from genfl.rng import Key
from genfl.stages.base import Stage
from genfl.storage import write_text

FILE = "prompts.jsonl"
SECTION = "prompts.llm"


def _run(run: Run) -> dict[str, Any]:
    config = run.config.prompts
    key = Key(run.config.seeds[0]).fold("prompts")
    source = _described(run, config.style, key) if config.style in ASKED else templates(run.config)
    blocks = plan(
        run.labels, config.per_label, source, config.guidance_scale, config.block_size, key, config.wrong
    )
    lines = [json.dumps({"block": n, **_row(p)}) for n, block in enumerate(blocks) for p in block]
    write_text(run.folder / STAGE.folder / FILE, "\n".join(lines) + "\n")
    texts = {prompt.text for block in blocks for prompt in block}
    return {
        "samples": len(lines),
        "blocks": len(blocks),
        "distinct": len(texts),
        "examples": sorted(texts)[:5],
    }


def _row(prompt: Prompt) -> dict[str, Any]:
    row = prompt._asdict()
    del row["guides"]  # real examples never leave their client
    return row


def read(run: Run) -> list[list[Prompt]]:
    """Returns the blocks of prompts that this stage wrote."""
    blocks: dict[int, list[Prompt]] = {}
    for line in (run.folder / STAGE.folder / FILE).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        blocks.setdefault(row.pop("block"), []).append(Prompt(**row))
    return list(blocks.values())


def templates(config: Config) -> Templates:
    """Returns a config's sentences; of styles that ask a language model, those of the style multiple."""
    prompts, modality = config.prompts, DATASETS[config.data.name].modality
    style = "multiple" if prompts.style in ASKED else prompts.style
    return Templates(cast(Style, style), prompts.template, prompts.blanks, modality)


def _described(run: Run, style: Asked, key: Key) -> Described:
    settings, modality = run.config.prompts.llm, DATASETS[run.config.data.name].modality
    assert settings is not None
    chat = connect(settings.options(), SECTION, run.answers)
    with progress.bar("prompts", len(run.labels), "labels") as advance:

        def of(label: str) -> list[str]:
            found = describe(
                chat,
                style,
                label,
                run.labels,
                modality,
                distinct=settings.distinct,
                attempts=settings.attempts,
                key=key.fold("llm", label),
                fallback=templates(run.config) if settings.fallback else None,
            )
            advance(1)
            return found

        return Described(dict(zip(run.labels, each(chat, of, run.labels), strict=True)))


def _check(config: Config) -> None:
    templates(config)
    settings = config.prompts.llm
    if settings is None:
        return
    if not GENERATORS[config.generator.kind].prompted:
        raise InputError(
            f"prompts.style: {config.generator.kind} takes samples as they are, so there is nothing to ask a"
            " language model for; leave style and llm out"
        )
    check(settings.options(), SECTION)


def _inputs(config: Config) -> Any:
    settings = config.prompts.llm
    asked = fingerprint(settings.options()) if settings else None
    llm = deciding(settings, {"model"}) if settings else None  # its fingerprint says which
    return [config.prompts.model_dump() | {"llm": llm}, asked, config.seeds[0]]


def deciding(section: Section, without: Collection[str] = ()) -> dict[str, Any]:
    """Returns a section's settings without those that decide nothing of what a model makes.

    Args:
        section: It says which model, and how it is run or asked.
        without: What else is left out.
    """
    settings = section.model_dump(exclude={*HOW, *without})
    if "device" in settings:
        settings["device"] = settings["device"].partition(":")[0]  # not which of several
    return settings


STAGE = Stage(
    "prompts",
    "prompts",
    3,
    _inputs,
    ("labels",),
    _run,
    check=_check,
    wanted=lambda config: config.generates,
)
