"""generate: prompts become a labelled synthetic data set on disk."""

from __future__ import annotations

import logging
import time
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch

from genfl import progress
from genfl.config import Config
from genfl.data import quality
from genfl.data.media import MEDIA, Modality
from genfl.data.sources import DATASETS, folder_of
from genfl.data.synthetic import SyntheticData
from genfl.errors import InputError
from genfl.experiment.context import data_of, data_set
from genfl.experiment.folder import Run
from genfl.generators.base import Generator
from genfl.generators.registry import GENERATORS, GeneratorEntry, Purpose
from genfl.stages import prompts
from genfl.stages.base import Stage

log = logging.getLogger(__name__)

GUIDED = {"strength", "shots", "trusted"}
"""The settings of generators that matter only where real examples guide them."""

PLACES = {"path", "model", "vocoder", "speakers"}
"""The settings of generators that say where something is, of which fingerprints say what it is."""

HOPELESS = 10
"""Of the first so many samples, one at least must be usable."""


def _run(run: Run) -> dict[str, Any] | None:
    entry, options = _entry(run.config)
    modality = _modality(run.config)
    blocks = prompts.read(run)
    data = SyntheticData(run.folder / STAGE.folder, run.labels, len(blocks), modality)
    for folder in run.shares:
        _adopt(run, Run(run.config, folder), data)
    own = range(run.share.number, len(blocks), run.share.of) if run.share else range(len(blocks))
    missing = [number for number in data.missing() if number in own]
    if missing:
        total, left = (sum(len(blocks[number]) for number in numbers) for numbers in (own, missing))
        generator = make(run)
        generator.check_prompts([prompt for block in blocks for prompt in block])
        with progress.bar("generate", total, "samples", total - left) as advance:
            for number in missing:
                began = time.perf_counter()
                samples = list(generator.generate(blocks[number]))
                seconds = time.perf_counter() - began
                kept, removed = quality.sift(samples, modality)
                data.write(number, kept, generator.id, seconds, entry.prompted, removed)
                advance(len(samples))
                if not kept:
                    _refuse_hopeless(data)
    if run.share:
        log.info("generate: shard %s is made, %d of %d blocks", run.share, len(own), len(blocks))
        return None
    return _finish(run, data, entry, options)


def _refuse_hopeless(data: SyntheticData) -> None:
    """Stops a generator that makes nothing usable before all is made, and paid for.

    Raises:
        InputError: Nothing is left of `HOPELESS` samples or more.
    """
    made = sum(shard.made for shard in data.finished().values())
    if made >= HOPELESS and not data.files():
        reasons = sorted({reason for counts in data.removed().values() for reason in counts})
        data.forget()  # what is mended may be outside the config
        raise InputError(
            f"generator: nothing is left of the first {made} samples ({', '.join(reasons)}); change the"
            " generator's settings, or the prompts"
        )


def _adopt(run: Run, other: Run, data: SyntheticData) -> None:
    """Takes over what another process generated for a run."""
    folder = other.folder / STAGE.folder
    if not (folder / "manifest.json").exists():
        return
    # a language model may give other prompts when it is asked again
    if other.key(STAGE.name) == run.key(STAGE.name) and prompts.read(other) == prompts.read(run):
        data.adopt(SyntheticData.open(folder))
    else:
        log.warning(
            "generate: %s is of another config, or of other prompts; nothing is taken from it", other.folder
        )


def _finish(run: Run, data: SyntheticData, entry: GeneratorEntry, options: dict[str, Any]) -> dict[str, Any]:
    """Judges the whole data set, writes its card, and returns its figures."""
    found = quality.survey(data)
    left_out = {
        label: ", ".join(f"{count} {reason}" for reason, count in sorted(counts["removed"].items()))
        for label, counts in found.items()
        if counts["removed"]
    }
    for label, reasons in left_out.items():
        if not found[label]["samples"]:
            raise InputError(
                f"generator: nothing is left of the label {label!r}, all of whose samples are left out"
                f" ({reasons}); change the generator's settings, or the prompts"
            )
        log.warning("generate: samples of %r are left out: %s", label, reasons)
    samples, duplicates, near = (
        sum(counts[what] for counts in found.values())
        for what in ("samples", "duplicates", "near_duplicates")
    )
    if 2 * duplicates >= samples:
        log.warning("generate: %d of %d samples repeat another, to the byte", duplicates, samples)
    facts = generator_facts(run.config)
    if entry.prompted:
        facts["guidance scales"] = ", ".join(f"{scale:g}" for scale in run.config.prompts.guidance_scale)
        if run.config.prompts.wrong:
            facts["labels that are wrong on purpose"] = f"{100 * run.config.prompts.wrong:g} %"
        facts["prompts, for example"] = "; ".join(run.result("prompts")["examples"])
    facts["left out"] = "; ".join(f"{label}: {reasons}" for label, reasons in left_out.items()) or "nothing"
    facts["exact duplicates"] = duplicates
    facts[f"near-duplicates ({quality.MEASURES[data.modality].means})"] = near
    data.write_card("Synthetic data", facts)
    # The shards' own times add up over interruptions and processes; this call's clock would not.
    shards = data.finished().values()
    seconds = sum(shard.seconds for shard in shards)
    return {
        "samples": samples,
        "removed": sum(shard.made - shard.rows for shard in shards),
        "duplicates": duplicates,
        "near_duplicates": near,
        "bytes": sum(file.stat().st_size for file in data.files()),
        "seconds": round(seconds, 3),
        "samples_per_second": round(samples / max(seconds, 0.001), 2),
        "labels": found,
    }


def read(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the synthetic data as inputs [m, ...] stored like the private ones, and class indices [m]."""
    data, encode = SyntheticData.open(run.folder / STAGE.folder), data_of(run).encode
    x, names = data.read(lambda cell: encode(data.medium.read(cell)))
    return torch.stack(x), torch.tensor([run.labels.index(name) for name in names])


def _progress(run: Run) -> tuple[int, int, str]:
    total = run.result("prompts")["samples"]
    folder = run.folder / STAGE.folder
    if not (folder / "manifest.json").exists():
        return 0, total, "samples"
    return sum(shard.made for shard in SyntheticData.open(folder).finished().values()), total, "samples"


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
    if not entry.prompted and config.prompts.wrong:
        raise InputError(f"prompts.wrong: {config.generator.kind} has no prompts to be wrong; leave it out")
    if config.generator.kind == "text" and config.prompts.wrong:
        raise InputError(
            "prompts.wrong: a language model is told the true class beside the prompt; leave it out, or use"
            " another kind of generator"
        )
    entry.check(options, _purpose(config, sorted(set(data_set(config.data).train.labels))))


def inputs(config: Config) -> Any:
    """Returns what decides what a generator makes of prompts alone."""
    entry, options = _entry(config)
    settings = prompts.deciding(config.generator, PLACES | GUIDED)
    return [settings, entry.fingerprint(options, _modality(config))]


def make(run: Run) -> Generator:
    """Returns the generator of a run."""
    entry, options = _entry(run.config)
    return entry.make(options, _purpose(run.config, run.labels)._replace(answers=run.answers))


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
        private=folder_of(recipe, config.data.path, config.data.name) if recipe else None,
    )


def _modality(config: Config) -> Modality:
    return DATASETS[config.data.name].modality


STAGE = Stage(
    "generate",
    "synthetic",
    5,
    inputs,
    ("labels", "prompts"),
    _run,
    _progress,
    _check,
    wanted=lambda config: config.generates,
)
