"""Federations over Flower: the same algorithms, with clients behind Flower's messages.

Only this folder imports flwr, which is an optional dependency.
"""

from __future__ import annotations

import importlib.util

from genfl.errors import InputError


def check_flower(field: str) -> None:
    """Check that Flower is installed, without importing it.

    Args:
        field: What the message names: a config field or a command.

    Raises:
        InputError: It is not installed.
    """
    if importlib.util.find_spec("flwr") is None:
        raise InputError(f"{field}: Flower is not installed; run: pip install 'genfl[flower]'")
