"""Model cards: the README of an exported model, in the format of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import genfl
from genfl.config.names import NO_GENERATOR
from genfl.data.partition import OWN
from genfl.data.sources import DATASETS
from genfl.deployment.description import (
    GreyInput,
    InputDescription,
    LogMelInput,
    ModelDescription,
    PixelInput,
    TokenInput,
)
from genfl.generators.licences import UNKNOWN_LICENCE
from genfl.generators.registry import GENERATORS, LICENCE
from genfl.results.names import SYNTHETIC_ONLY
from genfl.results.schema import AlgorithmPart, Figure, GuaranteeResult, MethodResult, Summary

_HUB = "hf://datasets/"

_TASKS = {
    "image": "image-classification",
    "audio": "audio-classification",
    "text": "text-classification",
}

_CONTENT = {"image": "images", "audio": "sounds", "text": "texts"}

_CLIENT_DATA = {
    "private": "their own",
    "generated": "generated or public samples",
    "mixed": "their own and generated or public samples together",
    "p2g": "in every round their own, then generated or public samples",
    "g2p": "in every round generated or public samples, then their own",
}

MOST_CLASSES = 100
"""The number of classes that a model card names. ``model.json`` names all."""


def model_card(
    description: ModelDescription,
    settings: Mapping[str, Any],
    summary: Summary,
    *,
    onnx: float | None = None,
) -> str:
    """Return the model card of a trained model, in Markdown with metadata at its top.

    It names no path, no address, and no example.

    Args:
        description: The description of the model.
        settings: The resolved config of its run, as plain values.
        summary: The figures of its run.
        onnx: The measured difference of its ONNX file; None without such a file.
    """
    method = summary.methods[description.method]
    sections = [
        f"---\n{_metadata(description, settings, method)}\n---",
        f"# {description.method}: {description.model.name} for {settings['data']['name']}",
        f"{_introduction(description, method)}",
        f"## Use\n\n{_use(description, onnx)}",
        f"## Inputs\n\n{_inputs(description.input)}",
        f"## Classes\n\n{_classes(description.label_names)}",
        f"## Training\n\n{_table(('', ''), _recipe(description, settings, method))}",
        f"## Figures\n\n{_figures(description, summary, method)}",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(description, settings, summary)),
    ]
    return "\n\n".join(sections) + "\n"


def hub_dataset(data: Mapping[str, Any]) -> str | None:
    """Return the Hugging Face id of a run's data; None if it has none, or the run read a copy.

    Args:
        data: The section ``data`` of its config.
    """
    path = data["path"]
    if path is not None:
        return str(path).removeprefix(_HUB) if str(path).startswith(_HUB) else None
    entry = DATASETS.get(data["name"])
    return entry.recipe.hub if entry and entry.recipe else None


def _metadata(description: ModelDescription, settings: Mapping[str, Any], method: MethodResult) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset, task = hub_dataset(settings["data"]), _TASKS[description.modality]
    figures, results = description.figures, []
    if dataset and figures:
        results = [
            EvalResult(task, dataset, settings["data"]["name"], kind, round(value, 4))
            for kind, value in (("accuracy", figures.accuracy), ("f1", figures.macro_f1))
        ]
    card = ModelCardData(
        datasets=[dataset] if dataset else None,
        eval_results=results or None,
        metrics=["accuracy", "f1"],
        model_name=f"{description.method}-{description.model.name}",
        pipeline_tag=task,
        tags=[
            "genfl",
            *([] if method.reference or description.method == SYNTHETIC_ONLY else ["federated-learning"]),
            "safetensors",
            *(["synthetic-data"] if method.uses_generator else []),
        ],
    )
    return str(card.to_yaml())


def _introduction(description: ModelDescription, method: MethodResult) -> str:
    classes, content = len(description.label_names), _CONTENT[description.modality]
    if description.method == SYNTHETIC_ONLY:
        trained = f"trained on {method.source or 'generated'} data alone, without any client"
    elif method.reference:
        trained = "trained on all private data in one place, which is not federated learning"
    elif description.rounds:
        trained = f"after {description.rounds} rounds of federated learning"
    else:
        trained = "after training at the server alone, without any client"
    return (
        f"A classifier of {content} with {classes} classes: `{description.model.name}` {trained}."
        f" [genfl](https://pypi.org/project/genfl/) {description.genfl} trained it, with seed"
        f" {description.seed}."
    )


def _use(description: ModelDescription, onnx: float | None) -> str:
    text = ""
    if not description.model.own:
        text = (
            "`load.py` needs torch and safetensors alone. Run this in the folder of this file:\n\n"
            "```python\nfrom load import load, prepare\n\nmodel, description = load()\n"
            "logits = model(prepare(inputs, description))  # [n, classes]\n"
            'names = [description["label_names"][index] for index in logits.argmax(1)]\n```'
        )
    if onnx is not None:
        text += (
            "\n\n`model.onnx` has an input `x`, float32"
            f" [n, {', '.join(map(str, description.shape))}], in the form that `prepare` returns, and an"
            f" output `logits`. On random inputs, its logits differ from those of PyTorch by {onnx:.1g}."
        )
    if description.model.own:
        text += (
            f"\n\nThe architecture `{description.model.name}` is code that is not part of genfl, so there is"
            " no loader for `model.safetensors`."
        )
    return text.strip()


def _inputs(described: InputDescription) -> str:
    match described:
        case PixelInput(size=(height, width), channels=channels):
            colour = "RGB" if channels == 3 else "grey"
            numbers = (", ".join(f"{n:.4g}" for n in values) for values in (described.mean, described.std))
            mean, std = numbers
            return (
                f"{colour.capitalize() if channels == 1 else colour} images of {height} × {width} pixels."
                f" Images of another size are resized ({described.resize}). `prepare` takes uint8"
                f" [n, {channels}, {height}, {width}] and returns (x / 255 − mean) / std, with mean ({mean})"
                f" and std ({std})."
            )
        case GreyInput(size=(height, width)):
            return (
                f"Grey images of {height} × {width} pixels, as floats from 0 (black) to 1 (white),"
                f" [n, 1, {height}, {width}]. Images of another size are resized ({described.resize})."
            )
        case LogMelInput():
            return (
                f"Sounds of {described.seconds:g} seconds at {described.rate:,} Hz, as floats in [−1, 1],"
                " [n, samples]. Longer sounds are cut, shorter ones padded. `prepare` turns them into log-mel"
                f" spectrograms with {described.mels} mel bands, a window of {described.window} samples and a"
                f" hop of {described.hop}, each with mean 0 and variance 1. Resample to this rate before."
            )
        case TokenInput(tokenizer="hashed"):
            return (
                f"Texts, of which the first {described.length} words and punctuation marks count. A token is"
                " a hash of a word, so there is no vocabulary. `prepare` takes a list of texts."
            )
        case TokenInput():
            return (
                f"Texts, of which the first {described.length} tokens count. `tokenizer.json` splits them;"
                " `prepare` takes a list of texts, and needs the library tokenizers."
            )
    return "The inputs that the code of the data set prepares. This folder has no code for that."


def _classes(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_CLASSES])
    more = len(names) - MOST_CLASSES
    return f"In the order of the outputs: {shown}{f', and {more} more' if more > 0 else ''}."


def _recipe(
    description: ModelDescription, settings: Mapping[str, Any], method: MethodResult
) -> Iterator[tuple[str, str]]:
    """Yield what trained the model, as rows of a table."""
    federation, partition, pretraining = (
        settings["federate"],
        settings["data"]["partition"],
        settings["pretrain"],
    )
    yield "method", f"`{description.method}`"
    if method.algorithm is not None:
        parts = method.algorithm if isinstance(method.algorithm, list) else [method.algorithm]
        yield "algorithm", " + ".join(map(_part, parts))
    if description.rounds:
        number = "those of the data" if partition["kind"] in OWN else partition["clients"]
        yield "rounds", str(description.rounds)
        yield "clients", f"{number}, {partition['kind']} partition"
        if not method.reference:
            yield "clients in a round", str(federation["clients_per_round"])
        yield "clients train on", _CLIENT_DATA[method.data or "private"]
        local = federation["local"]
        work = f"{local['steps']} steps" if local["steps"] else f"{local['epochs']} epochs"
        yield "local training", f"SGD, {work} of batch {local['batch_size']}, learning rate {local['lr']:g}"
    start = settings["methods"].get(description.method, {"start": "pretrained"})["start"]
    if start == "pretrained":
        yield (
            "pre-training",
            f"{pretraining['optimizer']}, at most {pretraining['epochs']} epochs of batch"
            f" {pretraining['batch_size']}, learning rate {pretraining['lr']:g}, on"
            f" {method.source or 'generated'} data",
        )
    yield "first weights", "those of an existing model" if method.existing_model else "random"
    if method.uses_generator:
        kind = settings["generator"]["kind"]
        options = {name: value for name, value in settings["generator"].items() if name != "kind"}
        facts = GENERATORS[kind].described(options) if kind in GENERATORS else {}
        yield "generator", str(facts.get("generator", kind))
        yield LICENCE, str(facts.get(LICENCE, UNKNOWN_LICENCE))
    yield "precision", description.precision
    yield "seed", str(description.seed)
    yield "digest of the config", f"`{description.config_digest}`"
    yield "exported by", f"genfl {genfl.__version__}"


def _part(part: AlgorithmPart) -> str:
    options = ", ".join(f"{name}={value}" for name, value in (part.model_extra or {}).items())
    return f"{part.name} ({options})" if options else part.name


def _figures(description: ModelDescription, summary: Summary, method: MethodResult) -> str:
    figures, seeds = description.figures, len(summary.seeds)
    if figures is None:
        return "The model was not tested."
    rows: list[tuple[str, str, str]] = [
        ("accuracy, %", _percent(figures.accuracy), _spread(method.accuracy)),
        ("macro F1, %", _percent(figures.macro_f1), _spread(method.macro_f1)),
        ("calibration error, %", _percent(figures.calibration_error), _spread(method.calibration_error)),
    ]
    recalls = [
        (recall, name)
        for recall, name in zip(figures.recall, description.label_names, strict=True)
        if recall is not None
    ]
    worst = ", ".join(f"{name} {_percent(recall)} %" for recall, name in sorted(recalls)[:3])
    seeds_column = f"{seeds} seed{'s' if seeds > 1 else ''}"
    return (
        f"{_table(('', f'this model (seed {description.seed})', seeds_column), rows)}\n\nOn"
        f" {figures.examples:,} test examples. This model's figures are those of its last evaluation. Those"
        " of all seeds are the mean of the last evaluations (at most five), ± the standard deviation over the"
        f" seeds. Lowest recall: {worst}."
    )


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}"


def _spread(figure: Figure | None) -> str:
    if figure is None or figure.std is None:
        return _percent(figure.mean if figure else None)
    return f"{_percent(figure.mean)} ± {100 * figure.std:.1f}"


def _privacy(guarantee: GuaranteeResult | None) -> str:
    """Say what differential privacy the training had."""
    if guarantee is None:
        return (
            "Training had no differential privacy, so the weights may reveal something of the training data."
        )
    unit = {"sample": "each private sample", "user": "all data of each client"}[guarantee.unit]
    return (
        f"Training protected {unit} by differential privacy, with ε at most {guarantee.epsilon:.3g} and δ"
        f" {guarantee.delta:.3g}. Whoever has the run's folder can subtract the noise."
    )


def _limits(description: ModelDescription, settings: Mapping[str, Any], summary: Summary) -> Iterator[str]:
    yield (
        f"It answers with one of its {len(description.label_names)} classes for every input, also for one"
        " that belongs to none of them."
    )
    yield "It was tested on data of the same source as the clients' data, and on no other."
    yield _privacy(summary.privacy.guarantees.get(description.method))
    yield "Clients were simulated on one machine."
    yield (
        "This card names no licence for the model. The licences of the training data and of the generator may"
        " bind its use."
        if settings["generator"]["kind"] != NO_GENERATOR
        else "This card names no licence for the model. That of the training data may bind its use."
    )


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
