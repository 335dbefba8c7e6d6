"""`fibecfed audit`: a run's folder in, a table, `audit.json` and JSON out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..build import Prepared, prepare
from ..config import load
from ..core.errors import UserError
from ..core.files import AUDIT, CONFIG, RECORDS, SUMMARY, write_atomically
from ..core.json_text import to_json
from ..core.process import kept_memory, threads
from ..core.streams import quiet_libraries
from ..engine.log import read_header
from ..engine.loop import schedule
from ..provenance import reject_other_inputs
from .canaries import canary_rows, no_canaries, trained_with
from .figures import Interval
from .measure import measured
from .replay import observed
from .views import AttackRow, views_of

PRIVATE = (
    "This run is private for clients. Single updates are what its server saw before the noise; the mean of the first round has noise drawn "
    "anew, of the same size. These figures follow from the clients' data without noise, so they are not covered by its guarantee."
)
BY_EXAMPLE = (
    "This run is private for examples. Updates have noise drawn anew, of the same size. These figures follow from the clients' data "
    "without noise, so they are not covered by its guarantee."
)
WARNING = "These attacks are simple; a better one may find more. No row is a guarantee."


def audit(out: Path, most_clients: int, canaries: int = 0) -> dict[str, Any]:
    """Attack the messages of a finished run; what `audit.json` holds then.

    Args:
        out: folder of a simulated run whose checkpoints were kept.
        most_clients: whose updates are attacked, of the first and of the last round in which clients train.
        canaries: how many are planted at each client, on average, in a run of its own; 0: none, and no such run.

    Raises:
        UserError: not such a folder, or its data or model are not the run's any more.
    """
    if not (out / CONFIG).is_file():
        raise UserError(f"{out}: got a folder without {CONFIG}, expected the folder of a run, as given to --out")
    if not (out / SUMMARY).is_file():
        raise UserError(f"{out}: got a run that is not finished; finish it with: fibecfed resume {out}")
    config = load(out / CONFIG, ()).config
    if config.federation.partition == "machines":
        raise UserError(
            f"{out}: got a federation across machines, whose clients' data are not here; audit a simulation with the same settings instead"
        )
    with threads(config.resources.threads), kept_memory(), quiet_libraries():
        prepared = prepare(config)
        reject_other_inputs(prepared, read_header(out / RECORDS), out)
        rounds, server, missing = observed(prepared, out)
        start = prepared.method.server_params(prepared.method.init(prepared.task, prepared.inputs.key.fold("run").fold("init")))
        rows = measured(prepared, rounds, start, prepared.method.server_params(server), most_clients)
        if canaries:
            rows += canary_rows(*trained_with(config, canaries), most_clients)
        else:
            rows += (no_canaries(),)
    found = {
        "rounds": [one.now.number for one in rounds],
        "of_rounds": len(schedule(prepared.method)),
        "method": config.method.model_dump()["kind"],
        "clients": {str(one.now.number): sorted(one.updates) for one in rounds},
        "views": list(views_of(rounds)),
        "canaries_by_client": canaries,
        "rows": [_json(row) for row in rows],
        "note": " ".join(filter(None, (missing, _of_private(prepared)))) or None,
        "warning": WARNING,
    }
    write_atomically(out / AUDIT, (to_json(found, indent=2) + "\n").encode())
    return found


def _of_private(prepared: Prepared) -> str | None:
    if prepared.privacy is None:
        return None
    return PRIVATE if prepared.privacy.unit == "client" else BY_EXAMPLE


def _json(row: AttackRow) -> dict[str, Any]:
    def of(view: str, figure: Interval) -> dict[str, Any]:
        measured = {"value": figure.value, "low": figure.low, "high": figure.high}
        return {**measured, "guessing": row.guess(view), "better_than_guessing": row.tells(view)}

    return {
        "name": row.name,
        "unit": row.unit,
        "guessing": row.guessing,
        "views": {view: of(view, figure) for view, figure in row.figures.items()},
        "why_empty": row.why,
    }


def show(found: Mapping[str, Any], out: Console) -> None:
    """The table of an audit, at 80 columns."""
    rounds = " and ".join(map(str, found["rounds"]))
    plural = "s" * (len(found["rounds"]) > 1)
    out.print(f"What the messages of this run tell ({found['method']}; round{plural} {rounds})\n")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("guess", justify="right")
    for view in found["views"]:
        table.add_column(view.replace(": ", ":\n"), justify="right")
    for row in found["rows"]:
        cells = [_cell(row["views"].get(view)) for view in found["views"]]
        table.add_row(row["name"], f"{row['guessing']:.2f}" if row["views"] else "-", *cells)
    out.print(table)
    out.print()
    for row in found["rows"]:
        out.print(Text(f"{row['name']}: {row['unit']}" + (f"; not measured: {row['why_empty']}" if row["why_empty"] else "")))
    out.print(Text(f"\n± is half a 95 % interval, * tells more than guessing by more than that. {found['warning']}"))
    if found["note"]:
        out.print(Text(f"note: {found['note']}"))


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "- "
    return f"{figure['value']:.2f}±{(figure['high'] - figure['low']) / 2:.2f}{'*' if figure['better_than_guessing'] else ' '}"
