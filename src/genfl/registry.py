"""Registries: the entries that a config can name, and those that users and plugins add."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from importlib.metadata import entry_points
from typing import Any, Generic, Literal, TypeVar

from genfl.errors import InputError

log = logging.getLogger(__name__)

Entry = TypeVar("Entry")

What = Literal["algorithm", "model", "data set", "generator"]

GROUP = "genfl.plugins"
"""The group of entry points whose modules register entries when they are imported."""


class Registry(MutableMapping[str, Entry], Generic[Entry]):
    """A mapping of names to entries: the built-in ones, then those that users added.

    Plugins are imported before a registry is first read or changed, so that a user's entry replaces a
    plugin's. Threads may share a registry.

    Args:
        what: The kind of entry.
        builtin: The entries that come with genfl.
        reserved: Names with another meaning in configs.
    """

    def __init__(self, what: What, builtin: Mapping[str, Entry], reserved: Collection[str] = ()) -> None:
        self.what = what
        self.reserved = frozenset(reserved)
        self.builtin = dict(builtin)
        self._added: dict[str, Entry] = {}
        _PLUGINS.registries.add(self)
        _PLUGINS.main.setdefault(what, self)

    def __getitem__(self, name: str) -> Entry:
        return self._entries()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def __hash__(self) -> int:
        return id(self)

    def __setitem__(self, name: str, entry: Entry) -> None:
        """Add a user's entry; an earlier one of the user's with this name is replaced.

        Args:
            name: The name in configs.
            entry: The entry.

        Raises:
            InputError: See `check_name`.
        """
        self.check_name(name)
        _PLUGINS.load()
        with _PLUGINS.lock:
            self._added[name] = entry

    def __delitem__(self, name: str) -> None:
        _PLUGINS.load()
        with _PLUGINS.lock:
            del self._added[name]

    def check_name(self, name: str) -> None:
        """Reject a name that users cannot give to an entry.

        Args:
            name: The name in configs.

        Raises:
            InputError: It is empty, or that of a built-in entry.
        """
        if not name or not isinstance(name, str):
            raise InputError(f"register: {name!r} is no name for a {self.what}; give a text, as in 'mine'")
        if name in self.builtin or name in self.reserved:
            raise InputError(f"register: the {self.what} {name!r} is built in; choose another name")

    def added(self) -> dict[str, Entry]:
        """Return the entries that users and plugins added, by name."""
        _PLUGINS.load()
        with _PLUGINS.lock:
            return dict(self._added)

    def restore(self, added: Mapping[str, Entry]) -> None:
        """Put back the entries that `added` returned before.

        Args:
            added: The entries.
        """
        with _PLUGINS.lock:
            self._added = dict(added)

    def _entries(self) -> dict[str, Entry]:
        return {**self.builtin, **self.added()}


class _Plugins:
    """The plugins that are installed: entry points of the group ``genfl.plugins``."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.registries: weakref.WeakSet[Registry[Any]] = weakref.WeakSet()
        self.main: dict[What, Registry[Any]] = {}
        self._state: Literal["new", "loading", "loaded"] = "new"

    def load(self) -> None:
        """Import the plugins, once in a process; other threads wait.

        A plugin that raises is named in a warning and registers nothing. The others are imported all the
        same.
        """
        if self._state == "loaded":
            return
        with self.lock:
            if self._state != "new":  # plugins read and change registries, too
                return
            self._state = "loading"
            try:
                for point in entry_points(group=GROUP):
                    self._load(point)
            finally:
                self._state = "loaded"

    def _load(self, point: Any) -> None:
        before = {registry: dict(registry._added) for registry in self.registries}
        try:
            point.load()
        except Exception as error:  # a plugin can raise anything
            for registry in self.registries:
                registry.restore(before.get(registry, {}))
            log.warning(
                "plugin %s: %s cannot be imported (%s: %s), and nothing of it is registered; fix or uninstall"
                " it",
                point.name,
                point.value,
                type(error).__name__,
                error,
            )


_PLUGINS = _Plugins()


def added(what: What) -> dict[str, Any]:
    """Return what users and plugins added to genfl's own registry of a kind, without importing that registry.

    Args:
        what: The kind of entry.
    """
    _PLUGINS.load()
    registry = _PLUGINS.main.get(what)  # where it is not imported, nothing was added
    return registry.added() if registry is not None else {}
