"""A federation on one machine: every party in a process and a folder of its own, on 127.0.0.1 alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genfl.config import Config
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.live.folders import KEYS, PEERS, PROCESSES
from genfl.live.keys import make_node_keys, make_server_keys, node_keys, server_keys
from genfl.live.limits import problem_of
from genfl.live.link import LOOPBACK, YEAR, Client, Server, SuperNode
from genfl.live.processes import Processes, free_ports
from genfl.live.server import for_machines
from genfl.live.site import EXAMPLES, write_examples
from genfl.storage import digest, read_json, remove, write_json, write_text

SPLIT = "split.json"
"""The file with the digest of what decided a client's share: the section ``data``, and the first seed."""


def deploy_local(config: Config, folder: Path, clients: int, seconds: float = YEAR) -> dict[str, Any]:
    """Run a federation on this machine, or resume it.

    Args:
        config: The config.
        folder: Where everything is kept: ``server``, and ``client-N`` for each client.
        clients: The number of clients, as in ``data.partition.clients``.
        seconds: The longest time that the federation may take.

    Returns:
        The label names with their holders, and for each method the evaluations and rounds.

    Raises:
        InputError: The config cannot be run so, or another process uses the folder.
        GenflError: The federation failed.
    """
    known = config.data.partition.known
    if known != clients:
        raise InputError(f"--local: {clients}, but data.partition.clients is {known}; give the same number")
    if problem := problem_of(config):
        raise InputError(problem)
    folder = folder.resolve()
    folders = [folder / f"client-{number}" for number in range(clients)]
    secure = config.federate.secure is not None
    with Processes(folder / PROCESSES) as processes:  # it locks the folder, so that keys are made once
        prepare_parties(config, folder / "server" / KEYS, folders)
        (port,) = free_ports(1)
        server = Server(for_machines(config), folder / "server", processes, LOOPBACK, port)
        server.start()
        server.register([node_keys(client).public for client in folders])
        address, authority = f"{LOOPBACK}:{port}", server.keys.authority
        nodes = [
            SuperNode(
                Client(
                    client,
                    client / "data",
                    address,
                    authority,
                    peers=client / PEERS if secure else None,
                    number=number,
                ),
                f"client {number}",
                processes,
            )
            for number, client in enumerate(folders)
        ]
        server.submit()
        return server.wait(seconds, nodes)


def prepare_parties(config: Config, keys: Path, folders: list[Path]) -> None:
    """Make the keys, and give each client the others' public keys, and its share of the data.

    Shares of another split are replaced.

    Args:
        config: The config.
        keys: The folder of the server's keys. Keys that exist are kept.
        folders: The folder of each client.
    """
    if not server_keys(keys).key.exists():
        make_server_keys(keys, [LOOPBACK, "localhost"])
    for client in folders:
        if not node_keys(client).key.exists():
            make_node_keys(client)
    peers = "".join(_public_line(client) for client in folders)
    for client in folders:
        write_text(client / PEERS, peers)
    split = digest([config.data.model_dump(mode="json"), config.seeds[0]])
    if all(_split_of(client / "data") == split for client in folders):
        return
    context = RunContext()
    rows = context.client_rows(config.data, config.seeds[0])
    for client, own in zip(folders, rows, strict=True):
        remove(client / "data" / SPLIT, client)  # in case this ends before the new share is complete
        write_examples(client / "data", context.data_set(config.data), own)
        write_json(client / "data" / SPLIT, {"digest": split})


def _public_line(client: Path) -> str:
    return " ".join(node_keys(client).public.read_text(encoding="utf-8").split()[:2]) + "\n"


def _split_of(data: Path) -> str | None:
    """Return the digest of the split of a client's share; None if there is no whole share."""
    if not (data / EXAMPLES).exists() or not (data / SPLIT).exists():
        return None
    return str(read_json(data / SPLIT)["digest"])
