"""Files of a run, each either complete or absent: written under a temporary name, then renamed.

The functions of this module write every file of a run, and delete every file and folder. Nothing is deleted
behind a link.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import filelock

from genfl.errors import GenflError, InputError, on_one_line

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


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill, and put it in the place of `path` if the block ends without an error.

    Until then, `path` stays as it was. The new folder lies beside it, and takes its place by a rename. A
    process that is killed between two renames leaves the old folder beside it; the next call restores that.

    Args:
        path: The folder to write or replace. It may be absent; nothing in it is kept.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.genfl-{part}") for part in ("new", "old"))
    if old.exists() and not path.exists():
        old.rename(path)
    for leftover in (new, old):
        remove(leftover, path.parent)
    new.mkdir()
    try:
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                with file.open("rb") as content:
                    os.fsync(content.fileno())
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        remove(new, path.parent)
    remove(old, path.parent)


def remove(path: Path, within: Path) -> None:
    """Delete a file, or a folder with all that it holds. Of a link, only the link itself is deleted.

    Args:
        path: The file or folder; it may be absent.
        within: The folder of the run that it belongs to. Nothing outside of it is deleted.

    Raises:
        InputError: `path` is not below this folder, or a folder on the way is a link.
    """
    parent = path.parent
    if (
        path.name in ("", "..")
        or not parent.is_relative_to(within)
        or parent.resolve() != within.resolve() / parent.relative_to(within)
    ):
        raise InputError(f"--out: {path} is not in {within} itself, so it is not deleted; remove the links")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Check that subfolders that are written to are no links, and hold no links to folders.

    Args:
        folder: A folder. It may be a link itself.
        names: The names of its subfolders, and of files that are written to in place. They may be absent.

    Raises:
        InputError: One of them is a link, or holds one. What lies behind it would be changed.
    """
    for top in (folder / name for name in names):
        entries = (Path(parent) / name for parent, *some in os.walk(top) for name in itertools.chain(*some))
        for path in itertools.chain([top], entries):
            if path.is_symlink() and (path == top or not path.is_file()):
                raise InputError(
                    f"--out: {path} is a link, and genfl writes nothing outside of {folder}; replace the link"
                    " by a copy of what it points to, or delete it"
                )


def check_target(path: Path, option: str, *, folder: bool = False) -> None:
    """Check that a file or a folder can be written, before the work whose results it gets.

    Args:
        path: The file or folder. It may be absent, and so may the folders above it.
        option: What a message calls it, such as ``--out``.
        folder: Whether it is a folder.

    Raises:
        InputError: It is of the other kind, or lies in a file, or in a folder that this user cannot write to.
    """
    with explaining_target(path, option):
        if path.exists() and path.is_dir() != folder:
            other, kind = ("file", "folder") if folder else ("folder", "file")
            raise InputError(f"{option}: {on_one_line(path, 200)} is a {other}; name a {kind}")
        start = path.absolute()
        above = next(each for each in ((start,) if folder else ()) + tuple(start.parents) if each.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


@contextlib.contextmanager
def explaining_target(path: Path, option: str) -> Iterator[None]:
    """Name the option of a file or folder that cannot be written, if the block fails for that.

    Args:
        path: The file or folder.
        option: What a message calls it, such as ``--out``.

    Raises:
        InputError: The operating system refuses it.
    """
    try:
        yield
    except OSError as error:
        if is_full_disk(error) or error.filename is None:
            raise
        name = on_one_line(path, 200)
        raise InputError(f"{option}: {name} cannot be written ({error.strerror}); name another") from error


def is_below(name: str) -> bool:
    """Return whether a relative path, as in the record of a stage, stays below its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


_locks: set[Path] = set()
"""The files that this process has locked."""


@contextlib.contextmanager
def locked(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Lock a file for this process. Forked processes do not keep it locked when this one ends.

    Args:
        path: The file; it is created if absent.
        seconds: How long to wait for another process.

    Raises:
        filelock.Timeout: Another process has it locked.
        OSError: It cannot be created.
    """
    path = path.absolute()
    lock = filelock.FileLock(path)
    lock.acquire(timeout=seconds)
    _locks.add(path)
    try:
        yield
    finally:
        if path in _locks:  # not in a forked process, which has closed it
            _locks.discard(path)
            lock.release()


def _close_locks() -> None:
    """Close the inherited descriptors of locked files. A lock is held while any descriptor of it is open."""
    for path in _locks:
        with contextlib.suppress(OSError):
            file = path.stat()
            for descriptor in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
                with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
                    if os.path.samestat(os.fstat(descriptor), file):
                        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error says that a disk is full, or the user's share of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


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


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only this user can read, from its first byte; see `write_bytes`."""
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that a power cut does not bring the previous content back
    finally:
        os.close(folder)


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
    # not save_file, which writes to a temporary file of its own that stays if the process is killed
    write_bytes(path, safetensors.torch.save(tensors, metadata={"genfl": entry}))


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
        remove(path, path.parent)
        return None
    return (tree, meta) if meta.get("digest", "") == digest else None


def take_checkpoint(
    path: Path,
    digest: str,
    others: Iterable[Path],
    beside: Callable[[Path], Sequence[str]] = lambda checkpoint: (),
) -> bool:
    """Link a checkpoint of the same work in another run, unless there is one here.

    Args:
        path: The checkpoint.
        digest: The digest of the inputs of the work; see `load_checkpoint`.
        others: The checkpoints of the other runs. They may be absent, damaged, or of other work.
        beside: Returns the files that a checkpoint needs beside it, relative to its folder. All are linked
            from the same run. A checkpoint that lacks one of them, of the same digest, is passed over.

    Returns:
        Whether a checkpoint was linked.
    """
    if checkpoint_digest(path) == digest:
        return False
    for other in others:
        if checkpoint_digest(other) != digest:
            continue
        names = (*beside(other), path.name)  # the checkpoint last, because it needs the others
        if all(checkpoint_digest(other.parent / name) == digest for name in names):
            for name in names:
                link(other.parent / name, path.parent / name)
            return True
    return False


def checkpoint_digest(path: Path) -> str | None:
    """Return the digest in a checkpoint; None if the file is missing or cannot be read."""
    try:
        return str(load_part(path, ())[1].get("digest", ""))
    except GenflError:
        return None


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
