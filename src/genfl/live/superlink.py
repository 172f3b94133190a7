"""Flower's command for its SuperNodes. This module imports nothing slow."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from genfl.errors import GenflError, on_one_line

CONNECTION = "genfl"
"""The name of the SuperLink in Flower's own config."""


def supernode_command(run: Callable[[Sequence[str]], str], action: str, *arguments: str) -> dict[str, Any]:
    """Return what a command for Flower's SuperNodes prints.

    Args:
        run: Runs a command, and returns what it prints.
        action: ``list`` or ``register``.
        *arguments: What the action needs.

    Raises:
        GenflError: It fails. Flower says so in JSON, with the code 0.
    """
    printed = _json_in(run(["flwr", "supernode", action, *arguments, CONNECTION, "--format", "json"]))
    if not printed.get("success"):
        raise GenflError(f"flwr supernode {action} failed: {on_one_line(printed.get('error-message'), 300)}")
    return printed


def _json_in(text: str) -> dict[str, Any]:
    """Return the JSON object in what a command prints."""
    try:
        result: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except ValueError:
        raise GenflError(f"Flower printed no JSON: {text[:200]!r}") from None
    return result
