"""What the page on privacy says, against the code: its numbers, its table, its options, its claims."""

import math
import re
from pathlib import Path

import pytest
import torch

from genfl import config, trees
from genfl.config.privacy import Privacy
from genfl.learning.local import Context, no_penalty
from genfl.learning.per_sample import per_sample_gradient
from genfl.learning.task import classification
from genfl.models import CNN
from genfl.privacy.dp.sample import ClippedGradient
from genfl.privacy.ledger import releases
from genfl.report.releases import TOPICS
from genfl.rng import Key

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASE = """
name: x
data: {name: digits, partition: {clients: 6}}
generator: none
model: mlp
federate: {clients_per_round: 2}
methods: {plain: {algorithm: fedavg}}
"""


def rows(text, head):
    """The rows of a table of the page, as lists of cells."""
    lines = text[text.index(head) :].splitlines()
    table = lines[2 : next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


def test_the_example_of_epsilon_is_computed():
    shown = rows(PAGE, "| ε | e^ε | right at most |")
    assert len(shown) == 6
    for epsilon, factor, right in shown:
        odds = math.exp(float(epsilon))
        assert float(factor.replace(",", "")) == pytest.approx(odds, rel=5e-3)
        assert float(right.removesuffix(" %")) == pytest.approx(100 * odds / (1 + odds), abs=0.05)


def test_the_readme_has_the_same_ten_lines():
    head = "| what | who learns it | by default |"
    assert rows(README, head) == rows(PAGE, head)
    assert len(rows(PAGE, head)) == 10


def test_the_table_has_a_line_for_each_topic():
    """Each topic of the ledger is a line of the page, but for references, which a list explains."""
    shown = " ".join(row[0] for row in rows(PAGE, "| what | who learns it | by default |"))
    words = {
        "labels": "label names",
        "sizes": "how many samples",
        "training": "what clients learn",
        "generated": "prompts alone",
        "guided": "real examples guide",
        "clients": "hold back",
        "measures": "similarity",
        "examples": "near-duplicates",
        "test": "test set",
    }
    assert set(words) == set(TOPICS) - {"references"}
    assert all(word in shown for word in words.values())
    assert "**References**" in PAGE


def test_every_option_is_explained():
    for field in Privacy.model_fields.keys() - {"accountant"}:
        assert re.search(rf"\b{field}\b", PAGE), field


def test_options_are_as_shown():
    block = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
    shown = [
        config.parse(BASE, [line.split("#")[0].replace(": ", "=", 1)]).privacy for line in block.splitlines()
    ]
    assert [privacy.unit for privacy in shown] == ["sample", "sample", "user", "sample"]
    assert shown[3].public == ["labels", "sizes", "test"]


def test_the_line_of_the_command_is_as_shown():
    from genfl.report.releases import privacy_line
    from genfl.results.schema import PrivacyResult

    line = re.search(r"`(privacy: epsilon [^`]*)`", PAGE)[1]
    names = ["label names", "label holders", "census", "training", "measures of rounds", "scores on clients"]
    guarantee = {"unit": "sample", "epsilon": 7.9, "delta": 1e-5, "outside": names}
    result = PrivacyResult(releases=[], guarantees={"plain": guarantee}, notes=[])
    assert privacy_line(result) == line


def test_who_has_the_stream_can_subtract_the_noise():
    """The noise of a step is a function of its random stream, and of no data."""
    task = classification(lambda: CNN((1, 8, 8), 3), (1, 8, 8))
    weights = task.init(Key(0))
    plain, noised = (ClippedGradient(noise, 1.0, per_sample_gradient(task)) for noise in (0.0, 2.0))

    def noise(x, seed):
        batch = {"x": x, "y": torch.arange(4) % 3}
        context = Context(task, {}, {}, {}, Key(seed))
        gradients = (way(weights["params"], {}, batch, context, no_penalty)[0] for way in (noised, plain))
        return trees.leaves(trees.sub(*gradients))

    mine, yours = torch.rand(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second, other = noise(mine, 1), noise(yours, 1), noise(mine, 2)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, second, strict=True))
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(first, other, strict=True))


def test_guided_samples_act_twice_at_the_sample_level_alone():
    guided = "methods={plain: {algorithm: fedavg, data: mixed, content: {samples: 6, guidance: real}}}"
    for section, listed in (
        ("{unit: sample, epsilon: 8, generated: protected}", True),
        ("{unit: user, epsilon: 8}", False),
    ):
        settings = config.parse(BASE, [guided, "generator={kind: image}", f"privacy={section}"])
        assert ("influence of guides" in {row.name for row in releases(settings)}) == listed


def test_budgets_that_depend_on_data_are_exact():
    for budget, exact in (("equal", False), ("inverse", True), ("water_filling", True)):
        content = f"content: {{samples: 6, budget: {budget}}}"
        method = f"methods={{plain: {{algorithm: fedavg, data: mixed, {content}}}}}"
        settings = config.parse(
            BASE, [method, "generator={kind: image}", "privacy={unit: sample, epsilon: 8}"]
        )
        assert ("shares of generated samples" in {row.name for row in releases(settings)}) == exact
