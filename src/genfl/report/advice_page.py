"""The page of an advice: what is predicted, the pilot's samples, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from genfl.data.synthetic import SyntheticData
from genfl.report import plots
from genfl.report.advice_text import METHOD_NAMES, advice_lines
from genfl.report.pictures import VIEWS, Picture
from genfl.report.style import looks
from genfl.report.templates import page_template
from genfl.results.advice import Advice, Likely
from genfl.results.examples import generated_examples
from genfl.results.names import WITHOUT

NAMES = {WITHOUT: "without the generator", **METHOD_NAMES, "alone": "generated samples alone"}
"""What the page calls what is predicted."""

RECIPIENTS: Mapping[str, str] = {
    "sum": "the server, as a sum over clients",
    "server": "the server",
    "readers": "readers of the advice",
}


def render_advice(advice: Advice, samples: Path) -> str:
    """Return the page of an advice as HTML.

    Args:
        advice: The advice.
        samples: The folder of the generated samples of its pilot.
    """
    lines = advice_lines(advice)
    predicted = {WITHOUT: advice.without} | {arm: method.accuracy for arm, method in advice.methods.items()}
    names = [NAMES[arm] for arm in predicted]
    look = looks(names, names)
    charts = []
    if advice.curves:
        charts.append(
            plots.plot_predicted(
                {NAMES[arm]: advice.curves[arm] for arm in predicted},
                {NAMES[arm]: _ends(advice.planned_rounds, likely) for arm, likely in predicted.items()},
                look,
                "round",
                "predicted",
            )
        )
    alone = NAMES["alone"]
    pictures = _pictures(advice, samples)
    charts.append(
        plots.plot_predicted(
            {alone: advice.probes},
            {alone: [_end(volume.per_label, volume.alone) for volume in advice.volumes]},
            looks([alone], [alone]),
            "generated samples of each label",
            "probes",
        )
    )
    return page_template("advice.html.j2").render(
        title=f"{advice.run}: will the generator help?",
        advice=advice,
        verdict=lines[0][1],
        lines=lines[1:],
        charts=charts,
        looks=look,
        pictures=pictures,
        texts=any(picture.text for shown in pictures.values() for picture in shown),
        influences=[
            (NAMES[one.target], one.number, f"{one.points:+.1f}".replace("-", "−"))
            for one in advice.influences
        ],
        recipients=RECIPIENTS,
    )


def _end(x: int, likely: Likely) -> tuple[int, float, float, float]:
    return x, likely.value, likely.low, likely.high


def _ends(x: int, likely: Likely) -> list[tuple[int, float, float, float]]:
    return [_end(x, likely)]


def _pictures(advice: Advice, samples: Path) -> dict[str, list[Picture]]:
    """Return some of the pilot's samples of each label. No private example is shown."""
    data = SyntheticData.open(samples)
    view = VIEWS[data.modality]
    chosen = generated_examples(data, [label.label for label in advice.labels])
    return {
        label: [view.generated(example.content, view.title(example)) for example in examples]
        for label, examples in chosen.items()
    }
