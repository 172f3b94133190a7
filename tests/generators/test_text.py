"""Texts by a chat model: a tiny one that runs here, and a server."""

import pytest

from genfl import config
from genfl.config.generation import TextGenerator
from genfl.data.samples import Prompt
from genfl.errors import GenflError, InputError
from genfl.generators.registry import GENERATORS
from genfl.generators.text import UNUSABLE_BLOCK, ChatTexts, is_copy
from genfl.llm.queries import TEXT_QUERIES

LABELS = ["bad", "good"]


def prompts(count=6, **more):
    labels = [LABELS[n % 2] for n in range(count)]
    return [Prompt(label, f"a text about {label}", 1.0, n, **more) for n, label in enumerate(labels)]


@pytest.fixture
def writer(chat_server):
    def make(folder=None, **options):
        options = {"words": 6, "base_url": chat_server.url, "model": "m", **options}
        return ChatTexts(TextGenerator(kind="text", **options).model_dump(), LABELS, folder)

    return make


@pytest.fixture
def local(tiny_chat_model):
    options = {"model": str(tiny_chat_model), "words": 6, "max_tokens": 20, "temperature": 0.5}
    return ChatTexts(TextGenerator(kind="text", **options).model_dump(), LABELS)


class TestLocal:
    def test_local_texts_are_of_the_class(self, local, chat_texts):
        samples = list(local.generate(prompts(24)))
        for label in LABELS:
            found = {sample.content for sample in samples if sample.prompt.label == label}
            assert found == set(chat_texts[label])

    def test_local_text_depends_on_its_prompt_only(self, local):
        import torch

        asked = prompts(8)
        torch.manual_seed(1)
        together = [sample.content for sample in local.generate(asked)]
        before = torch.get_rng_state()
        alone = [next(local.generate([prompt])).content for prompt in reversed(asked)]
        assert alone[::-1] == together
        assert torch.equal(before, torch.get_rng_state()), "the caller's stream is left alone"

    def test_local_text_that_is_cut_off_is_rejected(self, tiny_chat_model, caplog):
        options = {"model": str(tiny_chat_model), "words": 2, "max_tokens": 4, "temperature": 0.5}
        short = ChatTexts(TextGenerator(kind="text", **options).model_dump(), LABELS)
        assert {sample.content for sample in short.generate(prompts(4))} == {""}
        assert "cut off, for example by max_tokens" in caplog.text

    def test_check_names_what_is_no_chat_model(self, tmp_path, tiny_chat_model):
        import shutil

        options = TextGenerator(kind="text", model=str(tmp_path)).model_dump()
        check = GENERATORS["text"].check
        with pytest.raises(
            InputError, match=r"generator\.model: the folder .* has no config\.json, so it is "
        ):
            check(options, None)
        plain = tmp_path / "plain"
        shutil.copytree(tiny_chat_model, plain)
        (plain / "chat_template.jinja").unlink()
        options["model"] = str(plain)
        with pytest.raises(
            InputError, match=r"is not a chat model, because its tokenizer has no chat template; use "
        ):
            check(options, None)
        options["model"] = "genfl-tests/absent"
        with pytest.raises(
            InputError, match=r"^generator\.model: 'genfl-tests/absent' is not a folder, not in the local "
        ):
            check(options, None)
        options |= {"model": str(tiny_chat_model), "device": "cuda:9"}
        with pytest.raises(InputError, match=r"generator\.device: 'cuda:9', but torch sees no"):
            check(options, None)

    def test_damaged_weights_are_named(self, tmp_path, tiny_chat_model):
        import shutil

        shutil.copytree(tiny_chat_model, tmp_path / "m")
        (tmp_path / "m" / "model.safetensors").write_bytes(b"x" * 100)
        options = TextGenerator(kind="text", model=str(tmp_path / "m")).model_dump()
        with pytest.raises(InputError, match=r"generator\.model: .*model\.safetensors is damaged \(.*\); "):
            ChatTexts(options, LABELS)

    def test_fingerprint_covers_the_chat_template(self, tmp_path, tiny_chat_model):
        import shutil

        made = []
        for name, text in (("a", "<user> x"), ("b", "<user> y")):
            shutil.copytree(tiny_chat_model, tmp_path / name)
            (tmp_path / name / "chat_template.jinja").write_text(text)
            options = TextGenerator(kind="text", model=str(tmp_path / name)).model_dump()
            made.append(GENERATORS["text"].fingerprint(options, "text"))
        assert made[0] != made[1]


def test_chat_texts_query_holds_class_prompt_and_length(chat_server, writer):
    chat_server.behave = lambda query, seed, number: "what a day we had with you"
    list(writer().generate(prompts(1)))
    assert chat_server.asked[0][1]["messages"][0]["content"] == (
        'Write one text of the class "bad". The classes are: bad, good.\nWhat it is: a text about bad.\n'
        "It has about 6 words.\nAnswer with the text alone."
    )


UNUSABLE = {
    "": "empty",
    "I'm sorry, but I can't write that.": "a refusal",
    "a text about bad": "it repeats the query",
    '{"text": "my bag is gone for good", "class": "bad"}': "it is JSON",
    "<think>My bag is gone for good, or yours.": "empty",
    "hm": "it has 1 words instead of about 6",
    "word " * 19: "it has 19 words instead of about 6",
}


@pytest.mark.parametrize("answer", UNUSABLE)
def test_chat_texts_ask_again_until_usable(chat_server, writer, caplog, answer):
    fine = 'Sure, here is one:\n"my bag is *really* gone"'
    chat_server.behave = lambda query, seed, number: fine if number == 2 else answer
    (sample,) = writer(attempts=3).generate(prompts(1))
    assert sample.content == "my bag is *really* gone"
    assert len({request["seed"] for _, request in chat_server.asked}) == 3
    chat_server.behave = lambda query, seed, number: answer
    (sample,) = writer(attempts=2).generate(prompts(1))
    assert sample.content == ""
    assert "1 of 1 texts are unusable after 2 attempts each, for example" in caplog.text
    assert caplog.text.rstrip().endswith(UNUSABLE[answer])


def test_chat_texts_stop_if_no_text_is_usable(chat_server, writer):
    chat_server.behave = lambda query, seed, number: "no"
    with pytest.raises(GenflError) as caught:
        list(writer(attempts=2).generate(prompts(UNUSABLE_BLOCK)))
    assert str(caught.value) == (
        "generator: 10 of 10 texts are unusable after 2 attempts each, for example 'no': it has 1 words"
        " instead of about 6; use another model, or change words or attempts"
    )
    assert len(chat_server.asked) == 20


class TestJoint:
    """Texts of every label from one query, as in Figure 9 of FedGC."""

    LINES = (
        "1. **Good:** the crew was kind to us",
        'bad: "we waited for half the night"',
        "good: what a smooth flight it was",
        "nothing: is a class of this name",
        "bad: no",
        "bad: nobody knew where my bag was",
        "bad: a third one that is not wanted",
    )
    EXAMPLES = ("thanks for a lovely trip", "my suitcase was in another town", "so nice", "so late")
    CLASSES = ("good", "bad", "good", "bad")

    def test_joint_query_holds_labelled_examples_of_all_classes(self, chat_server, writer):
        chat_server.behave = lambda query, seed, number: "\n".join(self.LINES)
        fewshot = writer(query="fewshot", trusted=True)
        asked = prompts(2, guides=(*self.EXAMPLES, "a fifth"), guide_labels=(*self.CLASSES, "bad"))
        list(fewshot.generate(asked))
        ((_, request),) = chat_server.asked
        system, query = request["messages"]
        assert system == {"role": "system", "content": TEXT_QUERIES["fewshot"].system}
        assert query["content"] == (
            "The classes are: bad, good.\nReal examples:\n- good: thanks for a lovely trip\n"
            "- bad: my suitcase was in another town\n- good: so nice\n- bad: so late\n"
            "Write in their manner, and copy none of them.\nWrite 2 new texts of each class, with about 6"
            " words each.\nWrite one on each line, and begin the line with its class and a colon. Write"
            " nothing else."
        )

    def test_joint_query_serves_two_samples_of_each_label(self, chat_server, writer):
        chat_server.behave = lambda query, seed, number: "\n".join(self.LINES)
        samples = list(writer(query="fewshot").generate(prompts(8)))
        assert len(chat_server.asked) == 2
        texts = [(sample.prompt.label, sample.content) for sample in samples]
        assert texts == 2 * [
            ("bad", "we waited for half the night"),
            ("good", "the crew was kind to us"),
            ("bad", "nobody knew where my bag was"),
            ("good", "what a smooth flight it was"),
        ]
        assert [sample.prompt for sample in samples] == prompts(8)

    def test_joint_query_is_asked_again_for_what_is_missing(self, chat_server, writer, caplog):
        answers = ["good: the crew was kind to us", "bad: we waited for half the night", "x"]
        chat_server.behave = lambda query, seed, number: answers[min(number, 2)]
        samples = list(writer(query="fewshot", attempts=3).generate(prompts(4)))
        assert len(chat_server.asked) == 3
        assert [sample.content for sample in samples] == [
            "we waited for half the night",
            "the crew was kind to us",
            "",
            "",
        ]
        assert "2 of 4 texts are unusable after 3 attempts each, for example no line begins" in caplog.text

    def test_joint_copy_is_neither_shown_nor_kept(self, chat_server, writer, tmp_path):
        copy = "bad: My suitcase was in another town!\ngood: what a smooth flight it was"
        chat_server.behave = lambda query, seed, number: copy
        fewshot = writer(tmp_path, query="fewshot", trusted=True, attempts=2)
        asked = prompts(2, guides=self.EXAMPLES, guide_labels=self.CLASSES)
        assert [s.content for s in fewshot.generate(asked)] == ["", "what a smooth flight it was"]
        kept = "".join(path.read_text() for path in tmp_path.iterdir())
        assert "smooth" in kept
        assert "suitcase" not in kept
        again = writer(tmp_path, query="fewshot", trusted=True, attempts=2)
        assert [s.content for s in again.generate(asked)] == ["", "what a smooth flight it was"]
        assert len(chat_server.asked) == 2, "cached answers are not asked for again"


def test_a_users_query_and_system_prompt_are_sent(chat_server, writer):
    chat_server.behave = lambda query, seed, number: "what a day we had with you"
    own = writer(query="{words} {{words}}, {label} of {labels}: {prompt}{examples}", system="Be kind.")
    list(own.generate(prompts(1)))
    assert chat_server.asked[0][1]["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "6 {words}, bad of bad, good: a text about bad"},
    ]


def test_cached_answers_depend_on_the_system_prompt(chat_server, writer, tmp_path):
    chat_server.behave = lambda query, seed, number: "what a day we had with you"
    for system in (None, "", "Be kind.", "Be kind.", "Be short."):
        list(writer(tmp_path, system=system).generate(prompts(1)))
    roles = [[message["role"] for message in request["messages"]] for _, request in chat_server.asked]
    assert roles == [["user"], ["system", "user"], ["system", "user"]]


def test_local_model_without_a_system_role_is_named(tiny_chat_model, tmp_path):
    import shutil

    shutil.copytree(tiny_chat_model, tmp_path / "m")
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    (tmp_path / "m" / "chat_template.jinja").write_text(template)
    options = TextGenerator(kind="text", model=str(tmp_path / "m"), system="Be kind.").model_dump()
    with pytest.raises(
        InputError, match=r"^generator\.system: the chat template of .* takes no system prompt"
    ):
        GENERATORS["text"].check(options, None)
    GENERATORS["text"].check({**options, "system": None}, None)


class TestGuided:
    REAL = ("my suitcase was in another town", "no one told us anything at all", "a third one")

    def test_guided_query_holds_real_examples(self, chat_server, writer):
        chat_server.behave = lambda query, seed, number: "we sat there for four hours"
        (sample,) = writer(trusted=True, shots=2).generate(prompts(1, guides=self.REAL))
        query = chat_server.asked[0][1]["messages"][0]["content"]
        assert 'Real examples of the class "bad":\n- my suitcase was in another town\n- no one told' in query
        assert "a third one" not in query
        assert sample.content == "we sat there for four hours"

    @pytest.mark.parametrize(
        "copy",
        [
            '"My suitcase was in another town!"',
            "my suitcase was in another town please",
            "Hey my suitcase was in another town",
            "my suitcase was in another city",
            "<think>Like my suitcase was in another town.</think>no",
        ],
    )
    def test_guided_copy_is_neither_shown_nor_kept(self, chat_server, writer, caplog, tmp_path, copy):
        chat_server.behave = lambda query, seed, number: copy
        (sample,) = writer(tmp_path, trusted=True, attempts=2).generate(prompts(1, guides=self.REAL))
        assert sample.content == ""
        assert ("it copies a real example" in caplog.text) is ("<think>" not in copy)
        kept = [path.read_text() for path in tmp_path.iterdir()]
        assert len(kept) == len(chat_server.asked) == 2
        assert "suitcase" not in caplog.text + "".join(kept)
        # gone on with: refused as before, and not asked again
        (sample,) = writer(tmp_path, trusted=True, attempts=3).generate(prompts(1, guides=self.REAL))
        assert len(chat_server.asked) == 3

    def test_guided_thoughts_are_not_kept(self, chat_server, writer, tmp_path):
        thought = "<think>my suitcase was in another town, so</think>we sat there for four hours"
        chat_server.behave = lambda query, seed, number: thought
        made = [list(writer(tmp_path, trusted=True).generate(prompts(1, guides=self.REAL))) for _ in "ab"]
        assert made[0] == made[1]
        assert made[0][0].content == "we sat there for four hours"
        assert len(chat_server.asked) == 1
        assert "suitcase" not in "".join(path.read_text() for path in tmp_path.iterdir())

    def test_guided_texts_go_to_trusted_servers_only(self, chat_server, writer):
        with pytest.raises(InputError, match=r"server at generator\.base_url would see clients' real"):
            list(writer().generate(prompts(2, guides=self.REAL)))
        assert not chat_server.asked
        chat_server.behave = lambda query, seed, number: "we sat there for four hours"
        list(writer(shots=0).generate(prompts(1, guides=self.REAL)))
        assert "suitcase" not in str(chat_server.asked)


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        ("the crew was kind and the seats were wide", True),
        ("Well, THE crew was kind -- and the seats were wide. Thanks", True),
        ("the crew was rude and the seats were wide", True),
        ("the crew was kind", False),
        ("what a kind crew, and how wide the seats were", False),
        ("", False),
    ],
)
def test_is_copy_detects_changed_words(text, copied):
    assert is_copy(text, "The crew was kind, and the seats were wide.") is copied


def test_is_copy_detects_another_order():
    first = "the crew was as kind as anybody could be to us"
    second = "and we slept for the whole night in seats that were wide and soft"
    assert is_copy(f"{second} {first}", f"{first} {second}")


def test_is_copy_ignores_an_example_without_words():
    assert not is_copy("my bag is gone", ":-)")


BASE = """
{name: t, model: lstm, methods: {a: {algorithm: fedavg}}, data: {name: texts, path: x},
 generator: {kind: text, model: m}, federate: {clients_per_round: 2}}
"""


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["generator={kind: text}"], "generator.model: required, but missing"),
        (["generator.api_key=sk-1"], "generator.api_key: unknown key; did you mean 'api_key_env'?"),
        (
            ["generator.words=200"],
            "generator.max_tokens: 500 would cut texts of about 200 words; raise it to 600 or more",
        ),
        (["generator.temperature=0"], "generator.temperature: should be greater than 0, not 0"),
        (["prompts.guidance_scale=2"], "prompts.guidance_scale: text has no guidance scale; leave it out"),
        (
            ["prompts.style=llm"],
            "prompts.llm: style llm needs a language model; add one, as in llm: {model: FOLDER}",
        ),
        (
            ["prompts.llm.model=m"],
            "prompts.llm: style single uses no language model; use style llm or scenes",
        ),
        (["prompts={style: scenes, llm: {}}"], "prompts.llm.model: required, but missing"),
        (
            ["prompts={style: llm, llm: {model: m, fallback: any}}"],
            "prompts.llm.fallback: should be 'multiple', not 'any'",
        ),
        (
            ["prompts={style: llm, llm: {model: m, query: 'a {label} of {color}'}}"],
            "prompts.llm.query: the blank {color} is unknown; use {label}, {others}, {avoid}, {count}, ",
        ),
        (
            ["generator.query='{label} {count}'"],
            "generator.query: the blank {count} is unknown; use {label}, {labels}, {prompt}, {words}, ",
        ),
        (
            ["generator.query='{label} {count}'", "generator.texts_per_label=2"],
            "generator.query: the blank {label} is unknown; use {labels}, {count}, {words}, {examples}",
        ),
        (
            ["generator.texts_per_label=2"],
            "generator.texts_per_label: query single does not fit it; leave it out, or write your own query",
        ),
        (
            ["prompts={style: llm, llm: {model: m, query: fedgc, distinct: 51}}"],
            "prompts.llm.distinct: 51, but query fedgc asks for 10 prompts at a time, and attempts is 5;"
            " lower it to 50, or raise attempts to 6",
        ),
        (
            [
                "generator.query='a {label}'",
                "content={samples: 6, guidance: real}",
                "methods.mixed={algorithm: fedavg, data: mixed}",
            ],
            "generator.query: it lacks the blank {examples}, but guidance of the content of methods.mixed is"
            " real; add it, or set guidance to prompt",
        ),
    ],
)
def test_text_config_names_mistakes(overrides, line):
    with pytest.raises(InputError) as caught:
        config.parse(BASE, overrides)
    assert line in str(caught.value)
