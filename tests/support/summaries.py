"""Summaries of runs, made by hand."""

from __future__ import annotations

import numpy as np

from genfl.results.schema import SCHEMA, Figure, MethodResult, Summary
from genfl.results.summarise import environment


def method(per_seed, rounds, start, **changes):
    """The result of a method that starts at an accuracy, with the generator if that is 0.8."""
    std = float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None
    figure = Figure(mean=sum(per_seed) / len(per_seed), std=std, per_seed=per_seed)
    fields = {
        "algorithm": {"name": "fedavg"},
        "data": "private",
        "content": None,
        "reference": False,
        "uses_generator": start == 0.8,
        "source": "generated" if start == 0.8 else None,
        "existing_model": False,
        "generated_samples": 0.0,
        "accuracy": figure,
        "macro_f1": figure,
        "calibration_error": None,
        "recall": [],
        "clients": None,
        "curve": [[number, start, 0.0] for number in range(0, 31, 5)],
        "rounds_to_target": rounds,
        "rounds_to_target_per_seed": [rounds] * len(per_seed),
        "bytes_to_target": None,
        "targets": [],
        "total_bytes": 0,
        "equal_bytes": None,
        "extra_cost": None,
        "delta": None,
        "setup_bytes": 0,
        "uplink_bytes_per_round": 0.0,
        "downlink_bytes_per_round": 0.0,
        "diversity": [],
        "heterogeneity": None,
        "refused_uploads": 0,
        "uploads": 24,
        "masked_upload_bytes": None,
        "untrained_seeds": [],
    }
    return MethodResult.model_validate(fields | changes)


def compared(test_samples=1000, generator="image", compare=None, **methods):
    """The summary of a comparison; without a generator, there is no generated data."""
    generates = generator != "none"
    alone = method([0.8], None, 0.8, algorithm=None, data=None, reference=True)
    synthetic = {
        "samples": 2000,
        "removed": 0,
        "duplicates": 0,
        "near_duplicates": 0,
        "bytes": 1000,
        "seconds": 305.2,
        "samples_per_second": 6.55,
        "labels": {},
    }
    labels = {"found": [], "cells": 80, "bytes_per_client": 100, "attempts": 1, "holders": {}}
    return Summary(
        schema_version=SCHEMA,
        name="by hand",
        seeds=[0],
        labels=labels,
        test_samples=test_samples,
        test_digest="the same test set",
        generator=generator,
        generated=generator == "image",
        synthetic=synthetic if generates else None,
        guided=None,
        vocabulary=None,
        audit=None,
        methods={"synthetic_only": alone, **methods} if generates else methods,
        compare=compare,
        target_accuracy=0.9,
        targets=[0.9],
        byte_budget=None,
        cost={"generation": None, "training": None, "inference": None, "per_point": {}},
        privacy={"releases": [], "guarantees": {}, "notes": []},
        secure_sums=None,
        stages={},
        environment=environment(),
    )
