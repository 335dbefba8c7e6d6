"""The figures of the study of presets, drawn from the tables of docs/results.md, so that both say the same."""

from __future__ import annotations

from pathlib import Path

from fibecfed.comparison.report import svg

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results.md"
WIDTH = 480
ROW = 26
MARKS = {"lora": "s-lora", "lora + local training": "s-tuned", "best": "s-best"}


def table(heading: str, first: str) -> list[dict[str, str]]:
    """The rows of the table whose first column is `first`, under a heading of docs/results.md.

    Raises:
        LookupError: there is no such table.
    """
    level = heading.split()[0]
    inside, rows = False, list[list[str]]()
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            inside = line == heading or (inside and len(line.split()[0]) > len(level))
        elif inside and line.startswith("|") and (rows or line.startswith(f"| {first} |")):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    if not rows:
        raise LookupError(f"docs/results.md has no table under {heading!r} whose first column is {first!r}")
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def _legend(names: dict[str, str], y: float, start: float = 14.0) -> list[str]:
    parts, x = list[str](), start
    for name, style in names.items():
        parts += [svg.circle(x, y - 4, 5, style), svg.text(x + 10, y, name, "")]
        x += 34 + 6.2 * len(name)
    return parts


def scores() -> str:
    """Personalised scores of `lora`, of `lora` with a local training and of the preset `best`, a row for each federation."""
    rows = [row for row in table("## Presets beside lora", "data") if row["method"] == "best"]
    found = {
        f"{row['data']}, {row['clients']}": (float(row["lora"]), float(row["lora + local training"]), float(row["this"])) for row in rows
    }
    bottom = 40 + ROW * len(found)
    scale = svg.linear([value for values in found.values() for value in values], 132, WIDTH - 16)
    plot = svg.Plot(scale, svg.Scale(0, 1, bottom, 34), WIDTH, bottom + 38)
    parts = [*_legend(MARKS, 18), *plot.axes("personalised accuracy, %, mean over three seeds", "", lambda v: f"{v:g}", None)]
    for number, (name, values) in enumerate(found.items()):
        y = 52 + ROW * number
        parts += [svg.text(124, y + 4, name, "end"), svg.line(scale(min(values)), y, scale(max(values)), y, "axis")]
        parts += [svg.circle(scale(value), y, 5, style) for value, style in zip(values, MARKS.values(), strict=True)]
    return plot.svg(parts, "Personalised accuracy by federation: " + "; ".join(f"{k}: {', '.join(map(str, v))}" for k, v in found.items()))


def price() -> str:
    """What is sent over what is gained: a dot for each federation and form of the preset `best`."""
    names = {"best": "s-best", "best, all blocks": "s-tuned", "best, upper third": "s-lora"}
    rows = [row for row in table("## Presets beside lora", "data") if row["method"] in names]
    points = [(float(row["bytes"]), float(row["above the better"].split()[0]), names[row["method"]]) for row in rows]
    plot = svg.Plot(svg.Scale(0.25, 1.05, 48, WIDTH - 16), svg.linear([y for _, y, _ in points], 244, 56, margin=0.1), WIDTH, 286)
    parts = [
        *_legend(names, 18),
        *plot.axes("bytes over those of lora with a local training", "points above the better lora", _short, _short),
    ]
    parts.append(svg.line(48, plot.y(0), WIDTH - 16, plot.y(0), "axis"))
    parts += [svg.circle(plot.x(x), plot.y(y), 5, style) for x, y, style in points]
    said = "; ".join(f"{row['data']}, {row['clients']}, {row['method']}: {row['bytes']}, {row['above the better']}" for row in rows)
    return plot.svg(parts, f"Bytes and gain in points: {said}")


def last_training() -> str:
    """Scores before the last local training, at the point halfway and after it, a line for each federation."""
    rows = table("### What a client keeps of its last training", "data")
    places = ("before", "halfway", "after")
    lines = {
        row["data"].replace("a0.3", "Dirichlet 0.3").replace("a1", "Dirichlet 1"): [float(row[place]) for place in places] for row in rows
    }
    plot = svg.Plot(svg.Scale(0, 2, 48, WIDTH - 152), svg.linear([value for line in lines.values() for value in line], 250, 30), WIDTH, 284)
    parts = [part for part in plot.axes("", "personalised accuracy, %", lambda _: "", _short) if 'class="grid" d="M0' not in part]
    parts += [svg.text(plot.x(place), 268, name, "mid") for place, name in enumerate(places)]
    last = 0.0
    for name, line in sorted(lines.items(), key=lambda pair: -pair[1][2]):
        style = "main" if "0.3" in name else "other"
        last = max(plot.y(line[2]) + 4, last + 15)
        parts += [svg.path([(plot.x(place), plot.y(value)) for place, value in enumerate(line)], style)]
        parts.append(svg.text(WIDTH - 146, last, name, "name" if style == "main" else ""))
    return plot.svg(parts, "Accuracy before, halfway and after the last training: " + "; ".join(f"{k}: {v}" for k, v in lines.items()))


def _short(value: float) -> str:
    return f"{value:.3g}"


FIGURES = {"study-scores": scores, "study-price": price, "study-last-training": last_training}
"""Name of the file -> what draws it."""
