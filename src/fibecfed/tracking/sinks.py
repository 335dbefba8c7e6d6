"""The table of trackers. A new one is a row here and a file beside this one, with `start(run)` in it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..core.errors import UserError
from .contract import TrackedRun, Tracker


@dataclass(frozen=True)
class Sink:
    """One tracker.

    Attributes:
        file: the module here that makes it.
        needs: what must be importable.
        install: what pip installs for it.
    """

    file: str
    needs: tuple[str, ...]
    install: str

    def start(self, run: TrackedRun) -> Tracker:
        """A tracker of this kind, its library imported."""
        make: Callable[[TrackedRun], Tracker] = importlib.import_module(f".{self.file}", __package__).start
        return make(run)


SINKS = {
    "tensorboard": Sink("to_tensorboard", ("tensorboard",), "tensorboard"),
    "mlflow": Sink("to_mlflow", ("mlflow", "sqlalchemy", "alembic"), "mlflow-skinny sqlalchemy alembic"),
    "trackio": Sink("to_trackio", ("trackio",), "trackio"),
    "wandb": Sink("to_wandb", ("wandb",), "wandb"),
}


def reject_missing(names: Iterable[str]) -> None:
    """Before anything is trained or written. Unknown names are for the checks of a configuration.

    Raises:
        UserError: a tracker that is not installed.
    """
    for name in names:
        needs = SINKS[name].needs if name in SINKS else ()
        if any(importlib.util.find_spec(package) is None for package in needs):
            raise UserError(f'tracking: got "{name}", which is not installed here; install it: pip install {SINKS[name].install}')
