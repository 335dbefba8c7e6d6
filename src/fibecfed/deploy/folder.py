"""`fibecfed flower init`: the folder of a federation, which Flower's own commands are then called with."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from ..config import federation_toml
from ..core.errors import UserError

CONFIG, ENVIRONMENT = "federation.toml", "flower.env"


def make(folder: Path, kind: str = "classification") -> None:
    """Write the Flower app, a commented configuration, and the environment for Flower's commands.

    Args:
        kind: of the data, as `data.kind`.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; nothing was changed; choose another one")
    try:
        (folder / ".flwr").mkdir(parents=True)
        for name, text in files(folder.resolve(), kind).items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another folder") from None


def files(folder: Path, kind: str = "classification") -> dict[str, str]:
    """Name -> text of what is in a federation's folder."""
    config, runs, app = (_text(path) for path in (folder / CONFIG, folder / "runs", folder))
    return {
        "pyproject.toml": _APP.format(config=config, runs=runs, app=app),
        CONFIG: federation_toml(kind),
        ENVIRONMENT: _ENVIRONMENT.format(home=shlex.quote(str(folder / ".flwr"))),
        ".flwr/config.toml": _CONNECTIONS.format(ca=_text(folder / "certificates" / "ca.crt")),
    }


def _text(path: Path) -> str:
    """A path as a text of TOML, which takes no character in two halves."""
    return json.dumps(str(path), ensure_ascii=False)


_APP = """\
# A Flower app that consists of this file alone: its code is in the installed package fibecfed.
[project]
name = "fibecfed-federation"
version = "0.1.0"
description = "A federation of fibecfed"
license = "Apache-2.0"
dependencies = ["fibecfed[flower]"]

[tool.flwr.app]
publisher = "fibecfed"
fab-include = ["pyproject.toml"]

[tool.flwr.app.components]
serverapp = "fibecfed.deploy.server:app"
clientapp = "fibecfed.engine.flower.relay:app"

# Read by the server app, on the machine of the SuperLink; for a single run also: flwr run ... --run-config 'wait-s=60.0'
[tool.flwr.app.config]
config = {config}
runs = {runs}  # a new run makes a folder in it
run = ""  # the folder of a run to resume: `fibecfed resume` sets it
app = {app}
connection = "production"  # of .flwr/config.toml: where `fibecfed resume` starts the run again
wait-s = 600.0  # how long clients are waited for at the start, and when a run is resumed
allow-unregistered-names = false  # true: clients whose keys were registered without a name may choose one
allow-plain-http = false  # true: the server app works without TLS beyond this machine too; it does not speak for the clients
log-format = "text"  # json: one JSON object a line
socket = ""  # for Flower's simulation alone, e.g. "/tmp/clients/{{}}.sock"; {{}} = number of the node
"""

_ENVIRONMENT = """\
# Read this before each of Flower's commands:  . flower.env
export FLWR_TELEMETRY_ENABLED=0  # no telemetry
export FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1  # else the SuperLink runs an installer for each run, which needs a network
export RAY_USAGE_STATS_ENABLED=0
export FLWR_HOME={home}
"""

_CONNECTIONS = """\
# How `flwr run` and `fibecfed resume` reach the SuperLink, from the machine they are called on.
[superlink]
default = "production"

[superlink.production]
address = "127.0.0.1:8000"
root-certificates = {ca}

[superlink.local]
address = ":local:"
"""
