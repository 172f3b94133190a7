"""The stage guided: clients generate samples from their own real examples (FedGC).

The samples stay with the clients.
"""

from __future__ import annotations

import itertools
import logging
import time
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch

from genfl import progress
from genfl.config import Config, Content, Partition
from genfl.config.generation import Prompts
from genfl.data import quality
from genfl.data.samples import Prompt
from genfl.data.sources import DataSet
from genfl.data.synthetic import SyntheticData
from genfl.errors import InputError
from genfl.experiment.context import RunContext, class_indices
from genfl.generators.base import Generator
from genfl.generators.missing import generating_threads
from genfl.rng import Key
from genfl.stages import generate
from genfl.stages.allocations import allocate
from genfl.stages.base import IGNORED, DataInputs, Stage, StageRun, Upstream, digest_of
from genfl.stages.generate import GeneratorInputs
from genfl.stages.prompts import read_prompts
from genfl.storage import digest as digest_of_data
from genfl.storage import read_json, remove, write_json
from genfl.threads import on_threads

log = logging.getLogger(__name__)

OWNERS = "clients.json"
"""The file with the client of each block."""


class GuidedBlock(NamedTuple):
    """Samples that one client generates in one call.

    Attributes:
        client: The number of the client.
        prompts: The prompts, without guides.
        guides: For each prompt, the rows of the training set that guide it. They are the client's own, and of
            the prompt's class, unless the generator shows labelled examples of all classes.
    """

    client: int
    prompts: list[Prompt]
    guides: list[list[int]]


@dataclass(frozen=True)
class KindInputs:
    """The inputs of the samples of one kind of content, except the seed; see `GuidedInputs`."""

    content: dict[str, Any]
    data: DataInputs
    partition: Partition
    block_size: int
    generator: GeneratorInputs
    settings: dict[str, Any]


@dataclass(frozen=True)
class GuidedInputs:
    """The inputs of the samples that clients generate from their own examples.

    Attributes:
        contents: The settings of each kind of content that is guided by real examples.
        data: The private data.
        partition: The split over clients.
        block_size: The number of samples in a block.
        generator: The generator.
        settings: The generator's settings for guidance by real examples.
        seeds: The seeds. Each has its own set of samples.
        prompts: The section of the prompts. The outputs of the stage prompts depend on it.
        kinds: The kinds of content, without repetitions.
    """

    contents: list[dict[str, Any]]
    data: DataInputs
    partition: Partition
    block_size: int
    generator: GeneratorInputs
    settings: dict[str, Any]
    seeds: list[int]
    prompts: Annotated[Prompts, IGNORED]
    kinds: Annotated[list[Content], IGNORED]

    def of_kind(self, kind: Content) -> KindInputs:
        """Return the inputs of the samples of one kind of content."""
        content = _allocation_settings(kind)
        return KindInputs(content, self.data, self.partition, self.block_size, self.generator, self.settings)


def guided_inputs(config: Config, context: RunContext) -> GuidedInputs:
    """Return the inputs of the guided samples of a config."""
    contents = guided_contents(config)
    return GuidedInputs(
        sorted((_allocation_settings(content) for content in contents), key=str),
        DataInputs.of(config, context),
        config.data.partition,
        config.prompts.block_size,
        GeneratorInputs.of(config, context),
        config.generator.model_dump(include=generate.GUIDED),
        config.seeds,
        config.prompts,
        contents,
    )


def guided_contents(config: Config) -> list[Content]:
    """Return the kinds of content that are guided by real examples, without repetitions."""
    contents = [method.content for method in config.methods.values() if method.content]
    guided = [content for content in contents if content.guidance != "prompt"]
    return list({str(_allocation_settings(content)): content for content in guided}.values())


def _allocation_settings(kind: Content) -> dict[str, Any]:
    """Return the settings that decide which samples are generated. The others decide how they are used."""
    return kind.model_dump(include={"samples", "per_client", "budget", "clients", "guidance"})


def kind_digest(inputs: GuidedInputs, upstream: Upstream, kind: Content) -> str:
    """Return the digest of everything that the clients' samples depend on, except the seed."""
    stages = {stage: upstream.digest(stage) for stage in ("labels", "prompts")}
    return digest_of(STAGE.name, STAGE.version, inputs.of_kind(kind), stages)


def content_folder(folder: Path, digest: str, kind: Content, seed: int) -> Path:
    """Return the folder of the samples of one kind of content with one seed.

    Args:
        folder: The stage's folder.
        digest: The digest of everything that they depend on; see `kind_digest`.
        kind: The kind of content.
        seed: The seed.
    """
    return folder / f"{kind.guidance}-{kind.budget}-{digest[:12]}" / f"seed-{seed}"


def read_guided(
    folder: Path, data_set: DataSet, labels: list[str], clients: int
) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray]]:
    """Return the samples that clients generated from their own examples.

    Args:
        folder: See `content_folder`.
        data_set: The private data.
        labels: The discovered label names.
        clients: The number of clients.

    Returns:
        Inputs [m, ...] stored like the private ones, class indices [m], and each client's rows of them.

    Raises:
        InputError: There is no usable sample.
    """
    data = SyntheticData.open(folder)
    x, names = data.read(lambda cell: data_set.encode(data.medium.read(cell)))
    if not x:
        raise InputError(
            f"generator: no sample that clients generated from their own examples is usable ({folder.name});"
            " change the generator's settings, or use guidance prompt"
        )
    shards = [shard for _, shard in sorted(data.finished().items())]
    owners = np.repeat(read_json(folder / OWNERS), [shard.rows for shard in shards])
    rows = [np.flatnonzero(owners == client) for client in range(clients)]
    return torch.stack(x), torch.tensor([labels.index(name) for name in names]), rows


class _Store(NamedTuple):
    """The blocks of one kind of content with one seed, and the data set that holds their samples."""

    blocks: list[GuidedBlock]
    data: SyntheticData

    def count(self, numbers: Collection[int]) -> int:
        """Return the number of samples in these blocks."""
        return sum(len(self.blocks[number].prompts) for number in numbers)


def _run(inputs: GuidedInputs, work: StageRun) -> dict[str, Any]:
    labels = work.upstream.labels
    stores = []
    for kind in inputs.kinds:
        for seed in inputs.seeds:
            digest = kind_digest(inputs, work.upstream, kind)
            folder = content_folder(work.folder, digest, kind, seed)
            blocks = list(_blocks(inputs, work, kind, seed))
            data = SyntheticData(
                folder, labels, len(blocks), inputs.generator.modality, digest_of_data([digest, seed])
            )
            stores.append(_Store(blocks, data))
            write_json(folder / OWNERS, [block.client for block in blocks])
    _discard(work.folder, [store.data.folder for store in stores])
    missing = [store.data.repair() for store in stores]
    total = sum(store.count(range(len(store.blocks))) for store in stores)
    left = sum(store.count(numbers) for store, numbers in zip(stores, missing, strict=True))
    generator = None
    if left:
        section, per_label = inputs.data.section, inputs.prompts.per_label
        generator = inputs.generator.make(section, per_label, labels, work.context, work.answers)
    with progress.bar("guided", total, "samples", total - left) as advance:
        for store, numbers in zip(stores, missing, strict=True):
            if numbers:
                assert generator is not None
                _fill(store, numbers, generator, work.context.data_set(inputs.data.section), advance)
    settings = {**inputs.settings, "recorded from the world": "the examples of clients that guided them"}
    for store in stores:
        facts = inputs.generator.facts | settings
        store.data.write_card("Synthetic data guided by clients' real examples", facts)
    shards = [shard for store in stores for shard in store.data.finished().values()]
    removed = sum(shard.generated - shard.rows for shard in shards)
    if removed:
        log.warning("guided: %d of %d samples are left out, because they are unusable", removed, total)
    return {
        "samples": sum(shard.rows for shard in shards),
        "removed": removed,
        "seconds": round(sum(shard.seconds or 0.0 for shard in shards), 3),
    }


def _fill(
    store: _Store,
    numbers: Collection[int],
    generator: Generator,
    data_set: DataSet,
    advance: progress.Advance,
) -> None:
    """Generate the blocks that a data set lacks."""
    blocks = {number: store.blocks[number] for number in numbers}
    rows = sorted({row for block in blocks.values() for row in itertools.chain(*block.guides)})
    originals, position = data_set.originals(rows), {row: n for n, row in enumerate(rows)}
    names = data_set.train.labels
    threads = generating_threads(generator, store.data)
    for number, block in blocks.items():
        guided = [
            prompt._replace(
                guides=tuple(originals[position[row]] for row in guides),
                guide_labels=tuple(unicodedata.normalize("NFC", names[row]) for row in guides),
            )
            for prompt, guides in zip(block.prompts, block.guides, strict=True)
        ]
        began = time.perf_counter()
        with on_threads(threads):
            samples = list(generator.generate(guided))
        seconds = time.perf_counter() - began
        usable, removed = quality.sift(samples, data_set.modality)
        store.data.write(number, usable, generator.id, seconds, removed=removed, threads=threads)
        advance(len(samples))


def _discard(folder: Path, current: list[Path]) -> None:
    """Delete the samples of other configs."""
    for old in folder.glob("*/seed-*"):
        if old not in current:
            remove(old, folder)
            if not any(old.parent.iterdir()):
                remove(old.parent, folder)


def _blocks(inputs: GuidedInputs, work: StageRun, kind: Content, seed: int) -> Iterator[GuidedBlock]:
    """Yield the blocks of each client. All samples of a block have the same guidance scale."""
    labels, section, prompts = work.upstream.labels, inputs.data.section, inputs.prompts
    label_prompts: dict[str, list[Prompt]] = {}
    for prompt in itertools.chain(*read_prompts(work.upstream.folder("prompts"))):
        label_prompts.setdefault(prompt.label, []).append(prompt)
    y = class_indices(work.context.data_set(section).train, labels).numpy()
    train_rows, _ = work.context.train_test_rows(section, seed)
    pools = np.full(len(labels), prompts.per_label)
    most = inputs.generator.options.get("shots", 1)  # guides of a sample; an image has a single one
    joint = inputs.generator.options.get("texts_per_label") is not None
    counts = work.context.label_counts(section, labels, seed)
    allocation = allocate(kind, counts, pools, seed)
    for client, (rows, wanted) in enumerate(zip(train_rows, allocation.guided, strict=True)):
        key = Key(seed).fold("guided", client)
        of_class = {
            c: key.fold("guides", c).numpy().permutation(rows[y[rows] == c]) for c in range(len(wanted))
        }
        asked = [(c, nth) for c in range(len(wanted)) for nth in range(wanted[c])]
        for first in range(0, len(asked), inputs.block_size):
            batch = asked[first : first + inputs.block_size]
            rng = key.fold("block", *batch[0]).numpy()
            scale = prompts.guidance_scale[int(rng.integers(len(prompts.guidance_scale)))]
            block = GuidedBlock(client, [], [])
            for c, nth in batch:
                choices = label_prompts[labels[c]]
                text = choices[int(rng.integers(len(choices)))].text
                sample_seed = key.fold("sample", c, nth).integer()
                block.prompts.append(Prompt(labels[c], text, scale, sample_seed, nth))
                own = of_class[c]
                guides = rows_of_all_classes(of_class, most, nth) if joint else _in_turn(own, most, nth)
                block.guides.append(guides)
            yield block


def _in_turn(rows: np.ndarray, most: int, nth: int) -> list[int]:
    """Return the rows of the nth sample, if every sample takes the next `most` rows, or all rows."""
    count = min(most, len(rows))
    return [int(rows[turn % len(rows)]) for turn in range(nth * count, (nth + 1) * count)]


def rows_of_all_classes(of_class: Mapping[int, np.ndarray], most: int, nth: int = 0) -> list[int]:
    """Return the rows of the nth sample, if every sample takes the next rows of all classes in turn.

    Args:
        of_class: A client's rows of each class; at least one class has some.
        most: The number of rows of a sample.
        nth: The number of the sample, from 0.
    """
    classes = [rows for rows in of_class.values() if len(rows)]
    turns = -(-most // len(classes))
    pairs = itertools.product(range(nth * turns, (nth + 1) * turns), classes)
    return [int(rows[turn % len(rows)]) for turn, rows in itertools.islice(pairs, most)]


def _progress(inputs: GuidedInputs, work: StageRun) -> tuple[int, int, str]:
    done = total = 0
    for kind in inputs.kinds:
        for seed in inputs.seeds:
            total += sum(len(block.prompts) for block in _blocks(inputs, work, kind, seed))
            folder = content_folder(work.folder, kind_digest(inputs, work.upstream, kind), kind, seed)
            if folder.exists():
                done += sum(shard.generated for shard in SyntheticData.open(folder).finished().values())
    return done, total, "samples"


STAGE = Stage(
    "guided",
    "guided",
    3,
    ("labels", "prompts"),
    guided_inputs,
    _run,
    _progress,
    keeps=True,
    wanted=lambda config: bool(guided_contents(config)),
)
