"""Series of figures: the rounds of a trial, and the epochs of a pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Row = Mapping[str, Any]
"""The figures of a round or an epoch, with its number as ``round`` or ``epoch``."""

Kind = Literal["round", "epoch"]

Ending = Literal["finished", "failed", "killed"]
"""How a run ends: it did what was asked, an error stopped it, or somebody did."""

NAMED_BY: dict[Kind, str] = {"round": "method", "epoch": "source"}
"""What the name of a series stands for."""

STAGE_OF: dict[Kind, str] = {"round": "federate", "epoch": "pretrain"}
"""The stage that a kind of series comes from."""


class Series(NamedTuple):
    """What the rows of one training belong to.

    Attributes:
        kind: ``round`` or ``epoch``.
        name: The method, or the source of the data of a pre-training.
        seed: The seed.
    """

    kind: Kind
    name: str
    seed: int

    @property
    def about(self) -> dict[str, Any]:
        """What a line of ``metrics.jsonl`` says of it."""
        return {"event": self.kind, NAMED_BY[self.kind]: self.name, "seed": self.seed}

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Series | None:
        """Return the series of a line of ``metrics.jsonl``; None for the line of a stage.

        Args:
            event: The values of the line.

        Raises:
            LookupError: It lacks a name or a seed.
            ValueError: It tells another event.
        """
        for kind, named in NAMED_BY.items():
            if event["event"] == kind:
                return cls(kind, event[named], event["seed"])
        if event["event"] != "stage":
            raise ValueError(f"{event['event']!r} is no event")
        return None
