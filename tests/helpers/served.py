"""A federation across machines in this process: residents as `fibecfed client` makes them, and the server app's work on a made grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from made_flower import Grid
from rich.console import Console
from saved import save_backbone
from tiny_federation import COMMON, NAMES, write_data

from fibecfed.build import prepare
from fibecfed.config import load
from fibecfed.deploy import server
from fibecfed.deploy.client import _resident
from fibecfed.engine.flower.resident import Resident
from fibecfed.privacy.options import HELPER
from fibecfed.progress import Progress
from fibecfed.reading import only


class Killed(BaseException):
    """A server app that dies: nothing catches it."""


def write_files(folder: Path, federation: str, tables: str) -> Path:
    """The model, the data, sim.toml for the simulator and federation.toml for machines, in `folder`, which is returned.

    Args:
        federation: keys of [federation].
        tables: what follows.
    """
    save_backbone(folder / "backbone")
    write_data(folder)
    data = f'path = "{folder}/all-train.csv"\ntest_path = "{folder}/all-test.csv"\nclient_column = "site"'
    for name, data_keys, more in (("federation", "", 'partition = "machines"'), ("sim", data, 'partition = "column"')):
        text = COMMON.format(backbone=folder / "backbone", every=1, data=data_keys, federation=federation + more)
        (folder / f"{name}.toml").write_text(text + tables)
    return folder


def resident(
    here: Path, name: str, folder: Path, say: Callable[[str], None] = lambda text: None, file: str = "federation.toml"
) -> Resident:
    """The client of this name, its own things in `folder`."""
    own = (f"data.path={here}/{name}-train.csv", f"data.test_path={here}/{name}-test.csv")
    prepared = prepare(load(here / file, own).config, read_data=only(name))
    return _resident(prepared, name, f"of {name}", folder, say)


def residents(here: Path, folder: Path, file: str = "federation.toml") -> dict[str, Resident]:
    """Every client, each with a folder in `folder`."""
    for name in NAMES:
        (folder / name).mkdir()
    return {name: resident(here, name, folder / name, file=file) for name in NAMES}


def serve(
    here: Path,
    runs: Path,
    clients: Mapping[str, Resident],
    again: Path | None = None,
    instead: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType({}),
    file: str = "federation.toml",
    helper: Callable[[bytes], bytes] | None = None,
) -> Path:
    """The server app's work, from the start or resumed; the run's folder.

    Args:
        instead: what answers in place of a client.
        helper: what answers as the helper.
    """
    answers = {name: instead.get(name, clients[name].answer) for name in NAMES} | ({} if helper is None else {HELPER: helper})
    grid = Grid(dict(enumerate(answers.values(), start=1)))
    grid.names = dict(enumerate(answers, start=1))
    settings: dict[str, Any] = {"config": str(here / file), "runs": str(runs), "wait-s": 5.0}
    with Progress(Console(quiet=True)) as progress:
        server._run(grid, settings | ({} if again is None else {"run": str(again)}), progress)
    return again or next(runs.iterdir())
