"""Synthetic data on disk: an ordinary Hugging Face data set folder of Parquet shards with checksums."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow
import pyarrow.parquet

from genfl.data.media import MEDIA, Modality
from genfl.data.samples import Sample
from genfl.errors import GenflError
from genfl.storage import link, read_json, replacing, sha256, write_json, write_text

log = logging.getLogger(__name__)

T = TypeVar("T")

Removed = dict[str, dict[str, int]]
"""For each label, the number of samples left out, by reason."""


class ShardRecord(NamedTuple):
    """The manifest's entry of a finished shard.

    Attributes:
        rows: The number of samples in the shard.
        removed: The samples that were generated for the shard and left out.
        seconds: The time it took to generate the shard.
        file: The file, relative to the data set's folder; None if the shard has no samples.
        sha256: The checksum of the file; None if there is no file.
    """

    rows: int
    removed: Removed
    seconds: float
    file: str | None
    sha256: str | None

    @property
    def generated(self) -> int:
        """The number of samples that were generated, including those left out."""
        return self.rows + sum(sum(counts.values()) for counts in self.removed.values())


class SyntheticData:
    """A synthetic data set that is written shard by shard, and can be resumed.

    ``datasets.load_dataset(folder)`` opens it. Each row holds the image, clip or text, its label, and its
    origin: prompt, guidance scale, seed, generator, and whether real data guided it. Unknown values are null.
    ``manifest.json`` lists the finished shards. A shard that is not listed, or whose checksum differs, counts
    as missing.

    Args:
        folder: The folder of the data set.
        label_names: The names of the classes, in order.
        shards: The number of shards of the complete data set.
        modality: The kind of content of the samples.
    """

    def __init__(
        self, folder: Path, label_names: Sequence[str], shards: int, modality: Modality = "image"
    ) -> None:
        self.folder = folder
        self.label_names = list(label_names)
        self.shards = shards
        self.modality = modality
        self.medium = MEDIA[modality]
        self.manifest = folder / "manifest.json"

    @classmethod
    def open(cls, folder: Path) -> SyntheticData:
        """Open a data set that was written before."""
        content = read_json(folder / "manifest.json")
        return cls(folder, content["labels"], content["of"], content["modality"])

    def finished(self) -> dict[int, ShardRecord]:
        """Return the shards that the manifest lists, by number, including damaged ones."""
        if not self.manifest.exists():
            return {}
        listed = read_json(self.manifest)["shards"]
        return {int(number): ShardRecord(**shard) for number, shard in listed.items()}

    def files(self) -> list[Path]:
        """Return the files of the finished shards, in order."""
        return [self.folder / shard.file for _, shard in sorted(self.finished().items()) if shard.file]

    def damaged(self) -> dict[int, ShardRecord]:
        """Return the listed shards whose file is missing or has another checksum."""
        return {number: shard for number, shard in self.finished().items() if not self._intact(shard)}

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not finished, and log a warning for each damaged one."""
        damaged = self.damaged()
        for shard in damaged.values():
            log.warning(
                "%s is damaged (its checksum differs) and will be generated again",
                self.folder / str(shard.file),
            )
        intact = self.finished().keys() - damaged.keys()
        return [number for number in range(self.shards) if number not in intact]

    def removed(self) -> Removed:
        """Return the samples left out of all finished shards, by label and reason."""
        total: Removed = {}
        for shard in self.finished().values():
            for label, counts in shard.removed.items():
                of_label = total.setdefault(label, {})
                for reason, count in counts.items():
                    of_label[reason] = of_label.get(reason, 0) + count
        return total

    def adopt(self, other: SyntheticData) -> None:
        """Link the shards that are missing here and intact in another copy of the same data set."""
        available = other.finished()
        for number in other.damaged():
            log.warning("%s is damaged, and is not used", other.folder / str(available.pop(number).file))
        adopted = {number: available[number] for number in self.missing() if number in available}
        for shard in adopted.values():
            if shard.file:
                link(other.folder / shard.file, self.folder / shard.file)
        if adopted:
            self._list(adopted)

    def write(
        self,
        number: int,
        samples: Sequence[Sample],
        generator: str,
        seconds: float,
        prompted: bool = True,
        removed: Removed | None = None,
    ) -> None:
        """Write one shard, then list it in the manifest.

        Args:
            number: The number of the shard, from 0.
            samples: Its samples.
            generator: The name of the generator.
            seconds: The time it took to generate the samples.
            prompted: Whether the samples were made from their prompts; if not, their origin is stored as
                null.
            removed: Samples that were generated for the shard and left out.
        """
        # datasets cannot open a folder with an empty file in it
        file = self._save(number, samples, generator, prompted) if samples else None
        checksum = sha256(self.folder / file) if file else None
        self._list({number: ShardRecord(len(samples), removed or {}, round(seconds, 3), file, checksum)})

    def _save(self, number: int, samples: Sequence[Sample], generator: str, prompted: bool) -> str:
        """Write the file of a shard, and return its path relative to the folder."""
        import datasets

        features = datasets.Features(
            {
                self.medium.column: self.medium.feature(),
                "label": datasets.ClassLabel(names=self.label_names),
                "prompt": datasets.Value("string"),
                "guidance_scale": datasets.Value("float32"),
                "seed": datasets.Value("int64"),
                "generator": datasets.Value("string"),
                "guided": datasets.Value("bool"),
            }
        )
        rows = [
            {
                self.medium.column: self.medium.write(sample.content),
                "label": self.label_names.index(sample.prompt.label),
                "prompt": sample.prompt.text if prompted else None,
                "guidance_scale": sample.prompt.guidance_scale if prompted else None,
                "seed": sample.prompt.seed if prompted else None,
                "generator": generator,
                "guided": bool(sample.prompt.guides) if prompted else None,
            }
            for sample in samples
        ]
        file = f"data/train-{number:05d}-of-{self.shards:05d}.parquet"
        # Dataset.to_parquet needs torchcodec for sounds, and at least one row
        table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
        with replacing(self.folder / file) as temporary:
            pyarrow.parquet.write_table(table, temporary)
        return file

    def forget(self) -> None:
        """Delete the manifest, so that all shards are generated again."""
        self.manifest.unlink(missing_ok=True)

    def _list(self, new: Mapping[int, ShardRecord]) -> None:
        """Add shards to the manifest."""
        shards = {str(n): s._asdict() for n, s in sorted({**self.finished(), **new}.items())}
        content = {"modality": self.modality, "labels": self.label_names, "of": self.shards}
        write_json(self.manifest, {**content, "shards": shards})

    def write_card(self, title: str, facts: dict[str, Any]) -> None:
        """Write the data card, README.md.

        Args:
            title: The title of the card.
            facts: Facts about how the data set was generated; one line each.
        """
        rows = sum(shard.rows for shard in self.finished().values())
        lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
        write_text(
            self.folder / "README.md",
            # no `configs:`, because datasets would share one cache between all folders with the same configs
            f"---\ntags:\n- synthetic\n---\n# {title}\n\n"
            f"{rows} samples of {len(self.label_names)} classes ({', '.join(self.label_names)}).\n\n"
            f"{lines}\n\n"
            f"Columns: `{self.medium.column}`, `label`, `prompt`, `guidance_scale`, `seed`, `generator`, and"
            " `guided` (whether a real example guided the sample); null if unknown. Checksums:"
            " `manifest.json`.\n",
        )

    def read(self, convert: Callable[[Any], T]) -> tuple[list[T], list[str]]:
        """Read all samples in parallel, and the names of their labels, in order.

        Args:
            convert: Converts a cell to a result; the content is ``self.medium.read(cell)``. The cells of one
                shard are in memory at a time.

        Returns:
            The results and the label names of all samples.

        Raises:
            GenflError: A shard is missing or damaged.
        """
        missing = self.missing()
        if missing:
            raise GenflError(
                f"{self.folder}: shards {missing} are missing or damaged; run the generate stage again"
            )
        results: list[T] = []
        labels: list[str] = []
        with ThreadPoolExecutor() as pool:
            for file in self.files():
                table = pyarrow.parquet.read_table(file, columns=[self.medium.column, "label"])
                results += pool.map(convert, table[self.medium.column].to_pylist())
                labels += [self.label_names[index] for index in table["label"].to_pylist()]
        return results, labels

    def _intact(self, shard: ShardRecord) -> bool:
        if shard.file is None:
            return True
        path = self.folder / shard.file
        return path.exists() and sha256(path) == shard.sha256
