"""Private label discovery: the server learns which label names exist, and how many clients hold each."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch

from genfl.algorithms.base import ClientProgram, statistics
from genfl.engines.protocol import ClientTask, DataView, Engine, InfoOnly
from genfl.errors import GenflError, InputError
from genfl.labels.bins import HolderBins
from genfl.labels.iblt import IBLT, CorruptTable, TableTooSmall
from genfl.rng import Key

log = logging.getLogger(__name__)


class Discovery(NamedTuple):
    """The result of label discovery, and its cost.

    Attributes:
        holders: How many clients hold each label, by name, in alphabetical order. This, and nothing about a
            single client, is what the server learns. With `min_holders`, it also learns how many clients have
            a name in each hashed bin.
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
    return statistics({"table": lambda info: torch.from_numpy(table.encode(info["label_names"]))})


def bin_marks(bins: HolderBins) -> ClientProgram:
    """Return the client program that uploads the bins of the client's own label names.

    Its client info is ``{"label_names": names}``. Its one upload, ``marks`` (uint32), is only ever summed.
    """
    return statistics({"marks": lambda info: torch.from_numpy(bins.mark(info["label_names"]))})


def discover(
    label_sets: Sequence[Collection[str]],
    engine: Callable[[DataView, Key], Engine],
    key: Key,
    *,
    cells: int = 80,
    hashes: int = 4,
    max_bytes: int = 64,
    attempts: int = 8,
    min_holders: int = 1,
    bins: int = 4096,
) -> Discovery:
    """Return the union of the clients' label names, from a sum of their tables.

    If the sum does not decode, the clients send tables with twice the cells and fresh hash functions.

    With `min_holders` above 1, the clients first count the holders in hashed bins (see `HolderBins`), and put
    only names in the table that enough clients seem to hold. Names that got through by a collision are
    deleted as soon as the table is decoded.

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
        min_holders: Fewest clients that must hold a name. Names of fewer are not returned.
        bins: Bins in a row of `HolderBins`.

    Raises:
        InputError: A name cannot be put in a table, no table decoded, or no name has enough holders.
        GenflError: The sum is not one of well-formed tables.
    """
    sent, message = 0, {}
    if min_holders > 1:
        label_sets, enough, sent = _widely_held(label_sets, engine, key, min_holders, bins)
        message = {"enough": torch.from_numpy(enough)}
    known = [{"label_names": names} for names in label_sets]
    for attempt in range(1, attempts + 1):
        table = IBLT(cells, hashes, max_bytes, seed=key.fold("hashes", attempt).integer())
        tasks = [
            ClientTask(client, message, {}, None, key.fold("client", attempt, client), attempt)
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
            shared = {name: count for name, count in holders.items() if count >= min_holders}
            if not shared and min_holders > 1:
                raise _too_few(min_holders)
            return Discovery(shared, cells, sent, attempt)
        except CorruptTable as error:
            raise GenflError(f"labels: the clients' tables do not add up to label names: {error}") from error
        except TableTooSmall:
            log.info("the labels do not fit %d cells; asking for %d", cells, 2 * cells)
            cells *= 2
    raise InputError(
        f"labels.attempts: no table up to {cells // 2} cells decoded; raise labels.cells (about"
        f" {math.ceil(1.4 * cells)} or more), or a client sends what is no table of labels"
    )


def _widely_held(
    label_sets: Sequence[Collection[str]],
    engine: Callable[[DataView, Key], Engine],
    key: Key,
    min_holders: int,
    bins: int,
) -> tuple[list[list[str]], np.ndarray, int]:
    """Return each client's names whose bins have enough holders, these bins, and the bytes of a client.

    Clients on other machines mark their own bins, with a key of their own, and choose their own names.
    """
    secret = key.fold("clients' secret").numpy().bytes(32)  # stands in for a key agreement of the clients
    holder_bins = HolderBins(bins, secret)
    tasks = [ClientTask(n, {}, {}, None, key.fold("bins", n)) for n in range(len(label_sets))]
    known = [{"label_names": names} for names in label_sets]
    result = engine(InfoOnly(known), key.fold("sum of bins")).run(bin_marks(holder_bins), tasks)
    if result.aggregate is None:
        raise InputError("labels: no client took part in the discovery")
    enough = result.aggregate["marks"].numpy() >= min_holders
    if not enough.any():
        raise _too_few(min_holders)
    return [holder_bins.shared(names, enough) for names in label_sets], enough, holder_bins.nbytes


def _too_few(min_holders: int) -> InputError:
    return InputError(f"labels.min_holders: no label name is held by {min_holders} clients; lower it")
