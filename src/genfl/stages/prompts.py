"""prompts: what is the generator told?"""

from __future__ import annotations

import json
from typing import Any

from genfl.config import Config
from genfl.generators.base import Prompt
from genfl.prompts.plan import plan
from genfl.prompts.templates import Templates
from genfl.rng import Key
from genfl.run import Run
from genfl.stages.base import Stage
from genfl.storage import write_text

FILE = "prompts.jsonl"


def _run(run: Run) -> dict[str, Any]:
    config = run.config.prompts
    templates = _templates(run.config)
    key = Key(run.config.seeds[0]).fold("prompts")
    blocks = plan(run.labels, config.per_label, templates, config.guidance_scale, config.block_size, key)
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


def _templates(config: Config) -> Templates:
    return Templates(config.prompts.style, config.prompts.template, config.prompts.blanks)


def _inputs(config: Config) -> Any:
    return [config.prompts.model_dump(), config.seeds[0]]


STAGE = Stage("prompts", "prompts", 2, _inputs, ("labels",), _run, check=_templates)
