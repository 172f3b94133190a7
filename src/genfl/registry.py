"""Registries: the entries that a config can name, and those that users and plugins add."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from importlib.metadata import entry_points
from typing import Any, Generic, Literal, TypeVar

from genfl.errors import InputError

log = logging.getLogger(__name__)

Entry = TypeVar("Entry")

What = Literal["algorithm", "model", "data set", "generator"]

GROUP = "genfl.plugins"
"""The group of entry points whose modules register entries when they are imported."""

_added: dict[What, dict[str, Any]] = {"algorithm": {}, "model": {}, "data set": {}, "generator": {}}
_plugins_loaded = False


class Registry(MutableMapping[str, Entry], Generic[Entry]):
    """A mapping of names to entries: the built-in ones, then those that users added.

    Plugins are imported when a registry is first read.

    Args:
        what: The kind of entry.
        builtin: The entries that come with genfl.
        reserved: Names with another meaning in configs.
    """

    def __init__(self, what: What, builtin: Mapping[str, Entry], reserved: Collection[str] = ()) -> None:
        self.what = what
        self.reserved = frozenset(reserved)
        self.builtin = dict(builtin)

    def __getitem__(self, name: str) -> Entry:
        entries = self._entries()
        return entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def __setitem__(self, name: str, entry: Entry) -> None:
        _added[self.what][name] = entry

    def __delitem__(self, name: str) -> None:
        del _added[self.what][name]

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

    def register(self, name: str, entry: Entry) -> None:
        """Add a user's entry; an earlier one of the user's with this name is replaced.

        Args:
            name: The name in configs.
            entry: The entry.

        Raises:
            InputError: See `check_name`.
        """
        self.check_name(name)
        self[name] = entry

    def _entries(self) -> dict[str, Entry]:
        return {**self.builtin, **added(self.what)}


def added(what: What) -> Mapping[str, Any]:
    """Return the entries that users and plugins added to a registry, by name."""
    load_plugins()
    return _added[what]


def load_plugins() -> None:
    """Import the plugins that are installed, once in a process.

    A plugin is an entry point of the group ``genfl.plugins``. One that cannot be imported is named in a
    warning, and the others are imported all the same.
    """
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True  # before the imports: plugins read registries, too
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # a plugin can raise anything
            log.warning(
                "plugin %s: %s cannot be imported (%s: %s), and nothing of it is registered; fix or uninstall"
                " it",
                point.name,
                point.value,
                type(error).__name__,
                error,
            )
