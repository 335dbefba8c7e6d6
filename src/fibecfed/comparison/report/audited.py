"""What `fibecfed audit` measured of a run, for its report: the file beside the run's own, read and shown as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ...core.files import AUDIT
from . import tables
from .recorded import told
from .tables import Cell, Column, Table, number, words


class _Figure(BaseModel):
    value: float
    low: float
    high: float
    better_than_guessing: bool = False


class _Row(BaseModel):
    name: str
    unit: str
    guessing: float
    views: Mapping[str, _Figure]
    why_empty: str | None = None


class _Audit(BaseModel):
    views: Sequence[str]
    rows: Sequence[_Row]
    warning: str
    note: str | None = None


def audited(folder: Path) -> tuple[tuple[str, ...], tuple[Table, ...]]:
    """Sentences and the table of a run's audit; nothing where it was not audited.

    Args:
        folder: of the run.
    """
    path = folder / AUDIT
    if not path.is_file():
        return (), ()
    try:
        found = _Audit.model_validate_json(path.read_bytes())
    except ValidationError as error:
        return (f"{path}: " + told(error, "an audit") + "; make it anew with: fibecfed audit RUN",), ()
    except OSError as error:
        return (f"{path}: {error.strerror}",), ()
    columns: list[Column] = [
        Column("attack", lambda row: words(row.name)),
        Column("measured", lambda row: words(row.unit)),
        Column("guessing reaches", lambda row: number(row.guessing, 2) if row.views else Cell("-")),
        *(Column(view, partial(_figure, view)) for view in found.views),
    ]
    star = "; * tells more than guessing" if any(one.better_than_guessing for row in found.rows for one in row.views.values()) else ""
    note = f"Attacks on what was sent, by somebody who has the base model and the model before the round{star}. {found.warning}"
    why = [f"{row.name}: not measured, {row.why_empty}." for row in found.rows if row.why_empty and not row.views]
    lines = tuple(filter(None, (found.note, *why)))
    return lines, (tables.table("audit", "Attacks", note, columns, found.rows),)


def _figure(view: str, row: Any) -> Cell:
    figure: _Figure | None = row.views.get(view)
    if figure is None:
        return Cell("-")
    star = "*" if figure.better_than_guessing else ""
    return Cell(f"{figure.value:.2f} ± {(figure.high - figure.low) / 2:.2f}{star}", figure.value)
