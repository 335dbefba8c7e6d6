"""What the commands share: the kind of program they are parts of, and arguments that several of them take."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .core.files import expanded


class _Command(TyperCommand):
    def get_help(self, ctx: Any) -> str:
        """Older versions of typer escape brackets for rich, also where rich does not show them."""
        return super().get_help(ctx).replace("\\[", "[")


ORDER = (
    "init", "check", "run", "resume", "watch", "report", "predict", "evaluate", "generate", "export", "push", "compare", "audit", "client",
    "helper", "flower", "list",
)  # fmt: skip
"""The commands as somebody needs them who begins: the order in which they are listed."""


class InOrder(TyperGroup):
    """Lists its commands in `ORDER`, wherever they are defined."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names; one that is not in `ORDER` comes last."""
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


class Commands(typer.Typer):
    """A group of commands."""

    def command(self, *arguments: Any, **options: Any) -> Any:
        """As typer has it."""
        return super().command(*arguments, **{"cls": _Command, **options})


def path_argument(metavar: str, text: str) -> Any:
    """A path; `~` is a home also where the shell leaves it as it is."""
    return typer.Argument(metavar=metavar, parser=expanded, help=text, show_default=False)


def path_option(text: str, metavar: str = "PATH") -> Any:
    """As `path_argument`, for an option."""
    return typer.Option(metavar=metavar, parser=expanded, help=text, show_default=False)


Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log to standard error; -vv: more.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but warnings and errors.")]
