"""Advice before a run: a pilot, what it says, and what follows for the run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from genfl import pipeline
from genfl.advisor.evidence import PilotEvidence, gather_evidence
from genfl.advisor.pilot import Plan, baseline, check_config, pilot_config, plan_pilot, reduced
from genfl.advisor.predictor import Forecast, Predictor, predictor_for, training_table
from genfl.config import Config
from genfl.experiment.context import RunContext
from genfl.experiment.folder import PILOT, Run, advice_folder
from genfl.experiment.records import read_record
from genfl.output import check_output, writing_output
from genfl.privacy.ledger import releases
from genfl.report.advice_page import render_advice
from genfl.results.advice import (
    ADVICE_FILE,
    Advice,
    CostAdvice,
    GainDirection,
    Influence,
    LabelAdvice,
    Learned,
    Likely,
    MethodAdvice,
    VolumeAdvice,
)
from genfl.results.names import ALONE, BOTH, FEDGC, GPTFL, SYNTHETIC_ONLY, WITHOUT
from genfl.storage import write_json, write_text

ADVICE_MARKER = ".genfl-advice"
"""The file that marks the folder of an advice."""

ADVICE_PAGE, PROBES = "index.html", "probes"

POINTS = 0.02
"""A gain of this much, or less, makes no difference."""

WEAK_SHARE = 0.3
"""The share of the labels that are called weak: those of the lowest recall in the pilot."""

MOST_INFLUENCES = 8
"""The number of influences that an advice lists."""


def advise_config(
    config: Config,
    run: Path,
    *,
    per_label: int = 20,
    rounds: int | None = None,
    federation: bool = True,
    out: Path | None = None,
) -> tuple[Advice, Path]:
    """Say whether the generator of a run will help, by a pilot and a table of full runs.

    The pilot generates a few samples of each label, trains probes on them, which clients test, and trains a
    few rounds with and without the generator. The run that follows takes over the samples. The same call
    resumes an interrupted advice.

    Args:
        config: The config of the run.
        run: The folder that the run has, or will have.
        per_label: Generated samples of each label.
        rounds: Rounds of each method of the pilot; by default 7 % of the run's, all methods together.
        federation: Whether the pilot trains on clients' data. If not, clients only test probes, and intervals
            are wider.
        out: The folder of the advice; by default that of `advice_folder`.

    Returns:
        The advice, and its page.

    Raises:
        InputError: There can be no advice on the config, or the folder holds something else.
    """
    began = time.perf_counter()
    context = RunContext()
    check_config(config)
    plan = plan_pilot(config, per_label, rounds, federation=federation)
    pilot = pilot_config(context.resolve(config), plan)
    out = advice_folder(run) if out is None else out
    names = [ADVICE_FILE, ADVICE_PAGE, PILOT, PROBES]
    check_output(out, "advice", ADVICE_MARKER, names)
    with writing_output(out, "advice", ADVICE_MARKER, names):
        until = "federate" if federation else "pretrain"
        pipeline.execute(pilot, out / PILOT, until=until, update=True, others=(run,), context=context)
        resolved = pipeline.checked(pilot, context)
        evidence = gather_evidence(resolved, plan, out / PILOT, out / PROBES, context)
        learned = _learned(resolved, federation=federation)
        advice = advice_of(config, plan, evidence, Run(resolved, out / PILOT), learned)
        cost = advice.cost.model_copy(
            update={"pilot_seconds": round(max(time.perf_counter() - began, advice.cost.pilot_seconds), 1)}
        )
        advice = advice.model_copy(update={"cost": cost})
        write_json(out / ADVICE_FILE, advice.to_dict())
        write_text(out / ADVICE_PAGE, render_advice(advice, out / PILOT / "synthetic"))
    return advice, out / ADVICE_PAGE


def advice_of(
    config: Config, plan: Plan, evidence: PilotEvidence, pilot: Run, learned: Sequence[Learned]
) -> Advice:
    """Return the advice that follows from the evidence of a pilot.

    Args:
        config: The config of the run.
        plan: How much the pilot did.
        evidence: Its evidence.
        pilot: Its run.
        learned: What was computed from private data.
    """
    predictor = predictor_for(training_table(), config.data.name, federation=plan.rounds > 0)
    predictions, gains = predictor.predict(evidence), predictor.gains(evidence)
    methods = {
        arm: MethodAdvice(
            accuracy=_likely(predictions[arm]),
            gain=_likely(gain),
            direction=direction_of(gain.value),
            certain=direction_of(gain.low) == direction_of(gain.high),
        )
        for arm, gain in gains.items()
    }
    best = max(methods, key=lambda arm: methods[arm].gain.value)
    # without a federation, a value alone is hardly better than a guess
    helps = methods[best].direction == "helps" and (plan.rounds > 0 or methods[best].certain)
    single = max(methods[GPTFL].gain.value, methods[FEDGC].gain.value)
    # clients need not hold generated samples if a warm start does as much
    server_does = methods[GPTFL].gain.value >= methods[FEDGC].gain.value - POINTS / 2
    return Advice(
        run=config.name,
        data=config.data.name,
        generator=config.generator.kind,
        baseline=baseline(config)[0],
        per_label=plan.per_label,
        planned_per_label=plan.planned_per_label,
        rounds=plan.rounds,
        planned_rounds=plan.planned_rounds,
        without=_likely(predictions[WITHOUT]),
        alone=_likely(predictions[ALONE]),
        methods=methods,
        best=best if helps else None,
        adds=helps and methods[BOTH].gain.value > single + POINTS,
        where=("server" if server_does else "clients") if helps else None,
        labels=_labels(evidence, pilot),
        volumes=_volumes(predictor, evidence),
        cost=_cost(config, plan, pilot),
        curves=evidence.curves,
        probes=[(probe.per_label, probe.accuracy) for probe in evidence.probes],
        influences=_influences(predictions),
        learned=list(learned),
        left_out=reduced(config),
        table_runs=predictor.rows,
        table_data=predictor.data,
        evidence=json.loads(json.dumps(evidence.to_dict())),
    )


def direction_of(gain: float) -> GainDirection:
    """Return the direction of a gain in accuracy, in [−1, 1]."""
    if abs(gain) <= POINTS:
        return "makes no difference"
    return "helps" if gain > 0 else "hurts"


def _likely(prediction: Forecast) -> Likely:
    value, low, high = (round(float(x), 4) for x in (prediction.value, prediction.low, prediction.high))
    return Likely(value=value, low=low, high=high)


def weak_labels(evidence: PilotEvidence) -> list[str]:
    """Return the labels that the generator shows worst, by the recall of the last two probes."""
    probes = evidence.probes[-2:]
    recalls = {}
    for number, label in enumerate(evidence.labels):
        known = [recall for probe in probes if (recall := probe.recall[number]) is not None]
        if known:
            recalls[label] = sum(known) / len(known)
    count = max(round(WEAK_SHARE * len(recalls)), 1)
    return sorted(recalls, key=lambda label: recalls[label])[:count]


def _labels(evidence: PilotEvidence, pilot: Run) -> list[LabelAdvice]:
    figures, weak = pilot.result("generate")["labels"], weak_labels(evidence)
    return [
        LabelAdvice(
            label=label,
            samples=figures[label]["samples"],
            near_duplicates=figures[label]["near_duplicates"],
            recall=evidence.probes[-1].recall[number],
            distance=evidence.distances[number],
            weak=label in weak,
        )
        for number, label in enumerate(evidence.labels)
    ]


def _volumes(predictor: Predictor, evidence: PilotEvidence) -> list[VolumeAdvice]:
    planned = evidence.plan.planned_per_label
    volumes = []
    for per_label in (planned // 2, planned, 2 * planned):
        if per_label < evidence.plan.per_label:
            continue
        at = evidence.with_volume(per_label)
        volumes.append(VolumeAdvice(per_label=per_label, alone=_likely(predictor.predict(at)[ALONE])))
    return volumes


def _influences(predictions: Mapping[str, Forecast]) -> list[Influence]:
    moved = [
        Influence(target=target, number=number, points=round(100 * value, 1))
        for target, prediction in predictions.items()
        for number, value in prediction.moved.items()
    ]
    return sorted(moved, key=lambda one: -abs(one.points))[:MOST_INFLUENCES]


def _cost(config: Config, plan: Plan, pilot: Run) -> CostAdvice:
    generated = pilot.result("generate")
    names = ("labels", "prompts", "generate", "vocabulary", "pretrain", "federate")
    records = {name: record for name in names if (record := read_record(pilot.record(name)))}
    federate = records.get("federate") if plan.rounds else None
    training = per_client = None
    if federate:
        rounds = {
            name: trials for name, trials in federate["result"]["methods"].items() if name != SYNTHETIC_ONLY
        }
        ran = sum(len(trial["rounds"]) for trials in rounds.values() for trial in trials.values())
        methods = sum(method.reference is None for method in config.methods.values())
        training = federate["seconds"] / max(ran, 1) * plan.planned_rounds * methods * len(config.seeds)
        sent = [
            row["uplink_bytes"] + row["downlink_bytes"]
            for trial in rounds[WITHOUT].values()
            for row in trial["rounds"]
        ]
        per_client = sum(sent) / len(sent) / config.federate.clients_per_round
    joules = [record["cost"]["joules"] for record in records.values()]
    return CostAdvice(
        pilot_seconds=round(sum(record["seconds"] for record in records.values()), 1),
        generation_seconds=round(generated["seconds"] * plan.planned_per_label / plan.per_label, 1),
        training_seconds=None if training is None else round(training, 1),
        bytes_per_client=per_client,
        joules=None if None in joules else round(sum(joules), 1),
    )


def _learned(pilot: Config, *, federation: bool) -> list[Learned]:
    """Return what is computed from private data: that of the pilot, and the sums of the probes."""
    stages = {"labels", "prompts", "generate", "guided", "audit", "vocabulary", "pretrain"}
    rows = [row for row in releases(pilot) if row.outside and (federation or row.stage in stages)]
    secure = "secure_sum" if pilot.federate.secure else "exact"
    sums = (
        (
            "for each label, how many examples clients hold, and how many each probe gets right",
            "the clients' examples",
        ),
        (
            "for each label, sums of a probe's features along 16 directions, and of their products",
            "the clients' examples",
        ),
    )
    return [
        *(
            Learned(what=row.what, source=row.source, recipient=row.recipient, mechanism=row.mechanism)
            for row in rows
        ),
        *(Learned(what=what, source=source, recipient="sum", mechanism=secure) for what, source in sums),
    ]
