"""Check somebody's model in a folder before it is loaded: settings, weights, and code of its own."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from genfl.errors import InputError, first_line

PIPELINE_FILE = "model_index.json"
"""The file that lists the parts of a diffusers pipeline."""

CONFIG_FILE = "config.json"
"""The file that describes a transformers model."""

OWN_CODE = "the folder holds code of its own, which is not run"
"""The reason why a model is rejected that its library knows only by code in its folder."""

WEIGHTS = ".safetensors"
"""The suffix of files with weights; pickles can run code when they are loaded."""

LORA_FILES = ("adapter_config.json", "pytorch_lora_weights.safetensors")
"""Files beside LoRA weights, or with them."""

UNUSED_PARTS = ("safety_checker",)
"""Parts of a pipeline that are never loaded."""

LFS_POINTER = b"version https://git-lfs"
"""The beginning of a file that stands for one that Git has not downloaded."""

_WEIGHTLESS = (
    *("Tokenizer", "TokenizerFast", "Scheduler", "Extractor"),
    *("Processor", "ProcessorFast", "ProcessorPil"),
)
_WEIGHT_NAME = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?(?:\.(?P<legacy>\w+))?"
    r"\.safetensors"
)


def expanded(path: str) -> str:
    """Return a path with the home folder in place of ``~``; a Hugging Face id stays as it is."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # a user who does not exist
        return path


def existing_path(model: str) -> Path | None:
    """Return the file or folder of a model; None for a Hugging Face id.

    Args:
        model: A path, in which ``~`` is the home folder, or a Hugging Face id.
    """
    path = Path(expanded(model))
    try:
        return path if path.exists() else None
    except (OSError, ValueError):  # no file system takes such a name
        return None


def local_folder(model: str) -> Path | None:
    """Return the folder of a model; None for a Hugging Face id, or a file.

    Args:
        model: A folder, in which ``~`` is the home folder, or a Hugging Face id.
    """
    path = existing_path(model)
    return path if path and path.is_dir() else None


def model_files(folder: Path) -> list[Path]:
    """Return all files below a folder in the order of their names, also those behind links to folders."""
    return sorted(_files(folder, ()))


def _files(folder: Path, parents: tuple[Path, ...]) -> Iterator[Path]:
    real = folder.resolve()
    if real in parents:  # a link back to a folder above would never end
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, (*parents, real))
        elif path.is_file():
            yield path


def read_settings_file(path: Path, field: str) -> dict[str, Any]:
    """Return the content of a model's JSON file.

    Args:
        path: The file.
        field: The config field that names the model, for messages.

    Raises:
        InputError: The file is damaged, or it describes a pipeline that only code of its own could load.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{field}: {path} is damaged ({first_line(error)}); replace it by an intact copy"
        ) from error
    if path.name == PIPELINE_FILE:
        name = content.get("_class_name")
        if isinstance(name, list) or any(_own_code(path.parent, content)):
            raise InputError(f"{field}: {path.parent}: {OWN_CODE}; use a pipeline of diffusers")
        if not isinstance(name, str) or not name:
            raise InputError(
                f"{field}: {path} does not name its pipeline, because _class_name is missing; give a folder"
                " that save_pretrained wrote"
            )
    return content


def _own_code(folder: Path, pipeline: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files with code that the parts of a pipeline name."""
    for part, (library, _) in _parts(pipeline).items():
        for path in (folder / part / f"{library}.py", folder / f"{library}.py"):
            if path.is_file():
                yield path


def _parts(pipeline: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return library and class of each part of a pipeline."""
    return {
        name: (value[0], value[1])
        for name, value in pipeline.items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(entry, str) for entry in value)
        if name != "_class_name" and name not in UNUSED_PARTS
    }


def check_has_settings(path: Path, file: str, field: str) -> None:
    """Check that a folder holds a model's settings; if it holds something else, the message says what.

    Args:
        path: A folder or a file that exists.
        file: `PIPELINE_FILE` or `CONFIG_FILE`.
        field: The config field that names the model, for messages.

    Raises:
        InputError: The file is missing.
    """
    if (path / file).is_file():
        return
    library = "diffusers" if file == PIPELINE_FILE else "transformers"
    if any((path / name).is_file() for name in LORA_FILES) or _is_lora(path):
        raise InputError(
            f"{field}: {path} holds LoRA weights without their base model; load both with {library}, merge"
            " them, and give the folder that save_pretrained writes"
        )
    fix = "give a folder that save_pretrained wrote"
    single = [path] if path.is_file() else sorted(path.glob(f"*{WEIGHTS}"))
    if single and not (path / CONFIG_FILE).is_file():
        load = " (from_single_file of diffusers reads such a file)" if file == PIPELINE_FILE else ""
        raise InputError(f"{field}: {single[0]} is a single file, not a whole model; {fix}{load}")
    kind = "diffusers pipeline" if file == PIPELINE_FILE else "transformers model"
    raise InputError(f"{field}: the folder {path} has no {file}, so it is not a {kind}; {fix}")


def _is_lora(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    if path.suffix != WEIGHTS or not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as weights:
            return any("lora" in name.lower() for name in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def check_weights(model: str, field: str = "generator.model") -> None:
    """Check that a folder holds intact weights of all parts as safetensors, without loading them.

    Args:
        model: A folder, or a Hugging Face id, which is not checked.
        field: The config field that names the model, for messages.

    Raises:
        InputError: A part of a pipeline, or a file with weights, is missing or damaged.
    """
    folder = local_folder(model)
    if folder is None:
        return
    if not any(file.suffix == WEIGHTS for file in model_files(folder)):
        raise InputError(
            f"{field}: the folder {model} has no {WEIGHTS} files, and pickles are never loaded; write the"
            " model with save_pretrained"
        )
    parts = [folder]
    if (folder / PIPELINE_FILE).is_file():
        pipeline = _parts(read_settings_file(folder / PIPELINE_FILE, field))
        for part in pipeline:
            if not (folder / part).is_dir():
                raise InputError(
                    f"{field}: the folder {model} has no folder {part}, which its {PIPELINE_FILE} names; copy"
                    " the whole model"
                )
        parts = [folder / part for part, (_, name) in pipeline.items() if not name.endswith(_WEIGHTLESS)]
        for path in parts:
            if not any(path.glob(f"*{WEIGHTS}")):
                raise InputError(
                    f"{field}: the folder {path} has no {WEIGHTS} files, and pickles are never loaded; copy"
                    " the whole model, or write it with save_pretrained"
                )
    for path in parts:
        _check_part(path, field)
    variants = _variants(file.relative_to(folder).as_posix() for file in model_files(folder))
    if variants and not set.intersection(*variants):
        raise InputError(
            f"{field}: the parts of {model} have weights of different variants"
            f" ({', '.join(sorted(set.union(*variants)))}); copy the files of one variant"
        )


def _check_part(folder: Path, field: str) -> None:
    """Check the files with weights of a model, or of a part of a pipeline."""
    from safetensors import SafetensorError, safe_open

    for index in sorted(folder.glob(f"*{WEIGHTS}.index*.json")):
        files = read_settings_file(index, field).get("weight_map")
        for name in sorted(set(files.values())) if isinstance(files, dict) else ():
            if not (folder / str(name)).is_file():
                raise InputError(f"{field}: {index} names {name}, which is missing; copy the whole model")
    for file in sorted(folder.glob(f"*{WEIGHTS}")):
        try:
            with file.open("rb") as content:
                pointer = content.read(len(LFS_POINTER)) == LFS_POINTER
            if pointer:
                raise InputError(
                    f"{field}: {file} is a pointer of Git LFS instead of the weights; run git lfs pull there"
                )
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{field}: {file} is damaged ({first_line(error)}); replace it by an intact copy"
            ) from error


def weights_variant(names: Collection[str]) -> str | None:
    """Return the variant that weights are loaded of, such as fp16; None for the plain files.

    A variant is needed if a part of the model has no plain files.

    Args:
        names: The model's files, relative to its folder.
    """
    variants = _variants(names)
    common = set.intersection(*variants) if variants else set()
    return "fp16" if "fp16" in common else min(common, default=None)


def _variants(names: Collection[str] | Iterator[str]) -> list[set[str]]:
    """Return the variants of the weights of each part that has no plain ones."""
    parts: dict[str, set[str]] = defaultdict(set)
    for name in names:
        folder, _, file = name.rpartition("/")
        if (match := _WEIGHT_NAME.fullmatch(file)) and "/" not in folder:
            parts[folder].add(match["variant"] or match["legacy"] or "")
    return [variants for variants in parts.values() if "" not in variants]
