"""The options of a builder: its parameters with defaults, read from its signature, and their ranges."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import operator
import re
from collections.abc import Callable, Collection, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from genfl.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Decay = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Gt(0), Le(1)]
Steps = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]

_SCALARS = (int, float, bool, str)
_BOUNDS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    Gt: ("gt", "above", operator.gt),
    Ge: ("ge", "at least", operator.ge),
    Lt: ("lt", "below", operator.lt),
    Le: ("le", "at most", operator.le),
}


def options(
    build: Callable[..., Any], names: dict[str, Any] | None = None, *, required: bool = False
) -> dict[str, tuple[Any, Any]]:
    """Return each option's type, with its range, and its default.

    Options are parameters with a default whose type is a number, a boolean, a string, a literal, or one of
    these or None.

    Args:
        build: A function or a class; of a wrapper, the wrapped one is read.
        names: Types that its annotations may name besides those of its module.
        required: Whether parameters without a default are options too; their default is ``...``.
    """
    target = _target(build)
    hints = get_type_hints(target, localns=names, include_extras=True)  # with ranges
    return {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default)
        for p in inspect.signature(target).parameters.values()
        if (required or p.default is not p.empty) and _is_scalar(hints.get(p.name))
    }


def descriptions(build: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstring of a builder says of each parameter, in its section ``Args``.

    Args:
        build: A function or a class; of a wrapper, the wrapped one is read.
    """
    _, _, arguments = (inspect.getdoc(inspect.unwrap(build)) or "").partition("\nArgs:\n")
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {5,}.+)*)", arguments.partition("\n\n")[0], re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in entries}


def check_options(
    build: Callable[..., Any],
    names: dict[str, Any] | None = None,
    *,
    provided: Collection[str] = (),
    required: bool = False,
) -> None:
    """Check that a config can set all options of a builder.

    Args:
        build: A function or a class.
        names: Types that its annotations may name besides those of its module.
        provided: The parameters that genfl provides.
        required: Whether an option may have no default.

    Raises:
        InputError: A keyword parameter has no type that a config can give, or no default; the message names
            it.
    """
    target = _target(build)
    try:
        known = options(build, names, required=True)
    except NameError as error:
        raise InputError(
            f"register: an annotation of {build.__name__} cannot be resolved ({error}); import that name at"
            " the top of the module"
        ) from error
    for p in inspect.signature(target).parameters.values():
        positional = p.kind is not p.KEYWORD_ONLY and p.default is p.empty
        if p.name in provided or p.name == "self" or positional:
            continue
        if p.name not in known:
            hint = "no annotation" if p.annotation is p.empty else f"the type {p.annotation}"
            raise InputError(
                f"register: {build.__name__}.{p.name} has {hint}, which no config can give; annotate it with"
                " int, float, bool, str or a Literal"
            )
        if p.default is p.empty and not required:
            raise InputError(f"register: {build.__name__}.{p.name} has no default; give it one")


def range_checked(build: Callable[P, R], names: dict[str, Any] | None = None) -> Callable[P, R]:
    """Return a builder that rejects options out of the ranges of its annotations.

    Parameters whose annotation is a class of genfl, such as `LocalSGD`, are checked to be of that class.

    Args:
        build: A function. Its annotations are read when it is first called.
        names: Types that its annotations may name besides those of its module.
    """
    signature = inspect.signature(build)

    @functools.cache
    def hints() -> Mapping[str, Any]:
        known = get_type_hints(build, localns=names, include_extras=True)
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {
            name: known[name]
            for name, parameter in signature.parameters.items()
            if parameter.kind not in kinds and name in known
        }

    @functools.wraps(build)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in hints():
                bound.arguments[name] = check_value(f"{build.__name__}.{name}", value, hints()[name])
        return build(*bound.args, **bound.kwargs)

    return call


def check_fields(instance: Any) -> None:
    """Check the numbers of a dataclass by the ranges of its annotations, as `range_checked` does.

    Args:
        instance: The dataclass.

    Raises:
        InputError: One is out of its range.
    """
    kind: Any = type(instance)
    for name, hint in _field_ranges(kind).items():
        check_value(f"{kind.__name__}.{name}", getattr(instance, name), hint)


@functools.cache
def _field_ranges(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is Annotated}


def check_value(field: str, value: Any, hint: Any) -> Any:
    """Return a value that fits an annotation; numbers of NumPy become numbers of Python.

    Args:
        field: Its name in messages.
        value: The value.
        hint: The annotation. Anything but a scalar with or without a range, a literal or a class of genfl
            accepts every value.

    Raises:
        InputError: It does not fit.
    """
    bounds: tuple[Any, ...] = ()
    if value is None and _without_none(hint) is not hint:
        return None
    hint = _without_none(hint)
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
        bounds = tuple(mark for mark in marks if type(mark) in _BOUNDS)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            known = ", ".join(map(repr, get_args(hint)))
            raise InputError(f"{field}: there is no {value!r}; give one of {known}")
        return value
    if inspect.isclass(hint) and hint.__module__.startswith("genfl.") and not isinstance(value, hint):
        shown = value.__name__ if inspect.isfunction(value) else f"a {type(value).__name__}"
        raise InputError(f"{field}: {shown} is no {hint.__name__}; give a {hint.__name__}")
    if hint not in (int, float):
        return value
    limits = [f"{_BOUNDS[type(mark)][1]} {getattr(mark, _BOUNDS[type(mark)][0]):g}" for mark in bounds]
    wanted = ("a whole number " if hint is int else "a number ") + " and ".join(limits)
    kind = numbers.Integral if hint is int else numbers.Real
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    for mark in bounds:
        attribute, _, holds = _BOUNDS[type(mark)]
        fits = fits and holds(value, getattr(mark, attribute))
    if not fits:
        raise InputError(f"{field}: {value!r} is out of range; give {wanted.strip()}")
    return value if isinstance(value, int | float) else hint(value)


def whole_number(field: str, value: Any, least: int = 1) -> int:
    """Return a whole number as Python's int.

    Args:
        field: Its name in messages.
        value: An int of Python or NumPy.
        least: The smallest that is accepted.

    Raises:
        InputError: It is no whole number, or smaller.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InputError(f"{field}: {value!r} is no whole number from {least}; give one")
    return int(value)


def _target(build: Callable[..., Any]) -> Callable[..., Any]:
    target = inspect.unwrap(build)
    return target.__init__ if inspect.isclass(target) else target


def _without_none(hint: Any) -> Any:
    """Return the other type of a union of one type and None; any other annotation unchanged."""
    others = [kind for kind in get_args(hint) if kind is not NoneType]
    return others[0] if get_origin(hint) in (Union, UnionType) and len(others) == 1 else hint


def _is_scalar(hint: Any) -> bool:
    hint = _without_none(hint)
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint in _SCALARS or get_origin(hint) is Literal
