"""Find and load somebody's pretrained model: a local folder, or an id of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from genfl.data.folders import first_line
from genfl.errors import InputError
from genfl.storage import digest, sha256

PIPELINE_FILE = "model_index.json"
"""The file that lists the parts of a diffusers pipeline."""

CONFIG_FILE = "config.json"
"""The file that describes a transformers model."""

LIBRARIES = {
    "image": ("diffusers", "transformers"),
    "speech": ("transformers", "sentencepiece"),
    "sound": ("diffusers", "transformers"),
}
"""The libraries of each kind of generator beyond genfl's own; the extra has the name of the kind."""

FINGERPRINTED = (".json", ".jinja", ".txt", ".model", ".safetensors", ".npy", ".parquet")
"""Suffixes of the files that decide what a model does: weights, settings, tokenizers, speakers."""

OUT_OF_MEMORY_MESSAGES = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Parts of messages that mean out of memory, in errors that are no `torch.OutOfMemoryError`."""


def require_libraries(kind: str) -> None:
    """Check that the libraries of a kind of generator are installed, without importing them.

    Args:
        kind: A key of `LIBRARIES`.

    Raises:
        InputError: A library is missing.
    """
    for library in LIBRARIES[kind]:
        if find_spec(library) is None:
            raise InputError(
                f"generator.kind: {kind} needs {library}, which is not installed; run pip install"
                f" 'genfl[{kind}]'"
            )


def silence_libraries() -> None:
    """Limit diffusers and transformers to error messages, and hide their progress bars."""
    import transformers

    libraries = [transformers]
    if find_spec("diffusers"):
        import diffusers

        libraries.append(diffusers)
    for library in libraries:
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def read_settings(model: str, file: str, field: str = "model", embedded: str | None = None) -> dict[str, Any]:
    """Return the settings of a model from its JSON file, without loading the model.

    Args:
        model: A folder, or a Hugging Face id.
        file: `PIPELINE_FILE` or `CONFIG_FILE`.
        field: The option of the generator that names the model, for messages.
        embedded: The name of the embedded model, if the option accepts one, for messages.

    Raises:
        InputError: The model does not exist, or belongs to another library.
    """
    if Path(model).is_dir():
        path = Path(model) / file
        if not path.is_file():
            kind = "diffusers pipeline" if file == PIPELINE_FILE else "transformers model"
            raise InputError(
                f"generator.{field}: the folder {model} has no {file}, so it is not a {kind}; give a folder"
                " that save_pretrained wrote"
            )
    else:
        path = Path(_download(model, file, field, embedded))
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _download(model: str, file: str, field: str, embedded: str | None) -> str:
    """Return the local path of a file of a Hub model, downloaded if it is not in the cache."""
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        if isinstance(cached := try_to_load_from_cache(model, file), str):
            return cached
        if not constants.HF_HUB_OFFLINE:
            HfApi().model_info(model, timeout=10)  # without a network, this fails sooner than a download
            return hf_hub_download(model, file)
        reason = "HF_HUB_OFFLINE switches the Hub off"
    except HFValidationError:
        reason = "it is not a valid Hub id"
    except Exception as error:  # the client raises its own errors, those of its HTTP library, and OSErrors
        reason = first_line(error)
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            reason = f"it has no {file}"
    name = f"not {embedded!r}, " if embedded else ""
    raise InputError(
        f"generator.{field}: {model!r} is {name}not a folder, not in the local Hugging Face cache, and not"
        f" available from the Hub ({reason}); give a folder or the id of a model"
    )


def fingerprint(model: str) -> str:
    """Return a digest that changes when local files of a model change.

    The digest covers names and contents of weights and settings, so a copy elsewhere has the same digest.
    Every call reads the files again: a caller that asks often in one run keeps the answer for that run.

    Args:
        model: A file, a folder, or a Hugging Face id. Links are followed.

    Returns:
        A hexadecimal SHA-256. A Hugging Face id is returned as it is: to pin a revision, download it to a
        folder.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        return model
    paths = [file for file in model_files(path) if file.suffix in FINGERPRINTED]
    return digest([[file.relative_to(path).as_posix(), sha256(file)] for file in paths])


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


def model_name(model: str) -> str:
    """Return the name of a model for data cards: its id, or the name of its folder or file."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def check_weights(model: str, field: str = "model") -> None:
    """Check that a folder holds weights as safetensors: pickles can run code when they are loaded.

    Args:
        model: A folder, or a Hugging Face id, which is not checked.
        field: The option of the generator that names the model, for messages.

    Raises:
        InputError: The folder has no safetensors file.
    """
    folder = Path(model)
    if folder.is_dir() and not any(file.suffix == ".safetensors" for file in model_files(folder)):
        raise InputError(
            f"generator.{field}: the folder {model} has no .safetensors files, and pickles are never loaded;"
            " write the model with save_pretrained"
        )


def check_device(device: str, field: str = "generator.device") -> None:
    """Check that torch sees the GPU that a device names.

    Args:
        device: A torch device, such as ``cpu`` or ``cuda:1``.
        field: The config field, for messages.

    Raises:
        InputError: torch sees no GPU of that number.
    """
    if device.startswith("cuda") and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise InputError(f"{field}: {device!r}, but torch sees no GPU of that number; use cpu")


def dtype_on(device: str, half: torch.dtype = torch.float16) -> torch.dtype:
    """Return the dtype that a model runs in: ``half`` on a GPU, float32 elsewhere."""
    return half if device.startswith("cuda") else torch.float32


def load_model(
    loader: Callable[..., Any], model: str, field: str = "model", device: str | None = None, **options: Any
) -> Any:
    """Load a model or a pipeline from safetensors files, never from a pickle.

    Args:
        loader: A ``from_pretrained`` of diffusers or transformers.
        model: A folder, or a Hugging Face id.
        field: The option of the generator that names the model, for messages.
        device: The torch device to move it to; None leaves it where the loader puts it.
        **options: Further arguments of the loader.

    Raises:
        InputError: The model cannot be loaded.
    """
    try:
        loaded = loader(model, use_safetensors=True, **options)
        return loaded.to(device) if device else loaded
    except Exception as error:  # the libraries raise errors of their own, of file formats, and of memory
        raise InputError(
            f"generator.{field}: {model!r} could not be loaded ({first_line(error)}); give a model with"
            " safetensors files"
        ) from error


@contextmanager
def explain_out_of_memory(samples: int, device: str, field: str = "generator.device") -> Iterator[None]:
    """Turn an out-of-memory error of the block into one that says which setting helps.

    Args:
        samples: The number of samples that the block makes in one call.
        device: The torch device, for the message.
        field: The config field of the device, for the message.

    Raises:
        InputError: The memory does not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        known = any(part in str(error) for part in OUT_OF_MEMORY_MESSAGES)
        if not (known or isinstance(error, torch.OutOfMemoryError)):
            raise
        fix = (
            f"set prompts.block_size to {samples // 2} (existing blocks will be regenerated)"
            if samples > 1
            else "use a smaller model"
        )
        raise InputError(f"{field}: out of memory on {device} with a block of {samples}; {fix}") from error
