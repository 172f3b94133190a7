"""The stage generate: turn prompts into a labelled synthetic data set on disk."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from genfl import metering
from genfl.config import Config, Data, Section
from genfl.config.generation import Prompts
from genfl.data import quality
from genfl.data.media import MEDIA, Modality
from genfl.data.samples import Prompt
from genfl.data.sources import DATASETS, DataSet, folder_of
from genfl.data.synthetic import SyntheticData
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.generators.base import Generator
from genfl.generators.missing import generate_missing
from genfl.generators.registry import GENERATORS, GeneratorEntry, Purpose
from genfl.stages.base import IGNORED, FormatInputs, Stage, StageRun, digest_of
from genfl.stages.prompts import deciding, read_prompts
from genfl.storage import digest

log = logging.getLogger(__name__)

GUIDED = {"strength", "shots", "trusted"}
"""The settings of generators that matter only if real examples guide them."""


@dataclass(frozen=True)
class GeneratorInputs:
    """Everything that decides the output of a generator for a prompt.

    Attributes:
        settings: The settings that change its output, except those for guidance by real examples.
        fingerprint: The identity of its model.
        section: The whole section of the config.
        modality: The kind of samples that it generates.
    """

    settings: dict[str, Any]
    fingerprint: Any
    section: Annotated[Section, IGNORED]
    modality: Annotated[Modality, IGNORED]

    @classmethod
    def of(cls, config: Config, context: RunContext) -> GeneratorInputs:
        """Return the generator inputs of a config."""
        modality = DATASETS[config.data.name].modality
        options = config.generator.model_dump(exclude={"kind"})
        entry = GENERATORS[config.generator.kind]
        fingerprint = context.once(
            ("generator", config.generator.kind, str(options), modality),
            lambda: entry.fingerprint(options, modality),
        )
        return cls(deciding(config.generator, entry.ignored_options), fingerprint, config.generator, modality)

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
        """The facts about the generator for the data card and the report."""
        return self.entry.described(self.options)

    def purpose(self, data: Data, per_label: int, labels: Sequence[str], context: RunContext) -> Purpose:
        """Return the purpose of the generator in a run.

        Args:
            data: The section of the private data.
            per_label: The number of samples per label.
            labels: The label names.
            context: The run's context.
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
        """Return the generator for a run; see `purpose`.

        Args:
            data: The section of the private data.
            per_label: The number of samples per label.
            labels: The label names.
            context: The run's context.
            answers: The folder of language models' answers.
        """
        purpose = self.purpose(data, per_label, labels, context)
        return self.entry.make(self.options, purpose._replace(answers=answers))


@dataclass(frozen=True)
class GenerateInputs:
    """The inputs of the synthetic data, besides label names and prompts.

    Attributes:
        generator: The generator.
        format: For generators that copy samples, the input format of the private data and its names of
            labels. Samples that have no such input are left out. None for generators that use prompts.
        prompts: The section of the prompts. The outputs of the stage prompts depend on it.
        data: The private data.
        labels: The label names that discovery finds, for checks before it runs.
    """

    generator: GeneratorInputs
    format: Any
    prompts: Annotated[Prompts, IGNORED]
    data: Annotated[Data, IGNORED]
    labels: Annotated[list[str], IGNORED]


def _inputs(config: Config, context: RunContext) -> GenerateInputs:
    generator, recipe = GeneratorInputs.of(config, context), DATASETS[config.data.name].recipe
    copied = None if generator.entry.prompted else [FormatInputs.of(config, context), recipe and recipe.words]
    return GenerateInputs(generator, copied, config.prompts, config.data, context.discovered(config))


def _run(inputs: GenerateInputs, work: StageRun) -> dict[str, Any] | None:
    generator_inputs, labels = inputs.generator, work.upstream.labels
    entry = generator_inputs.entry
    blocks = read_prompts(work.upstream.folder("prompts"))
    data = _synthetic_data(inputs, work, blocks)
    data.repair()
    for folder in work.shards:
        if not data.adopt(folder):
            log.warning(
                "generate: no samples of %s are used: they are damaged, or of another config or prompts",
                folder,
            )
    for folder in work.others:
        lacked = len(data.missing())
        if lacked and data.adopt(folder) and (taken := lacked - len(data.missing())):
            metering.miss()
            log.info("generate: %d of %d blocks are taken over from %s", taken, len(blocks), folder.parent)
    shard_blocks = range(work.shard.number, len(blocks), work.shard.of) if work.shard else range(len(blocks))
    generate_missing(
        data,
        blocks,
        shard_blocks,
        lambda: generator_inputs.make(
            inputs.data, inputs.prompts.per_label, labels, work.context, work.answers
        ),
        prompted=entry.prompted,
    )
    if work.shard:
        log.info("generate: shard %s is done, %d of %d blocks", work.shard, len(shard_blocks), len(blocks))
        return None
    return _finish(inputs, work, data)


def _synthetic_data(
    inputs: GenerateInputs, work: StageRun, blocks: Sequence[Sequence[Prompt]]
) -> SyntheticData:
    """Return the data set of a run.

    A block depends on its own prompts alone. So a run with more samples per label takes over the blocks of
    one with fewer. A language model may write other prompts in each process.
    """
    generator = digest_of(STAGE.name, STAGE.version, inputs, {})
    digests = [digest([generator, block]) for block in blocks]
    return SyntheticData(
        work.folder,
        work.upstream.labels,
        len(blocks),
        inputs.generator.modality,
        digest(digests),
        digests,
    )


def _finish(inputs: GenerateInputs, work: StageRun, data: SyntheticData) -> dict[str, Any]:
    """Check the whole data set, write its card, and return its figures."""
    figures = quality.survey(data)
    left_out = {
        label: ", ".join(f"{count} {reason}" for reason, count in sorted(counts["removed"].items()))
        for label, counts in figures.items()
        if counts["removed"]
    }
    for label, reasons in left_out.items():
        if not figures[label]["samples"]:
            raise InputError(
                f"generator: no sample of the label {label!r} is usable ({reasons}); change the generator's"
                " settings, or the prompts"
            )
        log.warning("generate: samples of %r are left out: %s", label, reasons)
    samples, duplicates, near = (
        sum(counts[what] for counts in figures.values())
        for what in ("samples", "duplicates", "near_duplicates")
    )
    if 2 * duplicates >= samples:
        log.warning("generate: %d of %d samples are exact copies of another", duplicates, samples)
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
    # The times in the files add up over interruptions and processes. This process's clock would not.
    shards = data.finished().values()
    timed = [shard for shard in shards if shard.seconds is not None]
    seconds = sum(shard.seconds or 0.0 for shard in timed)
    threads = {shard.threads for shard in shards if shard.threads}
    if len(threads) > 1:
        log.warning(
            "generate: samples were generated on %s threads; the last bits depend on the number",
            " and on ".join(map(str, sorted(threads))),
        )
    return {
        "samples": samples,
        "removed": sum(shard.generated - shard.rows for shard in shards),
        "duplicates": duplicates,
        "near_duplicates": near,
        "bytes": sum(file.stat().st_size for file in data.files()),
        "seconds": round(seconds, 3),
        "samples_per_second": round(sum(shard.rows for shard in timed) / max(seconds, 0.001), 2),
        "labels": figures,
    }


def read_synthetic(
    folder: Path, data_set: DataSet, labels: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the synthetic data: inputs [m, ...], stored like the private ones, and class indices [m].

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
    blocks = read_prompts(work.upstream.folder("prompts"))
    shards = _synthetic_data(inputs, work, blocks).finished().values()
    return sum(shard.generated for shard in shards), total, "samples"


def _check(inputs: GenerateInputs, context: RunContext) -> None:
    generator, prompts = inputs.generator, inputs.prompts
    entry, modality = generator.entry, generator.modality
    if modality not in entry.modalities:
        kinds = ", ".join(kind for kind, other in GENERATORS.items() if modality in other.modalities)
        raise InputError(
            f"generator.kind: {generator.kind} cannot generate {MEDIA[modality].what}, as in"
            f" {inputs.data.name}; use one of: {kinds}"
        )
    if not entry.prompted and prompts.style == "fill":
        raise InputError(
            f"prompts.style: generator {generator.kind} uses no prompts; leave style, template and blanks out"
        )
    if not entry.prompted and prompts.wrong:
        raise InputError(f"prompts.wrong: generator {generator.kind} uses no prompts; leave it out")
    if generator.kind == "text" and prompts.wrong:
        raise InputError(
            "prompts.wrong: the generator text also gets the true label with each prompt; leave it out, or"
            " use another kind of generator"
        )
    purpose = generator.purpose(inputs.data, prompts.per_label, inputs.labels, context)
    entry.check(generator.options, purpose)


STAGE = Stage(
    "generate",
    "synthetic",
    7,
    ("labels", "prompts"),
    _inputs,
    _run,
    _progress,
    _check,
    keeps=True,
    wanted=lambda config: config.generates,
)
