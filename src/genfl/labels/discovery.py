"""Private label discovery: the server learns which label names exist, and how many clients hold each."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch

from genfl.algorithms.base import ClientProgram
from genfl.engines.protocol import ClientTask, DataView, Engine, InfoOnly
from genfl.errors import GenflError, InputError
from genfl.labels.iblt import IBLT, CorruptTable, TableTooSmall
from genfl.rng import Key
from genfl.trees import Tree

log = logging.getLogger(__name__)


class Discovery(NamedTuple):
    """The result of label discovery, and its cost.

    Attributes:
        holders: How many clients hold each label, by name, in alphabetical order. This, and nothing about a
            single client, is what the server learns.
        cells: Cells of the table that decoded.
        bytes_per_client: What a client sent over all attempts.
        attempts: How many tables were summed.
    """

    holders: dict[str, int]
    cells: int
    bytes_per_client: int
    attempts: int


def label_table(table: IBLT) -> ClientProgram:
    """Return the client program that uploads a table of the client's own label names.

    Its client info is ``{"label_names": names}``. Its one upload, ``table`` (uint32), is only ever summed.
    """

    def finish(carry: Tree) -> tuple[Tree, Tree]:
        return {"table": torch.from_numpy(table.encode(carry))}, {}

    return ClientProgram(
        start=lambda message, memory, client_info, key: client_info["label_names"],
        step=lambda carry, batch, key: carry,
        finish=finish,
        reductions={"table": "sum"},
    )


def discover(
    label_sets: Sequence[Collection[str]],
    engine: Callable[[DataView, Key], Engine],
    key: Key,
    *,
    cells: int = 80,
    hashes: int = 4,
    max_bytes: int = 64,
    attempts: int = 8,
) -> Discovery:
    """Return the union of the clients' label names, from a sum of their tables.

    If the sum does not decode, the clients send tables with twice the cells and fresh hash functions.

    Source: GPT-FL (arXiv 2306.02210), Section 3.1, after Gascón et al. 2023.

    Args:
        label_sets: Each client's label names.
        engine: ``(data, key) -> engine`` of one attempt; one with a secure sum keeps each client's table
            private.
        key: The random stream: public hash seeds, and the simulated clients' secrets.
        cells: Cells of the first table.
        hashes: Cells each name is put in.
        max_bytes: Longest name, in UTF-8 bytes.
        attempts: Tables tried before giving up.

    Raises:
        InputError: A name cannot be put in a table, or no table decoded.
        GenflError: The sum is not one of well-formed tables.
    """
    known = [{"label_names": names} for names in label_sets]
    sent = 0
    for attempt in range(1, attempts + 1):
        table = IBLT(cells, hashes, max_bytes, seed=key.fold("hashes", attempt).integer())
        tasks = [
            ClientTask(client, {}, {}, None, key.fold("client", attempt, client))
            for client in range(len(label_sets))
        ]
        try:
            result = engine(InfoOnly(known), key.fold("sum", attempt)).run(label_table(table), tasks)
        except ValueError as error:
            raise InputError(str(error)) from error
        if result.aggregate is None:
            raise InputError("labels: no client took part in the discovery")
        sent += table.nbytes
        try:
            holders = table.decode(result.aggregate["table"].numpy(), clients=len(result.memories))
            return Discovery(holders, cells, sent, attempt)
        except CorruptTable as error:
            raise GenflError(f"labels: the clients' tables do not add up to label names: {error}") from error
        except TableTooSmall:
            log.info("the labels do not fit %d cells; asking for %d", cells, 2 * cells)
            cells *= 2
    raise InputError(
        f"labels.attempts: no table up to {cells // 2} cells decoded; raise labels.cells (about"
        f" {math.ceil(1.4 * cells)} or more), or a client sends what is no table of labels"
    )
