"""Reading and writing configs: YAML, and overrides of fields."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from genfl.config.mistakes import explain
from genfl.config.schema import Config
from genfl.config.section import named
from genfl.errors import InputError


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 1e-3 as a number, and rejects a key that appears twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.YAMLError(f"{key_node.value!r} is given twice, {key_node.start_mark}")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that quotes a text that `_Loader` would read as a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a file.

    Args:
        path: A YAML file.
        overrides: Settings ``dotted.path=value`` that replace those of the file. Values are YAML.

    Raises:
        InputError: The config has mistakes. The message has one line for each, with the field.
    """
    return validate(read(path, overrides))


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of a config file as plain values, without checks; see `load`."""
    if not path.is_file():
        raise InputError(f"config: there is no file {path}; check the path")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return _parse(text, overrides, str(path))


def parse(text: str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a YAML text; see `load`."""
    return validate(_parse(text, overrides, "config"))


def _parse(text: str, overrides: Sequence[str], source: str) -> dict[str, Any]:
    try:
        content = plain(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{source}: a config is a mapping of keys to values")
    for override in overrides:
        _apply(content, override)
    return content


def validate(content: dict[str, Any]) -> Config:
    """Return the checked config of plain values; see `load`."""
    if "grid" in content:
        raise InputError("grid: only `genfl sweep` runs a grid; use it, or leave grid out for a single run")
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise InputError("\n".join(explain(problem) for problem in error.errors())) from error


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
        problems = [{**problem, "loc": ("generator", *problem["loc"])} for problem in error.errors()]
        raise InputError("\n".join(explain(problem) for problem in problems)) from error
    problem = section.problem() if isinstance(section, SpeechGenerator | TextGenerator) else None
    if problem:
        raise InputError(f"generator.{problem}")
    return section


def default_guidance(kind: str) -> list[float]:
    """Return the default guidance scales of a kind of generator."""
    return NO_GUIDANCE if kind in UNGUIDED else Prompts().guidance_scale


def plain(text: str) -> Any:
    """Return the plain values of a YAML text.

    Raises:
        yaml.YAMLError: The text is not YAML, or a key appears twice.
    """
    return yaml.load(text, _Loader)


def dump(config: Config) -> str:
    """Return a config as YAML, with all defaults."""
    content = config.model_dump(mode="json")
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


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return where two configs of plain values differ, such as ``federate.rounds: was 100, is now 20``."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{path}: was {old}, is now {new}"]
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        where = f"{path}.{key}" if path else key
        if key in old and key in new:
            lines += differences(old[key], new[key], where)
        else:
            lines.append(f"{where}: {'added' if key in new else 'removed'}")
    return lines


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise InputError(f"{override!r}: an override is key=value, for example federate.rounds=20")
    try:
        parsed = plain(value)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: {value!r} is not a YAML value") from error
    put(content, path.strip(), parsed)


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
        if isinstance(node, dict) and parent in ("algorithm", "data", "model"):
            node[parent] = named(node.get(parent, {}))  # algorithm: fedavgm, then algorithm.beta=0.5
        if isinstance(node, list) and parent.isdigit() and int(parent) < len(node):
            node[int(parent)] = node = named(node[int(parent)])
            continue
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict | list):
            raise InputError(f"{path}: {parent!r} has no keys; set the field itself")
    if not isinstance(node, dict):
        list_name = ".".join(parents)
        raise InputError(f"{path}: {list_name} is a list; add a position, as in {list_name}.0.{last}")
    node[last] = copy.deepcopy(value)  # later fields may change it, but not the caller's value
