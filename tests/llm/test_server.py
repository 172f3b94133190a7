"""The client of OpenAI-compatible servers, against real ones that misbehave."""

import json
import logging
import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

from genfl.errors import GenflError, InputError
from genfl.llm.answers import Answer, answer_text
from genfl.llm.chat import CachedChat, check_chat_model, connect, map_queries
from genfl.llm.server import ServerChat, check_server_libraries

KEY = "sk-this-is-secret"


@pytest.fixture
def client(chat_server):
    def make(**options):
        return ServerChat("m", chat_server.url, **{"retries": 2, "wait": 0.01, "timeout": 5.0, **options})

    return make


def test_server_request_holds_query_seed_and_key(chat_server, client):
    chat_server.behave = lambda query, seed, number: f"{query} {seed}"
    assert client(key=KEY, temperature=0.5, max_tokens=7).ask("hello", 3).text == "hello 3"
    headers, request = chat_server.asked[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert request == {
        "path": "/v1/chat/completions",
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "seed": 3,
        "temperature": 0.5,
        "max_tokens": 7,
    }
    client().ask("hello", 3)
    assert "Authorization" not in chat_server.asked[1][0]


def test_server_limit_has_its_name_at_openai():
    assert ServerChat("m", "https://api.openai.com/v1").limit == "max_completion_tokens"
    assert ServerChat("m", "https://api.openai.com.example.org/v1").limit == "max_tokens"


GOOD = json.dumps({"choices": [{"message": {"content": "fine"}}]})
BROKEN = {
    "500": ((500, {}, "oops"), "status 500 (oops)"),
    "503 without a body": ((503, {}, ""), "status 503 (without a message), 3 times"),
    "520": ((520, {}, "a web server returned an unknown error"), "status 520 (a web server"),
    "524": ((524, {}, "a timeout occurred"), "status 524 (a timeout occurred), 3 times"),
    "529": ((529, {}, "overloaded"), "status 529 (overloaded), 3 times"),
    "a part is a number": ((200, {}, '{"choices": [{"message": {"content": [5]}}]}'), "the reply is not"),
    "429": ((429, {"Retry-After": "0.01"}, "slow down"), "status 429 (slow down)"),
    "truncated JSON": ((200, {}, GOOD[:-5]), "the reply is not that of an OpenAI-compatible server ({"),
    "cut off": ((200, {"Content-Length": 1000}, GOOD), "peer closed connection"),
    "HTML": ((200, {}, "<html>log in</html>"), "server (<html>log in</html>), 3 times"),
    "another schema": ((200, {}, '{"text": "fine"}'), 'server ({"text": "fine"})'),
    "a list": ((200, {}, "[]"), "server ([])"),
    "null": ((200, {}, "null"), "server (null)"),
    "content is a number": (
        (200, {}, '{"choices": [{"message": {"content": 5}}]}'),
        "the reply is not that of",
    ),
    "choices are numbers": ((200, {}, '{"choices": [1]}'), "the reply is not that of"),
    "a message is text": ((200, {}, '{"choices": [{"message": "fine"}]}'), "the reply is not that of"),
    "choices is text": ((200, {}, '{"choices": "abc"}'), "the reply is not that of"),
    "not UTF-8": ((200, {}, b"\xff\xfe"), "the reply is not that of"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_server_repeats_after_transient_errors(chat_server, client, name):
    chat_server.behave = lambda query, seed, number: BROKEN[name][0] if number < 2 else "fine"
    assert client().ask("hello", 0).text == "fine"
    assert len(chat_server.asked) == 3
    assert len({json.dumps(request) for _, request in chat_server.asked}) == 1


@pytest.mark.parametrize("name", BROKEN)
def test_server_reports_a_lasting_error_in_one_line(chat_server, client, name):
    reply, line = BROKEN[name]
    chat_server.behave = lambda query, seed, number: reply
    with pytest.raises(GenflError) as caught:
        client().ask("hello", 0)
    assert str(caught.value).startswith(f"{chat_server.url}/chat/completions: ")
    assert line in str(caught.value)
    assert str(caught.value).endswith(", 3 times")
    assert "\n" not in str(caught.value)
    assert len(chat_server.asked) == 3


def test_server_names_a_missing_key(chat_server, client):
    chat_server.behave = lambda query, seed, number: (401, {}, "no such key")
    with pytest.raises(
        GenflError, match=r"\(no such key\); no key was sent, set the variable that api_key_env names$"
    ):
        client().ask("hello", 0)
    with pytest.raises(GenflError, match=r"\(no such key\)$"):
        client(key=KEY).ask("hello", 0)


@pytest.mark.parametrize("status", [400, 403, 404, 302])
def test_server_does_not_repeat_permanent_errors(chat_server, client, status):
    chat_server.behave = lambda query, seed, number: (status, {"Location": "http://127.0.0.1:9/"}, "no\nway")
    with pytest.raises(GenflError, match=rf"completions: status {status} \(no way\)$"):
        client().ask("hello", 0)
    assert len(chat_server.asked) == 1


@pytest.mark.slow
def test_server_waits_as_requested_within_the_limit(chat_server, client):
    chat_server.behave = lambda query, seed, number: (429, {"Retry-After": "1"}, "") if number == 0 else "ok"
    began = time.monotonic()
    assert client().ask("hello", 0).text == "ok"
    assert time.monotonic() - began >= 1
    chat_server.behave = lambda query, seed, number: (429, {"Retry-After": "3600"}, "later")
    with pytest.raises(
        GenflError, match=r"status 429 \(later\); the server asks to wait 3600 s, raise timeout$"
    ):
        client().ask("hello", 0)
    # a date is a wait of unknown length: the client's own
    date = "Wed, 21 Oct 2099 07:28:00 GMT"
    chat_server.behave = lambda query, seed, number: (429, {"Retry-After": date}, "")
    with pytest.raises(GenflError, match=r"status 429 \(without a message\), 3 times"):
        client().ask("hello", 0)


def test_server_gives_up_after_the_timeout(chat_server, client):
    def slow(query, seed, number):
        time.sleep(1)
        return "late"

    chat_server.behave = slow
    with pytest.raises(GenflError, match=r"no reply in 0\.2 s, 2 times"):
        client(timeout=0.2, retries=1).ask("hello", 0)


@pytest.mark.parametrize(
    "begins", ["HTTP/1.1 200 OK\\r\\nContent-Length: 1000\\r\\n\\r\\n", "HTTP/1.1 200 OK\\r\\nX: "]
)
def test_server_gives_up_on_a_reply_in_drops(begins):
    """Every part arrives in time, and all of them never do: of the body, or of its headers."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    script = (
        "import socket, sys, time\n"
        "there = socket.socket(fileno=int(sys.argv[1])).accept()[0]\n"
        "there.recv(65536)\n"
        f"there.sendall(b'{begins}')\n"
        "for _ in range(100): there.sendall(b' '); time.sleep(0.1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(listener.fileno())],
        pass_fds=[listener.fileno()],
        stderr=subprocess.DEVNULL,
    ) as process:
        began = time.monotonic()
        with pytest.raises(GenflError, match=r"no reply in 0\.5 s"):
            ServerChat("m", url, timeout=0.5, retries=0).ask("hello", 0)
        assert time.monotonic() - began < 1.5
        process.kill()
    listener.close()


def test_server_that_is_absent_is_named():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        GenflError,
        match=rf"^{url}/chat/completions: .*refused, 2 times; start the server, or correct base_url$",
    ):
        ServerChat("m", url, retries=1, wait=0.01).ask("hello", 0)


@pytest.mark.slow
def test_server_that_was_never_there_fails_soon_and_quietly(caplog):
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    chat = ServerChat("m", url, at_once=4)
    began = time.monotonic()
    with pytest.raises(GenflError, match=r"refused, 2 times"):
        map_queries(chat, lambda query: chat.ask(query, 0), "abcdefgh")
    assert time.monotonic() - began < 3
    assert not caplog.records


def test_server_that_goes_away_is_waited_for_and_logged_once(chat_server, client, caplog):
    caplog.set_level(logging.INFO, "genfl")
    chat_server.behave = lambda query, seed, number: (503, {}, "busy") if number else "fine"
    chat = client(at_once=4, retries=3)
    chat.ask("hello", 0)
    with pytest.raises(GenflError, match=r"status 503 \(busy\), 4 times$"):
        map_queries(chat, lambda query: chat.ask(query, 0), "abcdefgh")
    # no query begins after the first that failed for good
    assert len({request["messages"][0]["content"] for _, request in chat_server.asked[1:]}) == 4
    assert [record.getMessage() for record in caplog.records] == [
        f"{chat_server.url}/chat/completions: status 503 (busy); trying again, up to 3 times"
    ]


@pytest.mark.parametrize("body", ['{"choices": []}', '{"choices": [{"message": {"content": null}}]}'])
def test_server_without_choices_gives_an_empty_answer(chat_server, client, body):
    chat_server.behave = lambda query, seed, number: (200, {}, body)
    assert client().ask("hello", 0) == Answer("")
    assert len(chat_server.asked) == 1


def test_server_content_in_parts_is_read_without_thoughts(chat_server, client):
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    parts = [thought, {"type": "text", "text": "a "}, {"type": "output_text", "text": "cat"}, "!"]
    body = json.dumps({"choices": [{"message": {"content": parts}}]})
    chat_server.behave = lambda query, seed, number: (200, {}, body)
    assert client().ask("hello", 0) == Answer("a cat!")


SEEDLESS = [
    (
        422,
        '{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not"}]}',
    ),
    (400, "Unrecognized request argument supplied: seed"),
]


@pytest.mark.parametrize(("status", "body"), SEEDLESS)
def test_server_that_rejects_the_seed_is_asked_without(chat_server, client, status, body):
    chat_server.behave = lambda query, seed, number: "fine" if seed is None else (status, {}, body)
    chat = client()
    assert [chat.ask(query, 1).text for query in "ab"] == ["fine", "fine"]
    requests = [request for _, request in chat_server.asked]
    assert ["seed" in request for request in requests] == [True, False, False]


def test_server_that_renamed_the_limit_is_asked_with_the_new_name(chat_server, client):
    refusal = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    def behave(query, seed, number):
        old = "max_tokens" in chat_server.asked[number][1]
        return (400, {}, json.dumps({"error": {"message": refusal}})) if old else "fine"

    chat_server.behave = behave
    chat = client(max_tokens=7)
    assert [chat.ask(query, 1).text for query in "ab"] == ["fine", "fine"]
    limits = [request.get("max_completion_tokens") for _, request in chat_server.asked]
    assert limits == [None, 7, 7]


@pytest.mark.parametrize(
    "body", ["max_tokens is too large: this model supports at most 4096", "no such model"]
)
def test_server_that_rejects_a_value_is_not_asked_again(chat_server, client, body):
    chat_server.behave = lambda query, seed, number: (400, {}, body)
    with pytest.raises(GenflError, match=f"status 400 \\({body}\\)$"):
        client().ask("hello", 0)
    assert len(chat_server.asked) == 1


def test_server_thought_that_is_cut_off_is_empty_where_the_template_opens_it(chat_server, client):
    replies = [("I see.</think>a cat", "stop"), ("Perhaps a cat", "length"), ("a cat", "stop")]

    def behave(query, seed, number):
        content, reason = replies[number]
        choice = {"message": {"content": content}, "finish_reason": reason}
        return 200, {}, json.dumps({"choices": [choice]})

    chat_server.behave = behave
    chat = client()
    assert [answer_text(chat.ask("hello", 0).text) for _ in replies] == ["a cat", "", "a cat"]


@pytest.mark.parametrize(
    ("reason", "cut"),
    [
        *((reason, False) for reason in ("stop", "STOP", None, "", "end_turn", "eos", "eos_token")),
        *((reason, True) for reason in ("length", "content_filter", "model_length", "MAX_TOKENS", "error")),
    ],
)
def test_server_answer_knows_whether_it_was_cut_off(chat_server, client, reason, cut):
    choice = {"message": {"content": "a cat"}, "finish_reason": reason}
    chat_server.behave = lambda query, seed, number: (200, {}, json.dumps({"choices": [choice]}))
    assert client().ask("hello", 0) == Answer("a cat", cut)


def test_server_answer_with_surrogates_can_be_written(chat_server, tmp_path):
    body = '{"choices": [{"message": {"content": "a \\ud800 b"}}]}'
    chat_server.behave = lambda query, seed, number: (200, {}, body)
    chat = CachedChat(ServerChat("m", chat_server.url), tmp_path, "m")
    assert chat.ask("hello", 0) == chat.ask("hello", 0) == Answer("a ? b")
    assert len(chat_server.asked) == 1


def test_server_key_is_shown_and_written_nowhere(chat_server, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    options = {"model": "m", "base_url": chat_server.url, "api_key_env": "MY_KEY", "temperature": 1.0}
    options |= {"max_tokens": 5, "timeout": 5.0, "parallel": 1, "device": "cpu"}
    chat = connect(options, "generator", tmp_path)
    chat_server.behave = lambda query, seed, number: f"your key is {KEY}"
    assert chat.ask("hello", 0).text == "your key is ***"
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert json.loads(_escaped(KEY)) == KEY != _escaped(KEY)[1:-1]
    reply = json.dumps({"choices": [{"message": {"content": "?"}}]}).replace('"?"', _escaped(f"it is {KEY}"))
    chat_server.behave = lambda query, seed, number: (200, {}, reply)
    assert chat.ask("in JSON", 0).text == "it is ***"
    for spelt in (KEY, _escaped(KEY)[1:-1], KEY.replace("-", "\\-")):
        chat_server.behave = lambda query, seed, number, spelt=spelt: (401, {}, f"Incorrect key: {spelt}")
        with pytest.raises(GenflError, match=r"status 401 \(Incorrect key: \*\*\*\)") as caught:
            chat.ask("again", 0)
        assert KEY not in caplog.text + repr(caught.value) + repr(caught.value.__cause__)


def _escaped(text):
    """Spells a text in JSON by the numbers of its characters."""
    return '"' + "".join(f"\\u{ord(char):04x}" for char in text) + '"'


@pytest.mark.parametrize("key", ["none", "test", "content", "EMPTY", "1", "e"])
def test_server_dummy_key_leaves_answers_unchanged(chat_server, client, key):
    chat_server.behave = lambda query, seed, number: "the content: none of the tests is EMPTY"
    assert client(key=key).ask("hello", 0).text == "the content: none of the tests is EMPTY"


@pytest.mark.parametrize(
    ("host", "named", "sent"),
    [
        ("api.openai.com", None, "openais"),
        ("api.openai.com", "MY_KEY", "mine"),
        ("api.openai.com.example.org", None, ""),
        ("127.0.0.1", None, ""),
        ("127.0.0.1", "OPENAI_API_KEY", "openais"),
    ],
)
def test_openai_key_is_sent_to_openai_only(monkeypatch, host, named, sent):
    monkeypatch.setenv("OPENAI_API_KEY", "openais")
    monkeypatch.setenv("MY_KEY", "mine")
    change = {"base_url": f"https://{host}/v1", "api_key_env": named, "model": "m"}
    assert connect({**OPTIONS, **change}, "generator").chat.key == sent
    if named is None:
        change["base_url"] = f"http://{host}/v1"
        assert connect({**OPTIONS, **change}, "generator").chat.key == ""


def test_unencrypted_request_uses_no_proxy(chat_server, client, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        chat_server.behave = lambda query, seed, number: "fine"
        assert client().ask("hello", 0).text == "fine"


def test_server_rejects_huge_and_deep_replies(chat_server, client, monkeypatch):
    monkeypatch.setattr("genfl.llm.server.LARGEST", 1000)
    chat_server.behave = lambda query, seed, number: (200, {}, " " * 1001)
    with pytest.raises(GenflError, match=r"the reply has more than 1000 bytes, 3 times"):
        client().ask("hello", 0)
    monkeypatch.undo()
    chat_server.behave = lambda query, seed, number: (200, {}, "[" * 200_000)
    with pytest.raises(GenflError, match=r"the reply is not that of an OpenAI-compatible server"):
        client().ask("hello", 0)


@pytest.mark.parametrize("key", ["sk-\nthis-is-secret", "sk-this-is-secrét"])
def test_malformed_key_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("K", key)
    with pytest.raises(
        InputError, match=r"the value of K is not a key, because it is not printable ASCII; set "
    ):
        connect(OPTIONS, "generator")


def test_server_waits_double_up_to_the_limit(chat_server, client, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    chat_server.behave = lambda query, seed, number: (500, {}, "oops")
    with pytest.raises(GenflError, match="status 500"):
        client(wait=1.0, timeout=5.0, retries=5).ask("hello", 0)
    assert waits == [1, 2, 4, 5, 5]


OPTIONS = {"model": "m", "base_url": "http://h/v1", "api_key_env": "K", "device": "cpu", "temperature": 1.0}
OPTIONS |= {"max_tokens": 5, "timeout": 5.0, "parallel": 1}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"api_key_env": KEY},
            "generator.api_key_env: it must be the name of an environment variable; put the key in",
        ),
        (
            {"base_url": f"http://{KEY}@h/v1"},
            "generator.base_url: it must be a server's address that begins with http",
        ),
        (
            {"base_url": f"http://h/v1?key={KEY}"},
            "generator.base_url: it must be a server's address that begins with http",
        ),
        ({"base_url": "localhost:8000"}, "generator.base_url: it must be a server's address"),
        (
            {"base_url": "http://h/v1/chat/completions/"},
            "generator.base_url: /chat/completions is added to it; leave that part out",
        ),
        ({"base_url": "file:///etc"}, "generator.base_url: it must be a server's address"),
        ({"base_url": "http://[::1/v1"}, "generator.base_url: it must be a server's address"),
        ({"base_url": "http://h:99999/v1"}, "generator.base_url: it must be a server's address"),
    ],
)
def test_check_chat_model_repeats_no_secrets(change, line):
    with pytest.raises(InputError) as caught:
        check_chat_model({**OPTIONS, **change}, "generator")
    assert str(caught.value).startswith(line)
    assert KEY not in str(caught.value)


def test_connect_names_a_wrong_proxy(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "no-scheme://proxy")
    with pytest.raises(
        InputError, match=r"^generator\.base_url: no client for this server \(.*proxy.*\); check"
    ):
        connect({**OPTIONS, "base_url": "https://h/v1"}, "generator")


def test_check_server_libraries_names_a_missing_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(
        InputError,
        match=r"generator\.base_url: a server needs httpx, .* run pip install 'genfl\[text\]'$",
    ):
        check_server_libraries("generator")


class TestCachedChat:
    def test_cache_asks_nothing_twice(self, chat_server, tmp_path):
        chat_server.behave = lambda query, seed, number: f"{query} {seed} {number}"
        chat = CachedChat(ServerChat("m", chat_server.url), tmp_path, ["m"])
        found = [chat.ask("a", 0), chat.ask("a", 1), chat.ask("b", 0)]
        assert [answer.text for answer in found] == ["a 0 0", "a 1 1", "b 0 2"]
        again = CachedChat(ServerChat("m", chat_server.url), tmp_path, ["m"])
        assert [again.ask("a", 0), again.ask("a", 1), again.ask("b", 0)] == found
        assert CachedChat(ServerChat("m", chat_server.url), tmp_path, ["other"]).ask("a", 0).text == "a 0 3"

    def test_cache_keeps_whether_an_answer_was_cut_off(self, chat_server, tmp_path):
        body = '{"choices": [{"message": {"content": "a cat"}, "finish_reason": "length"}]}'
        chat_server.behave = lambda query, seed, number: (200, {}, body)
        chat = CachedChat(ServerChat("m", chat_server.url), tmp_path, "m")
        assert chat.ask("a", 0) == chat.ask("a", 0) == Answer("a cat", cut=True)
        assert len(chat_server.asked) == 1

    def test_cache_asks_again_after_an_empty_answer(self, chat_server, tmp_path):
        said = ["", " \n", "yes", "no"]
        chat_server.behave = lambda query, seed, number: said[number]
        chat = CachedChat(ServerChat("m", chat_server.url), tmp_path, "m")
        assert [chat.ask("a", 0).text for _ in range(4)] == ["", " \n", "yes", "yes"]

    def test_cache_writes_judged_answers_only(self, chat_server, tmp_path):
        chat_server.behave = lambda query, seed, number: "a private text"
        for judged in (Answer("", problem="a copy"), Answer("another text")):
            chat = CachedChat(ServerChat("m", chat_server.url), tmp_path, judged.problem)
            assert chat.ask("a", 0, lambda answer, judged=judged: judged) == judged
            assert chat.ask("a", 0) == judged
        assert len(chat_server.asked) == 2
        assert "private" not in "".join(path.read_text() for path in tmp_path.iterdir())

    def test_cache_asks_again_for_a_damaged_file(self, chat_server, tmp_path, caplog):
        chat = CachedChat(ServerChat("m", chat_server.url), tmp_path, "m")
        chat.ask("a", 0)
        (path,) = tmp_path.iterdir()
        content = json.loads(path.read_text())
        other = {**content, "answer": {"text": "no"}}
        for bad in ("", "[]", '{"answer": "no"}', json.dumps(other)):
            path.write_text(bad)
            assert chat.ask("a", 0).text == "yes"
            assert f"{path} is damaged; the query is asked again" in caplog.text
        assert len(chat_server.asked) == 5

    def test_cache_writes_no_queries(self, chat_server, tmp_path):
        CachedChat(ServerChat("m", chat_server.url), tmp_path, "m").ask("a private text", 0)
        assert "private" not in "".join(path.read_text() for path in tmp_path.iterdir())

    def test_cache_keeps_answers_before_a_failure(self, chat_server, tmp_path):
        def fails(query, seed, number):
            return (400, {}, "no") if query == "4" else query

        chat_server.behave = fails
        chat = CachedChat(ServerChat("m", chat_server.url, at_once=2), tmp_path, "m")
        queries = list(map(str, range(6)))
        with pytest.raises(GenflError, match="status 400"):
            map_queries(chat, lambda query: chat.ask(query, 0), queries)
        assert len(list(tmp_path.iterdir())) >= 4
        chat_server.asked.clear()
        chat_server.behave = lambda query, seed, number: query
        assert map_queries(chat, lambda query: chat.ask(query, 0).text, queries) == queries
        assert {request["messages"][0]["content"] for _, request in chat_server.asked} <= {"4", "5"}


def test_map_queries_runs_queries_concurrently(chat_server):
    """Each is answered only when all are there."""
    import threading

    together = threading.Barrier(4, timeout=10)
    chat_server.behave = lambda query, seed, number: f"{together.wait() >= 0} {query}"
    chat = ServerChat("m", chat_server.url, at_once=4, retries=0)
    assert map_queries(chat, lambda query: chat.ask(query, 0).text, "abcd") == [
        f"True {query}" for query in "abcd"
    ]


@pytest.mark.slow
def test_server_talks_to_transformers_serve(tiny_chat_model, chat_texts, tmp_path):
    """A server that others wrote, as a process of its own."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("transformers serve needs: pip install 'transformers[serving]'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tiny_chat_model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except httpx.HTTPError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
        chat = ServerChat(str(tiny_chat_model), f"http://127.0.0.1:{port}/v1", max_tokens=12, temperature=0.5)
        query = (
            'Write one text of the class "bad". The classes are: bad, good.\nWhat it is: a text about bad.\n'
            "It has about 6 words.\nAnswer with the text alone."
        )
        found = [chat.ask(query, seed).text for seed in range(6)]
        assert len(set(found)) > 1
        assert set(found) <= set(chat_texts["bad"])
        assert [chat.ask(query, seed).text for seed in range(6)] == found
    finally:
        process.terminate()
        process.wait()
