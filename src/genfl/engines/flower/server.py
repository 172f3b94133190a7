"""The server's side: an engine whose clients are behind Flower's Grid."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid

from genfl import trees
from genfl.algorithms.base import ClientInfo, ClientProgram
from genfl.engines.fast import FastStats
from genfl.engines.flower.exchange import GridExchange
from genfl.engines.flower.records import ACTIONS, KEY_AGREEMENT, MOST, NEEDS_ALL, RefusedMessage
from genfl.engines.flower.secure import OpenedSum, OpenedSums, SumFailed, SumRules, add_securely, agree_on_key
from genfl.engines.flower.wire import (
    PackedTree,
    Reply,
    Request,
    pack,
    read_reply,
    request_records,
    tree_digest,
)
from genfl.engines.protocol import (
    Aggregator,
    ClientResults,
    ClientTask,
    EngineStats,
    InfoOnly,
    ReducerFactory,
    ResultTemplates,
    RoundResult,
    problem,
)
from genfl.engines.reducers import PlainReducer
from genfl.errors import GenflError, on_one_line
from genfl.journal import about, tell
from genfl.rng import Key
from genfl.storage import read_json, write_json
from genfl.threads import one_thread
from genfl.trees import Tree

log = logging.getLogger(__name__)

COUNTED = "counted"
"""The name of the receipt that the server keeps in place of a client's memory: the last counted round."""

TRIES = 3
"""How often clients without a valid upload are asked, if fewer uploads than the quorum are valid."""

RETRY_AFTER = 45.0
"""Seconds before they are asked again. After a node was killed, its SuperLink counts it as online for about a
minute, and does not let it come back before."""

UploadCheck = Callable[[Tree, Request], str | None]
"""``(upload, request) -> why the upload must not count``, None if it may."""


class RunName:
    """The name of a federation: random, the same after an interruption, and new when it starts over.

    Args:
        file: Where it is kept, beside the server's checkpoint.

    Attributes:
        folder: The file's folder.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.folder = file.parent
        self._name: str | None = None

    def begin(self) -> None:
        """Take a new name, for a federation that starts at its first round."""
        self._name = secrets.token_hex(16)
        write_json(self._file, {"run": self._name})

    def __str__(self) -> str:
        if self._name is None:
            self._name = str(read_json(self._file)["run"])
        return self._name


class RemoteClients(NamedTuple):
    """The clients of a federation, as the server reaches them.

    Attributes:
        grid: Flower's Grid.
        nodes: The node of each client, by its number.
        run: The name of the federation.
        client_info: The client info of any client, for its structure, shapes and dtypes alone.
        quorum: The fewest clients of a cohort that must answer with a valid upload.
        deadline: Seconds that the server waits for a cohort.
        checkpoint_every: Rounds between the server's checkpoints.
        pause: Seconds between two looks for replies, at most.
        patience: Seconds before clients are asked again; see `RETRY_AFTER`.
        sums: How uploads are added by secure sums; None for uploads in the clear.
    """

    grid: Grid
    nodes: Sequence[int]
    run: RunName
    client_info: ClientInfo
    quorum: int = 1
    deadline: float = math.inf
    checkpoint_every: int = 1
    pause: float = 1.0
    patience: float = RETRY_AFTER
    sums: SumRules | None = None

    @property
    def exchange(self) -> GridExchange:
        """What carries messages to them."""
        return GridExchange(self.grid, self.nodes, self.deadline, self.pause)


class FlowerEngine:
    """An engine that sends each client's task over Flower's Grid, and adds the uploads up.

    A client's memory stays on its own disk. In its place, the server keeps a receipt with the last round in
    which the client counted, and sends it with the next request. Clients that are offline, that fail, or that
    do not answer before the deadline are dropped from the round. Uploads are added in the order of
    client numbers, so plain sums have the bits of `sequential`. With secure sums, the server learns nothing
    but the sum of uploads.

    Args:
        clients: The clients.
        action: What they are asked to do; see `genfl.engines.flower.wire.ACTIONS`.
        initial: The memory of a client that never took part.
        settings: What clients must know of the work besides, as JSON-able values.
        reducer: Makes what adds up the uploads of a round.
    """

    def __init__(
        self,
        clients: RemoteClients,
        action: str = "train",
        initial: Tree | None = None,
        settings: dict[str, Any] | None = None,
        reducer: ReducerFactory = PlainReducer,
    ) -> None:
        self.clients = clients
        self.action = action
        self.initial = initial or {}
        self._remembers = bool(trees.leaves(self.initial))
        self._initial_digest = tree_digest(self.initial) if clients.sums is not None else ""
        self.settings = settings or {}
        self.reducer = reducer
        self._resumed: int | None = None  # the round of the checkpoint that it resumed from

    def run(self, program: ClientProgram, tasks: Sequence[ClientTask]) -> RoundResult:
        """Run the program at each client of the cohort; see `perform`."""
        if tasks and self._resumed is None:
            self._resumed = tasks[0].round - 1
        return self.perform(self.action, program, tasks)

    def perform(self, action: str, program: ClientProgram, tasks: Sequence[ClientTask]) -> RoundResult:
        """Ask each client of a cohort for its part of an action, and add the uploads up.

        Args:
            action: What clients are asked to do.
            program: What they run. It is not sent: they build the same one.
            tasks: Their tasks.

        Raises:
            GenflError: Fewer clients than the quorum answered with a valid upload, also when they were asked
                again. Some actions need all clients.
        """
        if not tasks:  # a Poisson cohort may be empty
            return self._perform(action, program, tasks)
        with about(run=str(self.clients.run), action=action, round=tasks[0].round):
            result = self._perform(action, program, tasks)
            for client in sorted({task.client for task in tasks} - result.refused.keys()):
                tell("counted", client=client)
            for client, why in sorted(result.refused.items()):
                tell("left_out", client=client, reason=why)
        return result

    def _perform(self, action: str, program: ClientProgram, tasks: Sequence[ClientTask]) -> RoundResult:
        requests = [self._request(action, task) for task in tasks]
        templates = ResultTemplates(program, InfoOnly([self.clients.client_info]))
        if self.clients.sums is not None and tasks:
            with one_thread():
                like = templates(tasks[0]._replace(client=0, memory=self.initial))[0]
            return _round_result(requests[0].round, self._opened(requests, like, self.clients.sums))

        def check(upload: Tree, request: Request) -> str | None:
            task = ClientTask(0, request.message, self.initial, request.batches, request.key, request.round)
            with one_thread():
                return problem(upload, {}, (templates(task)[0], {}))

        replies, silent = self._ask(requests, check)
        aggregator = Aggregator(self.reducer(program.reductions), program)
        aggregator.refused |= silent
        with one_thread():
            for task in sorted(tasks, key=lambda task: task.client):
                if task.client in replies:
                    aggregator.add(_results(task, replies[task.client]))
        samples = sum(reply.samples for reply in replies.values())
        return aggregator.round_result()._replace(samples=samples)

    def census(self, program: ClientProgram) -> Tree:
        """Begin a federation: return the sums of a program without batches over all clients."""
        self.clients.run.begin()
        self._opened_sums.forget(MOST)
        self._resumed = None
        tasks = [ClientTask(client, {}, {}, None, Key(0)) for client in range(len(self.clients.nodes))]
        sums = self.perform("census", program, tasks).aggregate
        if sums is None:
            raise GenflError("census: no client's upload counts; look into the clients' logs")
        return sums

    def agree_on_key(self) -> None:
        """Let all clients agree on a key that the server does not learn, for this federation.

        Raises:
            GenflError: One of them is missing, also when they were asked again.
        """
        assert self.clients.sums is not None, "clients with secure sums alone know each other"
        clients, why = range(len(self.clients.nodes)), ""
        for attempt in range(TRIES):
            if attempt:
                self._pause(KEY_AGREEMENT, 0, len(clients), len(clients))
            try:
                agree_on_key(self.clients.exchange, self.clients.sums, str(self.clients.run), clients)
                return
            except SumFailed as error:
                why = _reasons(error.left_out) or str(error)
        raise GenflError(
            f"labels.min_holders: every client is needed, and {why}; look into the clients' logs, and run the"
            " same command again"
        )

    def end(self) -> None:
        """Delete what only a resume needs, once the federation has its result."""
        self._opened_sums.forget(MOST)

    def stats(self) -> EngineStats:
        """Return what the engine is; see `genfl.engines.protocol.Engine`."""
        off = FastStats(reasons=("clients run elsewhere",))
        return EngineStats("flower", "per client", len(self.clients.nodes), off)

    def _request(self, action: str, task: ClientTask) -> Request:
        every = self.clients.checkpoint_every
        # checkpoint_every may have been another one before the resume
        finished = max((task.round - 1) // every * every, self._resumed or 0)
        counted = _counted(task.memory)
        return Request(
            str(self.clients.run),
            action,
            task.round,
            task.client,
            counted,
            finished,
            task.batches,
            task.key,
            self.settings,
            task.message,
            None if counted and self._remembers else self.initial,
            initial_digest=self._initial_digest,
        )

    def _ask(
        self, requests: Sequence[Request], check: UploadCheck
    ) -> tuple[dict[int, Reply], dict[int, str]]:
        """Return the replies, refusals among them, and why others did not answer, by client.

        Raises:
            GenflError: Fewer clients than the quorum answered with a valid upload.
        """
        if not requests:  # a Poisson cohort may be empty
            return {}, {}
        action = requests[0].action
        least = self._least(action, len(requests))
        replies: dict[int, Reply] = {}
        silent: dict[int, str] = {}
        refused: dict[int, str] = {}
        packed: dict[int, PackedTree] = {}  # most clients are sent one and the same message
        for attempt in range(TRIES):
            if attempt:
                self._pause(action, len(replies) - len(refused), len(requests), least)
            again = {
                each.client: each for each in requests if each.client not in replies or each.client in refused
            }

            def take(client: int, content: RecordDict, again: dict[int, Request] = again) -> None:
                reply = replies[client] = _reply(content, again[client], check)
                if reply.refused:
                    tell("refused", client=client, reason=reply.refused)

            records = {client: _records(request, packed) for client, request in again.items()}
            silent = self.clients.exchange(records, ACTIONS[action], str(requests[0].round), take)
            del records
            refused = {client: reply.refused for client, reply in replies.items() if reply.refused}
            if len(replies) - len(refused) >= least:
                return replies, silent
        raise _too_few(requests, len(replies) - len(refused), least, _reasons(silent | refused))

    def _opened(self, requests: Sequence[Request], like: Tree, rules: SumRules) -> OpenedSum:
        """Return the sum of uploads, by a secure sum.

        Raises:
            GenflError: Too few clients are left, also when they were asked again.
        """
        _, action, number = requests[0][:3]
        store = self._opened_sums
        store.forget(requests[0].finished)
        members = {request.client: request for request in requests}
        if action == "train" and (known := store.load(number, list(members))) is not None:
            return known
        least = max(rules.least(len(members)), self._least(action, len(members)))
        packed: dict[int, PackedTree] = {}
        left, why = 0, ""
        for attempt in range(TRIES):
            if attempt:
                self._pause(action, left, len(members), least)
            try:
                opened = add_securely(
                    self.clients.exchange,
                    rules,
                    members,
                    like,
                    least,
                    lambda request: _records(request, packed),
                    store.clients_of(number) if action == "train" else None,
                    partial(store.begin, number) if action == "train" else lambda clients: None,
                )
            except SumFailed as error:
                left, why = error.left, _reasons(error.left_out) or str(error)
                continue
            if action == "train":
                store.save(number, list(members), opened)
            return opened
        raise _too_few(requests, left, least, why)

    @property
    def _opened_sums(self) -> OpenedSums:
        return OpenedSums(self.clients.run.folder, str(self.clients.run))

    def _least(self, action: str, clients: int) -> int:
        """Return the fewest clients of a cohort that must answer with a valid upload."""
        return clients if action in NEEDS_ALL else min(self.clients.quorum, clients)

    def _pause(self, action: str, valid: int, asked: int, least: int) -> None:
        """Wait before clients are asked again."""
        log.warning(
            "%s: %d of %d clients answered with a valid upload, and %d are needed; asking again",
            *(action, valid, asked, least),
        )
        time.sleep(self.clients.patience)


def _reasons(why: dict[int, str]) -> str:
    """Return why clients are missing, in words: of the first three."""
    return "; ".join(f"client {client}: {on_one_line(text, 150)}" for client, text in sorted(why.items())[:3])


def _too_few(requests: Sequence[Request], valid: int, least: int, why: str) -> GenflError:
    """Return the error of a cohort of which too few clients answered.

    Args:
        requests: What they were asked.
        valid: How many answered with a valid upload.
        least: How many must.
        why: Why others did not, in words.
    """
    action = requests[0].action
    if action in NEEDS_ALL:
        return GenflError(
            f"{action}: every client is needed, and {why}; look into the clients' logs, and run the"
            " same command again"
        )
    return GenflError(
        f"federate.quorum: {valid} of {len(requests)} clients answered in round {requests[0].round} with a"
        f" valid upload, and {least} are needed ({why}); start these clients or mend what they name, and"
        " run the same command again"
    )


def _reply(content: RecordDict, request: Request, check: UploadCheck) -> Reply:
    """Return the reply of records; one without a valid upload is a refusal."""
    try:
        reply = read_reply(content, request)
    except RefusedMessage as error:
        reply = Reply(request.run, request.action, request.round, request.client, None, str(error))
    if not reply.refused and (why := check(reply.upload, request)):
        reply = reply._replace(upload=None, refused=why)
    return reply


def _round_result(round_number: int, opened: OpenedSum) -> RoundResult:
    """Return the outcome of a round whose uploads were added by a secure sum."""
    memories = {client: _receipt(round_number) for client in opened.clients}
    return RoundResult(opened.upload, memories, opened.left_out, opened.uplink_bytes, opened.samples)


def _receipt(round_number: int) -> Tree:
    """Return what the server keeps in place of a client's memory."""
    return {COUNTED: torch.tensor(round_number)}


def _results(task: ClientTask, reply: Reply) -> ClientResults:
    """Return what counts of a reply: its upload, and a receipt in place of the memory."""
    if reply.refused:
        return ClientResults([], {}, {}, {task.client: reply.refused})
    upload, memory = (trees.map(_as_stack, tree) for tree in (reply.upload, _receipt(task.round)))
    return ClientResults([task.client], upload, memory, {})


def _records(request: Request, packed: dict[int, PackedTree]) -> RecordDict:
    """Return a request as records.

    Args:
        request: The request.
        packed: The trees that are packed already, by their ids.
    """
    for tree in (request.message, request.initial):
        if tree is not None and id(tree) not in packed:
            packed[id(tree)] = pack(tree)
    initial = None if request.initial is None else packed[id(request.initial)]
    return request_records(request, packed[id(request.message)], initial)


def _as_stack(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.unsqueeze(0)


def _counted(memory: Tree) -> int:
    """Return the round of a receipt; 0 for a client that never took part."""
    return int(memory[COUNTED]) if memory.keys() == {COUNTED} else 0
