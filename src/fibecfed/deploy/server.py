"""The Flower ServerApp: a run on disk like every other one, whose clients are reached through Flower's grid and whose data is not here."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import session
from ..build import Prepared
from ..client_manager import NOTHING_USED, Messages, Summary
from ..config import Config, common, load
from ..core.errors import RunFailed, UserError
from ..core.files import CONFIG, FLOWER, write_atomically
from ..core.json_log import json_lines
from ..core.json_text import to_json
from ..core.streams import without_library_warnings
from ..core.terminal import escaped
from ..core.types import ClientId, Round
from ..engine.events import Warned, logged
from ..engine.flower import names
from ..engine.flower.apps import server_app
from ..engine.flower.envelope import Finish, packed
from ..engine.flower.transport import FlowerTransport
from ..engine.held import HeldStates
from ..engine.requests import OnDemand
from ..engine.states import ClientStates
from ..models.base_models import find
from ..privacy.options import HELPER
from ..progress import Progress
from ..reading import nobody
from ..saving import checksum_of_files, versions
from .again import about

logger = logging.getLogger(__name__)

FINISH_S = 600.0
"""How long clients have to save their own models at the end."""


@dataclass(frozen=True)
class Machines:
    """Clients on other machines."""

    transport: FlowerTransport
    names: Sequence[ClientId]
    masked_run: str | None = None
    totals = None  # the examples are the clients'

    def finish(
        self, messages: Messages, last: Round, shared: str, summary: Summary, header: Mapping[str, Any], adapters: bool
    ) -> Mapping[ClientId, str]:
        """As `client_manager.ClientManager.finish`; who is not there keeps its state, and saves nothing."""
        told = to_json(header)
        blobs = messages(self.names)
        requests = OnDemand(self.names, lambda name: Finish(packed(blobs[name]), shared, to_json(summary(name)), told))
        return self.transport.finish(requests, last, FINISH_S)

    def used(self) -> tuple[float, tuple[ClientId, ...]]:
        """As `client_manager.ClientManager.used`."""
        return NOTHING_USED

    def close(self) -> None:
        """As `client_manager.ClientManager.close`; Flower's connections outlast a run."""


def serve(grid: Any, settings: Mapping[str, Any]) -> None:
    """Start a run, or resume the one that the run configuration names.

    Args:
        settings: the run configuration, [tool.flwr.app.config] of the app's pyproject.toml.

    Raises:
        RuntimeError: with the sentence that was said before; Flower then marks the run as failed.
    """
    without_library_warnings()
    as_json = settings.get("log-format") == "json"
    with json_lines() if as_json else nullcontext(), Progress(Console(highlight=False, width=160, quiet=as_json)) as progress:
        try:
            _run(grid, settings, progress)
        except (UserError, RunFailed) as error:
            text = escaped(str(error))  # Flower logs it as well
            if as_json:
                logger.error("%s", text)
            else:
                print(f"error: {text}", flush=True)
            raise RuntimeError(text) from None


def _run(grid: Any, settings: Mapping[str, Any], progress: Progress) -> None:
    again = str(settings.get("run", ""))
    out = Path(again) if again else _new_folder(Path(str(settings["runs"])))
    config = load(out / CONFIG if again else Path(str(settings["config"]))).config
    _check(config)
    completed = session.completed_rounds(out, config) if again else 0
    known = about(out)
    run = known.get("run") or secrets.token_hex(8)

    def say(text: str) -> None:
        logged(progress)(Warned(text))

    shared = common(config, checksum_of_files(find(config.model)))
    chosen = settings.get(names.OPTION) is True or bool(settings.get("socket"))  # nodes of Flower's simulation have no keys
    transport = FlowerTransport(grid, run, shared, versions(), completed, say, unregistered_names=chosen)
    options = config.federation
    expected = known.get("clients") or options.client_names or tuple(sorted(config.privacy.pinned)) or None
    if expected is not None and config.privacy.helped:
        expected = *expected, HELPER
    here = transport.wait_for(options.clients, expected, float(settings["wait-s"]))
    clients = tuple(name for name in here if not (config.privacy.helped and name == HELPER))

    def connect(prepared: Prepared, states: ClientStates | HeldStates, out: Path, completed: int) -> Machines:
        transport.start_from(prepared.start())
        told = {"run": run, "clients": list(clients), "app": settings.get("app", ""), "connection": settings.get("connection", "")}
        write_atomically(out / FLOWER, (to_json(told, indent=2) + "\n").encode())
        return Machines(transport, clients, run)

    if again:
        session.resume(out, progress, read_data=nobody(clients), connect=connect)
    else:
        session.start(config, out, progress, read_data=nobody(clients), connect=connect)


def _check(config: Config) -> None:
    if config.federation.partition != "machines":
        raise UserError(
            f'federation.partition: got "{config.federation.partition}", expected "machines" for a federation across machines; '
            "`fibecfed flower init` writes such a configuration"
        )


def _new_folder(runs: Path) -> Path:
    stem = time.strftime("%Y%m%d-%H%M%S")
    folder, number = runs / stem, 2
    while folder.exists():
        folder, number = runs / f"{stem}-{number}", number + 1
    return folder


app = server_app(serve)
