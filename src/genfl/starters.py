"""Configs to start from: the examples, and a commented one for your own data. This imports nothing slow."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from genfl.errors import InputError, on_one_line, suggest
from genfl.storage import explaining_target, write_text

_SUFFIX = ".yaml"


def examples_folder() -> Path:
    """Return the folder of the examples: in the package, or at the top of a checkout."""
    packaged = Path(str(files("genfl"))) / "examples"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "examples"


def example_names() -> dict[str, str]:
    """Return the first line of each example, by its name; those of papers are last."""
    folder = examples_folder()
    paths = sorted(folder.rglob(f"*{_SUFFIX}"), key=lambda path: (len(path.parts), path))
    return {
        path.relative_to(folder).with_suffix("").as_posix(): _first_comment(path.read_text(encoding="utf-8"))
        for path in paths
    }


def copy_example(name: str, folder: Path) -> Path:
    """Copy an example to a folder, and return the path of the copy.

    Args:
        name: A key of `example_names`.
        folder: The folder; it is created if it is missing.

    Raises:
        InputError: There is no such example, or the folder has a file of that name.
    """
    known = list(example_names())
    if name not in known:
        raise InputError(f"NAME: there is no example {on_one_line(name)!r}; {suggest(name, known)}")
    text = examples_folder().joinpath(name + _SUFFIX).read_text(encoding="utf-8")
    return _write_new(folder / (name + _SUFFIX), text)


def new_config(kind: str, path: Path) -> Path:
    """Write a commented config for a user's own data, and return its path.

    Args:
        kind: The kind of the data: images, sounds or texts.
        path: The file to write.

    Raises:
        InputError: The file exists, or cannot be written.
    """
    text = (files("genfl.configs") / f"{kind}{_SUFFIX}").read_text(encoding="utf-8")
    return _write_new(path, text)


def _write_new(path: Path, text: str) -> Path:
    with explaining_target(path, "--out"):
        if path.exists() or path.is_symlink():
            raise InputError(f"--out: {path} exists, and is not overwritten; name another, or delete it")
        write_text(path, text)
    return path


def _first_comment(text: str) -> str:
    return text.partition("\n")[0].removeprefix("#").strip()
