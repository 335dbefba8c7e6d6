"""The commands of what stays loaded in a federation across machines: its clients, and the helper."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_parts import Commands, Verbose, path_option
from .core.errors import UserError
from .core.json_log import json_lines
from .core.terminal import escaped
from .exits import FAILED, console, exit_codes, terminated_like_interrupted
from .logs import LogFormat, shown

if TYPE_CHECKING:
    from .deploy.superlink import SuperLink


_Config = Annotated[Path | None, path_option("The federation's configuration, the same file on every machine. [required]")]
_Json = Annotated[bool, typer.Option("--json", help="With --status: as JSON.")]
_Superlink = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="The server's address: starts the SuperNode as well. [default: another process does]"),
]
_RootCertificates = Annotated[
    Path | None, path_option("With --superlink: who signed the server's certificate, ca.crt. [default: whom this system trusts]")
]
_Key = Annotated[Path | None, path_option("With --superlink: this client's private key, whose public half the server knows.")]
_PlainHttp = Annotated[
    bool, typer.Option("--allow-plain-http", help="With --superlink: without TLS and key; only where another layer encrypts.")
]
_MetricsPort = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port on 127.0.0.1 for Prometheus; 0: any free one. [default: none]")
]
_LogFormat = Annotated[LogFormat, typer.Option(help="json: what happens as one JSON object a line, and nothing else.")]


def add(app: Commands) -> None:
    """Add them to a program."""
    app.command()(client)
    app.command()(helper)


def client(
    config: _Config = None,
    data: Annotated[Path | None, path_option("This client's CSV, JSON lines or parquet file. [required]")] = None,
    test_data: Annotated[Path | None, path_option("A file with its test examples; without it, some of --data are held out.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the (first) text. [default: as in the configuration]")] = None,
    pair_column: Annotated[str | None, typer.Option(help="Column of the second text, for tasks on pairs.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label. [default: as in the configuration]")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="For answers: column of the prompts.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="For answers: column of what is to be answered.")] = None,
    messages_column: Annotated[str | None, typer.Option(help="For answers: column of conversations.")] = None,
    socket: Annotated[Path, path_option("Socket through which the SuperNode reaches this client. [default: fibecfed.sock]")] = Path(
        "fibecfed.sock"
    ),
    folder: Annotated[Path | None, path_option("Folder for its states and its own model. [default: beside the socket]")] = None,
    name: Annotated[
        str | None, typer.Option(help="The client's name, which must not change. [default: that of its folder, or a new one]")
    ] = None,
    superlink: _Superlink = None,
    root_certificates: _RootCertificates = None,
    key: _Key = None,
    allow_plain_http: _PlainHttp = False,
    metrics_port: _MetricsPort = None,
    log_format: _LogFormat = LogFormat.text,
    device: Annotated[str | None, typer.Option(help="Device to compute on. [default: as in the configuration]")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: as in the configuration]")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check data and model on this machine; nothing is sent or written.")] = False,
    show_key: Annotated[
        bool,
        typer.Option("--show-key", help="Only print the line that pins this client's key under [privacy.keys], for secure aggregation."),
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Only say what the client with this --socket or --folder is doing; 1 if it is not well.")
    ] = False,
    json: _Json = False,
    verbose: Verbose = 0,
) -> None:
    """Run one client of a federation across machines.

    Loads model and data once and runs until it is stopped with Ctrl-C or SIGTERM.
    """
    place = socket.with_name(f"{socket.stem}-client") if folder is None else folder
    if status:
        _report(place, json)
        return
    as_json = log_format is LogFormat.json
    with _resident(log_format, verbose, json):
        if config is None or data is None:
            missing = "--config" if config is None else "--data"
            raise UserError(f"{missing}: not given; give the federation's configuration with --config, and this client's data with --data")
        from .deploy.client import ClientArguments, try_out
        from .deploy.client import run as be_client
        from .deploy.client import show_key as own_key

        own = {
            "data.path": data,
            "data.test_path": test_data,
            "data.text_column": text_column,
            "data.pair_column": pair_column,
            "data.label_column": label_column,
            "data.prompt_column": prompt_column,
            "data.completion_column": completion_column,
            "data.messages_column": messages_column,
            "training.device": device,
            "resources.threads": threads,
        }
        overrides = [f"{key}={value}" for key, value in own.items() if value is not None]
        link = _link(superlink, root_certificates, key, allow_plain_http)
        options = ClientArguments(config, overrides, socket, place, name, link, metrics_port)
        if show_key:
            typer.echo(own_key(options))
        elif check:
            try_out(options, console())
        else:
            be_client(options, _nothing if as_json else _now, console(quiet=as_json))


def helper(
    config: _Config = None,
    socket: Annotated[Path, path_option("Socket through which the SuperNode reaches it. [default: fibecfed.sock]")] = Path("fibecfed.sock"),
    folder: Annotated[Path | None, path_option("Folder for its key and what it has answered. [default: beside the socket]")] = None,
    superlink: _Superlink = None,
    root_certificates: _RootCertificates = None,
    key: _Key = None,
    allow_plain_http: _PlainHttp = False,
    metrics_port: _MetricsPort = None,
    log_format: _LogFormat = LogFormat.text,
    show_key: Annotated[bool, typer.Option("--show-key", help="Only print the line that pins its key under [privacy.keys].")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Only say what the helper with this --socket or --folder is doing; 1 if it is not well.")
    ] = False,
    json: _Json = False,
    verbose: Verbose = 0,
) -> None:
    """Run the helper of a federation across machines.

    With `privacy.secure_aggregation` = "helper" it takes the masks off the sums of clients' updates. It has no data, must be run by
    somebody who does not work with the server's operator, and runs until it is stopped with Ctrl-C or SIGTERM.
    """
    place = socket.with_name(f"{socket.stem}-helper") if folder is None else folder
    if status:
        _report(place, json)
        return
    as_json = log_format is LogFormat.json
    with _resident(log_format, verbose, json):
        if config is None:
            raise UserError("--config: not given; give the federation's configuration with it")
        from .deploy.client import ClientArguments
        from .deploy.helper import run as be_helper
        from .deploy.helper import show_key as own_key
        from .privacy.options import HELPER

        link = _link(superlink, root_certificates, key, allow_plain_http)
        options = ClientArguments(config, (), socket, place, HELPER, link, metrics_port)
        if show_key:
            typer.echo(own_key(options))
        else:
            be_helper(options, _nothing if as_json else _now)


def _report(place: Path, json: bool) -> None:
    with exit_codes():
        from .deploy.status import report

        if not report(place, console(), json):
            raise typer.Exit(FAILED)


@contextlib.contextmanager
def _resident(log_format: LogFormat, verbose: int, json: bool) -> Iterator[None]:
    """Inside, a process that runs until it is stopped, with its log and its exit codes."""
    as_json = log_format is LogFormat.json
    with (
        exit_codes(),
        json_lines(logging.DEBUG if verbose > 1 else logging.INFO) if as_json else shown(verbose),
        terminated_like_interrupted(),
    ):
        if json:
            raise UserError("--json: got it without --status; did you mean --log-format json?")
        yield


def _link(address: str | None, root_certificates: Path | None, key: Path | None, plain_http: bool) -> SuperLink | None:
    from .deploy.superlink import SuperLink

    if address is not None:
        return SuperLink(address, root_certificates, key, plain_http)
    for option, given in (("--root-certificates", root_certificates), ("--key", key), ("--allow-plain-http", plain_http)):
        if given:
            raise UserError(f"{option}: got it without --superlink HOST:PORT, the server's address; add it, or start a SuperNode yourself")
    return None


def _nothing(text: str) -> None:
    """Where the log says it."""


def _now(text: str) -> None:
    """A line of a log, at once even into a file."""
    print(escaped(text), flush=True)
