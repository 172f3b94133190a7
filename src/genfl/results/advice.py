"""The schema of ``advice.json``: whether a generator will help a run, and what that rests on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from genfl.results.schema import ResultModel

ADVICE_FILE = "advice.json"
"""The file with an advice."""

GainDirection = Literal["helps", "makes no difference", "hurts"]


class Likely(ResultModel):
    """A predicted value, and the interval that 9 of 10 runs should lie in."""

    value: float = Field(description="The most likely value.")
    low: float = Field(description="Lower end of the interval.")
    high: float = Field(description="Upper end of the interval.")


class MethodAdvice(ResultModel):
    """What a use of the generator is expected to give."""

    accuracy: Likely = Field(description="Test accuracy after all rounds, in [0, 1].")
    gain: Likely = Field(description="Accuracy minus that without the generator, in [−1, 1].")
    direction: GainDirection = Field(
        description="helps: the gain is above 2 points. hurts: it is below −2 points. Else it makes no"
        " difference."
    )
    certain: bool = Field(description="Whether the whole interval of the gain has this direction.")


class LabelAdvice(ResultModel):
    """What the pilot shows of one label."""

    label: str = Field(description="Name of the label.")
    samples: int = Field(description="Generated samples of the pilot.")
    near_duplicates: int = Field(description="How many of them are close to an earlier one of the label.")
    recall: float | None = Field(
        description="Share of the clients' examples of the label that a model trained on the pilot's samples"
        " alone gets right, in [0, 1]; null if no client has one."
    )
    distance: float | None = Field(
        description="Fréchet distance of generated from private samples in the features of this model, in"
        " units of the spread within labels; null if there are too few."
    )
    weak: bool = Field(description="Whether it is among the labels that the generator shows worst.")


class VolumeAdvice(ResultModel):
    """What other numbers of generated samples would give."""

    per_label: int = Field(description="Generated samples of each label.")
    alone: Likely = Field(description="Accuracy of a model trained on them alone, in [0, 1].")


class CostAdvice(ResultModel):
    """What the run would cost, by what the pilot took."""

    pilot_seconds: float = Field(description="Time of the pilot, with its probes, in seconds.")
    generation_seconds: float = Field(description="Time to generate all samples of the run, in seconds.")
    training_seconds: float | None = Field(
        description="Time of the federated rounds of all methods and seeds, in seconds; null without a"
        " federation."
    )
    bytes_per_client: float | None = Field(
        description="Bytes that a client sends and receives in a round; null without a federation."
    )
    joules: float | None = Field(description="Energy of the pilot in joules; null if it was not measured.")


class Influence(ResultModel):
    """How much a number of the evidence moved a prediction."""

    target: str = Field(description="What is predicted: alone, without, gptfl, fedgc or both.")
    number: str = Field(description="The number; docs/advice.md explains them.")
    points: float = Field(
        description="Points of accuracy by which it moved the prediction, from that of the table's mean."
    )


class Learned(ResultModel):
    """What somebody learned of private data during the advice."""

    what: str = Field(description="What was computed.")
    source: str = Field(description="From what.")
    recipient: str = Field(description="Who learned it: `sum` for the server, as a sum over clients.")
    mechanism: str = Field(description="What protected it.")


class Advice(ResultModel):
    """Whether a generator will help a run, as in ``advice.json``."""

    format: Literal[1] = Field(1, description="Version of this file.")
    run: str = Field(description="Name of the run.")
    data: str = Field(description="Name of the data set.")
    generator: str = Field(description="Kind of the generator.")
    baseline: str | None = Field(
        description="Name of the run's method that has no generator; null if the advice made one up."
    )
    per_label: int = Field(description="Generated samples of each label in the pilot.")
    planned_per_label: int = Field(description="Those of the run.")
    rounds: int = Field(description="Rounds of each method of the pilot; 0 without a federation.")
    planned_rounds: int = Field(description="Those of the run.")
    without: Likely = Field(description="Test accuracy without the generator, after all rounds, in [0, 1].")
    alone: Likely = Field(
        description="Test accuracy of a model trained on the run's generated samples alone, in [0, 1]."
    )
    methods: dict[str, MethodAdvice] = Field(description="The uses of the generator: gptfl, fedgc, both.")
    best: str | None = Field(
        description="The use with the largest gain, if it helps; null if none does. Without a federation, it"
        " must do so for certain."
    )
    adds: bool = Field(
        description="Whether both uses together are expected to gain 2 points more than the better one."
    )
    where: Literal["server", "clients"] | None = Field(
        description="Where generated samples do most: at the server, which pre-trains, or in the clients;"
        " null if no use helps."
    )
    labels: list[LabelAdvice] = Field(description="The labels, in the order of their class indices.")
    volumes: list[VolumeAdvice] = Field(description="Half the planned number of samples, all, and double.")
    cost: CostAdvice = Field(description="What the run would cost.")
    curves: dict[str, list[tuple[int, float]]] = Field(
        description="Test accuracy in the pilot: pairs of round and accuracy, by method."
    )
    probes: list[tuple[int, float]] = Field(
        description="Accuracy on the clients' data of models trained on generated samples alone: pairs of"
        " samples of each label and accuracy."
    )
    influences: list[Influence] = Field(description="What moved the predictions most, largest first.")
    learned: list[Learned] = Field(description="What was computed from private data, and who learned it.")
    left_out: list[str] = Field(description="What of the run the pilot left out.")
    table_runs: int = Field(description="Number of full runs that the predictions rest on.")
    table_data: int = Field(
        description="Number of data sets of these runs; that of this run is not among them."
    )
    evidence: dict[str, Any] = Field(description="All numbers of the pilot, as the predictor takes them.")
