"""How a command ends: its exit code, and what is said of it.

0 done, 1 failed while running (resumable), 2 the user's mistake, 130 interrupted (resumable).
"""

from __future__ import annotations

import errno
import os
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
from .core.terminal import escaped

if TYPE_CHECKING:
    from .progress import Progress

R = TypeVar("R")

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def watched(folder: Path, go: Callable[[Progress], R], before: str = "loading model and data", quiet: bool = False) -> R:
    """What `go` returns, its progress shown; what stops it as an exit code, with the command that resumes.

    Args:
        before: what is done until there is progress; "" where something else says so.
        quiet: progress is not shown.
    """
    from .progress import Progress

    with exit_codes(folder), terminated_like_interrupted(), Progress(console(quiet=quiet), before) as progress:
        return go(progress)


@contextmanager
def exit_codes(folder: Path | None = None, again: str | None = None) -> Iterator[None]:
    """Every way in which a command can end, as its exit code and a sentence on standard error.

    Args:
        folder: of a run, which can be resumed once it has begun.
        again: the command line that resumes what is not a single run.
    """
    try:
        yield
        return
    except typer.Exit:
        raise
    except UserError as error:
        code, text = MISTAKE, f"error: {error}"
    except KeyboardInterrupt:
        code, text = INTERRUPTED, _with_hint("Interrupted.", folder, again)
    except RunFailed as error:
        code, text = FAILED, _with_hint(f"error: {str(error).rstrip('.')}.", folder, again)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            code, text = MISTAKE, f"error: {str(error.filename or '')[:77]}...: {error.strerror}; choose a shorter one"
        else:
            code, text = FAILED, _with_hint(f"error: {_unexpected(error, folder)}.", folder, again)
    except Exception as error:
        code, text = FAILED, _with_hint(f"error: {_unexpected(error, folder)}.", folder, again)
    say(text)
    raise typer.Exit(code)


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


def _begun(folder: Path | None) -> bool:
    return folder is not None and (folder / CONFIG).is_file()


def _with_hint(text: str, folder: Path | None, again: str | None) -> str:
    """The text, and which command resumes, unless it says so itself."""
    if again is not None:
        return f"{text} Resume with: {again}"
    if folder is None or "fibecfed resume" in text:
        return text
    hint = f"Resume with: fibecfed resume {shlex.quote(str(folder))}"
    return f"{text} {hint if _begun(folder) else 'Nothing was trained yet: run the same command again.'}"


def _unexpected(error: Exception, folder: Path | None) -> str:
    """One line for what nobody foresaw; its traceback goes into a file, in the folder of a run only once that has begun."""
    text = " ".join(str(error).split()) or "no message"
    where = Path("traceback.txt") if folder is None or not _begun(folder) else folder / "traceback.txt"
    try:
        with where.open("a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)) + "\n")
        trace = f"its traceback is in {where}"
    except OSError as second:
        trace = f"its traceback could not be written to {where} ({second.strerror})"
    return f"unexpected {type(error).__name__}: {text}; {trace}"


def console(piped: int = 160, quiet: bool = False) -> Any:
    """Where tables and progress go: standard output.

    Args:
        piped: columns where it is no terminal, unless the environment variable COLUMNS says how many.
        quiet: they go nowhere.
    """
    from rich.console import Console

    # A pipe has no width; tables should not be folded there to that of an imagined terminal.
    return Console(highlight=False, width=None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else piped, quiet=quiet)


def say(text: str) -> None:
    """A sentence on standard error, apart from what a pipe takes."""
    typer.echo(escaped(text), err=True)
