"""The health endpoint of a server: what a program on the same machine can ask by HTTP."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from genfl.errors import InputError
from genfl.live.overview import FederationOverview

log = logging.getLogger(__name__)

_ADDRESS = "127.0.0.1"
"""No other address: the answers are for this machine alone."""


@contextlib.contextmanager
def answering_health(folder: Path, port: int) -> Iterator[None]:
    """Answer ``GET /health`` while the block runs: with 200 if the server works, else with 503.

    Args:
        folder: The server's folder.
        port: The port of 127.0.0.1.

    Raises:
        InputError: The port cannot be used.
    """
    overview, reading = FederationOverview(folder), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0  # seconds until one that connects and says nothing is left
        server_version, sys_version = "genfl", ""

        def do_GET(self) -> None:
            if self.path != "/health":
                self.send_error(404)
                return
            with reading:
                overview.update()
                health = overview.health()
            content = json.dumps(health).encode() + b"\n"
            self.send_response(503 if health["problem"] else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: a probe each second would fill the log."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            log.debug("health: a request failed", exc_info=True)  # as of a probe that did not wait

    try:
        server = Server((_ADDRESS, port), Handler)
    except OSError as error:
        raise InputError(
            f"--health: {_ADDRESS}:{port} cannot be used ({error.strerror}); name another port"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="genfl-health", daemon=True)
    with server:
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
