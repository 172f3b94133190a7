"""Files of a run, each either complete or absent: written under a temporary name, then renamed.

Every file of a run is written by the functions of this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genfl.errors import GenflError

if TYPE_CHECKING:  # importing torch takes seconds, and most files hold no tensors
    from torch import Tensor

    from genfl.trees import Tree

log = logging.getLogger(__name__)

SEPARATOR = "/"
"""Separates the names of nested dicts in the name of a tensor."""

ALIGNMENT = 64
"""Memory addresses of torch's own tensors are multiples of this many bytes."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` if the block ends without an error.

    The content reaches the disk before the name does, so even a power cut leaves no half-written file.

    Args:
        path: The file to write or replace; its folder is created if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # a killed process may have left a link to a shared file
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Hard-link a file to a second path, or copy it where links are not possible.

    Sharing is safe because no file is written to once it has its final name.

    Args:
        source: The file.
        target: Its second path, which is replaced if it exists.
    """
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # some file systems have no links, and none links across file systems
            shutil.copy2(source, temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; on an error, the previous content stays."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 file; on an error, the previous content stays."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with the keys in the order of `content`.

    Raises:
        ValueError: The content holds NaN or infinity.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        GenflError: The file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GenflError(f"{path} is damaged ({error}); delete it, and it will be written again") from error


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """Return the hexadecimal SHA-256 of a JSON-able value; the order of its keys does not matter."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def save_tensors(path: Path, tree: Tree, meta: dict[str, Any] | None = None) -> None:
    """Write a nested dict of tensors as one safetensors file.

    The same tree and meta always give the same bytes.

    Args:
        path: The file.
        tree: Nested dicts with string keys; ``a/b`` in the file is ``tree["a"]["b"]``.
        meta: Any JSON-able values, written to the header of the same file, so tensors and meta change
            together.

    Raises:
        TypeError: A leaf is not a tensor.
        ValueError: A key contains `SEPARATOR`.
    """
    import safetensors.torch
    import torch
    from torch import Tensor

    flat = dict(_flatten(tree))
    for name, leaf in flat.items():
        if not isinstance(leaf, Tensor) and leaf != {}:
            raise TypeError(f"{name}: a tree holds tensors, not {type(leaf).__name__}")
    # safetensors rejects strided tensors, and tensors that share memory as tied weights do
    tensors = {
        name: leaf.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, leaf in flat.items()
        if isinstance(leaf, Tensor)
    }
    # safetensors keeps no order and no empty dicts, and has no checksum
    header = json.dumps({"meta": meta or {}, "names": list(flat)})
    # a single entry, because safetensors writes several entries in no fixed order
    entry = json.dumps({"header": header, "sha256": _checksum(header, tensors)})
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"genfl": entry})


def load_tensors(path: Path) -> tuple[Tree, dict[str, Any]]:
    """Read a file that `save_tensors` wrote.

    Returns:
        The tree and its meta. The keys are in the order they were written; sums over leaves depend on it.

    Raises:
        GenflError: The file is missing or damaged.
    """
    with _opened(path) as (file, entry):
        flat = {name: _aligned(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if entry["sha256"] != _checksum(entry["header"], flat):
            raise ValueError("the checksum differs")
        header = json.loads(entry["header"])
    tree: dict[str, Any] = {}
    for name in header["names"]:
        *parents, last = name.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = flat.get(name, {})
    return tree, header["meta"]


def load_part(path: Path, names: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read some of the tensors that `save_tensors` wrote, and the meta, without verifying the checksum.

    Args:
        path: The file.
        names: The names of the tensors in the file, such as ``a/b``.

    Raises:
        GenflError: The file is missing or cannot be read.
    """
    with _opened(path) as (file, entry):
        meta: dict[str, Any] = json.loads(entry["header"])["meta"]
        return {name: _aligned(file.get_tensor(name)) for name in names}, meta


def _aligned(tensor: Tensor) -> Tensor:
    # on other addresses than torch's own, kernels may sum in another order
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def load_checkpoint(path: Path | None, digest: str = "") -> tuple[Tree, dict[str, Any]] | None:
    """Read the checkpoint of interrupted work.

    Args:
        path: A file that `save_tensors` wrote; None, or a missing file, is no checkpoint.
        digest: The digest of the inputs of the work. The checkpoint's meta must hold the same digest as
            ``digest``.

    Returns:
        The tree and its meta. None if there is no checkpoint or its digest differs. None also if the file is
        damaged: it is deleted with a warning, and the work starts over.
    """
    if path is None or not path.exists():
        return None
    try:
        tree, meta = load_tensors(path)
    except GenflError as error:
        log.warning("%s; starting over", error)
        path.unlink()
        return None
    return (tree, meta) if meta.get("digest", "") == digest else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Yield an open safetensors file and its entry; errors in the block count as damage of the file."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file, json.loads((file.metadata() or {})["genfl"])
    except (safetensors.SafetensorError, FileNotFoundError, KeyError, ValueError) as error:
        raise GenflError(f"{path} is damaged: {error}") from error


def _checksum(header: str, tensors: dict[str, Tensor]) -> str:
    import torch

    content = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Tree]]:
    for key, value in tree.items():
        if SEPARATOR in key:
            raise ValueError(f"{key!r}: the name of a tensor may not hold {SEPARATOR!r}")
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}{SEPARATOR}")
        else:
            yield prefix + key, value
