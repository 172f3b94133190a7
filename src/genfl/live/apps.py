"""The two apps that Flower starts: the server's, which runs the pipeline, and the client's.

A client's process is new for each message, so nothing is imported before it is needed.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from genfl.engines.flower.node import Site, build_client_app
from genfl.live.logs import log_to

server_app = ServerApp()
"""The app that `genfl deploy` submits to the SuperLink."""


@server_app.main()
def serve_run(grid: Grid, context: Context) -> None:
    """Run the federation of the server's folder; see `genfl.live.server.serve`."""
    from genfl.live.server import serve

    serve(grid, Path(str(context.run_config["folder"])))


def _site(context: Context) -> Site:
    from genfl.live.policy import read_policy
    from genfl.live.site import DataSite

    settings = context.node_config
    folder, policy = Path(str(settings["folder"])), settings.get("policy")
    log_to(folder / "client.log")
    allowed = read_policy(Path(str(policy)) if policy else None)
    return DataSite(folder / "memory", Path(str(settings["data"])), allowed)


client_app = build_client_app(_site)
"""The app that answers for a client."""
