"""Data cards: what the README of a data set says about its files and classes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from genfl.data.tables import DEFAULT_CSV, CSVOptions

log = logging.getLogger(__name__)

CARD = "README.md"
"""The name of the file that holds a data card."""

_METADATA = re.compile(r"\A---[ \t]*\n(.*?\n)---[ \t]*(\n|\Z)", re.DOTALL)

LICENCE_LENGTH = 200
"""The most characters of a licence's line."""

UNSUPPORTED_CSV = {
    "header",
    "skiprows",
    "quoting",
    "quotechar",
    "escapechar",
    "encoding",
    "decimal",
    "thousands",
}
"""Options of CSV files that a card may set for pandas, and genfl does not know."""


class CardError(Exception):
    """A data card that asks for files which are not those of its folder."""


@dataclass(frozen=True)
class DataCard:
    """A data card, in the format of the Hugging Face Hub.

    Attributes:
        files: The patterns of the files of each split, such as ``data/train-*``; empty for none.
        folder: The folder that holds all files, below that of the card; empty for the card's own.
        class_names: The names of the numbers in a column, by column.
        csv: The options of CSV files.
    """

    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    folder: tuple[str, ...] = ()
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    csv: CSVOptions = DEFAULT_CSV


def read_card(folder: Path) -> DataCard:
    """Read the data card of a folder; a README without readable metadata says nothing about the files.

    Args:
        folder: The folder of the data.

    Raises:
        CardError: The card describes several data sets, or files outside the folder.
    """
    metadata = card_metadata(folder / CARD)
    configs = [entry for entry in _list(metadata.get("configs")) if isinstance(entry, dict)]
    config = _chosen(configs)
    patterns = {} if config is None else _patterns(config)
    data_dir = str((config or {}).get("data_dir") or "")
    listed: dict[str, list[str]] = {**patterns, "data_dir": [data_dir]}
    for split, names in listed.items():
        for name in names:
            if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|[/\\~]", name) or ".." in re.split(r"[/\\]", name):
                raise CardError(
                    f"{CARD} names {name} for split {split}, which is not in the folder; name files in it"
                )
    chosen = config or {}
    if unknown := sorted(UNSUPPORTED_CSV & chosen.keys()):
        raise CardError(f"{CARD} sets {unknown[0]}, which is not supported; convert the files, or remove it")
    separator = chosen.get("sep") or chosen.get("delimiter")
    if separator is not None and not (isinstance(separator, str) and len(separator) == 1):
        raise CardError(f"{CARD} sets the separator {separator!r}; give a single character")
    columns = chosen.get("names") or chosen.get("column_names") or ()
    options = CSVOptions(
        separator,
        tuple(map(str, columns)) if isinstance(columns, list) else (),
    )
    inside = tuple(part for part in data_dir.split("/") if part not in ("", "."))
    class_names = _class_names(metadata.get("dataset_info"), chosen.get("config_name"))
    return DataCard(patterns, () if patterns else inside, class_names, options)


def licence_line(path: Path) -> str | None:
    """Return the licence that the metadata of a README names, on one line; None without one.

    Args:
        path: The README of a model or a data set, in the format of the Hugging Face Hub.
    """
    metadata = card_metadata(path)
    # license is "other" if license_name names one that the Hub does not list
    names = [metadata.get("license_name") or metadata.get("license"), metadata.get("license_link")]
    line = ", ".join(str(part) for name in names for part in _list(name) if part)
    return " ".join(line.split())[:LICENCE_LENGTH] or None


def card_metadata(path: Path) -> Mapping[str, Any]:
    """Return the metadata at the top of a README; empty if there is none that can be read."""
    try:
        match = _METADATA.match(path.read_text("utf-8-sig").replace("\r\n", "\n"))
        if match is None:
            return {}
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(match[1])):
            raise ValueError("it has aliases")  # a few lines of them can stand for gigabytes
        content = yaml.safe_load(match[1])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        log.info("%s has no metadata that can be read, so file names decide the splits (%s)", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def _chosen(configs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the data set that is read: the only one, or the one that is the default."""
    defaults = [one for one in configs if one.get("default") is True or one.get("config_name") == "default"]
    candidates = defaults[:1] or configs
    if len(candidates) > 1:
        names = ", ".join(str(one.get("config_name")) for one in candidates)
        raise CardError(
            f"{CARD} describes {len(candidates)} data sets ({names}); add `default: true` to one of them, or"
            " give a folder with the files of one"
        )
    return candidates[0] if candidates else None


def _patterns(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the patterns of the files of each split."""
    files = config.get("data_files")
    inside = str(config.get("data_dir") or "").strip("/")
    if files is None:
        return {}
    entries: list[tuple[str, Any]] = []
    if isinstance(files, dict):
        entries = [(str(split), names) for split, names in files.items()]
    else:
        for entry in _list(files):
            if isinstance(entry, dict):
                entries.append((str(entry.get("split", "train")), entry.get("path")))
            else:
                entries.append(("train", entry))
    patterns: dict[str, list[str]] = {}
    for split, names in entries:
        for name in _list(names):
            patterns.setdefault(split, []).append(f"{inside}/{name}" if inside else str(name))
    return patterns


def _class_names(info: Any, config_name: Any) -> dict[str, list[str]]:
    """Return the class names of the features that a card lists."""
    entries = [entry for entry in _list(info) if isinstance(entry, dict)]
    if len(entries) > 1:
        entries = [entry for entry in entries if entry.get("config_name") == config_name]
    features = _list(entries[0].get("features")) if entries else []
    named = {
        str(one.get("name")): _label_names(one.get("dtype")) for one in features if isinstance(one, dict)
    }
    return {column: names for column, names in named.items() if names}


def _label_names(kind: Any) -> list[str]:
    """Return the names of a class_label, which a card writes as a list or as an object of numbers."""
    try:
        names = kind["class_label"]["names"]
        ordered = [names[number] for number in sorted(names, key=int)] if isinstance(names, dict) else names
        return [str(name) for name in ordered]
    except (LookupError, TypeError, ValueError):
        return []


def _list(value: Any) -> list[Any]:
    """Return a list as it is, nothing as an empty list, and any other value as a list of it."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
