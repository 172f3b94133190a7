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
from genfl.experiment.context import RunContext
from genfl.experiment.folder import Run
from genfl.generators.registry import GENERATORS
from genfl.results.names import SYNTHETIC_ONLY
from genfl.results.schema import (
    SCHEMA,
    ClientsTested,
    CurvePoint,
    Environment,
    Figure,
    GenerateResult,
    GuidedResult,
    Heterogeneity,
    LabelsResult,
    MethodResult,
    Similarity,
    StageRecord,
    StageTime,
    Summary,
    VocabularyResult,
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
    records = {name: StageRecord.read(run.record(name)) for name in skipped}
    results = {name: record.result for name, record in records.items()}
    environment = records["federate"].environment
    assert environment is not None, "the record of a finished stage has one"
    synthetic, guided, vocabulary = (results.get(name) for name in ("generate", "guided", "vocabulary"))
    return Summary(
        schema_version=SCHEMA,
        name=config.name,
        seeds=list(config.seeds),
        labels=LabelsResult.model_validate(results["labels"]),
        test_samples=len(context.data_set(config.data).test.labels),
        generator=config.generator.kind,
        generated=config.generates and GENERATORS[config.generator.kind].prompted,
        synthetic=GenerateResult.model_validate(synthetic) if synthetic else None,
        guided=GuidedResult.model_validate(guided) if guided else None,
        vocabulary=VocabularyResult.model_validate(vocabulary) if vocabulary else None,
        methods=method_results(config, results),
        compare=tuple(config.report.compare) if config.report.compare else None,
        target_accuracy=config.report.target_accuracy,
        stages={
            name: StageTime(seconds=records[name].seconds, skipped=was_skipped)
            for name, was_skipped in skipped.items()
        },
        environment=environment,
    )


def method_results(config: Config, results: Mapping[str, Mapping[str, Any]]) -> dict[str, MethodResult]:
    """Return the figures of each method over the seeds, references last.

    Args:
        config: The resolved config.
        results: The result of each stage of the run, by its name.
    """
    clients = config.data.partition.clients
    # Methods that need the label names outside of the clients pay for label discovery once, before any round.
    discovery_bytes = results["labels"]["bytes_per_client"] * clients
    methods: dict[str, Method | None] = {SYNTHETIC_ONLY: None} if config.generates else {}
    methods |= {name: method for name, method in config.methods.items() if method.reference is None}
    methods |= {name: method for name, method in config.methods.items() if method.reference is not None}
    figures: dict[str, MethodResult] = {}
    for name, method in methods.items():
        traces = [results["federate"]["methods"][name][str(seed)] for seed in config.seeds]
        generated_samples = fmean(trace.get("content", 0) for trace in traces)
        description = _description(config, method)
        matched = method is not None and method.needs_public and method.needs_labels
        setup_bytes = discovery_bytes if description["uses_generator"] or matched else 0
        if method and config.generates:
            setup_bytes += round(bytes_to_clients(method, clients, generated_samples, results["generate"]))
        figures[name] = MethodResult(
            **description,
            generated_samples=generated_samples,
            **_figures(traces, config.report.target_accuracy, setup_bytes),
            **_uploads(config, method, traces),
        )
    return figures


def bytes_to_clients(
    method: Method, clients: int, generated_samples: float, synthetic: Mapping[str, Any]
) -> float:
    """Return the bytes of synthetic data that the server sends to all clients of a method, once.

    Public data costs none: clients have it themselves.

    Args:
        method: A method of the config.
        clients: How many clients there are, at least 1.
        generated_samples: How many generated samples its clients train on, all together, at least 0.
        synthetic: The result of the stage ``generate``: its ``bytes`` on disk, and its ``samples``.
    """
    if method.source == "public":
        return 0.0
    copies: float = clients * ("shared" in method.asks_for)
    if method.content and method.content.by == "server" and method.reference is None:
        copies += generated_samples / synthetic["samples"]  # every client gets its own samples
    return copies * float(synthetic["bytes"])


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


def _figures(traces: Sequence[Mapping[str, Any]], target: float, setup_bytes: int) -> dict[str, Any]:
    """Return the figures of a method, given the trace of each seed."""
    # The evaluation before the first round counts only if there is no other: nothing was federated by then.
    last = min(LAST_EVALUATIONS, max(1, len(traces[0]["evaluations"]) - 1))
    rounds = [evaluation["round"] for evaluation in traces[0]["evaluations"]]
    accuracy = np.array([[e["accuracy"] for e in trace["evaluations"]] for trace in traces])
    f1 = np.array([[e["macro_f1"] for e in trace["evaluations"]] for trace in traces])
    gaps = np.array([[e["calibration_error"] for e in t["evaluations"][-last:]] for t in traces], dtype=float)
    up, down = (
        np.array([[r[name] for r in trace["rounds"]] for trace in traces]).reshape(len(traces), -1)
        for name in ("uplink_bytes", "downlink_bytes")
    )
    first = _first_reached(rounds, accuracy.mean(0), target)
    return {
        "accuracy": _over_seeds(accuracy[:, -last:].mean(1)),
        "macro_f1": _over_seeds(f1[:, -last:].mean(1)),
        "calibration_error": _over_seeds(gaps.mean(1)) if np.isfinite(gaps).all() else None,
        "recall": _recall(traces),
        "clients": _clients_tested(traces),
        "curve": _curve(rounds, accuracy),
        "rounds_to_target": first,
        "rounds_to_target_per_seed": [_first_reached(rounds, of_seed, target) for of_seed in accuracy],
        "bytes_to_target": None if first is None else setup_bytes + int((up + down)[:, :first].sum(1).mean()),
        "setup_bytes": setup_bytes,
        "uplink_bytes_per_round": float(up.mean()) if up.size else 0.0,
        "downlink_bytes_per_round": float(down.mean()) if down.size else 0.0,
        "diversity": _measured(traces, "diversity"),
        "heterogeneity": _heterogeneity(traces),
    }


def _first_reached(rounds: Sequence[int], accuracy: np.ndarray, target: float) -> int | None:
    """Return the first evaluated round whose accuracy is the target or more; None if there is none."""
    return next((number for number, a in zip(rounds, accuracy, strict=True) if a >= target), None)


def _uploads(config: Config, method: Method | None, traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many uploads a method had and were refused, and the seeds in which all were."""
    federated = method is not None and method.reference is None
    cohort = config.federate.clients_per_round * federated
    refused = [sum(row["refused"] for row in trace["rounds"]) for trace in traces]
    uploads = [cohort * len(trace["rounds"]) for trace in traces]
    return {
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


def _heterogeneity(traces: Sequence[Mapping[str, Any]]) -> Heterogeneity | None:
    """Return how different clients and their local models are; None if nothing of it was measured."""
    pairs = traces[0].get("similarity")  # of the first seed only; never for very many clients
    divergence, generality = (_measured(traces, name) for name in ("divergence", "generality"))
    if not (pairs or divergence or generality):
        return None
    return Heterogeneity(
        similarity=Similarity.model_validate(pairs) if pairs else None,
        mean_cosine=_off_diagonal(pairs["cosine"]) if pairs else None,
        mean_l2=_off_diagonal(pairs["l2"]) if pairs else None,
        divergence=divergence,
        mean_divergence=_mean_over_rounds(traces, "divergence") if divergence else None,
        generality=generality,
    )


def _off_diagonal(pairs: Sequence[Sequence[float]]) -> float:
    """Return the mean over pairs of different clients."""
    values = np.array(pairs)
    return float(values[~np.eye(len(values), dtype=bool)].mean())


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
