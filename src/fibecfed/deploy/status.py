"""What a client is doing: kept in a file of its folder, so that another process can tell without asking the busy one.

Light to import: whoever asks may do so every minute.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.errors import UserError
from ..core.files import read_table, write_atomically
from ..core.json_text import to_json
from ..core.terminal import one_line
from ..core.units import duration

if TYPE_CHECKING:
    from ..engine.flower.envelope import Request

FILE = "status.json"
LOCK = "lock"
IDLE = "waiting for the server"
_ADVICE = "remove it, and the client writes it again when it is next asked something"
_TRAINING = ("hello", "start", "train", "evaluate", "evaluate_both", "evaluate_global", "finish")
_SUMS = ("share", "mask", "confirm", "reveal", "key", "unmask")
_ACTIONS = (*_TRAINING, *_SUMS, "other")
"""What is counted, each for itself; the server cannot add names."""


@dataclass
class Status:
    """A client's present state, changed by several threads, each time also in its file. Times are seconds since 1970.

    Attributes:
        name, process, started: who it is.
        doing: "loading", "waiting for the server", or the request that it works on; `since`: from when.
        examples: by part.
        requests: action -> "done", "failed" or "rejected" -> how many.
        seconds: action -> computed in all.
        received_bytes, sent_bytes: of requests and answers, with their envelopes.
        last_request: when the last answer was given.
        superlink: the server's address, where the client starts its own SuperNode, `connected` and `restarts` of that, and when the
            server's certificate ends.
    """

    folder: Path
    name: str = ""
    process: int = field(default_factory=os.getpid)
    started: float = field(default_factory=time.time)
    doing: str = "loading"
    since: float = field(default_factory=time.time)
    examples: dict[str, int] = field(default_factory=dict)
    requests: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    received_bytes: int = 0
    sent_bytes: int = 0
    last_request: float | None = None
    superlink: str | None = None
    connected: bool | None = None
    restarts: int = 0
    certificate_ends: float | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def update(self, **values: Any) -> None:
        """Set fields."""
        with self._changed():
            for name, value in values.items():
                setattr(self, name, value)

    def begun(self, request: Request) -> None:
        """Work on a request begins."""
        where = f": {request.phase[:40]} round {request.index}" if request.phase else ""
        with self._changed():
            self.doing, self.since = f"{_known(request.action)}{where}", time.time()

    def ended(self, request: Request, status: str, received: int, sent: int) -> None:
        """A request was answered."""
        with self._changed():
            now, action = time.time(), _known(request.action)
            counts = self.requests.setdefault(action, {"done": 0, "failed": 0, "rejected": 0})
            counts["rejected" if status == "refused" else status] += 1  # the word of the messages between machines
            self.seconds[action] = self.seconds.get(action, 0.0) + now - self.since
            self.received_bytes, self.sent_bytes = self.received_bytes + received, self.sent_bytes + sent
            self.doing, self.since, self.last_request = IDLE, now, now

    def table(self) -> dict[str, Any]:
        """What the file holds."""
        with self._lock:
            return {key: value for key, value in asdict(self).items() if key != "folder"}

    @contextlib.contextmanager
    def _changed(self) -> Iterator[None]:
        with self._lock:
            yield
            table = {key: value for key, value in asdict(self).items() if key != "folder"}
            with contextlib.suppress(OSError):  # a full disk is told by what cannot do without it
                write_atomically(self.folder / FILE, (to_json(table, indent=2) + "\n").encode())


def report(folder: Path, console: Console, as_json: bool) -> bool:
    """Print what a client is doing; whether it is well: running, and connected where it starts its own SuperNode.

    Raises:
        UserError: no client has ever run in `folder`, or its file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: no client has run there, or one of an earlier version; give its --socket or --folder")
    table = read_table(path, _ADVICE)
    if not table.keys() >= {"name", "process", "doing", "since", "requests", "started"}:
        raise UserError(f"{path}: got other keys than expected; {_ADVICE}")
    running = _in_use(folder)
    well = running and table.get("connected") is not False
    if as_json:
        console.file.write(to_json({**table, "running": running, "well": well}, indent=2) + "\n")
    else:
        shown = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for row in _rows(table, running, time.time()):
            shown.add_row(*(Text(one_line(cell)) for cell in row))
        console.print(Text(one_line(f"Client {table['name']}"), style="bold"))
        console.print(shown)
    return well


def _rows(table: Mapping[str, Any], running: bool, now: float) -> list[tuple[str, ...]]:
    if not running:
        return [("state", f"not running; it last changed {_ago(table['since'], now)}")]
    rows = [
        ("state", f"running for {duration(now - table['started'])} (process {table['process']})"),
        ("now", f"{table['doing']}, for {duration(now - table['since'])}"),
    ]
    if table.get("superlink") is not None:
        state = "connected" if table.get("connected") else "not connected"
        restarts = f"; the SuperNode was started again {table['restarts']} times" if table.get("restarts") else ""
        rows.append(("server", f"{table['superlink']}: {state}{restarts}"))
        if table.get("certificate_ends") is not None:
            rows.append(("certificate", f"of the server, for {(table['certificate_ends'] - now) / 86400:.0f} more days"))
    for action, counts in table["requests"].items():
        told = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
        rows.append((action, f"{told}; {duration(table['seconds'].get(action, 0.0))} in all"))
    rows.append(("last request", "none yet" if table.get("last_request") is None else _ago(table["last_request"], now)))
    return rows


def _known(action: str) -> str:
    return action if action in _ACTIONS else "other"


def _ago(then: float, now: float) -> str:
    return f"{duration(max(0.0, now - then))} ago"


def _in_use(folder: Path) -> bool:
    """Whether a process holds the folder's lock, which the system releases when that ends, however it does."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False
