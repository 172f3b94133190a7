"""Chat models behind an OpenAI-compatible server."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from concurrent.futures import Future
from itertools import count
from typing import Any

from genfl.errors import GenflError, InputError
from genfl.llm.answers import Answer
from genfl.llm.thoughts import THOUGHT, continues_thought

log = logging.getLogger(__name__)

TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, *range(520, 525), 529})
"""HTTP statuses after which the same request may succeed; those from 520 on are of gateways."""

REJECTED = frozenset({400, 422})
"""HTTP statuses of requests with a field that the server does not know."""

UNSUPPORTED = re.compile(
    r"max_completion_tokens|extra|additional"
    r"|(?:un|not |n't )(?:support|permit|allow|recogni[sz]|known|expect)",
    re.IGNORECASE,
)
"""Words of a server that does not know a field, in contrast to its value."""

OLD_LIMIT, NEW_LIMIT = "max_tokens", "max_completion_tokens"
"""The names of the length limit of an answer."""

UNREACHED_REPETITIONS = 1
"""The repetitions of the requests to a server that was never reached."""

CONNECT_SECONDS = 10.0
"""The longest time until a server accepts a connection."""

UNAUTHORISED = 401

ENDS = ("stop", "end_turn", "eos", "eos_token", "stop_sequence", "complete", "none")
"""The finish reasons of complete answers, in lower case."""

TEXT_PARTS = ("text", "output_text")
"""The types of the parts of a message that hold the answer; others hold thoughts."""

EXCERPT = 200
"""The characters of a server's message that an error shows."""

LARGEST = 2**24
"""The most bytes of a reply; an answer has thousands."""

SECRET = 16
"""The least length of a key that is hidden in answers: a dummy key such as test may occur in any text."""


class _Transient(Exception):
    """A failure after which the same request may succeed; with the seconds that the server asks to wait."""

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait


class ServerChat:
    """A chat model behind a server.

    A request that fails for a time is repeated. The waits double, or last as long as the server asks. A
    server that was never reached is not waited for. If the server rejects the field ``seed``, or calls the
    length limit ``max_completion_tokens``, all further requests follow it.

    Args:
        model: The server's name of the model.
        base_url: The address, such as ``http://127.0.0.1:8000/v1``.
        key: The server's key; empty for none. It is sent to that address only, and shown nowhere. An
            unencrypted request goes directly to the address, past any proxy that the environment names.
        temperature: The temperature of sampling.
        max_tokens: The length limit of an answer, in tokens.
        timeout: The longest time for a request, and the longest wait before the next one, in seconds.
        at_once: The number of queries in flight.
        retries: The number of repetitions of a request.
        wait: The seconds before the first repetition.
        system: The system prompt; empty for none.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        key: str = "",
        *,
        temperature: float = 1.0,
        max_tokens: int = 300,
        timeout: float = 120.0,
        at_once: int = 4,
        retries: int = 5,
        wait: float = 1.0,
        system: str = "",
    ) -> None:
        import httpx

        self.url = f"{base_url.rstrip('/')}/chat/completions"
        self.key = key
        self.timeout = timeout
        self.at_once = at_once
        self.retries = retries
        self.wait = wait
        self.settings = {"model": model, "temperature": temperature}
        self.system = system
        self.max_tokens = max_tokens
        # OpenAI's own server has renamed the limit; others use the old name
        self.limit = NEW_LIMIT if httpx.URL(base_url).host == "api.openai.com" else OLD_LIMIT
        self.takes_seed = True
        self.reached = False
        self.opens_thoughts = False
        self.problem = ""  # the last one that was logged
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # with a transport of its own, the client uses no proxy
        direct = None if self.url.startswith("https:") else httpx.HTTPTransport()
        limits = httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        self.client = httpx.Client(headers=headers, timeout=limits, transport=direct)

    def ask(self, query: str, seed: int) -> Answer:
        """Return an answer; see `genfl.llm.chat.Chat`.

        Raises:
            GenflError: The server rejects the request, or still fails after the last repetition.
        """
        for attempt in count(1):
            try:
                return self._ask_once(query, seed)
            except _Transient as error:
                absent = not self.reached and isinstance(error.__cause__, ConnectionError)
                retries = min(self.retries, UNREACHED_REPETITIONS) if absent else self.retries
                if attempt > retries:
                    advice = "; start the server, or correct base_url" if absent else ""
                    raise GenflError(f"{self.url}: {error}, {attempt} times{advice}") from error
                if not absent and str(error) != self.problem:  # all queries in flight may fail alike
                    self.problem = str(error)
                    log.info("%s: %s; trying again, up to %d times", self.url, error, retries)
                time.sleep(error.wait or min(self.wait * 2 ** (attempt - 1), self.timeout))
        raise AssertionError("unreachable")

    def _ask_once(self, query: str, seed: int) -> Answer:
        """Return an answer.

        Raises:
            _Transient: The same request may succeed later.
            GenflError: It will not.
        """
        request = self._request(query, seed)
        try:
            status, headers, body = self._post(request)
        except OSError as error:
            raise _Transient(str(error)) from error
        self.reached = True
        if 200 <= status < 300:
            answer = _answer(body)
            if answer is not None:
                self.problem = ""
                return self._completed(answer)
            problem = f"the reply is not that of an OpenAI-compatible server ({self._excerpt(body)})"
        else:
            problem = f"status {status} ({self._excerpt(body)})"
            if status in REJECTED and self._follow(request, body):
                return self._ask_once(query, seed)
            if status not in TRANSIENT:
                hint = "; no key was sent, set the variable that api_key_env names"
                lacks_key = status == UNAUTHORISED and not self.key
                raise GenflError(f"{self.url}: {problem}{hint if lacks_key else ''}")
        wait = _requested_wait(headers)
        if wait > self.timeout:
            raise GenflError(f"{self.url}: {problem}; the server asks to wait {wait:g} s, raise timeout")
        raise _Transient(problem, wait)

    def _request(self, query: str, seed: int) -> dict[str, Any]:
        request = {**self.settings, self.limit: self.max_tokens}
        messages = [{"role": "system", "content": self.system}] if self.system else []
        request["messages"] = [*messages, {"role": "user", "content": query}]
        return request | ({"seed": seed} if self.takes_seed else {})

    def _follow(self, request: dict[str, Any], body: str) -> bool:
        """Leave out or rename the field that the server rejects; return whether to ask again."""
        if "seed" in request and re.search(r"\bseed\b", body):
            if self.takes_seed:
                log.info("%s: the server takes no seed; it is left out", self.url)
            self.takes_seed = False
            return True
        if OLD_LIMIT in request and re.search(rf"\b{OLD_LIMIT}\b", body) and UNSUPPORTED.search(body):
            self.limit = NEW_LIMIT
            return True
        return False

    def _completed(self, answer: Answer) -> Answer:
        """Return an answer without the key, and with the opening of its thought if the template holds it."""
        text = self._without_key(answer.text)
        if continues_thought(text):
            self.opens_thoughts = True
        elif answer.cut and self.opens_thoughts:
            text = THOUGHT + text
        return answer._replace(text=text)

    def _post(self, request: dict[str, Any]) -> tuple[int, Any, str]:
        """Return status, headers and body of a reply.

        Raises:
            ConnectionError: The server accepts no connection.
            OSError: There is no reply, it is late, or it is too large.
        """
        late = f"no reply in {self.timeout:g} s"
        deadline = time.monotonic() + self.timeout
        reply: Future[tuple[int, Any, str]] = Future()

        def run() -> None:
            try:
                reply.set_result(self._exchange(request, deadline))
            except Exception as error:
                reply.set_exception(error)

        # The client limits the time of each read, but a server may send its headers byte by byte. So the
        # request runs in a daemon thread, which is abandoned when the time is over.
        threading.Thread(target=run, daemon=True).start()
        try:
            return reply.result(self.timeout)
        except TimeoutError as error:
            raise OSError(late) from error

    def _exchange(self, request: dict[str, Any], deadline: float) -> tuple[int, Any, str]:
        import httpx

        try:
            with self.client.stream("POST", self.url, json=request) as reply:
                body = bytearray()
                for part in reply.iter_bytes():
                    body += part
                    if len(body) > LARGEST:
                        raise OSError(f"the reply has more than {LARGEST} bytes")
                    if time.monotonic() > deadline:
                        raise TimeoutError
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ConnectionError(str(error) or f"no connection in {CONNECT_SECONDS:g} s") from error
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OSError(str(error) or type(error).__name__) from error
        return reply.status_code, reply.headers, body.decode("utf-8", "replace")

    def _without_key(self, text: str) -> str:
        """Return an answer without the key. A short key stays: it is a dummy that servers ignore."""
        return text.replace(self.key, "***") if len(self.key) >= SECRET else text

    def _excerpt(self, body: str) -> str:
        """Return the beginning of a server's message without the key, however JSON spells it."""
        spelt = "".join(rf"(?:\\?{re.escape(char)}|\\u{ord(char):04x})" for char in self.key)
        shown = re.sub(spelt, "***", body, flags=re.IGNORECASE) if self.key else body
        return " ".join(shown[:EXCERPT].split()) or "without a message"


def _answer(body: str) -> Answer | None:
    """Return a reply's answer, empty if the server gives none; None if the reply has another form."""
    try:
        choices = json.loads(body)["choices"]
        content = _content(choices[0]["message"].get("content")) if choices else ""
        reason = choices[0].get("finish_reason") if choices else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(choices, list):
        return None
    text = content.encode("utf-8", "replace").decode()  # JSON can spell lone surrogates
    return Answer(text, str(reason or "none").lower() not in ENDS)


def _content(content: Any) -> str:
    """Return the text of a message; of content in parts, that of the parts that are no thoughts.

    Raises:
        TypeError: It has another form.
    """
    if isinstance(content, list):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        return "".join(_content(part["text"]) for part in parts if part.get("type", "text") in TEXT_PARTS)
    if not isinstance(content, str | None):
        raise TypeError(f"the content is a {type(content).__name__}")
    return content or ""


def _requested_wait(headers: Any) -> float:
    """Return the seconds that the server asks to wait; 0 if it does not say, or gives a date."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return 0.0


def check_server_libraries(field: str) -> None:
    """Check that the library that reaches servers is installed.

    Args:
        field: The section of the config, for messages.

    Raises:
        InputError: It is missing.
    """
    try:
        import httpx  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{field}.base_url: a server needs httpx, which is not installed; run pip install 'genfl[text]'"
        ) from error
