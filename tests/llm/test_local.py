"""Chat models that run here, from folders as they come."""

import shutil

import pytest

from genfl.errors import GenflError, InputError
from genfl.llm.answers import Answer
from genfl.llm.local import LocalChat, check_local_model

pytestmark = pytest.mark.slow


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


def test_local_model_that_fails_is_named(chat_model):
    chat = LocalChat(str(chat_model()), "cpu", 0.5, 12, "prompts.llm")
    chat.model.resize_token_embeddings(3)  # a tokenizer of another model
    with pytest.raises(
        GenflError, match=r"^prompts\.llm\.model: model cannot answer a query of \d+ tokens \("
    ):
        chat.ask("hello", 0)


def test_chat_template_that_fails_is_found_before_work(chat_model):
    folder = chat_model()
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(
        InputError, match=r"^prompts\.llm\.model: the tokenizer of .* \(roles must alternate\); give"
    ):
        check_local_model(str(folder), "prompts.llm")
