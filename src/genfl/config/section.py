"""What sections of a config are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    create_model,
)


def _folder_name(value: str) -> str:
    if not value or value[0] == "." or any(c in "/\\" or ord(c) < 32 for c in value):
        raise ValueError("becomes the name of a folder: no slash, no dot in front, and not empty")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Choice(Section):
    """An entry of a registry, and its options."""

    name: str

    def options(self) -> dict[str, Any]:
        """Returns the options by name."""
        return self.model_dump(exclude={"name"})


Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:(0|[1-9]\d?))?)$")]


def as_list(value: Any) -> Any:
    """Reads one value as a list of it."""
    return value if isinstance(value, list) else [value]


def named(value: Any) -> Any:
    """Reads ``algorithm: fedavg`` as ``algorithm: {name: fedavg}``."""
    return {"name": value} if isinstance(value, str) else value


def one_of(what: str, registry: Mapping[str, Any], fields: Callable[[str], dict[str, Any]]) -> Any:
    """Returns the type of a section that names an entry of a registry and sets its options."""
    sections = [
        create_model(
            f"{what}_{name}",
            __base__=Choice,
            __doc__=f"Options of {name}.",
            **{"name": (Literal[name], ...), **fields(name)},
        )
        for name in registry
    ]
    union: Any = Union[tuple(sections)]  # noqa: UP007
    return Annotated[union, Discriminator("name"), BeforeValidator(named)]
