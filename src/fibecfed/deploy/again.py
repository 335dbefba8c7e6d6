"""`fibecfed resume` for a federation across machines: starts the Flower run again, in the folder of the run that was stopped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..config import load
from ..core.errors import RunFailed, UserError
from ..core.files import CONFIG, FLOWER, SUMMARY, read_summary, read_table
from ..engine.options import CLIENT_NAME

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

_ADVICE = (
    "restore it from a backup, or write it again: run (16 hexadecimal digits, as the run's folder beside each client.json is called), "
    'clients (a list of their names), app (the federation\'s folder) and connection ("production")'
)


def about(out: Path) -> dict[str, Any]:
    """What a run's folder says about its federation: run, clients, app and connection; empty before the first start.

    Raises:
        UserError: the file is damaged.
    """
    path = out / FLOWER
    if not path.is_file():
        return {}
    table = read_table(path, _ADVICE)
    run, clients = table.get("run"), table.get("clients")
    texts = all(isinstance(table.get(name, ""), str) for name in ("app", "connection"))
    named = isinstance(clients, list) and clients and all(isinstance(name, str) and re.fullmatch(CLIENT_NAME, name) for name in clients)
    if not (isinstance(run, str) and re.fullmatch(r"[0-9a-f]{16}", run) and named and texts):
        raise UserError(f"{path}: got other keys or values than expected; {_ADVICE}")
    return table


def resume(out: Path) -> tuple[dict[str, Any], bool]:
    """Have Flower resume a run; its summary, and whether it was finished before.

    Raises:
        UserError: Flower is not installed here, the federation's folder is not where it was, or a file of the run is damaged.
        RunFailed: it stopped again.
    """
    if (out / SUMMARY).is_file():
        return read_summary(out), True
    known = about(out)
    load(out / CONFIG)  # a mistake in it is reported here, before Flower is asked
    app, connection = Path(known.get("app", "")), known.get("connection", "")
    if not connection:
        raise UserError(
            f"{out / FLOWER}: connection: not set, expected the name of a connection in {app / '.flwr' / 'config.toml'}; set it"
        )
    if not (app / "pyproject.toml").is_file():
        raise UserError(f"{out / FLOWER}: the federation's folder {app} does not exist; restore it, or fix `app` in that file")
    program = Path(sys.executable).with_name("flwr")
    if not program.is_file():
        raise UserError("flwr is not installed in this Python's environment; run in a clone of fibecfed: pip install '.[flower]'")
    run = json.dumps(str(out.resolve()), ensure_ascii=False)
    command = [str(program), "run", str(app), connection, "--stream", "--run-config", f"run={run}"]
    home = {} if "FLWR_HOME" in os.environ else {"FLWR_HOME": str(app / ".flwr")}
    subprocess.run(command, env={**os.environ, **ENVIRONMENT, **home}, check=False)  # exits 0 whatever became of the run
    if not (out / SUMMARY).is_file():
        raise RunFailed(f"{out}: the run did not finish; the lines above say why. Checkpoints and configuration are unchanged")
    return read_summary(out), False
