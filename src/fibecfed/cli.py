"""The command line. Exit codes: 0 done, 1 failed while running (resumable), 2 the user's mistake, 130 interrupted (resumable).

What takes seconds to import (torch, transformers) is imported inside the commands that need it.
"""

from __future__ import annotations

import enum
import importlib.metadata
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import cli_audit, cli_client, cli_trained, cli_watch
from .cli_parts import Commands, InOrder, Quiet, Verbose, path_argument, path_option
from .core.errors import UserError
from .core.files import CONFIG, FLOWER
from .core.streams import keep_streams, without_library_warnings
from .core.terminal import escaped
from .exits import DONE, FAILED, MISTAKE, console, exit_codes, say, terminated_like_interrupted, watched
from .logs import shown

if TYPE_CHECKING:
    from .config import Config


app = Commands(
    name="fibecfed",
    cls=InOrder,
    help="Fine-tune language models on text that cannot leave its owners.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


flower = Commands(help="Federations across machines, on Flower.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(flower, name="flower")
cli_trained.add(app)
cli_audit.add(app)
cli_client.add(app)
cli_watch.add(app)


class Topic(enum.StrEnum):
    """What `fibecfed list` can show."""

    methods = "methods"
    tasks = "tasks"
    models = "models"
    paces = "paces"


class Kind(enum.StrEnum):
    """What a configuration may be for."""

    classification = "classification"
    instruction = "instruction"


_ConfigFile = Annotated[Path, path_argument("CONFIG", "A TOML file; see configs/ and `fibecfed init`.")]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides keys of the file, e.g. federation.rounds=20 method.kind=lora.", show_default=False),
]


@app.command()
def run(
    config: _ConfigFile,
    overrides: _Overrides = None,
    out: Annotated[Path | None, path_option("Folder to write to. [default: runs/<file>-<method>-<seed>]")] = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Train and write adapters, records and summary."""
    with exit_codes(), shown(verbose, quiet):
        loaded = _load(config, overrides)
        folder = _default_folder(config, loaded) if out is None else out
        from . import session

        summary = watched(folder, lambda progress: session.start(loaded, folder, on_event=progress), quiet=quiet)
        _show_summary(summary, folder, quiet)


@app.command()
def resume(
    folder: Annotated[Path, path_argument("DIR", "The folder of an interrupted run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="New locations of moved files, e.g. data.path=new.csv model.name=models/bert.", show_default=False
        ),
    ] = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Resume after a crash or Ctrl-C.

    A run continues from its last checkpoint, with the same bits as a run without interruption. Its data and model may have been moved:
    their checksums must be the same.
    """
    with exit_codes(), shown(verbose, quiet):
        if (folder / FLOWER).is_file():  # which the server of a federation across machines has written
            from .deploy import again

            if overrides:
                raise UserError(f"{folder}: got {' '.join(overrides)}, but a federation's run accepts none; set them in {folder / CONFIG}")
            summary, was_finished = watched(folder, lambda progress: again.resume(folder), before="")
        else:
            from . import session

            pairs = overrides or ()
            summary, was_finished = watched(folder, lambda progress: session.resume(folder, progress, overrides=pairs), quiet=quiet)
        if was_finished:
            typer.echo(f"{folder}: this run is already finished; nothing to do.")
        _show_summary(summary, folder, quiet)


@app.command()
def compare(
    config: _ConfigFile,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Overrides keys of the file, e.g. methods=fibecfed,lora seeds=0,1 base.federation.rounds=10.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, path_option("Folder to write to, or to resume in. [default: runs/<file>]")] = None,
    verbose: Verbose = 0,
) -> None:
    """Run methods x tasks x seeds in parallel.

    Finished runs are skipped: the same command resumes after a crash or Ctrl-C, and adds methods, tasks or seeds to a folder.
    """
    with exit_codes(), shown(verbose):
        from .comparison.runner.read import load

        comparison = load(config, overrides or ())
        folder = Path("runs") / config.stem if out is None else out
        again = shlex.join(["fibecfed", "compare", str(config), *(overrides or ()), *(() if out is None else ("--out", str(out)))])
        from .comparison.runner.command import compare_in

        with exit_codes(again=again), terminated_like_interrupted():
            left = compare_in(comparison, folder, console()).unfinished(again)
        if left is not None:
            say(f"error: {left}")
            raise typer.Exit(FAILED)


@app.command()
def check(config: _ConfigFile, overrides: _Overrides = None) -> None:
    """Dry run; shows every mistake in a file.

    What would be trained, sent and stored, with estimates of memory and time; of a comparison, by the shapes of its models; of a
    federation across machines, without its clients' data. Starts and writes nothing.
    """
    with exit_codes():
        from .comparison.runner.read import is_comparison

        if is_comparison(config):
            from .comparison.runner.price import price_comparison
            from .comparison.runner.read import load as load_comparison

            compared, out = load_comparison(config, overrides or ()), console(piped=80)
            with out.status("reading data, then measuring each method ..."):  # a spinner on a terminal, nothing elsewhere
                price_comparison(compared, out, Path("runs") / config.stem)
            return
        loaded = _load(config, overrides)
        if loaded.federation.partition == "machines":
            from .deploy.check import report
        else:
            from .check import report
        out = console(piped=80)
        with out.status("loading model and data, then measuring a training step ..."):
            report(loaded, out)


@app.command("report")
def report_(
    folder: Annotated[Path, path_argument("DIR", "The folder of a comparison or a run.")],
    up_mbit: Annotated[float, typer.Option(help="Bandwidth from a client to the server, Mbit/s.")] = 10.0,
    down_mbit: Annotated[float, typer.Option(help="Bandwidth to a client, Mbit/s.")] = 50.0,
    latency_ms: Annotated[float, typer.Option(help="One-way latency, milliseconds.")] = 30.0,
    client_speed: Annotated[float, typer.Option(help="Speed of a client relative to this machine.")] = 1.0,
    tokens_per_s: Annotated[
        float | None,
        typer.Option(help="Model clients' computing from counted work, at this many tokens per second and block. [default: as measured]"),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=SCORE", help="Fixed target of a task, as the report shows its scores; repeatable."),
    ] = None,
    out: Annotated[Path | None, path_option("Folder to write the report to. [default: DIR]")] = None,
    export: Annotated[Path | None, path_option("Also write the numbers to one compact file.", "FILE")] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Of one simulated run: show its easiest and hardest training texts.")] = False,
) -> None:
    """Report on a run, or compare runs; write report.html.

    Tables here; report.html, report.md and CSV files in the folder. Time is modelled from bytes and compute seconds for the network of the
    options: clients of a round in parallel, the slowest counts.
    """
    with exit_codes():
        from .comparison.report.comparison import read_report, write_files
        from .comparison.report.terminal import show, targets
        from .core.clock import Network

        network = Network(up_mbit, down_mbit, latency_ms, client_speed, tokens_per_s)
        found = read_report(folder, network, targets(target or []))
        if texts:
            from .comparison.report.one.texts import with_texts

            found = replace(found, comparison=with_texts(found.comparison))
        show(found, console())  # before anything is written: a disk that is full takes no result away
        write_files(found, folder, out, export)
        typer.echo(f"\n{(folder if out is None else out) / 'report.html'} written, with report.md and report-*.csv beside it.")


@app.command("list")
def list_(topic: Annotated[Topic, typer.Argument(help="What to list.", show_default=False)]) -> None:
    """Show methods, tasks, models or paces."""
    with exit_codes():
        from rich.table import Table
        from rich.text import Text

        from . import listing

        header, rows = getattr(listing, topic.value)()
        table = Table(*header, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(Text(escaped(text)) for text in row))  # Text: brackets are no markup
        console().print(table)
        for note in listing.left_out() if topic is Topic.methods else ():
            say(f"note: {note}")


@app.command()
def init(
    out: Annotated[Path, path_option("File to write; it must not exist. [default: fibecfed.toml]")] = Path("fibecfed.toml"),
    task: Annotated[Kind, typer.Option(help="What the data are: texts with classes, or prompts with answers.")] = Kind.classification,
    every: Annotated[bool, typer.Option("--all", help="Every key that is likely to be changed, not only the eight to set first.")] = False,
) -> None:
    """Write a configuration for your own data."""
    with exit_codes():
        from .config import own_data_toml

        text = own_data_toml(task, few=not every)
        try:
            with out.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise UserError(f"--out: {out} exists already, and nothing is overwritten; choose another name with --out") from None
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written ({error.strerror}); choose another name with --out") from None
        typer.echo(f"{out} written. Set data.path and the columns in it; then:\n  fibecfed check {out}\n  fibecfed run {out}")


@flower.command("init")
def flower_init(
    folder: Annotated[Path, path_argument("FOLDER", "A new or empty folder.")],
    task: Annotated[Kind, typer.Option(help="What the data are: texts with classes, or prompts with answers.")] = Kind.classification,
) -> None:
    """Write the Flower app of a federation and its configuration."""
    with exit_codes():
        from .deploy import folder as deploy_folder

        deploy_folder.make(folder, task)
        config, environment = folder / deploy_folder.CONFIG, folder / deploy_folder.ENVIRONMENT
        first = "data.labels" if task is Kind.classification else "model.name"
        typer.echo(
            f"{folder} written. Set {first} in {config} and copy that file to every client; then, as in docs/deploy.md:\n"
            f"  . {environment}\n  flwr run {folder} production --stream"
        )


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            version = importlib.metadata.version("fibecfed")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed: run from its source)"
        typer.echo(f"fibecfed {version}")
        raise typer.Exit(DONE)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Fine-tune language models on text that cannot leave its owners."""
    without_library_warnings()


def main() -> None:
    """The entry point `fibecfed`; leaves with one of the exit codes."""
    keep_streams()
    try:
        os.getcwd()
    except OSError:  # PyTorch cannot be imported there either
        say("error: the current folder no longer exists; change to another one and run the same command again")
        raise SystemExit(MISTAKE) from None
    app(prog_name="fibecfed")


def _default_folder(file: Path, config: Config) -> Path:
    name = file.absolute().parent.name if file.name == CONFIG else file.stem  # a run's own configuration: as the run is called
    stem = f"{name}-{config.method.model_dump()['kind']}-{config.seed}"
    folder, number = Path("runs") / stem, 2
    while folder.exists():
        folder, number = Path("runs") / f"{stem}-{number}", number + 1
    return folder


def _load(file: Path, overrides: list[str] | None) -> Config:
    from .config import load

    loaded = load(file, overrides or ())
    for note in loaded.notes:
        say(f"note: {note}")
    return loaded.config


def _show_summary(summary: Mapping[str, Any], folder: Path, quiet: bool) -> None:
    from .progress import show_summary

    show_summary(console(quiet=quiet), summary, folder)
