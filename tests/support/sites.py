"""Federations of clients with folders of images, in this process: the real apps of server and client."""

import contextlib
import contextvars
import logging

import numpy as np
from PIL import Image

CONFIG = """
name: sites
seeds: [0]
data: {{name: images, size: [8, 8], path: {path}, partition: {{kind: iid, clients: 2}}}}
generator: none
model: {{name: mlp, width: 8}}
federate: {{rounds: 2, clients_per_round: 2, local: {{steps: 2, batch_size: 4}}}}
methods: {{plain: {{algorithm: fedavg}}, memory: {{algorithm: scaffold}}}}
"""


def draw(folder, names, seed, split="train"):
    """Writes six noisy images of each name."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / split / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(255, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{number}.bmp")
    return folder


@contextlib.contextmanager
def own_logs():
    """Gives the block the logs of a new process: none are open before, and what it opens is closed."""
    from genfl import journal

    loggers = [logging.getLogger("genfl"), journal.log]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.handlers = []
    yield
    for logger, level, handlers in before:
        for handler in logger.handlers:
            handler.close()
        logger.handlers = handlers
        logger.setLevel(level)


def separate(kind):
    """A kind of Grid whose clients have logs of their own, as in processes."""

    class Separate(kind):
        def deliver(self, message):
            with own_logs():
                return contextvars.Context().run(super().deliver, message)

    return Separate


def prepare(folder, *settings):
    """Writes what `genfl deploy --local 2` would, with images in place of shares; see `serve_in_process`.

    Returns the folder of the server.
    """
    from genfl import config
    from genfl.live.folders import CONFIG as CONFIG_FILE
    from genfl.live.folders import MEMBERS, PEERS
    from genfl.live.keys import make_node_keys
    from genfl.live.server import for_machines
    from genfl.storage import write_json, write_text

    data = draw(folder / "data", ["cat", "dog", "mouse"], 0, "test")
    asked = config.parse(CONFIG.format(path=draw(data, ["cat", "dog", "mouse"], 9)), settings)
    server = folder / "server"
    keys = [make_node_keys(folder / f"client-{number}").public.read_text() for number in range(2)]
    for number, names in enumerate((["cat", "dog"], ["cat", "mouse"])):
        draw(folder / f"client-{number}" / "data", names, number)
        write_text(folder / f"client-{number}" / PEERS, "".join(keys))
    write_text(server / CONFIG_FILE, config.dump(for_machines(asked)))
    write_text(server / PEERS, "".join(keys))
    write_json(server / MEMBERS, [1000, 1001])
    return server


def serve_in_process(folder, grid=None):
    """Runs the federation of a prepared folder: the apps that Flower starts, without Flower's processes."""
    from genfl import config
    from genfl.engines.flower.in_process import InProcessGrid
    from genfl.live.apps import client_app
    from genfl.live.folders import CONFIG as CONFIG_FILE
    from genfl.live.folders import PEERS
    from genfl.live.server import serve

    secure = config.load(folder / "server" / CONFIG_FILE).federate.secure
    opened = separate(grid or InProcessGrid)(client_app, 2)
    for number, context in enumerate(opened.contexts.values()):
        client = folder / f"client-{number}"
        own = {"folder": client, "data": client / "data"}
        if secure:  # who knows the others sends nothing in the clear
            own["peers"] = client / PEERS
        context.node_config.update({name: str(path) for name, path in own.items()})
    with own_logs():
        serve(opened, folder / "server")
