"""What a client allows. A server that asks for more is refused by the client."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from genfl.config import Config, Data
from genfl.config.mistakes import explain
from genfl.config.section import Section
from genfl.data.texts import HASHED_TOKENIZER
from genfl.engines.flower.records import RefusedMessage
from genfl.errors import InputError, on_one_line
from genfl.privacy.secure_sum import SumParameters
from genfl.privacy.sum_settings import least_clients


class ClientPolicy(Section):
    """The limits of a client, from a YAML file on its own disk."""

    algorithms: list[str] | None = Field(
        None, description="The algorithms that may train on the data. If not set, all of them."
    )
    min_cohort: int = Field(1, ge=1, description="The fewest clients in the cohort of a round.")
    max_rounds: int | None = Field(None, ge=1, description="The most rounds of a federation.")
    secure: bool = Field(
        False, description="Whether uploads leave this client in secure sums alone, and never in the clear."
    )
    min_holders: int = Field(
        1, ge=1, description="The fewest clients that must hold a label name before the server learns it."
    )
    tokenizers: list[str] = Field(
        [],
        description="The tokenizers that a server may name, besides hashed: files at this client, or Hugging"
        " Face ids.",
    )

    def check(self, config: Config, method: str | None, round_number: int = 1) -> None:
        """Check that a server asks for nothing that the client does not allow.

        Args:
            config: The server's config.
            method: The method of a round; None before training.
            round_number: The round, from 1.

        Raises:
            RefusedMessage: It asks for more.
        """
        if self.secure and not config.federate.secure:
            raise RefusedMessage("federate.secure: false, but this client sends uploads in secure sums alone")
        if (holders := config.labels.min_holders) < self.min_holders:
            raise RefusedMessage(
                f"labels.min_holders: {holders}, but this client allows {self.min_holders} or more"
            )
        if (cohort := config.federate.clients_per_round) < self.min_cohort:
            raise RefusedMessage(
                f"federate.clients_per_round: {cohort}, but this client allows cohorts of"
                f" {self.min_cohort} or more"
            )
        if self.max_rounds is not None and config.federate.rounds > self.max_rounds:
            raise RefusedMessage(
                f"federate.rounds: {config.federate.rounds}, but this client allows {self.max_rounds}"
            )
        if round_number > config.federate.rounds:
            raise RefusedMessage(
                f"federate.rounds: {config.federate.rounds}, but the server asks for round {round_number}"
            )
        names = [method] if method in config.methods else list(config.methods)
        for name in names:
            for part in config.methods[name].algorithm:
                if self.algorithms is not None and part.name not in self.algorithms:
                    raise RefusedMessage(
                        f"methods.{name}.algorithm: {part.name}, but this client allows"
                        f" {', '.join(self.algorithms)}"
                    )

    def check_sum(self, config: Config, parameters: SumParameters) -> None:
        """Check the parameters of a secure sum, before anything private is in it.

        Args:
            config: The server's config.
            parameters: The parameters, which are safe by themselves.

        Raises:
            RefusedMessage: A sum of too few clients could be opened.
        """
        secure, cohort = config.federate.secure, config.federate.clients_per_round
        assert secure is not None  # else there is no sum
        least = max(self.min_cohort, least_clients(secure, cohort))
        if parameters.threshold < least:
            raise RefusedMessage(
                f"secure sum: one of {parameters.threshold} clients could be opened, but this client allows"
                f" {least} or more"
            )

    def check_tokenizer(self, data: Data) -> None:
        """Check the tokenizer that a server names, before anything is opened or downloaded for it.

        Args:
            data: The section of the server's config.

        Raises:
            RefusedMessage: The client does not allow it.
        """
        name = data.tokenizer or HASHED_TOKENIZER
        if name not in (HASHED_TOKENIZER, *self.tokenizers):
            raise RefusedMessage(
                f"data.tokenizer: {on_one_line(name, 80)!r}, but this client allows"
                f" {', '.join((HASHED_TOKENIZER, *self.tokenizers))}"
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
