"""The pages as files: text in page.html and one_run.html, parts of both in parts.html and shell.html, style and script beside them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .results import OURS

_HERE = Path(__file__).parent
_LONG = 24  # characters of a cell that may take several lines on paper


@cache
def _pages() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, auto_reload=False
    )


def filled(name: str, refresh_s: float | None = None, **values: Any) -> str:
    """A page with its style and script in it.

    Args:
        name: of the template.
        refresh_s: seconds after which an open page reads itself again from the disk; None: never.
        values: what it shows; every name that it uses must be there.
    """
    style, script = ((_HERE / file).read_text(encoding="utf-8") for file in ("page.css", "page.js"))
    page = _pages().get_template(name).render(css=style, js=script, refresh_s=refresh_s, ours=OURS, long=_LONG, **values)
    return page.strip() + "\n"
