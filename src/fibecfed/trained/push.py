"""A saved model on the hub, with its card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..core.types import ClientId
from ..models.hub import publish
from .export import Form, export


def push(
    run: str | Path, repo: str, client: ClientId | None, form: Form, *, base: str | None = None, public: bool = False, update: bool = False
) -> tuple[str, tuple[str, ...]]:
    """Publish a model in one of its forms. Arguments as for `export` and `models.hub.publish`.

    Returns:
        The address of the commit, and what the user has to be told.

    Raises:
        UserError: as these.
        RunFailed: as these.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "model"
        notes = export(run, client, {form: folder}, base=base)
        who = "the global model" if client is None else f"client {client}"
        return publish(folder, repo, private=not public, update=update, message=f"{form} of {who}, made with fibecfed"), notes
