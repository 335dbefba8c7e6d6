from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fibecfed.engine.flower.plain_http import _process, is_loopback, plain_beyond_loopback, reject_plain_http


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("python /bin/flower-superlink --insecure", None),
        ("python /bin/flower-superlink --insecure --host 127.0.0.1 --port 8000", None),
        ("python /bin/flower-superlink --insecure --host 0.0.0.0", ("flower-superlink", "0.0.0.0")),
        ("flower-superlink --host=10.0.0.1 --insecure", ("flower-superlink", "10.0.0.1")),
        ("flower-superlink --host 0.0.0.0 --ssl-certfile a --ssl-keyfile b", None),
        ("flower-supernode --insecure --superlink 127.0.0.1:8000", None),
        ("flower-supernode --insecure --superlink [::1]:8000", None),
        ("flower-supernode --insecure --superlink server.example:8000", ("flower-supernode", "server.example:8000")),
        ("flower-supernode --superlink server.example:8000 --root-certificates ca.crt", None),
        ("flower-superexec --insecure --runtime-api-address 10.0.0.1:8000", None),  # SuperLink and app on one machine
        ("cat notes-on-flower-superlink --insecure --host 0.0.0.0", None),
    ],
)
def test_only_flowers_programs_in_plain_http_beyond_this_machine_are_found(command: str, found: tuple[str, str] | None) -> None:
    assert plain_beyond_loopback(command.split()) == found


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:80", "localhost:80", "::1", "[::1]:80", "127.3.2.1"])
def test_this_machine(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "[::]:80", "localhost.evil.example", "10.0.0.1:80", "", "127.0.0.1.example"])
def test_not_this_machine(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize(
    ("host", "settings", "refused"),
    [
        ("0.0.0.0", {}, True),
        ("127.0.0.1", {}, False),
        ("0.0.0.0", {"allow-plain-http": True}, False),
        ("0.0.0.0", {"allow-plain-http": False}, True),
        ("0.0.0.0", {"allow-plain-http": "false"}, True),
    ],
)
def test_an_app_looks_at_the_processes_above_it(tmp_path: Path, host: str, settings: dict[str, object], refused: bool) -> None:
    """flower-superlink > flower-superexec > app, as Flower starts them; stand-ins that only start the next one."""
    app = tmp_path / "app.py"
    app.write_text(
        "from fibecfed.engine.flower.plain_http import reject_plain_http\n"
        f"try:\n    reject_plain_http({settings}, 'say so')\nexcept ValueError as error:\n    print(error)\n"
    )
    exec_, link = tmp_path / "flower-superexec", tmp_path / "flower-superlink"
    exec_.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, {str(app)!r}])\n")
    link.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, {str(exec_)!r}, '--insecure'])\n")
    shown = subprocess.run([sys.executable, str(link), "--insecure", "--host", host], capture_output=True, text=True, check=True).stdout
    assert (f"flower-superlink runs with --insecure on {host}" in shown and shown.strip().endswith("say so")) == refused
    assert bool(shown) == refused


def test_without_flower_above_nothing_is_refused() -> None:
    reject_plain_http({}, "")
    found = _process(os.getpid())
    assert found is not None and found[0] == os.getppid() and found[1][0]
    assert _process(2**22 + 1) is None
