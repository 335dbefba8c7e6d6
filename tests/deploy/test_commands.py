"""The commands of docs/deploy.md: those that end are run as they stand there; those that stay have only options that the programs know."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from fibecfed.config import federation_toml

pytestmark = pytest.mark.flower

ROOT = Path(__file__).resolve().parents[2]
TEXT = "\n".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("deploy.md", "operating.md"))
BIN = Path(sys.executable).parent
OURS = ("fibecfed", "flwr", "flower-superlink", "flower-supernode")


def blocks(language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def units() -> list[configparser.ConfigParser]:
    found = []
    for path in sorted((ROOT / "deployment" / "systemd").iterdir()):
        unit = configparser.ConfigParser(interpolation=None, strict=False)
        unit.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
        unit.read_string(path.read_text(encoding="utf-8"))
        found.append(unit)
    return found


def commands() -> Iterator[list[str]]:
    lines = "\n".join(blocks()).replace("\\\n", " ").splitlines() + [unit["Service"]["ExecStart"] for unit in units()]
    for line in lines:
        name = Path(line.partition(" ")[0]).name
        if name in OURS:
            yield [name, *shlex.split(line, comments=True)[1:]]
    services = yaml.safe_load((ROOT / "deployment" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    yield from (service["command"] for service in services.values())


def environment(folder: Path) -> dict[str, str]:
    home = {"FLWR_HOME": str(folder / ".flwr"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "COLUMNS": "200"}
    return {**os.environ, **home, "PYTHONPATH": str(ROOT / "src"), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def help_of(command: list[str], folder: Path) -> str:
    """What the program says of the options of such a command."""
    depth = {"client": 1, "check": 1, "run": 1, "flower": 2, "supernode": 2}.get(command[1], 0) if command[0] in ("fibecfed", "flwr") else 0
    program = [sys.executable, "-m", "fibecfed"] if command[0] == "fibecfed" else [str(BIN / command[0])]
    asked = [*program, *command[1 : 1 + depth], "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, env=environment(folder), timeout=300, check=False)
    assert done.returncode == 0, (asked, done.stderr)
    return done.stdout


def test_every_option_of_every_command_is_one_that_the_program_has(tmp_path: Path) -> None:
    known: dict[tuple[str, ...], str] = {}
    seen = set()
    for command in commands():
        key = tuple(command[:2])
        if key not in known:
            known[key] = help_of(command, tmp_path)
        options = [word.partition("=")[0] for word in command[1:] if word.startswith("--")]
        for option in options:
            assert re.search(rf"{re.escape(option)}\b", known[key]), (command, option)
        seen.add(command[0])
    assert seen == set(OURS) and any("--database" in command for command in commands())


def test_brackets_in_a_help_text_are_not_escaped(tmp_path: Path) -> None:
    shown = help_of(["fibecfed", "client"], tmp_path)
    assert "[required]" in shown and "\\" not in shown


def test_folder_certificates_and_keys_are_made_by_the_lines_of_the_text(tmp_path: Path) -> None:
    for tool in ("openssl", "ssh-keygen"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    chosen = [text for text in blocks() if text.startswith(("fibecfed flower init", "cd my-federation", "ssh-keygen"))]
    assert len(chosen) == 4
    script = "fibecfed() { " + shlex.join([sys.executable, "-m", "fibecfed"]) + ' "$@"; }\nset -e\n' + "".join(chosen)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert done.returncode == 0, done.stderr
    certificates = tmp_path / "my-federation" / "certificates"
    for name in ("ca.crt", "server.crt", "server.key", "client", "client.pub", "new", "new.pub"):
        assert (certificates / name).is_file(), name


def test_the_extras_that_are_installed_exist_and_bring_the_model_of_the_configuration() -> None:
    (named,) = re.findall(r'^pip install "\.\[([\w,]+)\]"', TEXT, re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    brought = " ".join(" ".join(extras[name]) for name in named.split(","))
    assert "flwr" in brought
    assert tomllib.loads(federation_toml())["model"]["name"] == "minilm" and "minilm" in brought
