"""A run as its user sees it: a live line on a terminal, plain lines elsewhere, and the summary at the end."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Live
from rich.table import Table
from rich.text import Text

from .core.files import CONFIG, FLOWER, RECORDS, SUMMARY
from .core.metrics import METRICS
from .core.terminal import escaped
from .core.units import count, duration
from .engine.baselines import metric_of, other_scores, remarks
from .engine.events import DataInspected, Evaluated, Event, Finished, PhaseStarted, RoundDone, Started, StoppedEarly, Warned
from .methods.selected import in_short, in_words
from .privacy.statement import rounded_up

_ROUNDS_PER_LINE = 10
_RECENT = 0.2  # weight of the newest round in the time a round takes


class Progress:
    """Shows the events of a run; a context, and itself what a run calls with each event.

    On a terminal: one live line with phase, round, score, loss, bytes and time left. Elsewhere (a log): one line an evaluation, one for
    every ten rounds, and one for each warning.
    """

    def __init__(self, console: Console, before: str = "") -> None:
        """Args: before: what is being done until the first event, which may take a while; "" says nothing."""
        self._console = console
        self._before = before
        self._status: Any = None
        self._live: Live | None = None
        self._task: Any = None
        self._total = self._done = self._bytes = 0
        self._phase, self._loss = "", math.nan
        self._score: float | None = None
        self._metric = METRICS["accuracy"]
        self._round_s: float | None = None
        self._scored = self._last_scored = False

    def __enter__(self) -> Progress:
        if self._before and self._console.is_terminal:
            self._status = self._console.status(f"{self._before} ...")
            self._status.start()
        elif self._before:
            self._line(f"{self._before} ...")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def __call__(self, event: Event) -> None:
        self._end_status()
        match event:
            case Started():
                self._start(event)
            case DataInspected():
                for text in event.warnings:
                    self._line(f"warning: {text}", always=True)
            case PhaseStarted():
                self._phase = event.phase
                self._line(f"phase {event.phase}: {event.num_rounds} {'round' if event.num_rounds == 1 else 'rounds'}")
            case RoundDone():
                self._round(event)
            case Evaluated():
                self._score, self._metric = event.pooled_personalised, event.metric
                self._scored, self._last_scored = event.rounds > 0, event.is_last
                some = f" ({event.answered} of {event.clients} clients)" if event.answered < event.clients else ""
                scores = {"personalised": event.pooled_personalised, "global": event.global_, "worst decile": event.worst_decile}
                shown = ", ".join(f"{name} {event.metric.text(score)}" for name, score in scores.items())
                self._line(f"after round {event.rounds}{some}: {shown}" + (" (last)" if event.is_last else ""))
            case StoppedEarly():
                self._total -= event.left_out
                self._line(event.text, always=True)
            case Warned():
                self._line(f"warning: {event.text}", always=True)
            case Finished():
                self._stop()
        self._refresh()

    def _start(self, event: Started) -> None:
        self._total, self._done = event.total_rounds, event.completed
        begun = count(self._total, "round")
        if len(event.phases) > 1:
            begun += f" ({', '.join(f'{name} {rounds}' for name, rounds in event.phases)})"
        if event.completed:
            begun += f", resumed after round {event.completed}: rounds after the last checkpoint are repeated"
        self._line(f"{event.folder}: {begun}", always=True)
        if self._console.is_terminal:
            self._live = Live(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                console=self._console,
                transient=True,
            )
            self._live.start()
            self._task = self._live.add_task("", total=self._total, completed=self._done, facts="")

    def _round(self, event: RoundDone) -> None:
        self._done += 1
        self._bytes += event.bytes_up + event.bytes_down
        self._loss = math.nan if event.loss is None else event.loss
        self._round_s = event.seconds if self._round_s is None else (1 - _RECENT) * self._round_s + _RECENT * event.seconds
        if (event.index + 1) % _ROUNDS_PER_LINE == 0 or event.index + 1 == event.num_rounds:
            self._line(f"{event.phase} {event.index + 1}/{event.num_rounds}: {self._facts()}")

    def _facts(self) -> str:
        facts = [
            "" if self._score is None else f"{'score' if self._scored else 'untrained'} {self._metric.text(self._score)}",
            "" if math.isnan(self._loss) else f"loss {self._loss:.3f}",
            decimal(self._bytes),
            self._left(),
        ]
        return ", ".join(fact for fact in facts if fact)

    def _left(self) -> str:
        """How long the rounds that are left take; what else is done after the last one takes its time too."""
        if self._done == self._total:
            return "saving" if self._last_scored else "last evaluation, then saving"
        return "" if self._round_s is None else f"{duration(self._round_s * (self._total - self._done))} left"

    def _line(self, text: str, always: bool = False) -> None:
        """A line of a log; the live line says the same on a terminal, unless the text is to stay."""
        if always or not self._console.is_terminal:
            self._console.print(Text(escaped(text)), soft_wrap=True)

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._task, total=self._total, completed=self._done, description=self._phase, facts=self._facts())

    def _end_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _stop(self) -> None:
        self._end_status()
        if self._live is not None:
            self._live.stop()
            self._live = None


def show_summary(console: Console, summary: Mapping[str, Any], folder: Path) -> None:
    """What a finished run came to, what must not be overlooked in it, and where things lie.

    Args:
        summary: as in summary.json.
    """
    console.print(_scores(summary))
    title = metric_of(summary).title
    majority = _MAJORITY if summary["scores"].get("majority") is not None else ""
    console.print(Text(f"{title[0].upper()}{title[1:]} {_COLUMNS}{majority}"), soft_wrap=True)
    facts = {
        "saved": _saved(summary),
        "sent": f"{decimal(summary['bytes_up'])} up, {decimal(summary['bytes_down'])} down",
        **_trained(summary),
        "preset": in_short(summary["preset"]) if "preset" in summary else "",
        **in_words(summary["selected"]),
        "folder": str(folder),
        **{name: str(folder / path) for name, path in _WHERE.items() if (folder / path).exists()},
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(Text(name), Text(escaped(value), overflow="fold"))
    console.print(grid)
    for remark in remarks(summary):
        console.print(Text(escaped(f"note: {remark}")), soft_wrap=True)
    if summary.get("advice"):
        console.print(Text(escaped(f"which method: {summary['advice']}")), soft_wrap=True)
    hints = list[str]()
    if not (folder / FLOWER).is_file() and summary["method"] != "custom":  # neither can be run again from the file alone
        other = "fibecfed" if summary["method"] == "lora" else "lora"
        again = ["fibecfed", "run", str(folder / CONFIG), f"method.kind={other}", "--out", f"{folder}-{other}"]
        hints.append(f"To compare: {shlex.join(again)}")
    hints.append(how_to_ask(summary, folder))
    hints.append(f"To see curves, clients and classes: {shlex.join(['fibecfed', 'report', str(folder)])}")
    console.print(Text(escaped("\n".join(hints))), soft_wrap=True)


def how_to_ask(summary: Mapping[str, Any], folder: Path) -> str:
    """The command that uses what was trained."""
    if not (folder / "global").exists():
        return "To ask a model, see the model card."
    if "classes" in summary:
        return f"To classify texts: {shlex.join(['fibecfed', 'predict', str(folder)])} FILE"
    return f"To get an answer: {shlex.join(['fibecfed', 'generate', str(folder)])} PROMPT"


_COLUMNS = (
    "on test examples. Personalised: each client's own model on its own\n"
    "examples; global: the server's model on all of them; worst decile: what nine\n"
    "of ten clients reach with their own model."
)
_MAJORITY = (
    "\nMajority class: always the most frequent one of each client's own examples,\nor of all; only what is above it was read from texts."
)


def _trained(summary: Mapping[str, Any]) -> dict[str, str]:
    """How much was computed; of a private run, which does not record that, what it guarantees; of one of sums, of how many they were."""
    if "privacy" not in summary and (sums := summary.get("secure_aggregation")) is not None:
        return {"secure aggregation": f"sums of at least {sums['least']} of {sums['clients_per_round']} clients"}
    if (privacy := summary.get("privacy")) is None:
        return {"trained": f"{summary['steps']:,} steps on {summary['examples']:,} examples in {duration(summary['seconds'])}"}
    guarantee = f"({rounded_up(privacy['epsilon'])}, {privacy['delta']:g}) for each {privacy['unit']}; {privacy['ended']}"
    return {"privacy": guarantee}


def _scores(summary: Mapping[str, Any]) -> Table:
    scores, metric = summary["scores"], metric_of(summary)
    best = scores.get("best_by_validation")
    table = Table("", "personalised", "global", "worst decile", box=None, pad_edge=False)
    if scores.get("majority") is not None:  # not in summaries of version 0.1
        table.add_row("majority class", metric.text(scores["own_majority"]), metric.text(scores["majority"]), metric.text(None))
    rows = {"untrained": scores.get("untrained"), "last round": scores}
    if best is not None:
        rows[f"best by validation (round {best['rounds']})"] = best
    for name, row in rows.items():
        if row is not None:
            table.add_row(name, *(metric.text(row[key]) for key in ("pooled_personalised", "global", "worst_decile")))
    for other, own, server in other_scores(summary):
        table.add_row(other.title, other.text(own), other.text(server), "-")
    if metric.unit == "%" and (saved := summary.get("saved")) and saved["majority"] is not None:
        table.add_row("above majority class", *(_gain(saved[a], saved[b]) for a, b in _BESIDE), "-")
    return table


_BESIDE = (("pooled_personalised", "own_majority"), ("global", "majority"))


def _gain(score: float | None, simple: float | None) -> str:
    """Points between a score and a simple rule's, of two fractions: "+5.0 points"."""
    return "-" if score is None or simple is None or math.isnan(score) or math.isnan(simple) else f"{100 * (score - simple):+.1f} points"


def _saved(summary: Mapping[str, Any]) -> str:
    """Which round's models lie in the folder; "" in a summary of version 0.1."""
    saved = summary.get("saved")
    if saved is None:
        return ""
    return f"the models of round {saved['rounds']}, {'the last' if saved['rounds'] == summary['rounds'] else 'the best by validation'}"


_WHERE = {
    "global model": "global",
    "clients' models": "clients",
    "model card": "global/README.md",
    "records": RECORDS,
    "summary": SUMMARY,
}
