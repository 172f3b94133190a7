"""What clients remember between rounds: the recently used in RAM, the rest in files."""

from __future__ import annotations

import hashlib
import itertools
import json
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
from genfl.storage import digest, load_part, save_tensors
from genfl.trees import Tree

RAM = 512 * 2**20
"""Bytes of memories that are kept in RAM."""

FILE = 64 * 2**20
"""Bytes of memories with which a file is full."""

CLIENTS = 100
"""Clients with whose memories a file is full: its table is read with every one of them."""


@dataclass
class _File:
    clients: list[int]
    live: int  # how many of them remember what is in this file


class ClientStateStore:
    """Maps each client to what it remembers, which is `initial` for one that never took part.

    A file holds the memories of several clients and never changes. Of one client's memories that written
    last counts. A file most of whose memories do not count any more is given up and the rest of it written
    anew, so that files take about twice the bytes of the memories that count, at most.

    What counts after an interruption is what the checkpoint says: it keeps the names `flush` returned, and
    files that it names are deleted only when `clean` says that there is a later checkpoint. A file's name is
    the digest of its table, and the table holds the checksum of each memory, so that nothing but what was
    written is ever read.

    Args:
        folder: Where the files are; None for a temporary folder, made only if RAM is not enough.
        initial: The memory of a client that never took part.
        files: The names in the checkpoint that is gone on from. All other files are deleted.
        ram: How many bytes of memories to keep in RAM, besides those that the caller holds.

    Raises:
        GenflError: A file is missing or damaged.
    """

    def __init__(self, folder: Path | None, initial: Tree, files: Iterable[str] = (), ram: int = RAM) -> None:
        self._given = folder
        self._initial, self._initial_form = initial, trees.signature(initial)
        self._ram = ram
        self._new: dict[int, Tree] = {}  # in no file yet
        self._new_bytes = 0
        self._recent: OrderedDict[int, Tree] = OrderedDict()  # in a file as well; the last used at the end
        self._recent_bytes = 0
        self._place: dict[int, str] = {}
        self._files: dict[str, _File] = {}  # in the order they were written
        for name in files:
            clients = [int(client) for client in self._load(name)[1]["memories"]]
            self._read(name, clients)  # now, while the caller can start over: later it would be in a round
            self._add(name, clients)
        self._committed = set(self._files)
        if folder and folder.exists():
            for path in folder.iterdir():
                if path.name not in self._files:
                    path.unlink()

    def __contains__(self, client: int) -> bool:
        return client in self._new or client in self._place

    def __getitem__(self, client: int) -> Tree:
        if client in self._new:
            return self._new[client]
        if client in self._recent:
            self._recent.move_to_end(client)
            return self._recent[client]
        if client not in self._place:
            return self._initial
        read = self._read(self._place[client], [client])
        self._keep(read)
        return read[client]

    def update(self, memories: dict[int, Tree]) -> None:
        """Takes what clients remember from now on; the trees must not be changed afterwards."""
        nothing: dict[int, bool] = {}  # clients may share a tree without leaves
        for client, memory in memories.items():
            if id(memory) not in nothing:
                empty = not trees.leaves(memory)
                nothing[id(memory)] = empty and trees.signature(memory) == self._initial_form
            if nothing[id(memory)] and client not in self:
                continue  # most methods remember nothing, and that costs nothing
            self._forget(client)
            self._new[client] = memory
            self._new_bytes += trees.num_bytes(memory)
        if self._new_bytes > self._ram:
            self.flush()
        self._keep({})

    def flush(self) -> list[str]:
        """Puts every memory into a file.

        Returns:
            The names of the files that hold them, for a checkpoint.
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
                (self._folder / name).unlink()
        return list(self._files)

    def clean(self) -> None:
        """Deletes what only an earlier checkpoint named; the last one must name what `flush` returned."""
        for name in self._committed - self._files.keys():
            (self._folder / name).unlink()
        self._committed = set(self._files)

    @cached_property
    def _folder(self) -> Path:
        if self._given:
            return self._given
        self._temporary = tempfile.TemporaryDirectory(prefix="genfl-")  # deleted with this object
        return Path(self._temporary.name)

    def _keep(self, memories: dict[int, Tree]) -> None:
        """Keeps memories that are in files in RAM as well, and as many of the others as there is room for."""
        self._recent |= memories
        self._recent_bytes += sum(map(trees.num_bytes, memories.values()))
        while self._recent and self._recent_bytes + self._new_bytes > self._ram:
            self._recent_bytes -= trees.num_bytes(self._recent.popitem(last=False)[1])

    def _forget(self, client: int) -> None:
        self._new_bytes -= trees.num_bytes(self._new.pop(client, {}))
        self._recent_bytes -= trees.num_bytes(self._recent.pop(client, {}))
        if client in self._place:
            self._files[self._place.pop(client)].live -= 1

    def _add(self, name: str, clients: list[int]) -> None:
        """Notes that a file holds what these clients remember."""
        for client in clients:
            if client in self._place:
                self._files[self._place[client]].live -= 1
            self._place[client] = name
        self._files.pop(name, None)  # a later file counts, though it be the same as an earlier one
        self._files[name] = _File(clients, len(clients))

    def _write(self, memories: dict[int, Tree]) -> None:
        forms: dict[str, int] = {}  # texts: the order of a tree's keys is part of its form
        entries: dict[str, tuple[int, str]] = {}
        packed: dict[str, Tensor] = {}
        for client, memory in memories.items():
            form, data = _pack(memory)
            entries[str(client)] = (forms.setdefault(form, len(forms)), _checksum(data))
            packed[str(client)] = data
        table = {"forms": list(forms), "memories": entries}
        name = _name(table)
        save_tensors(self._folder / name, packed, table)
        self._add(name, list(memories))

    def _load(self, name: str, clients: Sequence[int] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns what a file holds of these clients, unchecked, and its table."""
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
            form, checksum = table["memories"][str(client)]
            if _checksum(data) != checksum:
                raise _damaged(self._folder / name, f"the memory of client {client} has another checksum")
            memories[client] = _unpack(table["forms"][form], data)
        return memories

    def _rest(self, name: str) -> dict[int, Tree]:
        """Returns the memories of a file that count."""
        return self._read(name, [c for c in self._files[name].clients if self._place.get(c) == name])


def _pack(memory: Tree) -> tuple[str, Tensor]:
    """Returns the form of a tree and its content, uint8 [bytes]: files of few tensors are quick to write."""
    form = trees.map(lambda leaf: [str(leaf.dtype).removeprefix("torch."), *leaf.shape], memory)
    parts = [leaf.detach().contiguous().view(-1).view(torch.uint8) for leaf in trees.leaves(memory)]
    return json.dumps(form), torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def _unpack(form: str, data: Tensor) -> Tree:
    start = 0

    def leaf(kind: list[Any]) -> Tensor:
        nonlocal start
        whole = torch.empty(kind[1:], dtype=getattr(torch, kind[0]))
        own = whole.view(-1).view(torch.uint8)
        own.copy_(data[start : start + len(own)])
        start += len(own)
        return whole

    return trees.map(leaf, json.loads(form))


def _checksum(data: Tensor) -> str:
    return hashlib.sha256(data.numpy().data).hexdigest()


def _name(table: Any) -> str:
    return f"{digest(table)}.safetensors"


def _damaged(path: Path, why: str) -> GenflError:
    return GenflError(f"{path} is damaged: {why}; delete it, and what it is part of starts over")
