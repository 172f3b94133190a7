"""The server of a real federation: the pipeline over clients on other machines."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from genfl import config as configs
from genfl import pipeline
from genfl.config import Config, validate
from genfl.config.names import FLOWER
from genfl.errors import GenflError, InputError
from genfl.experiment.context import RunContext
from genfl.journal import JOURNAL, tell
from genfl.live.context import RemoteContext
from genfl.live.folders import CONFIG, LOG, MEMBERS, OUTCOME, PEERS, RUN, SERVING
from genfl.live.keys import public_keys
from genfl.live.logs import journal_to, log_to
from genfl.live.processes import start_of
from genfl.live.watch import watching
from genfl.storage import read_json, write_json

log = logging.getLogger(__name__)


def for_machines(config: Config) -> Config:
    """Return a config as real machines run it: over Flower, and without comparisons of private data.

    A vocabulary that is not set gets the size of the tokenizer at the server. This is decided here, because a
    config that was sent does not tell a default from a number that was set.

    Raises:
        InputError: The data at the server is needed for this, and cannot be read.
    """
    model = RunContext().sized_model(config.data, config.model)
    content = configs.plain(configs.dump(config.model_copy(update={"model": model})))
    content["federate"]["engine"] = FLOWER
    if content["audit"]["overlap"] == "warn":
        log.info("audit.overlap: nothing is compared, as the private data is at the clients")
        content["audit"]["overlap"] = "ignore"
    return validate(content)


def serve(grid: Grid, folder: Path) -> None:
    """Run the federation of a server's folder up to its models, or resume it. The outcome is a file.

    Args:
        grid: Flower's Grid.
        folder: The server's folder, with a config and the clients' nodes.
    """
    log_to(folder / LOG)
    journal_to(folder / JOURNAL)
    tell("federation_resumed" if (folder / RUN).exists() else "federation_started")
    write_json(folder / SERVING, [os.getpid(), start_of(os.getpid())])
    try:
        outcome: dict[str, Any] = {"error": None, "code": 0, "result": _federate(grid, folder)}
    except GenflError as error:
        outcome = {"error": str(error), "code": 2 if isinstance(error, InputError) else 1}
    except BaseException as error:
        log.exception("the server failed")
        outcome = {"error": f"{type(error).__name__}: {error}", "code": 1}
        raise
    finally:
        tell("federation_ended", reason=outcome["error"])
        write_json(folder / OUTCOME, outcome)


def _federate(grid: Grid, folder: Path) -> dict[str, Any]:
    config = configs.load(folder / CONFIG)
    members: list[int] = read_json(folder / MEMBERS)
    context = RemoteContext(grid, members, folder, public_keys(folder / PEERS))
    with watching(grid, members):
        context.wait_for_clients()
        pipeline.execute(config, folder / RUN, context=context)
    return results_of(folder / RUN)


def results_of(run: Path) -> dict[str, Any]:
    """Return what a finished federation gave: labels, and for each method the evaluations and rounds."""
    from genfl.experiment.records import record_file

    labels, federate = (read_json(record_file(run, stage))["result"] for stage in ("labels", "federate"))
    methods = {
        name: {seed: {key: trace[key] for key in ("evaluations", "rounds")} for seed, trace in traces.items()}
        for name, traces in federate["methods"].items()
    }
    return {"labels": labels["holders"], "methods": methods}


def results_table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the head and the rows of a table of the results of a federation; see `results_of`."""
    rows: list[tuple[str, ...]] = []
    for name, traces in result["methods"].items():
        for seed, trace in traces.items():
            accuracy = trace["evaluations"][-1]["accuracy"]
            refused = sum(row["refused"] for row in trace["rounds"])
            rows.append((name, seed, str(len(trace["rounds"])), f"{accuracy:.1%}", str(refused)))
    return ("method", "seed", "rounds", "test accuracy", "uploads left out"), rows
