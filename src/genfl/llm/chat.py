"""The chat interface: a query and a seed in, an answer out; what was answered once is not asked again."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from genfl import hub
from genfl.errors import GenflError, InputError
from genfl.llm import local, server
from genfl.llm.answers import Answer
from genfl.storage import digest, read_json, write_json

log = logging.getLogger(__name__)

Options = Mapping[str, Any]
"""The fields of `genfl.config.generation.ChatModel`."""

OPENAI = "api.openai.com"

HOW = frozenset({"api_key_env", "timeout", "parallel"})
"""The options that say how a server is asked, and not what it answers."""

Item = TypeVar("Item")
Found = TypeVar("Found")


class Chat(Protocol):
    """A chat model.

    Attributes:
        at_once: How many queries it may be asked at the same time, from threads.
    """

    at_once: int

    def ask(self, query: str, seed: int) -> Answer:
        """Returns the answer to one message, without a conversation before it.

        Args:
            query: The message.
            seed: In [0, 2³¹); decides what is sampled, as far as the model's host keeps to it.

        Raises:
            GenflError: There is no answer.
        """
        ...


class Remembered:
    """A chat model whose answers are kept in files, one each, named by a digest of model, query and seed.

    The files hold answers alone: a query may hold what must not be written. An empty one is not kept, so that
    it is asked again in another run.

    Args:
        chat: The model.
        folder: Where the answers are kept; None for nowhere.
        identity: Plain values that decide its answers.
    """

    def __init__(self, chat: Chat, folder: Path | None, identity: Any) -> None:
        self.chat = chat
        self.folder = folder
        self.identity = identity
        self.at_once = chat.at_once

    def ask(self, query: str, seed: int, judge: Callable[[Answer], Answer] = lambda answer: answer) -> Answer:
        """Returns the kept answer, or else asks; see `Chat`.

        Args:
            query: The message.
            seed: In [0, 2³¹).
            judge: Returns what of an answer is kept, and given in its place: one to a query with real
                examples may repeat them.
        """
        path = self.folder and self.folder / f"{digest([self.identity, query, seed])}.json"
        kept = path and _kept(path)
        if kept:
            return kept
        answer = self.chat.ask(query, seed)
        judged = judge(answer)
        if path and answer.text.strip():
            row = judged._asdict()
            write_json(path, {"answer": row, "sha256": digest(row)})
        return judged


def _kept(path: Path) -> Answer | None:
    if not path.exists():
        return None
    try:
        row = read_json(path)
        if row["sha256"] == digest(row["answer"]):
            return Answer(**row["answer"])
    except (GenflError, LookupError, TypeError):
        pass
    log.warning("%s is damaged; its query is asked again", path)
    return None


def each(chat: Chat, function: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """Returns ``function(item)`` of every item, in order, as many at a time as the model may be asked.

    Args:
        chat: The model that the function asks.
        function: It may be called from other threads.
        items: What it is called on.
    """
    with ThreadPoolExecutor(chat.at_once) as pool:
        return list(pool.map(function, items))


def connect(options: Options, field: str, folder: Path | None = None) -> Remembered:
    """Returns a chat model.

    Args:
        options: Which, and how it is asked.
        field: The section of the config that they come from.
        folder: Where its answers are kept; None for nowhere.

    Raises:
        InputError: There is no such model, or a library is missing.
    """
    check(options, field)
    chat: Chat
    if options["base_url"] is None:
        chat = local.Local(
            options["model"], options["device"], options["temperature"], options["max_tokens"], field
        )
    else:
        chat = server.Server(
            options["model"],
            options["base_url"],
            _key(options, field),
            temperature=options["temperature"],
            max_tokens=options["max_tokens"],
            timeout=options["timeout"],
            at_once=options["parallel"],
        )
    identity = [fingerprint(options), options["temperature"], options["max_tokens"]]
    return Remembered(chat, folder, identity)


def _key(options: Options, field: str) -> str:
    """Returns the key of a server, from the variable that is named; if none is, OpenAI's for OpenAI."""
    parts, variable = urlsplit(options["base_url"]), options["api_key_env"]
    if variable is None and (parts.scheme, parts.hostname) == ("https", OPENAI):
        variable = "OPENAI_API_KEY"
    key = os.environ.get(variable, "").strip() if variable else ""
    if not (key.isascii() and key.isprintable()):  # it would be refused further on, and shown
        raise InputError(f"{field}.api_key_env: what {variable} holds is no key: not printable ASCII")
    return key


def check(options: Options, field: str) -> None:
    """Refuses what cannot work, without asking: a server need not run where its answers are there already.

    Raises:
        InputError: It says what is wrong. What could hold a secret is not repeated.
    """
    if options["api_key_env"] is not None and not re.fullmatch(r"[A-Za-z_]\w*", options["api_key_env"]):
        raise InputError(
            f"{field}.api_key_env: it is the name of an environment variable; the key itself belongs there"
        )
    if options["base_url"] is None:
        local.check(options["model"], field)
        hub.check_device(options["device"], f"{field}.device")
        return
    parts = urlsplit(options["base_url"])
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise InputError(
            f"{field}.base_url: give a server's address, from http:// or https:// on, without name, password"
            " or key, such as http://127.0.0.1:8000/v1"
        )
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise InputError(f"{field}.base_url: leave /chat/completions out, which is added to it")
    server.check(field)


def fingerprint(options: Options) -> list[Any]:
    """Returns what changes when the model changes: its name and server, or the content of its folder."""
    name = options["model"] if options["base_url"] else hub.fingerprint(options["model"])
    return [name, options["base_url"]]
