"""The schema of ``audit.json``: the figures of membership inference against a model of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genfl.results.schema import ResultModel

AUDIT_FILE = "audit.json"
"""The file with the figures of an audit."""

AUDIT_INFIX = ".audit-"
"""What follows the name of a run's folder in the name of its audits' folders, beside it."""


class MeasuredShare(ResultModel):
    """A share in [0, 1] with its interval of 95 % confidence over the draw of the examples."""

    value: float = Field(description="The share.")
    low: float = Field(description="Lower end of the interval.")
    high: float = Field(description="Upper end of the interval.")


class TruePositiveRate(ResultModel):
    """The true positive rate of an attack at a small false positive rate."""

    fpr: float = Field(description="Largest false positive rate that is allowed, in (0, 1).")
    tpr: MeasuredShare | None = Field(
        description="True positive rate, with the Clopper-Pearson interval at its threshold, which covers the"
        " draw of the members but not the choice of the threshold; null if it cannot be measured."
    )
    reason: str | None = Field(description="Why it cannot be measured; null if it is.")


class AttackMeasures(ResultModel):
    """The figures of one attack on one model."""

    attack: str = Field(description="Name of the attack: loss, lira, lira-offline or rmia.")
    accuracy: MeasuredShare = Field(
        description="Balanced accuracy on examples that did not fit the threshold: each half of the examples"
        " is classified by the best threshold of the other half. 0.5 is a guess."
    )
    best_accuracy: float = Field(
        description="Balanced accuracy of the best threshold in hindsight, an upper bound."
    )
    auc: MeasuredShare = Field(
        description="Area under the ROC curve, with DeLong's interval. 0.5 is a guess."
    )
    rates: list[TruePositiveRate] = Field(description="True positive rates at false positive rates.")


class AttackResult(AttackMeasures):
    """The figures of one attack on one model, with its ROC curve."""

    roc: list[tuple[float, float]] = Field(
        description="Points of the ROC curve: false and true positive rate, ascending, at most 200."
    )


class RoundAudit(ResultModel):
    """The attacks on the global model after a round."""

    round: int = Field(description="The round, from 1.")
    member_accuracy: float = Field(description="Accuracy of the model on the members, in [0, 1].")
    nonmember_accuracy: float = Field(description="Accuracy of the model on the non-members, in [0, 1].")
    attacks: list[AttackMeasures] = Field(description="The attacks, as on the final model.")


class CanaryBound(ResultModel):
    """A lower bound on epsilon, from canaries in one more training by the recipe of the run."""

    unit: Literal["sample", "user"] = Field(
        description="What canaries are: test examples with wrong labels, or clients that upload random"
        " directions."
    )
    canaries: int = Field(description="Number of canaries.")
    included: int = Field(description="How many of them took part, each by the toss of a coin.")
    guesses: int = Field(description="For how many of them the attacker made a guess.")
    correct: int = Field(description="How many guesses were right.")
    epsilon: float = Field(
        description="Lower bound on epsilon at delta with this confidence; 0 if the guesses prove nothing."
    )
    delta: float = Field(description="The delta of the bound, in (0, 1).")
    confidence: float = Field(description="Confidence of the bound.")
    accounted: float | None = Field(
        description="The epsilon that is accounted for this training at delta; null if nothing bounds it."
    )


class MembershipAudit(ResultModel):
    """Membership inference against the final model of a method, as in ``audit.json``."""

    format: Literal[1] = Field(1, description="Version of this file.")
    run: str = Field(description="Name of the run.")
    folder: str = Field(description="Folder of the run.")
    method: str = Field(description="The method.")
    chosen: bool = Field(
        description="Whether genfl chose the method: the best federated one by mean accuracy in the run."
    )
    seed: int = Field(description="Seed of the model.")
    model_sha256: str = Field(description="SHA-256 of the attacked model.safetensors.")
    members: int = Field(description="Number of examples that clients trained on.")
    nonmembers: int = Field(description="Number of test examples, which no client trained on.")
    member_accuracy: float = Field(description="Accuracy of the model on the members, in [0, 1].")
    nonmember_accuracy: float = Field(description="Accuracy of the model on the non-members, in [0, 1].")
    shadows: int | None = Field(description="Number of shadow models; null if no attack needs them.")
    attacks: list[AttackResult] = Field(description="The attacks, in the order in which they were asked for.")
    uploads: list[AttackResult] | None = Field(
        description="The attacks on single uploads: each example is looked up in the model that its client's"
        " upload alone gives the server, in one more round. Null if they were not attacked."
    )
    rounds: list[RoundAudit] | None = Field(
        description="The attacks on the models that the run keeps (federate.keep_every), and on the final one"
        " as the last. Null if the run keeps final models alone."
    )
    canaries: CanaryBound | None = Field(
        description="A lower bound on epsilon from canaries; null if there were none."
    )
