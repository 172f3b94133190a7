"""Chat models behind an OpenAI-compatible server."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from concurrent.futures import Future
from typing import Any

from genfl.errors import GenflError, InputError
from genfl.llm.answers import Answer

log = logging.getLogger(__name__)

TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same request may succeed."""

UNAUTHORISED = 401

CUT = ("length", "content_filter")
"""The finish reasons of incomplete answers."""

EXCERPT = 200
"""The characters of a server's message that an error shows."""

LARGEST = 2**24
"""The most bytes of a reply; an answer has thousands."""

SECRET = 16
"""The least length of a key that is hidden in answers: a dummy key such as test may occur in any text."""


class ServerChat:
    """A chat model behind a server.

    A request that fails for a time is repeated. The waits double, or last as long as the server asks.

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
    ) -> None:
        import httpx

        self.url = f"{base_url.rstrip('/')}/chat/completions"
        self.key = key
        self.timeout = timeout
        self.at_once = at_once
        self.retries = retries
        self.wait = wait
        # OpenAI's own server has renamed the limit; others use the old name
        limit = "max_completion_tokens" if httpx.URL(base_url).host == "api.openai.com" else "max_tokens"
        self.settings = {"model": model, "temperature": temperature, limit: max_tokens}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # with a transport of its own, the client uses no proxy
        direct = None if self.url.startswith("https:") else httpx.HTTPTransport()
        self.client = httpx.Client(headers=headers, timeout=timeout, transport=direct)

    def ask(self, query: str, seed: int) -> Answer:
        """Return an answer; see `genfl.llm.chat.Chat`.

        Raises:
            GenflError: The server rejects the request, or still fails after the last repetition.
        """
        request = {**self.settings, "messages": [{"role": "user", "content": query}], "seed": seed}
        problem = ""
        for attempt in range(self.retries + 1):
            wait = min(self.wait * 2**attempt, self.timeout)
            try:
                status, headers, body = self._post(request)
            except OSError as error:
                problem = str(error)
            else:
                if 200 <= status < 300:
                    answer = _answer(body)
                    if answer is not None:
                        return answer._replace(text=self._without_key(answer.text))
                    problem = f"the reply is not that of an OpenAI-compatible server ({self._excerpt(body)})"
                else:
                    problem = f"status {status} ({self._excerpt(body)})"
                    if status not in TRANSIENT:
                        hint = "; no key was sent, set the variable that api_key_env names"
                        lacks_key = status == UNAUTHORISED and not self.key
                        raise GenflError(f"{self.url}: {problem}{hint if lacks_key else ''}")
                requested = _requested_wait(headers)
                if requested > self.timeout:
                    raise GenflError(
                        f"{self.url}: {problem}; the server asks to wait {requested:g} s, raise timeout"
                    )
                wait = requested or wait
            if attempt < self.retries:
                log.info("%s: %s; trying again in %g s", self.url, problem, wait)
                time.sleep(wait)
        raise GenflError(f"{self.url}: {problem}, {self.retries + 1} times")

    def _post(self, request: dict[str, Any]) -> tuple[int, Any, str]:
        """Return status, headers and body of a reply.

        Raises:
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
        content = choices[0]["message"].get("content") if choices else None
        cut = bool(choices) and choices[0].get("finish_reason") in CUT
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(content, str | None) or not isinstance(choices, list):
        return None
    text = (content or "").encode("utf-8", "replace").decode()  # JSON can spell lone surrogates
    return Answer(text, cut)


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
