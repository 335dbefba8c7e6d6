"""The command that shows a run while it is going on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_parts import Commands, path_argument
from .core.terminal import escaped
from .exits import FAILED, INTERRUPTED, console, exit_codes, say


def add(app: Commands) -> None:
    """Add it to a program."""
    app.command()(watch)


def watch(
    run: Annotated[Path, path_argument("RUN", "The folder of a run that is going on.")],
    page: Annotated[
        bool, typer.Option("--page", help="Also keep report.html in RUN up to date; it refreshes itself in a browser.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show a run while it is going on, until it ends.

    Reads its records as they grow; the run takes no notice. On the machine of the run.
    """
    with exit_codes():
        import shlex

        from .watch import PAGE
        from .watch import watch as look

        out = console(piped=80)
        if page:
            typer.echo(escaped(f"The page: {(run / PAGE).resolve().as_uri()}"))
        try:
            summary = look(run, out, every_s=every, page=page)
        except KeyboardInterrupt:
            say(f"{run}: no longer watched; the run itself goes on.")
            raise typer.Exit(INTERRUPTED) from None
        if summary is None:
            say(f"{run}: stopped without results, and no process works on it. Resume with: fibecfed resume {shlex.quote(str(run))}")
            raise typer.Exit(FAILED)
