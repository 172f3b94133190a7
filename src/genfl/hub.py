"""Finding and loading somebody's pretrained model: a folder, or an id of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from genfl.data.folders import first_line
from genfl.errors import InputError
from genfl.storage import digest, sha256

PIPELINE_FILE = "model_index.json"
"""The file that says what a pipeline of diffusers consists of."""

CONFIG_FILE = "config.json"
"""The file that says what a model of transformers is."""

LIBRARIES = {
    "image": ("diffusers", "transformers"),
    "speech": ("transformers", "sentencepiece"),
    "sound": ("diffusers", "transformers"),
}
"""What each kind of generator needs beyond genfl's own requirements; the extra is called as the kind."""


def require_libraries(kind: str) -> None:
    """Refuses a kind of generator whose libraries are not installed, without importing them.

    Raises:
        InputError: One is missing.
    """
    for library in LIBRARIES[kind]:
        if find_spec(library) is None:
            raise InputError(f"generator.kind: {kind} needs {library}: pip install 'genfl[{kind}]'")


def hush() -> None:
    """Has diffusers and transformers report errors alone, and show no progress of their own."""
    import transformers

    libraries = [transformers]
    if find_spec("diffusers"):
        import diffusers

        libraries.append(diffusers)
    for library in libraries:
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def read_settings(model: str, file: str, field: str = "model", embedded: str | None = None) -> dict[str, Any]:
    """Returns what a model says of itself, without loading it.

    Args:
        model: A folder, or a Hugging Face id.
        file: `PIPELINE_FILE` or `CONFIG_FILE`.
        field: The generator's option that names the model, for messages.
        embedded: What else may be named there, for messages.

    Raises:
        InputError: There is no such model, or it is none of that library.
    """
    if Path(model).is_dir():
        path = Path(model) / file
        if not path.is_file():
            what = "pipeline of diffusers" if file == PIPELINE_FILE else "model of transformers"
            raise InputError(f"generator.{field}: the folder {model} holds no {file}, so no {what}")
    else:
        path = Path(_downloaded(model, file, field, embedded))
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _downloaded(model: str, file: str, field: str, embedded: str | None) -> str:
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        if isinstance(cached := try_to_load_from_cache(model, file), str):
            return cached
        if not constants.HF_HUB_OFFLINE:
            HfApi().model_info(model, timeout=10)  # fails sooner than a download does
            return hf_hub_download(model, file)
        reason = "the Hub is switched off by HF_HUB_OFFLINE"
    except HFValidationError:
        reason = "it is no valid Hub id"
    except Exception as error:  # the client raises its own, its HTTP library's and OSErrors alike
        reason = first_line(error)
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            reason = f"it holds no {file}"
    other = f"not {embedded!r}, " if embedded else ""
    raise InputError(
        f"generator.{field}: {model!r} is {other}no folder, not in the local Hugging Face cache,"
        f" and not to be had from the Hub ({reason})"
    )


@lru_cache
def fingerprint(place: str) -> str:
    """Returns what changes when local files change, so that data made with the old ones is made again.

    It is a digest of the names and contents of weights and settings. A Hugging Face id stands for itself: pin
    a revision by downloading it to a folder.

    Args:
        place: A file, a folder, or a Hugging Face id.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        return place
    kinds = (".json", ".jinja", ".txt", ".model", ".safetensors", ".npy", ".parquet")
    paths = [file for file in sorted(path.rglob("*")) if file.suffix in kinds]
    return digest([[file.relative_to(path).as_posix(), sha256(file)] for file in paths])


def model_name(model: str) -> str:
    """Returns what data sets call the model they were made by: its id, or the name of its folder or file."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def check_weights(model: str, field: str = "model") -> None:
    """Refuses a folder of pickles.

    Raises:
        InputError: It holds no safetensors file.
    """
    if Path(model).is_dir() and next(Path(model).rglob("*.safetensors"), None) is None:
        raise InputError(
            f"generator.{field}: the folder {model} holds no .safetensors files, and pickles are never"
            " loaded; save_pretrained the model to a folder"
        )


def check_device(device: str, field: str = "generator.device") -> None:
    """Refuses a GPU that is not there.

    Raises:
        InputError: torch sees none of that number.
    """
    if device.startswith("cuda") and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise InputError(f"{field}: {device!r}, but torch sees no GPU of that number; use cpu")


def dtype_on(device: str, half: torch.dtype = torch.float16) -> torch.dtype:
    """Returns the type of numbers that a model runs in: half precision on a GPU."""
    return half if device.startswith("cuda") else torch.float32


def load_model(
    loader: Callable[..., Any], model: str, field: str = "model", device: str | None = None, **options: Any
) -> Any:
    """Loads a model or a pipeline from safetensors files, never from a pickle.

    Args:
        loader: A ``from_pretrained`` of diffusers or transformers.
        model: What it takes.
        field: The generator's option that names it, for messages.
        device: Where it is put; None for where the loader puts it.
        **options: Of the loader.

    Raises:
        InputError: It cannot be loaded.
    """
    try:
        loaded = loader(model, use_safetensors=True, **options)
        return loaded.to(device) if device else loaded
    except Exception as error:  # the libraries raise their own, those of file formats, and torch's for memory
        raise InputError(
            f"generator.{field}: {model!r} could not be loaded, which takes safetensors files:"
            f" {first_line(error)}"
        ) from error
