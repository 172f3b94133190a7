"""A chat model behind a server that is compatible with OpenAI's."""

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
"""Statuses after which the same request may succeed."""

UNAUTHORISED = 401

CUT = ("length", "content_filter")
"""What servers say ended an answer that did not come to its end."""

EXCERPT = 200
"""Characters of a server's own message that an error shows."""

LARGEST = 2**24
"""Bytes of a reply; an answer has thousands."""

SECRET = 16
"""Characters of a key that no text holds by chance, as it may hold none, test or 1."""


class Server:
    """A server's chat model.

    What fails in a way that may pass is tried again, after waits that double, or as long as the server asks.

    Args:
        model: What the server calls it.
        base_url: The address, as in ``http://127.0.0.1:8000/v1``.
        key: The server's key; empty for none. It is sent to that address only, and shown nowhere. What is not
            encrypted goes there itself, past any proxy that the environment names.
        temperature: Of sampling.
        max_tokens: The longest answer.
        timeout: The longest that a request may take, and that is waited before the next, in seconds.
        at_once: Queries in flight.
        retries: How often a request is repeated.
        wait: Seconds before the first repetition.
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
        # OpenAI's own server has renamed the limit; others know it by its old name
        limit = "max_completion_tokens" if httpx.URL(base_url).host == "api.openai.com" else "max_tokens"
        self.settings = {"model": model, "temperature": temperature, limit: max_tokens}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        straight = (
            None if self.url.startswith("https:") else httpx.HTTPTransport()
        )  # so it looks for no proxy
        self.client = httpx.Client(headers=headers, timeout=timeout, transport=straight)

    def ask(self, query: str, seed: int) -> Answer:
        """Returns an answer; see `genfl.llm.chat.Chat`.

        Raises:
            GenflError: The server refuses, or still fails after the last repetition.
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
                        return answer._replace(text=self._blotted(answer.text))
                    problem = f"the reply is none of an OpenAI-compatible server ({self._excerpt(body)})"
                else:
                    problem = f"status {status} ({self._excerpt(body)})"
                    if status not in TRANSIENT:
                        hint = "; no key was sent, as api_key_env names none that is set"
                        lacks = status == UNAUTHORISED and not self.key
                        raise GenflError(f"{self.url}: {problem}{hint if lacks else ''}")
                asked = _asked_for(headers)
                if asked > self.timeout:
                    raise GenflError(
                        f"{self.url}: {problem}; a wait of {asked:g} s exceeds timeout, raise it"
                    )
                wait = asked or wait
            if attempt < self.retries:
                log.info("%s: %s; trying again in %g s", self.url, problem, wait)
                time.sleep(wait)
        raise GenflError(f"{self.url}: {problem}, {self.retries + 1} times")

    def _post(self, request: dict[str, Any]) -> tuple[int, Any, str]:
        """Returns status, headers and body of a reply.

        Raises:
            OSError: There is none, none in time, or one that is too large.
        """
        late = f"no reply in {self.timeout:g} s"
        deadline = time.monotonic() + self.timeout
        reply: Future[tuple[int, Any, str]] = Future()

        def run() -> None:
            try:
                reply.set_result(self._exchange(request, deadline))
            except Exception as error:
                reply.set_exception(error)

        # the client's own limits are on each read, and a server may send its headers byte by byte: it is left
        # alone then, in a thread that no exit waits for
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
                        raise OSError(f"a reply of more than {LARGEST} bytes")
                    if time.monotonic() > deadline:
                        raise TimeoutError
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OSError(str(error) or type(error).__name__) from error
        return reply.status_code, reply.headers, body.decode("utf-8", "replace")

    def _blotted(self, text: str) -> str:
        """Returns an answer without the key; a short one stays, as dummies are that servers ignore."""
        return text.replace(self.key, "***") if len(self.key) >= SECRET else text

    def _excerpt(self, body: str) -> str:
        """Returns the beginning of a server's own message, in which the key is blotted out, also in JSON."""
        spelt = "".join(rf"(?:\\?{re.escape(char)}|\\u{ord(char):04x})" for char in self.key)
        shown = re.sub(spelt, "***", body, flags=re.IGNORECASE) if self.key else body
        return " ".join(shown[:EXCERPT].split()) or "and nothing more"


def _answer(body: str) -> Answer | None:
    """Returns a reply's answer, empty where the server gives none; None where it is no such reply."""
    try:
        choices = json.loads(body)["choices"]
        content = choices[0]["message"].get("content") if choices else None
        cut = bool(choices) and choices[0].get("finish_reason") in CUT
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(content, str | None) or not isinstance(choices, list):
        return None
    text = (content or "").encode("utf-8", "replace").decode()  # JSON can spell what UTF-8 cannot
    return Answer(text, cut)


def _asked_for(headers: Any) -> float:
    """Returns how many seconds the server asks to wait; 0 where it does not say, or says a date."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return 0.0


def check(field: str) -> None:
    """Refuses a server where the library to reach it is missing.

    Raises:
        InputError: It says which.
    """
    try:
        import httpx  # noqa: F401
    except ImportError as error:
        raise InputError(f"{field}.base_url: it needs httpx: pip install 'genfl[text]'") from error
