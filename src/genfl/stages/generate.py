"""generate: prompts become a labelled synthetic data set on disk."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch

from genfl import progress
from genfl.config import Config
from genfl.data.media import MEDIA, Modality
from genfl.data.sources import DATASETS
from genfl.data.synthetic import SyntheticData
from genfl.errors import InputError
from genfl.generators.registry import GENERATORS, GeneratorEntry, Purpose
from genfl.run import Run, data_set
from genfl.stages import prompts
from genfl.stages.base import Stage


def _run(run: Run) -> dict[str, Any]:
    entry, options = _entry(run.config)
    purpose = _purpose(run.config, run.labels)
    blocks = prompts.read(run)
    data = SyntheticData(run.folder / STAGE.folder, run.labels, len(blocks), purpose.modality)
    missing = data.missing()
    total = sum(map(len, blocks))
    done = total - sum(len(blocks[number]) for number in missing)
    if missing:
        generator = entry.make(options, purpose)
        with progress.bar("generate", total, "samples", done) as advance:
            for number in missing:
                began = time.perf_counter()
                samples = list(generator.generate(blocks[number]))
                data.write(number, samples, generator.id, time.perf_counter() - began, entry.prompted)
                advance(len(samples))
    facts = generator_facts(run.config)
    if entry.prompted:
        facts["guidance scales"] = ", ".join(f"{scale:g}" for scale in run.config.prompts.guidance_scale)
        facts["prompts, for example"] = "; ".join(run.result("prompts")["examples"])
    data.write_card("Synthetic data", facts)
    # The shards' own times add up over interruptions; this call's clock would not.
    seconds = sum(shard.seconds for shard in data.finished().values())
    return {
        "samples": total,
        "bytes": sum((data.folder / shard.file).stat().st_size for shard in data.finished().values()),
        "seconds": round(seconds, 3),
        "samples_per_second": round(total / max(seconds, 0.001), 2),
    }


def read(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the synthetic data as inputs [m, ...] stored like the private ones, and class indices [m]."""
    contents, names = SyntheticData.open(run.folder / STAGE.folder).read()
    encode = data_set(run.config.data).encode
    x = torch.stack([encode(content) for content in contents])
    return x, torch.tensor([run.labels.index(name) for name in names])


def _progress(run: Run) -> tuple[int, int, str]:
    total = run.result("prompts")["samples"]
    folder = run.folder / STAGE.folder
    if not (folder / "manifest.json").exists():
        return 0, total, "samples"
    return sum(shard.rows for shard in SyntheticData.open(folder).finished().values()), total, "samples"


def _check(config: Config) -> None:
    (entry, options), modality = _entry(config), _modality(config)
    if modality not in entry.modalities:
        kinds = ", ".join(kind for kind, other in GENERATORS.items() if modality in other.modalities)
        raise InputError(
            f"generator.kind: {config.generator.kind} makes no {MEDIA[modality].what}, which"
            f" {config.data.name} consists of; use one of: {kinds}"
        )
    if not entry.prompted and config.prompts.style == "fill":
        raise InputError(
            f"prompts.style: {config.generator.kind} takes samples as they are, and no prompt says what is in"
            " them; leave style, template and blanks out"
        )
    entry.check(options, _purpose(config, sorted(set(data_set(config.data).train.labels))))


def inputs(config: Config) -> Any:
    """Returns what decides the generator."""
    entry, options = _entry(config)
    return [config.generator.model_dump(exclude={"path"}), entry.fingerprint(options, _modality(config))]


def generator_facts(config: Config) -> dict[str, Any]:
    """Returns what a data card and a report say of the generator."""
    entry, options = _entry(config)
    return entry.facts(options)


def _entry(config: Config) -> tuple[GeneratorEntry, dict[str, Any]]:
    """Returns the config's kind of generator, and its options."""
    return GENERATORS[config.generator.kind], config.generator.model_dump(exclude={"kind"})


def _purpose(config: Config, labels: Sequence[str]) -> Purpose:
    recipe = DATASETS[config.data.name].recipe
    return Purpose(
        modality=_modality(config),
        labels=[unicodedata.normalize("NFC", label) for label in labels],
        words=recipe.words if recipe else {},
        per_label=config.prompts.per_label,
        encode=data_set(config.data).encode,
        private=config.data.path,
    )


def _modality(config: Config) -> Modality:
    return DATASETS[config.data.name].modality


STAGE = Stage("generate", "synthetic", 4, inputs, ("labels", "prompts"), _run, _progress, _check)
