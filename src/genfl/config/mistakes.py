"""Messages about mistakes in a config: one line per mistake, with the field as in the config file."""

from __future__ import annotations

import datetime
import reprlib
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import ValidationError

from genfl.config.generation import GENERATOR_UNION
from genfl.config.methods import ALGORITHM
from genfl.config.privacy import FIXES
from genfl.config.schema import Config
from genfl.config.section import OneOf
from genfl.config.training import MODEL
from genfl.errors import on_one_line, suggest

UNIONS: dict[Any, OneOf] = {
    "algorithm": ALGORITHM,
    "model": MODEL,
    "client_models": MODEL,
    "generator": GENERATOR_UNION,
}
"""The fields that accept one of several sections."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80

MOST_LINES = 30
"""The largest number of mistakes in one message."""


def explain(error: ValidationError, *above: str) -> str:
    """Return the message for an error of pydantic: one line per mistake.

    Args:
        error: The error.
        *above: The sections that hold the values.
    """
    problems = error.errors(include_url=False)
    lines = [_explain({**problem, "loc": (*above, *problem["loc"])}) for problem in problems[:MOST_LINES]]
    more = len(problems) - len(lines)
    return "\n".join([*lines, *([f"config: {more} more mistakes; mend these first"] if more else [])])


def field_name(location: Sequence[Any]) -> str:
    """Return the name of a field from its path, such as ``federate.rounds``."""
    return ".".join(on_one_line(part, 60) for part in location)


def _explain(problem: Any) -> str:
    location = _as_written(problem["loc"])
    field = field_name(location)
    match problem["type"]:
        case "extra_forbidden":
            return f"{field}: unknown key; {suggest(str(location[-1]), _keys_at(problem['loc'][:-1]))}"
        case "missing":
            return f"{field}: required, but missing; set it"
        case "union_tag_invalid":
            name, (tag, known) = problem["ctx"]["tag"], _union(location)
            return f"{field}.{tag}: there is no {on_one_line(name)!r}; {suggest(name, list(known))}"
        case "union_tag_not_found":
            return f"{field}.{_union(location)[0]}: required, but missing; set it"
        case "model_type" | "model_attributes_type" | "dict_type":  # pydantic's messages name classes
            return f"{field}: should be a mapping of keys to values, not {_shown(problem['input'])}"
        case "too_short" | "too_long" as kind:  # pydantic's messages differ between versions
            bound, limit = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
            count, length = problem["ctx"][limit], problem["ctx"]["actual_length"]
            return f"{field}: value should have at {bound} {count} item{'s' * (count != 1)}, not {length}"
        case "value_error" if not field:
            return str(problem["ctx"]["error"])
        case _:
            message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
            fix = FIXES.get(str(location[-1])) if location[:-1] == ["privacy"] else None
            line = f"{field}: {message[0].lower()}{message[1:]}, not {_shown(problem['input'])}"
            return f"{line}; {fix}" if fix else line


def _shown(value: Any) -> str:
    """Return a value as in a config file, on one line, and short."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case datetime.date():
            return value.isoformat()
        case _:
            return on_one_line(_SHORT.repr(value), 160)


def _union(location: Sequence[Any]) -> tuple[str, Collection[str]]:
    union = next(UNIONS[part] for part in reversed(location) if part in UNIONS)
    return union.tag, union.names()


def _as_written(parts: Sequence[Any]) -> list[Any]:
    """Return the path of a field as written in the config file.

    pydantic's path contains the member of a union, a position even for a single value, and ``[key]`` behind a
    key that is wrong itself. For example, ``algorithm.0.fedavg.beta`` becomes ``algorithm.beta``.
    """
    location: list[Any] = []
    for part in parts:
        in_list = bool(location) and isinstance(location[-1], int)
        holder = location[-2 if in_list else -1] if location else None
        if holder in UNIONS and part in UNIONS[holder].names():
            if location[-1] == 0 and holder == "algorithm":
                location.pop()
            continue
        location.append(part)
    if location[-2:] in (["algorithm", 0], ["target_accuracy", 0]):
        location.pop()
    return location[:-1] if location[-1:] == ["[key]"] else location


def _keys_at(location: Sequence[Any]) -> list[str]:
    """Return the keys that the schema accepts at a path of pydantic."""
    schema = Config.model_json_schema()
    known: set[str] = set()
    nodes = [schema]
    for part in location:
        if isinstance(part, int):
            continue  # _resolved steps into the items of lists
        children = []
        for node in _resolved(nodes, schema):
            if part in node.get("properties", {}):
                children.append(node["properties"][part])
            elif isinstance(node.get("additionalProperties"), dict):
                children.append(node["additionalProperties"])
            elif part in (node.get("properties", {}).get(tag, {}).get("const") for tag in ("name", "kind")):
                children.append(node)  # the member of a union
        nodes = children
    for node in _resolved(nodes, schema):
        known |= set(node.get("properties", {}))
    return sorted(known)


def _resolved(nodes: Sequence[Any], schema: Any) -> list[Any]:
    """Return the nodes of a JSON schema with references, alternatives and list items resolved."""
    flat: list[Any] = []
    for node in nodes:
        if "$ref" in node:
            flat += _resolved([schema["$defs"][node["$ref"].rsplit("/", 1)[1]]], schema)
        elif "oneOf" in node or "anyOf" in node:
            flat += _resolved(node.get("oneOf", []) + node.get("anyOf", []), schema)
        elif "items" in node:
            flat += _resolved([node["items"]], schema)
        else:
            flat.append(node)
    return flat
