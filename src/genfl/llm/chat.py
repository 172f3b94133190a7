"""The interface of chat models (query and seed in, answer out), and the cache of their answers."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from genfl import hub
from genfl.errors import GenflError, InputError, first_line
from genfl.llm import local, server
from genfl.llm.answers import Answer
from genfl.storage import digest, read_json, write_json

log = logging.getLogger(__name__)

ChatOptions = Mapping[str, Any]
"""The fields of `genfl.config.generation.ChatModel`."""

OPENAI_HOST = "api.openai.com"

TRANSPORT_OPTIONS = frozenset({"api_key_env", "timeout", "parallel"})
"""The options that decide how a server is asked, but not what it answers."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Chat(Protocol):
    """A chat model.

    Attributes:
        at_once: The number of queries that may be in flight, from several threads.
    """

    at_once: int

    def ask(self, query: str, seed: int) -> Answer:
        """Return the answer to a single message, with nothing but a system prompt before it.

        Args:
            query: The message.
            seed: The seed of the sampling, in [0, 2³¹). A server may ignore it.

        Raises:
            GenflError: There is no answer.
        """
        ...


class CachedChat:
    """A chat model with a cache of answers: one file each, named by a digest of model, query and seed.

    The files hold answers only, because a query may hold private texts. Empty answers are not kept, so
    another run asks for them again.

    Args:
        chat: The model.
        folder: The folder of the answers; None to keep none.
        identity: Plain values that decide the model's answers.
    """

    def __init__(self, chat: Chat, folder: Path | None, identity: Any) -> None:
        self.chat = chat
        self.folder = folder
        self.identity = identity
        self.at_once = chat.at_once

    def ask(self, query: str, seed: int, judge: Callable[[Answer], Answer] = lambda answer: answer) -> Answer:
        """Return the cached answer, or ask the model; see `Chat`.

        Args:
            query: The message.
            seed: In [0, 2³¹).
            judge: A function that returns what is kept and returned in place of an answer. An answer to a
                query with real examples may repeat them.
        """
        path = self.folder and self.folder / f"{digest([self.identity, query, seed])}.json"
        cached = path and _cached(path)
        if cached:
            return cached
        answer = self.chat.ask(query, seed)
        judged = judge(answer)
        if path and answer.text.strip():
            row = judged._asdict()
            write_json(path, {"answer": row, "sha256": digest(row)})
        return judged


def _cached(path: Path) -> Answer | None:
    if not path.exists():
        return None
    try:
        row = read_json(path)
        if row["sha256"] == digest(row["answer"]):
            return Answer(**row["answer"])
    except (GenflError, LookupError, TypeError):
        pass
    log.warning("%s is damaged; the query is asked again", path)
    return None


def map_queries(chat: Chat, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Return ``function(item)`` of every item, in order, with as many calls at a time as the model allows.

    Args:
        chat: The model that the function asks.
        function: A function that other threads may call.
        items: Its arguments.

    Raises:
        Exception: The error of the first call that fails. No further call begins after it.
    """
    failed = threading.Event()

    def call(item: _Item) -> _Result:
        if failed.is_set():
            raise CancelledError
        try:
            return function(item)
        except BaseException:
            failed.set()
            raise

    pool, wait = ThreadPoolExecutor(chat.at_once), True
    try:
        return list(pool.map(call, items))
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        failed.set()
        pool.shutdown(wait, cancel_futures=True)


def connect(options: ChatOptions, field: str, folder: Path | None = None) -> CachedChat:
    """Return a chat model, loaded here or behind a server.

    Args:
        options: The model, and how it is asked.
        field: The section of the config, for messages.
        folder: The folder of the cached answers; None to keep none.

    Raises:
        InputError: The model does not exist, or a library is missing.
    """
    check_chat_model(options, field)
    system = options.get("system") or ""
    chat: Chat
    if options["base_url"] is None:
        chat = local.LocalChat(
            options["model"],
            options["device"],
            options["temperature"],
            options["max_tokens"],
            field,
            system,
        )
    else:
        key = _api_key(options, field)
        try:
            chat = server.ServerChat(
                options["model"],
                options["base_url"],
                key,
                temperature=options["temperature"],
                max_tokens=options["max_tokens"],
                timeout=options["timeout"],
                at_once=options["parallel"],
                system=system,
            )
        except Exception as error:  # certificates and proxies that the environment names
            raise InputError(
                f"{field}.base_url: no client for this server ({first_line(error)}); check the variables for"
                " proxies and certificates, such as HTTPS_PROXY and SSL_CERT_FILE"
            ) from error
    identity = [chat_fingerprint(options), options["temperature"], options["max_tokens"]]
    # without a system prompt, answers of earlier versions stay valid
    return CachedChat(chat, folder, [*identity, system] if system else identity)


def _api_key(options: ChatOptions, field: str) -> str:
    """Return the server's key from the named variable; without a name, OpenAI's key for OpenAI only."""
    parts, variable = urlsplit(options["base_url"]), options["api_key_env"]
    if variable is None and (parts.scheme, parts.hostname) == ("https", OPENAI_HOST):
        variable = "OPENAI_API_KEY"
    key = os.environ.get(variable, "").strip() if variable else ""
    if not (key.isascii() and key.isprintable()):  # the HTTP library would reject it, and show it
        raise InputError(
            f"{field}.api_key_env: the value of {variable} is not a key, because it is not printable ASCII;"
            " set the variable to the key"
        )
    return key


def check_chat_model(options: ChatOptions, field: str) -> None:
    """Check a chat model without asking it: its server need not run if all answers are cached.

    Args:
        options: The model, and how it is asked.
        field: The section of the config, for messages.

    Raises:
        InputError: The options cannot work. The message repeats nothing that may be a secret.
    """
    if options["api_key_env"] is not None and not re.fullmatch(r"[A-Za-z_]\w*", options["api_key_env"]):
        raise InputError(
            f"{field}.api_key_env: it must be the name of an environment variable; put the key in that"
            " variable"
        )
    if options["base_url"] is None:
        local.check_local_model(options["model"], field, options.get("system") or "")
        hub.check_device(options["device"], f"{field}.device")
        return
    try:
        parts = urlsplit(options["base_url"])
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port or an address that is none
        valid = False
    if not valid or parts.query or "@" in parts.netloc:
        raise InputError(
            f"{field}.base_url: it must be a server's address that begins with http:// or https://; give it"
            " without user name, password or key, such as http://127.0.0.1:8000/v1"
        )
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise InputError(f"{field}.base_url: /chat/completions is added to it; leave that part out")
    server.check_server_libraries(field)


def chat_fingerprint(options: ChatOptions) -> list[Any]:
    """Return plain values that change when the model changes: its name and server, or its folder's content.

    Args:
        options: The model, and how it is asked.
    """
    name = options["model"] if options["base_url"] else hub.fingerprint(options["model"])
    return [name, options["base_url"]]
