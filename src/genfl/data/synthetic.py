"""Synthetic data on disk: an ordinary Hugging Face data set folder of Parquet shards with checksums."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow
import pyarrow.parquet

from genfl.data.media import MEDIA, Modality
from genfl.data.samples import Sample
from genfl.errors import GenflError
from genfl.storage import digest as digest_of
from genfl.storage import is_below, link, read_json, remove, sha256, write_bytes, write_json, write_text

log = logging.getLogger(__name__)

DATA, EMPTY = "data", "empty"
"""The folders of the files of shards with samples, and without."""

FACTS = b"genfl"
"""The name in a Parquet file's metadata of the facts about a shard."""

NO_CHECKSUM = "0" * 64
"""Stands for the checksum of a file while the checksum is computed."""

_SHARD_NAME = re.compile(r"train-(\d{5})-of-\d{5}\.parquet")
_SEAL = re.compile(rb'"sha256": "([0-9a-f]{64})"')

T = TypeVar("T")

Removed = dict[str, dict[str, int]]
"""For each label, the number of samples left out, by reason."""


class ShardRecord(NamedTuple):
    """The manifest's entry of a finished shard.

    Attributes:
        rows: The number of samples in the shard.
        removed: The samples that were generated for the shard and left out.
        file: The file, relative to the data set's folder.
        sha256: The checksum of the file.
        seconds: The time it took to generate the shard; None if the manifest that said it is lost.
        threads: The number of threads it was generated on; None if unknown.
    """

    rows: int
    removed: Removed
    file: str
    sha256: str
    seconds: float | None = None
    threads: int | None = None

    @property
    def generated(self) -> int:
        """The number of samples that were generated, including those left out."""
        return self.rows + sum(sum(counts.values()) for counts in self.removed.values())


class SyntheticData:
    """A synthetic data set that is written shard by shard, and can be resumed.

    ``datasets.load_dataset(folder)`` opens it. Each row holds the image, clip or text, its label, and its
    origin: prompt, guidance scale, seed, generator, and whether real data guided it. Unknown values are null.

    Each shard is a Parquet file. Its metadata says what the shard belongs to, what was left out of it, and
    holds a checksum of the file. ``manifest.json`` lists the shards, and their times. If it is missing or
    damaged, the list is made from the files. A shard whose checksum differs counts as missing.

    Args:
        folder: The folder of the data set.
        label_names: The names of the classes, in order.
        shards: The number of shards of the complete data set.
        modality: The kind of content of the samples.
        digest: The digest of everything that the samples depend on. Shards of another digest do not belong to
            the data set.
        shard_digests: The digests of what each shard alone depends on, so that data sets of different sizes
            can share shards; empty if all of them depend on the same.
    """

    def __init__(
        self,
        folder: Path,
        label_names: Sequence[str],
        shards: int,
        modality: Modality = "image",
        digest: str = "",
        shard_digests: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.label_names = list(label_names)
        self.shards = shards
        self.modality = modality
        self.digest = digest
        self.shard_digests = list(shard_digests)
        self.medium = MEDIA[modality]
        self.manifest = folder / "manifest.json"

    @classmethod
    def open(cls, folder: Path) -> SyntheticData:
        """Open a data set that was written before.

        Raises:
            GenflError: The folder holds none, or all of it is damaged.
        """
        shards = (shard for path in _shard_files(folder) if (shard := _read_shard(path)))
        identity = _read_manifest(folder / "manifest.json") or _identity_of([facts for facts, _ in shards])
        if identity is None:
            raise GenflError(f"{folder} holds no intact generated samples; generate them again")
        names = ("labels", "of", "modality", "digest", "shard_digests")
        return cls(folder, *(identity[name] for name in names))

    @property
    def _identity(self) -> dict[str, Any]:
        names = self.label_names
        return {
            "modality": self.modality,
            "labels": names,
            "of": self.shards,
            "digest": self.digest,
            "shard_digests": self.shard_digests,
        }

    def _facts(self, number: int) -> dict[str, Any]:
        """Return what the file of a shard says of it. It belongs to a data set of any size (``of``)."""
        digest = self.shard_digests[number] if self.shard_digests else self.digest
        return {
            "modality": self.modality,
            "labels": self.label_names,
            "of": self.shards,
            "digest": digest,
            "shard": number,
        }

    def finished(self) -> dict[int, ShardRecord]:
        """Return the finished shards, by number, including those damaged since they were listed."""
        listed = self._listed()
        return self._with_unlisted({}) if listed is None else listed

    def files(self) -> list[Path]:
        """Return the files of the finished shards that have samples, in order."""
        return [self.folder / shard.file for _, shard in sorted(self.finished().items()) if shard.rows]

    def damaged(self) -> dict[int, ShardRecord]:
        """Return the listed shards whose file is missing or has another checksum."""
        return {number: shard for number, shard in self.finished().items() if not self._intact(shard)}

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not finished, and log a warning for each damaged one."""
        return self._without(self._intact_shards())

    def repair(self) -> list[int]:
        """Prepare the folder for more shards: list the intact ones, and delete all others.

        Returns:
            The numbers of the missing shards.
        """
        if self.manifest.exists() and _read_manifest(self.manifest) is None:
            log.warning("%s is damaged and is made again from the samples", self.manifest)
        intact = {number: self._named(number, shard) for number, shard in self._intact_shards().items()}
        current = {self.folder / shard.file for shard in intact.values()}
        for path in _shard_files(self.folder):
            if path not in current:
                remove(path, self.folder)
        if intact != self._listed():
            remove(self.manifest, self.folder)
            if intact:
                self._write_manifest(intact)
        return self._without(intact)

    def _without(self, shards: Collection[int]) -> list[int]:
        return [number for number in range(self.shards) if number not in shards]

    def _intact_shards(self) -> dict[int, ShardRecord]:
        """Return the intact shards by number, listed or not, and log a warning for each damaged one."""
        listed = self.finished()
        damaged = self.damaged()
        shards = self._with_unlisted({n: shard for n, shard in listed.items() if n not in damaged})
        for number in damaged.keys() - shards.keys():
            file = self.folder / damaged[number].file
            log.warning("%s is damaged (its checksum differs) and will be generated again", file)
        return shards

    def _listed(self) -> dict[int, ShardRecord] | None:
        """Return the shards in the manifest; None if it is absent, damaged, or that of other samples."""
        content = _read_manifest(self.manifest)
        if content is None or any(content.get(name) != value for name, value in self._identity.items()):
            return None
        return {int(number): ShardRecord(**shard) for number, shard in content["shards"].items()}

    def _with_unlisted(self, listed: Mapping[int, ShardRecord]) -> dict[int, ShardRecord]:
        """Return shards, and all others whose file is intact and belongs to the data set."""
        shards = dict(listed)
        for path in _shard_files(self.folder):
            named = _SHARD_NAME.fullmatch(path.name)
            number = int(named[1]) if named else self.shards
            shard = _read_shard(path) if number < self.shards and number not in shards else None
            if shard is None:
                continue
            facts, checksum = shard
            if all(facts.get(name) == value for name, value in self._facts(number).items() if name != "of"):
                file = path.relative_to(self.folder).as_posix()
                shards[number] = ShardRecord(facts["rows"], facts["removed"], file, checksum)
        return dict(sorted(shards.items()))

    def removed(self) -> Removed:
        """Return the samples left out of all finished shards, by label and reason."""
        total: Removed = {}
        for shard in self.finished().values():
            for label, counts in shard.removed.items():
                of_label = total.setdefault(label, {})
                for reason, count in counts.items():
                    of_label[reason] = of_label.get(reason, 0) + count
        return total

    def adopt(self, folder: Path) -> int:
        """Link the shards that are missing here and intact in another copy of the same data set.

        Args:
            folder: The folder of the other copy. It may be absent, damaged, or hold other samples.

        Returns:
            The number of shards that the other copy has.
        """
        digests = self.shard_digests
        other = SyntheticData(folder, self.label_names, self.shards, self.modality, self.digest, digests)
        available = other.finished()
        for number in other.damaged():
            log.warning("%s is damaged, and is not used", folder / available.pop(number).file)
        adopted = {number: available[number] for number in self.missing() if number in available}
        for number, shard in adopted.items():
            adopted[number] = shard._replace(file=self._file(number, shard.rows))
            link(folder / shard.file, self.folder / adopted[number].file)
        if adopted:
            self._list(adopted)
        return len(available)

    def write(
        self,
        number: int,
        samples: Sequence[Sample],
        generator: str,
        seconds: float,
        prompted: bool = True,
        removed: Removed | None = None,
        threads: int | None = None,
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
            threads: The number of threads that they were generated on.
        """
        facts = self._facts(number) | {"rows": len(samples), "removed": removed or {}}
        content = _seal(self._table(samples, generator, prompted), facts)
        file = self._file(number, len(samples))
        write_bytes(self.folder / file, content)
        checksum = hashlib.sha256(content).hexdigest()
        self._list(
            {number: ShardRecord(len(samples), removed or {}, file, checksum, round(seconds, 3), threads)}
        )

    def _file(self, number: int, rows: int) -> str:
        """Return the path of a shard's file, relative to the folder."""
        # datasets reads the folder data alone, and cannot open a folder with an empty file in it
        return f"{DATA if rows else EMPTY}/train-{number:05d}-of-{self.shards:05d}.parquet"

    def _named(self, number: int, shard: ShardRecord) -> ShardRecord:
        """Return a shard under the name that it has in a data set of this size."""
        named = shard._replace(file=self._file(number, shard.rows))
        if named.file != shard.file:
            link(self.folder / shard.file, self.folder / named.file)
        return named

    def _table(self, samples: Sequence[Sample], generator: str, prompted: bool) -> pyarrow.Table:
        """Return the table of a shard's samples."""
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
        # Dataset.to_parquet needs torchcodec for sounds, and at least one row
        return pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)

    def forget(self) -> None:
        """Delete all shards and the manifest, so that everything is generated again."""
        for name in (DATA, EMPTY, self.manifest.name):
            remove(self.folder / name, self.folder)

    def _list(self, new: Mapping[int, ShardRecord]) -> None:
        """Add shards to the manifest."""
        self._write_manifest({**self.finished(), **new})

    def _write_manifest(self, shards: Mapping[int, ShardRecord]) -> None:
        content = self._identity | {"shards": {str(n): s._asdict() for n, s in sorted(shards.items())}}
        write_json(self.manifest, {**content, "sha256": digest_of(content)})

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
        path = self.folder / shard.file
        return path.is_file() and sha256(path) == shard.sha256


def _shard_files(folder: Path) -> list[Path]:
    """Return the files of all shards in a folder, whatever they belong to."""
    return [path for name in (DATA, EMPTY) for path in sorted((folder / name).glob("train-*.parquet"))]


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the content of a manifest; None if it is absent or damaged."""
    try:
        content: dict[str, Any] = read_json(path)
        if content.pop("sha256") != digest_of(content):
            return None
        files = [shard["file"] for shard in content["shards"].values()]
    except (GenflError, OSError, LookupError, TypeError, AttributeError):
        return None
    return content if all(map(is_below, files)) else None


def _identity_of(files: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the identity of the data set of some files, which was as large as the largest one says."""
    if not files:
        return None
    shards = max(facts["of"] for facts in files)
    digests = {facts["shard"]: facts["digest"] for facts in files}
    shared = len(set(digests.values())) == 1
    return {
        **{name: files[0][name] for name in ("modality", "labels")},
        "of": shards,
        "digest": files[0]["digest"] if shared else "",
        "shard_digests": [] if shared else [digests.get(number, "") for number in range(shards)],
    }


def _seal(table: pyarrow.Table, facts: dict[str, Any]) -> bytes:
    """Return a Parquet file with facts in its metadata, and the checksum of all the rest of the file."""
    metadata = {**(table.schema.metadata or {}), FACTS: json.dumps({**facts, "sha256": NO_CHECKSUM})}
    file = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), file)
    before, empty, after = file.getvalue().rpartition(NO_CHECKSUM.encode())
    return before + hashlib.sha256(before + empty + after).hexdigest().encode() + after


def _read_shard(path: Path) -> tuple[dict[str, Any], str] | None:
    """Return the facts in a shard's file, and the file's checksum. None without facts, or if damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    seals = [*_SEAL.finditer(content)]
    if not seals:
        return None
    start, end = seals[-1].span(1)
    empty = NO_CHECKSUM.encode()
    if hashlib.sha256(content[:start] + empty + content[end:]).hexdigest().encode() != content[start:end]:
        return None
    metadata = pyarrow.parquet.read_metadata(pyarrow.BufferReader(content)).metadata
    facts: dict[str, Any] = json.loads(metadata[FACTS])
    return facts, hashlib.sha256(content).hexdigest()
