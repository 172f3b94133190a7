"""The options of a builder: its parameters with defaults, read from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

_SCALARS = (int, float, bool, str)


def options(build: Callable[..., Any], names: dict[str, Any] | None = None) -> dict[str, tuple[Any, Any]]:
    """Return the type (with its range) and the default of each option of a builder.

    Options are parameters with a default whose type is a number, a boolean, a string, or a literal.

    Args:
        build: A function or a class. For a wrapper, the wrapped function is read.
        names: Types that its annotations may name, besides those of its module.
    """
    target = inspect.unwrap(build)
    target = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(target, localns=names, include_extras=True)  # with ranges
    return {
        p.name: (hints[p.name], p.default)
        for p in inspect.signature(target).parameters.values()
        if p.default is not p.empty and _is_scalar(hints.get(p.name))
    }


def _is_scalar(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint in _SCALARS or get_origin(hint) is Literal
