"""The two apps that Flower starts: the server's, which runs the pipeline, and the client's.

A client's process is new for each message, so nothing is imported before it is needed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from genfl.engines.flower.node import Site, build_client_app

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
    logging.getLogger("genfl").setLevel(logging.INFO)
    policy = settings.get("policy")
    return DataSite(
        Path(str(settings["folder"])),
        Path(str(settings["data"])),
        read_policy(Path(str(policy)) if policy else None),
    )


client_app = build_client_app(_site)
"""The app that answers for a client."""
