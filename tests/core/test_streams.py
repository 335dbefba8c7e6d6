"""Standard output and standard error in whatever state a process was started with."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fibecfed

PROGRAM = """
import os, subprocess, sys
from fibecfed.core.streams import keep_streams
keep_streams()
with open("kept", "w") as file:
    for i in range(20000):
        print("a line ± of text", i, flush=True)
        sys.stderr.write("a warning ±\\n")
    assert file.fileno() > 2, file.fileno()
    file.write("kept")
    file.flush()
    subprocess.run(["sh", "-c", "echo end >child; echo of a child"], check=False)
"""
STATES = {
    "closed": ">&- 2>&- <&-",
    "output closed": ">&-",
    "errors closed": "2>&-",
    "full": ">/dev/full 2>/dev/full",
    "read by head": "2>/dev/full | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}",
    "both read by head": "2>&1 | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}",
    "written to the end": ">out 2>err",
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_program_ends_well_whatever_takes_its_output(state: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(fibecfed.__file__).parents[1]), "PYTHONIOENCODING": encoding}
    command = f"'{sys.executable}' program.py {state}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "kept").read_text() == "kept"
    assert (tmp_path / "child").read_text() == "end\n"
    if state == STATES["written to the end"]:
        sign = {"utf-8": "±", "latin-1": "±", "ascii": "\\xb1"}[encoding]
        lines = (tmp_path / "out").read_bytes().decode(encoding).splitlines()
        assert lines[-2:] == [f"a line {sign} of text 19999", "of a child"] and len(lines) == 20001


def test_results_that_standard_output_cannot_take_are_an_error() -> None:
    code = (
        "from fibecfed.core.streams import keep_streams, write_output\n"
        "keep_streams()\n"
        "try:\n    write_output(b'x' * 100_000)\n"
        "except OSError as error:\n    raise SystemExit(str(error.strerror))\n"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "No space left on device")
    gone = subprocess.run(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true", shell=True, capture_output=True, text=True)
    assert (gone.returncode, gone.stderr) == (0, "")
