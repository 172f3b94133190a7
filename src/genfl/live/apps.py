"""The two apps that Flower starts: the server's, which runs the pipeline, and the client's.

A client's process is new for each message, so nothing is imported before it is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from genfl.engines.flower.member import SumMember
from genfl.engines.flower.node import build_client_app
from genfl.journal import JOURNAL
from genfl.live.folders import MEMORY
from genfl.live.logs import journal_to, log_to

if TYPE_CHECKING:
    from genfl.engines.flower.work import Site

server_app = ServerApp()
"""The app that `genfl deploy` submits to the SuperLink."""


@server_app.main()
def serve_run(grid: Grid, context: Context) -> None:
    """Run the federation of the server's folder; see `genfl.live.server.serve`."""
    from genfl.live.server import serve

    serve(grid, Path(str(context.run_config["folder"])))


def _open_logs(context: Context) -> Path:
    """Open the logs of a client, and return its folder."""
    folder = Path(str(context.node_config["folder"]))
    log_to(folder / "client.log")
    journal_to(folder / JOURNAL)
    return folder


def _site(context: Context) -> Site:
    from genfl.live.policy import read_policy
    from genfl.live.site import DataSite

    settings = context.node_config
    folder, policy = _open_logs(context), settings.get("policy")
    allowed = read_policy(Path(str(policy)) if policy else None)
    if "peers" in settings:  # who knows the other clients does not send uploads in the clear
        allowed = allowed.model_copy(update={"secure": True})
    return DataSite(folder / MEMORY, Path(str(settings["data"])), allowed)


def _member(context: Context) -> SumMember | None:
    from genfl.live.keys import make_member

    settings, folder = context.node_config, _open_logs(context)
    if "peers" not in settings:
        return None
    return make_member(folder, Path(str(settings["peers"])), folder / MEMORY)


client_app = build_client_app(_site, _member)
"""The app that answers for a client."""
