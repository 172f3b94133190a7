"""The meaning of folders: which levels of a tree name the split, the client and the class of a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

Level = Literal["split", "client", "domain", "class", "*", "**"]
"""What the folders at one depth name; ``*`` is a level without a meaning, ``**`` any number of them."""

OWNER_LEVELS: tuple[Level, ...] = ("client", "domain")
"""The levels that name who an example belongs to. Each is a column of client ids."""

Folders = tuple[str, ...]
"""The folders that hold a file, from the outermost to the innermost."""

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The accepted names of folders, files and splits, and the split that Hugging Face takes each for."""


class LevelError(Exception):
    """Folders whose meaning cannot be told."""


def parse_levels(text: str) -> tuple[Level, ...]:
    """Parse the meaning of folders, as in ``split/client/class``.

    Args:
        text: Levels with slashes between them, from the outermost to the innermost: split, client, domain,
            class, ``*`` for a level without a meaning, and, at the end, ``**`` for any number of these.

    Raises:
        ValueError: A level is unknown or named twice, or ``**`` is not at the end.
    """
    levels = text.strip("/").split("/")
    for level in levels:
        if level not in get_args(Level):
            raise ValueError(f"{level!r} is not a level; give split, client, domain, class, * or **")
        if level[0] != "*" and levels.count(level) > 1:
            raise ValueError(f"{level} is given twice; give it once")
    if {*OWNER_LEVELS} <= {*levels}:
        raise ValueError("client and domain both name who owns an example; give one of them")
    if "**" in levels[:-1]:
        raise ValueError("** must be the last level")
    return tuple(levels)  # type: ignore[arg-type]  # checked above


def outer_levels(files: Sequence[Folders]) -> tuple[Level, ...]:
    """Tell which of the outermost folders name no class: folders that hold all others, and splits.

    Folders with names of `SPLITS` are splits if they hold class folders, so a class may have such a name.

    Args:
        files: The folders of each file.

    Raises:
        LevelError: A folder beside the splits is not one.
    """
    levels: list[Level] = []
    inner = [folders for folders in files if folders]
    while inner and "split" not in levels:
        names = {folders[0] for folders in inner}
        holders = {folders[0] for folders in inner if len(folders) > 1}  # they hold folders
        splits = {name for name in names if name.lower() in SPLITS}
        if not splits and holders == names and all(map(split_in_name, names)):
            splits = names  # train_images and test_images
        if splits and (holders & splits or splits == names):
            if others := sorted(names - splits):
                raise LevelError(
                    f"folder {others[0]} beside the split {min(splits)} is not a split; remove it, or rename"
                    " it to a split"
                )
            levels.append("split")
        elif len(names) == 1 and holders == names:
            levels.append("*")
        else:
            break
        inner = [folders[1:] for folders in inner if len(folders) > 1]
    return tuple(levels)


def infer_levels(files: Sequence[Folders], field: str = "data.folders") -> tuple[Level, ...]:
    """Tell what the folders of files mean: one level must be left below the outer ones, which is the class.

    Args:
        files: The folders of each file.
        field: The field of the config that says what folders mean, for messages.

    Returns:
        The levels; without class if the files lie in no folders that can be classes.

    Raises:
        LevelError: Several levels could be the class, or a folder beside the splits is not one.
    """
    outer = outer_levels(files)
    inner = [folders[len(outer) :] for folders in files if len(folders) > len(outer)]
    if not inner:
        return outer
    counts = Counter(map(len, inner))
    depth = min(counts, key=lambda length: (-counts[length], length))
    names = [{folders[level] for folders in inner if len(folders) >= depth} for level in range(depth)]
    levels: list[Level] = ["class"] * depth
    if "split" not in outer and depth > 1:
        splits = [all(name.lower() in SPLITS for name in some) for some in names]
        if any(splits):
            levels[splits.index(True)] = "split"  # cat/train and cat/test
    for level, some in enumerate(names):
        if len(some) == 1 and levels[level] == "class" and levels.count("class") > 1:
            levels[level] = "*"
    if (classes := [number for number, level in enumerate(levels) if level == "class"])[1:]:
        example = "/".join(next(folders for folders in inner if len(folders) == depth))

        def reading(first: Level, last: Level) -> str:
            chosen: list[Level] = ["*" if level == "class" else level for level in levels]
            chosen[classes[0]], chosen[classes[-1]] = first, last
            return "/".join([*outer, *chosen])

        raise LevelError(
            f"folders are {depth} deep, as in {example}, and each level could be the classes; set {field} to"
            f" {reading('class', '*')}, {reading('*', 'class')} or {reading('client', 'class')}"
        )
    return (*outer, *levels)


def split_in_name(name: str) -> str | None:
    """Return the split that the words of a name stand for; None if they stand for none or several."""
    splits = {SPLITS[word] for word in split_words(name)}
    return splits.pop() if len(splits) == 1 else None


def split_words(name: str) -> set[str]:
    """Return the words of a name that stand for splits, as in `SPLITS`."""
    return {word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS}
