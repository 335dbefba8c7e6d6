"""How a command ends: its exit code, and what is said of it.

0 done, 1 failed while running (resumable), 2 the user's mistake, 130 interrupted (resumable).
"""

from __future__ import annotations

import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from .core.errors import RunFailed, UserError
from .core.files import CONFIG

if TYPE_CHECKING:
    from .progress import Progress

R = TypeVar("R")

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def watched(folder: Path, go: Callable[[Progress], R]) -> R:
    """What `go` returns, its progress shown; what stops it as an exit code, with the command that resumes."""
    from .progress import Progress

    try:
        with terminated_like_interrupted(), Progress(console()) as progress:
            return go(progress)
    except UserError:
        raise
    except KeyboardInterrupt:
        say(f"Interrupted. {_how_to_resume(folder)}")
        raise typer.Exit(INTERRUPTED) from None
    except RunFailed as error:
        text = str(error).rstrip(".")
        say(f"error: {text}." + ("" if "fibecfed resume" in text else f" {_how_to_resume(folder)}"))
        raise typer.Exit(FAILED) from None
    except Exception as error:
        _unexpected(error, folder)
        raise typer.Exit(FAILED) from None


@contextmanager
def exit_codes() -> Iterator[None]:
    """The user's mistakes as a sentence and exit code 2; Ctrl-C before there is anything to resume as 130."""
    try:
        yield
    except UserError as error:
        say(f"error: {error}")
        raise typer.Exit(MISTAKE) from None
    except KeyboardInterrupt:
        say("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a run the way Ctrl-C does, so that a cluster's or a container's stop leaves it resumable."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _begun(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _how_to_resume(folder: Path) -> str:
    return (
        f"Resume with: fibecfed resume {shlex.quote(str(folder))}"
        if _begun(folder)
        else "Nothing was trained yet: run the same command again."
    )


def _unexpected(error: Exception, folder: Path) -> None:
    """One line for what nobody foresaw; its traceback goes into a file, in the folder of a run only once that has begun."""
    text = " ".join(str(error).split()) or "no message"
    where = (folder if _begun(folder) else Path.cwd()) / "traceback.txt"
    try:
        with where.open("a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)) + "\n")
        trace = f"its traceback is in {where}"
    except OSError as second:
        trace = f"its traceback could not be written to {where} ({second.strerror})"
    say(f"error: unexpected {type(error).__name__}: {text}; {trace}. {_how_to_resume(folder)}")


def console() -> Any:
    """Where tables and progress go: standard output."""
    from rich.console import Console

    # A pipe has no width; tables should not be folded there to that of an imagined terminal.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def say(text: str) -> None:
    """A sentence on standard error, apart from what a pipe takes."""
    typer.echo(text, err=True)
