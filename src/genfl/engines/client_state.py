"""Clients' memories between rounds: those used last in RAM, the rest in files."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genfl import trees
from genfl.errors import GenflError
from genfl.storage import digest, load_part, refuse_links, remove, save_tensors
from genfl.trees import Tree

RAM = 512 * 2**20
"""Bytes of memories that are kept in RAM at most."""

FILE = 64 * 2**20
"""Bytes of memories in a file, at which the next file begins."""

CLIENTS = 100
"""Clients in a file at most: reading any of them reads the table of all."""

_WRITTEN = re.compile(r"[0-9a-f]{64}\.safetensors|\..*\.tmp|\.tmp\w*")
"""Matches the names of files that a store writes, also in part."""


@dataclass
class _File:
    clients: list[int]
    live: int  # for how many of them this file holds the newest memory


class ClientStateStore:
    """A mapping from each client to its memory, which is `initial` for one that never took part.

    A file holds the memories of several clients and never changes. Only a client's newest memory counts. When
    most memories of a file are out of date, the others are written to a new file and the old one is deleted.
    So files take at most about twice the bytes of the memories that count.

    After an interruption, the checkpoint says what counts: it stores the names that `flush` returned. Files
    that it names are deleted only when `clean` is called after a later checkpoint. A file's name is the
    digest of its table, and the table holds the checksum of each memory, so damage is noticed when read.

    Args:
        folder: The folder of the files; None for a temporary folder, created only if RAM is not enough.
        initial: The memory of a client that never took part.
        files: The names in the checkpoint that is resumed. All other files of a store are deleted.
        ram: How many bytes of memories to keep in RAM at most, besides those that the caller holds.

    Raises:
        GenflError: A file is missing or damaged.
        InputError: The folder is a link.
    """

    def __init__(self, folder: Path | None, initial: Tree, files: Iterable[str] = (), ram: int = RAM) -> None:
        if folder:
            refuse_links(folder.parent, [folder.name])
        self._permanent = folder
        self._initial, self._initial_signature = initial, trees.signature(initial)
        self._ram = ram
        self._new: dict[int, Tree] = {}  # in no file yet
        self._new_bytes = 0
        self._recent: OrderedDict[int, Tree] = OrderedDict()  # in a file as well; the last used at the end
        self._recent_bytes = 0
        self._file_of: dict[int, str] = {}
        self._files: dict[str, _File] = {}  # in the order they were written
        for name in files:
            clients = [int(client) for client in self._load(name)[1]["memories"]]
            self._read(name, clients)  # now, while the caller can still start over
            self._add(name, clients)
        self._committed = set(self._files)
        if folder and folder.exists():
            for path in folder.iterdir():
                if path.name not in self._files and _WRITTEN.fullmatch(path.name):
                    remove(path, folder)

    def __contains__(self, client: int) -> bool:
        return client in self._new or client in self._file_of

    def __getitem__(self, client: int) -> Tree:
        if client in self._new:
            return self._new[client]
        if client in self._recent:
            self._recent.move_to_end(client)
            return self._recent[client]
        if client not in self._file_of:
            return self._initial
        read = self._read(self._file_of[client], [client])
        self._keep(read)
        return read[client]

    def update(self, memories: dict[int, Tree]) -> None:
        """Store clients' new memories; the trees must not be changed afterwards."""
        empty: dict[int, bool] = {}  # by the id of the tree: clients may share one without leaves
        for client, memory in memories.items():
            if id(memory) not in empty:
                no_leaves = not trees.leaves(memory)
                empty[id(memory)] = no_leaves and trees.signature(memory) == self._initial_signature
            if empty[id(memory)] and client not in self:
                continue  # most methods remember nothing, which must cost nothing
            self._forget(client)
            self._new[client] = memory
            self._new_bytes += trees.num_bytes(memory)
        if self._new_bytes > self._ram:
            self.flush()
        self._keep({})

    def flush(self) -> list[str]:
        """Write every memory to a file.

        Returns:
            The names of the files, for a checkpoint.
        """
        sparse = [name for name, file in self._files.items() if 2 * file.live < len(file.clients)]
        batch: dict[int, Tree] = {}
        size = 0
        for memories in itertools.chain([self._new], map(self._rest, sparse)):
            for client, memory in memories.items():
                batch[client] = memory
                size += trees.num_bytes(memory)
                if size >= FILE or len(batch) == CLIENTS:
                    self._write(batch)
                    batch, size = {}, 0
        if batch:
            self._write(batch)
        written, self._new, self._new_bytes = self._new, {}, 0
        self._keep(written)
        for name in [name for name, file in self._files.items() if not file.live]:
            del self._files[name]
            if name not in self._committed:
                remove(self._folder / name, self._folder)
        return list(self._files)

    def clean(self) -> None:
        """Delete files that only an earlier checkpoint names; the last must name what `flush` returned."""
        for name in self._committed - self._files.keys():
            remove(self._folder / name, self._folder)
        self._committed = set(self._files)

    @cached_property
    def _folder(self) -> Path:
        if self._permanent:
            return self._permanent
        self._temporary = tempfile.TemporaryDirectory(prefix="genfl-")  # deleted with this object
        return Path(self._temporary.name)

    def _keep(self, memories: dict[int, Tree]) -> None:
        """Keep memories that are also in files in RAM, and drop those used longest ago when RAM is full."""
        self._recent |= memories
        self._recent_bytes += sum(map(trees.num_bytes, memories.values()))
        while self._recent and self._recent_bytes + self._new_bytes > self._ram:
            self._recent_bytes -= trees.num_bytes(self._recent.popitem(last=False)[1])

    def _forget(self, client: int) -> None:
        self._new_bytes -= trees.num_bytes(self._new.pop(client, {}))
        self._recent_bytes -= trees.num_bytes(self._recent.pop(client, {}))
        if client in self._file_of:
            self._files[self._file_of.pop(client)].live -= 1

    def _add(self, name: str, clients: list[int]) -> None:
        """Note that a file holds the newest memories of these clients."""
        for client in clients:
            if client in self._file_of:
                self._files[self._file_of[client]].live -= 1
            self._file_of[client] = name
        self._files.pop(name, None)  # moves it to the end, also if the same file was written before
        self._files[name] = _File(clients, len(clients))

    def _write(self, memories: dict[int, Tree]) -> None:
        layouts: dict[str, int] = {}  # texts: the order of a tree's keys is part of its layout
        entries: dict[str, tuple[int, str]] = {}
        packed: dict[str, Tensor] = {}
        for client, memory in memories.items():
            layout, data = pack_tree(memory)
            entries[str(client)] = (layouts.setdefault(layout, len(layouts)), _checksum(data))
            packed[str(client)] = data
        table = {"forms": list(layouts), "memories": entries}
        name = _name(table)
        save_tensors(self._folder / name, packed, table)
        self._add(name, list(memories))

    def _load(self, name: str, clients: Sequence[int] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the unchecked memories of these clients in a file, and its table."""
        path = self._folder / name
        packed, table = load_part(path, map(str, clients))
        if _name(table) != name:
            raise _damaged(path, "its table has another checksum")
        return packed, table

    def _read(self, name: str, clients: Sequence[int]) -> dict[int, Tree]:
        packed, table = self._load(name, clients)
        memories = {}
        for client in clients:
            data = packed[str(client)]
            layout, checksum = table["memories"][str(client)]
            if _checksum(data) != checksum:
                raise _damaged(self._folder / name, f"the memory of client {client} has another checksum")
            memories[client] = unpack_tree(table["forms"][layout], data)
        return memories

    def _rest(self, name: str) -> dict[int, Tree]:
        """Return the memories of a file that are their clients' newest."""
        return self._read(name, [c for c in self._files[name].clients if self._file_of.get(c) == name])


def pack_tree(memory: Tree) -> tuple[str, Tensor]:
    """Return the layout of a tree and its content, uint8 [bytes]: files of few tensors are quick to write."""
    layout = trees.map(lambda leaf: [str(leaf.dtype).removeprefix("torch."), *leaf.shape], memory)
    parts = [leaf.detach().contiguous().view(-1).view(torch.uint8) for leaf in trees.leaves(memory)]
    return json.dumps(layout), torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def unpack_tree(layout: str, data: Tensor) -> Tree:
    """Return the tree of a layout and its content; see `pack_tree`."""
    start = 0

    def leaf(entry: list[Any]) -> Tensor:
        nonlocal start
        tensor = torch.empty(entry[1:], dtype=getattr(torch, entry[0]))
        content = tensor.view(-1).view(torch.uint8)
        content.copy_(data[start : start + len(content)])
        start += len(content)
        return tensor

    return trees.map(leaf, json.loads(layout))


def _checksum(data: Tensor) -> str:
    return hashlib.sha256(data.numpy().data).hexdigest()


def _name(table: Any) -> str:
    return f"{digest(table)}.safetensors"


def _damaged(path: Path, why: str) -> GenflError:
    return GenflError(f"{path} is damaged: {why}; delete it, and the federation starts over")
