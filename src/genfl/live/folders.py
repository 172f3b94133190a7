"""The files in the folder of a federation's server. This module imports nothing slow."""

from __future__ import annotations

CONFIG, OUTCOME, RUN, LOG = "config.yaml", "outcome.json", "run", "server.log"
"""The files of a server's folder: its config, how it ended, its run, and its log."""

SERVING = "serving.json"
"""The id and the start of the process that serves; see `genfl.live.processes.start_of`."""

PEERS = "nodes.pub"
"""The public keys of the clients' nodes, in the order of their numbers."""

MEMBERS, REGISTERED = "members.json", "registered.json"
"""The nodes of the clients by their numbers, and the nodes of all registered keys."""

KEYS = "keys"
"""The folder of a server's keys, in its own folder."""

MEMORY = "memory"
"""The folder of what a client keeps between rounds, in its own folder."""

HOME = "flower"
"""The folder of what Flower itself keeps, in the folder of a server or a client."""

PROCESSES = "processes"
"""The file with the mark of what runs; see `genfl.live.processes.Processes`."""
