import pytest

from genfl.llm import answers
from genfl.llm.answers import Answer
from genfl.llm.thoughts import opened_thought


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


THOUGHT = "The user wants a prompt about a cat.\nPerhaps a cat on a roof.\n"
REASONED = {
    "a closing tag alone": f"{THOUGHT}</think>\n\na cat",
    "two closing tags": f"{THOUGHT}</think>{THOUGHT}</think>a cat",
    "thinking": f"<thinking>{THOUGHT}</thinking>\na cat",
    "thought": f"<thought>\n{THOUGHT}</thought>a cat",
    "reasoning in capitals": f"<REASONING>{THOUGHT}</REASONING>\na cat",
    "Seed": f"<seed:think>{THOUGHT}</seed:think>a cat",
    "Magistral": f"[THINK]{THOUGHT}[/THINK]a cat",
    "Kimi": f"◁think▷{THOUGHT}◁/think▷a cat",
    "Command": f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>a cat<|END_RESPONSE|>",
    "channels": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>"
    "a cat<|return|>",
    "channels without marks": f"analysis{THOUGHT}assistantfinala cat",
    "an end of a turn": "a cat<|im_end|>\n<|im_start|>user\nNow about a cat and a dog.",
    "a beginning of a turn": "<|start_header_id|>assistant<|end_header_id|>\n\na cat<|eot_id|>",
    "Gemma": "<start_of_turn>model\na cat<end_of_turn>",
    "DeepSeek": "<｜Assistant｜>a cat<｜end▁of▁sentence｜>",
    "Llama 2": "<s> a cat </s>",
    "an answer in tags": f"<think>{THOUGHT}</think><answer>a cat</answer>",
    "a JSON list": '["a cat"]',
    "a fenced JSON object": '```json\n{"prompts": [\n  {"prompt": "a cat"}\n]}\n```',
}


@pytest.mark.parametrize("name", REASONED)
def test_answers_hold_no_thoughts_and_no_marks(name):
    assert answers.answer_lines(Answer(REASONED[name])) == ["a cat"]
    assert answers.answer_text(REASONED[name]) == "a cat"


@pytest.mark.parametrize(
    "answer",
    [
        f"<think>{THOUGHT}",
        f"<thinking>\n{THOUGHT}",
        f"[THINK]{THOUGHT}",
        f"<|channel|>analysis<|message|>{THOUGHT}",
        f"analysis{THOUGHT}",
        f"<think>{THOUGHT}</think>",
    ],
)
def test_answers_of_thoughts_alone_are_empty(answer):
    assert answers.answer_lines(Answer(answer, cut=True)) == []
    assert answers.answer_text(answer) == ""


def test_answers_keep_what_only_looks_like_a_mark():
    for text in ("I think <b>so</b> [thinking]", "analysis of a cat", "a < b and b > c", "a |cat| <3"):
        assert answers.answer_lines(Answer(text)) == [text]
        assert answers.answer_text(text) == text


def test_opened_thought_is_the_tag_at_the_end_of_a_prompt():
    assert opened_thought("<user>What is <think>?<assistant>") == ""
    assert opened_thought("<|im_start|>assistant\n<think>\n") == "<think>"
    assert opened_thought("[INST]hello[/INST][THINK]") == "[THINK]"


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        ('["a cat", "a red cat"]', ["a cat", "a red cat"]),
        ('[{"id": 1, "prompt": "a cat"}, {"id": 2, "prompt": "a red\\ncat"}]', ["a cat", "a red cat"]),
        ('"a cat"\n"a red cat"', ["a cat", "a red cat"]),
        ('{"prompt": "a cat"}\n{"prompt": "a red cat"}', ["a cat", "a red cat"]),
        ('Here are some:\n["a cat"]', ["a cat"]),
    ],
)
def test_answer_lines_reads_json(answer, lines):
    assert answers.answer_lines(Answer(answer)) == lines


@pytest.mark.parametrize(
    "answer",
    [
        '{"reasoning": "The user wants a cat.", "prompts": ["a cat"]}',
        '{\n  "reasoning": "The user wants a cat.",\n  "prompt": "a cat"\n}',
        '["a cat", "a red c',
    ],
)
def test_json_that_cannot_be_read_is_recognized(answer):
    lines = answers.answer_lines(Answer(answer))
    assert [line for line in lines if not answers.is_json(line)] in ([], ["}"])
    assert answers.is_json(answers.answer_text(answer))


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
