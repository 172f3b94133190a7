"""What all of genfl's records over Flower have in common. Nothing here takes long to import."""

from __future__ import annotations

from typing import Any, TypeVar

from flwr.app import ConfigRecord, RecordDict

from genfl.errors import GenflError, on_one_line
from genfl.journal import tell

FORMAT = 1
"""The version of the wire format. Both sides must have the same one."""

ABOUT = "about"
"""The name of the record with the fields of a message."""

ACTIONS = {
    "labels": "query.labels",
    "bins": "query.bins",
    "census": "query.census",
    "train": "train.train",
    "evaluate": "evaluate.evaluate",
}
"""The actions of a federation, and their message types in Flower."""

KEY_AGREEMENT = "group"
"""The action by which clients agree on a key that the server does not learn. It has no message of its own."""

NEEDS_ALL = ("labels", "census", "bins", KEY_AGREEMENT)
"""The actions whose sums are wrong if a client is missing."""

MOST = 2**31 - 1
"""The largest round, client, number of steps, and of passes."""

_T = TypeVar("_T")


class RefusedMessage(GenflError):
    """A message that must not be acted on. Its text names what is wrong, and tells nothing private."""


class RefusedUpload(RefusedMessage):
    """An upload that must not be sent. The text tells something of the data: in a sum, it stays here."""


def content_bytes(records: RecordDict) -> int:
    """Return the size of a message: of its arrays, texts and bytes, without their names."""
    arrays = sum(len(array.data) for record in records.array_records.values() for array in record.values())
    fields = (value for record in records.config_records.values() for value in record.values())
    return arrays + sum(len(value) for value in fields if isinstance(value, str | bytes))


def tell_answer(refused: str, records: RecordDict, seconds: float) -> None:
    """Tell in a client's journal what it answered.

    Args:
        refused: Why it refused; empty if it did not.
        records: The answer.
        seconds: How long it took.
    """
    if refused:
        tell("refused", reason=refused, seconds=seconds)
    else:
        tell("answered", bytes=content_bytes(records), seconds=seconds)


def about_of(records: RecordDict) -> ConfigRecord:
    """Return the fields of a message.

    Raises:
        RefusedMessage: They are missing, or of another version.
    """
    about = records.config_records.get(ABOUT)
    if about is None:
        raise RefusedMessage("message: it is none of genfl; use the same version of genfl on all machines")
    version = int_field(about, "format")
    if version != FORMAT:
        raise RefusedMessage(
            f"format: version {version}, but {FORMAT} is expected; use the same version of genfl on all"
            " machines"
        )
    return about


def field(about: ConfigRecord, name: str, kind: type[_T]) -> _T:
    """Return a field of a message.

    Raises:
        RefusedMessage: It is missing, or of another type.
    """
    value = about.get(name)
    if type(value) is not kind:
        raise RefusedMessage(f"{name}: it is missing, or no {kind.__name__}")
    return value


def int_field(about: ConfigRecord, name: str, least: int = 0, most: int = MOST) -> int:
    """Return a whole number of a message.

    Raises:
        RefusedMessage: It is missing, or out of range.
    """
    value = field(about, name, int)
    if value < least:
        raise RefusedMessage(f"{name}: {value}, but it is at least {least}")
    if value > most:
        raise RefusedMessage(f"{name}: {value}, but it is at most {most}")
    return value


def check_answers(about: ConfigRecord, request: Any, names: tuple[str, ...]) -> None:
    """Check that a reply repeats fields of its request.

    Args:
        about: The fields of the reply.
        request: The request.
        names: The fields that must be equal.

    Raises:
        RefusedMessage: One differs.
    """
    for name in names:
        asked = getattr(request, name)
        if (answered := field(about, name, type(asked))) != asked:
            raise RefusedMessage(f"{name}: the reply is to {short(answered)}, not to {short(asked)}")


def short(value: Any) -> str:
    """Return a value as a short text on one line."""
    return on_one_line(value, 24)
