"""Draws the figures of the documentation: `python tools/figures.py` from code and from what one run recorded, `--check` only compares.

The algorithm's outline comes from FibecFed's table of phases and the pacing function, layers and difficulties from a run of
`configs/demo.toml` with method.preset=paper: `python tools/figures.py runs/demo` takes what that run selected into
benchmarks/results/demo-selection.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fibecfed.comparison.report import selection_figures as drawn
from fibecfed.comparison.report import svg
from fibecfed.comparison.report.results import SelectionRecord
from fibecfed.comparison.report.runs import read_run
from fibecfed.core.clock import Network
from fibecfed.core.rng import Key
from fibecfed.core.wire import describe
from fibecfed.local.curriculum import PACES
from fibecfed.local.options import CurriculumOptions, TrainingOptions
from fibecfed.methods.catalogue import FibecFedOptions, MethodContext, make

import study_figures  # isort: skip

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures"
RECORDED = ROOT / "benchmarks" / "results" / "demo-selection.json"
STYLE = """<style>
svg{--ink:#1d2126;--soft:#59626c;--grid:#e1e4e7;--s0:#0072b2;--keep:#c2500a;--card:#fff;font-family:sans-serif;background:var(--card)}
@media(prefers-color-scheme:dark){svg{--ink:#e8eaec;--soft:#a4adb6;--grid:#3a4148;--s0:#5ab4f0;--keep:#ff9350;--card:#1c2024}}
%s</style>"""
WIDTH = 480


def selection() -> SelectionRecord:
    """What the run of the demo selected."""
    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    for name in ("kept", "data"):
        found[name] = {int(number): value for number, value in found[name].items()}
    return SelectionRecord(**found)


def record(folder: Path) -> None:
    """Take over what a finished run selected."""
    run = read_run(folder, Network())
    RECORDED.write_text(json.dumps(asdict(run.selection), indent=1) + "\n", encoding="utf-8")


def drawing(parts: Sequence[str], width: float, height: float, summary: str) -> str:
    """A figure of text and shapes."""
    defs = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    return svg.Plot(svg.Scale(0, 1, 0, 1), svg.Scale(0, 1, 0, 1), width, height).svg([defs, *parts], summary, " diagram")


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return svg.line(x1, y1, x2, y2, "arrow").replace("/>", ' marker-end="url(#tip)"/>')


def federation() -> str:
    """Home's picture: the server, three clients, and which of a model's layers are averaged over them."""
    found = selection()
    count, shared = len(found.importance), set(found.layers)
    parts = [
        svg.rect(140, 12, 200, 44, "card"),
        svg.text(240, 32, "server", "name mid"),
        svg.text(240, 48, "averages the shared layers", "mid"),
    ]
    for client in range(3):
        left = 14 + 157 * client
        middle = left + 69
        parts += [svg.rect(left, 132, 138, 196, "card"), svg.text(middle, 152, f"client {client + 1}", "name mid")]
        for layer in range(count):
            y = 244 - 15 * layer
            parts.append(svg.rect(left + 14, y, 110, 12, "shared" if layer in shared else "own"))
            parts.append(svg.text(middle, y + 9.5, f"layer {layer}", "small mid"))
        parts += [svg.text(middle, 284, "easy texts first:", "mid")]
        for place, height in enumerate((5, 8, 10, 13, 16, 19, 23, 27)):
            style = "own" if place < 5 else "later"
            parts.append(svg.rect(left + 18 + 13 * place, 320 - height, 10, height, style))
        end = 190 + 50 * client
        parts += [_arrow(middle - 5, 132, end - 5, 58), _arrow(end + 5, 58, middle + 5, 132)]
    parts += [
        svg.rect(14, 342, 12, 12, "shared"),
        svg.text(32, 352, "averaged over all clients: the only layers that are sent", ""),
        svg.rect(14, 362, 12, 12, "own"),
        svg.text(32, 372, "stays on its client, as do all texts", ""),
    ]
    numbers = ", ".join(map(str, sorted(shared)))
    summary = (
        f"A server and three clients. Layers {numbers} of {count} are averaged on the server; the others and all texts stay on each client."
    )
    return drawing(parts, WIDTH, 384, summary)


def rounds() -> str:
    """The table of phases as messages between server and clients."""
    method = make(FibecFedOptions(preset="paper"), MethodContext(TrainingOptions(), 12, 20, Key(0), 64))
    does = {
        "importance": ("measure how each layer's", "output reacts to noise"),
        "tune": ("train easy examples, few", "neurons of own layers"),
    }
    after = {"importance": "choose the layers that are shared", "tune": "weighted mean of the shared layers"}
    parts = [svg.text(76, 20, "server", "name mid"), svg.text(400, 20, "clients", "name mid")]
    y = 34.0
    for phase in method.phases:
        who = f"{phase.cohort} clients"
        down, up = ([field for field, _ in describe(messages)] for messages in (phase.down, phase.up))
        optional = {"residual", "trained", "rest", "all_sent", "halves", "layers"} | ({"importance"} if phase.name == "tune" else set())
        times = "once" if phase.num_rounds == 1 else f"{phase.num_rounds} rounds"
        parts += [svg.rect(8, y, 464, 128, "card"), svg.text(20, y + 20, f"{phase.name}: {times}, {who}", "name")]
        down_words = ", ".join(field for field in down if field not in optional) or "start"
        up_words = ", ".join(field for field in up if field not in optional)
        parts += [_arrow(130, y + 48, 266, y + 48), svg.text(198, y + 42, down_words, "code mid")]
        parts += [svg.text(276, y + 46 + 15 * line, words, "") for line, words in enumerate(does[phase.name])]
        parts += [
            _arrow(266, y + 90, 130, y + 90),
            svg.text(198, y + 84, up_words, "code mid"),
            svg.text(20, y + 114, after[phase.name], ""),
        ]
        y += 140
    return drawing(parts, WIDTH, y, "The phases of FibecFed: " + ", then ".join(phase.name for phase in method.phases) + ".")


def paces() -> str:
    """How much of its data a client trains on, over the rounds, by pacing function."""
    options = CurriculumOptions()
    plot = svg.Plot(svg.Scale(0, 1, 52, WIDTH - 74), svg.Scale(0, 1, 232, 30), WIDTH, 280)
    parts = plot.axes("fraction of the rounds", "fraction of a client's examples, easiest first", lambda v: f"{v:g}", lambda v: f"{v:g}")
    names = [name for name in PACES if name != "none"]
    for name in [*(name for name in names if name != options.pace), options.pace]:
        points = [(u / 200, PACES[name](min(1.0, u / 200 / options.alpha), options.beta)) for u in range(201)]
        shown = [(plot.x(u), plot.y(value)) for u, value in points]
        parts.append(svg.path(shown, "main" if name == options.pace else "other"))
    half = [(name, PACES[name](0.5 / options.alpha, options.beta)) for name in names]
    at, last = WIDTH - 68, 0.0
    for name, value in sorted(half, key=lambda pair: -pair[1]):
        last = max(plot.y(value) + 4, last + 16)
        parts.append(svg.text(at, last, name, "name" if name == options.pace else ""))
    parts.append(svg.text(at, plot.y(1) - 10, "at half:", ""))
    return plot.svg(parts, "Fraction of the examples by round for the pacing functions " + ", ".join(names))


def figures() -> dict[str, str]:
    """Name of the file -> its drawing."""
    found = selection()
    recorded = {"layers": drawn._importance, "difficulty": drawn._difficulty}
    made = {name: (draw(found, "the demo") or "").replace('"plot"', '"plot measured"', 1) for name, draw in recorded.items()}
    studied = {name: draw() for name, draw in study_figures.FIGURES.items()}
    return {"federation": federation(), "rounds": rounds(), "paces": paces(), **made, **studied}


def standalone(text: str) -> str:
    """The figure as a file: with the colours of a page that has none of its own."""
    style = STYLE % (ROOT / "docs" / "assets" / "figures.css").read_text(encoding="utf-8")
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{style}", 1) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with --check say which are out of date; 1 if any is."""
    folders = [argument for argument in arguments if argument != "--check"]
    for folder in folders:
        record(Path(folder))
    FIGURES.mkdir(exist_ok=True)
    stale = []
    for name, text in figures().items():
        path = FIGURES / f"{name}.svg"
        if not path.is_file() or path.read_text(encoding="utf-8") != standalone(text):
            stale.append(path.name)
            if "--check" not in arguments:
                path.write_text(standalone(text), encoding="utf-8")
    print(("out of date: " if "--check" in arguments else "written: ") + (", ".join(stale) or "none"))
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
