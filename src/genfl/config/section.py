"""The parts that sections of a config are made of."""

from __future__ import annotations

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
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


def _folder_name(value: str) -> str:
    if not value or value[0] == "." or any(c in "/\\" or ord(c) < 32 for c in value):
        raise ValueError("becomes the name of a folder: no slash, no dot in front, and not empty")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]


class Section(BaseModel):
    """A part of the config. Unknown keys are rejected, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Choice(Section):
    """An entry of a registry, and its options."""

    name: str

    def options(self) -> dict[str, Any]:
        """Return the options by name."""
        return self.model_dump(exclude={"name"})


Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:(0|[1-9]\d?))?)$")]


def as_list(value: Any) -> Any:
    """Return a list as it is, and another value as a list of it."""
    return value if isinstance(value, list) else [value]


def named(value: Any) -> Any:
    """Return ``{name: fedavg}`` for ``fedavg``, and other values as they are."""
    return {"name": value} if isinstance(value, str) else value


class OneOf:
    """An annotation: a section that names an entry of a registry, and sets its options.

    The registry is read whenever a value is validated, so that entries may be added at any time. An entry's
    section is made once.

    Args:
        what: The kind of entry, of which the sections' names in the JSON schema are made.
        tag: The key that names the entry: ``name`` or ``kind``.
        sections: Returns the section of each entry, by name. The same entry has the same section.
    """

    def __init__(self, what: str, tag: str, sections: Callable[[], Mapping[str, type[BaseModel]]]) -> None:
        self.what, self.tag, self.sections = what, tag, sections
        self._last: tuple[tuple[type[BaseModel], ...], TypeAdapter[Any]] | None = None

    def adapter(self) -> TypeAdapter[Any]:
        """Return what validates one of the sections that there are now."""
        members = tuple(self.sections().values())
        if self._last is None or self._last[0] != members:
            union: Any = Union[members]  # noqa: UP007
            self._last = members, TypeAdapter(Annotated[union, Discriminator(self.tag)])
        return self._last[1]

    def names(self) -> list[str]:
        """Return the names that there are now."""
        return list(self.sections())

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a schema that validates by the sections of that moment."""
        # pydantic adds the errors of the inner validation to its own, at the place of this field
        return core_schema.no_info_plain_validator_function(
            lambda value: self.adapter().validate_python(value)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema of all sections, with their options."""
        return handler(self.adapter().core_schema)


class OptionSections:
    """The sections of a registry whose entries' options are read from their builders.

    Args:
        what: The kind of entry, of which the sections' names in the JSON schema are made.
        options: Returns each option's type and default, of an entry.
        base: The base class of the sections.
        tag: The key that names the entry.
    """

    def __init__(
        self,
        what: str,
        options: Callable[[Any], Mapping[str, Any]],
        base: type[BaseModel] = Choice,
        tag: str = "name",
    ) -> None:
        self.what, self.options, self.base, self.tag = what, options, base, tag
        self._made: dict[str, tuple[Any, type[BaseModel]]] = {}

    def __call__(self, entries: Mapping[str, Any]) -> dict[str, type[BaseModel]]:
        """Return the section of each entry; one that is made already is returned again."""
        return {name: self._section(name, entry) for name, entry in entries.items()}

    def _section(self, name: str, entry: Any) -> type[BaseModel]:
        if name not in self._made or self._made[name][0] is not entry:
            fields: dict[str, Any] = {self.tag: (Literal[name], ...), **self.options(entry)}
            section = create_model(
                f"{self.what}_{name}", __base__=self.base, __doc__=f"Options of {name}.", **fields
            )
            self._made[name] = entry, section
        return self._made[name][1]
