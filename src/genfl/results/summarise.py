"""Compute the figures of a run from the records of its stages."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

import genfl
from genfl.config import Config, Method
from genfl.data.sources import DataSet
from genfl.data.wire import sample_bytes
from genfl.experiment.context import RunContext
from genfl.experiment.folder import AUDIT, Run
from genfl.generators.registry import GENERATORS
from genfl.metering import add_costs
from genfl.privacy.ledger import Noise, ledger, noise_in
from genfl.privacy.sum_settings import fixed_point, least_clients
from genfl.results.names import SYNTHETIC_ONLY
from genfl.results.schema import (
    SCHEMA,
    AuditResult,
    ClientsTested,
    CostAccount,
    CurvePoint,
    Environment,
    EqualBytes,
    ExtraCost,
    Figure,
    GenerateResult,
    GuidedResult,
    Heterogeneity,
    LabelsResult,
    MethodResult,
    PointCost,
    PrivacyResult,
    Similarity,
    StageRecord,
    StageTime,
    Summary,
    SumNumbers,
    TargetResult,
    VocabularyResult,
    WorkCost,
    baseline_of,
)

LAST_EVALUATIONS = 5
"""A method's accuracy is the mean of this many last evaluations, never its best one."""


def summarise(run: Run, context: RunContext, skipped: Mapping[str, bool]) -> Summary:
    """Return the figures of a run.

    Args:
        run: A run whose stages before the report are done.
        context: The data sets of the run.
        skipped: For each stage of the run, whether it was up to date and did not run.
    """
    config = run.config
    data = context.data_set(config.data)
    records = {name: StageRecord.read(run.record(name)) for name in skipped}
    results = {name: record.result for name, record in records.items()}
    environment = records["federate"].environment
    assert environment is not None, "the record of a finished stage has one"
    synthetic, guided, vocabulary = (results.get(name) for name in ("generate", "guided", "vocabulary"))
    methods = method_results(config, results, data)
    audit = results.get(AUDIT)
    return Summary(
        schema_version=SCHEMA,
        name=config.name,
        seeds=list(config.seeds),
        labels=LabelsResult.model_validate(results["labels"]),
        test_samples=len(context.test_rows(config.data, results["labels"]["found"])[0]),
        test_digest=context.test_digest(config.data),
        generator=config.generator.kind,
        generated=config.generates and GENERATORS[config.generator.kind].prompted,
        synthetic=GenerateResult.model_validate(synthetic) if synthetic else None,
        guided=GuidedResult.model_validate(guided) if guided else None,
        vocabulary=VocabularyResult.model_validate(vocabulary) if vocabulary else None,
        audit=AuditResult.model_validate(audit) if audit else None,
        methods=methods,
        compare=tuple(config.report.compare) if config.report.compare else None,
        target_accuracy=config.report.target_accuracy[0],
        targets=config.report.target_accuracy,
        byte_budget=byte_budget(config, methods),
        cost=cost_account(records, methods),
        privacy=ledger_result(config, results["federate"]["methods"]),
        secure_sums=_sum_numbers(config),
        stages={
            name: StageTime(seconds=records[name].seconds, skipped=was_skipped, cost=records[name].cost)
            for name, was_skipped in skipped.items()
        },
        environment=environment,
    )


def _sum_numbers(config: Config) -> SumNumbers | None:
    """Return how secure sums carry the uploads of a cohort; None without them."""
    secure, cohort = config.federate.secure, config.federate.clients_per_round
    if secure is None:
        return None
    numbers = fixed_point(secure, cohort)
    return SumNumbers(
        clients=cohort,
        threshold=least_clients(secure, cohort),
        limit=secure.limit,
        bits=numbers.bits,
        step=numbers.step,
        error=numbers.error_bound(cohort),
    )


def ledger_result(config: Config, methods: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> PrivacyResult:
    """Return the ledger of a run that has trained, as in ``privacy.json``.

    Args:
        config: The config.
        methods: The result of each trial, by its method and seed.
    """
    return PrivacyResult.of(ledger(config, noise_of(methods)))


def noise_of(methods: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Noise]:
    """Return the noise of each method that was trained with some: that of the seed with the largest ε.

    Args:
        methods: The result of each trial, by its method and seed.
    """
    reported = {
        name: [noise for trial in trials.values() if (noise := noise_in(trial.get("privacy")))]
        for name, trials in methods.items()
    }
    return {name: max(noise, key=lambda one: one.epsilon) for name, noise in reported.items() if noise}


def method_results(
    config: Config, results: Mapping[str, Mapping[str, Any]], data: DataSet
) -> dict[str, MethodResult]:
    """Return the figures of each method over the seeds, references last.

    Args:
        config: The resolved config.
        results: The result of each stage of the run, by its name.
        data: The private data, whose format generated samples are sent in.
    """
    clients = config.data.partition.clients
    # Methods that need the label names outside of the clients pay for label discovery once, before any round.
    discovery_bytes = results["labels"]["bytes_per_client"] * clients
    methods: dict[str, Method | None] = {SYNTHETIC_ONLY: None} if config.generates else {}
    methods |= {name: method for name, method in config.methods.items() if method.reference is None}
    methods |= {name: method for name, method in config.methods.items() if method.reference is not None}
    recorded = results["federate"]["methods"]
    all_traces = {name: [recorded[name][str(seed)] for seed in config.seeds] for name in methods}
    alone = _accuracies(all_traces[SYNTHETIC_ONLY])[:, -1] if config.generates else None
    audit = results.get(AUDIT)
    figures: dict[str, MethodResult] = {}
    for name, method in methods.items():
        traces = all_traces[name]
        generated_samples = fmean(trace.get("content", 0) for trace in traces)
        description = _description(config, method)
        matched = method is not None and method.needs_public and method.needs_labels
        setup_bytes = discovery_bytes if description["uses_generator"] or matched else 0
        if method and config.generates:
            pool = results["generate"]["samples"] - (audit["dropped"] if audit else 0)
            classes = len(results["labels"]["found"])
            setup_bytes += round(bytes_to_clients(method, clients, generated_samples, pool, data, classes))
        figures[name] = MethodResult(
            **description,
            generated_samples=generated_samples,
            **_figures(traces, config.report.target_accuracy, setup_bytes),
            total_bytes=0 if description["reference"] else int(_bytes_after(traces, setup_bytes)[-1]),
            **_uploads(config, method, traces),
            delta=_delta(method, traces, alone),
            heterogeneity=_heterogeneity(traces, config.federate.extractor),
        )
    budget = byte_budget(config, figures)
    trained = {name: _samples(traces) for name, traces in all_traces.items()}
    return {
        name: figure.model_copy(
            update={
                "equal_bytes": _equal_bytes(all_traces[name], figure, budget),
                "extra_cost": _extra_cost(name, figures, trained),
            }
        )
        for name, figure in figures.items()
    }


def cost_account(records: Mapping[str, StageRecord], methods: Mapping[str, MethodResult]) -> CostAccount:
    """Return what a run cost, generation and training apart.

    Args:
        records: The record of each stage.
        methods: The figures of each method.
    """
    generation = _cost_of(records, ("prompts", "generate", "guided", "vocabulary"))
    cost = records["federate"].cost
    per_point = {}
    for name in methods:
        baseline = baseline_of(name, methods)
        if baseline is None or generation is None:
            continue
        points = 100 * (methods[name].accuracy.mean - methods[baseline].accuracy.mean)
        if points > 0:
            per_point[name] = PointCost(
                baseline=baseline,
                points=points,
                generation_seconds=generation.seconds / points,
                generation_joules=None if generation.joules is None else generation.joules / points,
            )
    return CostAccount(
        generation=generation,
        training=_cost_of(records, (AUDIT, "pretrain", "federate")),
        inference=cost.inference if cost else None,
        per_point=per_point,
    )


def _cost_of(records: Mapping[str, StageRecord], stages: Sequence[str]) -> WorkCost | None:
    """Return the cost of some stages together; None if none of them ran, or not all of it is known."""
    costs = [records[name].cost for name in stages if name in records]
    known = [cost for cost in costs if cost is not None and cost.complete]
    if not costs or len(known) < len(costs):
        return None
    total = add_costs([cost.model_dump() for cost in known])
    del total["complete"]  # all of them are
    return WorkCost(**total)


def byte_budget(config: Config, methods: Mapping[str, MethodResult]) -> int | None:
    """Return the bytes at which methods are compared; None if no federated method sends anything.

    Args:
        config: The resolved config.
        methods: The figures of each method.
    """
    if config.report.byte_budget is not None:
        return config.report.byte_budget
    least = min(method.total_bytes for method in methods.values() if not method.reference)
    return least or None


def _accuracies(traces: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the accuracy of a method at each evaluation, float [seeds, evaluations]."""
    return np.array([[e["accuracy"] for e in trace["evaluations"]] for trace in traces])


def _samples(traces: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the samples that a method's clients train on, mean over the seeds; None if not recorded."""
    counts = [[row.get("samples") for row in trace["rounds"]] for trace in traces]
    if any(count is None for row in counts for count in row):  # rounds of earlier versions
        return None
    return fmean(sum(row) for row in counts)


def _equal_bytes(
    traces: Sequence[Mapping[str, Any]], figures: MethodResult, budget: int | None
) -> EqualBytes | None:
    """Return what a method reaches within a number of bytes; None for references and if setup needs more."""
    if budget is None or figures.reference or figures.setup_bytes > budget:
        return None
    spent = _bytes_after(traces, figures.setup_bytes)
    rounds = [evaluation["round"] for evaluation in traces[0]["evaluations"]]
    within = [number for number in rounds if spent[number] <= budget]
    counted = within[1:] or within  # the evaluation before the first round counts only if there is no other
    first, last = len(within) - len(counted[-LAST_EVALUATIONS:]), len(within)
    accuracy = _accuracies(traces)[:, first:last].mean(1)
    return EqualBytes(rounds=within[-1], bytes=int(spent[within[-1]]), accuracy=_over_seeds(accuracy))


def _bytes_after(traces: Sequence[Mapping[str, Any]], setup_bytes: int) -> np.ndarray:
    """Return the bytes that cohorts have sent and received after each round, with setup; [rounds + 1]."""
    rows = [[row["uplink_bytes"] + row["downlink_bytes"] for row in trace["rounds"]] for trace in traces]
    return setup_bytes + np.concatenate([[0.0], np.array(rows, dtype=float).cumsum(1).mean(0)])


def _extra_cost(
    name: str, methods: Mapping[str, MethodResult], trained: Mapping[str, float | None]
) -> ExtraCost | None:
    """Return the cost of a method beyond its baseline's; None without a baseline."""
    baseline = baseline_of(name, methods)
    if baseline is None:
        return None
    return ExtraCost(
        baseline=baseline,
        bytes=_beyond(methods[name].total_bytes, methods[baseline].total_bytes),
        samples=_beyond(trained[name], trained[baseline]),
    )


def _beyond(cost: float | None, baseline: float | None) -> float | None:
    """Return by which share of the baseline's a cost is higher; None if either is missing or that is 0."""
    return cost / baseline - 1 if cost is not None and baseline else None


def _delta(
    method: Method | None, traces: Sequence[Mapping[str, Any]], alone: np.ndarray | None
) -> Figure | None:
    """Return the Δ-metric: a warm-started method's accuracy minus that of its start, for each seed.

    Args:
        method: A method; None for the pre-trained model itself.
        traces: Its trace for each seed.
        alone: The accuracy of each seed's model trained on generated data alone, float [seeds].

    Source: GPT-FL (arXiv 2306.02210), Table 4.
    """
    if method is None or (method.start, method.source) != ("pretrained", "generated") or alone is None:
        return None
    return _over_seeds(_accuracies(traces)[:, -_last_evaluations(traces) :].mean(1) - alone)


def _last_evaluations(traces: Sequence[Mapping[str, Any]]) -> int:
    """Return how many last evaluations count; that before the first round only if there is no other."""
    return min(LAST_EVALUATIONS, max(1, len(traces[0]["evaluations"]) - 1))


def bytes_to_clients(
    method: Method, clients: int, generated_samples: float, pool: int, data: DataSet, classes: int
) -> float:
    """Return the bytes of synthetic data that the server sends to all clients of a method, once.

    Public data costs none: clients have it themselves. Samples are sent as models are given them, see
    `genfl.data.wire`, not as the generator's files.

    Args:
        method: A method of the config.
        clients: The number of clients, at least 1.
        generated_samples: The number of samples of its source that its clients train on, all together.
        pool: The number of samples of the synthetic data that are used.
        data: The private data, whose format samples are sent in.
        classes: The number of classes.
    """
    if method.source == "public":
        return 0.0
    unlabelled, labelled = (
        sample_bytes(data.shape, data.train.x.dtype, classes, labelled=labels) for labels in (False, True)
    )
    size: float = clients * pool * unlabelled * ("shared" in method.asks_for)
    if method.content and method.content.by == "server" and method.reference is None:
        size += generated_samples * labelled  # every client gets its own samples
    return size


def environment() -> dict[str, Any]:
    """Return the software and the machine of this process, as plain values of an `Environment`."""
    return Environment(
        genfl=genfl.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        platform=platform.platform(),
        cpu_count=os.cpu_count(),
    ).to_dict()


def _description(config: Config, method: Method | None) -> dict[str, Any]:
    """Return what the config says of a method; None stands for the pre-trained model itself."""
    if method is None:
        return {
            "algorithm": None,
            "data": None,
            "content": None,
            "source": "generated",
            "reference": True,
            "uses_generator": True,
            "existing_model": config.pretrain.init is not None,
        }
    parts = [part.model_dump() for part in method.algorithm]
    return {
        "algorithm": parts[0] if len(parts) == 1 else parts,
        "data": method.data,
        "content": method.content,
        "source": "generated" if method.needs_generator else "public" if method.needs_public else None,
        "reference": method.reference is not None,
        "uses_generator": method.needs_generator is not None,
        "existing_model": config.pretrain.init is not None and method.start != "random",
    }


def _figures(
    traces: Sequence[Mapping[str, Any]], targets: Sequence[float], setup_bytes: int
) -> dict[str, Any]:
    """Return the figures of a method, given the trace of each seed."""
    last = _last_evaluations(traces)
    rounds = [evaluation["round"] for evaluation in traces[0]["evaluations"]]
    accuracy = _accuracies(traces)
    f1 = np.array([[e["macro_f1"] for e in trace["evaluations"]] for trace in traces])
    gaps = np.array([[e["calibration_error"] for e in t["evaluations"][-last:]] for t in traces], dtype=float)
    up, down = (
        np.array([[r[name] for r in trace["rounds"]] for trace in traces]).reshape(len(traces), -1)
        for name in ("uplink_bytes", "downlink_bytes")
    )
    spent = _bytes_after(traces, setup_bytes)
    reached = []
    for target in targets:
        first = _first_reached(rounds, accuracy.mean(0), target)
        per_seed = [_first_reached(rounds, of_seed, target) for of_seed in accuracy]
        total = None if first is None else int(spent[first])
        reached.append(TargetResult(accuracy=target, rounds=first, rounds_per_seed=per_seed, bytes=total))
    return {
        "accuracy": _over_seeds(accuracy[:, -last:].mean(1)),
        "macro_f1": _over_seeds(f1[:, -last:].mean(1)),
        "calibration_error": _over_seeds(gaps.mean(1)) if np.isfinite(gaps).all() else None,
        "recall": _recall(traces),
        "clients": _clients_tested(traces),
        "curve": _curve(rounds, accuracy),
        "rounds_to_target": reached[0].rounds,
        "rounds_to_target_per_seed": reached[0].rounds_per_seed,
        "bytes_to_target": reached[0].bytes,
        "targets": reached,
        "equal_bytes": None,  # known when all methods are
        "extra_cost": None,
        "setup_bytes": setup_bytes,
        "uplink_bytes_per_round": float(up.mean()) if up.size else 0.0,
        "downlink_bytes_per_round": float(down.mean()) if down.size else 0.0,
        "diversity": _measured(traces, "diversity"),
    }


def _first_reached(rounds: Sequence[int], accuracy: np.ndarray, target: float) -> int | None:
    """Return the first evaluated round whose accuracy is the target or more; None if there is none."""
    return next((number for number, a in zip(rounds, accuracy, strict=True) if a >= target), None)


def _uploads(config: Config, method: Method | None, traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many uploads a method had and were refused, the seeds in which all were, and their bytes."""
    federated = method is not None and method.reference is None
    cohort = config.federate.clients_per_round * federated
    refused = [sum(row["refused"] for row in trace["rounds"]) for trace in traces]
    uploads = [sum(row.get("clients", cohort) for row in trace["rounds"]) for trace in traces]
    counted = sum(uploads) - sum(refused)
    masked = federated and config.federate.secure is not None and counted > 0
    sent = sum(row["uplink_bytes"] for trace in traces for row in trace["rounds"])  # of those that count
    return {
        "masked_upload_bytes": sent // counted if masked else None,
        "refused_uploads": sum(refused),
        "uploads": sum(uploads),
        "untrained_seeds": [
            seed
            for seed, lost, sent in zip(config.seeds, refused, uploads, strict=True)
            if sent and lost == sent
        ],
    }


def _recall(traces: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Return the mean over the seeds of each class's recall at the last evaluation; None without examples."""
    classes = zip(*(trace["evaluations"][-1]["recall"] for trace in traces), strict=True)
    return [None if None in values else fmean(values) for values in classes]


def _clients_tested(traces: Sequence[Mapping[str, Any]]) -> ClientsTested | None:
    """Return the accuracy of the last models on the clients; None if these hold no test samples back."""
    tested = [trace["clients"] for trace in traces if trace.get("clients")]
    if len(tested) < len(traces):
        return None
    quantiles = np.array([scores["quantiles"] for scores in tested])
    shares = np.linspace(0, 1, quantiles.shape[1]).tolist()
    return ClientsTested(
        tested=[scores["clients"] for scores in tested],
        samples=[scores["samples"] for scores in tested],
        accuracy=_over_seeds(np.array([scores["accuracy"] for scores in tested])),
        worst=_over_seeds(quantiles[:, 0]),
        quantiles=_curve(shares, quantiles),
    )


def _measured(traces: Sequence[Mapping[str, Any]], name: str) -> list[CurvePoint]:
    """Return the curve of a measure over the rounds in which every seed measured it."""
    rows = zip(*(trace["rounds"] for trace in traces), strict=True)
    # clients with different models cannot be measured
    measured = [row for row in rows if all(r.get(name) is not None for r in row)]
    values = np.array([[r[name] for r in row] for row in measured]).reshape(-1, len(traces)).T
    return _curve([row[0]["round"] for row in measured], values)


def _mean_over_rounds(traces: Sequence[Mapping[str, Any]], name: str) -> Figure:
    """Return the mean of a measure over the rounds in which every seed measured it."""
    rows = zip(*(trace["rounds"] for trace in traces), strict=True)
    values = [[r[name] for r in row] for row in rows if all(r.get(name) is not None for r in row)]
    return _over_seeds(np.array(values).mean(0))


def _heterogeneity(traces: Sequence[Mapping[str, Any]], extractor: str) -> Heterogeneity | None:
    """Return how different clients and their local models are; None if nothing of it was measured."""
    pairs = [trace["similarity"] for trace in traces if trace.get("similarity")]  # none for many clients
    divergence, generality = (_measured(traces, name) for name in ("divergence", "generality"))
    if not (pairs or divergence or generality):
        return None
    return Heterogeneity(
        extractor=extractor,
        similarity=[Similarity.model_validate(of_seed) for of_seed in pairs] or None,
        mean_cosine=_off_diagonal(pairs, "cosine") if pairs else None,
        mean_l2=_off_diagonal(pairs, "l2") if pairs else None,
        divergence=divergence,
        mean_divergence=_mean_over_rounds(traces, "divergence") if divergence else None,
        generality=generality,
    )


def _off_diagonal(pairs: Sequence[Mapping[str, Any]], name: str) -> Figure:
    """Return the mean over pairs of different clients, for each seed."""
    values = np.array([of_seed[name] for of_seed in pairs])
    return _over_seeds(values[:, ~np.eye(values.shape[1], dtype=bool)].mean(1))


def _over_seeds(values: np.ndarray) -> Figure:
    std = _std(values) if len(values) > 1 else None
    return Figure(mean=float(values.mean()), std=std, per_seed=[float(value) for value in values])


def _curve(x: Sequence[float], values: np.ndarray) -> list[CurvePoint]:
    """Return a point for each x, given the values [seeds, points]."""
    columns = zip(x, values.T, strict=True)
    return [CurvePoint(number, float(column.mean()), _std(column)) for number, column in columns]


def _std(values: np.ndarray) -> float:
    """Return the sample standard deviation; 0 for a single seed, whose curve has no band around it."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
