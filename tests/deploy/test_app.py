from __future__ import annotations

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from flwr.cli.build import build_fab_from_disk

from fibecfed.deploy.folder import make

pytestmark = pytest.mark.flower


def test_the_app_that_flower_sends_around_holds_its_pyproject_alone_also_beside_runs(tmp_path: Path) -> None:
    make(tmp_path / "fed")
    (tmp_path / "fed" / "runs" / "a").mkdir(parents=True)
    (tmp_path / "fed" / "runs" / "a" / "config.toml").write_text("")
    with zipfile.ZipFile(BytesIO(build_fab_from_disk(tmp_path / "fed"))) as fab:
        assert sorted(fab.namelist()) == [".info/CONTENT", "pyproject.toml"]


def test_a_relay_loads_no_torch() -> None:
    code = "import sys, fibecfed.engine.flower.relay\nprint(sorted({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
