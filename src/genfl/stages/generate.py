"""generate: prompts become a labelled synthetic data set on disk."""

from __future__ import annotations

import logging
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from genfl import progress
from genfl.config import Config, Data, Section
from genfl.config.generation import Prompts
from genfl.data import quality
from genfl.data.media import MEDIA, Modality
from genfl.data.sources import DATASETS, DataSet, folder_of
from genfl.data.synthetic import SyntheticData
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run
from genfl.generators.base import Generator
from genfl.generators.registry import GENERATORS, GeneratorEntry, Purpose
from genfl.stages import prompts as prompts_stage
from genfl.stages.base import IGNORED, Stage, StageRun
from genfl.stages.prompts import deciding, read_prompts

log = logging.getLogger(__name__)

GUIDED = {"strength", "shots", "trusted"}
"""The settings of generators that matter only where real examples guide them."""

PLACES = {"path", "model", "vocoder", "speakers"}
"""The settings of generators that say where something is, of which fingerprints say what it is."""

MOST_UNUSABLE = 10
"""If every one of the first samples, at least so many, is unusable, generation stops."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class GeneratorInputs:
    """What decides what a generator makes of a prompt.

    Attributes:
        settings: Its settings that matter, without those for real examples that guide it.
        fingerprint: Which model it is.
        section: The whole section of the config.
        modality: What it makes.
    """

    settings: dict[str, Any]
    fingerprint: Any
    section: Annotated[Section, IGNORED]
    modality: Annotated[Modality, IGNORED]

    @classmethod
    def of(cls, config: Config, context: RunContext) -> GeneratorInputs:
        """Return those of a config."""
        modality = DATASETS[config.data.name].modality
        options = config.generator.model_dump(exclude={"kind"})
        entry = GENERATORS[config.generator.kind]
        fingerprint = context.once(
            ("generator", config.generator.kind, str(options), modality),
            lambda: entry.fingerprint(options, modality),
        )
        return cls(deciding(config.generator, PLACES | GUIDED), fingerprint, config.generator, modality)

    @property
    def kind(self) -> str:
        """The kind of generator."""
        kind: str = self.section.kind  # type: ignore[attr-defined]
        return kind

    @property
    def entry(self) -> GeneratorEntry:
        """The kind's entry in the registry."""
        return GENERATORS[self.kind]

    @property
    def options(self) -> dict[str, Any]:
        """The generator's options."""
        return self.section.model_dump(exclude={"kind"})

    @property
    def facts(self) -> dict[str, Any]:
        """What a data card and a report say of the generator."""
        return self.entry.facts(self.options)

    def purpose(self, data: Data, per_label: int, labels: Sequence[str], context: RunContext) -> Purpose:
        """Return what a run wants the generator for.

        Args:
            data: The private data.
            per_label: How many samples of each label are wanted.
            labels: The label names.
            context: Of the run.
        """
        recipe = DATASETS[data.name].recipe
        return Purpose(
            modality=self.modality,
            labels=[unicodedata.normalize("NFC", label) for label in labels],
            words=recipe.words if recipe else {},
            per_label=per_label,
            encode=context.data_set(data).encode,
            private=folder_of(recipe, data.path, data.name) if recipe else None,
        )

    def make(
        self, data: Data, per_label: int, labels: Sequence[str], context: RunContext, answers: Path
    ) -> Generator:
        """Return the generator; see `purpose`.

        Args:
            data: The private data.
            per_label: How many samples of each label are wanted.
            labels: The label names.
            context: Of the run.
            answers: The folder of language models' answers.
        """
        purpose = self.purpose(data, per_label, labels, context)
        return self.entry.make(self.options, purpose._replace(answers=answers))


@dataclass(frozen=True)
class GenerateInputs:
    """What decides the synthetic data, besides label names and prompts.

    Attributes:
        generator: What makes it.
        prompts: The section of the prompts, which the stage before has read.
        data: The private data, of which only the form of an example matters.
    """

    generator: GeneratorInputs
    prompts: Annotated[Prompts, IGNORED]
    data: Annotated[Data, IGNORED]


def _inputs(config: Config, context: RunContext) -> GenerateInputs:
    return GenerateInputs(GeneratorInputs.of(config, context), config.prompts, config.data)


def _run(inputs: GenerateInputs, work: StageRun) -> dict[str, Any] | None:
    generator_inputs, labels = inputs.generator, work.upstream.labels
    entry, modality = generator_inputs.entry, generator_inputs.modality
    blocks = read_prompts(work.upstream.folder("prompts"))
    data = SyntheticData(work.folder, labels, len(blocks), modality)
    for shard in work.shards:
        _adopt(work, shard, data)
    shard_blocks = range(work.shard.number, len(blocks), work.shard.of) if work.shard else range(len(blocks))
    missing = [number for number in data.missing() if number in shard_blocks]
    if missing:
        total, left = (sum(len(blocks[number]) for number in numbers) for numbers in (shard_blocks, missing))
        generator = generator_inputs.make(
            inputs.data, inputs.prompts.per_label, labels, work.context, work.answers
        )
        generator.check_prompts([prompt for block in blocks for prompt in block])
        with progress.bar("generate", total, "samples", total - left) as advance:
            for number in missing:
                began = time.perf_counter()
                samples = list(generator.generate(blocks[number]))
                seconds = time.perf_counter() - began
                usable, removed = quality.sift(samples, modality)
                data.write(number, usable, generator.id, seconds, entry.prompted, removed)
                advance(len(samples))
                if not usable:
                    _refuse_hopeless(data)
    if work.shard:
        log.info("generate: shard %s is done, %d of %d blocks", work.shard, len(shard_blocks), len(blocks))
        return None
    return _finish(inputs, work, data)


def _refuse_hopeless(data: SyntheticData) -> None:
    """Stop a generator that makes nothing usable before all is made, and paid for.

    Raises:
        InputError: Nothing is left of `MOST_UNUSABLE` samples or more.
    """
    made = sum(shard.generated for shard in data.finished().values())
    if made >= MOST_UNUSABLE and not data.files():
        reasons = sorted({reason for counts in data.removed().values() for reason in counts})
        data.forget()  # what is mended may be outside the config
        raise InputError(
            f"generator: nothing is left of the first {made} samples ({', '.join(reasons)}); change the"
            " generator's settings, or the prompts"
        )


def _adopt(work: StageRun, shard: Run, data: SyntheticData) -> None:
    """Take over what another process generated for a run."""
    folder = shard.folder / STAGE.folder
    if not (folder / MANIFEST).exists():
        return
    same = shard.digest(STAGE.name) == work.digest
    # a language model may give other prompts when it is asked again
    theirs = read_prompts(shard.folder / prompts_stage.STAGE.folder)
    if same and theirs == read_prompts(work.upstream.folder("prompts")):
        data.adopt(SyntheticData.open(folder))
    else:
        log.warning(
            "generate: %s is of another config, or of other prompts; nothing is taken from it", shard.folder
        )


def _finish(inputs: GenerateInputs, work: StageRun, data: SyntheticData) -> dict[str, Any]:
    """Judge the whole data set, writes its card, and returns its figures."""
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
    facts = dict(inputs.generator.facts)
    if inputs.generator.entry.prompted:
        facts["guidance scales"] = ", ".join(f"{scale:g}" for scale in inputs.prompts.guidance_scale)
        if inputs.prompts.wrong:
            facts["labels that are wrong on purpose"] = f"{100 * inputs.prompts.wrong:g} %"
        facts["prompts, for example"] = "; ".join(work.upstream.result("prompts")["examples"])
    facts["left out"] = "; ".join(f"{label}: {reasons}" for label, reasons in left_out.items()) or "nothing"
    facts["exact duplicates"] = duplicates
    facts[f"near-duplicates ({quality.MEASURES[data.modality].means})"] = near
    data.write_card("Synthetic data", facts)
    # The shards' own times add up over interruptions and processes; this call's clock would not.
    shards = data.finished().values()
    seconds = sum(shard.seconds for shard in shards)
    return {
        "samples": samples,
        "removed": sum(shard.generated - shard.rows for shard in shards),
        "duplicates": duplicates,
        "near_duplicates": near,
        "bytes": sum(file.stat().st_size for file in data.files()),
        "seconds": round(seconds, 3),
        "samples_per_second": round(samples / max(seconds, 0.001), 2),
        "labels": found,
    }


def read_synthetic(
    folder: Path, data_set: DataSet, labels: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the synthetic data as inputs [m, ...] stored like the private ones, and class indices [m].

    Args:
        folder: The stage's folder.
        data_set: The private data.
        labels: The discovered label names.
    """
    data = SyntheticData.open(folder)
    x, names = data.read(lambda cell: data_set.encode(data.medium.read(cell)))
    return torch.stack(x), torch.tensor([labels.index(name) for name in names])


def _progress(inputs: GenerateInputs, work: StageRun) -> tuple[int, int, str]:
    total = work.upstream.result("prompts")["samples"]
    if not (work.folder / MANIFEST).exists():
        return 0, total, "samples"
    shards = SyntheticData.open(work.folder).finished().values()
    return sum(shard.generated for shard in shards), total, "samples"


def _check(inputs: GenerateInputs, context: RunContext) -> None:
    generator, prompts = inputs.generator, inputs.prompts
    entry, modality = generator.entry, generator.modality
    if modality not in entry.modalities:
        kinds = ", ".join(kind for kind, other in GENERATORS.items() if modality in other.modalities)
        raise InputError(
            f"generator.kind: {generator.kind} makes no {MEDIA[modality].what}, which"
            f" {inputs.data.name} consists of; use one of: {kinds}"
        )
    if not entry.prompted and prompts.style == "fill":
        raise InputError(
            f"prompts.style: {generator.kind} takes samples as they are, and no prompt says what is in"
            " them; leave style, template and blanks out"
        )
    if not entry.prompted and prompts.wrong:
        raise InputError(f"prompts.wrong: {generator.kind} has no prompts to be wrong; leave it out")
    if generator.kind == "text" and prompts.wrong:
        raise InputError(
            "prompts.wrong: a language model is told the true class beside the prompt; leave it out, or use"
            " another kind of generator"
        )
    labels = sorted(set(context.data_set(inputs.data).train.labels))
    entry.check(generator.options, generator.purpose(inputs.data, prompts.per_label, labels, context))


STAGE = Stage(
    "generate",
    "synthetic",
    5,
    ("labels", "prompts"),
    _inputs,
    _run,
    _progress,
    _check,
    wanted=lambda config: config.generates,
)
