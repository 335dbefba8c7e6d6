"""A line of a log as JSON, for programs that collect logs."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager


class JsonLines(logging.Formatter):
    r"""One JSON object a line: time (RFC 3339, UTC), level, logger, message, and the exception where there is one.

    >>> record = logging.LogRecord("fibecfed", logging.INFO, "", 0, "a\n%s", ("b",), None)
    >>> record.created = 0.0
    >>> print(JsonLines().format(record))
    {"time": "1970-01-01T00:00:00.000Z", "level": "INFO", "logger": "fibecfed", "message": "a\nb"}
    """

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter.format`; line breaks and what could steer a terminal are escaped, as JSON does."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": time.replace("+00:00", "Z"), "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


@contextmanager
def json_lines(level: int = logging.INFO) -> Generator[None]:
    """Inside, the package's log goes to standard output, a JSON object a line."""
    log, handler = logging.getLogger(__name__.partition(".")[0]), logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    before = log.level
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)
