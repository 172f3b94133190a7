"""summary.json: every figure of a run, machine-readable."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

import genfl
from genfl.config import Config, Method
from genfl.experiment.context import Context
from genfl.experiment.folder import Run
from genfl.results.names import SYNTHETIC_ONLY
from genfl.storage import read_json

SCHEMA = 2
LAST = 5
"""A method's accuracy is the mean of its last so many evaluations, never its best one."""


def summarise(run: Run, context: Context, skipped: dict[str, bool]) -> dict[str, Any]:
    """Collects a run's figures from the records of its stages.

    Args:
        run: A run whose stages are done.
        context: Of the run.
        skipped: For each stage, whether this invocation found it up to date.
    """
    return {
        "schema": SCHEMA,
        "name": run.config.name,
        "seeds": list(run.config.seeds),
        "labels": run.result("labels"),
        "test_samples": len(context.data_set(run.config.data).test.labels),
        "generator": run.config.generator.kind,
        "synthetic": run.result("generate") if "generate" in skipped else None,
        "guided": run.result("guided") if "guided" in skipped else None,
        "vocabulary": run.result("vocabulary") if "vocabulary" in skipped else None,
        "methods": methods(run),
        "target_accuracy": run.config.report.target_accuracy,
        "stages": {
            name: {"seconds": read_json(run.record(name))["seconds"], "skipped": skipped[name]}
            for name in skipped
        },
        "environment": read_json(run.record("federate"))["environment"],
    }


def methods(run: Run) -> dict[str, Any]:
    """Returns each method's figures over the seeds, references last."""
    traces = run.result("federate")["methods"]
    target = run.config.report.target_accuracy
    # Methods that use the generator pay once, before any round: for finding the labels, and for sending the
    # synthetic data where clients hold it.
    discovery = run.result("labels")["bytes_per_client"] * run.config.data.partition.clients
    found = {}
    chosen = sorted(run.config.methods, key=lambda name: run.config.methods[name].reference is not None)
    for name in (*([SYNTHETIC_ONLY] if run.config.generates else []), *chosen):
        what = _what(run.config, run.config.methods.get(name))
        method = run.config.methods.get(name)
        setup = discovery if what["uses_generator"] else 0
        each = [traces[name][str(seed)] for seed in run.config.seeds]
        content = fmean(trace.get("content", 0) for trace in each)
        setup += round(sent_to_clients(run, method, content)) if method else 0
        found[name] = {**what, "generated_samples": content, **_method(each, target, setup)}
    return found


def environment() -> dict[str, Any]:
    """Returns what the figures were made with."""
    return {
        "genfl": genfl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
    }


def _what(config: Config, method: Method | None) -> dict[str, Any]:
    """What the config says of a method; None is the pre-trained model itself."""
    if method is None:
        return {
            "algorithm": None,
            "data": None,
            "content": None,
            "reference": True,
            "uses_generator": True,
            "existing_model": config.pretrain.init is not None,
        }
    parts = [part.model_dump() for part in method.algorithm]
    return {
        "algorithm": parts[0] if len(parts) == 1 else parts,
        "data": method.data,
        "content": method.content.model_dump() if method.content else None,
        "reference": method.reference is not None,
        "uses_generator": method.needs_generator is not None,
        "existing_model": config.pretrain.init is not None and method.start != "random",
    }


def _method(traces: Sequence[dict[str, Any]], target: float, setup_bytes: int) -> dict[str, Any]:
    # The model before the first round is no result of a federation: it counts only where there is no other.
    last = min(LAST, max(1, len(traces[0]["evaluations"]) - 1))
    evaluated = [evaluation["round"] for evaluation in traces[0]["evaluations"]]
    accuracy = np.array([[e["accuracy"] for e in trace["evaluations"]] for trace in traces])
    f1 = np.array([[e["macro_f1"] for e in trace["evaluations"]] for trace in traces])
    gaps = np.array([[e["calibration_error"] for e in t["evaluations"][-last:]] for t in traces], dtype=float)
    up, down = (
        np.array([[r[name] for r in trace["rounds"]] for trace in traces]).reshape(len(traces), -1)
        for name in ("uplink_bytes", "downlink_bytes")
    )
    reached = [number for number, a in zip(evaluated, accuracy.mean(0), strict=True) if a >= target]
    first = reached[0] if reached else None
    return {
        "accuracy": _over_seeds(accuracy[:, -last:].mean(1)),
        "macro_f1": _over_seeds(f1[:, -last:].mean(1)),
        "calibration_error": _over_seeds(gaps.mean(1)) if np.isfinite(gaps).all() else None,
        "recall": _recall(traces),
        "clients": _clients(traces),
        "curve": _curve(evaluated, accuracy),
        "rounds_to_target": first,
        "bytes_to_target": None if first is None else setup_bytes + int((up + down)[:, :first].sum(1).mean()),
        "setup_bytes": setup_bytes,
        "uplink_bytes_per_round": float(up.mean()) if up.size else 0.0,
        "downlink_bytes_per_round": float(down.mean()) if down.size else 0.0,
        "diversity": _measured(traces, "diversity"),
        "heterogeneity": _heterogeneity(traces),
        "refused_uploads": sum(r["refused"] for trace in traces for r in trace["rounds"]),
    }


def _recall(traces: Sequence[dict[str, Any]]) -> list[float | None]:
    """Mean over the seeds of each class's recall at the last evaluation; None if it has no test examples."""
    classes = zip(*(trace["evaluations"][-1]["recall"] for trace in traces), strict=True)
    return [None if None in values else fmean(values) for values in classes]


def _clients(traces: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How good the last models are for the clients; None where these hold nothing back to test them on."""
    tested = [trace["clients"] for trace in traces if trace.get("clients")]
    if len(tested) < len(traces):
        return None
    quantiles = np.array([scores["quantiles"] for scores in tested])
    shares = np.linspace(0, 1, quantiles.shape[1]).tolist()
    return {
        "tested": [scores["clients"] for scores in tested],
        "samples": [scores["samples"] for scores in tested],
        "accuracy": _over_seeds(np.array([scores["accuracy"] for scores in tested])),
        "worst": _over_seeds(quantiles[:, 0]),
        "quantiles": _curve(shares, quantiles),
    }


def _measured(traces: Sequence[dict[str, Any]], name: str) -> list[list[float]]:
    """Mean and standard deviation over the seeds of each round in which every seed measured something."""
    rows = zip(*(trace["rounds"] for trace in traces), strict=True)
    # clients with models of different forms have nothing to measure
    measured = [row for row in rows if all(r.get(name) is not None for r in row)]
    values = np.array([[r[name] for r in row] for row in measured]).reshape(-1, len(traces)).T
    return _curve([row[0]["round"] for row in measured], values)


def _heterogeneity(traces: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How alike clients are, and their local models; None where nobody asked, or nothing is trained."""
    pairs = traces[0].get("similarity")  # of the first seed; with very many clients there is none
    found = {name: _measured(traces, name) for name in ("divergence", "generality")}
    if not pairs and not any(found.values()):
        return None
    cosine, distance = (_off_diagonal(pairs[name]) if pairs else None for name in ("cosine", "l2"))
    return {"similarity": pairs, "mean_cosine": cosine, "mean_l2": distance, **found}


def _off_diagonal(pairs: Sequence[Sequence[float]]) -> float:
    """Returns the mean over pairs of different clients."""
    values = np.array(pairs)
    return float(values[~np.eye(len(values), dtype=bool)].mean())


def _over_seeds(values: np.ndarray) -> dict[str, Any]:
    spread = _std(values) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": spread, "per_seed": [float(value) for value in values]}


def _curve(places: Sequence[float], values: np.ndarray) -> list[list[float]]:
    columns = zip(places, values.T, strict=True)
    return [[number, float(column.mean()), _std(column)] for number, column in columns]


def _std(values: np.ndarray) -> float:
    """The sample standard deviation; 0 for a single seed, around whose curve there is no band."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def sent_to_clients(run: Run, method: Method, content: float) -> float:
    """Returns the bytes of synthetic data, as on disk, that all clients of a method get together, once.

    Args:
        run: A run whose data is generated.
        method: One of its methods.
        content: How many generated samples its clients train on.
    """
    if not run.config.generates:
        return 0.0
    made = run.result("generate")
    size: int = made["bytes"]
    copies: float = run.config.data.partition.clients * ("shared" in method.asks_for)
    if method.content and method.content.by == "server" and method.reference is None:
        copies += content / made["samples"]  # every client gets its own
    return copies * size
