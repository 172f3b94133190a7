"""Write the field tables of ``docs/summary.md``: ``python -m genfl.results.document docs/summary.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genfl.config import Content
from genfl.results.schema import CurvePoint, PretrainResult, ResultModel, StageRecord, Summary
from genfl.storage import write_text

BEGIN = "<!-- Generated from genfl.results.schema. -->"
END = "<!-- End of the generated tables. -->"


def update_page(page: str) -> str:
    """Return a page whose text between `BEGIN` and `END` is the current field tables.

    Args:
        page: The page as Markdown.
    """
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{field_tables()}\n{END}{after}"


def field_tables() -> str:
    """Return a Markdown section with a table of fields for each model of the schema."""
    models: dict[str, Mapping[str, Any]] = {}
    for model in (Summary, StageRecord, PretrainResult):
        models |= _definitions(model)
    return "\n".join(line for name, schema in models.items() for line in _section(name, schema))


def _definitions(model: type[ResultModel]) -> dict[str, Mapping[str, Any]]:
    """Return a model's schema and those it refers to, in the order in which a reader meets them."""
    schema = model.model_json_schema(mode="serialization")
    definitions = schema.pop("$defs", {})
    met: dict[str, Mapping[str, Any]] = {model.__name__: schema}
    queue = [schema]
    while queue:
        for name in _references(queue.pop(0)):
            if name not in met and name != Content.__name__:  # `genfl schema config` describes it
                met[name] = definitions[name]
                queue.append(definitions[name])
    return met


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _section(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    description = schema.get("description") or CurvePoint.__doc__  # pydantic describes no named tuple
    yield str(description).replace("``", "`").replace("\n", " ")
    yield ""
    if "prefixItems" in schema:
        yield "| position | type | meaning |"
        yield "|---|---|---|"
        for position, item in enumerate(schema["prefixItems"]):
            yield f"| {position} | {_type(item)} | {item['description']} |"
    else:
        yield "| field | type | meaning |"
        yield "|---|---|---|"
        for field, item in schema["properties"].items():
            yield f"| `{field}` | {_type(item)} | {item['description']} |"
    yield ""


def _type(schema: Mapping[str, Any]) -> str:
    """Return the type of a value in words, with links to the tables of other models."""
    match schema:
        case {"$ref": str(reference)}:
            name = reference.rpartition("/")[2]
            if name == Content.__name__:
                return "object, as the section `content` of the config"
            return f"[{name}](#{name.lower()})"
        case {"anyOf": list(options)}:
            return " or ".join(dict.fromkeys(_type(option) for option in options))
        case {"const": value}:
            return f"`{value}`"
        case {"enum": list(values)}:
            return " or ".join(f"`{value}`" for value in values)
        case {"type": "array", "items": dict(items)}:
            return f"list of {_plural(_type(items))}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"object of {_plural(_type(values))}"
        case {"type": str(name)}:
            return name
        case {"allOf": [only]}:
            return _type(only)
    raise ValueError(f"no words for the type of {schema}")


def _plural(words: str) -> str:
    if " or " in words:
        return f"({words})"
    return f"{words}s" if words.isalpha() else words


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        write_text(Path(argument), update_page(Path(argument).read_text(encoding="utf-8")))
