"""The building blocks of config sections."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    create_model,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from genfl.options import descriptions

LONGEST_NAME = 200
"""The largest number of bytes in a name that becomes a folder. File systems take 255, and parts are added."""


def _folder_name(value: str) -> str:
    if not value or value[0] == "." or any(c in "/\\" or unicodedata.category(c) in _BAD for c in value):
        raise ValueError(
            "becomes the name of a folder: no slash, no control character, no leading dot, and not empty"
        )
    if len(value.encode()) > LONGEST_NAME:
        raise ValueError(f"becomes the name of a folder: at most {LONGEST_NAME} bytes")
    return value


_BAD = ("Cc", "Cs", "Zl", "Zp")
"""The categories of Unicode for control characters, halves of characters, and line breaks."""

FolderName = Annotated[str, AfterValidator(_folder_name)]


class Section(BaseModel):
    """A section of the config. It rejects unknown keys, and its values cannot be changed.

    A section below it that has no lines, or only comments, has its defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    @classmethod
    def sections(cls) -> list[str]:
        """Return the fields that are sections with defaults, or mappings."""
        return [
            name
            for name, field in cls.model_fields.items()
            if isinstance(field.default, dict)
            or (isinstance(field.default, Section) and type(field.default) is field.annotation)
        ]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema, in which a section with defaults can be empty."""
        described = handler(schema)
        fields = handler.resolve_ref_schema(described)["properties"]
        for name in cls.sections():
            marks = {key: fields[name].pop(key) for key in ("default", "description") if key in fields[name]}
            marks["description"] = cls.model_fields[name].description  # absent if its class says the same
            fields[name] = {"anyOf": [fields[name], {"type": "null"}], **marks}
        return described

    @model_validator(mode="before")
    @classmethod
    def _without_empty_sections(cls, content: Any) -> Any:
        if not isinstance(content, dict) or None not in content.values():
            return content
        empty = [name for name in cls.sections() if content.get(name, ...) is None]
        return {name: value for name, value in content.items() if name not in empty}


class Choice(Section):
    """An entry of a registry, and its options."""

    name: str = Field(description="The name of the entry.")

    def options(self) -> dict[str, Any]:
        """Return the options by name."""
        return self.model_dump(exclude={"name"})


Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:(0|[1-9]\d?))?)$")]


def as_list(value: Any) -> Any:
    """Return a list unchanged, and any other value as a list of one."""
    return value if isinstance(value, list) else [value]


def named(value: Any) -> Any:
    """Return ``{name: fedavg}`` for ``fedavg``, and other values unchanged."""
    return {"name": value} if isinstance(value, str) else value


class OrOne:
    """An annotation for a list that can be written as its only item."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of the list, which accepts a single item too."""
        return core_schema.no_info_before_validator_function(as_list, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema of the list or its item."""
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


class OrName:
    """An annotation for a section that can be written as its name alone."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of the section, which accepts a name too."""
        return core_schema.no_info_before_validator_function(named, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema of the name or the section."""
        return {"anyOf": [{"type": "string"}, handler(schema)]}


def _flagged(value: Any) -> Any:
    """Return an empty section for true, None for false, and sections unchanged."""
    if isinstance(value, bool):
        return {} if value else None
    if value is not None and not isinstance(value, Mapping | Section):
        raise ValueError("should be true, false, or a mapping of its settings")
    return value


class OrFlag:
    """An annotation for an optional section that can be written as true, for its defaults, or as false."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of the section, which accepts true and false too."""
        return core_schema.no_info_before_validator_function(_flagged, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema of the flag or the section."""
        return {"anyOf": [{"type": "boolean"}, handler(schema)]}


class OneOf:
    """An annotation for a section that names an entry of a registry, and sets its options.

    The registry is read whenever a value is validated, so entries may be added at any time. The section of an
    entry is created once.

    Args:
        what: The kind of entry. The names of the sections in the JSON schema begin with it.
        tag: The key that names the entry: ``name`` or ``kind``.
        sections: Returns the section of each entry, by name. It returns the same section for the same entry.
    """

    def __init__(self, what: str, tag: str, sections: Callable[[], Mapping[str, type[BaseModel]]]) -> None:
        self.what, self.tag, self.sections = what, tag, sections
        self._last: tuple[tuple[type[BaseModel], ...], TypeAdapter[Any]] | None = None

    def adapter(self) -> TypeAdapter[Any]:
        """Return the type adapter that validates the current sections."""
        members = tuple(self.sections().values())
        if self._last is None or self._last[0] != members:
            union: Any = Union[members]  # noqa: UP007
            self._last = members, TypeAdapter(Annotated[union, Discriminator(self.tag)])
        return self._last[1]

    def names(self) -> list[str]:
        """Return the current names of entries."""
        return list(self.sections())

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a schema that validates with the sections at the time of validation."""
        # pydantic adds the errors of the inner validation to its own, with this field's path
        return core_schema.no_info_plain_validator_function(
            lambda value: self.adapter().validate_python(value)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema of all sections with their options, and of the names that stand for them."""
        sections = handler(self.adapter().core_schema)["oneOf"]
        return {"anyOf": [{"enum": self.names()}, *sections]}


class OptionSections:
    """The sections of a registry. The options of an entry are read from its builder.

    Args:
        what: The kind of entry. The names of the sections in the JSON schema begin with it.
        options: Returns the type and default of each option of an entry.
        base: The base class of the sections.
        tag: The key that names the entry.
        build: Returns the builder of an entry, whose docstring describes the options. None if there is none.
    """

    def __init__(
        self,
        what: str,
        options: Callable[[Any], Mapping[str, Any]],
        base: type[BaseModel] = Choice,
        tag: str = "name",
        build: Callable[[Any], Callable[..., Any] | None] = lambda entry: None,
    ) -> None:
        self.what, self.options, self.base, self.tag, self.build = what, options, base, tag, build
        self._sections: dict[str, tuple[Any, type[BaseModel]]] = {}

    def __call__(self, entries: Mapping[str, Any]) -> dict[str, type[BaseModel]]:
        """Return the section of each entry. An existing section is returned again."""
        return {name: self._section(name, entry) for name, entry in entries.items()}

    def _section(self, name: str, entry: Any) -> type[BaseModel]:
        if name not in self._sections or self._sections[name][0] is not entry:
            tag = (Literal[name], Field(description=f"The {self.tag} of the {self.what.lower()}."))
            build = self.build(entry)
            described = descriptions(build) if build else {}
            fields: dict[str, Any] = {self.tag: tag}
            for option, (kind, default) in self.options(entry).items():
                text = described.get(option, f"An option of {name}.")
                fields[option] = (kind, Field(default, description=text))
            section = create_model(
                f"{self.what}_{name}", __base__=self.base, __doc__=f"Options of {name}.", **fields
            )
            self._sections[name] = entry, section
        return self._sections[name][1]
