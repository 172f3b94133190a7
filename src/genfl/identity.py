"""Identities: digests of functions and values, so that results of other code or data are not reused."""

from __future__ import annotations

import contextvars
import functools
import hashlib
import inspect
import logging
import sys
import threading
import types
from collections.abc import Collection, Iterator, Mapping, Set
from pathlib import Path, PurePath
from typing import Any

log = logging.getLogger(__name__)

_INERT = (logging.Logger, type(threading.Lock()), type(threading.RLock()), contextvars.ContextVar)
"""Types whose values decide no result."""

_NAMED = (
    types.BuiltinFunctionType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
"""Types whose values have no code that can be read; their names count."""

_HOOKS = (types.FunctionType, staticmethod, classmethod, property)


def value_digest(*values: Any) -> str:
    """Return a digest of numbers, texts, arrays, modules, functions, classes, and whatever holds them.

    Of a function, its code, defaults, closure and the globals that it names count. Of a class, its attributes
    and bases count. Functions and classes of the user's own modules are followed. Of installed libraries, the
    name counts, unless the value itself is one of them, as of a plugin. What a function reaches as an
    attribute of a module (``helpers.scale``) does not count: import the function instead.

    A warning names a value that cannot be hashed; only its type counts.
    """
    home = {module for value in values if (module := _module_of(inspect.unwrap(_function(value))))}
    hasher = _Hasher(home - {"genfl"})
    for value in values:
        hasher.feed(value)
    return hasher.digest()


def _function(value: Any) -> Any:
    while isinstance(value, functools.partial):
        value = value.func
    return value


def _module_of(value: Any) -> str:
    """Return the name of the module that defines a function or a class; empty for other values."""
    if isinstance(value, types.FunctionType) or inspect.isclass(value):
        return str(value.__module__ or "")
    return ""


@functools.cache
def _is_library(module: str) -> bool:
    """Return whether a module comes with Python, with genfl or with an installed distribution."""
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names or root in ("builtins", "genfl"):
        return root != "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and bool({"site-packages", "dist-packages"} & set(Path(file).parts))


class _Hasher:
    """The state of a digest.

    Args:
        home: The modules whose functions and classes are followed, besides those of no library.
    """

    def __init__(self, home: Collection[str]) -> None:
        self.home = home
        self.hashed = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}
        self.path: list[str] = []

    def digest(self) -> str:
        """Return the digest of what was fed."""
        return self.hashed.hexdigest()[:16]

    def text(self, text: str) -> None:
        """Feed a text."""
        self.hashed.update(f"{len(text)}:{text};".encode("utf-8", "surrogatepass"))

    def feed(self, value: Any) -> None:
        """Feed a value and all that it holds."""
        if value is None or isinstance(value, int | float | complex | str | bytes):
            self.text(f"{type(value).__name__}:{value!r}")
            return
        if id(value) in self.seen:
            self.text(f"seen {self.seen[id(value)][0]}")
            return
        self.seen[id(value)] = len(self.seen), value  # kept alive, so that no other value gets its id
        self.text(f"{type(value).__module__}.{type(value).__qualname__}(")
        self._feed_content(value)
        self.text(")")

    def _feed_all(self, *values: Any) -> None:
        for value in values:
            self.feed(value)

    def _feed_named(self, items: Mapping[str, Any]) -> None:
        """Feed values with their names, in alphabetical order."""
        for name in sorted(items):
            self.text(name)
            self.path.append(name)
            self.feed(items[name])
            self.path.pop()

    def _follows(self, value: Any) -> bool:
        module = _module_of(value)
        return module in self.home or not _is_library(module)

    def _feed_content(self, value: Any) -> None:
        if isinstance(value, types.CodeType):
            self._feed_all(value.co_code, value.co_names, value.co_consts, value.co_flags, value.co_argcount)
        elif isinstance(value, types.FunctionType):
            self._feed_function(value)
        elif isinstance(value, functools._lru_cache_wrapper):
            self.feed(value.__wrapped__)
        elif isinstance(value, types.MethodType):
            self._feed_all(value.__func__, value.__self__)
        elif isinstance(value, staticmethod | classmethod):
            self.feed(value.__func__)
        elif isinstance(value, property):
            self._feed_all(value.fget, value.fset, value.fdel)
        elif isinstance(value, functools.cached_property):
            self.feed(value.func)
        elif isinstance(value, functools.partial):
            self._feed_all(value.func, value.args, value.keywords)
        elif inspect.isclass(value):
            self._feed_class(value)
        elif isinstance(value, types.ModuleType | logging.Logger | contextvars.ContextVar):
            self.text(getattr(value, "__name__", "") or value.name)
        elif isinstance(value, _INERT):
            pass
        elif isinstance(value, PurePath):
            self.text(str(value))
        elif isinstance(value, _NAMED):
            self._feed_all(getattr(value, "__module__", ""), value.__qualname__)
            receiver = getattr(value, "__self__", None)
            if not isinstance(receiver, types.ModuleType):
                self.feed(receiver)
        elif hasattr(value, "detach"):
            self._feed_tensor(value)
        elif hasattr(value, "tobytes") and hasattr(value, "dtype"):
            self._feed_array(value)
        else:
            self._feed_class_of(value)
            self._feed_instance(value)

    def _feed_function(self, function: types.FunctionType) -> None:
        self._feed_all(function.__code__, function.__defaults__, function.__kwdefaults__)
        self._feed_all(*(_content(cell) for cell in function.__closure__ or ()))
        attributes = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
        named = dict(_globals(function))
        if not self._follows(function):  # of a library: what it can change, and functions beside it
            named = {
                name: value
                for name, value in named.items()
                if isinstance(value, int | float | str)
                or (isinstance(value, types.FunctionType) and value.__module__ == function.__module__)
            }
            attributes = {}
        self.path.append(function.__qualname__)
        for name in sorted(named):
            self.text(name)
            self.path.append(name)
            value = named[name]
            if isinstance(value, types.FunctionType) and not (
                value.__module__ == function.__module__ or self._follows(value)
            ):
                self._feed_all(value.__module__, value.__qualname__)
            else:
                self.feed(value)
            self.path.pop()
        self._feed_named(attributes)
        self.path.pop()

    def _feed_class(self, kind: type) -> None:
        self._feed_all(kind.__module__, kind.__qualname__)
        if not self._follows(kind):
            return
        self.path.append(kind.__qualname__)
        self._feed_all(*kind.__bases__)
        self._feed_named(
            {
                name: value
                for name, value in vars(kind).items()
                if (not (name.startswith("__") and name.endswith("__")) and name != "_abc_impl")
                or isinstance(value, _HOOKS)
            }
        )
        self.path.pop()

    def _feed_class_of(self, value: Any) -> None:
        if self._follows(type(value)):
            self.feed(type(value))

    def _feed_instance(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self._feed_all(*(part for item in value.items() for part in item))
        elif isinstance(value, Set):
            for digest in sorted(map(self._alone, value)):  # a set has no order
                self.text(digest)
        elif isinstance(value, list | tuple):
            self._feed_all(*value)
        elif hasattr(value, "__dict__") or _slots(type(value)):
            state = dict(getattr(value, "__dict__", {}))
            state |= {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
            self._feed_named({str(name): part for name, part in state.items()})
        else:
            self._feed_reduced(value)

    def _alone(self, value: Any) -> str:
        """Return the digest of an element, whatever the elements before it."""
        hasher = _Hasher(self.home)
        hasher.seen, hasher.path = dict(self.seen), list(self.path)
        hasher.feed(value)
        return hasher.digest()

    def _feed_reduced(self, value: Any) -> None:
        """Feed what a value would be pickled as."""
        try:
            reduced = value.__reduce_ex__(2)
        except Exception:  # a type can raise anything
            log.warning(
                "%s: a value of type %s cannot be hashed, so cached results do not depend on it; pass it as"
                " an option, or make it where it is used",
                ".".join(self.path) or "digest",
                type(value).__qualname__,
            )
            return
        if isinstance(reduced, str):
            self.text(reduced)
            return
        self._feed_all(*(list(part) if isinstance(part, Iterator) else part for part in reduced))

    def _feed_tensor(self, tensor: Any) -> None:
        import torch

        dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
        plain = dense.cpu().resolve_conj().resolve_neg().contiguous()
        self._feed_all(str(tensor.dtype), tuple(tensor.shape))
        self.hashed.update(plain.reshape(-1).view(torch.uint8).numpy().data)

    def _feed_array(self, array: Any) -> None:
        self._feed_all(str(array.dtype), tuple(array.shape))
        if array.dtype.hasobject:  # its bytes are addresses
            self.feed(array.tolist())
        else:
            self.hashed.update(array.tobytes())


def _slots(kind: type) -> list[str]:
    """Return the names of the slots of a class and its bases."""
    names: list[str] = []
    for base in kind.__mro__:
        own = vars(base).get("__slots__", ())
        for name in [own] if isinstance(own, str) else own:
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """Return the globals that a function names."""
    codes = [function.__code__]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    scope = function.__globals__
    return {name: scope[name] for name in names & scope.keys() if not name.startswith("__")}


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet, as of a function that refers to itself
        return None
