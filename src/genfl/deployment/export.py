"""Trained models as folders that other programs load: weights, description, loader, model card, ONNX."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genfl import config as configs
from genfl.deployment.description import (
    DESCRIPTION_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    ModelDescription,
    TokenInput,
)
from genfl.deployment.model_page import model_card
from genfl.deployment.onnx import random_inputs, require_onnx, write_onnx
from genfl.deployment.runs import trained_folder
from genfl.deployment.trained import RunModel
from genfl.errors import GenflError, InputError, cause, on_one_line
from genfl.experiment.records import RUN_CONFIG, SUMMARY_FILE, check_finished
from genfl.models import MODELS, Classifier
from genfl.results.schema import Summary
from genfl.storage import (
    check_target,
    explaining_target,
    read_json,
    replacing_folder,
    sha256,
    write_json,
    write_text,
)

EXPORT_MARKER = ".genfl-export"
"""The file that marks an exported folder. It holds the SHA-256 of every other file."""

LOADER_FILE = "load.py"
ARCHITECTURE = "architecture"
ONNX_FILE = "model.onnx"
"""Names in an exported folder: the loader, the package of the model's source, and the ONNX file."""

EXPORTED_FILES = (
    WEIGHTS_FILE,
    DESCRIPTION_FILE,
    TOKENIZER_FILE,
    LOADER_FILE,
    ONNX_FILE,
    "README.md",
    f"{ARCHITECTURE}/*.py",
)
"""The files that an export may have, as patterns."""

_MODELS = "genfl.models"
_IMPORT = re.compile(rf"^from {re.escape(_MODELS)}\.(\w+) import", re.MULTILINE)


class Exported(NamedTuple):
    """An exported model.

    Attributes:
        folder: The folder.
        method: The method that trained the model.
        seed: Its seed.
        files: The size in bytes of each file, by its path in the folder.
        onnx_difference: The difference between the logits of onnxruntime and PyTorch; None without ONNX.
        repository: The address of the repository that it was pushed to; None if it was not.
    """

    folder: Path
    method: str
    seed: int
    files: dict[str, int]
    onnx_difference: float | None
    repository: str | None


def export_model(
    run: Path,
    folder: Path,
    *,
    method: str | None = None,
    seed: int | None = None,
    onnx: bool = False,
    push_to_hub: str | None = None,
) -> Exported:
    """Export a trained model of a run to a folder that torch and safetensors alone can load.

    The folder is written as a whole or not at all. An earlier export in it is replaced.

    Args:
        run: The folder of a finished run.
        folder: The folder to write, outside of the run. It is absent, empty, or holds an earlier export.
        method: The method that trained the model; by default the federated one with the best mean accuracy.
        seed: One of the run's seeds; by default the first.
        onnx: Whether to write ``model.onnx``, too, and to check it against PyTorch.
        push_to_hub: The Hugging Face repository to upload the folder to, ``owner/name``. A new one is
            private.

    Raises:
        InputError: The run is not finished, it has no such model, the model cannot be loaded or its files do
            not fit each other, or the folder holds other files or cannot be written. Also if the Hub refuses
            the upload; the folder is then complete on this machine.
        GenflError: The ONNX file fails its check. Nothing is written then.
    """
    check_finished(run, "RUN")
    settings, summary = configs.read(run / RUN_CONFIG), Summary.read(run / SUMMARY_FILE)
    source = trained_folder(run, summary, method, seed)
    description = ModelDescription.read(source / DESCRIPTION_FILE)
    if source.parts[-2:] != (description.method, f"seed-{description.seed}"):
        named = f"{on_one_line(description.method)}, seed {description.seed}"
        raise InputError(f"method: {source / DESCRIPTION_FILE} is that of {named}; restore the file")
    if onnx:
        require_onnx()
    if description.model.own and not onnx:
        raise InputError(
            f"method: {description.method} trained {description.model.name}, a model of your own, for which"
            " no loader can be written; add --onnx, which needs none"
        )
    _check_target(folder, run)
    model = _loaded(source)
    difference = None
    with explaining_target(folder, "--to"), replacing_folder(folder) as new:
        shutil.copyfile(source / WEIGHTS_FILE, new / WEIGHTS_FILE)
        if sha256(new / WEIGHTS_FILE) != description.weights_sha256:
            raise GenflError(
                f"{source / WEIGHTS_FILE} is not the file that {DESCRIPTION_FILE} describes; run the config"
                " again, which repairs it"
            )
        shutil.copyfile(source / DESCRIPTION_FILE, new / DESCRIPTION_FILE)
        if isinstance(description.input, TokenInput) and description.input.tokenizer == TOKENIZER_FILE:
            shutil.copyfile(source / TOKENIZER_FILE, new / TOKENIZER_FILE)
        if not description.model.own:
            _write_loader(description.model.name, new)
            _check_loader(model, new)
        if onnx:
            difference = write_onnx(model.inner, description, new / ONNX_FILE)
        write_text(new / "README.md", _card(run, description, settings, summary, difference))
        files = {path.relative_to(new).as_posix(): path for path in sorted(new.rglob("*")) if path.is_file()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        write_json(new / EXPORT_MARKER, {name: sha256(path) for name, path in files.items()})
    address = upload(folder, push_to_hub) if push_to_hub else None
    return Exported(folder, description.method, description.seed, sizes, difference, address)


def _loaded(source: Path) -> RunModel:
    """Return the model in a folder, after a try with random inputs.

    Raises:
        InputError: It cannot be loaded, does not take its inputs, or has another number of outputs than
            classes.
        GenflError: The weights are damaged.
    """
    model = RunModel.load(source)
    try:
        outputs = tuple(_logits(model, model.description).shape)
    except Exception as error:  # the code of a model can raise anything
        raise InputError(
            f"method: the model in {source} does not take inputs as in {DESCRIPTION_FILE} ({cause(error)});"
            " restore the file"
        ) from error
    if outputs != (2, len(model.label_names)):
        raise InputError(
            f"method: the model in {source} gives {list(outputs)} for two inputs, but {DESCRIPTION_FILE} has"
            f" {len(model.label_names)} label names; restore the file"
        )
    return model


def _logits(model: nn.Module, description: ModelDescription) -> Tensor:
    """Return the logits of two random inputs."""
    with torch.no_grad():
        logits: Tensor = model(random_inputs(description, 2))
    return logits


def _check_loader(model: RunModel, folder: Path) -> None:
    """Check that the loader in an exported folder gives the logits of the model, up to 1e-6.

    Raises:
        InputError: It fails, or gives others.
    """
    known, writes_bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the folder holds the files of the export alone
    try:
        spec = importlib.util.spec_from_file_location("genfl_exported_loader", folder / LOADER_FILE)
        assert spec is not None
        assert spec.loader is not None
        loader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loader)
        logits = _logits(loader.load(folder)[0], model.description)
        torch.testing.assert_close(
            logits, _logits(model.inner, model.description), rtol=1e-6, atol=1e-6, equal_nan=True
        )
    except Exception as error:  # an assertion, or what the loader raises
        raise InputError(
            f"method: the loader of {model.description.model.name} does not give the logits of the model"
            f" ({cause(error)}); use the version of genfl that trained it"
        ) from error
    finally:
        sys.dont_write_bytecode = writes_bytecode
        for name in set(sys.modules) - known:
            if name.startswith(f"{ARCHITECTURE}_"):  # the next export may have another model
                del sys.modules[name]


def _card(
    run: Path,
    description: ModelDescription,
    settings: Mapping[str, Any],
    summary: Summary,
    difference: float | None,
) -> str:
    """Return the model card.

    Raises:
        InputError: The config or the summary of the run lacks something, or does not fit the model.
    """
    try:
        return model_card(description, settings, summary, onnx=difference)
    except GenflError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"RUN: no model card can be written from {run / RUN_CONFIG} and {SUMMARY_FILE} ({cause(error)});"
            " restore them"
        ) from error


def _check_target(folder: Path, run: Path) -> None:
    """Check that a folder may be written: it is absent, empty, or an export that nobody changed.

    Raises:
        InputError: It is inside the run, or the run is inside of it, or it holds other files.
    """
    check_target(folder, "--to", folder=True)
    target, source = folder.resolve(), run.resolve()
    check_target(target.parent, "--to", folder=True)  # the folder is replaced as a whole
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise InputError(f"--to: {folder} and the run's folder contain one another; name another folder")
    if Path.cwd().is_relative_to(target):
        raise InputError(f"--to: {folder} holds the current folder, which is replaced; name another folder")
    if not folder.exists():
        return
    names = {path.relative_to(folder).as_posix() for path in _files(folder)}
    if not names:
        return
    marker = folder / EXPORT_MARKER
    checksums: dict[str, str] = read_json(marker) if marker.is_file() else {}
    for name in sorted(names - {EXPORT_MARKER}):
        if name not in checksums:
            raise InputError(
                f"--to: {folder} holds {on_one_line(name)}, which genfl did not export; name another folder"
            )
        if sha256(folder / name) != checksums[name]:
            raise InputError(
                f"--to: {folder / name} was changed since its export; move it, or name another folder"
            )


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, without the bytecode that Python writes beside modules."""
    for path in folder.rglob("*"):
        if (path.is_symlink() or not path.is_dir()) and path.parent.name != "__pycache__":
            yield path


def _write_loader(model: str, folder: Path) -> None:
    """Write ``load.py``, and the source of a built-in model as a package that imports torch alone.

    The source is copied as it is. Only its imports of genfl become relative.

    Args:
        model: Its name in `MODELS`.
        folder: The folder to write to.
    """
    here = Path(__file__).parent
    package = folder / ARCHITECTURE
    package.mkdir()
    shutil.copyfile(here / "_load.py", folder / LOADER_FILE)
    shutil.copyfile(here / "_ranges.py", package / "ranges.py")
    build = MODELS[model].build
    source = Path(inspect.getfile(Classifier)).parent
    top = build.__module__.removeprefix(f"{_MODELS}.")
    waiting, written = {top}, set[str]()
    while waiting:
        module = waiting.pop()
        written.add(module)
        text = (source / f"{module}.py").read_text(encoding="utf-8")
        waiting |= set(_IMPORT.findall(text)) - written
        text = _IMPORT.sub(r"from .\1 import", text).replace(
            "from annotated_types import", "from .ranges import"
        )
        write_text(package / f"{module}.py", text)
    write_text(
        package / "__init__.py",
        f'"""The architecture of the model, from genfl (Apache-2.0)."""\n\nfrom .{top} import'
        f' {build.__qualname__} as build\n\n__all__ = ["build"]\n',
    )


def upload(folder: Path, repository: str) -> str:
    """Upload an exported folder to a repository of the Hugging Face Hub.

    The repository is created if it does not exist. A new one is private. Files of an earlier export that this
    one lacks are deleted. Other files stay.

    Args:
        folder: The folder.
        repository: The repository, ``owner/name``.

    Returns:
        The address of the repository.

    Raises:
        InputError: The Hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    from genfl.hub import hub_reason

    try:
        api = HfApi(library_name="genfl")
        address: Any = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            ignore_patterns=[EXPORT_MARKER, "**/__pycache__/*", "__pycache__/*"],
            delete_patterns=list(EXPORTED_FILES),  # those of an earlier export; others stay
            commit_message="Upload a model that genfl exported",
        )
    except Exception as error:  # the client and the libraries below it raise many types
        raise InputError(
            f"--push-to-hub: {on_one_line(repository)} was not uploaded ({hub_reason(error)}); {folder} is"
            " complete, so repeat the command"
        ) from error
    return str(address)
