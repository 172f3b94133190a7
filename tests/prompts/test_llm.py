"""Prompts by a chat model, behind a real server."""

import json
import re

import numpy as np
import pytest

from genfl.errors import GenflError
from genfl.llm import answers
from genfl.llm.queries import MAX_WORDS, PROMPT_BLANKS, PROMPT_QUERIES, ChatQuery, query_problem
from genfl.llm.server import ServerChat
from genfl.prompts.llm import PromptLists, prompt_problem, prompt_query, write_prompts
from genfl.prompts.templates import MULTIPLE, Templates
from genfl.rng import Key

LABELS = ["cat", "dog", "sea lion"]


@pytest.fixture
def ask(chat_server):
    def run(
        style="llm", label="cat", distinct=3, attempts=2, key=None, fallback=None, labels=LABELS, query=None
    ):
        return write_prompts(
            ServerChat("m", chat_server.url, wait=0.01),
            style,
            label,
            labels,
            "image",
            distinct=distinct,
            attempts=attempts,
            key=key or Key(0),
            fallback=fallback,
            query=query,
        )

    return run


def test_prompt_query_presets_are_as_before():
    """Word for word, so that the cached answers of earlier runs stay valid."""
    assert prompt_query(PROMPT_QUERIES["gptfl"], "cat", ["dog"], 5, "audio") == (
        'Q: "_ _ _ _ cat _ _ _ _" Please fill in the blanks and make it a prompt to generate a sound. Give 5'
        ' different answers. Each contains the words "cat" as they are. Write one on each line, and nothing'
        " else."
    )
    scenes = PROMPT_QUERIES["scenes"]
    assert prompt_query(scenes, "cat", ["dog", "sea lion"], 5, "image", ["a cat on a mat", "x"]) == (
        "Describe 5 different scenes for an image of cat, in one sentence each. Each contains the words"
        ' "cat" as they are. None of them mentions any of: dog, sea lion. These are known already, so give'
        " others: a cat on a mat; x. Write one on each line, and nothing else."
    )
    assert "None of them" not in prompt_query(scenes, "cat", [], 5, "image")
    assert {query.system for query in (PROMPT_QUERIES["gptfl"], scenes)} == {""}


def test_prompt_query_fedgc_has_the_parts_of_its_table():
    """A system prompt, examples, and a list of ten, each within ten words (FedGC, Table 7)."""
    fedgc = PROMPT_QUERIES["fedgc"]
    asked = prompt_query(fedgc, "sea lion", ["cat"], 3, "image", ["a sea lion"])
    assert fedgc.system
    assert asked.count("For the class") == 2
    assert "a list of 10 different prompts for an image of the class sea lion" in asked
    assert "at most 10 words" in asked
    assert "give others: a sea lion." in asked
    assert fedgc.max_words == 10


def test_write_prompts_follows_the_limit_of_its_query(chat_server, ask):
    lines = ["a cat sits on one two three four five six", "a cat sits on one two three four five six seven"]
    chat_server.behave = lambda query, seed, number: "\n".join(lines)
    assert ask(distinct=1, attempts=1, query=PROMPT_QUERIES["fedgc"]) == lines[:1]
    with pytest.raises(GenflError, match=r"1 of 2 .* it has more than 10 words"):
        ask(distinct=2, attempts=1, query=PROMPT_QUERIES["fedgc"])
    assert len(ask(distinct=2, attempts=1)) == 2


def test_write_prompts_sends_a_query_of_the_users(chat_server, ask):
    chat_server.behave = lambda query, seed, number: "a red cat"
    ask(distinct=1, query=ChatQuery("{{{count}}} of {label}, not {others}; {content}{avoid}{known}"))
    assert chat_server.asked[0][1]["messages"] == [
        {
            "role": "user",
            "content": "{1} of cat, not dog, sea lion; an image None of them mentions any of: dog, sea lion.",
        }
    ]


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("fedgc", None),
        ("{label}: {{x}}", None),
        ("{label} {colour}", "the blank {colour} is unknown; use {label}, {others}, {avoid}, {count}"),
        ("{label} {}", "the blank {} is unknown; use {label}"),
        ("{label!r}", "the blank {label} is unknown"),
        ("{label.upper}", "the blank {label.upper} is unknown"),
        ("{label", "not a query with blanks (expected '}' before end of string); write {{ and }} for"),
        ("fedgcc", "it lacks the blank {label}; add it, or name a preset (gptfl, scenes, fedgc)"),
        ("{" + "x" * 999 + "}", "the blank {" + "x" * 40 + "} is unknown"),
    ],
)
def test_query_problem_names_one_mistake(query, problem):
    wrong = query_problem(query, PROMPT_QUERIES, PROMPT_BLANKS, ["label"])
    assert wrong is problem is None or wrong.startswith(problem)


@pytest.mark.parametrize(
    ("style", "text", "wrong"),
    [
        ("llm", "a grey Cat on a mat", None),
        ("llm", "a cat and a dog", None),
        ("scenes", "a cat and a dog", "it names another label"),
        ("scenes", "a cat and a sea lion", "it names another label"),
        ("scenes", "a cat by the sea", None),
        ("scenes", "a cat that is chased by two dogs", "it names another label"),
        ("scenes", "a cat in the sea lion's place", "it names another label"),
        ("scenes", "a cat and other cats", None),
        ("llm", "a cat that is chased by two dogs", None),
        ("llm", "a kitten on a mat", "it does not name the label"),
        ("llm", "cats on mats", "it does not name the label"),
        ("llm", "Cat.", "it has no word besides the label"),
        ("llm", "_ _ cat on a mat", "its blanks are not filled in"),
        ("llm", "I'm sorry, but I cannot write about a cat", "a refusal"),
        ("llm", "cat " * (MAX_WORDS + 1), f"it has more than {MAX_WORDS} words"),
    ],
)
def test_prompt_problem_judges_lines(style, text, wrong):
    assert prompt_problem(style, text, "cat", LABELS) == wrong


def test_write_prompts_asks_until_there_are_enough(chat_server, ask):
    answers = [
        'Sure! Here are some prompts for cat:\n1. "A cat on a mat"\n2. a CAT, on a mat!\n3. a dog\n',
        "I'm sorry, but I can't do that about a cat.",
        "a red cat\na cat on a mat\nmy cat\nyour cat",
    ]
    chat_server.behave = lambda query, seed, number: answers[number]
    assert ask(attempts=5) == ["A cat on a mat", "a red cat", "my cat"]
    assert len(chat_server.asked) == 3
    asked = [request["messages"][0]["content"] for _, request in chat_server.asked]
    assert [re.search(r"Give (\d)", text).group(1) for text in asked] == ["3", "2", "2"]
    assert "give others: A cat on a mat." in asked[1]
    seeds = [request["seed"] for _, request in chat_server.asked]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_write_prompts_ignores_a_line_that_is_cut_off(chat_server, ask):
    def behave(query, seed, number):
        choice = {"message": {"content": "a red cat\nmy cat\nyour cat on"}, "finish_reason": "length"}
        return 200, {}, json.dumps({"choices": [choice]})

    chat_server.behave = behave
    with pytest.raises(GenflError, match="2 of 3 prompts for 'cat'"):
        ask()


def test_write_prompts_names_answers_that_end_in_their_thought(chat_server, ask):
    def behave(query, seed, number):
        choice = {"message": {"content": "<think>A red cat.\nMy cat."}, "finish_reason": "length"}
        return 200, {}, json.dumps({"choices": [choice]})

    chat_server.behave = behave
    with pytest.raises(
        GenflError, match=r"0 of 3 prompts for 'cat' .*\(an answer was cut off .*; raise max_t"
    ):
        ask()


def test_write_prompts_takes_no_json_that_is_not_clear(chat_server, ask):
    chat_server.behave = lambda query, seed, number: '{"thought": "A cat it is.", "prompts": ["a red cat"]}'
    with pytest.raises(GenflError, match=r"0 of 3 prompts for 'cat' .*, it is JSON\)"):
        ask()


def test_write_prompts_reports_too_few_in_one_line(chat_server, ask):
    chat_server.behave = lambda query, seed, number: "a cat on a mat\na big dog"
    with pytest.raises(GenflError) as caught:
        ask()
    assert str(caught.value) == (
        "prompts.llm: 1 of 3 prompts for 'cat' after 2 queries (unusable: 'a big dog', it does not name the"
        " label); lower distinct, raise attempts, use another model, or set fallback to multiple"
    )
    assert len(chat_server.asked) == 2


def test_write_prompts_fills_up_from_the_fallback(chat_server, ask):
    chat_server.behave = lambda query, seed, number: "a photo of cat\na cat on a mat"
    found = ask(distinct=4, fallback=Templates("multiple"))
    assert found == ["a photo of cat", "a cat on a mat", "cat", "an image of cat"]
    chat_server.behave = lambda query, seed, number: ""
    every = ask(distinct=99, fallback=Templates("multiple"))
    assert every == [template.format(label="cat") for template in MULTIPLE["image"]]


def test_write_prompts_logs_the_fallback_without_repeats(chat_server, ask, caplog):
    chat_server.behave = lambda query, seed, number: "A photo of cat.\nno animal"
    found = ask(distinct=4, attempts=1, fallback=Templates("multiple"))
    assert len({answers.normalize_words(line) for line in found}) == len(found) == 4
    assert found[0] == "A photo of cat."
    assert "3 of 4 prompts for 'cat' are templates (unusable: 'no animal', it does not name" in caplog.text


def test_write_prompts_raises_if_the_server_fails(chat_server, ask):
    chat_server.behave = lambda query, seed, number: (404, {}, "no such model")
    with pytest.raises(GenflError, match=r"status 404 \(no such model\)"):
        ask(fallback=Templates("multiple"))


def test_prompt_lists_draw_from_the_label():
    lists = PromptLists({"cat": ["a cat", "my cat"], "dog": ["a dog"]})
    rng = np.random.default_rng(0)
    assert {lists.draw("cat", rng) for _ in range(50)} == {"a cat", "my cat"}
    assert lists.draw("dog", rng) == "a dog"
