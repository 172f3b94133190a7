"""The wire format of a federation over Flower: requests and replies as Flower's records, and back.

A tree travels as one array of bytes and its layout in JSON. Flower sends every array by itself, and a model
has many. Nothing that arrives is trusted: each problem is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from genfl import trees
from genfl.data.plans import Batches, PoissonSampling
from genfl.engines.client_state import pack_tree, unpack_tree
from genfl.engines.flower.records import (
    ABOUT,
    ACTIONS,
    FORMAT,
    MOST,
    RefusedMessage,
    about_of,
    check_answers,
    field,
    int_field,
    short,
)
from genfl.engines.flower.sum_messages import SumName
from genfl.engines.protocol import NOT_FINITE
from genfl.errors import on_one_line
from genfl.rng import Key
from genfl.storage import digest
from genfl.trees import Tree

_TREE, _MEMORY, _DATA, _SUM = "tree", "memory", "data", "sum"

_DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64"),
)

_HEADER = 1024
"""The most bytes that NumPy's format may add to an array of bytes; it adds 128."""

_DEEPEST = 32
"""The most dicts that a tree may have inside each other, and the most dimensions of a tensor."""

_MOST_SAMPLES = 2**53 - 1
"""The largest number of samples, which JSON and floats hold without rounding."""


class Request(NamedTuple):
    """The server's part of one client's work.

    Attributes:
        run: The federation. It is the same after the server was interrupted, and another for every other
            federation.
        action: The name of the work, of `ACTIONS`.
        round: The round's number, from 1.
        client: The client's number.
        counted: The last round in which the client's upload counted; 0 for none. Its memory is that of this
            round.
        finished: The last round behind which the server never goes back; 0 for none.
        batches: How the client's batches are drawn; None for programs without batches.
        key: The client's random stream for this round.
        settings: What else the client must know of the work, as JSON-able values.
        message: What the algorithm sends the client.
        initial: The memory of a client that never took part; None if the client has one from round `counted`.
        delivery: The server's message of a secure sum to which the client answers with its masked upload;
            None for an upload in the clear. See `genfl.privacy.secure_sum`.
        initial_digest: The digest of the memory of a client that never took part, for secure sums. Clients
            with a memory get it, too, so that all of them know what the others begin with.
    """

    run: str
    action: str
    round: int
    client: int
    counted: int
    finished: int
    batches: Batches | None
    key: Key
    settings: dict[str, Any]
    message: Tree
    initial: Tree | None = None
    delivery: bytes | None = None
    initial_digest: str = ""

    @property
    def sum_name(self) -> SumName:
        """What a secure sum for this request is for."""
        return SumName(self.run, self.action, self.round, content_digest(self))


class Reply(NamedTuple):
    """A client's answer to a request.

    Attributes:
        run: The federation, as in the request.
        action: The work, as in the request.
        round: The round, as in the request.
        client: The client, as in the request.
        upload: What it sends; None if it refused, or sends it masked.
        refused: Why it refused; empty if it did not.
        samples: How many samples it trained on, with repetitions; 0 if it sends its upload masked, as the
            number is in the sum.
        masked: Its message of a secure sum, as bytes; None for an upload in the clear.
    """

    run: str
    action: str
    round: int
    client: int
    upload: Tree | None
    refused: str = ""
    samples: int = 0
    masked: bytes | None = None


class PackedTree(NamedTuple):
    """A tree in the form in which it travels.

    Attributes:
        layout: The structure, dtypes and shapes, in JSON.
        array: The content.
    """

    layout: str
    array: Array


def pack(tree: Tree) -> PackedTree:
    """Return a tree in the form in which it travels; several messages may share it."""
    layout, data = pack_tree(tree)
    return PackedTree(layout, Array(data.numpy()))


def tree_digest(tree: Tree) -> str:
    """Return the SHA-256 of a tree's layout and content, hexadecimal."""
    layout, data = pack_tree(tree)
    return hashlib.sha256(layout.encode() + b"\n" + data.numpy().tobytes()).hexdigest()


def content_digest(request: Request) -> str:
    """Return the digest of all that a request asks for, but for what differs between clients.

    Clients of one sum have their own numbers, random streams and memories. All else is equal: settings,
    batches, message, and the memory of clients that never took part.

    Raises:
        RefusedMessage: The initial memory is not that of the digest.
    """
    if request.initial is not None and tree_digest(request.initial) != request.initial_digest:
        raise RefusedMessage("memory: it is not that of its digest")
    batches = request.batches and [*request.batches._replace(key=_plain_key(Key(0)))]  # type: ignore[arg-type]
    asked = [request.settings, batches, tree_digest(request.message), request.initial_digest]
    return digest(asked)


def request_records(request: Request, message: PackedTree, initial: PackedTree | None = None) -> RecordDict:
    """Return a request as records.

    Args:
        request: The request.
        message: Its message, packed.
        initial: Its initial memory, packed.
    """
    batches = request.batches
    about = {
        "format": FORMAT,
        "run": request.run,
        "action": request.action,
        "round": request.round,
        "client": request.client,
        "counted": request.counted,
        "finished": request.finished,
        "batches": json.dumps(batches and [*batches._replace(key=_plain_key(batches.key))]),  # type: ignore[arg-type]
        "key": json.dumps(_plain_key(request.key)),
        "settings": json.dumps(request.settings),
    }
    if request.delivery is not None:
        about |= {"delivery": request.delivery, "initial_digest": request.initial_digest}
    return _records(about, {_TREE: message, **({_MEMORY: initial} if initial else {})})


def read_request(records: RecordDict) -> Request:
    """Return the request of records.

    Raises:
        RefusedMessage: They hold no request, or one that must not be acted on.
    """
    about = about_of(records)
    action = field(about, "action", str)
    if action not in ACTIONS:
        raise RefusedMessage(f"action: there is no {on_one_line(action)!r}")
    settings = _json(about, "settings")
    if not isinstance(settings, dict):
        raise RefusedMessage("settings: a mapping is expected")
    return Request(
        field(about, "run", str),
        action,
        int_field(about, "round", 1),
        int_field(about, "client"),
        int_field(about, "counted"),
        int_field(about, "finished"),
        _batches(_json(about, "batches")),
        _key(_json(about, "key")),
        settings,
        _tree(records, about),
        _tree(records, about, _MEMORY) if _MEMORY in records.array_records else None,
        *(
            (field(about, "delivery", bytes), field(about, "initial_digest", str))
            if "delivery" in about
            else ()
        ),
    )


def reply_records(reply: Reply) -> RecordDict:
    """Return a reply as records."""
    about = {
        "format": FORMAT,
        "run": reply.run,
        "action": reply.action,
        "round": reply.round,
        "client": reply.client,
        "refused": reply.refused,
        "samples": reply.samples,
    }
    records = _records(about, {_TREE: pack({} if reply.upload is None else reply.upload)})
    if reply.masked is not None:
        records[_SUM] = ArrayRecord({_DATA: Array(np.frombuffer(reply.masked, np.uint8))})
    return records


def read_reply(records: RecordDict, request: Request) -> Reply:
    """Return the reply of records.

    Args:
        records: The records.
        request: The request that it answers.

    Raises:
        RefusedMessage: They hold no reply, one to another request, or one that must not be used.
    """
    about = about_of(records)
    if refused := field(about, "refused", str):
        return Reply(
            *request[:4], None, on_one_line(refused, 300), int_field(about, "samples", most=_MOST_SAMPLES)
        )
    check_answers(about, request, ("run", "action", "round", "client"))
    samples = int_field(about, "samples", most=_MOST_SAMPLES)
    if request.delivery is None:
        return Reply(*request[:4], _tree(records, about), "", samples)
    return Reply(*request[:4], None, "", 0, _masked(records))


def _records(about: dict[str, Any], trees_of: dict[str, PackedTree]) -> RecordDict:
    """Return new records, as Flower may take keys out of those that it is given."""
    layouts = {f"{name}_layout": packed.layout for name, packed in trees_of.items()}
    arrays = {name: ArrayRecord({_DATA: packed.array}) for name, packed in trees_of.items()}
    return RecordDict({ABOUT: ConfigRecord({**about, **layouts}), **arrays})


def _json(about: ConfigRecord, name: str) -> Any:
    try:
        return json.loads(field(about, name, str))
    except (ValueError, RecursionError):
        raise RefusedMessage(f"{name}: it is no JSON") from None


def _plain_key(key: Key) -> list[Any]:
    return [key.seed, list(key.path)]


def _key(plain: Any) -> Key:
    match plain:
        case [int(seed), list(path)] if seed >= 0 and _numbers(path):
            return Key(seed, tuple(path))
    raise RefusedMessage("key: a seed and a list of numbers are expected")


def _batches(plain: Any) -> Batches | None:
    match plain:
        case None:
            return None
        case [size, steps, epochs, key, order, poisson] if order is None or (
            isinstance(order, list) and _numbers(order)
        ):
            _count("batch_size", size, 1, sys.maxsize)  # evaluation asks for all samples at once
            _count("epochs", epochs)
            if steps is not None:
                _count("steps", steps)
            batches = Batches(size, steps, epochs, _key(key), order, _poisson(poisson))
            if batches.poisson and steps is None and epochs / batches.poisson.rate > MOST:
                raise RefusedMessage(f"batches: more than {MOST} steps of Poisson sampling")
            return batches
    raise RefusedMessage("batches: they are not as expected")


def _count(name: str, value: Any, least: int = 0, most: int = MOST) -> None:
    if type(value) is not int or not least <= value <= most:
        raise RefusedMessage(
            f"batches: {name} is {short(value)}, but it is a whole number from {least} to {most}"
        )


def _poisson(plain: Any) -> PoissonSampling | None:
    match plain:
        case None:
            return None
        case [int() | float() as rate, list(free)] if 0 < rate <= 1 and _numbers(free):
            return PoissonSampling(rate, tuple(free))
    raise RefusedMessage("batches: their sampling is not as expected")


def _numbers(values: Sequence[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _tree(records: RecordDict, about: ConfigRecord, name: str = _TREE) -> Tree:
    """Return the tree of records, after checks of its layout, its bytes and its numbers."""
    try:
        return _checked_tree(records, about, name)
    except RefusedMessage:
        raise
    except Exception as error:  # NumPy and torch fail in many ways at bytes and shapes made to break them
        why = f"{type(error).__name__}: {on_one_line(error)}"
        raise RefusedMessage(f"{name}: it cannot be read ({why})") from None


def _checked_tree(records: RecordDict, about: ConfigRecord, name: str) -> Tree:
    arrays = records.array_records.get(name)
    array = None if arrays is None else arrays.get(_DATA)
    if array is None:
        raise RefusedMessage(f"{name}: it is missing")
    layout = _json(about, f"{name}_layout")
    try:
        size = _bytes_of_layout(layout)
    except ValueError as error:
        raise RefusedMessage(f"{name}_layout: it is none of a tree ({error})") from None
    if len(array.data) > size + _HEADER:
        raise RefusedMessage(f"{name}: {len(array.data)} bytes, but its layout has {short(size)}")
    data = array.numpy()
    if str(data.dtype) != "uint8" or data.ndim != 1 or len(data) != size:
        raise RefusedMessage(f"{name}: {data.nbytes} bytes, but its layout has {short(size)}")
    tree = unpack_tree(json.dumps(layout), torch.from_numpy(data.copy()))
    if not trees.is_finite(tree):
        raise RefusedMessage(f"{name}: {NOT_FINITE}")
    return tree


def _masked(records: RecordDict) -> bytes:
    """Return the bytes of a masked upload. What they hold is checked by the secure sum."""
    arrays = records.array_records.get(_SUM)
    array = None if arrays is None else arrays.get(_DATA)
    if array is None:
        raise RefusedMessage(f"{_SUM}: the upload is not masked")
    try:
        data = array.numpy()
    except Exception as error:  # NumPy fails in many ways at bytes made to break it
        raise RefusedMessage(f"{_SUM}: it cannot be read ({type(error).__name__})") from None
    if str(data.dtype) != "uint8" or data.ndim != 1:
        raise RefusedMessage(f"{_SUM}: bytes are expected")
    return data.tobytes()


def _bytes_of_layout(layout: Any, depth: int = 0) -> int:
    """Return how many bytes a tree of this layout takes.

    Args:
        layout: The layout.
        depth: In how many others it is.

    Raises:
        ValueError: It is the layout of no tree, or of one that is too deep.
    """
    if depth > _DEEPEST:
        raise ValueError(f"it is deeper than {_DEEPEST}")
    match layout:
        case dict():
            return sum(_bytes_of_layout(branch, depth + 1) for branch in layout.values())
        case [str(dtype), *shape] if dtype in _DTYPES and len(shape) <= _DEEPEST and _numbers(shape):
            size: int = getattr(torch, dtype).itemsize
            return size * int(math.prod(shape))
    raise ValueError(on_one_line(layout, 40))
