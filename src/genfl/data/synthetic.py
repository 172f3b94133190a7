"""Synthetic data on disk: an ordinary Hugging Face data set folder of checksummed Parquet shards."""

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
"""For each label, how many samples were left out for which reason."""


class Shard(NamedTuple):
    """A finished shard.

    Attributes:
        rows: The samples in it.
        removed: What was made and is not in it.
        seconds: How long making it took.
        file: Its file, below the data set's folder; None where it holds no sample.
        sha256: The file's.
    """

    rows: int
    removed: Removed
    seconds: float
    file: str | None
    sha256: str | None

    @property
    def made(self) -> int:
        """How many samples were made, those left out included."""
        return self.rows + sum(sum(counts.values()) for counts in self.removed.values())


class SyntheticData:
    """A synthetic data set that is written shard by shard and can be gone on with.

    ``datasets.load_dataset(folder)`` opens it. Each row holds the image, clip or text, its label, and
    how it was made: prompt, guidance scale, seed, generator, and whether real data guided it; null where
    nobody knows. ``manifest.json`` lists the finished shards; a shard it does not list, or whose checksum
    differs, counts as absent.

    Args:
        folder: Where it is.
        label_names: The names of the classes, in order.
        shards: How many shards it has when complete.
        modality: What a sample is.
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
        """Opens a data set that was written before."""
        content = read_json(folder / "manifest.json")
        return cls(folder, content["labels"], content["of"], content["modality"])

    def finished(self) -> dict[int, Shard]:
        """Returns the shards the manifest lists, by number, whether intact or not."""
        if not self.manifest.exists():
            return {}
        listed = read_json(self.manifest)["shards"]
        return {int(number): Shard(**shard) for number, shard in listed.items()}

    def files(self) -> list[Path]:
        """Returns the files that hold the finished shards' samples, in order."""
        return [self.folder / shard.file for _, shard in sorted(self.finished().items()) if shard.file]

    def damaged(self) -> dict[int, Shard]:
        """Returns the listed shards whose file is missing or has another checksum."""
        return {number: shard for number, shard in self.finished().items() if not self._intact(shard)}

    def missing(self) -> list[int]:
        """Returns the numbers of the shards still to be made; names the damaged ones in the log."""
        damaged = self.damaged()
        for shard in damaged.values():
            log.warning(
                "%s is damaged (its checksum differs) and will be made again",
                self.folder / str(shard.file),
            )
        intact = self.finished().keys() - damaged.keys()
        return [number for number in range(self.shards) if number not in intact]

    def removed(self) -> Removed:
        """Returns what was left out of all finished shards."""
        total: Removed = {}
        for shard in self.finished().values():
            for label, counts in shard.removed.items():
                own = total.setdefault(label, {})
                for reason, count in counts.items():
                    own[reason] = own.get(reason, 0) + count
        return total

    def adopt(self, other: SyntheticData) -> None:
        """Takes over the shards that are missing here and intact in another copy of the same data set."""
        there = other.finished()
        for number in other.damaged():
            log.warning("%s is damaged, and not taken over", other.folder / str(there.pop(number).file))
        taken = {number: there[number] for number in self.missing() if number in there}
        for shard in taken.values():
            if shard.file:
                link(other.folder / shard.file, self.folder / shard.file)
        if taken:
            self._list(taken)

    def write(
        self,
        number: int,
        samples: Sequence[Sample],
        generator: str,
        seconds: float,
        prompted: bool = True,
        removed: Removed | None = None,
    ) -> None:
        """Writes one shard, then lists it in the manifest.

        Args:
            number: Which shard, from 0.
            samples: Its samples.
            generator: What made them.
            seconds: How long that took.
            prompted: Whether their prompts made them; where not, nobody knows what did.
            removed: What was made with them and left out.
        """
        # datasets opens no folder with an empty file in it
        file = self._save(number, samples, generator, prompted) if samples else None
        checksum = sha256(self.folder / file) if file else None
        self._list({number: Shard(len(samples), removed or {}, round(seconds, 3), file, checksum)})

    def _save(self, number: int, samples: Sequence[Sample], generator: str, prompted: bool) -> str:
        """Writes a shard's file, and returns its place below the folder."""
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
        # not a Dataset's to_parquet, which wants torchcodec for sounds, and rows
        table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
        with replacing(self.folder / file) as temporary:
            pyarrow.parquet.write_table(table, temporary)
        return file

    def forget(self) -> None:
        """Takes all shards off the manifest, so that they are made again."""
        self.manifest.unlink(missing_ok=True)

    def _list(self, new: Mapping[int, Shard]) -> None:
        """Lists shards in the manifest."""
        shards = {str(n): s._asdict() for n, s in sorted({**self.finished(), **new}.items())}
        content = {"modality": self.modality, "labels": self.label_names, "of": self.shards}
        write_json(self.manifest, {**content, "shards": shards})

    def write_card(self, title: str, facts: dict[str, Any]) -> None:
        """Writes the data card, README.md.

        Args:
            title: What the card calls the data set.
            facts: What is said of how it was made, a line each.
        """
        rows = sum(shard.rows for shard in self.finished().values())
        lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
        write_text(
            self.folder / "README.md",
            # No `configs:` here: datasets would take every folder with the same one for the same cached data.
            f"---\ntags:\n- synthetic\n---\n# {title}\n\n"
            f"{rows} samples of {len(self.label_names)} classes ({', '.join(self.label_names)}).\n\n"
            f"{lines}\n\n"
            f"Columns: `{self.medium.column}`, `label`, `prompt`, `guidance_scale`, `seed`, `generator`, and"
            " `guided` (whether a real example guided the sample); null where nobody knows. Checksums:"
            " `manifest.json`.\n",
        )

    def read(self, see: Callable[[Any], T]) -> tuple[list[T], list[str]]:
        """Reads all samples, several at a time, and the names of their labels, in order.

        Args:
            see: ``(cell) -> what is wanted of a sample``, whose content is ``self.medium.read(cell)``. Cells
                are held in memory a shard at a time.

        Raises:
            GenflError: A shard is missing or damaged.
        """
        bad = self.missing()
        if bad:
            raise GenflError(f"{self.folder} lacks intact shards {bad}; run the generate stage again")
        found: list[T] = []
        labels: list[str] = []
        with ThreadPoolExecutor() as pool:
            for file in self.files():
                table = pyarrow.parquet.read_table(file, columns=[self.medium.column, "label"])
                found += pool.map(see, table[self.medium.column].to_pylist())
                labels += [self.label_names[index] for index in table["label"].to_pylist()]
        return found, labels

    def _intact(self, shard: Shard) -> bool:
        if shard.file is None:
            return True
        path = self.folder / shard.file
        return path.exists() and sha256(path) == shard.sha256
