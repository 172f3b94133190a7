from collections import Counter

import numpy as np
import pytest

from genfl.errors import InputError
from genfl.prompts.plan import plan_prompts
from genfl.prompts.templates import MULTIPLE, Templates
from genfl.rng import Key

FILL = Templates("fill", "a {look} handwritten {label}", {"look": ["thin", "bold slanted", ""]})


def test_templates_follow_the_style():
    rng = np.random.default_rng(0)
    assert Templates("label").draw("cat", rng) == "cat"
    assert Templates("single").draw("airplane", rng) == "a photo of airplane"  # FedGC has no article
    multiple = {Templates("multiple").draw("cat", rng) for _ in range(300)}
    assert multiple == {template.format(label="cat") for template in MULTIPLE["image"]}
    assert {FILL.draw("six", rng) for _ in range(100)} == {
        "a thin handwritten six",
        "a bold slanted handwritten six",
        "a handwritten six",
    }


def test_templates_put_no_article_before_a_label():
    several = Templates("multiple").all("airplane")
    assert several[:2] == ["airplane", "a photo of airplane"]  # both are FedGC's
    assert not [text for text in several if " a airplane" in text]


def test_templates_follow_the_modality():
    rng = np.random.default_rng(0)
    assert Templates("single", modality="audio").draw("rain", rng) == "a sound of rain"
    assert Templates("single", modality="text").draw("sports", rng) == "a text about sports"
    several = {
        modality: Templates("multiple", modality=modality).all("x") for modality in ("image", "audio", "text")
    }
    assert {name: len(set(texts)) for name, texts in several.items()} == {
        "image": 11,
        "audio": 10,
        "text": 10,
    }
    assert not set(several["image"]) & set(several["audio"]) | set(several["audio"]) & set(several["text"])


def test_templates_keep_braces_in_a_label():
    assert FILL.draw("{look}", np.random.default_rng(0)).endswith("{look}")


@pytest.mark.parametrize(
    ("style", "template", "blanks", "message"),
    [
        ("fill", None, {}, r"prompts\.template: style 'fill' needs one"),
        ("fill", "a {look} thing", {"look": ["x"]}, r"must name \{label\}; add it"),
        ("fill", "a {look} {label}", {}, r"blank \{look\} has no words"),
        ("fill", "a {label}", {"look": ["x"]}, r"'look' is not named"),
        ("fill", "a {look} {label}", {"look": []}, r"blanks\.look: it has no words; give at least one"),
        ("fill", "a {label", {}, r"prompts\.template: "),
        ("fill", "a {label}", {"label": ["x"]}, r"another name"),
        ("fill", "a {label:d}", {}, r"a blank that is more than \{name\}"),
        ("fill", "a {label!x}", {}, r"prompts\.template: "),
        ("single", "a {label}", {}, r"takes no template"),
    ],
)
def test_templates_reject_what_does_not_fit(style, template, blanks, message):
    with pytest.raises(InputError, match=message):
        Templates(style, template, blanks)


def test_plan_prompts_blocks_have_one_scale():
    labels = ["a", "b", "c"]
    blocks = plan_prompts(labels, 70, FILL, [1.0, 2.0, 3.0], 16, Key(0))
    prompts = [prompt for block in blocks for prompt in block]
    assert [len(block) for block in blocks] == [16] * 13 + [2]
    assert Counter(prompt.label for prompt in prompts) == dict.fromkeys(labels, 70)
    assert all(len({prompt.guidance_scale for prompt in block}) == 1 for block in blocks)
    assert {prompt.guidance_scale for prompt in prompts} == {1.0, 2.0, 3.0}
    assert len({prompt.seed for prompt in prompts}) == 210
    assert blocks == plan_prompts(labels, 70, FILL, [1.0, 2.0, 3.0], 16, Key(0))
    assert blocks != plan_prompts(labels, 70, FILL, [1.0, 2.0, 3.0], 16, Key(1))


def test_plan_prompts_wrong_changes_texts_only():
    labels = ["a", "b", "c"]
    right = [p for block in plan_prompts(labels, 200, FILL, [1.0, 2.0], 16, Key(0)) for p in block]
    wrong = [p for block in plan_prompts(labels, 200, FILL, [1.0, 2.0], 16, Key(0), 0.3) for p in block]
    told = [prompt.text.split()[-1] for prompt in wrong]
    share = np.mean([said != prompt.label for said, prompt in zip(told, wrong, strict=True)])
    assert 0.24 < share < 0.36
    assert set(told) == set(labels)
    for mine, its in zip(wrong, right, strict=True):
        assert mine._replace(text="") == its._replace(text="")
        assert mine.text == its.text.removesuffix(its.label) + mine.text.split()[-1]
    every = [p for block in plan_prompts(labels, 5, FILL, [1.0], 16, Key(0), 1.0) for p in block]
    assert all(prompt.text.split()[-1] != prompt.label for prompt in every)
