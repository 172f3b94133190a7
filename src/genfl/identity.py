"""Identities: digests of functions and values, so that results of other code or data are not reused."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Mapping, Sequence, Set
from typing import Any


def value_digest(*values: Any) -> str:
    """Return a digest of values: numbers, texts, arrays, modules, functions, and whatever holds them.

    Of a function, the code, the defaults and the closure count, as do globals that are numbers, texts or
    functions of its own module. Other globals, and functions of other modules, do not.
    """
    hashed = hashlib.sha256()
    seen: dict[int, Any] = {}
    for value in values:
        _feed(value, hashed.update, seen)
    return hashed.hexdigest()[:16]


def _feed(value: Any, update: Any, seen: dict[int, Any]) -> None:
    if value is None or isinstance(value, int | float | complex | str | bytes):
        update(f"{type(value).__name__}:{value!r};".encode())
        return
    if id(value) in seen:
        update(b"seen;")
        return
    seen[id(value)] = value  # kept alive, so that no other value gets its id
    update(f"{type(value).__qualname__}(".encode())
    for part in _parts(value):
        _feed(part, update, seen)
    update(b")")


def _parts(value: Any) -> Sequence[Any]:
    """Return what decides a value."""
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, types.FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, *cells, _globals(value)]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, Set):  # without an order of its own
        return sorted(map(repr, value))
    if isinstance(value, list | tuple):
        return value
    if inspect.isclass(value) or isinstance(value, types.ModuleType | types.BuiltinFunctionType):
        names = [getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__)]
        methods = vars(value).values() if inspect.isclass(value) and value.__module__ != "builtins" else ()
        return [*names, *(method for method in methods if isinstance(method, types.FunctionType))]
    if hasattr(value, "state_dict") and hasattr(value, "named_modules"):
        return [repr(value), value.state_dict()]
    if hasattr(value, "detach"):  # a tensor
        return _parts(value.detach().cpu().contiguous().numpy())
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return [str(value.dtype), getattr(value, "shape", ()), value.tobytes()]
    return [vars(value)] if hasattr(value, "__dict__") else []


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """Return the globals that decide what a function computes."""
    codes = [function.__code__]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    scope = function.__globals__
    return {
        name: scope[name]
        for name in sorted(names & scope.keys())
        if isinstance(scope[name], int | float | str)
        or (isinstance(scope[name], types.FunctionType) and scope[name].__module__ == function.__module__)
    }


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet, as of a function that refers to itself
        return None
