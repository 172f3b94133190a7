"""The pilot: a small run of a config, whose figures an advice rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from genfl.config import Config, Content, Method
from genfl.config.names import FLOWER, FLOWER_IN_PROCESS
from genfl.config.reading import validate
from genfl.errors import InputError
from genfl.results.names import ARMS, BOTH, FEDGC, GPTFL, WITHOUT

PILOT_SHARE = 0.07
"""The share of a run's rounds that a pilot takes, all its methods together."""

FEWEST_ROUNDS = 3
"""The fewest rounds of a pilot, even if these are more than its share."""

EVALUATIONS = 6
"""About the number of evaluations of each method of a pilot."""


class Plan(NamedTuple):
    """How much a pilot generates and trains, and what the run would.

    Attributes:
        per_label: Generated samples of each label.
        planned_per_label: Those of the run.
        rounds: Rounds of each method; 0 for no federation.
        planned_rounds: Those of the run.
    """

    per_label: int
    planned_per_label: int
    rounds: int
    planned_rounds: int


def plan_pilot(
    config: Config, per_label: int = 20, rounds: int | None = None, *, federation: bool = True
) -> Plan:
    """Return how much the pilot of a config does.

    Args:
        config: The config of the run.
        per_label: Generated samples of each label. The run's number bounds it.
        rounds: Rounds of each method. By default, all methods of the pilot together take `PILOT_SHARE` of the
            run's rounds. The run's number bounds it.
        federation: Whether the pilot trains on clients' data.

    Raises:
        InputError: A number is not positive.
    """
    if per_label < 4:
        raise InputError(f"--per-label: {per_label}, but a curve needs 4 samples of each label; raise it")
    if rounds is not None and rounds < 1:
        raise InputError(f"--rounds: {rounds}; give a positive number, or use --no-federation")
    planned = config.federate.rounds
    if rounds is None:
        methods = sum(method.reference is None for method in config.methods.values())
        rounds = max(int(PILOT_SHARE * len(config.seeds) * methods * planned / len(ARMS)), FEWEST_ROUNDS)
    return Plan(
        min(per_label, config.prompts.per_label),
        config.prompts.per_label,
        min(rounds, planned) if federation else 0,
        planned,
    )


def check_config(config: Config) -> None:
    """Check that there can be an advice on a config.

    Raises:
        InputError: It has no generator, or protects what an advice would have to ask for.
    """
    if not config.generates:
        raise InputError("generator: none, so there is nothing to advise on; name a generator")
    if config.privacy is not None:
        raise InputError(
            "privacy: an advice asks clients for sums without noise, and trains on their data, which epsilon"
            " would not count; leave privacy out to advise on the run without it"
        )


def baseline(config: Config) -> tuple[str | None, Method]:
    """Return the federated method of a config that the pilot varies, and its name.

    It is the first one without the generator. If there is none, it is the first one, without its use of the
    generator and with no name.

    Args:
        config: The config of the run.

    Raises:
        InputError: It has no federated method.
    """
    federated = {name: method for name, method in config.methods.items() if method.reference is None}
    for name, method in federated.items():
        if method.needs_auxiliary is None:
            return name, method
    for method in federated.values():
        if not method.asks_for:
            return None, method.model_copy(update={"start": "random", "data": "private", "content": None})
    raise InputError(
        "methods: none of them trains on private data alone, so the gain of a generator is not defined; add"
        " one, as in fedavg: {algorithm: fedavg}"
    )


def pilot_config(config: Config, plan: Plan) -> Config:
    """Return the config of the pilot.

    It has one seed, fewer samples and rounds, and a method for each use of the generator. All else is as in
    the run.

    Args:
        config: The resolved config of the run.
        plan: How much the pilot does.

    Raises:
        InputError: There can be no advice on it.
    """
    check_config(config)
    _, base = baseline(config)
    content = config.model_dump(mode="json", exclude={"track", "methods", "content", "report", "public"})
    method = base.model_dump(mode="json", exclude={"content", "data", "start", "source"})
    shared = _content(config, plan)
    arms: Mapping[str, dict[str, Any]] = {
        WITHOUT: {"start": base.start},
        GPTFL: {"start": "pretrained"},
        FEDGC: {"start": base.start, "data": "mixed", "content": shared},
        BOTH: {"start": "pretrained", "data": "mixed", "content": shared},
    }
    content["methods"] = {name: method | arm for name, arm in arms.items()}
    content["seeds"] = content["seeds"][:1]
    content["prompts"]["per_label"] = plan.per_label
    content["audit"]["overlap"] = "ignore"
    rounds = max(plan.rounds, 1)
    content["federate"] |= {
        "rounds": rounds,
        "evaluate_every": max(rounds // EVALUATIONS, 1),
        "checkpoint_every": max(rounds // 2, 1),
        "keep_every": None,
        "heterogeneity": False,
    }
    if content["federate"]["engine"] in (FLOWER, FLOWER_IN_PROCESS):
        content["federate"]["engine"] = "auto"
    return validate(content)


def _content(config: Config, plan: Plan) -> dict[str, Any]:
    """Return the generated content of clients: that of the run, smaller as there are fewer samples."""
    chosen = next(
        (
            method.content
            for method in config.methods.values()
            if method.reference is None and method.source == "generated" and method.content
        ),
        config.content,
    )
    share = plan.per_label / plan.planned_per_label
    kept = chosen.model_dump(mode="json", include={"budget", "clients", "by", "weight"})
    for name in ("samples", "per_client"):
        if (number := getattr(chosen, name)) is not None:
            kept[name] = max(round(number * share), 1)
    content: dict[str, Any] = Content.model_validate(kept).model_dump(mode="json")
    return content


def reduced(config: Config) -> list[str]:
    """Return what of a run its pilot leaves out, in words."""
    left_out = []
    if any(method.content and method.content.guidance != "prompt" for method in config.methods.values()):
        left_out.append("samples that clients' own examples guide")
    if any(method.content and method.content.filter for method in config.methods.values()):
        left_out.append("the filter of generated samples")
    if config.audit.drops:
        left_out.append("near-duplicates of test examples are not dropped")
    return left_out
