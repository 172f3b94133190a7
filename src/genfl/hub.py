"""Find and load somebody's pretrained model: a local folder, or an id of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from genfl.errors import InputError, first_line
from genfl.model_folders import (
    OWN_CODE,
    check_has_settings,
    existing_path,
    expanded,
    local_folder,
    model_files,
    read_settings_file,
    weights_variant,
)
from genfl.storage import digest, sha256

LIBRARIES = {
    "image": ("diffusers", "transformers"),
    "speech": ("transformers", "sentencepiece"),
    "sound": ("diffusers", "transformers"),
}
"""The libraries of each kind of generator beyond genfl's own; the extra has the name of the kind."""

FINGERPRINTED = (".json", ".jinja", ".txt", ".model", ".safetensors", ".npy", ".parquet")
"""Suffixes of the files that decide what a model does: weights, settings, tokenizers, speakers."""

LOG_IN = "log in with hf auth login"
"""The advice for repositories that the Hub does not show to everybody."""

TOO_MANY_REQUESTS = 429
LOGIN_REJECTED = (401, 403)
"""HTTP statuses of the Hub."""

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


def read_settings(
    model: str, file: str, field: str = "generator.model", embedded: str | None = None
) -> dict[str, Any]:
    """Return the settings of a model from its JSON file, without loading the model.

    Args:
        model: A folder, or a Hugging Face id.
        file: `genfl.model_folders.PIPELINE_FILE` or `CONFIG_FILE`.
        field: The config field that names the model, for messages.
        embedded: The name of the embedded model, if the field accepts one, for messages.

    Raises:
        InputError: The model does not exist, is damaged, or belongs to another library.
    """
    if local := existing_path(model):
        check_has_settings(local, file, field)
        path = local / file
    else:
        try:
            path = download_file(model, file)
        except Exception as error:  # the Hub's client and the libraries below it raise many types
            name = f"not {embedded!r}, " if embedded else ""
            raise InputError(
                f"{field}: {model!r} is {name}not a folder, not in the local Hugging Face cache, and not"
                f" available from the Hub ({hub_reason(error, file)}); give a folder or the id of a model"
            ) from error
    return read_settings_file(path, field)


def download_file(repository: str, file: str) -> Path:
    """Return the local path of a file of a Hub repository, downloaded if it is not in the cache.

    Args:
        repository: The id of a model.
        file: The name of the file.

    Raises:
        Exception: It is not available; `hub_reason` says why.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(repository, file), str):
        return Path(cached)
    HfApi().model_info(repository, timeout=10)  # fails at once where a download would try for a minute
    return Path(hf_hub_download(repository, file))


def hub_reason(error: BaseException, file: str = "") -> str:
    """Return why the Hub, or a library that asked it, gave nothing, and what helps.

    Args:
        error: The error of huggingface_hub, transformers, diffusers or datasets.
        file: The name of the file that was asked for.
    """
    from httpx import TransportError
    from huggingface_hub import constants, errors

    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case errors.GatedRepoError():
                return f"access is restricted: ask for it on the page of the repository, and {LOG_IN}"
            case errors.RepositoryNotFoundError():
                return f"there is no such repository, or it is private: correct the name, or {LOG_IN}"
            case errors.DisabledRepoError():
                return "the Hub has disabled the repository"
            case errors.HFValidationError():
                return "it is not a valid Hub id"
            case errors.OfflineModeIsEnabled():
                return "HF_HUB_OFFLINE switches the Hub off"
            case errors.LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
                return "HF_HUB_OFFLINE switches the Hub off"
            case errors.RemoteEntryNotFoundError():
                return f"it has no {file or 'such file'}"
            case errors.HfHubHTTPError(response=response) if response is not None:
                return _status_reason(response.status_code)
            case TransportError() | ConnectionError():
                return f"the Hub cannot be reached: {first_line(cause)}"
            case ValueError() if "trust_remote_code" in str(cause):
                return OWN_CODE
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


def _status_reason(status: int) -> str:
    if status == TOO_MANY_REQUESTS:
        return f"the Hub limits requests: try again later, or {LOG_IN}"
    if status in LOGIN_REJECTED:
        return f"the Hub rejects the login, with status {status}: {LOG_IN}"
    return f"the Hub answers with status {status}: try again later"


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
    path = existing_path(model)
    if path is None:
        return model
    if path.is_file():
        return sha256(path)
    paths = [file for file in model_files(path) if file.suffix in FINGERPRINTED]
    return digest([[file.relative_to(path).as_posix(), sha256(file)] for file in paths])


def model_name(model: str) -> str:
    """Return the name of a model for data cards: its id, or the name of its folder or file."""
    path = existing_path(model)
    return path.resolve().name if path else model


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
    loader: Callable[..., Any],
    model: str,
    field: str = "generator.model",
    device: str | None = None,
    **options: Any,
) -> Any:
    """Load a model or a pipeline from safetensors files, never from a pickle and without code of its own.

    If some of its parts have only weights of a variant, such as fp16, these are loaded.

    Args:
        loader: A ``from_pretrained`` of diffusers or transformers.
        model: A folder, or a Hugging Face id.
        field: The config field that names the model, for messages.
        device: The torch device to move it to; None leaves it where the loader puts it.
        **options: Further arguments of the loader.

    Raises:
        InputError: The model cannot be loaded.
    """
    if variant := weights_variant(_file_names(model)):
        options["variant"] = variant
    try:
        loaded = loader(expanded(model), use_safetensors=True, trust_remote_code=False, **options)
        return loaded.to(device) if device else loaded
    except Exception as error:  # the libraries raise errors of their own, of file formats, and of memory
        raise InputError(
            f"{field}: {model!r} could not be loaded ({hub_reason(error)}); give a model with safetensors"
            " files"
        ) from error


def _file_names(model: str) -> list[str]:
    """Return the names of a model's files, relative to its folder; none if they are not known."""
    if folder := local_folder(model):
        return [file.relative_to(folder).as_posix() for file in model_files(folder)]
    from huggingface_hub import HfApi

    try:
        return [file.rfilename for file in HfApi().model_info(model, timeout=10).siblings or ()]
    except Exception:  # the loader says why
        return []


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
