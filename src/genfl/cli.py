"""The command line. Slow imports are inside the commands that need them."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import genfl

if TYPE_CHECKING:
    from genfl.config import Config

app = typer.Typer(
    name="genfl",
    help="Federated learning with generative content: GPT-FL and FedGC, end to end.",
    epilog="Start with `genfl demo`.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would double the time of --help
    pretty_exceptions_enable=False,
)


class Until(StrEnum):
    """The stages that a run can stop after."""

    labels = "labels"
    prompts = "prompts"
    generate = "generate"
    guided = "guided"
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


class Document(StrEnum):
    """The documents with a JSON schema."""

    config = "config"
    summary = "summary"


INTERRUPTED = 130

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


@app.command("demo")
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


@app.command("run")
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


@app.command("sweep")
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
    from genfl.errors import InputError

    _configure_logging()
    progress.enabled.set(not as_json)
    content = config.read(config_file, overrides or [])
    name = content.get("name")
    if out is None and not isinstance(name, str):
        raise InputError("name: missing, so the sweep has no folder; set name in the config, or use --out")
    results = grid.run_sweep(content, out or Path("runs") / str(name), fresh=fresh, update=update)
    if as_json:
        _print_json([result.to_dict() for result in results])
    else:
        _print_table(*grid.overview(results))


@app.command("status")
def status_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run or a sweep.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the progress of a run, or of the runs of a sweep."""
    from genfl import grid, pipeline

    if (folder / grid.SWEEP_MARKER).exists():
        head, runs = ("run", "stage", "progress"), grid.sweep_status(folder)
        if as_json:
            _print_json([dict(zip(head, run, strict=True)) for run in runs])
        else:
            _print_table(head, runs)
        return
    rows = pipeline.run_status(folder)
    if as_json:
        _print_json([row._asdict() for row in rows])
        return
    seconds = [f"{row.seconds:.1f} s" if row.seconds is not None else "" for row in rows]
    _print_table(
        ("stage", "state", "time", "progress"),
        [(row.name, row.state, time, row.progress) for row, time in zip(rows, seconds, strict=True)],
    )


@app.command("list")
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


@app.command("schema")
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
    from genfl.config import Config

    _print_json(Config.model_json_schema())


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
        from genfl.report.text import methods_table, verdict
        from genfl.results.schema import Summary

        figures = Summary.parse(summary)
        typer.echo(f"\n{verdict(figures)}\n")
        _print_table(*methods_table(figures))
        typer.echo(f"\nReport: {folder / 'report' / 'index.html'}")
    else:
        typer.echo(f"Done up to {until.value}: {part.folder(folder) if part else folder}")


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
    Console(width=width).print(grid)


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def main() -> NoReturn:
    """Run the command line. The exit code is 0 for success, 2 for bad input, 1 for a failure."""
    from genfl.errors import GenflError, InputError

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
            sys.stderr.write("interrupted; run the same command again to resume\n")
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        _fail(error, 1, debug, [f"failed: {type(error).__name__}: {first} (--debug shows the traceback)"])
    sys.exit(0)


def _fail(error: Exception, code: int, debug: bool, lines: list[str]) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    sys.stderr.write("\n".join(lines) + "\n")
    sys.exit(code)
