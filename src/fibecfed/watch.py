"""A run that is going on, seen from another process: read from its records as they grow. Nothing is locked, nothing of it changed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .comparison.report.comparison import read_report, write_files
from .comparison.report.one.converged import training_loss
from .comparison.report.one.report import to_html
from .core.errors import UserError
from .core.files import CONFIG, RECORDS, SUMMARY, read_summary, write_atomically
from .core.json_text import from_json
from .core.metrics import METRICS, Metric, metric_named
from .core.records import EvalRecord, RoundRecord, record_of
from .core.terminal import escaped
from .core.units import count, duration
from .engine.baselines import baselines
from .engine.evaluation import scores
from .progress import show_summary

PAGE = "report.html"
REFRESH_S = 5.0
"""Seconds between two readings of the page by a browser, and at least between two writings of it."""
_RECENT, _TIMED = 6, 20
_PER_LINE = 10
_BARS = "▁▂▃▄▅▆▇█"
_BAR, _SHARE = 24, 10  # columns of the bar; writing the page takes at most this fraction of the time


class Tail:
    """The lines of a file that is written by another process, each once, as soon as it is whole.

    A run that is resumed cuts its records back to its last checkpoint: then all lines come again, and `restarts` counts up.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._last = b""
        self.restarts = 0

    def read(self) -> list[bytes]:
        """The lines that came since the last call; none where there is no file yet.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                if self._offset:
                    file.seek(self._offset - len(self._last))
                    if file.read(len(self._last)) != self._last:
                        self.restarts += 1
                        self._offset, self._last = 0, b""
                file.seek(self._offset)
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        if lines:
            self._offset += sum(map(len, lines))
            self._last = lines[-1]
        return lines


@dataclass
class Seen:
    """What the records of a run say so far."""

    header: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rounds: int = 0
    trained: int = 0
    size: int = 0
    failures: int = 0
    last: RoundRecord | None = None
    evaluations: list[EvalRecord] = field(default_factory=list[EvalRecord])
    losses: list[float] = field(default_factory=list[float])
    seconds: list[float] = field(default_factory=list[float])

    def add(self, record: RoundRecord | EvalRecord) -> None:
        """The next one."""
        if isinstance(record, EvalRecord):
            self.evaluations.append(record)
            return
        self.rounds += 1
        self.last = record
        self.size += sum(record.bytes_up.values()) + sum(record.bytes_down.values())
        self.failures += sum(len(one.failures) for one in (record, *record.attempts))
        if any(record.steps.values()) or not record.steps:  # a private run records none
            self.trained += 1
            self.seconds.append(record.seconds)
        self.losses += [loss for _, loss in training_loss([record])]

    @property
    def metric(self) -> Metric:
        """The primary one; of records of version 0.1 accuracy."""
        return metric_named(self.header["metric"], self.header.get("labels", ())) if "metric" in self.header else METRICS["accuracy"]

    @property
    def total(self) -> int:
        """Rounds of training that were asked for."""
        return int(self.header["configuration"]["federation"]["rounds"])

    @property
    def title(self) -> str:
        """What is trained, on whom."""
        tables = self.header["configuration"]
        task = tables["data"].get("task") or tables["data"].get("path")
        clients = len(self.header.get("partition") or {})
        of = f" for {Path(task).name}" if task else ""
        return f"{tables['method'].get('kind')}{of}" + (f" on {count(clients, 'client')}" if clients else "")

    @property
    def left_s(self) -> float | None:
        """Seconds that the rounds that are left may take, by the last ones."""
        recent = self.seconds[-_TIMED:]
        left = self.total - self.trained
        return sum(recent) / len(recent) * left if recent and left > 0 else None


def parsed(seen: Seen, lines: Sequence[bytes], path: Path) -> list[RoundRecord | EvalRecord]:
    """The records in some lines, added to what was seen.

    Raises:
        UserError: a line is no record.
    """
    found: list[RoundRecord | EvalRecord] = []
    for line in lines:
        try:
            table = from_json(line)
            if not seen.header:
                if table.get("kind") != "header" or "configuration" not in table:
                    raise ValueError("expected the header of a fibecfed run in the first line")
                seen.header = table
                continue
            record = record_of(table, "a line")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}: cannot be read as the records of a run ({error})") from None
        seen.add(record)
        found.append(record)
    return found


def writer(folder: Path) -> int | None:
    """The process that runs in a folder, by the number in its lock file, which is only read; None where that process is gone."""
    try:
        number = int((folder / "lock").read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None
    try:
        os.kill(number, 0)  # asks whether it is there
    except PermissionError:
        return number  # somebody else's
    except (OSError, OverflowError):
        return None
    return number


def watch(
    folder: Path, console: Console, *, every_s: float = 1.0, page: bool = False, sleep: Callable[[float], None] = time.sleep
) -> dict[str, Any] | None:
    """Show a run until it ends.

    Args:
        every_s: seconds between two looks.
        page: whether report.html in the folder is kept up to date; it reads itself again in a browser.
        sleep: waits so many seconds.

    Returns:
        Its summary; None where it stopped without results.

    Raises:
        UserError: there is no run in the folder, or its records cannot be read.
    """
    if not ((folder / RECORDS).is_file() or (folder / CONFIG).is_file() or writer(folder)):
        raise UserError(f"{folder}: got no run, expected the folder of one that has begun, as given to --out")
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    shown = _Lines(console, folder) if live is None else None
    tail, seen, writes = Tail(folder / RECORDS), Seen(), _Page(folder) if page else None
    if live is not None:
        live.start()
    try:
        while True:
            is_running, restarts = writer(folder) is not None, tail.restarts
            is_done = (folder / SUMMARY).is_file()  # in this order: a process that ends in between has written its results
            lines = tail.read()  # after the two: whatever was written before them is read
            if tail.restarts > restarts:
                seen = Seen()
            records = parsed(seen, lines, folder / RECORDS)
            if live is not None:
                live.update(view(seen, folder, console), refresh=True)
            if shown is not None:
                shown.add(seen, records, again=tail.restarts > restarts)
            if writes is not None and not is_done and seen.evaluations:
                writes.update(bool(lines))
            if is_done or not is_running:
                break
            sleep(every_s)
    finally:
        if live is not None:
            live.stop()
    if writes is not None and seen.evaluations:
        writes.finish()
    if not is_done:
        if seen.header:
            console.print(view(seen, folder, console))
        return None
    summary = read_summary(folder)
    show_summary(console, summary, folder)
    return summary


class _Page:
    """report.html of a run that is going on: written again when there is news, and never for more than a small part of the time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0.0
        self._stale = False

    def update(self, news: bool) -> None:
        """Write it if there is something new and it is time."""
        self._stale |= news
        if not self._stale or time.monotonic() < self._next:
            return
        start = time.monotonic()
        try:
            text = to_html(read_report(self._folder), REFRESH_S)
        except UserError:  # a run that is being resumed cuts its records
            return
        try:
            write_atomically(self._folder / PAGE, text.encode())
        except OSError as error:
            raise UserError(f"{self._folder / PAGE}: cannot be written ({error.strerror}); leave out --page") from None
        self._stale = False
        self._next = start + max(REFRESH_S, _SHARE * (time.monotonic() - start))

    def finish(self) -> None:
        """The whole report, as `fibecfed report` writes it; an open page reads itself once more and then rests."""
        write_files(read_report(self._folder), self._folder)


class _Lines:
    """A run as lines of a log: one for each evaluation and every ten rounds, and one where answers were not used."""

    def __init__(self, console: Console, folder: Path) -> None:
        self._console = console
        self._folder = folder
        self._begun = False

    def add(self, seen: Seen, records: Sequence[RoundRecord | EvalRecord], *, again: bool) -> None:
        """What is new."""
        if again:
            self._print("resumed from its last checkpoint: rounds after it are repeated")
        if seen.header and not self._begun:
            self._begun = True
            self._print(f"{self._folder}: {seen.title}, {count(seen.total, 'training round')}")
            records = _newest(records)
        elif not seen.header and not self._begun:
            return
        for record in records:
            if isinstance(record, EvalRecord):
                self._print(f"after round {record.rounds}: {_scored(record, seen.metric)}")
            else:
                if record.failures:
                    self._print(f"round {record.number + 1}: {count(len(record.failures), 'answer')} not used")
                if (record.number + 1) % _PER_LINE == 0:
                    self._print(f"round {record.number + 1} ({record.phase}): {_facts(seen)}")

    def _print(self, text: str) -> None:
        self._console.print(Text(escaped(text)), soft_wrap=True)


def _newest(records: Sequence[RoundRecord | EvalRecord]) -> Sequence[RoundRecord | EvalRecord]:
    """Of what was there before somebody watched: the evaluations alone."""
    return [record for record in records if isinstance(record, EvalRecord)]


def _scored(record: EvalRecord, metric: Metric) -> str:
    found = scores(record, metric)
    names = {"personalised": "pooled_personalised", "global": "global", "worst decile": "worst_decile"}
    return ", ".join(f"{name} {metric.text(found[key])}" for name, key in names.items())


def _facts(seen: Seen) -> str:
    facts = [
        f"loss {seen.losses[-1]:.3f}" if seen.losses else "",
        decimal(seen.size),
        "" if seen.left_s is None else f"about {duration(seen.left_s)} left",
    ]
    return ", ".join(fact for fact in facts if fact)


def view(seen: Seen, folder: Path, console: Console) -> RenderableType:
    """A run on a terminal, at most as wide as that."""
    if not seen.header:
        return Text(escaped(f"{folder}: loading model and data ..."), overflow="fold")
    parts: list[RenderableType] = [Text(escaped(f"{folder}: {seen.title}"), style="bold", overflow="fold"), _bar(seen), _scores(seen)]
    if len(seen.losses) > 1:
        parts.append(_row("loss", f"{_bars(seen.losses, console)} {seen.losses[-1]:.3f} nat"))
    if seen.last is not None:
        parts.append(_row("sent", f"{decimal(seen.size)} in {count(seen.rounds, 'round')}"))
        slow = sorted(seen.last.compute_s.items(), key=lambda one: -one[1])[:3]
        listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in slow)
        parts.append(_row("clients", f"{len(seen.last.cohort)} in the last round" + (f"; the slowest: {listed}" if listed else "")))
    if seen.failures:
        parts.append(_row("not used", count(seen.failures, "answer")))
    return Group(*parts)


def _row(name: str, text: str) -> Text:
    return Text(escaped(f"{name:<9}{text}"), overflow="ellipsis", no_wrap=True)


def _bar(seen: Seen) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    phase = "starting" if seen.last is None else seen.last.phase
    left = "" if seen.left_s is None else f"about {duration(seen.left_s)} left"
    done = f"{phase}, round {seen.trained} of {seen.total}"
    left = left if seen.trained < seen.total else "last evaluation, then saving"
    grid.add_row(Text(escaped(done)), ProgressBar(seen.total, min(seen.trained, seen.total), width=_BAR), Text(left))
    return grid


def _scores(seen: Seen) -> Table:
    """The first evaluation and the newest ones, below what always the most frequent class gives."""
    metric = seen.metric
    shown = Table("", "personalised", "global", "worst decile", box=None, pad_edge=False)
    if (newest := seen.evaluations[-1:]) and newest[0].rounds:
        majority, own = baselines(newest[0], seen.header.get("partition") or {}, metric)
        if not math.isnan(majority):
            shown.add_row("majority class", metric.text(own), metric.text(majority), "-")
    for record in [*seen.evaluations[:1], *seen.evaluations[1:][-_RECENT:]]:
        found = scores(record, metric)
        name = f"after round {record.rounds}" if record.rounds else "untrained"
        shown.add_row(name, *(metric.text(found[key]) for key in ("pooled_personalised", "global", "worst_decile")))
    return shown


def _bars(values: Sequence[float], console: Console) -> str:
    """Values as a row of bars, each the mean of its neighbours where there are many; nothing where a terminal has no such letters."""
    if "utf" not in (console.encoding or "").lower():
        return ""
    groups = min(40, len(values))
    if not groups:
        return ""
    means = [_mean(values[place * len(values) // groups : (place + 1) * len(values) // groups]) for place in range(groups)]
    low, high = min(means), max(means)
    return "".join(_BARS[round((len(_BARS) - 1) * ((mean - low) / (high - low) if high > low else 0.0))] for mean in means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
