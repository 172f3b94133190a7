"""The command line. Slow imports are inside the commands that need them."""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, get_type_hints

import click
import typer
from typer.core import TyperCommand

import genfl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genfl.config import Config
    from genfl.experiment.records import StageStatus

app = typer.Typer(
    name="genfl",
    help="Federated learning with generative content: GPT-FL and FedGC, end to end.",
    epilog="Start with `genfl demo`.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would double the time of --help
    pretty_exceptions_enable=False,
)


class _Command(TyperCommand):
    """A command with the help of its arguments, which typer can lose, and without its marks for rich."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        hints = get_type_hints(self.callback, include_extras=True)
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            params: list[Any] = [param for param in self.get_params(ctx) if param.param_type_name == kind]
            for param in params:
                if kind == "argument" and not param.help:
                    param.help = hints[param.name].__metadata__[0].help
            records = [record for param in params if (record := param.get_help_record(ctx))]
            if records:
                with formatter.section(title):
                    formatter.write_dl([(name, text.replace("\\[", "[")) for name, text in records])


class CacheAction(StrEnum):
    """What can be done with the cache."""

    list = "list"
    clear = "clear"


class Until(StrEnum):
    """The stages that a run can stop after."""

    labels = "labels"
    prompts = "prompts"
    generate = "generate"
    guided = "guided"
    audit = "audit"
    vocabulary = "vocabulary"
    pretrain = "pretrain"
    federate = "federate"
    report = "report"


class Catalogue(StrEnum):
    """The catalogues of `genfl list`."""

    algorithms = "algorithms"
    generators = "generators"
    datasets = "datasets"
    models = "models"


class ContentKind(StrEnum):
    """The kinds of data that `genfl init` knows."""

    images = "images"
    sounds = "sounds"
    texts = "texts"


class KeyOwner(StrEnum):
    """Whose keys `genfl keys` makes."""

    server = "server"
    node = "node"


class Document(StrEnum):
    """The documents with a JSON schema."""

    config = "config"
    summary = "summary"


INTERRUPTED = 130
"""The exit code after Ctrl-C."""

GRACE = 0.7
"""Seconds for cleaning up after Ctrl-C. Then the process ends all the same, as a run can always resume."""

FEDERATION_GRACE = 15.0
"""Seconds for ending the processes of a federation after Ctrl-C, which outlive this one otherwise."""

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
"""What a user can mend of what an operating system refuses."""

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The config file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that replace those of the file: federate.rounds=20"),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run. Default: runs/NAME.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete an earlier run in the folder and start over.")]
Update = Annotated[
    bool,
    typer.Option("--update", help="Accept a folder of another config; redo only what the changes affect."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, without progress bars.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"genfl {genfl.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
    debug: Debug = False,
) -> None:
    pass


@app.command("demo", cls=_Command)
def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds to average over.")] = 3,
    fresh: Fresh = False,
    update: Update = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare GPT-FL with FedAvg on real handwriting.

    It takes a few minutes on two cores. It needs no GPU and no download.
    """
    from importlib.resources import files

    from genfl import config

    text = (files("genfl.configs") / "digits.yaml").read_text(encoding="utf-8")
    overrides = [f"seeds={list(range(seeds))}"]
    _execute(config.parse(text, overrides), out, Until.report, fresh, update, as_json)


@app.command("run", cls=_Command)
def run_command(
    config_file: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    until: Annotated[Until, typer.Option(help="The last stage to run.")] = Until.report,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="With --until generate: generate shard I of N, counted from 0. Then run without --shard.",
        ),
    ] = None,
    fresh: Fresh = False,
    update: Update = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a config, or resume an interrupted run.

    KEY=VALUE replaces a setting of CONFIG.yaml, as in federate.rounds=20. It can be repeated. Finished stages
    that do not depend on a change are not run again.
    """
    from genfl import config

    _execute(config.load(config_file, overrides or []), out, until, fresh, update, as_json, shard)


@app.command("sweep", cls=_Command)
def sweep_command(
    config_file: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the sweep. Default: runs/NAME.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete earlier runs at the grid's points and start over.")
    ] = False,
    update: Update = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a config at every point of its grid.

    The same command resumes an interrupted sweep.

    The grid maps fields to lists of values: `grid: {data.partition.alpha: [0.05, 0.1, 1.0]}`. KEY=VALUE
    replaces a setting of CONFIG.yaml, as in federate.rounds=20. A stage that is the same at several points
    runs once.
    """
    from genfl import config, grid, progress

    _configure_logging()
    progress.enabled.set(not as_json)
    content = config.read(config_file, overrides or [])
    results = grid.run_sweep(content, grid.sweep_folder(content, out), fresh=fresh, update=update)
    if as_json:
        _print_json([result.to_dict() for result in results])
    else:
        _print_table(*grid.overview(results))


@app.command("status", cls=_Command)
def status_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, a sweep or a federation.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the progress of a run, of the runs of a sweep, or of a federation of real machines."""
    from genfl.experiment import records
    from genfl.live.overview import server_folder

    if server := server_folder(folder):
        _show_federation_status(server, as_json)
        return
    if os.path.exists(folder / records.SWEEP_MARKER):  # noqa: PTH110  (a name may be too long)
        head, runs = ("run", "stage", "progress"), records.sweep_rows(folder, _run_status)
        if as_json:
            _print_json([dict(zip(head, run, strict=True)) for run in runs])
        else:
            _print_table(head, runs)
        return
    rows = _run_status(folder)
    if as_json:
        _print_json([row._asdict() for row in rows])
        return
    _print_stages(rows)


@app.command("runs", cls=_Command)
def runs_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that holds runs, or a sweep.")
    ] = Path("runs"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the runs and sweeps below a folder: state, date, best method, seeds and time.

    The runs of a sweep are listed by `genfl runs SWEEP`, and in the JSON.
    """
    from genfl.experiment.listing import list_runs

    entries = list_runs(folder)
    if as_json:
        _print_json([entry.to_dict() for entry in entries])
        return
    if len(entries) == 1 and entries[0].path == "." and entries[0].runs:
        entries = list(entries[0].runs)
    if not entries:
        typer.echo(f"There are no runs in {folder}. `genfl demo` makes one.")
        return
    from genfl.report.numbers import duration, mean_and_std

    _print_table(
        ("run", "state", "date", "name", "best method", "accuracy, %", "seeds", "time"),
        [
            (
                entry.path,
                " ".join(filter(None, (entry.state, entry.where))),
                entry.date,
                "(sweep)" if entry.kind == "sweep" else entry.name,
                entry.best.method if entry.best else "–",
                mean_and_std(entry.best.mean, entry.best.std) if entry.best else "–",
                "–" if entry.seeds is None else str(entry.seeds),
                "–" if entry.seconds is None else duration(entry.seconds),
            )
            for entry in entries
        ],
    )


@app.command("compare", cls=_Command)
def compare_command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs. A sweep stands for its runs."),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="What to compare with: METHOD of the same run, or RUN:METHOD. Default: the method of that"
            " name in the first run.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the page, and for the table as CSV and LaTeX.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare finished runs: one table of all methods, with differences and their confidence.

    Without --out, the table is printed, and nothing is written.
    """
    from genfl.comparison import compare_folders, write_comparison

    with _naming_options():
        comparison = compare_folders(runs, baseline)
    page = write_comparison(comparison, out) if out else None
    if as_json:
        _print_json(comparison.to_dict())
        return
    from genfl.report.comparison_page import headline, printed_table, statements

    typer.echo(f"{headline(comparison)}\n")
    _print_table(*printed_table(comparison))
    typer.echo("\n" + "\n".join(statements(comparison)))
    for warning in comparison.warnings:
        typer.echo(f"Warning: {warning}")
    typer.echo(f"\nPage: {page}" if page else "\nFor a page with curves and settings, add --out DIR.")


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
MethodName = Annotated[
    str | None,
    typer.Option("--method", help="Method of the run. Default: the best federated one by mean accuracy."),
]


@app.command("evaluate", cls=_Command)
def evaluate_command(
    run: RunFolder,
    data: Annotated[
        str,
        typer.Option(
            "--data", help="Folder of labelled data: a data set, a single split, or only class folders."
        ),
    ],
    method: MethodName = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the model. Default: all seeds.")] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Split of the data. Default: test, or validation, or the only one."),
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Column of the classes. Default: as in the run.")
    ] = None,
    input: Annotated[
        str | None, typer.Option("--input", help="Column of the inputs. Default: as in the run.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for evaluation.json, tables as CSV and a page. Default: none."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Test the models of a run on other labelled data.

    The data is read with the options of the run's own data. Nothing is written into the run.
    """
    from genfl.api import load_run
    from genfl.deployment.overview import evaluation_tables

    _configure_logging()
    with _naming_options():
        evaluation = load_run(run).evaluate(
            data,
            method=method,
            seed=seed,
            split=split,
            label=label,
            input=input,
            out=out,
            progress=not as_json,
        )
    if as_json:
        _print_json(evaluation.to_dict())
        return
    notes, tables = evaluation_tables(evaluation)
    typer.echo("\n".join(notes))
    for head, rows in tables:
        typer.echo()
        _print_table(head, rows)
    if out is not None:
        typer.echo(f"\nPage: {out / 'index.html'}")


@app.command("predict", cls=_Command)
def predict_command(
    run: RunFolder,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Files, tables of texts, or folders of them.")
    ],
    method: MethodName = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the model. Default: the run's first.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes of each prediction.")] = 3,
    input: Annotated[
        str | None, typer.Option("--input", help="Column of the inputs in tables. Default: as in the run.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File for all predictions: FILE.csv or FILE.json.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict the classes of files with a model of a run.

    Files that cannot be read are named at the end. The exit code is 2 only if none can be read.
    """
    from genfl import progress
    from genfl.api import load_run
    from genfl.deployment import overview, prediction
    from genfl.deployment.labelled import DataColumns

    _configure_logging()
    progress.enabled.set(not as_json)
    with _naming_options():
        if out is not None:
            prediction.check_out(out, files)
        result = load_run(run)
        model = result.model(method or result.best_method, seed)
        modality = model.description.modality
        names = (input,) if input else DataColumns.of_run(run, modality).inputs
        inputs = prediction.find_inputs(files, modality, names, exact=input is not None)
        failed: list[prediction.Unreadable] = []
        rows = prediction.readable_predictions(model, inputs, top, failed)
        if out is not None:
            if as_json:
                rows = prediction.printing(rows, partial(typer.echo, nl=False))
            prediction.write_predictions(out, rows, min(top, len(model.label_names)))
            typer.echo(f"Predictions: {out}", err=as_json)
        elif as_json:
            for line in prediction.json_lines(rows):
                typer.echo(line, nl=False)
        else:
            head, cells, more = overview.prediction_table(rows, min(top, len(model.label_names)))
            _print_table(head, cells)
            if more:
                typer.echo(f"{more:,} more; --out FILE.csv writes all of them")
    for line in overview.unreadable_lines(failed):
        typer.echo(line, err=True)


@app.command("advise", cls=_Command)
def advise_command(
    config_file: ConfigFile,
    overrides: Overrides = None,
    per_label: Annotated[
        int, typer.Option("--per-label", metavar="NUMBER", help="Generated samples of each label.")
    ] = 20,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            metavar="NUMBER",
            help="Rounds of each method of the pilot. Default: 7 % of the run's, all methods together.",
        ),
    ] = None,
    federation: Annotated[
        bool,
        typer.Option(
            "--federation/--no-federation",
            help="Whether the pilot trains on clients' data. Without it, intervals are wider.",
        ),
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for advice.json, a page and the pilot. Default: runs/NAME.advice."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say whether the generator will help, before the run: by a pilot of a tenth of it.

    The run takes over the pilot's samples. The same command resumes an interrupted advice.
    """
    from genfl import config, progress
    from genfl.advising import advise_config
    from genfl.report.advice_text import advice_lines

    _configure_logging()
    progress.enabled.set(not as_json)
    loaded = config.load(config_file, overrides or [])
    with _naming_options():
        advice, page = advise_config(
            loaded,
            Path("runs") / loaded.name,
            per_label=per_label,
            rounds=rounds,
            federation=federation,
            out=out,
        )
    if as_json:
        _print_json(advice.to_dict())
        return
    (_, verdict), *lines = advice_lines(advice)
    typer.echo(f"{verdict}\n")
    for about, sentence in lines:
        typer.echo(f"{about}: {sentence}")
    typer.echo(f"\nPage: {page}")


@app.command("audit", cls=_Command)
def audit_command(
    run: RunFolder,
    method: MethodName = None,
    seed: Annotated[int | None, typer.Option("--seed", help="A seed of the run. Default: the first.")] = None,
    attacks: Annotated[
        str, typer.Option("--attack", metavar="NAMES", help="Attacks, by commas: loss, lira, rmia.")
    ] = "loss",
    shadows: Annotated[
        int, typer.Option("--shadows", min=0, help="Shadow models to train for lira and rmia, with progress.")
    ] = 16,
    uploads: Annotated[
        bool,
        typer.Option(
            "--uploads", help="Attack single uploads, too: what a server sees without a secure sum."
        ),
    ] = False,
    canaries: Annotated[
        int,
        typer.Option(
            "--canaries",
            min=0,
            metavar="NUMBER",
            help="Canaries in one more training, with progress: a lower bound on epsilon.",
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for audit.json, a page and shadow models. Default: RUN.audit-METHOD-seed-SEED.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Attack a trained model of a run: can it tell which examples it was trained on?

    It needs the run's private data. The run is not changed, and none of its models is trained again. The
    default folder lies beside the run. The same command resumes an interrupted audit.
    """
    from genfl import progress
    from genfl.auditing import audit_run
    from genfl.experiment.records import RUN_CONFIG
    from genfl.report.audit_page import (
        canary_verdict,
        rounds_rows,
        table_head,
        table_row,
        unresolved,
        verdict_of,
    )

    _configure_logging()
    progress.enabled.set(not as_json)
    names = [name.strip() for name in attacks.split(",") if name.strip()]
    with _naming_options():
        audit, page = audit_run(
            run,
            method=method,
            seed=seed,
            attacks=names,
            shadows=shadows,
            uploads=uploads,
            canaries=canaries,
            out=out,
        )
    if as_json:
        _print_json(audit.to_dict())
        return
    typer.echo(f"{audit.method}, seed {audit.seed}: {verdict_of(audit)}\n")
    _print_table(table_head(audit), [table_row(attack) for attack in audit.attacks])
    if audit.uploads is not None:
        typer.echo("\nAttacks on single uploads\n")
        _print_table(table_head(audit), [table_row(attack) for attack in audit.uploads])
    if rounds := rounds_rows(audit):
        typer.echo("\nAttacks over the rounds\n")
        _print_table(("round", *table_head(audit)), rounds)
    if audit.canaries is not None:
        typer.echo(f"\n{canary_verdict(audit.canaries)}")
    for sentence in unresolved(audit):
        typer.echo(f"\n{sentence}")
    typer.echo(f"\nPage: {page}")
    if out is None:
        typer.echo(f"The run's report shows it after: genfl run {run / RUN_CONFIG} --out {run}")


@app.command("keys", cls=_Command)
def keys_command(
    owner: Annotated[KeyOwner, typer.Argument(help="Whose keys to make.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", help="A name or address by which clients reach the server. Can be repeated."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make the keys of a federation, on the machine that uses them.

    Private keys can be read by this user alone, and never leave the folder. Clients need the server's ca.pem.
    The server needs each client's node.pub.
    """
    from genfl.engines.flower import check_flower
    from genfl.live import keys

    check_flower("genfl keys")
    made: dict[str, Path]
    if owner is KeyOwner.server:
        made = keys.make_server_keys(out, hosts or [])._asdict()
    else:
        made = keys.make_node_keys(out)._asdict()
    if as_json:
        _print_json({name: str(path) for name, path in made.items()})
        return
    _print_table(("file", "what it is"), [(str(path), name.replace("_", " ")) for name, path in made.items()])


@app.command("deploy", cls=_Command)
def deploy_command(
    config_file: ConfigFile,
    local: Annotated[
        int, typer.Option("--local", min=1, metavar="N", help="Number of clients, all on this machine.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the federation. Default: federations/NAME.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a config as a real federation on this machine, over Flower. The same command resumes it.

    Server and clients are separate processes with separate folders. They talk over TLS on 127.0.0.1, and the
    server knows each client by its key. With federate.secure, the server learns sums of uploads alone.
    """
    from genfl import config

    _prepare_federation("genfl deploy")
    from genfl.live.local import deploy_local

    settings = config.load(config_file, overrides or [])
    folder = out or Path("federations") / settings.name
    _show_federation(deploy_local(settings, folder, local), folder / "server", as_json)


@app.command("server", cls=_Command)
def server_command(
    config_file: ConfigFile,
    nodes: Annotated[
        list[Path],
        typer.Option("--node", metavar="FILE", help="A client's node.pub. Repeat it for each."),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The server's folder, with its keys. Default: federations/NAME/server."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address on which to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on which to listen.")] = 9092,
    health: Annotated[
        int | None,
        typer.Option(
            "--health",
            metavar="PORT",
            min=1,
            max=65535,
            help="Answer GET /health on this port of 127.0.0.1. Default: no health endpoint.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a config with clients on other machines, over Flower. The same command resumes it.

    Make the server's keys first: genfl keys server --host HOST --out DIR/keys. Whoever reaches the port can
    register nodes and submit code; let only the clients' addresses reach it.
    """
    from genfl import config

    _prepare_federation("genfl server")
    from genfl.live.link import run_server

    settings = config.load(config_file, overrides or [])
    folder = out or Path("federations") / settings.name / "server"
    result = run_server(settings, folder, nodes, host, port, health=health)
    _show_federation(result, folder, as_json)


@app.command("client", cls=_Command)
def client_command(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="The folder with the client's data.")],
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The server's address.")],
    authority: Annotated[Path, typer.Option("--ca", metavar="FILE", help="The server's ca.pem.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The client's folder, with its node key.")
    ] = Path("client"),
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="YAML with what the client allows.")
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(
            "--peers",
            metavar="FILE",
            help="The node.pub of all clients, a line each, in the server's order: for secure sums.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a federation's server with the data of this machine, until Ctrl-C.

    Make the node's key first: genfl keys node --out DIR. Nothing needs to reach this machine from outside.
    """
    _prepare_federation("genfl client")
    from genfl.live.link import Client, answer_server

    if as_json:
        _print_json({"server": server, "data": str(data), "folder": str(out)})
    answer_server(Client(out, data, server, authority, policy, peers))


@app.command("nodes", cls=_Command)
def nodes_command(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Folder of a federation. Default: the only one in federations."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List a federation's clients: their keys, whether they are online, and what they did.

    Run it at the server, while the federation works or afterwards. Times are in UTC.
    """
    from genfl.live.overview import FederationOverview, find_server, node_rows

    rows = node_rows(FederationOverview(find_server(folder)))
    if as_json:
        _print_json([row._asdict() for row in rows])
        return
    head = (
        "client",
        "key",
        "node",
        "since",
        "rounds",
        "left out",
        "last reason",
        "sent",
        "received",
        "answered",
    )
    _print_table(
        head,
        [
            (
                str(row.client),
                row.key[:17],
                row.node,
                _time(row.since),
                str(row.rounds),
                str(row.left_out),
                row.reason or "–",
                _size(row.sent),
                _size(row.received),
                _time(row.answered),
            )
            for row in rows
        ],
    )


@app.command("memory", cls=_Command)
def memory_command(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="A client's folder.")] = Path("client"),
    forget: Annotated[
        list[str] | None,
        typer.Option(
            "--forget",
            metavar="NAME",
            help="Delete what the client keeps of this federation, for good. Can be repeated.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what a client keeps of federations on its disk.

    Forget those alone that have ended: a client refuses all messages of a federation that it forgot.
    """
    from genfl.engines.flower import check_flower

    check_flower("genfl memory")
    from genfl.live.memories import forget_federations, kept_federations

    if forget:
        forget_federations(folder, forget)
    rows = kept_federations(folder)
    if as_json:
        _print_json([row._asdict() for row in rows])
        return
    _print_table(
        ("federation", "for", "last round", "answered", "size"),
        [
            (row.name, row.purpose or "–", str(row.round or "–"), _time(row.answered), _size(row.bytes))
            for row in rows
        ],
    )


@app.command("list", cls=_Command)
def list_command(
    what: Annotated[Catalogue, typer.Argument(help="The catalogue to list.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what a config can name."""
    from genfl import catalogue

    rows = getattr(catalogue, what.value)()
    if as_json:
        _print_json(rows)
    elif rows:
        _print_table(tuple(rows[0]), [tuple(_cell(value) for value in row.values()) for row in rows])


@app.command("schema", cls=_Command)
def schema_command(
    what: Annotated[Document, typer.Argument(help="The document to describe.")] = Document.config,
    debug: Debug = False,
) -> None:
    """Print the JSON schema of a config or a summary.

    Editors read the schema of a config. Scripts read that of summary.json.
    """
    if what is Document.summary:
        from genfl.results.schema import Summary

        _print_json(Summary.json_schema())
        return
    from genfl.config import json_schema

    _print_json(json_schema())


@app.command("cache", cls=_Command)
def cache_command(
    action: Annotated[CacheAction, typer.Argument(help="What to do.")] = CacheAction.list,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List or clear the cache of decoded data sets.

    The cache holds private data. It stays when genfl is uninstalled.
    """
    from genfl.data.cache import cache_root, cached_data, clear_cache

    if action is CacheAction.clear:
        freed = clear_cache()
        typer.echo(f"{freed / 1e6:.1f} MB freed in {cache_root()}")
        return
    entries = cached_data()
    if as_json:
        _print_json([{**entry._asdict(), "path": str(entry.path)} for entry in entries])
        return
    rows: list[tuple[str, ...]] = [
        (
            str(entry.path),
            f"{entry.bytes / 1e6:.1f}",
            "incomplete" if entry.examples is None else f"{entry.examples:,}",
            ", ".join(entry.classes[:5]) + (", ..." if len(entry.classes) > 5 else ""),
        )
        for entry in entries
    ]
    _print_table(("folder", "MB", "examples", "classes"), rows)


@app.command("init", cls=_Command)
def init_command(
    kind: Annotated[ContentKind, typer.Argument(help="The kind of your data.")] = ContentKind.images,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write. Default: KIND.yaml.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a commented config for your own data, which runs once its data.path is set."""
    from genfl import starters

    path = starters.new_config(kind.value, out or Path(f"{kind.value}.yaml"))
    if as_json:
        _print_json({"config": str(path)})
    else:
        typer.echo(f"{path}: set data.path, then genfl run {path}")


@app.command("examples", cls=_Command)
def examples_command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The example to copy. Default: list all.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to copy to.")] = Path("examples"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the example configs, or copy one."""
    from genfl import starters

    if name is not None:
        path = starters.copy_example(name, out)
        if as_json:
            _print_json({"config": str(path)})
        else:
            typer.echo(f"{path}: its first lines say how to run it")
        return
    names = starters.example_names()
    if as_json:
        _print_json([{"name": example, "summary": summary} for example, summary in names.items()])
    else:
        _print_table(("name", "summary"), list(names.items()))


@app.command("export", cls=_Command)
def export_command(
    run: RunFolder,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write, outside of the run.")],
    method: MethodName = None,
    seed: Annotated[int | None, typer.Option("--seed", help="A seed of the run. Default: the first.")] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write model.onnx, too, and check it against PyTorch.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="OWNER/NAME",
            help="Upload the folder to this Hugging Face repository. A new one is private.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Export a trained model: weights, a loader that needs torch and safetensors alone, and a model card."""
    from genfl.deployment.export import export_model

    with _naming_options():
        exported = export_model(run, to, method=method, seed=seed, onnx=onnx, push_to_hub=push_to_hub)
    if as_json:
        _print_json({**exported._asdict(), "folder": str(exported.folder)})
        return
    _print_table(("file", "bytes"), [(name, f"{size:,}") for name, size in exported.files.items()])
    typer.echo(f"\n{exported.method}, seed {exported.seed}: {exported.folder}")
    if exported.onnx_difference is not None:
        typer.echo(f"model.onnx: logits differ from those of PyTorch by {exported.onnx_difference:.1g}")
    if exported.repository is not None:
        typer.echo(f"Uploaded: {exported.repository}")


def _print_stages(rows: list[StageStatus]) -> None:
    seconds = [f"{row.seconds:.1f} s" if row.seconds is not None else "" for row in rows]
    _print_table(
        ("stage", "state", "time", "progress"),
        [(row.name, row.state, time, row.progress) for row, time in zip(rows, seconds, strict=True)],
    )


def _run_status(folder: Path) -> list[StageStatus]:
    """Return the status of a run. The pipeline, which imports torch, is asked for unfinished runs alone."""
    from genfl.experiment.records import finished_status

    if rows := finished_status(folder):
        return rows
    from genfl import pipeline

    return pipeline.run_status(folder)


def _execute(
    config: Config,
    out: Path | None,
    until: Until,
    fresh: bool,
    update: bool,
    as_json: bool,
    shard: str | None = None,
) -> None:
    from genfl import pipeline, progress
    from genfl.experiment.folder import Shard

    _configure_logging()
    progress.enabled.set(not as_json)
    folder = out or Path("runs") / config.name
    part = Shard.parse(shard) if shard else None
    summary = pipeline.execute(config, folder, until=until.value, fresh=fresh, update=update, shard=part)
    if as_json:
        rows = [row._asdict() for row in pipeline.run_status(part.folder(folder) if part else folder)]
        _print_json(summary if summary is not None else {"stages": rows})
    elif summary is not None:
        from genfl.report.releases import privacy_line
        from genfl.report.text import methods_table, verdict
        from genfl.results.schema import Summary

        figures = Summary.parse(summary)
        typer.echo(f"\n{verdict(figures)}\n")
        if line := privacy_line(figures.privacy):
            typer.echo(f"{line}\n")
        _print_table(*methods_table(figures))
        typer.echo(f"\nReport: {folder / 'report' / 'index.html'}")
    else:
        typer.echo(f"Done up to {until.value}: {part.folder(folder) if part else folder}")


def _prepare_federation(command: str) -> None:
    """Check that Flower is installed, and let Ctrl-C or a request to end stop all processes."""
    from genfl.engines.flower import check_flower

    check_flower(command)
    _configure_logging()
    signal.signal(signal.SIGINT, _interrupt_federation)
    for number in _REQUESTS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as after nohup
            signal.signal(number, _interrupt_federation)


def _show_federation(result: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Show the results of a federation.

    Args:
        result: See `genfl.live.server.results_of`.
        folder: The server's folder.
        as_json: Whether to print JSON.
    """
    from genfl.live.folders import RUN
    from genfl.live.server import results_table

    if as_json:
        _print_json({"folder": str(folder), **result})
        return
    typer.echo(f"labels: {', '.join(result['labels'])}\n")
    _print_table(*results_table(result))
    typer.echo(f"\nModels: {folder / RUN / 'federate'}\nReport: {folder / RUN / 'report' / 'index.html'}")


def _show_federation_status(folder: Path, as_json: bool) -> None:
    """Show the progress of a federation.

    Args:
        folder: The server's folder.
        as_json: Whether to print JSON.
    """
    from genfl.errors import on_one_line
    from genfl.live.overview import FederationOverview, seconds_since
    from genfl.report.numbers import duration

    overview = FederationOverview(folder)
    overview.update()
    stages, methods, rounds = overview.stages(), overview.methods(), overview.rounds()
    state, online, last = overview.state, overview.online, overview.last
    if as_json:
        _print_json(
            {
                "state": state,
                "error": overview.error,
                "stages": [row._asdict() for row in stages],
                "methods": [row._asdict() | {"rounds": rounds} for row in methods],
                "clients": len(overview.clients),
                "online": online,
                "last_event": last,
            }
        )
        return
    why = f" ({on_one_line(overview.error, 300)})" if overview.error else ""
    typer.echo(f"{folder}: {state}{why}\n")
    _print_stages(stages)
    if methods:
        typer.echo("")
        _print_table(
            ("method", "seed", "round", "test accuracy"),
            [
                (
                    row.method,
                    str(row.seed),
                    str(row.round) if state == "done" else f"{row.round} of {rounds}",
                    "–" if row.accuracy is None else f"{row.accuracy:.1%}",
                )
                for row in methods
            ],
        )
    clients = len(overview.clients)
    typer.echo(f"\nclients: {clients}" if online is None else f"\nclients online: {online} of {clients}")
    if last is not None:
        ago = duration(seconds_since(last["time"]))
        typer.echo(f"last event: {last['event']}, {_time(last['time'])} UTC, {ago} ago")


def _time(time: str | None) -> str:
    """Return a time in UTC as people read it; a dash if there is none."""
    return "–" if time is None else time[:19].replace("T", " ")


def _size(size: float) -> str:
    """Return a number of bytes with three digits."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


@contextlib.contextmanager
def _naming_options() -> Iterator[None]:
    """Name the options of the command line in messages, where the library names Python's arguments."""
    from genfl.errors import InputError

    options = {"folder": "RUN", "runs": "RUN", "files": "FILES", "path": "--data", "attacks": "--attack"}
    try:
        yield
    except InputError as error:
        text = re.sub(
            r"^(folder|runs|files|path|method|seed|split|label|input|out|attacks|shadows|uploads)(?=:)",
            lambda name: options.get(name[0], f"--{name[0]}"),
            str(error),
        )
        raise InputError(text) from error


def _configure_logging() -> None:
    """Send the library's log to standard error. Standard output is for results."""
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("genfl")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        grid.add_column(name)
    for row in rows:
        grid.add_row(*row)
    width = None if sys.stdout.isatty() else 10_000  # in a file or a pipe, rows are not wrapped
    Console(width=width, markup=False, emoji=False).print(grid)  # names are shown as they are


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def main() -> NoReturn:
    """Run the command line. The exit code is 0 for success, 2 for bad input, 1 for a failure."""
    from genfl.errors import GenflError, InputError, on_one_line

    _open_streams()
    signal.signal(signal.SIGINT, _interrupt)
    # Threads that wait by spinning slow a run down several times if other programs use the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv
    try:
        app(prog_name="genfl")
    except InputError as error:
        _fail(error, 2, debug, [f"error: {line}" for line in str(error).splitlines()])
    except GenflError as error:
        _fail(error, 1, debug, [f"failed: {line}" for line in str(error).splitlines()])
    except SystemExit as end:  # typer ends every command with it, and gives an interrupt the code 130
        if end.code == INTERRUPTED:
            _end_interrupted()
        raise
    except OSError as error:
        if error.errno in _REFUSED and error.filename is not None:
            name = on_one_line(error.filename, 200)
            fix = "give this user access, or name another path"
            _fail(error, 2, debug, [f"error: {name}: {error.strerror}; {fix}"])
        _fail(error, 1, debug, [_last_resort(error)])
    except Exception as error:
        _fail(error, 1, debug, [_last_resort(error)])
    sys.exit(0)


def _last_resort(error: Exception) -> str:
    from genfl.errors import on_one_line

    first = on_one_line((str(error).strip().splitlines() or [""])[0], 400)
    return f"failed: {type(error).__name__}: {first} (--debug shows the traceback)"


def _open_streams() -> None:
    """Open streams that are closed, and let those that are open show names that are not UTF-8."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # or the next file would be the closed stream
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


_REQUESTS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""The requests to end that are treated like Ctrl-C where other processes must end, too."""


def _interrupt_federation(*_: object) -> NoReturn:
    """Clean up like `_interrupt`, with the time that processes need to end. One request is enough."""
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_IGN)
    _interrupt(grace=FEDERATION_GRACE)


def _interrupt(*_: object, grace: float = GRACE) -> NoReturn:
    """Clean up after Ctrl-C, for `grace` seconds at most. A second Ctrl-C ends the process at once."""
    signal.signal(signal.SIGINT, _end_interrupted)
    sys.unraisablehook = lambda _: None  # this hook, and the next one, would print tracebacks
    threading.excepthook = lambda _: None
    timer = threading.Timer(grace, _end_interrupted)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _end_interrupted(*_: object) -> NoReturn:
    """End the process. Python itself would first take torch apart, which lasts seconds."""
    with contextlib.suppress(Exception):
        if threading.current_thread() is threading.main_thread():  # not the timer, which has no time left
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            atexit._run_exitfuncs()  # temporary folders
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{show_cursor}interrupted; run the same command again to resume\n")
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(INTERRUPTED)


def _fail(error: Exception, code: int, debug: bool, lines: list[str]) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    sys.stderr.write("\n".join(lines) + "\n")
    sys.exit(code)
