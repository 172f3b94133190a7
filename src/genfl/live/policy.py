"""What a client allows. A server that asks for more is refused by the client."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from genfl.config import Config
from genfl.config.mistakes import explain
from genfl.config.section import Section
from genfl.engines.flower.wire import RefusedMessage
from genfl.errors import InputError


class ClientPolicy(Section):
    """The limits of a client, from a YAML file on its own disk."""

    algorithms: list[str] | None = Field(
        None, description="The algorithms that may train on the data. If not set, all of them."
    )
    min_cohort: int = Field(1, ge=1, description="The fewest clients in the cohort of a round.")
    max_rounds: int | None = Field(None, ge=1, description="The most rounds of a federation.")

    def check(self, config: Config, method: str | None) -> None:
        """Check that a server asks for nothing that the client does not allow.

        Args:
            config: The server's config.
            method: The method of a round; None before training.

        Raises:
            RefusedMessage: It asks for more.
        """
        if (cohort := config.federate.clients_per_round) < self.min_cohort:
            raise RefusedMessage(
                f"federate.clients_per_round: {cohort}, but this client allows cohorts of"
                f" {self.min_cohort} or more"
            )
        if self.max_rounds is not None and config.federate.rounds > self.max_rounds:
            raise RefusedMessage(
                f"federate.rounds: {config.federate.rounds}, but this client allows {self.max_rounds}"
            )
        names = [method] if method in config.methods else list(config.methods)
        for name in names:
            for part in config.methods[name].algorithm:
                if self.algorithms is not None and part.name not in self.algorithms:
                    raise RefusedMessage(
                        f"methods.{name}.algorithm: {part.name}, but this client allows"
                        f" {', '.join(self.algorithms)}"
                    )


def read_policy(path: Path | None) -> ClientPolicy:
    """Return the policy of a file; one that allows everything if there is no file.

    Raises:
        InputError: It cannot be read, or has mistakes.
    """
    if path is None:
        return ClientPolicy()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return ClientPolicy.model_validate(content or {})
    except OSError as error:
        raise InputError(f"--policy: {path} cannot be read ({error.strerror}); name another file") from error
    except yaml.YAMLError:
        raise InputError(f"--policy: {path} is no YAML; correct it") from None
    except ValidationError as error:
        lines = explain(error).splitlines()
        raise InputError("\n".join(f"{path}: {line}" for line in lines)) from error
