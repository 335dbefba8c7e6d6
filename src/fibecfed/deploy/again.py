"""`fibecfed resume` for a federation across machines: starts the Flower run again, in the folder of the run that was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..core.errors import RunFailed, UserError
from ..core.files import SUMMARY, read_summary

FLOWER = "flower.json"
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def resume(out: Path) -> tuple[dict[str, Any], bool]:
    """Have Flower resume a run; its summary, and whether it was finished before.

    Raises:
        UserError: Flower is not installed here, or the federation's folder is not where it was.
        RunFailed: it stopped again.
    """
    if (out / SUMMARY).is_file():
        return read_summary(out), True
    about = json.loads((out / FLOWER).read_text(encoding="utf-8"))
    app, connection = Path(about["app"]), about["connection"]
    if not (app / "pyproject.toml").is_file():
        raise UserError(f"{out / FLOWER}: the federation's folder {app} is not there; put it back, or fix `app` in that file")
    program = Path(sys.executable).with_name("flwr")
    if not program.is_file():
        raise UserError("flwr is not installed beside this Python; run: pip install 'fibecfed[flower]'")
    run = json.dumps(str(out.resolve()), ensure_ascii=False)
    command = [str(program), "run", str(app), connection, "--stream", "--run-config", f"run={run}"]
    home = {} if "FLWR_HOME" in os.environ else {"FLWR_HOME": str(app / ".flwr")}
    subprocess.run(command, env={**os.environ, **ENVIRONMENT, **home}, check=False)  # exits 0 whatever became of the run
    if not (out / SUMMARY).is_file():
        raise RunFailed(f"{out}: the run has not come to its end; the lines above say why. Checkpoints and configuration are as they were")
    return read_summary(out), False
