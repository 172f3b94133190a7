"""Files that are either complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from genfl.errors import GenflError
from genfl.trees import Tree

log = logging.getLogger(__name__)

SEPARATOR = "/"

ALIGNMENT = 64
"""Bytes to a multiple of which torch's own tensors begin."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, which becomes `path` if the block ends without an error.

    The content reaches the disk before the name does, so that not even a power cut leaves half a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # a kill may have left a link to a file that others share
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it; no file is ever written to once it has its name."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # not every file system has links, and none has them across file systems
            shutil.copy2(source, temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, or leaves what was there."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes a UTF-8 file, or leaves what was there."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, readable and with a stable order of keys; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        GenflError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GenflError(f"{path} is damaged ({error}); delete it, and it is made again") from error


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """Returns the hexadecimal SHA-256 of a JSON-able value, whatever the order of its keys."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def save_tensors(path: Path, tree: Tree, meta: dict[str, Any] | None = None) -> None:
    """Writes a nested dict of tensors as one safetensors file.

    Args:
        path: The file.
        tree: Nested dicts with string keys; ``a/b`` in the file is ``tree["a"]["b"]``.
        meta: Anything JSON can hold, written in the file's header: tensors and meta change together.
    """
    flat = dict(_flatten(tree))
    for name, leaf in flat.items():
        if not isinstance(leaf, Tensor) and leaf != {}:
            raise TypeError(f"{name} is a {type(leaf).__name__}; a tree holds tensors")
    # safetensors refuses tensors that share memory (two names of one model's weights do) or are strided
    tensors = {
        name: leaf.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, leaf in flat.items()
        if isinstance(leaf, Tensor)
    }
    # safetensors keeps neither order nor empty dicts, and has no checksum
    header = json.dumps({"meta": meta or {}, "names": list(flat)})
    # one entry: safetensors writes several in any order, and the same tree must give the same bytes
    entry = json.dumps({"header": header, "sha256": _checksum(header, tensors)})
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"genfl": entry})


def load_tensors(path: Path) -> tuple[Tree, dict[str, Any]]:
    """Reads what `save_tensors` wrote.

    Returns:
        The tree, with its keys in the order they were written (sums over leaves depend on it), and its meta.

    Raises:
        GenflError: The file is damaged.
    """
    with _opened(path) as (file, entry):
        flat = {name: _aligned(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if entry["sha256"] != _checksum(entry["header"], flat):
            raise ValueError("its checksum differs")
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
    """Reads some of the tensors that `save_tensors` wrote, and the meta, without checking its checksum.

    Raises:
        GenflError: The file is missing or damaged so that it cannot be read.
    """
    with _opened(path) as (file, entry):
        meta: dict[str, Any] = json.loads(entry["header"])["meta"]
        return {name: _aligned(file.get_tensor(name)) for name in names}, meta


def _aligned(tensor: Tensor) -> Tensor:
    # kernels may add up in another order where a tensor does not begin as torch's own do
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def load_checkpoint(path: Path | None, key: str = "") -> tuple[Tree, dict[str, Any]] | None:
    """Reads where an interrupted work stood.

    Args:
        path: What `save_tensors` wrote, if it did.
        key: What the work depends on; the checkpoint's meta must hold the same under ``key``.

    Returns:
        The tree and its meta; None where there is none, or one of other work, or where it is damaged: it is
        named in the log, and the work starts over.
    """
    if path is None or not path.exists():
        return None
    try:
        tree, meta = load_tensors(path)
    except GenflError as error:
        log.warning("%s; starting over", error)
        path.unlink()
        return None
    return (tree, meta) if meta.get("key", "") == key else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Gives an open safetensors file and its entry; what goes wrong in the block is the file's damage."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file, json.loads((file.metadata() or {})["genfl"])
    except (safetensors.SafetensorError, FileNotFoundError, KeyError, ValueError) as error:
        raise GenflError(f"{path} is damaged: {error}") from error


def _checksum(header: str, tensors: dict[str, Tensor]) -> str:
    content = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Tree]]:
    for key, value in tree.items():
        if SEPARATOR in key:
            raise ValueError(f"a tensor's name may not hold {SEPARATOR!r}: {key!r}")
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}{SEPARATOR}")
        else:
            yield prefix + key, value
