"""The package's log on standard error, as `--verbose` and `--quiet` ask for it."""

from __future__ import annotations

import enum
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .core.errors import UserError
from .core.terminal import escaped


class LogFormat(enum.StrEnum):
    """How a command that runs for long says what happens."""

    text = "text"
    json = "json"


class _StandardError(logging.Handler):
    """Writes to what is standard error at the time: a live progress line puts something else in its place, which writes above itself."""

    def __init__(self, beside_progress: bool) -> None:
        super().__init__()
        self._beside_progress = beside_progress
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if self._beside_progress and getattr(record, "shown", False):
            return
        try:
            sys.stderr.write(escaped(self.format(record)) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


@contextmanager
def shown(verbose: int, quiet: bool = False) -> Iterator[None]:
    """Inside, the package's log is shown.

    Args:
        verbose: 0: not at all, since progress says what matters; 1: what happens; 2: in more detail.
        quiet: warnings alone, since no progress is shown.

    Raises:
        UserError: both are asked for.
    """
    if quiet and verbose:
        raise UserError("got --quiet and --verbose, expected one of them; take one out")
    if not (quiet or verbose):
        yield
        return
    log, handler = logging.getLogger(__package__), _StandardError(beside_progress=not quiet)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO if verbose == 1 else logging.DEBUG)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)
