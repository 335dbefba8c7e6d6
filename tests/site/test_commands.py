"""Commands and examples of the pages run as they stand there: blocks marked `console` and `python`, in order, in one folder per page."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, environment

pytestmark = pytest.mark.docs

SMALL = """
[model]
name = "minilm"
[data]
task = "movie-reviews"
max_train = 120
max_test = 40
max_length = 24
[federation]
clients = 3
clients_per_round = 3
rounds = 2
[training]
local_epochs = 1
"""
RUN = ("quick-start", "watching", "own-method")
"""Pages whose `console` and `python` blocks are run."""

ELSEWHERE = {
    "using": "tests/test_api.py and tests/trained/test_export.py",
    "models": "its example needs a model of the hub; the same code, in a model card, is run by tests/e2e/test_label_words.py",
}
"""Other pages with such blocks, and where they are tested."""


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of those blocks of a page."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```(console|python)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The commands of a `console` block, those that begin with a dollar sign."""
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in text.replace("\\\n", " ").splitlines() if line.startswith("$ ")]


def test_every_page_with_such_blocks_is_run_or_tested_elsewhere() -> None:
    found = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in found if blocks(page)} <= {*RUN, *ELSEWHERE}


@pytest.mark.parametrize("page", RUN)
def test_the_commands_and_examples_of_a_page_run(page: str, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    if page != "quick-start":
        (tmp_path / "fibecfed.toml").write_text(SMALL, encoding="utf-8")
    found = blocks(page)
    assert found
    steps: list[list[str]] = []
    for language, text in found:
        steps += [[sys.executable, "-c", text]] if language == "python" else [[sys.executable, "-m", *one] for one in commands(text)]
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(ROOT / "examples" / "own-method")])
    for step in steps:
        ran = subprocess.run(step, cwd=tmp_path, env={**environment(), "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{step[-1]}\n{ran.stdout[-3000:]}{ran.stderr[-3000:]}"
