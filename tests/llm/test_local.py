"""Chat models that run here, from folders as they come."""

import shutil

import pytest

from genfl.llm.answers import Answer
from genfl.llm.local import LocalChat


@pytest.fixture
def chat_model(tiny_chat_model, tmp_path):
    """Copies the chat model, with other names for some of its tokens."""

    def copy(**names):
        folder = tmp_path / "model"
        shutil.copytree(tiny_chat_model, folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            content = (folder / file).read_text()
            for old, new in names.items():
                content = content.replace(f"<{old}>", new).replace(f'"{old}"', f'"{new}"')
            (folder / file).write_text(content)
        return folder

    return copy


def test_local_answer_in_a_thought_that_the_template_opens(chat_model, chat_texts):
    query = (
        'Write one text of the class "good". The classes are: bad, good.\nWhat it is: a text about good.\n'
        "It has about 6 words.\nAnswer with the text alone."
    )
    folder = chat_model(assistant="<think>", **{"and": "</think>"})
    chat = LocalChat(str(folder), "cpu", 0.5, 12, "generator")
    texts = {chat.ask(query, seed).text.strip() for seed in range(8)}
    # "the staff was kind and fast" closes the thought, the other texts never do
    assert texts == {"", "fast"}
    assert LocalChat(str(folder), "cpu", 0.5, 2, "generator").ask(query, 0) == Answer("", cut=True)
