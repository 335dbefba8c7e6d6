"""The command that measures what a run's messages tell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_parts import Commands, path_argument
from .exits import console, exit_codes


def add(app: Commands) -> None:
    """Add it to a program."""
    app.command()(audit)


def audit(
    run: Annotated[Path, path_argument("RUN", "The folder of a finished simulation, with its checkpoints.")],
    clients: Annotated[int, typer.Option(min=1, help="Clients of a round whose updates are attacked.")] = 5,
    canaries: Annotated[
        int,
        typer.Option(
            min=0,
            max=1000,
            help="Synthetic texts that each client trains on, on average, in a run that is trained for it beside this one; 0: none.",
        ),
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print what audit.json holds instead of a table.")] = False,
) -> None:
    """Measure what a run's messages tell about its clients' data.

    Attacks the updates of the first and the last round, their mean, and the final model. Writes audit.json into the folder.
    """
    with exit_codes():
        from .audit.command import audit as measure
        from .audit.command import show
        from .core.json_text import to_json

        out = console()
        again = "training the run again with canaries" if canaries else "computing two rounds again"
        with out.status(f"{again}, then attacking what was sent ..."):
            found = measure(run, clients, canaries)
        if json:
            typer.echo(to_json(found, indent=2))
        else:
            show(found, out)
