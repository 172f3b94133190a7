"""The scores of a run's models on other labelled data than the run's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from genfl import progress
from genfl.data.media import MEDIA
from genfl.deployment.labelled import LabelledFolder
from genfl.deployment.tables import write_csv
from genfl.deployment.trained import RunModel
from genfl.errors import InputError, on_one_line
from genfl.learning.evaluate import scores_of
from genfl.results.schema import Figure, ResultModel
from genfl.storage import write_json, write_text

EVALUATION_FILE = "evaluation.json"
"""The name of the file of an evaluation."""

EVALUATION_MARKER = ".genfl-evaluation"
"""The file that marks the folder of an evaluation."""

EVALUATION_FILES = (EVALUATION_FILE, "evaluation.csv", "confusion.csv", "index.html")
"""The files of an evaluation."""

MOST_GROUPS = 100
"""The largest number of groups that an evaluation lists, the worst first."""


class ClassScores(ResultModel):
    """The scores of one class."""

    label: str = Field(description="Name of the class.")
    examples: int = Field(description="Number of its examples.")
    predicted: float = Field(
        description="Number of examples that are predicted to be of it, mean over the seeds."
    )
    recall: float | None = Field(
        description="Share of its examples that are predicted correctly, in [0, 1], mean over the seeds;"
        " null without examples."
    )
    precision: float | None = Field(
        description="Share of the predictions of it that are correct, in [0, 1], over all seeds; null"
        " without predictions."
    )


class GroupAccuracy(ResultModel):
    """The accuracy on one group of examples."""

    name: str = Field(description="Name of the group.")
    examples: int = Field(description="Number of its examples.")
    accuracy: float = Field(description="Accuracy, in [0, 1], mean over the seeds.")


class Groups(ResultModel):
    """The accuracy by groups of examples, such as clients or domains."""

    column: str = Field(description="Column of the data that names the groups.")
    count: int = Field(description="Number of groups.")
    worst: GroupAccuracy = Field(description="The group of least accuracy, the largest of several.")
    listed: list[GroupAccuracy] = Field(
        description="The groups in ascending order of accuracy, at most a hundred."
    )


class SeedEvaluation(ResultModel):
    """The scores of the model of one seed."""

    seed: int = Field(description="The seed.")
    accuracy: float = Field(description="Accuracy, in [0, 1].")
    macro_f1: float = Field(
        description="Mean F1 score of the classes in the labels or the predictions, in [0, 1]."
    )
    calibration_error: float | None = Field(
        description="Expected calibration error in 15 bins, in [0, 1]; null if the model diverged."
    )
    loss: float | None = Field(description="Mean cross-entropy, in nats; null if it is not finite.")
    recall: list[float | None] = Field(
        description="Recall of each class, in [0, 1], in the order of `label_names`; null without examples."
    )
    confusion: list[list[int]] = Field(
        description="Number of examples by class (row) and predicted class (column)."
    )


class Evaluation(ResultModel):
    """The scores of a method's models on labelled data, as in ``evaluation.json``."""

    format: Literal[1] = Field(1, description="Version of this file.")
    run: str = Field(description="Name of the run.")
    method: str = Field(description="The method.")
    chosen: bool = Field(
        description="Whether genfl chose the method: the best federated one by mean accuracy in the run."
    )
    data: str = Field(description="Folder of the data.")
    split: str = Field(description="Split of the data that was read.")
    label_names: list[str] = Field(description="Names of the classes, in the order of the model's outputs.")
    examples: int = Field(description="Number of examples that the scores are about.")
    unknown_labels: dict[str, int] = Field(
        description="Labels that the model does not know, and the numbers of their examples, left out."
    )
    unreadable: int = Field(description="Number of examples that cannot be read, left out.")
    unreadable_names: list[str] = Field(description="Some of these examples, and why.")
    unlabelled: int = Field(description="Number of examples without a label, left out.")
    accuracy: Figure = Field(description="Accuracy, in [0, 1].")
    macro_f1: Figure = Field(description="Macro F1 score, in [0, 1].")
    calibration_error: Figure | None = Field(
        description="Expected calibration error in 15 bins, in [0, 1]; null if a model diverged."
    )
    classes: list[ClassScores] = Field(description="Scores of each class, in the order of `label_names`.")
    groups: Groups | None = Field(description="Accuracy by group; null if the data names no groups.")
    clients: Groups | None = Field(
        description="Accuracy by client or domain; null if the data names neither."
    )
    seeds: list[SeedEvaluation] = Field(description="Scores of each seed's model.")

    @property
    def confusion(self) -> list[list[float]]:
        """The number of examples by class (row) and predicted class (column), mean over the seeds."""
        total = sum(torch.tensor(seed.confusion) for seed in self.seeds)
        assert isinstance(total, Tensor)
        return [[value / len(self.seeds) for value in row] for row in total.tolist()]

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json`` and the tables ``evaluation.csv`` and ``confusion.csv``, and the page.

        Args:
            folder: The folder, made if it is absent. The caller checks that it may be written to.
        """
        from genfl.report.evaluation_page import render_evaluation

        write_json(folder / EVALUATION_FILE, self.to_dict())
        head = list(ClassScores.model_fields)
        rows = [list(scores.to_dict().values()) for scores in self.classes]
        write_csv(folder / "evaluation.csv", head, rows)
        write_csv(
            folder / "confusion.csv",
            ["label", *self.label_names],
            [[name, *row] for name, row in zip(self.label_names, self.confusion, strict=True)],
        )
        write_text(folder / "index.html", render_evaluation(self.to_dict()))

    @classmethod
    def of(
        cls,
        models: Sequence[RunModel],
        data: LabelledFolder,
        *,
        run: str,
        chosen: bool = False,
    ) -> Self:
        """Return the scores of models of one method on labelled data.

        Args:
            models: The models, one for each seed. All have the same classes and inputs.
            data: The data.
            run: The name of the run.
            chosen: Whether the user left the method to genfl.

        Raises:
            InputError: The models know none of the labels, or no example can be read.
        """
        names = models[0].label_names
        number = {name: index for index, name in enumerate(names)}
        unknown: Counter[str] = Counter()
        outputs: list[list[Tensor]] = [[] for _ in models]
        y: list[int] = []
        clients: list[str | None] = []
        groups: list[str | None] = []
        what = MEDIA[data.modality].what
        with progress.bar("evaluate", data.total, what) as advance:
            for batch in data.batches(models[0].inputs.encode):
                known = [row for row, label in enumerate(batch.labels) if label in number]
                unknown.update(label for label in batch.labels if label not in number)
                y += [number[batch.labels[row]] for row in known]
                clients += [batch.clients[row] for row in known]
                groups += [batch.groups[row] for row in known]
                if known:
                    stored = batch.stored[known]
                    for logits, model in zip(outputs, models, strict=True):
                        logits.append(model.logits(stored))
                advance(len(batch.labels))
        if not y:
            raise _nothing_known(data, unknown, names)
        truth, logits_of = torch.tensor(y), [torch.cat(parts) for parts in outputs]
        hits = torch.stack([logits.argmax(1) == truth for logits in logits_of]).double().mean(0)
        seeds = [_seed(m, logits, truth) for m, logits in zip(models, logits_of, strict=True)]
        errors = [seed.calibration_error for seed in seeds]
        return cls(
            run=run,
            method=models[0].description.method,
            chosen=chosen,
            data=data.name,
            split=data.split,
            label_names=names,
            examples=len(y),
            unknown_labels=dict(unknown.most_common()),
            unreadable=data.left_out["unreadable"],
            unreadable_names=data.unreadable,
            unlabelled=data.left_out["unlabelled"],
            accuracy=_over_seeds([seed.accuracy for seed in seeds]),
            macro_f1=_over_seeds([seed.macro_f1 for seed in seeds]),
            calibration_error=(
                None if None in errors else _over_seeds([error for error in errors if error is not None])
            ),
            classes=_classes(names, seeds),
            groups=_groups(data.group_column, groups, hits),
            clients=_groups(data.client_column, clients, hits),
            seeds=seeds,
        )


def _nothing_known(data: LabelledFolder, unknown: Counter[str], names: Sequence[str]) -> InputError:
    if unknown:
        labels, known = (", ".join(map(on_one_line, [*some][:5])) for some in (unknown, names))
        return InputError(
            f"label: the model knows none of the labels of {data.path} ({labels}), but {known}; name another"
            " column, or other data"
        )
    why = f" ({data.unreadable[0]})" if data.unreadable else ""
    return InputError(f"path: no example of {data.path} has a label and can be read{why}; name other data")


def _seed(model: RunModel, logits: Tensor, y: Tensor) -> SeedEvaluation:
    classes = logits.shape[1]
    cells = (y * classes + logits.argmax(1)).bincount(minlength=classes**2)
    return SeedEvaluation(
        seed=model.description.seed,
        **scores_of(logits, y),
        confusion=cells.view(classes, classes).tolist(),
    )


def _classes(names: Sequence[str], seeds: Sequence[SeedEvaluation]) -> list[ClassScores]:
    confusion = torch.tensor([seed.confusion for seed in seeds]).sum(0)
    scores = []
    for number, name in enumerate(names):
        recalls = [recall for seed in seeds if (recall := seed.recall[number]) is not None]
        predicted = int(confusion[:, number].sum())
        scores.append(
            ClassScores(
                label=name,
                examples=int(confusion[number].sum()) // len(seeds),
                predicted=predicted / len(seeds),
                recall=fmean(recalls) if recalls else None,
                precision=int(confusion[number, number]) / predicted if predicted else None,
            )
        )
    return scores


def _groups(column: str | None, names: Sequence[str | None], hits: Tensor) -> Groups | None:
    """Return the accuracy by group; None without groups. Examples without a group are left out."""
    if column is None:
        return None
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name is not None:
            rows.setdefault(name, []).append(row)
    groups = [
        GroupAccuracy(name=name, examples=len(some), accuracy=float(hits[some].mean()))
        for name, some in rows.items()
    ]
    groups.sort(key=lambda group: (group.accuracy, -group.examples, group.name))
    if not groups:
        return None
    return Groups(column=column, count=len(groups), worst=groups[0], listed=groups[:MOST_GROUPS])


def _over_seeds(values: Sequence[float]) -> Figure:
    return Figure(mean=fmean(values), std=stdev(values) if len(values) > 1 else None, per_seed=list(values))
