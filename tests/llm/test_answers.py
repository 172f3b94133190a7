import pytest

from genfl.llm import answers
from genfl.llm.answers import Answer


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        ("a cat on a mat", ["a cat on a mat"]),
        ("1. a cat\n2) a red cat\n(3) a small cat\n- a big cat\n* one cat\n• my cat", None),
        ('"a cat"\n“a red cat”\n\'a small cat\'\n**a big cat**\n`one cat`\n## "**my cat**"', None),
        (
            "Sure! Here are 6 prompts for cat:\n\na cat\na red cat\na small cat\na big cat\none cat\nmy cat",
            None,
        ),
        ("Sure!\nHere is what you asked for:\n```text\na cat\n```", ["a cat"]),
        ("<think>The user wants cats.\na cat?</think>\n\nA: a cat", ["a cat"]),
        ("<think>The user wants cats and I will never stop", []),
        ("a cat\x00\u200b\r\nmy cat\n\n\n", ["a cat", "my cat"]),
        ("12 cats in 1.5 metres", ["12 cats in 1.5 metres"]),
        ('"a cat" and "a dog"', ['"a cat" and "a dog"']),
        ("#fail of a cat", ["#fail of a cat"]),
        ("", []),
    ],
)
def test_answer_lines_strips_marks_and_preambles(answer, lines):
    cats = ["a cat", "a red cat", "a small cat", "a big cat", "one cat", "my cat"]
    assert answers.answer_lines(Answer(answer)) == (cats if lines is None else lines)


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        ("a cat\na red ca", ["a cat"]),
        ("a cat\na red cat\n", ["a cat", "a red cat"]),
        ("a ca", []),
        ("<think>a cat\na red cat\na", []),
    ],
)
def test_answer_lines_leaves_out_the_line_that_is_cut_off(answer, lines):
    assert answers.answer_lines(Answer(answer, cut=True)) == lines


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('Sure, here is a tweet about it:\n\n"@airline you lost\nmy bag"', "@airline you lost my bag"),
        ("Here's an example:  **my bag** is gone", "my bag is gone"),
        ("Certainly!\n\nmy bag is gone", "my bag is gone"),
        ("Text: my bag is gone", "my bag is gone"),
        ("Sure, another delay. Thanks: not.", "Sure, another delay. Thanks: not."),
        ("```\nmy bag\n```", "my bag"),
        ("  \n", ""),
    ],
)
def test_answer_text_strips_preamble_and_quotes(answer, text):
    assert answers.answer_text(answer) == text


def test_named_labels_prefers_the_longer_label():
    labels = ["truck", "fire truck", "cat", "Sea or Lake", "lake"]
    assert answers.named_labels("a Cat concatenates trucks", labels) == {"cat"}
    assert answers.named_labels("a fire truck, red", labels) == {"fire truck"}
    assert answers.named_labels("a truck by a fire truck", labels) == {"truck", "fire truck"}
    assert answers.named_labels("sea  or lake", labels) == {"sea or lake"}
    assert answers.named_labels("C++ and (x)", ["c++", "(x)", "c"]) == {"c++", "(x)"}


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("Sorry, I cannot do this", True),
        ("I cannot assist with this request.", True),
        ("I can’t write that", True),
        ("As an AI language model, I have no cats", True),
        ("I cannot believe that I wait for three hours", False),
        ("sorry crew, sorry seats, never again", False),
        ("I can't find my bag", False),
        ("I can't do this anymore", False),
        ("I'm sorry, but I cannot generate hateful or offensive language about people.", True),
        ("I'm sorry, but I can't write a negative story promoting violence.", True),
        ("Sorry, I don't feel comfortable writing that.", True),
        ("I apologize, but I can't continue with this conversation.", True),
        ("Sorry, but I must decline this request.", True),
        ("Sorry, I'm not able to discuss that topic.", True),
        ("I cannot provide medical advice.", True),
        ("I cannot create explicit descriptions of violence.", True),
        ("I can't do this movie justice", False),
        ("I will not do that twice, awful hotel", False),
        ("Sorry, I can't help but laugh at this crew", False),
        ("I apologize, but I cannot fulfill this request.", True),
        ("I'm unable to generate content of that kind", True),
        ("Unfortunately, I can't provide such a text.", True),
        ("Unfortunately I waited three hours for my bag", False),
        ("Sorry but I will never fly with you again", False),
        ("I'm sorry I ever booked this flight", False),
        ("I can't help but love this airline", False),
        ("I won't create a fuss but the crew was rude", False),
    ],
)
def test_is_refusal_tells_refusals_from_complaints(answer, refused):
    assert answers.is_refusal(answer) is refused
