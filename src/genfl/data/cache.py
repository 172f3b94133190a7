"""The cache of decoded data sets: a folder on disk, which only the user can read."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from genfl.errors import GenflError, InputError, first_line
from genfl.storage import digest, read_json, remove, sha256, write_json

log = logging.getLogger(__name__)

FACTS_FILE = "about.json"
"""The file that marks a cached data set as complete. It is written last."""


def cache_root() -> Path:
    """Return the folder that the environment variable ``GENFL_CACHE`` names, or the usual one."""
    return Path(os.environ.get("GENFL_CACHE") or Path.home() / ".cache" / "genfl").expanduser()


def cache_folder() -> Path:
    """Return the folder of decoded data sets, which is created if it is missing.

    Raises:
        InputError: It cannot be created.
    """
    folder = cache_root() / "data"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the data is private
    except OSError as error:
        raise InputError(
            f"GENFL_CACHE: {folder} cannot be created ({error.strerror}); name another folder"
        ) from error
    return folder


def cache_lock(target: Path) -> FileLock:
    """Return the lock of a cached data set.

    Raises:
        InputError: The cache cannot be written.
    """
    path = Path(f"{target}.lock")
    try:
        path.touch(mode=0o600)
    except OSError as error:
        raise InputError(
            f"GENFL_CACHE: {target.parent} cannot be written ({error.strerror}), and this data is not in it;"
            " name another folder"
        ) from error
    return FileLock(path, mode=0o600)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return the facts about a cached data set; None if it is missing or damaged."""
    if not (folder / FACTS_FILE).exists():
        return None
    try:
        about = read_json(folder / FACTS_FILE)
        if about["digest"] != digest(about["facts"]):
            raise GenflError(f"{folder / FACTS_FILE} has another checksum")
        facts: dict[str, Any] = about["facts"]
        for name, split in facts["splits"].items():
            if sha256(folder / f"{name}.npy") != split["sha256"]:
                raise GenflError(f"{folder / name}.npy has another checksum")
        return facts
    except (GenflError, OSError, LookupError, TypeError) as error:
        log.warning("the data is decoded again, because the cache is damaged: %s", first_line(error))
        return None


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write the facts about a cached data set, which mark it as complete."""
    write_json(folder / FACTS_FILE, {"digest": digest(facts), "facts": facts})
    (folder / FACTS_FILE).chmod(0o600)  # labels and client ids are private


class CachedData(NamedTuple):
    """A data set in the cache.

    Attributes:
        path: Its folder.
        bytes: Its size.
        examples: The number of its examples; None if it is incomplete or damaged.
        classes: The names of its classes.
    """

    path: Path
    bytes: int
    examples: int | None
    classes: tuple[str, ...]


def cached_data() -> list[CachedData]:
    """Return what the cache holds, without reading the examples."""
    folder = cache_root() / "data"
    entries = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            try:
                facts = read_json(path / FACTS_FILE)["facts"]
                examples = sum(len(split["labels"]) for split in facts["splits"].values())
                classes = tuple(map(str, facts["names"]))
            except (GenflError, OSError, LookupError, TypeError):
                examples, classes = None, ()
            size = 0
            for file in path.iterdir():
                with contextlib.suppress(OSError):  # another process may rename it at this moment
                    size += file.stat().st_size
            entries.append(CachedData(path, size, examples, classes))
    return entries


def clear_cache() -> int:
    """Delete all data sets in the cache, and return the number of bytes that this frees.

    A data set that another process decodes at this moment is left alone.
    """
    freed = 0
    for entry in cached_data():
        try:
            with cache_lock(entry.path).acquire(timeout=0):
                remove(entry.path, entry.path.parent)
                freed += entry.bytes
        except Timeout:
            log.info("%s is in use and stays", entry.path)
    return freed
