"""The files beside the weights of a trained model, with which it can be used away from the run's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genfl.data.texts import HASHED_TOKENIZER, TokenFormat
from genfl.deployment.description import (
    DESCRIPTION_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Architecture,
    ModelDescription,
    describe_input,
    figures_of,
)
from genfl.models import MODELS
from genfl.stages.federate.setting import Setting
from genfl.storage import link, sha256, write_text


def describe_model(
    setting: Setting,
    folder: Path,
    method: str,
    seed: int,
    digest: str,
    evaluations: Sequence[Mapping[str, Any]],
    rounds: int,
    client: int | None = None,
) -> None:
    """Write the description of a model beside its weights, and its tokenizer.

    Args:
        setting: The setting of all trials.
        folder: The folder of the weights.
        method: The method's name in the config.
        seed: The seed.
        digest: The digest of everything that the model depends on.
        evaluations: The evaluations of the model, the last one of its weights.
        rounds: The number of federated rounds.
        client: The client that trained alone; None for a model of all clients.
    """
    data, model, encoding = setting.data, setting.inputs.model, setting.data.format
    if isinstance(encoding, TokenFormat) and encoding.tokenizer != HASHED_TOKENIZER:
        shared = setting.work.folder / TOKENIZER_FILE  # one file for all models of the run
        content = encoding.tokenizer_json()
        if not shared.is_file() or shared.read_text(encoding="utf-8") != content:
            write_text(shared, content)
        link(shared, folder / TOKENIZER_FILE)
    ModelDescription(
        method=method,
        seed=seed,
        client=client,
        rounds=rounds,
        model=Architecture(
            name=model.model.name,
            options=model.model.options(),
            own=MODELS[model.model.name].source is not None,
        ),
        shape=list(data.shape),
        precision=model.precision,
        modality=data.modality,
        input=describe_input(setting.section.name, encoding),
        label_names=list(setting.labels),
        figures=figures_of(evaluations, len(setting.test_y)),
        config_digest=digest,
        weights_sha256=sha256(folder / WEIGHTS_FILE),
    ).write(folder / DESCRIPTION_FILE)
