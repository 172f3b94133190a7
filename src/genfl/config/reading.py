"""Reading and writing configs: YAML, and overrides of fields."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from genfl.config.generation import (
    NO_GUIDANCE,
    UNGUIDED,
    AnyGenerator,
    GeneratorSection,
    Prompts,
    SpeechGenerator,
    TextGenerator,
)
from genfl.config.mistakes import explain, field_name
from genfl.config.schema import Config
from genfl.config.section import FolderName, named
from genfl.errors import InputError, on_one_line

MOST_YAML_VALUES = 100_000
"""The largest number of values in a YAML text. What an alias stands for counts each time."""

DEEPEST = 40
"""The largest number of levels in a YAML text."""

MOST_INTEGER = 2**63 - 1
"""The largest whole number that a config can contain. NumPy and torch know no larger ones."""


class _Loader(yaml.SafeLoader):
    """A YAML loader for configs.

    It reads 1e-3 as a number, and rejects a key that appears twice in a mapping. An alias stands for a copy,
    so a change in one place changes nothing elsewhere. Texts that are too deep or too large are rejected, and
    every error has a line.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        with self._counted(mark):
            node = super().compose_node(parent, index)
            return self._copy(node, mark) if is_alias and node else node

    def _copy(self, node: yaml.Node, mark: yaml.Mark) -> yaml.Node:
        """Return a copy of the node that the alias at a mark stands for."""
        if node.end_mark is None:
            raise yaml.composer.ComposerError(None, None, "an alias stands for what it is a part of", mark)
        value: list[Any]
        with self._counted(mark):
            if isinstance(node, yaml.MappingNode):
                value = [(self._copy(key, mark), self._copy(item, mark)) for key, item in node.value]
                return yaml.MappingNode(node.tag, value, node.start_mark, node.end_mark, node.flow_style)
            if isinstance(node, yaml.SequenceNode):
                value = [self._copy(item, mark) for item in node.value]
                return yaml.SequenceNode(node.tag, value, node.start_mark, node.end_mark, node.flow_style)
        return node

    @contextlib.contextmanager
    def _counted(self, mark: yaml.Mark) -> Iterator[None]:
        """Count a value and its level."""
        self._values += 1
        self._depth += 1
        if self._values > MOST_YAML_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MOST_YAML_VALUES} values", mark)
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} levels deep", mark)
        yield
        self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            kind, text = node.tag.rpartition(":")[2], on_one_line(node.value, 40)
            raise yaml.constructor.ConstructorError(
                None, None, f"{text} is no valid {kind}", node.start_mark, "put a text into quotes"
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    "a key is no plain text",
                    key_node.start_mark,
                    "put what has braces into quotes",
                )
            if key_node.value in seen:
                key = on_one_line(key_node.value, 40)
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that quotes a text that `_Loader` would read as a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a file.

    Args:
        path: A YAML file.
        overrides: Settings ``dotted.path=value`` that replace those of the file. Values are YAML.

    Raises:
        InputError: The config has mistakes. The message has one line for each, with the field.
    """
    return validate(read(path, overrides))


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of a config file as plain values, without checks; see `load`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"config: there is no file {path}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"config: {path} cannot be read ({reason}); check the path") from error
    return _parse(text, overrides, str(path))


def parse(text: str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a YAML text; see `load`."""
    return validate(_parse(text, overrides, "config"))


def _parse(text: str, overrides: Sequence[str], source: str) -> dict[str, Any]:
    content = plain(text, source)
    if not isinstance(content, dict):
        raise InputError(f"{source}: a config is a mapping of keys to values")
    for override in overrides:
        _apply(content, override)
    return content


def validate(content: Mapping[str, Any]) -> Config:
    """Return the checked config of plain values; see `load`."""
    content = plain_copy(content)
    if "grid" in content:
        raise InputError("grid: only `genfl sweep` runs a grid; use it, or leave grid out for a single run")
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise InputError(explain(error)) from error


def settings_of(path: Path) -> dict[str, Any]:
    """Return the config of a run as plain values, without trackers, which change no result.

    Args:
        path: The file of a resolved config.

    Raises:
        InputError: The file is damaged.
    """
    content = read(path)
    content.pop("track", None)
    return content


def with_defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the defaults of fields that an earlier version did not have.

    A config with names that are not registered in this process is returned as it is.

    Args:
        content: A resolved config as plain values.
    """
    try:
        return dict(plain(dump(validate(content), without=("track",))))
    except InputError:
        return dict(content)


def folder_name(name: Any) -> str:
    """Return the name of a run.

    Raises:
        InputError: It cannot be the name of a folder.
    """
    try:
        return TypeAdapter(FolderName).validate_python(name, strict=True)
    except ValidationError as error:
        raise InputError(explain(error, "name")) from error


def generator_section(content: dict[str, Any]) -> GeneratorSection:
    """Return the section of a generator from plain values, with defaults.

    Args:
        content: The kind and the settings.

    Raises:
        InputError: The settings have mistakes. The message has one line for each, with the field.
    """
    try:
        section = TypeAdapter(AnyGenerator).validate_python(content)
    except ValidationError as error:
        raise InputError(explain(error, "generator")) from error
    problem = section.problem() if isinstance(section, SpeechGenerator | TextGenerator) else None
    if problem:
        raise InputError(f"generator.{problem}")
    return section


def default_guidance(kind: str) -> list[float]:
    """Return the default guidance scales of a kind of generator."""
    return NO_GUIDANCE if kind in UNGUIDED else Prompts().guidance_scale


def plain(text: str, source: str = "config") -> Any:
    """Return the plain values of a YAML text.

    Args:
        text: The text.
        source: Its name in messages.

    Raises:
        InputError: The text is not YAML, a key appears twice, or there are too many values or levels.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {_reason(error)}") from error


def _reason(error: yaml.YAMLError, line: bool = True) -> str:
    """Return what is wrong with a YAML text, where, and what to do."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return on_one_line(" ".join(str(error).split()), 200)
    mark = error.problem_mark or error.context_mark
    where = f", line {mark.line + 1}" if line and mark else ""
    fix = f"; {error.note}" if error.note else ""
    return f"{on_one_line(error.problem or error.context, 200)}{where}{fix}"


def plain_copy(content: Any, field: str = "") -> Any:
    """Return a copy of a config's values in which no two fields share a value.

    Numbers and arrays of NumPy become Python's, tuples lists, and paths texts.

    Args:
        content: Mappings, lists and single values.
        field: The field that holds them, for messages; empty for a whole config.

    Raises:
        InputError: A number needs more than 64 bits, a text is not Unicode, or the values contain themselves.
    """
    try:
        return _plain_copy(content, tuple(field.split(".")) if field else ())
    except RecursionError as error:
        raise InputError("config: its values are nested too deeply, or contain themselves") from error


def _plain_copy(value: Any, field: tuple[Any, ...]) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_copy(item, (*field, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_copy(item, (*field, index)) for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic | np.ndarray):
        return _plain_copy(value.tolist(), field)
    if isinstance(value, int) and not -MOST_INTEGER <= value <= MOST_INTEGER:
        raise InputError(f"{field_name(field)}: the number has {value.bit_length()} bits; use at most 63")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise InputError(f"{field_name(field)}: {on_one_line(value)} is not Unicode text; write it anew")
    return value


def dump(config: Config, without: Collection[str] = ()) -> str:
    """Return a config as YAML, with all defaults.

    Args:
        config: The config.
        without: Sections to leave out.
    """
    content = config.model_dump(mode="json", exclude=set(without))
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def plain_without_inherited(config: Config) -> dict[str, Any]:
    """Return a config as plain values, without what methods inherit from the section ``content``.

    So a change of that section reaches the methods, as it does in a file.
    """
    content: dict[str, Any] = plain(dump(config))
    for name, method in config.methods.items():
        if method.content is not None:
            kept = method.content.own(config.content).model_fields_set
            values = content["methods"][name]["content"]
            content["methods"][name]["content"] = {field: values[field] for field in values if field in kept}
    return content


ABSENT: Any = object()
"""The value of a field that a config lacks."""


def differing_fields(contents: Sequence[Any], path: str = "") -> dict[str, list[Any]]:
    """Return the fields in which configs of plain values differ, with the value of each config.

    Args:
        contents: The configs. A list in them counts as one value.
        path: The field that holds them; empty for whole configs.

    Returns:
        For each field, a value for each config; `ABSENT` where a config lacks it.
    """
    if not all(isinstance(content, dict) for content in contents):
        return {} if all(content == contents[0] for content in contents) else {path: list(contents)}
    fields: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for content in contents for key in content):
        name = on_one_line(key)
        values = [content.get(key, ABSENT) for content in contents]
        fields |= differing_fields(values, f"{path}.{name}" if path else name)
    return fields


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return where two configs of plain values differ, such as ``federate.rounds: was 100, is now 20``."""
    lines = []
    for field, (before, after) in differing_fields([old, new], path).items():
        if before is ABSENT or after is ABSENT:
            lines.append(f"{field}: {'added' if before is ABSENT else 'removed'}")
        else:
            lines.append(f"{field}: was {on_one_line(before)}, is now {on_one_line(after)}")
    return lines


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise InputError(
            f"{on_one_line(override)!r}: an override is key=value, for example federate.rounds=20"
        )
    try:
        parsed = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        reason = _reason(error, line=False)
        raise InputError(
            f"{on_one_line(path)}: {on_one_line(value)!r} is not a YAML value ({reason})"
        ) from error
    put(content, path.strip(), parsed)


def merge(content: dict[str, Any], path: str, value: Any) -> None:
    """Set one field of a config of plain values. If it is a section, set only the fields that `value` names.

    Another entry of a registry, such as another model, replaces the section. So do all methods together.

    Args:
        content: The config. It is changed.
        path: The field, as in ``federate``; see `put`.
        value: Its value, or values for some fields of the section.

    Raises:
        InputError: There can be no such field.
    """
    *parents, last = path.split(".")
    node: Any = content
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    old = node.get(last) if isinstance(node, dict) else None
    put(content, path, _merged(last, plain_copy(old), plain_copy(value, path)))


def _merged(field: str, old: Any, new: Any) -> Any:
    old = _section(field, old)
    if not isinstance(old, dict) or not isinstance(new, dict) or field in ("methods", "blanks"):
        return new
    if any(tag in old and new.get(tag, old[tag]) != old[tag] for tag in ("name", "kind")):
        return new
    return {**old, **{name: _merged(name, old.get(name), value) for name, value in new.items()}}


def _section(field: str, value: Any) -> Any:
    """Return a section that is written as its name as a mapping, and other values unchanged."""
    if field in ("algorithm", "data", "model"):
        return named(value)
    return {"kind": value} if field == "generator" and isinstance(value, str) else value


def put(content: dict[str, Any], path: str, value: Any) -> None:
    """Set one field of a config of plain values.

    Args:
        content: The config. It is changed.
        path: The field, as in ``federate.rounds`` or ``methods.gptfl.algorithm.0.mu``.
        value: Its value.

    Raises:
        InputError: There can be no such field.
    """
    *parents, last = path.split(".")
    node: Any = content
    for above, parent in itertools.pairwise(("", *parents)):
        if above == "algorithm" and parent == "0" and isinstance(node, dict):
            continue  # a single value is read as a list of one
        if isinstance(node, dict) and parent in node:
            node[parent] = _section(parent, node[parent])  # algorithm: fedavgm, then algorithm.beta=0.5
        if isinstance(node, list) and parent.isdecimal() and int(parent) < len(node):
            node[int(parent)] = node = named(node[int(parent)])
            continue
        if isinstance(node, dict) and node.get(parent) is None:
            node[parent] = {}  # a section that is missing or empty
        node = node[parent] if isinstance(node, dict) else None
        if not isinstance(node, dict | list):
            raise InputError(f"{path}: {parent!r} has no keys; set the field itself")
    if not isinstance(node, dict):
        list_name = ".".join(parents)
        raise InputError(f"{path}: {list_name} is a list; add a position, as in {list_name}.0.{last}")
    node[last] = plain_copy(value, path)  # later fields may change it, but not the caller's value
